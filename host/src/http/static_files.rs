//! Serves the folder of static files. The folder is opened through cap-std, so no path, link or race leads out of it.

use std::io::{self, Read as _, Seek as _};
use std::path::Path;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use cap_std::ambient_authority;
use cap_std::fs::{Dir, File, Metadata, MetadataExt as _, OpenOptions, OpenOptionsExt as _};
use futures::{Stream, StreamExt as _};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use rustix::fs::OFlags;
use siphasher::sip128::SipHasher13;
use tokio_util::io::ReaderStream;

use crate::http::conditional::{self, Unmodified};
use crate::telemetry::error::Failure;

/// A folder that is served.
pub struct StaticFiles {
    dir: Dir,
    /// Whether names that begin with a dot are served, too.
    hidden: bool,
}

/// A file's content: bytes if the file is small, else an open file that is read while it is sent.
pub enum Content {
    /// The whole content.
    Whole(Vec<u8>),
    /// The whole content, shared with other responses.
    Shared(Bytes),
    /// An open file and its length in bytes.
    Open(std::fs::File, u64),
}

/// The end of the year 9999, as the time since 1970. An HTTP date cannot name a later year.
const LATEST: Duration = Duration::from_secs(253_402_300_799);
/// The largest file that is read into memory as a whole, in bytes.
pub const WHOLE_BYTES: u64 = 256 << 10;

impl StaticFiles {
    /// Opens the folder. `hidden`: names that begin with a dot are served, too.
    ///
    /// # Errors
    /// When the folder cannot be opened.
    pub fn open(dir: &Path, hidden: bool) -> io::Result<StaticFiles> {
        Ok(StaticFiles {
            dir: Dir::open_ambient_dir(dir, ambient_authority())?,
            hidden,
        })
    }

    /// Answers a request for `path` (decoded, relative to the folder). Blocks on the disk.
    ///
    /// # Errors
    /// 404 when there is no such file in the folder.
    pub fn respond(
        &self,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<Response<Content>, Failure> {
        let failed = |error| {
            let what = format!("the static file {path} could not be read");
            Failure::disk(&what, &error)
        };
        let (mut file, mut metadata) = self.file(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound
            | io::ErrorKind::PermissionDenied
            | io::ErrorKind::InvalidInput
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::IsADirectory
            | io::ErrorKind::InvalidFilename => missing(),
            _ => failed(error),
        })?;
        let whole = read(&mut file, &mut metadata).map_err(failed)?;
        let mut state = State::of(&metadata);
        let tag = match &whole {
            Some(content) => {
                state.length = content.len() as u64;
                content_tag(content)
            }
            None => state.tag(),
        };
        if conditional::is_known(headers, Some(&tag), Some(state.modified)) {
            let response = state.response(&tag).status(StatusCode::NOT_MODIFIED);
            let response = response.extension(Unmodified {
                content_type: HeaderValue::try_from(content_type(path)).ok(),
                length: Some(state.length),
            });
            let response = response.body(Content::Whole(Vec::new()));
            return Ok(response.expect("the headers are valid"));
        }
        let content = match whole {
            _ if method == Method::HEAD => Content::Whole(Vec::new()),
            Some(content) => Content::Whole(content),
            None => Content::Open(file.into_std(), state.length),
        };
        let response = (state.response(&tag))
            .header(header::CONTENT_TYPE, content_type(path))
            .header(header::CONTENT_LENGTH, state.length);
        Ok(response.body(content).expect("the headers are valid"))
    }

    fn file(&self, path: &str) -> io::Result<(File, Metadata)> {
        // A path with an empty segment or a dot segment is another name for a file. Caches would store the file once
        // for each name.
        if path.split('/').any(|name| ["", ".", ".."].contains(&name)) {
            return Err(io::ErrorKind::NotFound.into());
        }
        // `.well-known` is not hidden: clients look for files in it (RFC 8615).
        let is_hidden = |name: &str| name.starts_with('.') && name != ".well-known";
        if !self.hidden && path.split('/').any(is_hidden) {
            return Err(io::ErrorKind::NotFound.into());
        }
        // Check the type before opening, because opening a device can have effects. Before the file is opened,
        // something else may take its place. So the type is checked again afterwards, and `NONBLOCK` keeps the opening
        // of a pipe from waiting for the other end of the pipe.
        if !self.dir.metadata(path)?.is_file() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(flags.bits().cast_signed());
        let file = self.dir.open_with(path, &options)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok((file, metadata))
    }
}

/// The failure when there is no such file.
pub fn missing() -> Failure {
    Failure::client(StatusCode::NOT_FOUND, "There is no such file.")
}

/// How often a file is read at most if it changes while it is read.
const READS: usize = 3;

