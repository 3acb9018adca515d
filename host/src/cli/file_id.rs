//! Which file or folder a path leads to, whatever its name.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::SystemTime;

/// What tells a file or folder from any other one that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileId {
    device: u64,
    inode: u64,
    /// The inode of one that was removed is often that of the next one.
    created: Option<SystemTime>,
}

impl FileId {
    /// What the path leads to; none where there is nothing.
    pub(super) fn of(path: &Path) -> Option<FileId> {
        let metadata = std::fs::metadata(path).ok()?;
        Some(FileId {
            device: metadata.dev(),
            inode: metadata.ino(),
            created: metadata.created().ok(),
        })
    }
}
