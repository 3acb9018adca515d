//! PostgreSQL URLs: `postgres://USER:PASSWORD@HOST:PORT/DATABASE?PARAMETER=VALUE`. Errors never show the password.

use std::error::Error as _;

use percent_encoding::percent_decode_str;

use super::error::nearest;

/// The parameters that a URL may have.
const PARAMETERS: [&str; 18] = [
    "application_name",
    "channel_binding",
    "connect_timeout",
    "dbname",
    "host",
    "hostaddr",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_retries",
    "load_balance_hosts",
    "options",
    "password",
    "port",
    "sslmode",
    "sslnegotiation",
    "target_session_attrs",
    "user",
];

/// Parses a URL.
///
/// # Errors
/// A sentence that shows at most the name of a parameter.
pub(super) fn parse(text: &str) -> Result<tokio_postgres::Config, String> {
    const FORM: &str =
        "write postgres://USER:PASSWORD@HOST:PORT/DATABASE, or { env = \"DATABASE_URL\" }";
    let Some(rest) = ["postgres://", "postgresql://"]
        .iter()
        .find_map(|scheme| text.strip_prefix(scheme))
    else {
        // Also accepted: `host=… user=…`. The parser's error may show part of a password, so it is not passed on.
        return (text.parse()).map_err(|_| format!("this is not a PostgreSQL URL: {FORM}"));
    };
    if rest.matches('@').count() > 1 {
        return Err("the PostgreSQL URL has more than one `@`: write those in the user's name, the password and behind them as `%40`".to_owned());
    }
    let place = rest.split_once('@').map_or(rest, |(_, place)| place);
    let (hosts, query) = place.split_once('?').unwrap_or((place, ""));
    let hosts = hosts.split('/').next().unwrap_or_default();
    let has_port = |host: &str| {
        let port = host.rsplit_once(':').filter(|_| !host.ends_with(']'));
        port.is_none_or(|(_, port)| port.chars().all(|c| c.is_ascii_digit()))
    };
    if !hosts.split(',').all(has_port) {
        return Err(format!(
            "the port in the PostgreSQL URL is not a number: {FORM}"
        ));
    }
    let mut checked = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        checked.push(parameter(pair)?);
    }
    let before = &text[..text.len() - query.len()];
    let url = format!("{before}{}", checked.join("&"));
    url.parse().map_err(|error: tokio_postgres::Error| {
        let why = error
            .source()
            .map_or_else(|| error.to_string(), ToString::to_string);
        format!("this is not a PostgreSQL URL ({why}): {FORM}")
    })
}

/// Translates a parameter to the form that the client library takes.
fn parameter(pair: &str) -> Result<String, String> {
    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
    let key = percent_decode_str(key).decode_utf8_lossy();
    if key == "sslmode" {
        let mode = match value {
            // `verify-full` is libpq's name for what `require` does here: the certificate and the name in it are
            // checked.
            "verify-full" | "require" => "require",
            "disable" | "prefer" => value,
            _ => {
                return Err("`sslmode` in the PostgreSQL URL is `disable`, `prefer`, `require` or `verify-full`".to_owned());
            }
        };
        return Ok(format!("sslmode={mode}"));
    }
    if PARAMETERS.contains(&&*key) {
        return match pair.contains('=') {
            true => Ok(pair.to_owned()),
            false => Err(format!(
                "the parameter `{key}` of the PostgreSQL URL has no value: write `{key}=VALUE`"
            )),
        };
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if key.is_empty() || key.len() > 40 || !key.chars().all(plain) {
        return Err("the PostgreSQL URL has a parameter without a proper name behind its `?`: a `?`, `&` or `=` in a name or password is written as `%3F`, `%26` or `%3D`".to_owned());
    }
    let instead = match &*key {
        "sslrootcert" => "name the file as `ca_file` beside `postgres`".to_owned(),
        "schema" | "currentSchema" | "search_path" => {
            "write `options=-c%20search_path=NAME`".to_owned()
        }
        "connection_limit" | "pool_size" | "max_connections" => {
            "say `connections` beside `postgres`".to_owned()
        }
        "pool_timeout" => "say `acquire_timeout_ms` beside `postgres`".to_owned(),
        _ => match nearest(&key, &PARAMETERS) {
            Some(name) => format!("did you mean `{name}`?"),
            None => format!(
                "known are {}",
                PARAMETERS.map(|name| format!("`{name}`")).join(", ")
            ),
        },
    };
    Err(format!(
        "the parameter `{key}` of the PostgreSQL URL is not known: {instead}"
    ))
}

/// The text with the password of every URL replaced.
pub(super) fn without_passwords(text: &str) -> String {
    const HIDDEN: &str = "…";
    let mut shown = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (scheme, behind) = rest.split_at(at + 3);
        shown.push_str(scheme);
        let end = behind.find(['"', '\n']).unwrap_or(behind.len());
        let (url, after) = behind.split_at(end);
        let of_postgres = scheme.trim_end_matches("://").ends_with("postgres")
            || scheme.trim_end_matches("://").ends_with("postgresql");
        let colon = url.find(':');
        match (colon, url.rfind('@')) {
            (Some(colon), Some(at)) if colon < at => {
                shown.push_str(&url[..=colon]);
                shown.push_str(HIDDEN);
                shown.push_str(&without_parameter(&url[at..]));
            }
            // Without an `@`, the text after the colon may be a password, unless it is a port.
            (Some(colon), None) if of_postgres && !is_port(&url[colon + 1..]) => {
                shown.push_str(&url[..=colon]);
                shown.push_str(HIDDEN);
            }
            _ => shown.push_str(&without_parameter(url)),
        }
        rest = after;
    }
    shown.push_str(rest);
    without_parameter(&shown)
}

