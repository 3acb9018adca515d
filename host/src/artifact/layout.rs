//! The records of an OCI image layout, as far as artifacts use them, and the media types of an app.
//!
//! Fields that are not listed here are ignored, as the specification of OCI images demands. A field that is listed twice
//! is an error: two readers could otherwise see two different artifacts with one digest.

use std::fmt;
use std::str::FromStr;

use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};

/// The type of an app's manifest.
pub const APP: &str = "application/vnd.amphi.app.v1";
/// The type of the manifest that carries signatures of another manifest.
pub const SIGNATURES: &str = "application/vnd.amphi.signatures.v1";
/// The media type of manifests.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// The media type of the list of manifests.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// The media type of the app's part of the configuration.
pub const CONFIG: &str = "application/vnd.amphi.config.v1+toml";
/// The media type of components: what registries and tools for WebAssembly know.
pub const WASM: &str = "application/wasm";
/// The media type of migrations.
pub const SQL: &str = "application/sql";
/// The media type of static files.
pub const FILE: &str = "application/octet-stream";
/// The media type of one signature: the text of a `.minisig` file.
pub const MINISIGN: &str = "application/vnd.amphi.signature.v1.minisign";
/// The media type of a configuration that says nothing, for manifests that need none.
pub const EMPTY: &str = "application/vnd.oci.empty.v1+json";
/// The content of such a configuration.
pub const EMPTY_CONTENT: &[u8] = b"{}";

/// The file that says which version of the layout a folder has, with its content.
pub const LAYOUT: (&str, &[u8]) = ("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
/// The file with the list of manifests.
pub const INDEX_FILE: &str = "index.json";
/// The name of the app's part of the configuration, as tools show it, and in an unpacked version.
pub const CONFIG_FILE: &str = "amphi.toml";
/// The folder of the contents, each named by its digest.
pub const BLOBS: &str = "blobs/sha256/";

/// The digest of a content: SHA-256. Other algorithms are refused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of `content`.
    pub fn of(content: &[u8]) -> Digest {
        let mut hashing = Hashing::default();
        hashing.add(content);
        hashing.end()
    }

    /// The digest in hexadecimal digits, without the name of the algorithm.
    pub fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Reads 64 hexadecimal digits. Capital letters are refused: each digest has one name.
    pub fn from_hex(text: &str) -> Option<Digest> {
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        let text = text.as_bytes();
        let mut bytes = [0; 32];
        if text.len() != 2 * bytes.len() {
            return None;
        }
        for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Some(Digest(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = String;

    fn from_str(text: &str) -> Result<Digest, String> {
        let hex = text.strip_prefix("sha256:");
        hex.and_then(Digest::from_hex).ok_or_else(|| {
            "this is not a digest: it is `sha256:` with 64 hexadecimal digits (0-9, a-f)".to_owned()
        })
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A digest that is computed while its content passes by.
pub struct Hashing(Context);

impl Default for Hashing {
    fn default() -> Hashing {
        Hashing(Context::new(&SHA256))
    }
}

impl Hashing {
    /// Adds the next piece of the content.
    pub fn add(&mut self, piece: &[u8]) {
        self.0.update(piece);
    }

    /// The digest of all pieces.
    pub fn end(self) -> Digest {
        let digest = self.0.finish();
        let bytes = digest.as_ref().try_into();
        Digest(bytes.expect("SHA-256 has 32 bytes"))
    }
}

/// A reference to a content: its type, digest and size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// The type of the content.
    pub media_type: String,
    /// What the content hashes to.
    pub digest: Digest,
    /// The number of bytes of the content.
    pub size: u64,
    /// The path of the file in the app, for layers.
    #[serde(default, skip_serializing_if = "Annotations::is_empty")]
    pub annotations: Annotations,
}

impl Descriptor {
    /// The descriptor of `content`.
    pub fn of(media_type: &str, content: &[u8]) -> Descriptor {
        Descriptor {
            media_type: media_type.to_owned(),
            digest: Digest::of(content),
            size: content.len() as u64,
            annotations: Annotations::default(),
        }
    }
}

/// The annotations that are used.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Annotations {
    /// The path of a file: tools that pull artifacts write the file there.
    #[serde(
        rename = "org.opencontainers.image.title",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub title: Option<String>,
    /// The name of a manifest in a layout: tools want one where there are several.
    #[serde(
        rename = "org.opencontainers.image.ref.name",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub name: Option<String>,
}

impl Annotations {
    fn is_empty(&self) -> bool {
        self.title.is_none() && self.name.is_none()
    }
}

/// A manifest: of an app, or of signatures.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// 2.
    pub schema_version: u32,
    /// The media type of this record.
    pub media_type: String,
    /// What it is the manifest of.
    #[serde(default)]
    pub artifact_type: String,
    /// The configuration.
    pub config: Descriptor,
    /// The files, or the signatures.
    pub layers: Vec<Descriptor>,
    /// The manifest that is signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
}

/// The list of the manifests in a layout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// 2.
    pub schema_version: u32,
    /// The media type of this record.
    #[serde(default)]
    pub media_type: Option<String>,
    /// The manifests.
    pub manifests: Vec<Descriptor>,
}
