//! Reads the file of an artifact.
//!
//! The archive is never extracted: its entries are listed, and their names are only compared with the names of a layout.
//! Contents are then read at their places, by digest.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek as _, SeekFrom, Write};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use tar::{Archive, EntryType};

use super::layout::{
    APP, BLOBS, CONFIG_FILE, Digest, Hashing, INDEX_FILE, Index, LAYOUT, SIGNATURES,
};
use super::limits::{ArtifactError, LIMITS, Limits, Result, within};
use super::manifest::{self, AppFile, AppManifest, json};
use super::write::{is_whole, sync_folder};

/// How much of a content is in memory at once.
const PIECE_BYTES: usize = 64 << 10;

/// An artifact in a file: its manifest and configuration are read and checked, its other contents are where the manifest
/// says. [`Artifact::verify`] and [`Artifact::unpack`] compare them with their digests.
#[derive(Debug)]
pub struct Artifact {
    /// Where it was read from.
    pub path: PathBuf,
    /// What it consists of.
    pub manifest: AppManifest,
    /// The app's part of the configuration.
    pub config: String,
    /// Signatures, as they are in `.minisig` files. They are not checked.
    pub signatures: Vec<String>,
    archive: Contents,
}

/// Where the entries of an archive are.
#[derive(Debug)]
struct Contents {
    file: File,
    /// Places and sizes, by digest.
    blobs: BTreeMap<Digest, (u64, u64)>,
    index: Option<(u64, u64)>,
    layout: Option<(u64, u64)>,
}

impl Artifact {
    /// Opens an artifact.
    ///
    /// # Errors
    /// When the file is no artifact, or is over a limit.
    pub fn open(path: &Path) -> Result<Artifact> {
        Artifact::open_within(path, &LIMITS)
    }

    /// Like [`Artifact::open`], with other limits.
    ///
    /// # Errors
    /// As [`Artifact::open`].
    pub fn open_within(path: &Path, limits: &Limits) -> Result<Artifact> {
        let opening = || ArtifactError::io(path.display());
        // Opening a pipe or a device can block or have effects: the type is looked at first.
        if !fs::metadata(path).map_err(opening())?.is_file() {
            return Err(ArtifactError::refused(format!(
                "{} is not a file",
                path.display()
            )));
        }
        let file = File::open(path).map_err(opening())?;
        let archive = Contents::list(file, limits).map_err(|error| in_file(path, error))?;
        Artifact::read(path, archive, limits).map_err(|error| in_file(path, error))
    }

