//! The `amphi` binary, for the tests of this package.

fn main() -> std::process::ExitCode {
    amphi::cli::run()
}
