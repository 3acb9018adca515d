//! An async component that imports the sync interface of a capability.

wit_bindgen::generate!({
    inline: "
        package tests:misfits;
        world async-blocking {
            import amphi:view/database@0.1.0;
            use amphi:view/types@0.1.0.{request, response, error, view-info};
            export describe: func() -> list<view-info>;
            export handle: async func(view: u32, request: request) -> result<response, error>;
        }
    ",
    path: "../../../guest-sdk/wit",
    world: "tests:misfits/async-blocking",
    generate_all,
});

struct Misfit;

impl Guest for Misfit {
    fn describe() -> Vec<ViewInfo> {
        Vec::new()
    }

    async fn handle(_: u32, _: Request) -> Result<Response, Error> {
        let changed = amphi::view::database::execute("default", "delete from rows", &[]);
        Ok(Response {
            status: if changed.is_ok() { 200 } else { 500 },
            headers: Vec::new(),
            body: Vec::new(),
        })
    }
}

export!(Misfit);
