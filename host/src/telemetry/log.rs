//! The log on standard error: one line per event, coloured on a terminal, or JSON for programs.
//!
//! The line of a finished request has a format of its own, because people read it most.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::io::{self, IsTerminal as _};
use std::panic::PanicHookInfo;
use std::time::{Duration, SystemTime};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer, Registry};

use super::stderr;

/// How the log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// How long a panicking thread of the host waits at most until the message of the panic is written. After that, the
/// process may abort.
const PANIC_WAIT: Duration = Duration::from_millis(100);

/// Starts logging. `AMPHI_LOG` filters by level and target, e.g. `warn` or `info,amphi::guest=debug`. (tracing's
/// `EnvFilter` also filters by spans and fields, but brings a regex engine into the build.)
pub fn start(format: LogFormat) {
    let wanted = std::env::var_os("AMPHI_LOG").map(|text| text.to_string_lossy().into_owned());
    let (filter, mistake) = filter(wanted.as_deref());
    // Whatever is more detailed than all that the filter lets through is dropped before it is made. wasmtime makes such
    // records by the dozen for each call of a guest.
    let most = Layer::<Registry>::max_level_hint(&filter).unwrap_or(LevelFilter::TRACE);
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let builder = tracing_subscriber::fmt()
        // The writer never fails. Without this setting, tracing would report failures through `eprintln!`, which can
        // panic.
        .log_internal_errors(false)
        .with_max_level(most)
        .with_ansi(colours);
    match format {
        LogFormat::Text => (builder.with_writer(|| Stderr))
            .event_format(Lines)
            .finish()
            .with(filter)
            .init(),
        LogFormat::Json => (builder.with_writer(|| Json(Stderr)))
            .json()
            .flatten_event(true)
            .finish()
            .with(filter)
            .init(),
    }
    std::panic::set_hook(Box::new(panicked));
    if let Some(mistake) = mistake {
        tracing::warn!("{mistake}");
    }
}

/// Writes the message of a panic in the host. The hook of the standard library would block while nobody reads standard
/// error.
fn panicked(panic: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("<unnamed>");
    let mut text = format!("thread '{name}' {panic}\n");
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        text.push_str(&format!("{backtrace}\n"));
    }
    stderr::write(escaped(&text).as_bytes());
    stderr::flush(PANIC_WAIT);
}

/// The writer that tracing writes lines of text to.
struct Stderr;

impl io::Write for Stderr {
    /// tracing passes a whole line.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        stderr::write(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Parses the filter. If it is invalid, returns the default and a sentence about the mistake.
fn filter(wanted: Option<&str>) -> (Targets, Option<String>) {
    let usual = || Targets::new().with_default(LevelFilter::INFO);
    match wanted {
        None | Some("") => (usual(), None),
        Some(text) => match text.parse::<Targets>() {
            Ok(filter) => (filter, None),
            Err(error) => {
                let mistake = format!(
                    "AMPHI_LOG=\"{text}\" is not a filter and was ignored: {error}; write e.g. `warn` or `info,amphi::guest=debug`"
                );
                (usual(), Some(mistake))
            }
        },
    }
}

struct Lines;

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let paint = Paint(writer.has_ansi_escapes());
        let mut line = format!("{} ", paint.dim(&clock()));
        match event.metadata().target() {
            "amphi::request" => request(&mut line, paint, &fields)?,
            _ => other(&mut line, paint, event, &fields)?,
        }
        // Further lines are indented, so that a guest's text cannot look like another event.
        writeln!(writer, "{}", line.replace('\n', "\n    "))
    }
}

/// Formats a finished request: `GET /entries 200 sync guestbook::list 1.2ms committed`
fn request(line: &mut String, paint: Paint, fields: &Fields) -> fmt::Result {
    let get = |name: &str| fields.get(name).unwrap_or_default();
    let status = get("status");
    let colour = match status.as_bytes().first() {
        Some(b'2') => GREEN,
        Some(b'3') => CYAN,
        Some(b'4') => YELLOW,
        _ => RED,
    };
    write!(
        line,
        "{:<4} {} {}",
        get("method"),
        get("path"),
        paint.colour(colour, status)
    )?;
    if let (Some(mode), Some(view)) = (fields.get("mode"), fields.get("view")) {
        let colour = if mode == "sync" { BLUE } else { MAGENTA };
        write!(line, " {} {view}", paint.colour(colour, mode))?;
    }
    let took = get("duration_us")
        .parse()
        .map(Duration::from_micros)
        .unwrap_or_default();
    write!(line, " {took:.1?}")?;
    if let Some(transaction) = fields.get("transaction") {
        write!(line, " transaction {transaction}")?;
    }
    if let (Some(fault), Some(why)) = (fields.get("fault"), fields.get("why")) {
        write!(
            line,
            " {}: {why}",
            paint.colour(colour, &format!("{fault} fault"))
        )?;
    }
    if let Some(path) = fields.get("call_path") {
        write!(line, " (call path: {path})")?;
    }
    if let Some(hops) = fields
        .get("hops")
        .filter(|hops| !matches!(*hops, "0" | "1"))
    {
        write!(line, " {hops} hops")?;
    }
    write!(line, " {}", paint.dim(get("request")))
}

