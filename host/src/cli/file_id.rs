//! Identifies the file or folder that a path leads to, whatever its name.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::SystemTime;

/// The identity of a file or folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileId {
    device: u64,
    inode: u64,
    /// The time when it was made: the inode of a removed file is often reused for the next one.
    created: Option<SystemTime>,
}

impl FileId {
    /// The identity of the file or folder that the path leads to. None: there is none.
    pub(super) fn of(path: &Path) -> Option<FileId> {
        let metadata = std::fs::metadata(path).ok()?;
        Some(FileId {
            device: metadata.dev(),
            inode: metadata.ino(),
            created: metadata.created().ok(),
        })
    }
}
