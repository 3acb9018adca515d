//! The `amphi` binary.

fn main() -> std::process::ExitCode {
    amphi::cli::run()
}
