//! The W3C trace context: it links a request to a trace across several services.
//!
//! Amphi is one step of such a trace. It continues the trace that a request brings, or begins a new one. Each request
//! gets a span id of its own, and each outbound request another one. Amphi records no spans. Tools that record spans
//! find the ids in the log and in the headers. <https://www.w3.org/TR/trace-context/>

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use http::{HeaderMap, HeaderName};
use uuid::Uuid;

/// The header with the trace id and the caller's span id.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// The header with vendors' own entries about the trace.
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// The flags with a defined meaning: sampled, and random trace id. Other flags must not be passed on.
const KNOWN_FLAGS: u8 = 0b11;
const SAMPLED: u8 = 0b01;
/// The most members a `tracestate` can have.
const STATE_MEMBERS_MAX: usize = 32;

/// A span of a trace. `Display` writes the value of `traceparent`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    trace: u128,
    span: u64,
    flags: u8,
    state: Option<Arc<str>>,
}

impl Trace {
    /// A new span for a request with these headers: in the caller's trace if the headers are valid, else in a new
    /// trace.
    pub fn of(headers: &HeaderMap) -> Trace {
        match Trace::incoming(headers) {
            Some(caller) => caller.child(),
            None => Trace::begin(),
        }
    }

    /// Begins a new trace. It has the flag for sampling: without the flag, no service would record the trace.
    pub fn begin() -> Trace {
        Trace {
            trace: Uuid::new_v4().as_u128(),
            span: new_span(),
            flags: SAMPLED,
            state: None,
        }
    }

    /// A new span in the same trace, for an outbound request or an event.
    pub fn child(&self) -> Trace {
        Trace {
            span: new_span(),
            ..self.clone()
        }
    }

    /// The trace id in hexadecimal, as in the log.
    pub fn id(&self) -> String {
        format!("{:032x}", self.trace)
    }

    /// The value of `tracestate`, which is passed on unchanged.
    pub fn state(&self) -> Option<&str> {
        self.state.as_deref()
    }

    /// The caller's span, if `traceparent` is valid and there once. A `tracestate` that is not valid is dropped.
    fn incoming(headers: &HeaderMap) -> Option<Trace> {
        let mut sent = headers.get_all(TRACEPARENT).iter();
        let (Some(parent), None) = (sent.next(), sent.next()) else {
            return None;
        };
        let state = headers.get_all(TRACESTATE).iter();
        let state: Option<Vec<&str>> = state.map(|value| value.to_str().ok()).collect();
        let mut trace = Trace::parse(parent.to_str().ok()?)?;
        trace.state = state
            .and_then(|values| valid_state(&values.join(",")))
            .map(Arc::from);
        Some(trace)
    }

    /// Parses a `traceparent`: `00-`, trace id, `-`, span id, `-`, flags, in lower-case hexadecimal.
    pub fn parse(text: &str) -> Option<Trace> {
        let (version, rest) = (text.get(..2)?, text.get(2..)?);
        let version = hex(version)?;
        // Later versions may append fields, but do not change these four.
        let known = match (version, rest.as_bytes().get(53)) {
            (0xff, _) => return None,
            (_, None) => rest,
            (1.., Some(b'-')) => rest.get(..53)?,
            _ => return None,
        };
        let mut parts = known.strip_prefix('-')?.split('-');
        let (trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?);
        if (trace.len(), span.len(), flags.len(), parts.next()) != (32, 16, 2, None) {
            return None;
        }
        let trace = Trace {
            trace: hex(trace)?,
            span: u64::try_from(hex(span)?).ok()?,
            flags: u8::try_from(hex(flags)?).ok()? & KNOWN_FLAGS,
            state: None,
        };
        (trace.trace != 0 && trace.span != 0).then_some(trace)
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Trace {
            trace, span, flags, ..
        } = self;
        write!(f, "00-{trace:032x}-{span:016x}-{flags:02x}")
    }
}

/// A random span id. Never zero, because these 64 bits contain the version of the UUID.
fn new_span() -> u64 {
    Uuid::new_v4().as_u64_pair().0
}

/// Parses lower-case hexadecimal. `from_str_radix` alone would also accept `+` and capitals.
fn hex(text: &str) -> Option<u128> {
    let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if !text.bytes().all(digit) {
        return None;
    }
    u128::from_str_radix(text, 16).ok()
}

/// The members of a `tracestate` without the spaces around them. None if a member is not valid, a key occurs twice, or
/// there are too many members or none.
fn valid_state(text: &str) -> Option<String> {
    let mut members = Vec::new();
    let mut keys = HashSet::new();
    for member in text.split(',') {
        let member = member.trim_matches([' ', '\t']);
        if member.is_empty() {
            continue;
        }
        let (key, value) = member.split_once('=')?;
        if !is_state_key(key) || !is_state_value(value) || !keys.insert(key) {
            return None;
        }
        members.push(member);
    }
    (1..=STATE_MEMBERS_MAX)
        .contains(&members.len())
        .then(|| members.join(","))
}

/// Whether a key has the form `vendor` or `tenant@vendor`.
fn is_state_key(key: &str) -> bool {
    let rest = |text: &str| {
        let of_key = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        (text.bytes()).all(|byte| of_key(byte) || b"_-*/".contains(&byte))
    };
    let word = |text: &str, longest: usize| {
        let begins = text.starts_with(|first: char| first.is_ascii_lowercase());
        begins && text.len() <= longest && rest(text)
    };
    match key.split_once('@') {
        None => word(key, 256),
        Some((tenant, vendor)) => {
            let begins = |first: char| first.is_ascii_lowercase() || first.is_ascii_digit();
            tenant.starts_with(begins) && tenant.len() <= 241 && rest(tenant) && word(vendor, 14)
        }
    }
}

