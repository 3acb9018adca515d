//! A sync component that imports the timer, which only async components may import.

wit_bindgen::generate!({
    inline: "
        package tests:misfits;
        world sync-timer {
            import amphi:view/timer@0.3.0;
            use amphi:view/types@0.3.0.{request, response, error, view-info};
            export describe: func() -> list<view-info>;
            export handle: func(view: u32, request: request) -> result<response, error>;
            export produce: func() -> result<_, error>;
        }
    ",
    path: "../../../guest-sdk/wit",
    world: "tests:misfits/sync-timer",
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
        wit_bindgen::block_on(amphi::view::timer::sleep(1));
        Ok(Response {
            status: 200,
            headers: Vec::new(),
            body: ResponseBody::Bytes(Vec::new()),
        })
    }
}

export!(Misfit);
