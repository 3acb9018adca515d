//! Parses forms with files (`multipart/form-data`, RFC 7578), whole or in pieces.
//!
//! The parser does not read the body itself: its caller feeds it bytes and asks for the next event. So one parser
//! serves both modes, and both kinds of bodies: those in memory and those that are read from the host in pieces.

use crate::body::{BodyReader, Chunks, Content};
use crate::extract::BodyUse;
use crate::mode::{Async, Mode, Sync};
use crate::{Context, Error, FromRequest, Headers, Request, Result, csrf};
use ::http::StatusCode;

/// Limit for the headers of a part, in bytes.
const HEAD_MAX: usize = 8 << 10;
/// Limit for the name of a field, and for the name of a file, in bytes.
const NAME_MAX: usize = 1 << 10;
/// A boundary has at most 70 characters (RFC 2046, 5.1.1).
const BOUNDARY_MAX: usize = 70;
/// Limit for the number of fields of a form, unless the module has the setting [`FIELDS_MAX_SETTING`].
const FIELDS_MAX: usize = 1_000;
/// Limit for the content of a field that is read as text, in bytes.
const TEXT_MAX: usize = 1 << 20;

/// The setting of the module that limits the number of fields of a form.
pub(crate) const FIELDS_MAX_SETTING: &str = "form_fields_max";

/// A form with files, read part by part while the host keeps the body: an extractor for files that are too large for
/// the view's memory. For small files, use [`Form`](crate::Form) with [`Upload`](crate::extract::Upload).
///
/// ```
/// use amphi_sdk::prelude::*;
///
/// #[view(post, "/measure")]
/// fn measure(cx: &Context, form: Multipart) -> Result<String> {
///     let mut said = String::new();
///     let mut parts = cx.parts(form);
///     while let Some(part) = parts.next()? {
///         let mut length = 0;
///         while let Some(chunk) = parts.chunk()? {
///             length += chunk.len();
///         }
///         said += &format!("{} {:?} {length}\n", part.name, part.file_name);
///     }
///     Ok(said)
/// }
///
/// #[view(post, "/measure/slowly")]
/// async fn measure_slowly(cx: &Context, Protected(form): Protected<Multipart>) -> Result<String> {
///     let mut parts = cx.parts(form);
///     while let Some(part) = parts.next().await? {
///         if part.name == "note" {
///             return parts.text().await;
///         }
///     }
///     Err(Error::unprocessable("`note` is missing"))
/// }
/// # use amphi_sdk::testing::{App, Multipart as Files, post};
/// # let app = App::new().spool_over(10);
/// # let files = Files::new().text("note", "Hi").file("photo", "a.png", "image/png", b"123");
/// # assert_eq!(app.call::<measure>(post("/measure").multipart(files.clone())).text(), "note None 2\nphoto Some(\"a.png\") 3\n");
/// # assert_eq!(app.call::<measure_slowly>(post("/measure/slowly").csrf_field().multipart(files)).text(), "Hi");
/// ```
///
/// The server's `body_max_bytes` limits the size of the whole form, and the module's setting `form_fields_max` (default
/// 1,000) limits the number of its parts. A larger form is refused with 413. With [`Protected`](crate::Protected), the
/// token field that [`Csrf::field`](crate::Csrf::field) makes must be in the first 64 KiB of the form: put it first.
#[derive(Debug)]
pub struct Multipart {
    body: BodyReader,
    boundary: String,
    fields_max: usize,
}

impl FromRequest for Multipart {
    const BODY: BodyUse = BodyUse::Piecewise;

    fn from_request<M: Mode>(cx: &Context<M>, request: &mut Request) -> Result<Self> {
        Ok(Self {
            boundary: boundary(&request.headers)?.ok_or_else(not_multipart)?,
            fields_max: fields_max(cx)?,
            body: BodyReader::new(std::mem::replace(
                &mut request.content,
                Content::Bytes(Vec::new()),
            )),
        })
    }

    fn is_absent(request: &Request) -> bool {
        !request.has_body()
    }
}

fn not_multipart() -> Error {
    Error::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "the body must be a form with files, and the content type say so: `multipart/form-data`",
    )
}

