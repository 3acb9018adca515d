//! A sync component that imports the async interface of a capability.

wit_bindgen::generate!({
    inline: "
        package tests:misfits;
        world sync-waiting {
            import amphi:view/database-async@0.3.0;
            use amphi:view/types@0.3.0.{request, response, error, view-info};
            export describe: func() -> list<view-info>;
            export handle: func(view: u32, request: request) -> result<response, error>;
            export produce: func() -> result<_, error>;
        }
    ",
    path: "../../../guest-sdk/wit",
    world: "tests:misfits/sync-waiting",
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
        let call = amphi::view::database_async::execute(
            "default".into(),
            "delete from rows".into(),
            Vec::new(),
        );
        let changed = wit_bindgen::block_on(call);
        Ok(Response {
            status: if changed.is_ok() { 200 } else { 500 },
            headers: Vec::new(),
            body: ResponseBody::Bytes(Vec::new()),
        })
    }
}

export!(Misfit);
