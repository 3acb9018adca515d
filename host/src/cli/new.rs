//! `amphi new`: makes a small app that can be built and run without a change.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;
use include_dir::{Dir, DirEntry, include_dir};

use super::routes::print;

/// The files of the new app. Files such as `Cargo.toml` have the additional extension `.tmpl`, because cargo and git
/// would otherwise use them in this repository, too.
static TEMPLATE: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/templates/new");

#[derive(Args)]
pub(super) struct Arguments {
    /// Folder to make; its last part is the app's name.
    path: PathBuf,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let path = &arguments.path;
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
    if !name.starts_with(|c: char| c.is_ascii_lowercase()) || !name.chars().all(letters) {
        bail!(
            "`{name}` cannot be an app's name: use lower-case letters, digits, `-` and `_`, beginning with a letter"
        );
    }
    if path.exists() {
        bail!(
            "{} exists already: choose another name, or remove it",
            path.display()
        );
    }
    write(&TEMPLATE, path, &|text| {
        text.replace("{{name}}", name).replace("{{sdk}}", &sdk())
    })?;
    print(&format!(
        "Made {0}. To see it:\n\n    cd {0}\n    amphi up\n",
        path.display()
    ))
}

/// The SDK as a dependency of the app: by path if the sources that this host was built from are still there, else the
/// released version.
fn sdk() -> String {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("guest-sdk");
    match beside.join("Cargo.toml").is_file() {
        true => format!("{{ path = {:?} }}", beside.display().to_string()),
        false => format!("{:?}", env!("CARGO_PKG_VERSION")),
    }
}

fn write(from: &Dir<'_>, to: &Path, fill: &impl Fn(&str) -> String) -> anyhow::Result<()> {
    std::fs::create_dir_all(to).with_context(|| format!("making {}", to.display()))?;
    for entry in from.entries() {
        let name = entry
            .path()
            .file_name()
            .and_then(|name| name.to_str())
            .context("the template's names are plain")?;
        let target = to.join(name.trim_end_matches(".tmpl"));
        match entry {
            DirEntry::Dir(dir) => write(dir, &target, fill)?,
            DirEntry::File(file) => {
                let text = file
                    .contents_utf8()
                    .context("the template's files are text")?;
                std::fs::write(&target, fill(text))
                    .with_context(|| format!("writing {}", target.display()))?;
            }
        }
    }
    Ok(())
}
