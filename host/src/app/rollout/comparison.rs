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

/// The most sentences about one request.
const SENTENCES_MAX: usize = 10;
/// The most bytes of a value that a sentence shows.
const SHOWN_MAX: usize = 80;
/// The most bytes of a reason that a sentence shows.
const REASON_MAX: usize = 500;

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
    /// A sentence that names what is no header.
    pub fn of(trial: &Trial) -> Result<ShadowOptions, String> {
        let header = |name: &String| {
            let parsed = name.parse();
            parsed.map_err(|_| format!("`{}` is not the name of a header", name.escape_debug()))
        };
        Ok(ShadowOptions {
            ignored_headers: (trial.ignored_headers.iter())
                .map(header)
                .collect::<Result<_, _>>()?,
            ignored_fields: trial.ignored_fields.clone(),
            writes: !trial.ignored_writes,
            ..ShadowOptions::default()
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
    /// The body. None: it is produced while it is sent, and not compared.
    pub body: Option<Bytes>,
    /// What follows the body.
    pub trailers: HeaderMap,
    /// Why it failed, if it did.
    pub failure: Option<String>,
    /// What others have seen of it, or would have.
    pub effects: Vec<Described>,
    /// The statements that have changed rows, if they are compared.
    pub writes: Vec<Described>,
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
        if let (Some(served), Some(candidate)) = (&self.body, &candidate.body) {
            sentences.extend(body(served, candidate, &options.ignored_fields));
        }
        effects(&self.effects, &candidate.effects, &mut sentences);
        if options.writes {
            writes(&self.writes, &candidate.writes, &mut sentences);
        }
        sentences.truncate(SENTENCES_MAX);
        sentences
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
    let parsed = (
        serde_json::from_slice::<Value>(served),
        serde_json::from_slice::<Value>(candidate),
    );
    if let (Ok(mut served), Ok(mut candidate)) = parsed {
        without(&mut served, ignored, "");
        without(&mut candidate, ignored, "");
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
    Some(format!(
        "body: differs at byte {at} (of {} served, {} candidate): {} served, {} candidate",
        served.len(),
        candidate.len(),
        rest(served),
        rest(candidate)
    ))
}

/// Removes the ignored fields. `path`: the names of the fields that lead to the value, with dots between.
fn without(value: &mut Value, ignored: &[String], path: &str) {
    match value {
        Value::Object(fields) => {
            let below = |name: &str| match path {
                "" => name.to_owned(),
                path => format!("{path}.{name}"),
            };
            fields.retain(|name, _| {
                let path = below(name);
                !ignored.iter().any(|it| it == name || *it == path)
            });
            for (name, value) in fields {
                without(value, ignored, &below(name));
            }
        }
        Value::Array(items) => {
            for item in items {
                without(item, ignored, path);
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
            names.into_iter().find_map(|name| {
                let place = format!("{place}.{name}");
                match (one.get(name), other.get(name)) {
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
            body: Some(Bytes::from_static(body.as_bytes())),
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
