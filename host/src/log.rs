//! The log on standard error: a line per event, coloured on a terminal, or JSON for machines.
//!
//! A finished request has a form of its own, because that is what people watch.

use std::fmt::{self, Write as _};
use std::io::IsTerminal as _;
use std::time::{Duration, SystemTime};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// How the log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Starts logging. `AMPHI_LOG` filters as tracing's `EnvFilter` does, e.g. `warn` or `info,amphi::guest=debug`.
pub fn start(format: LogFormat) {
    let filter = EnvFilter::try_from_env("AMPHI_LOG")
        .unwrap_or_else(|_| EnvFilter::new("info,refinery_core=warn"));
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colours);
    match format {
        LogFormat::Text => builder.event_format(Lines).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
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
        // A guest's text must not be able to look like another line of the log.
        writeln!(
            writer,
            "{}",
            line.replace('\n', "\n    ").replace('\r', "\\r")
        )
    }
}

/// `GET /entries 200 sync guestbook::list 1.2ms committed`
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
        get("path").escape_debug(),
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
    write!(
        line,
        "{} {}",
        paint.colour(colour, &level.as_str().to_lowercase()),
        fields.get("message").unwrap_or_default()
    )?;
    for (name, value) in fields.0.iter().filter(|(name, _)| *name != "message") {
        write!(line, " {}", paint.dim(&format!("{name}={value}")))?;
    }
    Ok(())
}

/// Hours, minutes and seconds of the day in UTC, with milliseconds.
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
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.push((field.name(), format!("{value:?}")));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.push((field.name(), value.to_owned()));
    }
}
