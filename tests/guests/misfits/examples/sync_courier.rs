//! A sync view that calls another view with a body of its choice, and a sync view that asks the host for the client's
//! body, whatever body its own request has.

wit_bindgen::generate!({
    inline: "
        package tests:misfits;
        world sync-courier {
            import amphi:view/body@0.3.0;
            import amphi:view/subrequest@0.3.0;
            use amphi:view/types@0.3.0.{request, response, error, view-info};
            export describe: func() -> list<view-info>;
            export handle: func(view: u32, request: request) -> result<response, error>;
            export produce: func() -> result<_, error>;
        }
    ",
    path: "../../../guest-sdk/wit",
    world: "tests:misfits/sync-courier",
    generate_all,
});

use amphi::view::body;
use amphi::view::subrequest;
use amphi::view::types::{Body, ResponseBody, Route, ViewKind};

struct Courier;

impl Guest for Courier {
    fn produce() -> Result<(), Error> {
        Ok(())
    }

    fn describe() -> Vec<ViewInfo> {
        let view = |id, pattern: &str| ViewInfo {
            id,
            name: format!("view_{id}"),
            kind: ViewKind::Route(Route {
                method: "POST".into(),
                pattern: pattern.into(),
            }),
            atomic: None,
            read_only: false,
            isolation: None,
            retries: 0,
            cpu_ms: None,
            timeout_ms: None,
            stream_body: false,
            middleware: Vec::new(),
        };
        vec![view(1, "/sync/send"), view(2, "/sync/read")]
    }

    /// `/send?own` hands on the client's body, `/send?other` other bytes; `/send?other-own` sends those to `/send?own`.
    fn handle(view: u32, request: Request) -> Result<Response, Error> {
        if view == 1 {
            let (body, query) = match request.query.split_once('-') {
                Some((_, rest)) => (Body::Bytes(b"{}".to_vec()), rest),
                None if request.query == "own" => (Body::Spooled(1 << 40), ""),
                None => (Body::Bytes(b"{}".to_vec()), ""),
            };
            let to = if query.is_empty() { "read" } else { "send" };
            return subrequest::send(&Request {
                method: "POST".into(),
                path: format!("/sync/{to}"),
                query: query.into(),
                headers: Vec::new(),
                params: Vec::new(),
                body,
            });
        }
        let told = match request.body {
            Body::Bytes(bytes) => format!("bytes {}", bytes.len()),
            Body::Spooled(length) => format!("spooled {length}"),
            Body::Arriving(length) => format!("arriving {length:?}"),
        };
        let read = body::read(0, 100_000);
        let read = read.map_or_else(
            |error| format!("{error:?}"),
            |bytes| bytes.len().to_string(),
        );
        Ok(Response {
            status: 200,
            headers: Vec::new(),
            body: ResponseBody::Bytes(format!("{told}, read {read}").into_bytes()),
        })
    }
}

export!(Courier);
