//! What two versions of an app made of the same request, and the sentences that say how that differs.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde_json::Value;

use crate::deploy::Trial;
use crate::http::proxies::REQUEST_ID;
use crate::http::trace_context::{TRACEPARENT, TRACESTATE};
use crate::scope::transaction::Described;
use crate::telemetry::error::cut;

/// The longest time for a copy: its request waits for it.
const TIMEOUT_MAX: Duration = Duration::from_secs(60);
/// The most copies at once.
const AT_ONCE_MAX: usize = 1_024;
/// The most sentences about one request.
const SENTENCES_MAX: usize = 10;
/// The most bytes of a sentence. Clients and candidates choose names of headers and fields.
const SENTENCE_MAX: usize = 1_000;
/// The most bytes of a value that a sentence shows.
const SHOWN_MAX: usize = 80;
/// The most bytes of a reason that a sentence shows.
const REASON_MAX: usize = 500;
/// The most bytes of a body that is read as JSON: the values take many times as much memory, and no account has that.
const JSON_MAX: usize = 1 << 20;

/// What is compared, and what it may cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShadowOptions {
    /// Headers of responses that are not compared, in addition to `date` and those of ids and traces.
    pub ignored_headers: Vec<HeaderName>,
    /// Fields of JSON bodies that are not compared: a name (`id`) wherever it is, or a path from the top (`order.id`),
    /// in which lists do not count.
    pub ignored_fields: Vec<String>,
    /// Whether statements that change rows are compared, with their values: a port makes the same changes. Not for an
    /// app whose statements have times or random numbers as values.
    pub writes: bool,
    /// How long the candidate may take for one request.
    pub timeout: Duration,
    /// How many copies may run at the same time. Further requests are not copied.
    pub at_once: usize,
    /// The most bytes of a request's body that is copied.
    pub body_max_bytes: usize,
    /// How many differences the report names.
    pub named_max: usize,
}

impl Default for ShadowOptions {
    fn default() -> ShadowOptions {
        ShadowOptions {
            ignored_headers: Vec::new(),
            ignored_fields: Vec::new(),
            writes: true,
            timeout: Duration::from_secs(2),
            at_once: 4,
            body_max_bytes: 1 << 20,
            named_max: 20,
        }
    }
}

impl ShadowOptions {
    /// The options of a trial.
    ///
    /// # Errors
    /// A sentence that names what is no header, or out of its range.
    pub fn of(trial: &Trial) -> Result<ShadowOptions, String> {
        let header = |name: &String| {
            let parsed = name.parse();
            parsed.map_err(|_| format!("`{}` is not the name of a header", name.escape_debug()))
        };
        let default = ShadowOptions::default();
        let timeout = trial.shadow_timeout_ms.map(Duration::from_millis);
        let timeout = timeout.unwrap_or(default.timeout);
        if timeout.is_zero() || timeout > TIMEOUT_MAX {
            return Err(format!(
                "a candidate in shadow mode may have 1 to {} ms for a request, and not {}",
                TIMEOUT_MAX.as_millis(),
                timeout.as_millis()
            ));
        }
        let at_once = trial.shadow_at_once.unwrap_or(default.at_once);
        if !(1..=AT_ONCE_MAX).contains(&at_once) {
            return Err(format!(
                "a candidate in shadow mode gets 1 to {AT_ONCE_MAX} requests at once, and not {at_once}"
            ));
        }
        Ok(ShadowOptions {
            timeout,
            at_once,
            ignored_headers: (trial.ignored_headers.iter())
                .map(header)
                .collect::<Result<_, _>>()?,
            ignored_fields: trial.ignored_fields.clone(),
            writes: !trial.ignored_writes,
            ..default
        })
    }
}

/// What a version made of a request.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The status of its response.
    pub status: StatusCode,
    /// The headers of its response.
    pub headers: HeaderMap,
    /// The body.
    pub body: SeenBody,
    /// What follows the body.
    pub trailers: HeaderMap,
    /// Why it failed, if it did.
    pub failure: Option<String>,
    /// What others have seen of it, or would have.
    pub effects: Vec<Described>,
    /// The statements that have changed rows, if they are compared.
    pub writes: Vec<Described>,
}

/// The body of a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SeenBody {
    /// All of it.
    Whole(Bytes),
    /// It is produced while it is sent, and not compared.
    Stream,
    /// What is sent to a group from now on: an event stream or a poll, and not compared.
    Subscription,
}

