//! Writes the file of an artifact: a tar archive whose bytes depend on its contents alone.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;

use tar::Header;
use tempfile::NamedTempFile;

use super::layout::{
    BLOBS, Descriptor, Digest, EMPTY, EMPTY_CONTENT, Hashing, INDEX, INDEX_FILE, Index, LAYOUT,
    MANIFEST, MINISIGN, Manifest, SIGNATURES,
};
use super::limits::{ArtifactError, Result};
use super::manifest::AppManifest;

const BLOCK: usize = 512;

/// A file that is being written. It is beside its final path, under another name, until [`Writer::finish`]; dropping the
/// writer removes the file.
pub(super) struct Writer {
    file: BufWriter<NamedTempFile>,
    written: BTreeSet<Digest>,
}

impl Writer {
    /// Begins a file for `out`, with the manifests.
    pub(super) fn begin(out: &Path, app: &AppManifest, signatures: &[String]) -> Result<Writer> {
        let folder = folder_of(out);
        let file = NamedTempFile::new_in(folder).map_err(ArtifactError::io(format_args!(
            "making a file in {}",
            folder.display()
        )))?;
        let mut writer = Writer {
            file: BufWriter::new(file),
            written: BTreeSet::new(),
        };
        let signed = signature_manifest(&app.descriptor(), signatures);
        let named = |bytes: &[u8], name: String| {
            let mut descriptor = Descriptor::of(MANIFEST, bytes);
            descriptor.annotations.name = Some(name);
            descriptor
        };
        let mut manifests = vec![named(&app.bytes, "app".to_owned())];
        let tag = signature_tag(app.digest);
        manifests.extend(signed.iter().map(|bytes| named(bytes, tag.clone())));
        let index = Index {
            schema_version: 2,
            media_type: Some(INDEX.to_owned()),
            manifests,
        };
        let index = serde_json::to_vec(&index).expect("it is plain data");
        writer.entry(LAYOUT.0, LAYOUT.1)?;
        writer.entry(INDEX_FILE, &index)?;
        writer.whole(&app.bytes)?;
        if let Some(bytes) = signed {
            writer.whole(&bytes)?;
            writer.whole(EMPTY_CONTENT)?;
            for signature in signatures {
                writer.whole(signature.as_bytes())?;
            }
        }
        Ok(writer)
    }

    /// Adds a content, in pieces: see [`Content`]. None: it is there already.
    pub(super) fn content(&mut self, digest: Digest, size: u64) -> Result<Option<Content<'_>>> {
        if !self.written.insert(digest) {
            return Ok(None);
        }
        self.head(&format!("{BLOBS}{}", digest.hex()), size)?;
        Ok(Some(Content {
            writer: self,
            hashing: Hashing::default(),
            digest,
            size,
            left: size,
        }))
    }

    fn whole(&mut self, bytes: &[u8]) -> Result<()> {
        let digest = Digest::of(bytes);
        if let Some(mut content) = self.content(digest, bytes.len() as u64)? {
            content.add(bytes)?;
            content.end()?;
        }
        Ok(())
    }

    fn entry(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.head(name, bytes.len() as u64)?;
        self.bytes(bytes)?;
        self.pad(bytes.len() as u64)
    }

    fn head(&mut self, name: &str, size: u64) -> Result<()> {
        let mut header = Header::new_ustar();
        header
            .set_path(name)
            .expect("names in a layout are short and plain");
        header.set_size(size);
        header.set_mode(0o644);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_cksum();
        self.bytes(header.as_bytes())
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        let written = self.file.write_all(bytes);
        written.map_err(ArtifactError::io("writing the artifact"))
    }

    fn pad(&mut self, size: u64) -> Result<()> {
        let over = (size % BLOCK as u64) as usize;
        self.bytes(&[0; BLOCK][..(BLOCK - over) % BLOCK])
    }

    /// Ends the archive, and moves it to `out` when it is on the disk.
    pub(super) fn finish(mut self, out: &Path) -> Result<()> {
        self.bytes(&[0; 2 * BLOCK])?;
        let what = || format!("writing {}", out.display());
        let file = self.file.into_inner();
        let file = file.map_err(|error| ArtifactError::io(what())(error.into_error()))?;
        use std::os::unix::fs::PermissionsExt as _;
        // A temporary file is its owner's alone; an artifact has no secrets.
        let readable = std::fs::Permissions::from_mode(0o644);
        (file.as_file().set_permissions(readable))
            .and_then(|()| file.as_file().sync_all())
            .map_err(ArtifactError::io(what()))?;
        file.persist(out)
            .map_err(|error| ArtifactError::io(what())(error.error))?;
        sync_folder(folder_of(out))
    }
}

/// The folder that a file is in.
fn folder_of(file: &Path) -> &Path {
    let folder = file.parent().filter(|folder| *folder != Path::new(""));
    folder.unwrap_or(Path::new("."))
}

/// Makes sure that the names in a folder are on the disk.
///
/// # Errors
/// When the folder cannot be opened or synced.
pub fn sync_folder(folder: &Path) -> Result<()> {
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(ArtifactError::io(folder.display()))
}

/// A content that is being added.
pub(super) struct Content<'a> {
    writer: &'a mut Writer,
    hashing: Hashing,
    digest: Digest,
    size: u64,
    left: u64,
}

impl Content<'_> {
    /// Adds a piece.
    ///
    /// # Errors
    /// When there is more than the size that was announced.
    pub(super) fn add(&mut self, piece: &[u8]) -> Result<()> {
        let Some(left) = self.left.checked_sub(piece.len() as u64) else {
            return Err(ArtifactError::refused(format!(
                "it has more than the {} bytes that the manifest says",
                self.size
            )));
        };
        self.left = left;
        self.hashing.add(piece);
        self.writer.bytes(piece)
    }

    /// Ends the content.
    ///
    /// # Errors
    /// When it is not the content that was announced.
    pub(super) fn end(self) -> Result<()> {
        is_whole(
            self.size - self.left,
            self.size,
            self.hashing.end(),
            self.digest,
        )?;
        self.writer.pad(self.size)
    }
}

/// Compares what was read with what a descriptor says.
pub(super) fn is_whole(read: u64, size: u64, found: Digest, wanted: Digest) -> Result<()> {
    if read != size {
        return Err(ArtifactError::refused(format!(
            "it has {read} bytes, and {size} by the manifest"
        )));
    }
    if found != wanted {
        return Err(ArtifactError::refused(format!(
            "its digest is {found}, and {wanted} by the manifest: it is damaged, or was changed"
        )));
    }
    Ok(())
}

/// The name of the manifest that carries the signatures of an artifact: a tag in a registry.
pub(super) fn signature_tag(digest: Digest) -> String {
    format!("sha256-{}.minisig", digest.hex())
}

/// The manifest that carries the signatures of `app`; none without any.
pub(super) fn signature_manifest(app: &Descriptor, signatures: &[String]) -> Option<Vec<u8>> {
    if signatures.is_empty() {
        return None;
    }
    let layers = signatures.iter();
    let layers = layers.map(|text| Descriptor::of(MINISIGN, text.as_bytes()));
    let manifest = Manifest {
        schema_version: 2,
        media_type: MANIFEST.to_owned(),
        artifact_type: SIGNATURES.to_owned(),
        config: Descriptor::of(EMPTY, EMPTY_CONTENT),
        layers: layers.collect(),
        subject: Some(app.clone()),
    };
    Some(serde_json::to_vec(&manifest).expect("it is plain data"))
}
