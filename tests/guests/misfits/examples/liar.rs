//! A component whose `describe` and `handle` return what its settings say, including what the contract does not allow.

wit_bindgen::generate!({
    inline: "
        package tests:misfits;
        world liar {
            import amphi:view/config@0.3.0;
            use amphi:view/types@0.3.0.{request, response, error, view-info};
            export describe: func() -> list<view-info>;
            export handle: func(view: u32, request: request) -> result<response, error>;
            export produce: func() -> result<_, error>;
        }
    ",
    path: "../../../guest-sdk/wit",
    world: "tests:misfits/liar",
    generate_all,
});

use amphi::view::config;
use amphi::view::types::{ResponseBody, Route, ViewKind};

struct Liar;

fn route(method: &str, pattern: &str) -> ViewKind {
    ViewKind::Route(Route {
        method: method.into(),
        pattern: pattern.into(),
    })
}

impl Guest for Liar {
    fn produce() -> Result<(), Error> {
        Ok(())
    }

    fn describe() -> Vec<ViewInfo> {
        let view = |id, pattern: &str| ViewInfo {
            id,
            name: format!("view_{id}"),
            kind: route("GET", pattern),
            atomic: None,
            read_only: false,
            isolation: None,
            retries: 0,
            cpu_ms: None,
            timeout_ms: None,
            stream_body: false,
            middleware: Vec::new(),
        };
        match config::get("describe").as_deref() {
            Some("nothing") => Vec::new(),
            Some("an id twice") => vec![view(1, "/a"), view(1, "/b")],
            Some("a route twice") => vec![view(1, "/a"), view(2, "/a")],
            Some("an unknown method") => vec![ViewInfo {
                kind: route("brew", "/a"),
                ..view(1, "/a")
            }],
            Some("no slash") => vec![view(1, "a")],
            Some("a malformed pattern") => vec![view(1, "/a/{")],
            Some("more than its limits") => {
                vec![ViewInfo {
                    cpu_ms: Some(u32::MAX),
                    timeout_ms: Some(u32::MAX),
                    stream_body: false,
                    ..view(1, "/loop")
                }]
            }
            Some("a panic") => panic!("nothing to describe"),
            Some("an endless loop") => loop {
                std::hint::black_box(());
            },
            _ => vec![view(1, "/status"), view(2, "/error")],
        }
    }

    fn handle(view: u32, request: Request) -> Result<Response, Error> {
        let number = |name: &str| {
            config::get(name)
                .and_then(|text| text.parse().ok())
                .unwrap_or(200)
        };
        match (view, request.path.as_str()) {
            (_, "/loop") => loop {
                std::hint::black_box(());
            },
            (1, _) => Ok(Response {
                status: number("status"),
                headers: Vec::new(),
                body: ResponseBody::Bytes(Vec::new()),
            }),
            _ => Err(Error {
                status: number("error"),
                message: "an error".into(),
                detail: Some("with a detail".into()),
            }),
        }
    }
}

export!(Liar);