/// The limit for the number of fields of a form, from the module's settings.
pub(crate) fn fields_max<M: Mode>(cx: &Context<M>) -> Result<usize> {
    let Some(text) = cx.config(FIELDS_MAX_SETTING) else {
        return Ok(FIELDS_MAX);
    };
    text.parse().map_err(|_| {
        Error::internal(format!(
            "the setting `{FIELDS_MAX_SETTING}` is {text:?}: write a number"
        ))
    })
}

/// The headers of a part of a form. [`Parts::chunk`], [`Parts::bytes`] and [`Parts::text`] read its content.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// The name of the form's field.
    pub name: String,
    /// The file's name according to the browser, without folders; `None` for a part that is not a file. The sender of the
    /// form chooses it, so do not use it as the name of a file on disk.
    pub file_name: Option<String>,
    /// The media type according to the browser, such as `image/png`.
    pub content_type: Option<String>,
}

/// Reads the parts of a form, one after the other; see [`Multipart`]. Content that the view does not read is skipped.
#[derive(Debug)]
pub struct Parts<'a, M: Mode> {
    chunks: Chunks<'a, M>,
    parser: Parser,
}

impl<'a, M: Mode> Parts<'a, M> {
    pub(crate) fn new(cx: &'a Context<M>, form: Multipart) -> Self {
        Self {
            chunks: cx.chunks(form.body),
            parser: Parser::new(&form.boundary, form.fields_max),
        }
    }
}

/// Implements the methods of [`Parts`] for one mode. For the async mode, `async` and `.await` are passed as arguments.
macro_rules! of_mode {
    ($mode:ident $(, $async:ident, $($wait:tt)+)?) => {
        impl Parts<'_, $mode> {
            /// The next part; `None` at the end of the form.
            ///
            /// # Errors
            /// When the form is malformed or incomplete, or has too many parts.
            #[allow(clippy::should_implement_trait, reason = "it is the same call in both modes, and an iterator is sync")]
            pub $($async)? fn next(&mut self) -> Result<Option<Part>> {
                loop {
                    match self.event()$($($wait)+)?? {
                        // This part is the token that `Csrf::field` put into the form. The view does not get it.
                        Event::Part(part) if part.name == csrf::FIELD => {}
                        Event::Part(part) => return Ok(Some(part)),
                        Event::Data(_) | Event::PartEnd => {}
                        Event::End => return Ok(None),
                        Event::NeedsMore => unreachable!("`event` feeds the parser until it has another event"),
                    }
                }
            }

            /// The next piece of the content of the part that `next` returned last; `None` at the end of the content.
            ///
            /// # Errors
            /// When the form is malformed or incomplete.
            pub $($async)? fn chunk(&mut self) -> Result<Option<Vec<u8>>> {
                if !self.parser.is_in_part() {
                    return Ok(None);
                }
                match self.event()$($($wait)+)?? {
                    Event::Data(bytes) => Ok(Some(bytes)),
                    _ => Ok(None),
                }
            }

            /// The whole content of the part that `next` returned last, of at most `max` bytes.
            ///
            /// # Errors
            /// 413 when the content has more than `max` bytes.
            pub $($async)? fn bytes(&mut self, max: usize) -> Result<Vec<u8>> {
                let mut all = Vec::new();
                while let Some(chunk) = self.chunk()$($($wait)+)?? {
                    all.extend_from_slice(&chunk);
                    if all.len() > max {
                        return Err(self.parser.too_large(max));
                    }
                }
                Ok(all)
            }

            /// The whole content of the part that `next` returned last, as text of at most 1 MiB.
            ///
            /// # Errors
            /// 413 when the content has more than 1 MiB, 400 when the content is not UTF-8.
            pub $($async)? fn text(&mut self) -> Result<String> {
                let bytes = self.bytes(TEXT_MAX)$($($wait)+)??;
                String::from_utf8(bytes).map_err(|_| self.parser.no_text())
            }

            $($async)? fn event(&mut self) -> Result<Event> {
                loop {
                    match self.parser.next()? {
                        Event::NeedsMore => match of_mode!(@chunk self $(, $($wait)+)?) {
                            Some(chunk) => self.parser.feed(&chunk),
                            None => return Err(self.parser.broken_off()),
                        },
                        event => return Ok(event),
                    }
                }
            }
        }
    };
    (@chunk $self:ident) => { $self.chunks.next().transpose()? };
    (@chunk $self:ident, $($wait:tt)+) => { $self.chunks.next()$($wait)+? };
}

