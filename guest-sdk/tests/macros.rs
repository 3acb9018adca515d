//! What the compiler says about mistakes in views. The texts are part of the product: see
//! `tests/macros/*.stderr`, and write them anew with `TRYBUILD=overwrite cargo test -p amphi-sdk`.

#[test]
fn mistakes_are_explained() {
    trybuild::TestCases::new().compile_fail("tests/macros/*.rs");
}