impl SeenBody {
    fn kind(&self) -> &'static str {
        match self {
            SeenBody::Whole(_) => "one that is there",
            SeenBody::Stream => "one that is produced while it is sent",
            SeenBody::Subscription => "an event stream or a poll",
        }
    }
}

impl Seen {
    /// What differs between this version, which is served, and a candidate; nothing if they are equal.
    pub(super) fn differences(&self, candidate: &Seen, options: &ShadowOptions) -> Vec<String> {
        let mut sentences = Vec::new();
        if self.status != candidate.status {
            sentences.push(format!(
                "status: {}{} served, {}{} candidate",
                self.status.as_u16(),
                reason(self),
                candidate.status.as_u16(),
                reason(candidate)
            ));
        }
        let ignored = &options.ignored_headers;
        headers(
            "header",
            &self.headers,
            &candidate.headers,
            ignored,
            &mut sentences,
        );
        headers(
            "trailer",
            &self.trailers,
            &candidate.trailers,
            ignored,
            &mut sentences,
        );
        match (&self.body, &candidate.body) {
            (SeenBody::Whole(served), SeenBody::Whole(candidate)) => {
                sentences.extend(body(served, candidate, &options.ignored_fields));
            }
            // A version may well produce a body while it is sent that the other one has at once.
            (served, candidate) if served == candidate => {}
            (served @ SeenBody::Subscription, candidate)
            | (served, candidate @ SeenBody::Subscription) => sentences.push(format!(
                "body: {} served, {} candidate",
                served.kind(),
                candidate.kind()
            )),
            _ => {}
        }
        effects(&self.effects, &candidate.effects, &mut sentences);
        if options.writes {
            writes(&self.writes, &candidate.writes, &mut sentences);
        }
        sentences.truncate(SENTENCES_MAX);
        let sentences = sentences.into_iter();
        sentences.map(|it| cut(it, SENTENCE_MAX)).collect()
    }
}

fn reason(seen: &Seen) -> String {
    let failure = seen.failure.clone();
    failure.map_or_else(String::new, |why| format!(" ({})", cut(why, REASON_MAX)))
}

fn headers(
    what: &str,
    served: &HeaderMap,
    candidate: &HeaderMap,
    ignored: &[HeaderName],
    sentences: &mut Vec<String>,
) {
    let is_compared = |name: &&HeaderName| {
        let own = [header::DATE, REQUEST_ID, TRACEPARENT, TRACESTATE];
        !own.contains(name) && !ignored.contains(name)
    };
    let mut names: Vec<_> = (served.keys().chain(candidate.keys()))
        .filter(is_compared)
        .collect();
    names.sort_by_key(|name| name.as_str());
    names.dedup();
    let values = |of: &HeaderMap, name: &HeaderName| {
        let mut values: Vec<HeaderValue> = of.get_all(name).iter().cloned().collect();
        values.sort();
        values
    };
    for name in names {
        let (served, candidate) = (values(served, name), values(candidate, name));
        if served == candidate {
            continue;
        }
        // A report is read by more people than may use a client's session.
        let hides = *name == header::SET_COOKIE;
        sentences.push(match hides {
            true => format!(
                "{what} `{name}`: the values differ ({} served, {} candidate)",
                served.len(),
                candidate.len()
            ),
            false => format!(
                "{what} `{name}`: {} served, {} candidate",
                listed(&served),
                listed(&candidate)
            ),
        });
    }
}

fn listed(values: &[HeaderValue]) -> String {
    match values {
        [] => "none".to_owned(),
        values => {
            let values = values.iter().map(HeaderValue::as_bytes);
            let values: Vec<_> = values.map(quoted).collect();
            values.join(", ")
        }
    }
}

fn quoted(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes).into_owned();
    format!("`{}`", cut(text, SHOWN_MAX).escape_debug())
}

fn body(served: &Bytes, candidate: &Bytes, ignored: &[String]) -> Option<String> {
    if served == candidate {
        return None;
    }
    let is_large = served.len().max(candidate.len()) > JSON_MAX;
    let parsed = |bytes: &Bytes| {
        let json = (!is_large).then(|| serde_json::from_slice::<Value>(bytes).ok());
        json.flatten()
    };
    if let (Some(mut served), Some(mut candidate)) = (parsed(served), parsed(candidate)) {
        let paths: Vec<&str> = ignored.iter().map(String::as_str).collect();
        without(&mut served, ignored, &paths);
        without(&mut candidate, ignored, &paths);
        let differing = json(&served, &candidate, "$");
        if let Some((place, served, candidate)) = differing {
            return Some(format!(
                "body: differs at `{place}`: {served} served, {candidate} candidate"
            ));
        }
        if !ignored.is_empty() {
            return None;
        }
    }
    let at = (served.iter().zip(candidate)).take_while(|(one, other)| one == other);
    let at = at.count();
    let rest = |bytes: &Bytes| quoted(&bytes[at..bytes.len().min(at + SHOWN_MAX)]);
    let hint = match is_large && !ignored.is_empty() {
        true => ". It is too large to be compared as JSON, without the ignored fields",
        false => "",
    };
    Some(format!(
        "body: differs at byte {at} (of {} served, {} candidate): {} served, {} candidate{hint}",
        served.len(),
        candidate.len(),
        rest(served),
        rest(candidate)
    ))
}