of_mode!(Sync);
of_mode!(Async, async, .await);

/// Parses a form that is in memory. Returns all parts with their contents.
pub(crate) fn parse(
    body: &[u8],
    boundary: &str,
    fields_max: usize,
) -> Result<Vec<(Part, Vec<u8>)>> {
    let mut parser = Parser::new(boundary, fields_max);
    parser.feed(body);
    let mut parts: Vec<(Part, Vec<u8>)> = Vec::new();
    loop {
        match parser.next()? {
            Event::Part(part) => parts.push((part, Vec::new())),
            Event::Data(bytes) => {
                if let Some((_, content)) = parts.last_mut() {
                    match content.is_empty() {
                        true => *content = bytes,
                        false => content.extend_from_slice(&bytes),
                    }
                }
            }
            Event::PartEnd => {}
            Event::End => return Ok(parts),
            Event::NeedsMore => return Err(parser.broken_off()),
        }
    }
}

/// The content of the field `name`, if it lies wholly within the beginning of the form.
pub(crate) fn field(beginning: &[u8], boundary: &str, name: &str) -> Option<String> {
    let mut parser = Parser::new(boundary, FIELDS_MAX);
    parser.feed(beginning);
    let (mut wanted, mut content) = (false, Vec::new());
    loop {
        match parser.next().ok()? {
            Event::Part(part) => wanted = part.name == name && part.file_name.is_none(),
            Event::Data(bytes) if wanted && content.len() <= NAME_MAX => content.extend(bytes),
            Event::Data(_) => {}
            Event::PartEnd if wanted => return String::from_utf8(content).ok(),
            Event::PartEnd => {}
            Event::End | Event::NeedsMore => return None,
        }
    }
}

/// The boundary between the parts; `None` when the content type is not `multipart/form-data`.
///
/// # Errors
/// When the content type is `multipart/form-data`, but has no valid boundary.
pub(crate) fn boundary(headers: &Headers) -> Result<Option<String>> {
    if !headers.content_type_is(|name| name == "multipart/form-data") {
        return Ok(None);
    }
    let header = headers.get("content-type").unwrap_or_default();
    let boundary = parameters(header)
        .into_iter()
        .find(|(name, _)| name == "boundary")
        .map(|(_, value)| value);
    match boundary {
        Some(boundary) if (1..=BOUNDARY_MAX).contains(&boundary.len()) && boundary.is_ascii() => {
            Ok(Some(boundary))
        }
        _ => Err(Error::bad_request(
            "the content type `multipart/form-data` needs a `boundary` of 1 to 70 characters",
        )),
    }
}

/// The parameters of a header's value: `; name=value` or `; name="value"`.
fn parameters(header: &str) -> Vec<(String, String)> {
    let mut parameters = Vec::new();
    let Some((_, mut rest)) = header.split_once(';') else {
        return parameters;
    };
    while let Some((name, after)) = rest.split_once('=') {
        let name = name.trim_matches(|c: char| c == ';' || c.is_whitespace());
        let name = name.rsplit(';').next().unwrap_or(name).trim();
        let (value, after) = match after.trim_start().strip_prefix('"') {
            Some(quoted) => unquoted(quoted),
            None => {
                let end = after.find(';').unwrap_or(after.len());
                (after[..end].trim().to_owned(), &after[end..])
            }
        };
        parameters.push((name.to_ascii_lowercase(), value));
        rest = after;
    }
    parameters
}

/// The text up to the closing quote, and what follows that quote. Browsers write a quote within the text as `%22`.
/// Other clients write a backslash before the quote. A backslash before any character except a quote or a backslash
/// stands for itself, since some clients send Windows paths.
fn unquoted(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &text[at + 1..]),
            '\\' => match chars.peek() {
                Some((_, escaped @ ('"' | '\\'))) => {
                    value.push(*escaped);
                    chars.next();
                }
                _ => value.push(c),
            },
            _ => value.push(c),
        }
    }
    (value, "")
}

/// Replaces the escapes that browsers write in names (HTML standard, "multipart/form-data encoding algorithm").
fn unescaped(name: &str) -> String {
    name.replace("%22", "\"")
        .replace("%0D", "\r")
        .replace("%0A", "\n")
}

