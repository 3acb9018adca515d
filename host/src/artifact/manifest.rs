//! The manifest of an app, checked: what every reader of artifacts begins with.

use std::collections::BTreeSet;
use std::fmt;

use serde::de::DeserializeOwned;

use super::layout::{
    APP, CONFIG, CONFIG_FILE, Descriptor, Digest, EMPTY, FILE, MANIFEST, MINISIGN, Manifest,
    SIGNATURES, SQL, WASM,
};
use super::limits::{ArtifactError, Limits, Result, within};

/// What a file of an app is. The folder that the file is in says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `components/MODULE.MODE.wasm`
    Component,
    /// `migrations/DATABASE/NAME.sql`
    Migration,
    /// `static/…`
    Static,
}

impl Kind {
    /// The media type of such files.
    pub fn media_type(self) -> &'static str {
        match self {
            Kind::Component => WASM,
            Kind::Migration => SQL,
            Kind::Static => FILE,
        }
    }

    fn max_bytes(self, limits: &Limits) -> u64 {
        match self {
            Kind::Component => limits.component_bytes,
            Kind::Migration => limits.migration_bytes,
            Kind::Static => limits.static_bytes,
        }
    }

    /// The kind of the file with this path.
    ///
    /// # Errors
    /// When no file of an app has such a path: it would lead out of the app's folder, is too long or deep, or is in none
    /// of the folders of an app.
    pub fn of(path: &str, limits: &Limits) -> Result<Kind> {
        let wrong = |why: &str| {
            let start: String = path.chars().take(100).collect();
            Err(ArtifactError::refused(format!(
                "`{}` cannot be the path of a file: {why}",
                start.escape_debug()
            )))
        };
        if path.len() > limits.path_bytes {
            return wrong(&format!("it has over {} bytes", limits.path_bytes));
        }
        if path.chars().any(|c| c.is_control() || c == '\\') {
            return wrong("it has a control character or a backslash in it");
        }
        let names: Vec<&str> = path.split('/').collect();
        if names.iter().any(|name| ["", ".", ".."].contains(name)) {
            return wrong(
                "it is a sequence of names with `/` between, and none is empty, `.` or `..`",
            );
        }
        if names.iter().any(|name| name.len() > limits.name_bytes) {
            return wrong(&format!("a name has over {} bytes", limits.name_bytes));
        }
        if names.len() > limits.path_depth {
            return wrong(&format!("it is over {} names deep", limits.path_depth));
        }
        match names[..] {
            ["components", name] if name.ends_with(".wasm") => Ok(Kind::Component),
            ["migrations", _, name] if name.ends_with(".sql") => Ok(Kind::Migration),
            ["static", _, ..] => Ok(Kind::Static),
            _ => wrong(
                "an app has `components/MODULE.MODE.wasm`, `migrations/DATABASE/NAME.sql` and `static/…`",
            ),
        }
    }
}

/// A file of an app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppFile {
    /// Its path in the app.
    pub path: String,
    /// What it is.
    pub kind: Kind,
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
}

/// A manifest of an app, checked against the limits. Its digest is the digest of the artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppManifest {
    /// The digest of `bytes`.
    pub digest: Digest,
    /// The manifest as it was written: what is signed.
    pub bytes: Vec<u8>,
    /// The app's part of the configuration.
    pub config: Descriptor,
    /// The files, in the order of their paths.
    pub files: Vec<AppFile>,
}

impl AppManifest {
    /// Reads and checks a manifest.
    ///
    /// # Errors
    /// When it is not the manifest of an app, is over a limit, or has a wrong or double path.
    pub fn parse(bytes: Vec<u8>, limits: &Limits) -> Result<AppManifest> {
        within(
            "the manifest has",
            bytes.len() as u64,
            limits.manifest_bytes,
            "bytes",
        )?;
        let manifest: Manifest = json("the manifest", &bytes)?;
        is_manifest(&manifest, APP)?;
        is_type("the configuration", &manifest.config, CONFIG)?;
        within(
            format_args!("the configuration `{CONFIG_FILE}` has"),
            manifest.config.size,
            limits.config_bytes,
            "bytes",
        )?;
        within(
            "the app has",
            manifest.layers.len() as u64,
            limits.files as u64,
            "files",
        )?;
        let mut files = Vec::new();
        let mut total = 0_u64;
        for layer in manifest.layers {
            let Some(path) = layer.annotations.title.clone() else {
                return Err(ArtifactError::refused(format!(
                    "the layer {} has no path (the annotation `org.opencontainers.image.title`)",
                    layer.digest
                )));
            };
            let kind = Kind::of(&path, limits)?;
            is_type(format_args!("`{path}`"), &layer, kind.media_type())?;
            let what = format!("`{path}` has");
            within(what, layer.size, kind.max_bytes(limits), "bytes")?;
            // At most `files` sizes, each below `static_bytes`: the sum does not overflow.
            total = total.saturating_add(layer.size);
            files.push(AppFile {
                path,
                kind,
                digest: layer.digest,
                size: layer.size,
            });
        }
        within(
            "all files together have",
            total,
            limits.total_bytes,
            "bytes",
        )?;
        files.sort_by(|a, b| a.path.cmp(&b.path));
        no_path_twice(&files)?;
        Ok(AppManifest {
            digest: Digest::of(&bytes),
            bytes,
            config: manifest.config,
            files,
        })
    }