/// Reads a small file, and sets `metadata` to the file's state when it was read. None: the file is large. If the file
/// changes during every one of several reads, the result is the content of the last read, with the state from before
/// that read. So no client takes the content for that of a later state.
fn read(file: &mut File, metadata: &mut Metadata) -> io::Result<Option<Vec<u8>>> {
    let (mut content, mut tries) = (Vec::new(), READS);
    while metadata.len() <= WHOLE_BYTES {
        content.clear();
        content.reserve_exact(usize::try_from(metadata.len()).expect("it is small"));
        file.rewind()?;
        file.take(WHOLE_BYTES).read_to_end(&mut content)?;
        let now = file.metadata()?;
        let same = State::of(metadata) == State::of(&now) && content.len() as u64 == now.len();
        tries -= 1;
        if same || tries == 0 && now.len() <= WHOLE_BYTES {
            return Ok(Some(content));
        }
        *metadata = now;
        tries = tries.max(1);
    }
    file.rewind()?;
    Ok(None)
}

/// The tag of a file that is read as a whole: a hash of its content. The same content has the same tag on every machine
/// and after every deployment. The time of modification is not enough: in images and archives, all files of all
/// versions often have the same time.
fn content_tag(content: &[u8]) -> String {
    // The hash need not resist attacks: whoever deploys the app chooses the files, and has no reason to look for two
    // files with one hash.
    let hash = SipHasher13::new().hash(content).as_u128();
    format!("\"{hash:032x}\"")
}

/// The state of a file. A change of the file changes its state.
#[derive(PartialEq, Eq)]
struct State {
    modified: SystemTime,
    length: u64,
    /// The time of the last change of content or metadata, which cannot be set to another time; and the inode, which
    /// differs for another file with the same name.
    changed: (i64, i64),
    inode: u64,
}

impl State {
    fn of(metadata: &Metadata) -> State {
        let modified = metadata
            .modified()
            .map_or(SystemTime::UNIX_EPOCH, cap_std::time::SystemTime::into_std);
        State {
            modified: modified.clamp(SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH + LATEST),
            length: metadata.len(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            inode: metadata.ino(),
        }
    }

    /// The tag of a file that is too large to be read as a whole: it is made from the state.
    fn tag(&self) -> String {
        let since = self.modified.duration_since(SystemTime::UNIX_EPOCH);
        let nanos = since.unwrap_or_default().as_nanos();
        let (length, inode, (s, ns)) = (self.length, self.inode, self.changed);
        format!("\"{nanos:x}-{length:x}-{inode:x}-{s:x}.{ns:x}\"")
    }

    /// The headers of every response about the file.
    fn response(&self, tag: &str) -> http::response::Builder {
        Response::builder()
            .header(header::ETAG, tag)
            .header(
                header::LAST_MODIFIED,
                httpdate::fmt_http_date(self.modified),
            )
            .header(header::CACHE_CONTROL, "no-cache")
            .header("x-content-type-options", "nosniff")
    }
}

/// The content of a file as a stream of pieces. The stream has exactly the promised length, even if the file grows
/// meanwhile. If the file has become shorter, the stream ends with an error, and so does the connection or the HTTP/2
/// stream.
pub fn pieces(
    file: std::fs::File,
    length: u64,
    piece_bytes: usize,
) -> impl Stream<Item = io::Result<Bytes>> + Send + Sync {
    let file = tokio::io::AsyncReadExt::take(tokio::fs::File::from_std(file), length);
    let pieces = ReaderStream::with_capacity(file, piece_bytes);
    futures::stream::try_unfold((pieces, length), async |(mut pieces, left)| {
        match pieces.next().await.transpose()? {
            Some(piece) => {
                let left = left - piece.len() as u64;
                Ok(Some((piece, (pieces, left))))
            }
            None if left == 0 => Ok(None),
            None => {
                let why =
                    "a static file became shorter while it was sent: its response was broken off";
                tracing::warn!(missing_bytes = left, "{why}");
                Err(io::Error::new(io::ErrorKind::UnexpectedEof, why))
            }
        }
    })
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
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

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
        let files = StaticFiles::open(&dir, false).expect("it opens");
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
    fn hidden_files_are_served_only_when_asked_for() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        for folder in [".git/refs", ".well-known"] {
            std::fs::create_dir_all(dir.path().join(folder)).expect("making folders");
        }
        let hidden = [".env", ".git/config", ".git/refs/..a", ".well-known/.a"];
        for file in hidden
            .into_iter()
            .chain(["a.txt", ".well-known/security.txt"])
        {
            std::fs::write(dir.path().join(file), "text").expect("writing a file");
        }
        let files = StaticFiles::open(dir.path(), false).expect("it opens");
        for path in hidden
            .into_iter()
            .chain(["./a.txt", ".git/../a.txt", ".git//config"])
        {
            assert_eq!(
                get(&files, path).err(),
                Some(StatusCode::NOT_FOUND),
                "{path}"
            );
        }
        for path in ["a.txt", ".well-known/security.txt"] {
            get(&files, path).expect("it is not hidden");
        }
        let files = StaticFiles::open(dir.path(), true).expect("it opens");
        for path in hidden {
            get(&files, path).expect(path);
        }
        for path in [
            ".git//config",
            ".git/./config",
            "./a.txt",
            "/a.txt",
            "a.txt/",
        ] {
            assert_eq!(
                get(&files, path).err(),
                Some(StatusCode::NOT_FOUND),
                "{path}"
            );
        }
    }