    fn read(path: &Path, archive: Contents, limits: &Limits) -> Result<Artifact> {
        let layout = archive.named(LAYOUT.0, archive.layout, limits)?;
        let version: Layout = json(LAYOUT.0, &layout)?;
        if version.image_layout_version != "1.0.0" {
            return Err(ArtifactError::refused(
                "`oci-layout` names another version than 1.0.0",
            ));
        }
        let index: Index = json(
            INDEX_FILE,
            &archive.named(INDEX_FILE, archive.index, limits)?,
        )?;
        within(
            "`index.json` has",
            index.manifests.len() as u64,
            limits.manifests as u64,
            "manifests",
        )?;
        let (mut app, mut signed) = (None, Vec::new());
        // Whatever is in the file has to be named, so that it is what it seems to be.
        let mut named = BTreeSet::new();
        for descriptor in &index.manifests {
            let what = format!("the manifest {}", descriptor.digest);
            let bytes = archive.small(
                &what,
                descriptor.digest,
                descriptor.size,
                limits.manifest_bytes,
            )?;
            named.insert(descriptor.digest);
            match manifest::artifact_type(&bytes)?.as_str() {
                SIGNATURES => signed.push(bytes),
                _ if app.is_none() => app = Some(AppManifest::parse(bytes, limits)?),
                _ => {
                    return Err(ArtifactError::refused(
                        "`index.json` names two apps: an artifact is one",
                    ));
                }
            }
        }
        let Some(manifest) = app else {
            return Err(ArtifactError::refused(format!(
                "`index.json` names no manifest of the type `{APP}`"
            )));
        };
        let config = &manifest.config;
        let config = archive.small(CONFIG_FILE, config.digest, config.size, limits.config_bytes)?;
        let config = String::from_utf8(config)
            .map_err(|_| ArtifactError::refused(format!("`{CONFIG_FILE}` is not UTF-8")))?;
        let mut signatures = Vec::new();
        for bytes in signed {
            let Some(layers) = manifest::signatures(&bytes, manifest.digest, limits)? else {
                return Err(ArtifactError::refused(
                    "`index.json` names signatures of another app",
                ));
            };
            named.insert(Digest::of(super::layout::EMPTY_CONTENT));
            for layer in layers {
                let max = limits.signature_bytes;
                let text = archive.small("a signature", layer.digest, layer.size, max)?;
                named.insert(layer.digest);
                let text = String::from_utf8(text)
                    .map_err(|_| ArtifactError::refused("a signature is not UTF-8"))?;
                signatures.push(text);
            }
        }
        within(
            "it has",
            signatures.len() as u64,
            limits.signatures as u64,
            "signatures",
        )?;
        for (path, digest, size) in manifest.contents() {
            archive.find(&format!("`{path}`"), digest, size)?;
            named.insert(digest);
        }
        if let Some(unnamed) = archive.blobs.keys().find(|digest| !named.contains(digest)) {
            return Err(ArtifactError::refused(format!(
                "no manifest names the content {unnamed}"
            )));
        }
        Ok(Artifact {
            path: path.to_owned(),
            manifest,
            config,
            signatures,
            archive,
        })
    }

    /// The digest of the artifact, which is that of its manifest.
    pub fn digest(&self) -> Digest {
        self.manifest.digest
    }

    /// Compares all contents with their digests.
    ///
    /// # Errors
    /// When a content is damaged or was changed.
    pub fn verify(&self) -> Result<()> {
        for file in &self.manifest.files {
            self.copy(file, &mut std::io::sink())?;
        }
        Ok(())
    }

    /// Writes all files of the app into `folder`, which must not exist, and makes sure that they are on the disk. Nothing
    /// is left of the folder after an error.
    ///
    /// # Errors
    /// When a content is damaged or was changed, or the disk is full.
    pub fn unpack(&self, folder: &Path) -> Result<()> {
        let making = || ArtifactError::io(format!("making {}", folder.display()));
        fs::create_dir(folder).map_err(making())?;
        let unpacked = self.write_all(folder);
        if unpacked.is_err() {
            // The first error counts. If this fails too, the caller's folder of temporary files is emptied later.
            let _ = fs::remove_dir_all(folder);
        }
        unpacked
    }

    fn write_all(&self, folder: &Path) -> Result<()> {
        let mut folders = BTreeSet::from([folder.to_owned()]);
        let config = folder.join(CONFIG_FILE);
        write_new(&config, |out| {
            out.write_all(self.config.as_bytes())
                .map_err(ArtifactError::io(CONFIG_FILE))
        })?;
        for file in &self.manifest.files {
            // Joining cannot lead out of the folder: `Kind::of` has checked every name of the path.
            let path = folder.join(&file.path);
            let parent = path.parent().expect("the path has several names");
            fs::create_dir_all(parent).map_err(ArtifactError::io(&file.path))?;
            let within = parent.ancestors().take_while(|path| *path != folder);
            folders.extend(within.map(Path::to_owned));
            write_new(&path, |out| self.copy(file, out))?;
        }
        for folder in folders {
            sync_folder(&folder)?;
        }
        Ok(())
    }

    /// Copies a file of the app to `out`, and compares it with its digest.
    fn copy(&self, file: &AppFile, out: &mut impl Write) -> Result<()> {
        let what = format!("`{}`", file.path);
        self.copy_content(&what, file.digest, file.size, |piece| {
            out.write_all(piece)
                .map_err(ArtifactError::io(format_args!("writing {what}")))
        })
    }

