//! A command of WASI, with no views.

fn main() {
    println!("not a view");
}