fn is_state_value(value: &str) -> bool {
    let of_value = |byte: u8| matches!(byte, b' '..=b'~') && byte != b',' && byte != b'=';
    (1..=256).contains(&value.len()) && value.bytes().all(of_value) && !value.ends_with(' ')
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    const SENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn headers(pairs: &[(HeaderName, &str)]) -> HeaderMap {
        let pair = |(name, value): &(HeaderName, &str)| {
            (
                name.clone(),
                HeaderValue::from_str(value).expect("a header"),
            )
        };
        let mut headers = HeaderMap::new();
        for (name, value) in pairs.iter().map(pair) {
            headers.append(name, value);
        }
        headers
    }

    #[test]
    fn r14_a_request_goes_on_with_its_callers_trace_in_a_span_of_its_own() {
        let trace = Trace::of(&headers(&[
            (TRACEPARENT, SENT),
            (TRACESTATE, "rojo=00f067aa0ba902b7 , \t"),
            (TRACESTATE, "t61rcw@congo=a b"),
        ]));
        let text = trace.to_string();
        assert!(text.starts_with("00-0af7651916cd43dd8448eb211c80319c-"));
        assert!(text.ends_with("-01") && !text.contains("b7ad6b7169203331"));
        assert_eq!(
            trace.state(),
            Some("rojo=00f067aa0ba902b7,t61rcw@congo=a b")
        );
        let outbound = trace.child();
        assert_eq!(
            (outbound.id(), outbound.state()),
            (trace.id(), trace.state())
        );
        assert_ne!(outbound.to_string(), text);
        assert_eq!(trace.id(), "0af7651916cd43dd8448eb211c80319c");
    }

    #[test]
    fn a_traceparent_that_is_not_valid_begins_a_new_trace() {
        for wrong in [
            "",
            "00",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319g-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319-cb7ad6b7169203331-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "0-0af7651916cd43dd8448eb211c80319cb-b7ad6b7169203331-01",
            "+0-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01.more",
        ] {
            assert_eq!(Trace::parse(wrong), None, "{wrong}");
        }
        let later = format!("cc{}-what-comes-later", &SENT[2..]);
        let read = Trace::parse(&later).expect("a later version begins the same way");
        assert_eq!(read.to_string(), SENT);
        let flags = Trace::parse(&SENT.replace("-01", "-ff")).expect("flags may be unknown");
        assert!(flags.to_string().ends_with("-03"), "{flags}");
        let twice = headers(&[
            (TRACEPARENT, SENT),
            (TRACEPARENT, SENT),
            (TRACESTATE, "a=b"),
        ]);
        let begun = Trace::of(&twice);
        assert_ne!(begun.id(), Trace::parse(SENT).expect("it is valid").id());
        assert_eq!(
            begun.state(),
            None,
            "it belongs to the trace that was not taken"
        );
    }

    #[test]
    fn a_tracestate_is_passed_on_whole_or_not_at_all() {
        let of = |state: &str| {
            let trace = Trace::of(&headers(&[(TRACEPARENT, SENT), (TRACESTATE, state)]));
            trace.state().map(str::to_owned)
        };
        assert_eq!(of("a=1,, b=2 ").as_deref(), Some("a=1,b=2"));
        assert_eq!(of("0t@v=1").as_deref(), Some("0t@v=1"));
        for wrong in [
            "", "a", "a=", "=1", "A=1", "a=1,a=2", "0a=1", "a@=1", "@a=1", "a=1=2", "a =1",
        ] {
            assert_eq!(of(wrong), None, "{wrong:?}");
        }
        let members = |count: usize| -> String {
            let members: Vec<String> = (0..count).map(|n| format!("k{n}=v")).collect();
            members.join(",")
        };
        assert!(of(&members(32)).is_some());
        assert_eq!(of(&members(33)), None);
        assert!(of(&format!("a={}", "v".repeat(256))).is_some());
        assert_eq!(of(&format!("a={}", "v".repeat(257))), None);
    }

    proptest! {
        #[test]
        fn what_is_read_is_what_was_sent(trace in 1..u128::MAX, span in 1..u64::MAX, flags in 0..4_u8) {
            let sent = format!("00-{trace:032x}-{span:016x}-{flags:02x}");
            prop_assert_eq!(Trace::parse(&sent).expect("it is valid").to_string(), sent);
        }

        #[test]
        fn nothing_that_is_sent_leads_astray(parent in "\\PC{0,60}|[0-9a-f-]{50,60}", state in "[ -~]{0,40}") {
            if let Some(read) = Trace::parse(&parent) {
                prop_assert_eq!(read.to_string()[3..52].to_owned(), parent[3..52].to_owned());
            }
            if let Some(valid) = valid_state(&state) {
                prop_assert_eq!(valid_state(&valid), Some(valid.clone()));
            }
        }

        #[test]
        fn new_traces_are_valid(_ in 0..100) {
            let begun = Trace::begin();
            prop_assert_eq!(Trace::parse(&begun.to_string()), Some(begun));
        }
    }
}
