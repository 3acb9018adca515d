//! A component that was built for an earlier version of the contract.

wit_bindgen::generate!({
    inline: "
        package amphi:view@0.1.0;
        interface types {
            record response { status: u16, body: list<u8> }
        }
        world old-contract {
            use types.{response};
            export handle: func(view: u32) -> result<response>;
        }
    ",
    world: "amphi:view/old-contract",
});

struct Old;

impl Guest for Old {
    fn handle(_: u32) -> Result<Response, ()> {
        Ok(Response {
            status: 200,
            body: Vec::new(),
        })
    }
}

export!(Old);