    /// Passes a content on in pieces, and compares it with its digest.
    pub(super) fn copy_content(
        &self,
        what: &str,
        digest: Digest,
        size: u64,
        mut out: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut inner = || {
            let (at, size) = self.archive.find(what, digest, size)?;
            let mut piece = vec![0; PIECE_BYTES];
            let (mut read, mut hashing) = (0, Hashing::default());
            while read < size {
                let length = PIECE_BYTES.min(usize::try_from(size - read).unwrap_or(PIECE_BYTES));
                let piece = &mut piece[..length];
                (self.archive.file.read_exact_at(piece, at + read))
                    .map_err(ArtifactError::io(what))?;
                hashing.add(piece);
                out(piece)?;
                read += length as u64;
            }
            is_whole(read, size, hashing.end(), digest).map_err(|error| about(what, error))
        };
        inner().map_err(|error| in_file(&self.path, error))
    }
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Layout {
    image_layout_version: String,
}

impl Contents {
    /// Lists the entries of an archive.
    fn list(mut file: File, limits: &Limits) -> Result<Contents> {
        let length = (file.seek(SeekFrom::End(0))).map_err(ArtifactError::io("its length"))?;
        within("the file has", length, limits.archive_bytes(), "bytes")?;
        file.rewind().map_err(ArtifactError::io("its start"))?;
        let not_tar = |error: std::io::Error| {
            ArtifactError::refused(format!(
                "this is not an artifact: it cannot be read as a tar archive ({error})"
            ))
        };
        let mut found = Contents {
            blobs: BTreeMap::new(),
            index: None,
            layout: None,
            file: file.try_clone().map_err(ArtifactError::io("opening it"))?,
        };
        let mut archive = Archive::new(file);
        // Raw: the extensions for long names and sizes are entries of their own types, which are refused below. So no
        // name is longer than a header, and no size is said twice.
        let entries = archive.entries_with_seek().map_err(not_tar)?.raw(true);
        let mut count = 0;
        for entry in entries {
            let entry = entry.map_err(not_tar)?;
            count += 1;
            within(
                "the archive has",
                count,
                limits.entries() as u64,
                "or more entries",
            )?;
            let name = entry.path_bytes();
            let name = String::from_utf8_lossy(&name).into_owned();
            let shown = name.escape_debug().to_string();
            let kind = entry.header().entry_type();
            let plain = name.strip_prefix("./").unwrap_or(&name);
            match kind {
                EntryType::Regular => {}
                EntryType::Directory if ["", "blobs/", BLOBS].contains(&plain) => continue,
                _ => {
                    return Err(ArtifactError::refused(format!(
                        "the entry `{shown}` of the archive is not a plain file (its type is {:?}): an artifact has no links, devices, pipes or extensions",
                        char::from(kind.as_byte())
                    )));
                }
            }
            let (at, size) = (
                entry.raw_file_position(),
                entry.header().size().map_err(not_tar)?,
            );
            if at.checked_add(size).is_none_or(|end| end > length) {
                return Err(ArtifactError::refused(format!(
                    "the entry `{shown}` ends behind the end of the file, which has been cut off"
                )));
            }
            let place = (at, size);
            let digest = plain.strip_prefix(BLOBS).and_then(Digest::from_hex);
            let before = match (plain, digest) {
                (_, Some(digest)) => found.blobs.insert(digest, place),
                (INDEX_FILE, None) => found.index.replace(place),
                (name, None) if name == LAYOUT.0 => found.layout.replace(place),
                _ => {
                    return Err(ArtifactError::refused(format!(
                        "the entry `{shown}` does not belong into an artifact: it has `oci-layout`, `index.json` and `{BLOBS}…`"
                    )));
                }
            };
            if before.is_some() {
                return Err(ArtifactError::refused(format!(
                    "the entry `{shown}` is there twice"
                )));
            }
        }
        Ok(found)
    }