fn other(line: &mut String, paint: Paint, event: &Event<'_>, fields: &Fields) -> fmt::Result {
    let level = event.metadata().level();
    let colour = match *level {
        Level::ERROR => RED,
        Level::WARN => YELLOW,
        Level::INFO => GREEN,
        _ => CYAN,
    };
    // Fields named `log.…` say where in a library's source the event comes from. They are left out.
    let shown = |name: &str| name != "message" && !name.starts_with("log.");
    let shown: Vec<_> = fields.0.iter().filter(|(name, _)| shown(name)).collect();
    let message = fields.get("message").unwrap_or_default();
    // A message that contains `NAME=` of one of the fields is put in quotes: a guest's text must not pass for a field
    // of the host.
    let imitates = |name: &str| message.contains(&format!("{name}="));
    let message = match shown.iter().any(|(name, _)| imitates(name)) {
        true => in_quotes(message).into(),
        false => Cow::from(message),
    };
    let level = level.as_str().to_lowercase();
    write!(line, "{} {message}", paint.colour(colour, &level))?;
    for (name, value) in shown {
        write!(line, " {}", paint.dim(&format!("{name}={}", quoted(value))))?;
    }
    Ok(())
}

/// The time of day in UTC: hours, minutes, seconds and milliseconds.
fn clock() -> String {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let seconds = since.as_secs() % 86_400;
    format!(
        "{:02}:{:02}:{:02}.{:03}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60,
        since.subsec_millis()
    )
}

const RED: u8 = 31;
const GREEN: u8 = 32;
const YELLOW: u8 = 33;
const BLUE: u8 = 34;
const MAGENTA: u8 = 35;
const CYAN: u8 = 36;
const DIM: u8 = 2;

#[derive(Clone, Copy)]
struct Paint(bool);

impl Paint {
    fn colour(self, code: u8, text: &str) -> String {
        if self.0 {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    fn dim(self, text: &str) -> String {
        self.colour(DIM, text)
    }
}

#[derive(Default)]
struct Fields(Vec<(&'static str, String)>);

impl Fields {
    fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(field, _)| *field == name)
            .map(|(_, value)| value.as_str())
    }

    fn add(&mut self, field: &Field, value: &str) {
        self.0.push((field.name(), escaped(value)));
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value);
    }
}

/// A value that cannot be confused with the text around it: in quotes if it is empty or has spaces, quotes or `=`.
pub fn quoted(value: &str) -> Cow<'_, str> {
    let plain = |c: char| !c.is_whitespace() && c != '"' && c != '=';
    match !value.is_empty() && value.chars().all(plain) {
        true => value.into(),
        false => in_quotes(value).into(),
    }
}

fn in_quotes(text: &str) -> String {
    let text = text.replace('\\', "\\\\");
    let text = text.replace('"', "\\\"").replace('\n', "\\n");
    format!("\"{text}\"")
}

/// A writer for lines of JSON. Characters that control a terminal are written as `\uXXXX`, which JSON allows because
/// they occur only inside strings.
struct Json<W>(W);