fn is_port(text: &str) -> bool {
    let end = text.find(['/', '?']).unwrap_or(text.len());
    text[..end].parse::<u16>().is_ok()
}

/// The text with the value of every `password=…` replaced, in a URL or in the form `host=… password=…`.
fn without_parameter(text: &str) -> String {
    let Some(at) = text.find("password=") else {
        return text.to_owned();
    };
    let (before, value) = text.split_at(at + "password=".len());
    let end = value.find(['&', '"', '\n']).unwrap_or(value.len());
    format!("{before}…{}", without_parameter(&value[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_that_are_unknown_are_named() {
        for (url, part) in [
            (
                "postgres://u:secret@h/db?aplication_name=x",
                "did you mean `application_name`?",
            ),
            ("postgres://u:secret@h/db?sslrootcert=/x", "`ca_file`"),
            (
                "postgres://u:secret@h/db?sslmode=require&nonsense=1",
                "`nonsense`",
            ),
            (
                "postgres://u:secret@h/db?sslmode=verify-ca",
                "`verify-full`",
            ),
            (
                "postgres://u:secret@h/db?options",
                "`options` of the PostgreSQL URL has no value",
            ),
            ("postgres://u:secret@h:x/db", "port"),
            ("postgres://u:sec@ret@h/db", "`%40`"),
            ("postgres://u:secret/db", "port"),
            ("postgres://u@h/db?keepalives=secret", "keepalives"),
            ("user=u password=my secret host=h", "not a PostgreSQL URL"),
            ("mysql://u:secret@h/db", "not a PostgreSQL URL"),
        ] {
            let error = parse(url).expect_err(url);
            assert!(error.contains(part), "{url}: {error}");
            assert!(!error.contains("sec"), "{url}: {error}");
        }
    }

    #[test]
    fn what_is_right_is_read() {
        for url in [
            "postgres://u:p@h:5432/db?sslmode=verify-full&options=-c%20search_path=a&",
            "postgresql://u:a/b?c=d@h,[::1]:1/db",
            "postgres:///db?host=/run/postgresql",
            "host=h user=u password='a b'",
        ] {
            parse(url).unwrap_or_else(|error| panic!("{url}: {error}"));
        }
        let url = parse("postgres://u:sslmode=verify-full@h/db").expect("a strange password");
        assert_eq!(url.get_password(), Some(&b"sslmode=verify-full"[..]));
    }

    #[test]
    fn passwords_are_not_shown() {
        for (text, shown) in [
            (
                r#"postgres = "postgres://u:p@w@h/db" # x"#,
                r#"postgres = "postgres://u:…@h/db" # x"#,
            ),
            (
                r#"x = "postgres://u:secret" y"#,
                r#"x = "postgres://u:…" y"#,
            ),
            (
                r#"x = "postgres://h:5432/db?password=a&b=c""#,
                r#"x = "postgres://h:5432/db?password=…&b=c""#,
            ),
            (r#"x = "host=h password=a b""#, r#"x = "host=h password=…""#),
            (
                r#"http = ["https://[::1]:80"]"#,
                r#"http = ["https://[::1]:80"]"#,
            ),
        ] {
            assert_eq!(without_passwords(text), shown);
        }
    }
}