/// Removes the ignored fields. `paths`: what is left of the ignored paths that lead to the value.
fn without(value: &mut Value, ignored: &[String], paths: &[&str]) {
    match value {
        _ if ignored.is_empty() => {}
        Value::Object(fields) => {
            fields.retain(|name, _| {
                !ignored.iter().any(|it| it == name) && !paths.iter().any(|it| it == name)
            });
            for (name, value) in fields {
                let below = paths.iter();
                let below =
                    below.filter_map(|it| it.strip_prefix(name.as_str())?.strip_prefix('.'));
                without(value, ignored, &below.collect::<Vec<_>>());
            }
        }
        Value::Array(items) => {
            for item in items {
                without(item, ignored, paths);
            }
        }
        _ => {}
    }
}

/// The first place where two values differ, and what is there.
fn json(served: &Value, candidate: &Value, place: &str) -> Option<(String, String, String)> {
    let here = |served: Option<&Value>, candidate: Option<&Value>, place: String| {
        let shown = |value: Option<&Value>| match value {
            None => "nothing".to_owned(),
            Some(value) => format!("`{}`", cut(value.to_string(), SHOWN_MAX)),
        };
        Some((place, shown(served), shown(candidate)))
    };
    match (served, candidate) {
        _ if served == candidate => None,
        (Value::Object(one), Value::Object(other)) => {
            let mut names: Vec<_> = one.keys().chain(other.keys()).collect();
            names.sort();
            names.dedup();
            // The place is written for the field that differs only: a name may be as long as a body.
            let differs = |name: &&&String| one.get(**name) != other.get(**name);
            names.iter().find(differs).and_then(|name| {
                let place = format!("{place}.{name}");
                match (one.get(*name), other.get(*name)) {
                    (Some(one), Some(other)) => json(one, other, &place),
                    (one, other) => here(one, other, place),
                }
            })
        }
        (Value::Array(one), Value::Array(other)) => {
            (0..one.len().max(other.len())).find_map(|index| {
                let place = format!("{place}[{index}]");
                match (one.get(index), other.get(index)) {
                    (Some(one), Some(other)) => json(one, other, &place),
                    (one, other) => here(one, other, place),
                }
            })
        }
        _ => here(Some(served), Some(candidate), place.to_owned()),
    }
}

/// The payloads by target, of both versions, where they differ.
fn by_target(
    served: &[Described],
    candidate: &[Described],
) -> impl Iterator<Item = (String, [Vec<u64>; 2])> {
    let mut targets = BTreeMap::<String, [Vec<u64>; 2]>::new();
    for (index, effects) in [served, candidate].into_iter().enumerate() {
        for effect in effects {
            let payloads = targets.entry(effect.what.clone()).or_default();
            payloads[index].push(effect.payload);
        }
    }
    targets.into_iter().filter(|(_, [one, other])| one != other)
}

fn effects(served: &[Described], candidate: &[Described], sentences: &mut Vec<String>) {
    for (name, [served, candidate]) in by_target(served, candidate) {
        if served.len() != candidate.len() {
            sentences.push(format!(
                "{name}: sent {} times served, {} times candidate",
                served.len(),
                candidate.len()
            ));
        } else {
            sentences.push(format!(
                "{name}: what is sent, or its order, differs ({} times)",
                served.len()
            ));
        }
    }
}

