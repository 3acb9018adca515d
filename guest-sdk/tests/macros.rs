//! What the compiler says about mistakes in views. Its messages are part of the product, so `tests/macros/*.stderr` has
//! them word for word. `TRYBUILD=overwrite cargo test -p amphi-sdk` writes these files anew.

#[test]
fn mistakes_are_explained() {
    trybuild::TestCases::new().compile_fail("tests/macros/*.rs");
}