    /// While requests for a path come, the file there is replaced by a pipe and back. Opening a pipe waits until
    /// somebody writes to it, so the server must not open one like a file.
    #[test]
    fn what_is_no_file_is_neither_served_nor_waited_for() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let pipe = dir.path().join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .expect("making a pipe");
        std::os::unix::fs::symlink("pipe", dir.path().join("link")).expect("making a link");
        let files = StaticFiles::open(dir.path(), false).expect("it opens");
        for path in ["pipe", "link"] {
            assert_eq!(
                get(&files, path).err(),
                Some(StatusCode::NOT_FOUND),
                "{path}"
            );
        }
        let going = Arc::new(AtomicBool::new(true));
        let swapping = std::thread::spawn({
            let (going, file) = (Arc::clone(&going), dir.path().join("file"));
            let (text, spare) = (dir.path().join("text"), dir.path().join("spare"));
            move || {
                while going.load(Relaxed) {
                    std::fs::write(&text, "text").expect("writing a file");
                    std::fs::rename(&text, &file).expect("putting it in place");
                    std::fs::hard_link(&pipe, &spare).expect("linking a pipe");
                    std::fs::rename(&spare, &file).expect("putting it in place");
                }
            }
        });
        for _ in 0..5_000 {
            if let Ok(response) = get(&files, "file") {
                assert!(matches!(response.body(), Content::Whole(text) if text == b"text"));
            }
        }
        going.store(false, Relaxed);
        swapping.join().expect("it does not panic");
    }

    /// While a file is overwritten in place, the length in the headers is the length of the content that is sent.
    #[test]
    fn the_length_is_that_of_what_was_read() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("file");
        std::fs::write(&path, "0").expect("writing a file");
        let files = StaticFiles::open(dir.path(), false).expect("it opens");
        let going = Arc::new(AtomicBool::new(true));
        let writing = std::thread::spawn({
            let going = Arc::clone(&going);
            move || {
                for length in (0..84).cycle().take_while(|_| going.load(Relaxed)) {
                    std::fs::write(&path, "0".repeat(length)).expect("writing a file");
                }
            }
        });
        for _ in 0..5_000 {
            let response = get(&files, "file").expect("it is there");
            let promised = response.headers()[header::CONTENT_LENGTH]
                .to_str()
                .expect("a number");
            let Content::Whole(sent) = response.body() else {
                panic!("it is small");
            };
            assert_eq!(promised, sent.len().to_string());
        }
        going.store(false, Relaxed);
        writing.join().expect("it does not panic");
    }

    #[tokio::test]
    async fn exactly_the_promised_length_is_sent_or_an_error() {
        for (length, right) in [(100_000, true), (60_000, true), (0, true), (100_001, false)] {
            let mut file = tempfile::tempfile().expect("a temporary file");
            io::Write::write_all(&mut file, &[7; 100_000]).expect("writing it");
            file.rewind().expect("going back");
            let pieces: Vec<_> = pieces(file, length, 4096).collect().await;
            let sent: usize = pieces.iter().flatten().map(Bytes::len).sum();
            assert_eq!(sent as u64, length.min(100_000));
            let last = pieces.last();
            assert_eq!(last.is_none_or(Result::is_ok), right, "{length}: {last:?}");
        }
    }

    /// As in images and archives, all files have the same time.
    #[test]
    fn another_content_of_the_same_length_and_time_has_another_tag() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let deploy = |length: u64, byte: u8| {
            let path = dir.path().join("new");
            let content = vec![byte; usize::try_from(length).expect("it is small")];
            std::fs::write(&path, content).expect("writing a file");
            let file = std::fs::File::options().write(true).open(&path);
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
            file.and_then(|file| file.set_modified(time))
                .expect("setting its time");
            std::fs::rename(&path, dir.path().join("a.txt")).expect("putting it in place");
        };
        let files = StaticFiles::open(dir.path(), false).expect("it opens");
        for length in [4, WHOLE_BYTES + 1] {
            deploy(length, b'a');
            let tag = |method: Method| {
                let response = files.respond(&method, "a.txt", &HeaderMap::new());
                response.expect("it is there").headers()[header::ETAG].clone()
            };
            let first = tag(Method::GET);
            assert_eq!(tag(Method::HEAD), first);
            deploy(length, b'b');
            assert_ne!(tag(Method::GET), first, "{length}");
            let headers = HeaderMap::from_iter([(header::IF_NONE_MATCH, first.clone())]);
            let again = files.respond(&Method::GET, "a.txt", &headers);
            assert_eq!(again.expect("it is there").status(), StatusCode::OK);
            // A small file with its former content has its former tag.
            deploy(length, b'a');
            assert_eq!(tag(Method::GET) == first, length <= WHOLE_BYTES);
        }
    }

    #[test]
    fn a_client_that_knows_the_file_is_told_so() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(dir.path().join("a.txt"), "text").expect("writing a file");
        let files = StaticFiles::open(dir.path(), false).expect("it opens");
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
