//! What the sync and the async views share: everything that never waits.

use std::io::Write as _;

use amphi_sdk::prelude::*;

/// Asks the host for `what`, `times` times, in pieces of `bytes` bytes. `get`, `set`, `config` and `publish` are calls of
/// the context.
pub fn ask(
    (get, set, config, publish): (
        impl Fn(&str) -> Option<String>,
        impl Fn(&str, &str) -> Result<()>,
        impl Fn(&str) -> Option<String>,
        impl Fn(&str, &[u8]) -> Result<()>,
    ),
    what: &str,
    times: usize,
    bytes: usize,
) -> Result<Response> {
    let text = "x".repeat(bytes);
    match what {
        "fields" => {
            let fields: Vec<(&str, &dyn std::fmt::Display)> =
                (0..times).map(|_| ("field", &text as _)).collect();
            log::write(log::Level::Info, "greedy", &fields);
            "logged".into_response()
        }
        "random" => {
            let mut length = 0;
            for _ in 0..times {
                length += wasip2::random::random::get_random_bytes(bytes as u64).len();
            }
            length.to_string().into_response()
        }
        "insecure-random" => wasip2::random::insecure::get_insecure_random_bytes(bytes as u64)
            .len()
            .to_string()
            .into_response(),
        "error" => Err(Error::conflict(text)),
        "detail" => Err(Error::internal(text)),
        "panic" => panic!("{text}"),
        // One line of output, written in many pieces.
        "output" => {
            let mut out = std::io::stdout().lock();
            for _ in 0..times {
                out.write_all(text.as_bytes())?;
                out.flush()?;
            }
            "written".into_response()
        }
        "lines" => {
            let line = format!("{text}\n");
            let mut out = std::io::stderr().lock();
            for _ in 0..times {
                out.write_all(line.as_bytes())?;
            }
            "written".into_response()
        }
        "half-line" => {
            eprint!("half a line of {bytes}");
            print!("and another of {bytes}");
            std::io::stdout().flush()?;
            "written".into_response()
        }
        // Prints what the standard library prints for a panic, without a panic.
        "panicked" => {
            eprintln!("thread 'main' (1) panicked at src/secret.rs:{bytes}:1:\nSECRET {bytes}");
            "went on".into_response()
        }
        "error-line" => {
            eprintln!("a line of {bytes}");
            "written".into_response()
        }
        "trap" => std::arch::wasm32::unreachable(),
        "headers" => {
            let mut response = Response::new(StatusCode::OK);
            for number in 0..times {
                response
                    .headers
                    .append(format!("x-{number}"), text.as_str());
            }
            Ok(response)
        }
        "body" => text.into_response(),
        "pollables" => {
            let mut leaked = Vec::new();
            for _ in 0..times {
                leaked.push(wasip2::clocks::monotonic_clock::subscribe_duration(1));
            }
            std::mem::forget(leaked);
            "leaked".into_response()
        }
        "streams" => {
            for _ in 0..times {
                std::mem::forget(wasip2::cli::stdout::get_stdout());
            }
            "leaked".into_response()
        }
        "get" => {
            for _ in 0..times {
                get(&text);
            }
            "got".into_response()
        }
        "config" => {
            for _ in 0..times {
                config(&text);
            }
            "got".into_response()
        }
        "topic" => told(publish(&text, b"").map(|()| "published")).into_response(),
        "set" => {
            let mut count = 0;
            for number in 0..times {
                if set(&format!("{number}"), &text).is_err() {
                    break;
                }
                count += 1;
            }
            count.to_string().into_response()
        }
        "set-name" => told(set(&text, "").map(|()| "set")).into_response(),
        "environment" => {
            let count: usize = (0..times).map(|_| std::env::vars().count()).sum();
            count.to_string().into_response()
        }
        other => Err(Error::not_found(format!("nothing called {other}"))),
    }
}

/// Publishes up to `times` events of `bytes` bytes, each after a change of the context's values. Returns how many it
/// could publish, and the error that stopped it, if one did.
pub fn publish(
    set: impl Fn(&str) -> Result<()>,
    publish: impl Fn(&[u8]) -> Result<()>,
    times: usize,
    bytes: usize,
) -> Result<String> {
    let payload = vec![7; bytes];
    for number in 0..times {
        set(&format!("{number} {}", "v".repeat(8000)))?;
        if let Err(error) = publish(&payload) {
            return Ok(format!("{number} {}", error.detail().unwrap_or_default()));
        }
    }
    Ok(times.to_string())
}

/// Adds headers of about `bytes` bytes in all to a request, each of at most a kilobyte.
pub fn headers<R>(bytes: usize, request: R, add: impl Fn(R, String, String) -> R) -> R {
    (0..bytes.div_ceil(1000)).fold(request, |request, number| {
        add(request, format!("x-{number}"), "h".repeat(bytes.min(1000)))
    })
}

/// The result of a host call as text.
pub fn told<T: ToString>(result: Result<T>) -> String {
    match result {
        Ok(value) => value.to_string(),
        Err(error) => error.detail().unwrap_or("refused").to_owned(),
    }
}

pub fn heard(payload: &[u8]) -> Result<()> {
    log::info!("heard", length = payload.len());
    Ok(())
}