    /// Where a content is.
    fn find(&self, what: &str, digest: Digest, size: u64) -> Result<(u64, u64)> {
        let Some(&(at, found)) = self.blobs.get(&digest) else {
            return Err(ArtifactError::refused(format!(
                "{what} is missing: the file has no content {digest}"
            )));
        };
        match found == size {
            true => Ok((at, size)),
            false => Err(ArtifactError::refused(format!(
                "{what} has {found} bytes, and {size} by the manifest"
            ))),
        }
    }

    /// Reads a small content, and compares it with its digest.
    fn small(&self, what: &str, digest: Digest, size: u64, max: u64) -> Result<Vec<u8>> {
        within(format_args!("{what} has"), size, max, "bytes")?;
        let place = self.find(what, digest, size)?;
        let bytes = self.bytes(what, place)?;
        is_whole(size, size, Digest::of(&bytes), digest).map_err(|error| about(what, error))?;
        Ok(bytes)
    }

    fn named(&self, what: &str, place: Option<(u64, u64)>, limits: &Limits) -> Result<Vec<u8>> {
        let Some(place) = place else {
            return Err(ArtifactError::refused(format!(
                "this is not an artifact: it has no `{what}`"
            )));
        };
        within(
            format_args!("`{what}` has"),
            place.1,
            limits.index_bytes,
            "bytes",
        )?;
        self.bytes(what, place)
    }

    fn bytes(&self, what: &str, (at, size): (u64, u64)) -> Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(size).expect("it is below a limit")];
        let read = self.file.read_exact_at(&mut bytes, at);
        read.map_err(ArtifactError::io(what))?;
        Ok(bytes)
    }
}

/// Writes a new file, and makes sure that it is on the disk.
fn write_new(path: &Path, write: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
    let what = || ArtifactError::io(format!("writing {}", path.display()));
    let mut options = OpenOptions::new();
    // A new file: nothing that is there already, a link above all, is written to.
    let mut file = (options.write(true).create_new(true).open(path)).map_err(what())?;
    write(&mut file)?;
    file.sync_all().map_err(what())
}

/// Compares the files in `folder` with a manifest. Other files in the folder are not looked at.
///
/// # Errors
/// When a file is missing, damaged or was changed.
pub fn verify_folder(manifest: &AppManifest, folder: &Path) -> Result<()> {
    let config = &manifest.config;
    let config = (CONFIG_FILE, config.digest, config.size);
    let files = (manifest.files.iter()).map(|file| (&*file.path, file.digest, file.size));
    for (path, digest, size) in std::iter::once(config).chain(files) {
        let full = folder.join(path);
        let (found, read) = measure(&full, |_| Ok(()))?;
        let compared = is_whole(read, size, found, digest);
        compared.map_err(|error| about(&full.display().to_string(), error))?;
    }
    Ok(())
}

/// Reads a file in pieces, which are passed on, and returns its digest and size.
pub(super) fn measure(
    file: &Path,
    mut out: impl FnMut(&[u8]) -> Result<()>,
) -> Result<(Digest, u64)> {
    let reading = || ArtifactError::io(format!("reading {}", file.display()));
    let mut opened = File::open(file).map_err(reading())?;
    let (mut hashing, mut size) = (Hashing::default(), 0);
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let length = opened.read(&mut piece).map_err(reading())?;
        if length == 0 {
            return Ok((hashing.end(), size));
        }
        size += length as u64;
        hashing.add(&piece[..length]);
        out(&piece[..length])?;
    }
}

/// Puts a name before a refusal.
fn about(what: &str, error: ArtifactError) -> ArtifactError {
    match error {
        ArtifactError::Refused(sentence) => ArtifactError::Refused(format!("{what}: {sentence}")),
        other => other,
    }
}

fn in_file(path: &Path, error: ArtifactError) -> ArtifactError {
    about(&path.display().to_string(), error)
}