    /// A manifest whose bytes are these, and that names nothing: for fuzzing of signatures.
    pub(crate) fn unchecked(bytes: Vec<u8>) -> AppManifest {
        AppManifest {
            digest: Digest::of(&bytes),
            config: Descriptor::of(CONFIG, &[]),
            files: Vec::new(),
            bytes,
        }
    }

    /// The descriptor of this manifest.
    pub fn descriptor(&self) -> Descriptor {
        Descriptor::of(MANIFEST, &self.bytes)
    }

    /// The contents that it names, each once: the configuration, then the files.
    pub fn contents(&self) -> Vec<(String, Digest, u64)> {
        let config = (CONFIG_FILE.to_owned(), self.config.digest, self.config.size);
        let files = (self.files.iter()).map(|file| (file.path.clone(), file.digest, file.size));
        let mut seen = BTreeSet::new();
        std::iter::once(config)
            .chain(files)
            .filter(|(_, digest, _)| seen.insert(*digest))
            .collect()
    }
}

/// Refuses a path that is there twice, or that is a file and a folder. The files are in the order of their paths.
fn no_path_twice(files: &[AppFile]) -> Result<()> {
    let mut known = BTreeSet::new();
    for AppFile { path, .. } in files {
        if !known.insert(path.as_str()) {
            return Err(ArtifactError::refused(format!(
                "two layers have the path `{path}`"
            )));
        }
    }
    for AppFile { path, .. } in files {
        let mut folder = path.as_str();
        while let Some((parent, _)) = folder.rsplit_once('/') {
            if known.contains(parent) {
                return Err(ArtifactError::refused(format!(
                    "`{parent}` is a file, and the path `{path}` needs a folder of this name"
                )));
            }
            folder = parent;
        }
    }
    Ok(())
}

/// The signatures that a manifest of signatures names. None: it belongs to another app.
pub(super) fn signatures(
    bytes: &[u8],
    of: Digest,
    limits: &Limits,
) -> Result<Option<Vec<Descriptor>>> {
    let manifest: Manifest = json("the manifest of signatures", bytes)?;
    is_manifest(&manifest, SIGNATURES)?;
    is_type("its configuration", &manifest.config, EMPTY)?;
    within(
        "the manifest has",
        manifest.layers.len() as u64,
        limits.signatures as u64,
        "signatures",
    )?;
    for layer in &manifest.layers {
        is_type("a signature", layer, MINISIGN)?;
        within(
            "a signature has",
            layer.size,
            limits.signature_bytes,
            "bytes",
        )?;
    }
    let is_its = manifest.subject.is_some_and(|subject| subject.digest == of);
    Ok(is_its.then_some(manifest.layers))
}

/// What a manifest is of: its `artifactType`.
pub(super) fn artifact_type(bytes: &[u8]) -> Result<String> {
    let manifest: Manifest = json("the manifest", bytes)?;
    Ok(manifest.artifact_type)
}

fn is_manifest(manifest: &Manifest, artifact_type: &str) -> Result<()> {
    let found = [
        manifest.media_type.as_str(),
        manifest.artifact_type.as_str(),
    ];
    if manifest.schema_version != 2 || found != [MANIFEST, artifact_type] {
        let found: String = found.join(", ").chars().take(200).collect();
        return Err(ArtifactError::refused(format!(
            "this is not the manifest of an app of Amphi: its types are `{}`, and have to be `{MANIFEST}, {artifact_type}`",
            found.escape_debug()
        )));
    }
    Ok(())
}

fn is_type(what: impl fmt::Display, descriptor: &Descriptor, wanted: &str) -> Result<()> {
    if descriptor.media_type != wanted {
        let found: String = descriptor.media_type.chars().take(100).collect();
        return Err(ArtifactError::refused(format!(
            "{what} is of the type `{}`, which has to be `{wanted}`",
            found.escape_debug()
        )));
    }
    Ok(())
}

/// Parses JSON. serde bounds its nesting.
pub(super) fn json<T: DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes)
        .map_err(|error| ArtifactError::refused(format!("{what} cannot be read: {error}")))
}
