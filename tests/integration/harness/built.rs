//! What other toolchains build: built once, and again when what it is built from has changed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// Calls `build` to make `name` in `folder`, unless it was made there from the same before. Only one process of the tests at a
/// time makes anything in the folder.
///
/// # Errors
/// That of `build`.
pub fn once(
    folder: &Path,
    name: &str,
    built_from: &str,
    build: impl FnOnce() -> Result<(), String>,
) -> Result<(), String> {
    fs::create_dir_all(folder).expect("the folder can be made");
    let lock = File::create(folder.join("lock")).expect("there is room for a lock");
    lock.lock().expect("the lock comes free");
    let stamp = folder.join(format!("{name}.built-from"));
    if fs::read_to_string(&stamp).is_ok_and(|known| known == built_from) {
        return Ok(());
    }
    build()?;
    fs::write(stamp, built_from).expect("there is room");
    Ok(())
}

/// The texts of all files in a folder.
pub fn text_of(folder: &Path) -> String {
    let entries = folder.read_dir().expect("the folder is there");
    let mut files: Vec<PathBuf> = (entries.map(|file| file.expect("it can be listed").path()))
        .filter(|file| file.is_file())
        .collect();
    files.sort();
    let texts = files.iter().map(fs::read_to_string);
    texts.map(|text| text.expect("it is a text")).collect()
}