impl<W: io::Write> io::Write for Json<W> {
    /// tracing passes a whole line.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let hostile = |c: char| c != '\n' && steers(c);
        match std::str::from_utf8(line) {
            Ok(text) if text.contains(hostile) => {
                let mut shown = String::with_capacity(text.len() * 2);
                for c in text.chars() {
                    if !hostile(c) {
                        shown.push(c);
                        continue;
                    }
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(shown, "\\u{unit:04x}");
                    }
                }
                self.0.write_all(shown.as_bytes())?;
            }
            _ => self.0.write_all(line)?,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Escapes the characters of a text that control a terminal or change the order in which the text is read: guests and
/// clients write such texts. Line breaks stay, for the caller to handle.
pub fn escaped(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if steers(c) {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

/// Like [`escaped`], and escapes line breaks, too.
pub fn escaped_line(text: &str) -> String {
    escaped(text).replace('\n', "\\n")
}

/// Whether a character is a control character, a separator of lines or paragraphs, a change of the writing direction,
/// or another invisible formatting character (Unicode's Cf). The zero-width joiners are not among them, because words
/// and emoji need them.
fn steers(c: char) -> bool {
    c != '\n' && c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{13430}'..='\u{13440}'
            | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// The lines that `log` writes, without the time.
    fn lines(colours: bool, log: impl FnOnce()) -> String {
        let written = Written::default();
        let writer = written.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(colours)
            .with_writer(move || writer.clone())
            .event_format(Lines)
            .finish();
        tracing::subscriber::with_default(subscriber, log);
        let text = String::from_utf8(written.0.lock().clone()).expect("the log is UTF-8");
        text.split_once(' ').expect("a time").1.to_owned()
    }

    #[test]
    fn what_guests_write_cannot_steer_a_terminal() {
        let hostile = "a\u{1b}[2Jb\rc\u{7f}\u{9b}31m\td\u{202e}e\u{0}";
        let shown = "a\\u{1b}[2Jb\\rc\\u{7f}\\u{9b}31m\\td\\u{202e}e\\u{0}";
        let text = lines(false, || tracing::info!(name = hostile, "{hostile}"));
        assert_eq!(text, format!("info {shown} name={shown}\n"));
        let text = lines(true, || tracing::info!(name = ?hostile, "{hostile}"));
        assert!(
            !text.contains("\u{1b}[2J") && !text.contains('\r'),
            "{text:?}"
        );
        assert!(text.contains("\u{1b}[32minfo\u{1b}[0m"), "{text:?}");
        let text = lines(
            false,
            || tracing::warn!(target: "amphi::request", method = "GET", path = "/", status = 500, duration_us = 1200, fault = "view", why = hostile, request = "r", "request"),
        );
        assert_eq!(text, format!("GET  / 500 1.2ms view fault: {shown} r\n"));
    }

    #[test]
    fn json_has_no_character_that_steers() {
        let written = Written::default();
        let writer = written.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || Json(writer.clone()))
            .json()
            .flatten_event(true)
            .finish();
        let hostile =
            "a\u{1b}b\u{9b}c\u{7f}d\u{61c}e\u{202e}f\u{feff}g\u{e0041}h\u{2028}\n\"é👩\u{200d}🚀";
        let log = || tracing::info!(name = hostile, "{hostile}");
        tracing::subscriber::with_default(subscriber, log);
        let text = String::from_utf8(written.0.lock().clone()).expect("the log is UTF-8");
        let steering: Vec<char> = text
            .trim_end()
            .chars()
            .filter(|c| steers(*c) || *c == '\n')
            .collect();
        assert!(steering.is_empty(), "{steering:?}");
        let line: serde_json::Value = serde_json::from_str(&text).expect("it is JSON");
        assert_eq!(line["message"], hostile);
        assert_eq!(line["name"], hostile);
    }

    #[test]
    fn what_guests_write_does_not_pass_for_what_the_host_writes() {
        let said = "done view=shop::admin request=1\n\"";
        let text = lines(
            false,
            || tracing::info!(target: "amphi::guest", view = "shop::list", request = "0199", "{said}"),
        );
        assert_eq!(
            text,
            "info \"done view=shop::admin request=1\\n\\\"\" view=shop::list request=0199\n"
        );
        let text = lines(false, || {
            tracing::info!(
                name = "a request=1",
                empty = "",
                plain = "é/b",
                "sold count=2"
            )
        });
        assert_eq!(
            text,
            "info sold count=2 name=\"a request=1\" empty=\"\" plain=é/b\n"
        );
    }

    #[test]
    fn further_lines_are_indented() {
        let text = lines(false, || tracing::info!("one\n12:00:00.000 error two"));
        assert_eq!(text, "info one\n    12:00:00.000 error two\n");
    }

    #[test]
    fn other_texts_stay_as_they_are() {
        let text = "Grüße, \\ \"日本\" 👩\u{200d}🚀";
        assert_eq!(escaped(text), text);
        assert_eq!(escaped_line("a\nb\u{61c}"), "a\\nb\\u{61c}");
    }

    #[test]
    fn a_filter_that_is_none_is_named() {
        assert!(filter(None).1.is_none() && filter(Some("")).1.is_none());
        assert!(filter(Some("info,amphi::guest=debug")).1.is_none());
        let mistake = filter(Some("amphi=loud")).1.expect("it is none");
        assert!(
            mistake.starts_with("AMPHI_LOG=\"amphi=loud\" is not a filter"),
            "{mistake}"
        );
    }
}