/// The last part of a path, without control characters; empty if it is `.` or `..`.
fn file_name(path: &str) -> String {
    let name = path.rsplit(['/', '\\']).next().unwrap_or(path);
    let name: String = name.chars().filter(|c| !c.is_control()).collect();
    match name.as_str() {
        "." | ".." => String::new(),
        _ => name,
    }
}

/// What the parser has found next.
#[derive(Debug, PartialEq)]
enum Event {
    Part(Part),
    Data(Vec<u8>),
    PartEnd,
    End,
    /// The parser needs more bytes before it can go on.
    NeedsMore,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    /// Before the first boundary.
    Preamble,
    /// After a boundary.
    Boundary,
    Head,
    Content,
    End,
}

#[derive(Debug)]
struct Parser {
    /// The delimiter between parts: a line end, two dashes, the boundary.
    delimiter: Vec<u8>,
    buffer: Vec<u8>,
    /// How many bytes of the buffer have been parsed already.
    done: usize,
    state: State,
    parts: usize,
    parts_max: usize,
    /// The name of the current field, for errors.
    name: String,
}

impl Parser {
    fn new(boundary: &str, parts_max: usize) -> Self {
        Self {
            delimiter: format!("\r\n--{boundary}").into_bytes(),
            // A delimiter begins with a line end. The form may begin with its first boundary, so the parser adds a line
            // end before it.
            buffer: b"\r\n".to_vec(),
            done: 0,
            state: State::Preamble,
            parts: 0,
            parts_max,
            name: String::new(),
        }
    }

    fn feed(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.done);
        self.done = 0;
        self.buffer.extend_from_slice(bytes);
    }

    fn is_in_part(&self) -> bool {
        self.state == State::Content
    }

    fn next(&mut self) -> Result<Event> {
        loop {
            let rest = &self.buffer[self.done..];
            match self.state {
                State::Preamble => match find(rest, &self.delimiter) {
                    Some(at) => {
                        self.done += at + self.delimiter.len();
                        self.state = State::Boundary;
                    }
                    None => {
                        self.done += rest.len().saturating_sub(self.delimiter.len());
                        return Ok(Event::NeedsMore);
                    }
                },
                State::Boundary => {
                    if rest.starts_with(b"--") {
                        self.state = State::End;
                        continue;
                    }
                    // Spaces may stand between a boundary and its line end.
                    let blanks = rest.iter().take_while(|byte| matches!(byte, b' ' | b'\t'));
                    let blanks = blanks.count();
                    match &rest[blanks..] {
                        [b'\r', b'\n', ..] => {
                            // Leave this line end unread: in a part without headers, it begins the `\r\n\r\n` that ends
                            // the headers.
                            self.done += blanks;
                            self.state = State::Head;
                        }
                        [] | [b'\r' | b'-'] if blanks < HEAD_MAX => return Ok(Event::NeedsMore),
                        _ => return Err(malformed("a boundary is followed by other characters")),
                    }
                }
                State::Head => {
                    let Some(end) = find(rest, b"\r\n\r\n") else {
                        if rest.len() > HEAD_MAX {
                            return Err(malformed("a part has headers of more than 8 KiB"));
                        }
                        return Ok(Event::NeedsMore);
                    };
                    if end > HEAD_MAX {
                        return Err(malformed("a part has headers of more than 8 KiB"));
                    }
                    let part = head(&rest[..end])?;
                    // Skip the `\r\n\r\n`. The delimiter after the content begins with a line end of its own, even if
                    // the content is empty.
                    self.done += end + 4;
                    self.state = State::Content;
                    self.parts += 1;
                    if self.parts > self.parts_max {
                        return Err(too_many(self.parts_max));
                    }
                    self.name.clone_from(&part.name);
                    return Ok(Event::Part(part));
                }
                State::Content => {
                    let (length, ends) = match find(rest, &self.delimiter) {
                        Some(at) => (at, true),
                        // The last bytes may be the beginning of a delimiter, so keep them until more bytes arrive.
                        None => (rest.len().saturating_sub(self.delimiter.len() - 1), false),
                    };
                    if length > 0 {
                        let data = rest[..length].to_vec();
                        self.done += length;
                        return Ok(Event::Data(data));
                    }
                    if !ends {
                        return Ok(Event::NeedsMore);
                    }
                    self.done += self.delimiter.len();
                    self.state = State::Boundary;
                    return Ok(Event::PartEnd);
                }
                State::End => return Ok(Event::End),
            }
        }
    }

    fn broken_off(&self) -> Error {
        match self.state {
            State::Preamble => malformed("its boundary does not occur"),
            State::Content => malformed(&format!("it ends within the field `{}`", self.name)),
            _ => malformed("it ends between two fields"),
        }
    }

    fn too_large(&self, max: usize) -> Error {
        Error::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the field `{}` has more than {max} bytes", self.name),
        )
    }

    fn no_text(&self) -> Error {
        no_text(&self.name)
    }
}

