//! The entry points for fuzzing: every reader of bytes that guests, clients or servers choose, as a function of bytes.
//!
//! Each function returns for every input, without a panic, in time and memory linear in the input.

use std::net::SocketAddr;
use std::path::{Component, Path};

use http::{HeaderMap, HeaderName, HeaderValue, Method, header};

use crate::app::router::Router;
use crate::artifact::registry::Reference;
use crate::artifact::signature::{self, Trust};
use crate::artifact::{AppManifest, LIMITS};
use crate::config::{Portable, TrustedKey};
use crate::guest::run;
use crate::http::authority::Host;
use crate::http::proxies::{Addresses, Proxies};
use crate::http::trace_context::{TRACEPARENT, TRACESTATE, Trace};
use crate::http::{accept as accept_headers, message};

pub use crate::database::postgres::fuzz as postgres;

/// Parses lines of `name: value`. Lines that are no valid headers are left out.
fn headers(data: &[u8]) -> HeaderMap {
    let line = |line: &[u8]| {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let name = HeaderName::from_bytes(&line[..colon]).ok()?;
        Some((name, HeaderValue::from_bytes(&line[colon + 1..]).ok()?))
    };
    let mut headers = HeaderMap::new();
    for (name, value) in data.split(|byte| *byte == b'\n').filter_map(line) {
        headers.append(name, value);
    }
    headers
}

/// Makes values of one header, one value from each line.
fn values(name: &HeaderName, data: &[u8]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for value in data.split(|byte| *byte == b'\n') {
        if let Ok(value) = HeaderValue::from_bytes(value) {
            headers.append(name, value);
        }
    }
    headers
}

/// Reads `accept` as a weighted list. All headers that are weighted lists are read by the same function.
pub fn accept(data: &[u8]) {
    let headers = values(&header::ACCEPT, data);
    for (name, weight) in accept_headers::weighted(&headers, header::ACCEPT) {
        assert!(!name.is_empty() && weight <= 1000);
    }
    let _ = accept_headers::form(&headers);
}

/// Reads a trace context: `traceparent` is in the first line, `tracestate` in the others.
pub fn trace(data: &[u8]) {
    let mut lines = data.splitn(2, |byte| *byte == b'\n');
    let mut headers = values(&TRACEPARENT, lines.next().unwrap_or_default());
    headers.extend(values(&TRACESTATE, lines.next().unwrap_or_default()));
    let text = Trace::of(&headers).to_string();
    assert!(Trace::parse(&text).is_some());
}

/// Reads `x-forwarded-for` and `forwarded` of a trusted proxy, and the network of a proxy.
pub fn proxies(data: &[u8]) {
    let peer = SocketAddr::from(([10, 0, 0, 1], 1));
    let network = Proxies::parse("10.0.0.0/8").expect("it is one");
    for (addresses, name) in [
        (
            Addresses::XForwardedFor,
            HeaderName::from_static("x-forwarded-for"),
        ),
        (Addresses::Forwarded, header::FORWARDED),
    ] {
        let proxies = Proxies::new(vec![network], addresses);
        let _ = proxies.client(peer, &values(&name, data));
        let _ = proxies.request_id(peer, &headers(data));
    }
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = Proxies::parse(text);
    }
}

/// Reads the `host` of a request, routes the target of a request, and adds a pattern to the router.
pub fn target(data: &[u8]) {
    let _ = Host::parse(data);
    if let Ok(text) = std::str::from_utf8(data) {
        let mut router = Router::default();
        for pattern in ["/a/{b}/{*c}", "/é/x-{b}.txt", text] {
            let _ = router.add(&Method::GET, pattern, "a view");
        }
        let _ = router.route(&Method::POST, text);
        let _ = router.route(&Method::HEAD, text);
    }
}

/// Converts the headers of a request, from lines of `name: value`, to the form that views get.
pub fn request_headers(data: &[u8]) {
    let (mut parts, ()) = http::Request::new(()).into_parts();
    parts.headers = headers(data);
    let given = message::contract_headers(&parts, &Default::default());
    assert!(given.len() <= parts.headers.len());
}

/// Makes the name of a function in a component readable, as for a backtrace.
pub fn function_name(data: &[u8]) {
    if let Ok(name) = std::str::from_utf8(data) {
        assert!(run::backtrace::demangled(name).len() <= 600);
    }
}

/// Reads the manifest of an artifact, as from a registry.
pub fn artifact_manifest(data: &[u8]) {
    let Ok(manifest) = AppManifest::parse(data.to_vec(), &LIMITS) else {
        return;
    };
    let total: u64 = manifest.files.iter().map(|file| file.size).sum();
    assert!(total <= LIMITS.total_bytes && manifest.files.len() <= LIMITS.files);
    for file in &manifest.files {
        let plain = |part| matches!(part, Component::Normal(_));
        assert!(Path::new(&file.path).components().all(plain));
    }
}

/// Reads the configuration of an artifact, and checks it without a place.
pub fn artifact_config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(portable) = Portable::parse(Path::new("fuzz"), text) {
        let again = Portable::parse(Path::new("fuzz"), &portable.text());
        assert!(again.is_ok_and(|again| again.needs == portable.needs));
        let _ = portable.alone(Path::new("/nowhere"));
    }
}

/// Reads the signature of an artifact, and compares it with a key.
pub fn artifact_signature(data: &[u8]) {
    const KEY: &str = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3";
    let manifest = br#"{"schemaVersion":2}"#.to_vec();
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let key = TrustedKey::parse(KEY).expect("it is a key");
    let manifest = AppManifest::unchecked(manifest);
    let signatures = [text.to_owned()];
    let checked = Trust::Keys(vec![key]).check(&manifest, &signatures);
    assert!(checked.is_err(), "nobody has signed it");
    let _ = signature::names(&signatures);
    let _ = TrustedKey::parse(text);
}

/// Reads a reference to an artifact in a registry.
pub fn reference(data: &[u8]) {
    if let Some(reference) = std::str::from_utf8(data)
        .ok()
        .and_then(|text| text.parse::<Reference>().ok())
    {
        let again: Reference = reference.to_string().parse().expect("it is one");
        assert!(again == reference && !reference.short_name().contains('/'));
    }
}
