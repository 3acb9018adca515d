//! Identifies the file or folder that a path leads to, so that it can be told from another one that has taken its
//! place.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::SystemTime;

/// The identity of a file or folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileId {
    device: u64,
    inode: u64,
    /// The time when the file was made. The inode alone is not enough: a new file often gets the inode of a removed
    /// one.
    created: Option<SystemTime>,
}

impl FileId {
    /// The identity of the file or folder that the path leads to. None: the path leads nowhere.
    pub fn of(path: &Path) -> Option<FileId> {
        let metadata = std::fs::metadata(path).ok()?;
        Some(FileId {
            device: metadata.dev(),
            inode: metadata.ino(),
            created: metadata.created().ok(),
        })
    }
}
