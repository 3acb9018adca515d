//! An async component that imports the sync interface of a capability.

wit_bindgen::generate!({
    inline: "
        package tests:misfits;
        world async-blocking {
            import amphi:view/database@0.3.0;
            use amphi:view/types@0.3.0.{request, response, error, view-info};
            export describe: func() -> list<view-info>;
            export handle: async func(view: u32, request: request) -> result<response, error>;
            export produce: async func() -> result<_, error>;
        }
    ",
    path: "../../../guest-sdk/wit",
    world: "tests:misfits/async-blocking",
    generate_all,
});

use amphi::view::types::ResponseBody;

struct Misfit;

impl Guest for Misfit {
    async fn produce() -> Result<(), Error> {
        Ok(())
    }

    fn describe() -> Vec<ViewInfo> {
        Vec::new()
    }

    async fn handle(_: u32, _: Request) -> Result<Response, Error> {
        let changed = amphi::view::database::execute("default", "delete from rows", &[]);
        Ok(Response {
            status: if changed.is_ok() { 200 } else { 500 },
            headers: Vec::new(),
            body: ResponseBody::Bytes(Vec::new()),
        })
    }
}

export!(Misfit);
