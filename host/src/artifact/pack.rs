//! Makes artifacts.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::layout::{APP, Annotations, CONFIG, Descriptor, Digest, MANIFEST, Manifest};
use super::limits::{ArtifactError, LIMITS, Result, within};
use super::manifest::{AppManifest, Kind};
use super::read::{Artifact, measure};
use super::write::Writer;
use crate::config::Config;
use crate::database::migration;

/// The files of an app, by their paths in its artifact: its `components`, which the caller has checked, and the
/// migrations and static files of its configuration.
///
/// # Errors
/// When a folder cannot be read, or has a link or a special file in it.
pub fn files(
    config: &Config,
    components: impl IntoIterator<Item = (String, PathBuf)>,
) -> Result<BTreeMap<String, PathBuf>> {
    let mut files: BTreeMap<String, PathBuf> = components.into_iter().collect();
    for (name, database) in &config.databases {
        let Some(folder) = &database.migrations else {
            continue;
        };
        let paths = migration::check_files(folder).and_then(|()| migration::paths(folder));
        let paths = paths.map_err(|error| {
            ArtifactError::refused(format!("the migrations of `{name}`: {error:#}"))
        })?;
        for path in paths {
            // Two files of one name have one version, which is refused above.
            let file = file_name(&path)?.to_owned();
            files.insert(format!("migrations/{name}/{file}"), path);
        }
    }
    if let Some(served) = &config.static_files {
        add_static(&served.dir, "static", served.hidden, &mut files)?;
    }
    Ok(files)
}

/// Adds the files that are served of a folder.
fn add_static(
    folder: &Path,
    name: &str,
    hidden: bool,
    files: &mut BTreeMap<String, PathBuf>,
) -> Result<()> {
    let reading = || ArtifactError::io(format!("reading {}", folder.display()));
    for entry in fs::read_dir(folder).map_err(reading())? {
        let entry = entry.map_err(reading())?;
        let path = entry.path();
        let file = file_name(&path)?;
        // As the host serves them: other hidden files are not.
        if file.starts_with('.') && file != ".well-known" && !hidden {
            continue;
        }
        let inner = format!("{name}/{file}");
        let kind = entry.file_type().map_err(reading())?;
        if kind.is_dir() {
            if inner.matches('/').count() >= LIMITS.path_depth {
                Kind::of(&format!("{inner}/."), &LIMITS)?;
            }
            add_static(&path, &inner, hidden, files)?;
        } else if kind.is_file() {
            files.insert(inner, path);
            let count = files.len() as u64;
            within("the app has", count, LIMITS.files as u64, "or more files")?;
        } else {
            return Err(ArtifactError::refused(format!(
                "{} is neither a file nor a folder: an artifact has no links, pipes or devices; put the file itself there",
                path.display()
            )));
        }
    }
    Ok(())
}

fn file_name(path: &Path) -> Result<&str> {
    let name = path.file_name().and_then(|name| name.to_str());
    name.ok_or_else(|| {
        ArtifactError::refused(format!(
            "the name of {} is not UTF-8, so no artifact can have it: rename the file",
            path.display()
        ))
    })
}

/// Writes an artifact to `out`: the app's part of the configuration, and its files by their paths. The same contents make
/// the same bytes. A file that is there already is replaced when the new one is complete.
///
/// # Errors
/// When a path, a number or a size is over a limit, or a file cannot be read or written.
pub fn pack(config: &str, files: &BTreeMap<String, PathBuf>, out: &Path) -> Result<Digest> {
    let config_at = Descriptor::of(CONFIG, config.as_bytes());
    let mut layers = Vec::new();
    for (path, file) in files {
        let kind = Kind::of(path, &LIMITS)?;
        let (digest, size) = measure(file, |_| Ok(()))?;
        layers.push(Descriptor {
            media_type: kind.media_type().to_owned(),
            digest,
            size,
            annotations: Annotations {
                title: Some(path.clone()),
                name: None,
            },
        });
    }
    let manifest = Manifest {
        schema_version: 2,
        media_type: MANIFEST.to_owned(),
        artifact_type: APP.to_owned(),
        config: config_at,
        layers,
        subject: None,
    };
    let bytes = serde_json::to_vec(&manifest).expect("it is plain data");
    // The reader's own checks: what is written can be read.
    let manifest = AppManifest::parse(bytes, &LIMITS)?;
    let mut writer = Writer::begin(out, &manifest, &[])?;
    for (path, digest, size) in manifest.contents() {
        let Some(mut content) = writer.content(digest, size)? else {
            continue;
        };
        match files.get(&path) {
            None => content.add(config.as_bytes())?,
            Some(file) => drop(measure(file, |piece| content.add(piece))?),
        }
        content
            .end()
            .map_err(|error| match (error, files.get(&path)) {
                (ArtifactError::Refused(_), Some(file)) => ArtifactError::refused(format!(
                    "{} was changed while it was packed: try again",
                    file.display()
                )),
                (error, _) => error,
            })?;
    }
    writer.finish(out)?;
    Ok(manifest.digest)
}

/// Writes the artifact in a file again that was unpacked into `folder`.
///
/// # Errors
/// When a file in the folder is missing, damaged or was changed, or the artifact cannot be written.
pub fn pack_again(
    manifest: &AppManifest,
    signatures: &[String],
    folder: &Path,
    out: &Path,
) -> Result<()> {
    let mut writer = Writer::begin(out, manifest, signatures)?;
    for (path, digest, size) in manifest.contents() {
        if let Some(mut content) = writer.content(digest, size)? {
            measure(&folder.join(path), |piece| content.add(piece))?;
            content.end()?;
        }
    }
    writer.finish(out)
}

/// Adds a signature, the text of a `.minisig` file, to the artifact in a file. Its digest stays the same.
///
/// # Errors
/// When the artifact has too many signatures, or the file cannot be written.
pub fn sign(artifact: &Artifact, signature: String) -> Result<()> {
    let mut signatures = artifact.signatures.clone();
    if !signatures.contains(&signature) {
        signatures.push(signature);
    }
    within(
        "it has",
        signatures.len() as u64,
        LIMITS.signatures as u64,
        "signatures",
    )?;
    let mut writer = Writer::begin(&artifact.path, &artifact.manifest, &signatures)?;
    for (path, digest, size) in artifact.manifest.contents() {
        if let Some(mut content) = writer.content(digest, size)? {
            artifact.copy_content(&format!("`{path}`"), digest, size, |piece| {
                content.add(piece)
            })?;
            content.end()?;
        }
    }
    writer.finish(&artifact.path)
}
