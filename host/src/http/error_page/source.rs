//! The lines of source around the location where a guest failed, if this machine has the file.

use std::fs;
use std::path::Path;

use crate::telemetry::error::cut;
use crate::telemetry::report::Frame;

/// The number of lines that are shown before and after the failing one.
const AROUND: u32 = 4;
const FILE_BYTES_MAX: u64 = 1 << 20;
const LINE_BYTES_MAX: usize = 300;
/// The extensions of the files that are read. The name of a file comes from the component, so the page must not show
/// any file that is no source.
const LANGUAGES: [&str; 12] = [
    "rs", "py", "js", "ts", "c", "cc", "cpp", "h", "go", "zig", "cs", "swift",
];

/// A line with its number.
pub(super) struct Line {
    pub(super) number: u32,
    pub(super) text: String,
    /// Whether the guest failed on this line.
    pub(super) here: bool,
}

/// The lines around a frame's location. Empty if there is no such file, or if the file has too few lines now.
pub(super) fn around(frame: &Frame) -> Vec<Line> {
    let (Some(file), Some(line)) = (&frame.file, frame.line) else {
        return Vec::new();
    };
    let text = read(Path::new(file)).unwrap_or_default();
    if text.lines().nth(line as usize - 1).is_none() {
        return Vec::new();
    }
    let first = line.saturating_sub(AROUND).max(1);
    let lines = (first..=line.saturating_add(AROUND)).zip(text.lines().skip(first as usize - 1));
    lines
        .map(|(number, text)| Line {
            number,
            text: cut(text.to_owned(), LINE_BYTES_MAX),
            here: number == line,
        })
        .collect()
}

fn read(file: &Path) -> Option<String> {
    let language = file.extension()?.to_str()?;
    let metadata = fs::metadata(file).ok()?;
    let readable = LANGUAGES.contains(&language)
        && file.is_absolute()
        && metadata.is_file()
        && metadata.len() <= FILE_BYTES_MAX;
    readable.then(|| fs::read_to_string(file).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(file: &Path, line: u32) -> Frame {
        Frame {
            file: Some(file.display().to_string()),
            line: Some(line),
            ..Frame::default()
        }
    }

    #[test]
    fn the_lines_around_are_those_of_the_file() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("lib.rs");
        let text: String = (1..=20).map(|n| format!("line {n}\n")).collect();
        fs::write(&file, text).expect("writing");
        let numbers = |line| -> Vec<u32> {
            let lines = around(&frame(&file, line));
            for line in &lines {
                assert_eq!(line.text, format!("line {}", line.number));
            }
            lines.iter().map(|line| line.number).collect()
        };
        assert_eq!(numbers(10), (6..=14).collect::<Vec<_>>());
        assert_eq!(numbers(1), (1..=5).collect::<Vec<_>>());
        assert_eq!(numbers(20), (16..=20).collect::<Vec<_>>());
        assert_eq!(numbers(21), [0; 0], "the file has become shorter");
        let here = around(&frame(&file, 10)).into_iter().find(|line| line.here);
        assert_eq!(here.map(|line| line.number), Some(10));
    }

    #[test]
    fn only_source_is_read() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let secret = folder.path().join("secret.key");
        fs::write(&secret, "secret\n").expect("writing");
        assert!(around(&frame(&secret, 1)).is_empty());
        for none in [
            "/etc/passwd",
            "/none/lib.rs",
            "src/lib.rs",
            "/",
            "/dev/zero.rs",
            "",
        ] {
            assert!(around(&frame(Path::new(none), 1)).is_empty(), "{none}");
        }
        let folder_of_that_name = folder.path().join("a.rs");
        fs::create_dir(&folder_of_that_name).expect("making a folder");
        assert!(around(&frame(&folder_of_that_name, 1)).is_empty());
    }
}
