//! A component that imports an interface that the host does not have.

wit_bindgen::generate!({
    inline: "
        package tests:misfits;
        interface weather {
            rain: func() -> bool;
        }
        world unknown-import {
            import weather;
            use amphi:view/types@0.3.0.{request, response, error, view-info};
            export describe: func() -> list<view-info>;
            export handle: func(view: u32, request: request) -> result<response, error>;
            export produce: func() -> result<_, error>;
        }
    ",
    path: "../../../guest-sdk/wit",
    world: "tests:misfits/unknown-import",
    generate_all,
});

use amphi::view::types::ResponseBody;

struct Misfit;

impl Guest for Misfit {
    fn produce() -> Result<(), Error> {
        Ok(())
    }

    fn describe() -> Vec<ViewInfo> {
        Vec::new()
    }

    fn handle(_: u32, _: Request) -> Result<Response, Error> {
        let status = if tests::misfits::weather::rain() {
            200
        } else {
            404
        };
        Ok(Response {
            status,
            headers: Vec::new(),
            body: ResponseBody::Bytes(Vec::new()),
        })
    }
}

export!(Misfit);
