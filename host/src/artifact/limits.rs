//! Every limit on artifacts, and the error that names a broken one.

use std::fmt;
use std::io;

/// Limits on what is read of an artifact, from a file or from a registry. Nothing is kept or written beyond them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// The most bytes of `index.json` and of `oci-layout`.
    pub index_bytes: u64,
    /// The most manifests in `index.json`: one of the app, and those of signatures.
    pub manifests: usize,
    /// The most bytes of a manifest: what registries accept, too.
    pub manifest_bytes: u64,
    /// The most bytes of the configuration.
    pub config_bytes: u64,
    /// The most files.
    pub files: usize,
    /// The most bytes of a component.
    pub component_bytes: u64,
    /// The most bytes of a migration.
    pub migration_bytes: u64,
    /// The most bytes of a static file.
    pub static_bytes: u64,
    /// The most bytes of all files together, each counted where it stands.
    pub total_bytes: u64,
    /// The most signatures.
    pub signatures: usize,
    /// The most bytes of a signature.
    pub signature_bytes: u64,
    /// The most bytes of a file's path in the app.
    pub path_bytes: usize,
    /// The most bytes of one name in a path.
    pub name_bytes: usize,
    /// The most names in a path.
    pub path_depth: usize,
}

/// The limits of every host.
pub const LIMITS: Limits = Limits {
    index_bytes: 64 << 10,
    manifests: 9,
    manifest_bytes: 4 << 20,
    config_bytes: 1 << 20,
    files: 4_096,
    component_bytes: 256 << 20,
    migration_bytes: 16 << 20,
    static_bytes: 1 << 30,
    total_bytes: 2 << 30,
    signatures: 16,
    signature_bytes: 4 << 10,
    path_bytes: 1_024,
    name_bytes: 255,
    path_depth: 16,
};

impl Limits {
    /// The most entries of the file of an artifact: its contents, and the few files and folders of the layout.
    pub fn entries(&self) -> usize {
        self.files + 2 * self.manifests + self.signatures + 8
    }

    /// The most bytes of the file of an artifact: its contents, the heads of its entries, and their padding.
    pub fn archive_bytes(&self) -> u64 {
        let manifests = self.manifest_bytes + self.config_bytes;
        let each = 2 * 512 * self.entries() as u64;
        self.total_bytes + self.manifests as u64 * manifests + each + (1 << 20)
    }
}

/// Why an artifact is not taken.
#[derive(Debug)]
pub enum ArtifactError {
    /// The artifact is wrong, or over a limit: a sentence.
    Refused(String),
    /// A file or the network failed: what was being done, and the error.
    Io(String, io::Error),
}

impl ArtifactError {
    /// A refusal.
    pub fn refused(sentence: impl Into<String>) -> ArtifactError {
        ArtifactError::Refused(sentence.into())
    }

    /// For `map_err`: an error of a file, with what was being done.
    pub fn io(what: impl fmt::Display) -> impl FnOnce(io::Error) -> ArtifactError {
        move |error| ArtifactError::Io(what.to_string(), error)
    }
}

impl fmt::Display for ArtifactError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ArtifactError::Refused(sentence) => f.write_str(sentence),
            ArtifactError::Io(what, error) => write!(f, "{what}: {error}"),
        }
    }
}

impl std::error::Error for ArtifactError {}

/// The result of reading or writing an artifact.
pub type Result<T> = std::result::Result<T, ArtifactError>;

/// Refuses a number that is over its limit. `what`: its name, as in "the manifest has".
pub(super) fn within(what: impl fmt::Display, number: u64, max: u64, unit: &str) -> Result<()> {
    match number <= max {
        true => Ok(()),
        false => Err(ArtifactError::refused(format!(
            "{what} {number} {unit}: the most is {max}"
        ))),
    }
}