pub(crate) fn no_text(name: &str) -> Error {
    Error::bad_request(format!("the field `{name}` of the form is not valid UTF-8"))
}

pub(crate) fn too_many(max: usize) -> Error {
    Error::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        format!("the form has more than {max} fields"),
    )
    .with_detail(format!(
        "the module's setting `{FIELDS_MAX_SETTING}` allows {max}"
    ))
}

fn malformed(why: &str) -> Error {
    Error::bad_request(format!("the form is malformed: {why}"))
}

/// Reads the headers of a part: the field's name, the file's name and the media type.
fn head(bytes: &[u8]) -> Result<Part> {
    let text = std::str::from_utf8(bytes)
        .map_err(|_| malformed("the headers of a part are not valid UTF-8"))?;
    let (mut name, mut file, mut content_type) = (None, None, None);
    for line in text.split("\r\n").filter(|line| !line.is_empty()) {
        let Some((key, value)) = line.split_once(':') else {
            return Err(malformed("a part has a header without a colon"));
        };
        match key.trim().to_ascii_lowercase().as_str() {
            "content-disposition" => {
                for (key, value) in parameters(value) {
                    match key.as_str() {
                        "name" => name = name.or(Some(unescaped(&value))),
                        "filename" => file = file.or(Some(file_name(&unescaped(&value)))),
                        _ => {}
                    }
                }
            }
            "content-type" => content_type = Some(value.trim().to_owned()),
            _ => {}
        }
    }
    let name = name.ok_or_else(|| malformed("a part has no name"))?;
    for (what, text) in [("field", Some(&name)), ("file", file.as_ref())] {
        if text.is_some_and(|text| text.len() > NAME_MAX) {
            return Err(malformed(&format!(
                "the name of a {what} has more than {NAME_MAX} bytes"
            )));
        }
    }
    Ok(Part {
        name,
        file_name: file,
        content_type,
    })
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    let first = *wanted.first()?;
    let mut at = 0;
    while let Some(found) = bytes[at..].iter().position(|byte| *byte == first) {
        at += found;
        if bytes[at..].starts_with(wanted) {
            return Some(at);
        }
        at += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORM: &str = "preamble\r\n--B\r\ncontent-disposition: form-data; name=\"a\"\r\n\r\none\r\n--x\r\n\r\n--B \t\r\n\
        Content-Disposition: form-data; name=\"f%22\"; filename=\"C:\\dir\\x \\\"y\\\".txt\"\r\nContent-Type: text/plain\r\n\r\n\
        \r\n--B\r\ncontent-disposition: form-data; filename=\"../..\"; name=e\r\n\r\n\r\n--B--\r\nepilogue";

    fn part(name: &str, file_name: Option<&str>, content_type: Option<&str>) -> Part {
        Part {
            name: name.into(),
            file_name: file_name.map(str::to_owned),
            content_type: content_type.map(str::to_owned),
        }
    }

    fn expected() -> Vec<(Part, Vec<u8>)> {
        vec![
            (part("a", None, None), b"one\r\n--x\r\n".to_vec()),
            (
                part("f\"", Some("x \"y\".txt"), Some("text/plain")),
                Vec::new(),
            ),
            (part("e", Some(""), None), Vec::new()),
        ]
    }

    #[test]
    fn a_form_is_the_same_in_whatever_pieces_it_comes() {
        assert_eq!(
            parse(FORM.as_bytes(), "B", 3).expect("it is well-formed"),
            expected()
        );
        for size in 1..FORM.len() {
            let mut parser = Parser::new("B", 3);
            let mut pieces = FORM.as_bytes().chunks(size);
            let mut found: Vec<(Part, Vec<u8>)> = Vec::new();
            loop {
                match parser.next().expect("it is well-formed") {
                    Event::NeedsMore => parser.feed(pieces.next().expect("there is an end")),
                    Event::Part(part) => found.push((part, Vec::new())),
                    Event::Data(bytes) => found.last_mut().expect("a part began").1.extend(bytes),
                    Event::PartEnd => {}
                    Event::End => break,
                }
            }
            assert_eq!(found, expected(), "in pieces of {size}");
        }
    }

    #[test]
    fn what_is_malformed_is_refused_wherever_it_breaks_off() {
        for length in 0..FORM.find("--\r\nepilogue").expect("it has an end") {
            let broken = parse(&FORM.as_bytes()[..length], "B", 3);
            assert_eq!(
                broken.expect_err("it breaks off").status(),
                StatusCode::BAD_REQUEST
            );
        }
        assert_eq!(
            parse(FORM.as_bytes(), "B", 2)
                .expect_err("too many")
                .status(),
            StatusCode::PAYLOAD_TOO_LARGE
        );
        for (form, word) in [
            ("--B\r\n\r\nx\r\n--B--", "no name"),
            ("--B\r\nname\r\n\r\nx\r\n--B--", "without a colon"),
            ("--Bad\r\n\r\nx\r\n--B--", "other characters"),
        ] {
            let error = parse(form.as_bytes(), "B", 9).expect_err(form);
            assert!(error.message().contains(word), "{form}: {error}");
        }
        let long = format!("--B\r\nx: {}\r\n\r\n", "y".repeat(HEAD_MAX));
        assert!(
            parse(long.as_bytes(), "B", 9)
                .expect_err("long")
                .message()
                .contains("8 KiB")
        );
        let long = format!(
            "--B\r\ncontent-disposition: a; name={}\r\n\r\n\r\n--B--",
            "y".repeat(NAME_MAX + 1)
        );
        assert!(
            parse(long.as_bytes(), "B", 9)
                .expect_err("long")
                .message()
                .contains("1024 bytes")
        );
    }

    #[test]
    fn boundaries_are_read() {
        let of = |value: &str| {
            let mut headers = Headers::new();
            headers.append("content-type", value);
            boundary(&headers).map_err(|error| error.status().as_u16())
        };
        assert_eq!(of("text/plain; boundary=a"), Ok(None));
        for good in [
            "multipart/form-data; boundary=a;b=c",
            "Multipart/Form-Data; charset=utf-8; Boundary=\"a\"",
        ] {
            assert_eq!(of(good), Ok(Some("a".to_owned())), "{good}");
        }
        for bad in [
            "multipart/form-data",
            "multipart/form-data; boundary=",
            "multipart/form-data; boundary=\"",
            &format!("multipart/form-data; boundary={}", "x".repeat(71)),
        ] {
            assert_eq!(of(bad), Err(400), "{bad}");
        }
    }

    #[test]
    fn a_field_is_found_at_the_beginning() {
        assert_eq!(
            field(FORM.as_bytes(), "B", "a").as_deref(),
            Some("one\r\n--x\r\n")
        );
        assert_eq!(
            field(FORM.as_bytes(), "B", "f\""),
            None,
            "a file is no field"
        );
        assert_eq!(field(&FORM.as_bytes()[..60], "B", "a"), None);
    }

    /// No input makes the parser panic, or return more content than the input has bytes.
    #[test]
    fn any_bytes_are_read_or_refused() {
        let mut random = 0x2545_f491_4f6c_dd1d_u64;
        let pieces: [&[u8]; 10] = [
            b"\r\n",
            b"--B",
            b"--",
            b"\r",
            b"content-disposition: x; name=",
            b"\"",
            b"\\",
            b";",
            b"a",
            b":",
        ];
        for _ in 0..20_000 {
            let mut bytes = Vec::new();
            for _ in 0..12 {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                bytes.extend_from_slice(pieces[(random % 10) as usize]);
            }
            let found: usize = parse(&bytes, "B", 100).map_or(0, |parts| {
                parts.iter().map(|(_, content)| content.len()).sum()
            });
            assert!(found <= bytes.len());
        }
    }
}
