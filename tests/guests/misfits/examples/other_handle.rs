//! A component whose `handle` has another type than the contract says.

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
