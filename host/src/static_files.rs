//! The folder of static files, opened through cap-std: no path, link or race leads out of it.

use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use cap_std::ambient_authority;
use cap_std::fs::{Dir, File, Metadata};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};

use crate::conditional::{self, Unmodified};
use crate::error::Failure;

/// A folder that is served.
pub struct StaticFiles {
    dir: Dir,
}

/// A file's content: whole when small, else to be read as it is sent.
pub enum Content {
    /// All of it.
    Whole(Vec<u8>),
    /// All of it, which others get, too.
    Shared(Bytes),
    /// An open file with its length.
    Open(std::fs::File, u64),
}

/// The end of the year 9999, the last that an HTTP date can name.
const LATEST: Duration = Duration::from_secs(253_402_300_799);
/// Files up to here are read at once.
pub const WHOLE_BYTES: u64 = 256 << 10;

impl StaticFiles {
    /// Opens the folder.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(dir: &Path) -> io::Result<StaticFiles> {
        Ok(StaticFiles {
            dir: Dir::open_ambient_dir(dir, ambient_authority())?,
        })
    }

    /// Answers a request for `path` (decoded, relative to the folder). Blocks for the disk.
    ///
    /// # Errors
    /// 404 when there is no such file in the folder.
    pub fn respond(
        &self,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<Response<Content>, Failure> {
        let missing = || Failure::client(StatusCode::NOT_FOUND, "There is no such file.");
        let (file, metadata) = self.file(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound
            | io::ErrorKind::PermissionDenied
            | io::ErrorKind::InvalidInput
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::IsADirectory
            | io::ErrorKind::InvalidFilename => missing(),
            _ => Failure::host(format!("the static file {path} could not be read: {error}")),
        })?;
        let modified = metadata
            .modified()
            .map_or(SystemTime::UNIX_EPOCH, cap_std::time::SystemTime::into_std);
        let modified = modified.clamp(SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH + LATEST);
        let tag = tag(modified, metadata.len());
        let mut response = Response::builder()
            .header(header::ETAG, &tag)
            .header(header::LAST_MODIFIED, httpdate::fmt_http_date(modified))
            .header(header::CACHE_CONTROL, "no-cache")
            .header("x-content-type-options", "nosniff");
        if conditional::is_known(headers, Some(&tag), Some(modified)) {
            response = response.status(StatusCode::NOT_MODIFIED);
            response = response.extension(Unmodified {
                content_type: HeaderValue::try_from(content_type(path)).ok(),
                length: Some(metadata.len()),
            });
            return Ok(response
                .body(Content::Whole(Vec::new()))
                .expect("the headers are valid"));
        }
        response = response
            .header(header::CONTENT_TYPE, content_type(path))
            .header(header::CONTENT_LENGTH, metadata.len());
        let content = match metadata.len() {
            _ if method == Method::HEAD => Content::Whole(Vec::new()),
            length if length > WHOLE_BYTES => Content::Open(file.into_std(), length),
            _ => Content::Whole(read(file).map_err(|error| {
                Failure::host(format!("the static file {path} could not be read: {error}"))
            })?),
        };
        Ok(response.body(content).expect("the headers are valid"))
    }

    fn file(&self, path: &str) -> io::Result<(File, Metadata)> {
        // Looked at first, because opening a pipe or a device could wait.
        if !self.dir.metadata(path)?.is_file() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let file = self.dir.open(path)?;
        let metadata = file.metadata()?;
        Ok((file, metadata))
    }
}

fn read(mut file: File) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    // It may have grown since it was looked at.
    let mut file = io::Read::take(&mut file, WHOLE_BYTES);
    io::Read::read_to_end(&mut file, &mut content)?;
    Ok(content)
}

fn tag(modified: SystemTime, length: u64) -> String {
    let since = modified
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    format!("\"{:x}-{length:x}\"", since.as_nanos())
}

fn content_type(path: &str) -> String {
    let kind = mime_guess::from_path(path).first_or_octet_stream();
    match (kind.type_().as_str(), kind.subtype().as_str()) {
        ("text", _) | ("application", "javascript" | "json") => format!("{kind}; charset=utf-8"),
        _ => kind.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(files: &StaticFiles, path: &str) -> Result<Response<Content>, StatusCode> {
        files
            .respond(&Method::GET, path, &HeaderMap::new())
            .map_err(|failure| failure.status)
    }

    #[test]
    fn nothing_outside_the_folder_is_reached() {
        let outer = tempfile::tempdir().expect("a temporary folder");
        let dir = outer.path().join("static");
        std::fs::create_dir_all(dir.join("css")).expect("making folders");
        std::fs::write(outer.path().join("secret"), "secret").expect("writing a file");
        std::fs::write(dir.join("css/a b%20.css"), "body {}").expect("writing a file");
        std::os::unix::fs::symlink("../secret", dir.join("link")).expect("making a link");
        std::os::unix::fs::symlink(outer.path().join("secret"), dir.join("absolute"))
            .expect("making a link");
        let files = StaticFiles::open(&dir).expect("it opens");
        let found = get(&files, "css/a b%20.css").expect("it is there, under the name it has");
        assert_eq!(
            found.headers()[header::CONTENT_TYPE],
            "text/css; charset=utf-8"
        );
        for path in [
            "../secret",
            "css/../../secret",
            "/etc/passwd",
            "link",
            "absolute",
            "css",
            "",
            ".",
            "..",
            "a\0b",
            "none",
        ] {
            assert_eq!(
                get(&files, path).err(),
                Some(StatusCode::NOT_FOUND),
                "{path:?}"
            );
        }
    }

    #[test]
    fn a_client_that_knows_the_file_is_told_so() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(dir.path().join("a.txt"), "text").expect("writing a file");
        let files = StaticFiles::open(dir.path()).expect("it opens");
        let first = get(&files, "a.txt").expect("it is there");
        let again = |name: header::HeaderName, value: HeaderValue| {
            let headers = HeaderMap::from_iter([(name, value)]);
            files
                .respond(&Method::GET, "a.txt", &headers)
                .expect("it is there")
                .status()
        };
        assert_eq!(
            again(header::IF_NONE_MATCH, first.headers()[header::ETAG].clone()),
            StatusCode::NOT_MODIFIED
        );
        assert_eq!(
            again(header::IF_NONE_MATCH, HeaderValue::from_static("\"other\"")),
            StatusCode::OK
        );
        let date = first.headers()[header::LAST_MODIFIED].clone();
        assert_eq!(
            again(header::IF_MODIFIED_SINCE, date),
            StatusCode::NOT_MODIFIED
        );
    }
}