/// Independent statements may come in any order.
fn writes(served: &[Described], candidate: &[Described], sentences: &mut Vec<String>) {
    for (statement, [mut served, mut candidate]) in by_target(served, candidate) {
        served.sort_unstable();
        candidate.sort_unstable();
        if served.len() != candidate.len() {
            sentences.push(format!(
                "writes: {} times served, {} times candidate: {statement}",
                served.len(),
                candidate.len()
            ));
        } else if served != candidate {
            sentences.push(format!(
                "writes: other values, or another number of rows: {statement}"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(status: u16, body: &'static str) -> Seen {
        Seen {
            status: StatusCode::from_u16(status).expect("a status"),
            headers: HeaderMap::new(),
            body: SeenBody::Whole(Bytes::from_static(body.as_bytes())),
            trailers: HeaderMap::new(),
            failure: None,
            effects: Vec::new(),
            writes: Vec::new(),
        }
    }

    fn differences(served: &Seen, candidate: &Seen, ignored: &[&str]) -> Vec<String> {
        let options = ShadowOptions {
            ignored_fields: ignored.iter().map(|field| (*field).to_owned()).collect(),
            ignored_headers: vec![header::ETAG],
            ..ShadowOptions::default()
        };
        served.differences(candidate, &options)
    }

    #[test]
    fn a_status_is_named_with_the_reason() {
        let mut failed = seen(500, "");
        failed.failure = Some("the view panicked".to_owned());
        let found = differences(&seen(200, ""), &failed, &[]);
        assert_eq!(
            found,
            ["status: 200 served, 500 (the view panicked) candidate"]
        );
    }

    #[test]
    fn headers_are_compared_without_their_order() {
        let (mut one, mut other) = (seen(200, ""), seen(200, ""));
        let value = HeaderValue::from_static;
        for (name, values) in [("x-a", ["1", "2"]), ("etag", ["1", "3"])] {
            let name = HeaderName::from_static(name);
            one.headers.append(name.clone(), value(values[0]));
            one.headers.append(name.clone(), value(values[1]));
            other.headers.append(name.clone(), value("2"));
            other.headers.append(name, value("1"));
        }
        one.headers.insert(header::DATE, value("today"));
        assert_eq!(differences(&one, &other, &[]), [""; 0]);
        other.headers.append("x-a", value("2"));
        other
            .headers
            .append(header::SET_COOKIE, value("key=secret"));
        assert_eq!(
            differences(&one, &other, &[]),
            [
                "header `set-cookie`: the values differ (0 served, 1 candidate)",
                "header `x-a`: `1`, `2` served, `1`, `2`, `2` candidate"
            ]
        );
    }

    #[test]
    fn a_body_is_named_where_it_differs() {
        let found = differences(&seen(200, "a cat sat"), &seen(200, "a car sat"), &[]);
        let sentence =
            "body: differs at byte 4 (of 9 served, 9 candidate): `t sat` served, `r sat` candidate";
        assert_eq!(found, [sentence]);
        let found = differences(
            &seen(200, r#"{"a": [1, {"n": 2}]}"#),
            &seen(200, r#"{"a": [1, {"n": 3}]}"#),
            &[],
        );
        assert_eq!(
            found,
            ["body: differs at `$.a[1].n`: `2` served, `3` candidate"]
        );
        let found = differences(&seen(200, "{}"), &seen(200, "{ }"), &[]);
        assert_eq!(found.len(), 1, "the bytes differ: {found:?}");
    }

    #[test]
    fn declared_fields_are_ignored_by_name_or_by_path() {
        let one = seen(
            200,
            r#"{"id": 1, "orders": [{"id": 2, "at": 3, "n": 4}], "at": 5}"#,
        );
        let other = seen(
            200,
            r#"{"id": 9, "orders": [{"id": 9, "at": 9, "n": 4}], "at": 5}"#,
        );
        assert_eq!(differences(&one, &other, &["id", "orders.at"]), [""; 0]);
        let found = differences(&one, &other, &["id", "at"]);
        assert_eq!(found, [""; 0]);
        let found = differences(&one, &other, &["orders.id", "at"]);
        assert_eq!(
            found,
            ["body: differs at `$.id`: `1` served, `9` candidate"]
        );
    }

    /// The report is kept, and sent to whoever asks for the status.
    #[test]
    fn no_sentence_is_long() {
        let long = "n".repeat(JSON_MAX / 4);
        let nested = |n: u32| format!("{{\"{long}\": {{\"{long}\": [{n}]}}}}");
        let (mut one, mut other) = (seen(200, ""), seen(500, ""));
        one.body = SeenBody::Whole(nested(1).into());
        other.body = SeenBody::Whole(nested(2).into());
        other.failure = Some(long.clone());
        let effect = Described::new(format!("event `{long}`"), b"");
        other.effects = vec![effect];
        for number in 0..1_000 {
            let value = HeaderValue::from_str(&long[..1_000]).expect("it is ASCII");
            other.headers.append("x-many", value.clone());
            let name = format!("x-{number}-{}", &long[..1_000]);
            other
                .headers
                .insert(HeaderName::try_from(name).expect("a name"), value);
        }
        let found = differences(&one, &other, &[]);
        assert_eq!(found.len(), SENTENCES_MAX);
        other.headers.clear();
        let rest = differences(&one, &other, &[]);
        assert_eq!(rest.len(), 3, "{rest:?}");
        assert!(rest[1].starts_with("body: differs at `$.nnn"), "{rest:?}");
        for sentence in found.iter().chain(&rest) {
            assert!(sentence.len() <= SENTENCE_MAX + 4, "{}", sentence.len());
        }
    }

    /// Many fields beside or below one with a long name take no longer than those with short ones.
    #[test]
    fn long_names_of_fields_cost_what_they_are_long() {
        let long = "n".repeat(JSON_MAX / 4);
        let fields = |last: u32| {
            let some = (0..50_000).map(|n| format!("\"{n}\":0,"));
            format!(
                "{{\"{long}\": {{{} \"z\": {last}}}}}",
                some.collect::<String>()
            )
        };
        let (mut one, mut other) = (seen(200, ""), seen(200, ""));
        one.body = SeenBody::Whole(fields(1).into());
        other.body = SeenBody::Whole(fields(2).into());
        let since = std::time::Instant::now();
        assert_eq!(differences(&one, &other, &["id", "a.b"]).len(), 1);
        // 50,000 copies of the name are 13 GB.
        assert!(
            since.elapsed() < Duration::from_secs(2),
            "{:?}",
            since.elapsed()
        );
    }

    #[test]
    fn large_bodies_are_compared_as_bytes() {
        let body = |n: u32| {
            let rest = "x".repeat(JSON_MAX);
            SeenBody::Whole(format!("{{\"id\": {n}, \"rest\": \"{rest}\"}}").into())
        };
        let (mut one, mut other) = (seen(200, ""), seen(200, ""));
        one.body = body(1);
        assert_eq!(differences(&one, &one.clone(), &["id"]), [""; 0]);
        other.body = body(2);
        let found = differences(&one, &other, &["id"]);
        assert!(found[0].contains("differs at byte 7"), "{found:?}");
        assert!(
            found[0].ends_with("without the ignored fields"),
            "{found:?}"
        );
    }

    #[test]
    fn kinds_of_bodies_are_told_apart() {
        let (whole, mut stream, mut subscription) = (seen(200, "a"), seen(200, ""), seen(200, ""));
        stream.body = SeenBody::Stream;
        subscription.body = SeenBody::Subscription;
        assert_eq!(differences(&whole, &stream, &[]), [""; 0]);
        for (served, candidate, sentence) in [
            (
                &whole,
                &subscription,
                "body: one that is there served, an event stream or a poll candidate",
            ),
            (
                &subscription,
                &stream,
                "body: an event stream or a poll served, one that is produced while it is sent candidate",
            ),
        ] {
            assert_eq!(differences(served, candidate, &[]), [sentence]);
        }
        assert_eq!(differences(&subscription, &subscription, &[]), [""; 0]);
    }

    #[test]
    fn effects_are_counted_and_their_payloads_compared() {
        let effect =
            |what: &str, payload: &str| Described::new(what.to_owned(), payload.as_bytes());
        let (mut one, mut other) = (seen(200, ""), seen(200, ""));
        one.effects = vec![
            effect("event `a`", "1"),
            effect("event `a`", "2"),
            effect("event `b`", "1"),
        ];
        other.effects = vec![effect("event `a`", "1"), effect("event `b`", "2")];
        assert_eq!(
            differences(&one, &other, &[]),
            [
                "event `a`: sent 2 times served, 1 times candidate",
                "event `b`: what is sent, or its order, differs (1 times)"
            ]
        );
    }

    #[test]
    fn writes_are_compared_in_any_order() {
        let write = |sql: &str, values: &str| Described::new(sql.to_owned(), values.as_bytes());
        let (mut one, mut other) = (seen(200, ""), seen(200, ""));
        one.writes = vec![write("update a", "1"), write("update a", "2")];
        other.writes = vec![write("update a", "2"), write("update a", "1")];
        assert_eq!(differences(&one, &other, &[]), [""; 0]);
        other.writes = vec![write("update a", "1"), write("update a", "1")];
        let found = differences(&one, &other, &[]);
        let sentence = "writes: other values, or another number of rows: update a";
        assert_eq!(found, [sentence]);
        other.writes.pop();
        let found = differences(&one, &other, &[]);
        let sentence = "writes: 2 times served, 1 times candidate: update a";
        assert_eq!(found, [sentence]);
    }
}
