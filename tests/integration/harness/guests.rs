//! The guests under `tests/guests`, built once per run.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use super::Mode;
use super::command::succeed;

/// The program under test: `amphi-under-test`, which cargo builds beside the tests. In `tests/adversary`, it is the
/// adversary's own binary, which has the same commands, so that `cargo run` builds only one binary.
pub const AMPHI: Amphi = Amphi;

/// The type of [`AMPHI`]: it can be used as the path of a program.
#[derive(Debug, Clone, Copy)]
pub struct Amphi;

impl AsRef<OsStr> for Amphi {
    fn as_ref(&self) -> &OsStr {
        static PATH: LazyLock<PathBuf> = LazyLock::new(|| {
            let this = std::env::current_exe().expect("a process knows its program");
            if this.file_stem() == Some(OsStr::new("adversary")) {
                return this;
            }
            let mut folders = this.ancestors().skip(1);
            folders
                .find_map(|folder| {
                    Some(folder.join("amphi-under-test")).filter(|path| path.is_file())
                })
                .expect("cargo builds the binaries of a package before its tests run")
        });
        PATH.as_os_str()
    }
}

/// The folder of the guests.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("guests")
}

/// The component of a guest with the views of `mode`.
pub fn built(guest: &str, mode: Mode) -> PathBuf {
    LazyLock::force(&BUILT);
    folder().join(format!("target/amphi/{guest}.{mode}.wasm"))
}

/// The component of `behaviour` with the views of `mode`.
pub fn behaviour(mode: Mode) -> PathBuf {
    built("behaviour", mode)
}

/// A component of `misfits`, which the host refuses or has to distrust.
pub fn misfit(name: &str) -> PathBuf {
    LazyLock::force(&MISFITS);
    folder().join(format!(
        "target/amphi/wasm32-wasip2/release/examples/{name}.wasm"
    ))
}

/// The SDK's bindings of a world, as the build script of the misfits has generated them from `guest-sdk/wit`.
pub fn generated_bindings(world: &str) -> PathBuf {
    LazyLock::force(&GENERATED);
    folder().join(format!("target/amphi/bindings/{world}.rs"))
}

static BUILT: LazyLock<()> =
    LazyLock::new(|| succeed(Command::new(AMPHI).arg("build").arg(folder())));

/// Built by cargo alone, because `amphi build` would refuse them.
static MISFITS: LazyLock<()> = LazyLock::new(|| {
    LazyLock::force(&BUILT);
    LazyLock::force(&GENERATED);
});

/// The misfits do not need the SDK: they can be built when its bindings are missing or wrong.
static GENERATED: LazyLock<()> = LazyLock::new(|| {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(folder().join("misfits"));
    // The same variable and target folder as `amphi build`, so that shared dependencies are compiled once.
    cargo.env("__CARGO_DEFAULT_LIB_METADATA", "amphi");
    cargo.args([
        "build",
        "--release",
        "--examples",
        "--target",
        "wasm32-wasip2",
        "--target-dir",
        "../target/amphi",
    ]);
    succeed(&mut cargo);
});
