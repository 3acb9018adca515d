//! An async component whose `describe` never ends.

wit_bindgen::generate!({
    path: "../../../guest-sdk/wit",
    world: "amphi:view/async-views",
    generate_all,
});

struct Endless;

impl Guest for Endless {
    async fn produce() -> Result<(), Error> {
        Ok(())
    }

    fn describe() -> Vec<ViewInfo> {
        loop {
            std::hint::black_box(());
        }
    }

    async fn handle(_: u32, _: Request) -> Result<Response, Error> {
        Err(Error {
            status: 500,
            message: String::new(),
            detail: None,
        })
    }
}

export!(Endless);
