//! The SDK's bindings, `guest-sdk/src/bindings/*.rs`, are what wit-bindgen generates from `guest-sdk/wit`.

use std::fs;
use std::path::Path;

use crate::harness::guests;

/// Run with `BINDINGS=overwrite` to write the files anew.
#[test]
fn the_sdk_has_the_bindings_of_its_wit() {
    let checked_in = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest-sdk/src/bindings");
    let overwrite = std::env::var("BINDINGS").is_ok_and(|value| value == "overwrite");
    for world in ["imports", "sync_views", "async_views"] {
        let generated = fs::read_to_string(guests::generated_bindings(world))
            .expect("`tests/guests/misfits/build.rs` has written it");
        let file = checked_in.join(format!("{world}.rs"));
        if overwrite {
            fs::write(&file, &generated).expect("the file can be written");
        }
        assert!(
            fs::read_to_string(&file).is_ok_and(|checked_in| checked_in == generated),
            "{} differs from what wit-bindgen generates: write it anew with \
             `BINDINGS=overwrite cargo test -p amphi-tests --test integration bindings`",
            file.display()
        );
    }
}
