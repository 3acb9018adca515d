//! A component whose `handle` does not have the type that the contract says.

wit_bindgen::generate!({
    inline: "
        package tests:misfits;
        world other-handle {
            export handle: func(request: string) -> string;
        }
    ",
});

struct Misfit;

impl Guest for Misfit {
    fn handle(request: String) -> String {
        request
    }
}

export!(Misfit);
