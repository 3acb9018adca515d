//! The folder in which a host keeps versions.
//!
//! ```text
//! lock                   held while a folder is made or removed
//! host-id                the name by which other hosts know this one
//! active                 which version is active, and which were: a record in JSON
//! versions/sha256-…/     a version: manifest.json, signatures.json, and the files of the app in app/
//! incoming-…/            what is being fetched or unpacked; whatever of it has no owner any more is removed
//! ```
//!
//! A version appears under its name when all of it is on the disk, by a rename; `active` is replaced likewise. So a crash
//! at any moment leaves the version that was active, whole. A version is compared with its digests, and its signatures
//! with the trusted keys, each time that it is used.

use std::fs::{self, DirBuilder, File};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::{NamedTempFile, TempDir};

use super::record::{Active, Record};
use crate::artifact::signature::Trust;
use crate::artifact::{
    AppManifest, Artifact, ArtifactError, CONFIG_FILE, Digest, LIMITS, Result, pack_again,
    sync_folder, verify_folder,
};
use crate::config::{Config, Place, Portable, Purpose};

const LOCK: &str = "lock";
const ACTIVE: &str = "active";
const VERSIONS: &str = "versions";
const INCOMING: &str = "incoming-";
const MANIFEST: &str = "manifest.json";
const SIGNATURES: &str = "signatures.json";
const APP: &str = "app";
const HOST_ID: &str = "host-id";

/// The most bytes of the record of versions.
const ACTIVE_BYTES: u64 = 1 << 20;
/// The most bytes of the name of the host.
const HOST_ID_BYTES: u64 = 100;
/// How long a version is kept that nothing names.
const UNUSED: Duration = Duration::from_secs(60 * 60);
/// The most bytes of the file of signatures, which may write each byte as an escape.
const SIGNATURES_BYTES: u64 = 8 * LIMITS.signature_bytes * LIMITS.signatures as u64;

/// The folder of versions.
#[derive(Debug, Clone)]
pub struct State {
    folder: PathBuf,
}

/// A version: an artifact that is unpacked, and was checked when this was made.
#[derive(Debug, Clone)]
pub struct Version {
    /// The digest of its artifact.
    pub digest: Digest,
    /// The folder of the app's files.
    pub app: PathBuf,
}

/// A folder for what is not complete yet. It is removed when this is dropped, or, after a crash, by the next host.
#[derive(Debug)]
pub struct Incoming {
    folder: TempDir,
    /// Locked as long as the folder has an owner.
    _owned: File,
}

impl Incoming {
    /// The folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl State {
    /// Opens the folder, which is made if it is missing. What crashed hosts have left in it is removed.
    ///
    /// # Errors
    /// When the folder cannot be made or read.
    pub fn open(folder: &Path) -> Result<State> {
        let making = || ArtifactError::io(format!("making the folder {}", folder.display()));
        let mut builder = DirBuilder::new();
        // It may have databases and secrets in it.
        builder.recursive(true).mode(0o700);
        builder.create(folder.join(VERSIONS)).map_err(making())?;
        let state = State {
            folder: folder.to_owned(),
        };
        let _locked = state.lock()?;
        let reading = || ArtifactError::io(folder.display());
        for entry in fs::read_dir(folder).map_err(reading())? {
            let entry = entry.map_err(reading())?;
            let is_incoming = entry.file_name().to_string_lossy().starts_with(INCOMING);
            if is_incoming && !is_owned(&entry.path()) {
                let removing = format!("removing {}", entry.path().display());
                fs::remove_dir_all(entry.path()).map_err(ArtifactError::io(removing))?;
            }
        }
        Ok(state)
    }

    /// Waits until no other host makes or removes a folder.
    fn lock(&self) -> Result<File> {
        let path = self.folder.join(LOCK);
        let locked = File::create(&path).and_then(|file| file.lock().map(|()| file));
        locked.map_err(ArtifactError::io(format!("locking {}", path.display())))
    }

    /// Makes a folder for what is not complete yet.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn incoming(&self) -> Result<Incoming> {
        let making = || ArtifactError::io(format!("making a folder in {}", self.folder.display()));
        let _locked = self.lock()?;
        let folder = (tempfile::Builder::new().prefix(INCOMING))
            .tempdir_in(&self.folder)
            .map_err(making())?;
        let owned = File::create(folder.path().join(LOCK)).map_err(making())?;
        owned.lock().map_err(making())?;
        Ok(Incoming {
            folder,
            _owned: owned,
        })
    }

    /// Makes a version of an artifact, if it is not there yet. Blocks on the disk.
    ///
    /// # Errors
    /// When nobody trusted has signed it, or it is damaged. Nothing is left of it then.
    pub fn add(&self, artifact: &Artifact, trust: &Trust) -> Result<Version> {
        trust.check(&artifact.manifest, &artifact.signatures)?;
        let digest = artifact.digest();
        let path = self.version_path(digest);
        let incoming = self.incoming()?;
        if path.exists() {
            let there = write_signatures(&path, &artifact.signatures)
                .and_then(|()| self.version(digest, trust));
            match there {
                Ok(version) => return Ok(version),
                // It was damaged since: it makes room for a new one.
                Err(error) => {
                    tracing::warn!(%digest, "a version is unpacked again: {error}");
                    let aside = fs::rename(&path, incoming.path().join("damaged"));
                    aside.map_err(ArtifactError::io(path.display()))?;
                }
            }
        }
        let new = incoming.path().join("new");
        fs::create_dir(&new).map_err(ArtifactError::io(new.display()))?;
        artifact.unpack(&new.join(APP))?;
        write(&new.join(MANIFEST), &artifact.manifest.bytes)?;
        write_signatures(&new, &artifact.signatures)?;
        match fs::rename(&new, &path) {
            // Another host was faster.
            Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => {}
            renamed => renamed.map_err(ArtifactError::io(path.display()))?,
        }
        sync_folder(&self.folder.join(VERSIONS))?;
        self.version(digest, trust)
    }

    /// A version that is there, compared with its digests. Blocks on the disk.
    ///
    /// # Errors
    /// When there is no such version, it is damaged, or nobody trusted has signed it.
    pub fn version(&self, digest: Digest, trust: &Trust) -> Result<Version> {
        Ok(self.checked(digest, trust)?.0)
    }

    /// Whether there is such a version, damaged or not.
    pub fn has(&self, digest: Digest) -> bool {
        self.version_path(digest).exists()
    }

    /// The digests of a version's signatures. Blocks on the disk.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn signatures(&self, digest: Digest) -> Result<Vec<Digest>> {
        let signatures = signatures_in(&self.version_path(digest))?;
        Ok((signatures.iter().map(|it| Digest::of(it.as_bytes()))).collect())
    }

    /// Writes the artifact of a version into a file. Blocks on the disk.
    ///
    /// # Errors
    /// As [`State::version`], and when the file cannot be written.
    pub fn pack(&self, digest: Digest, trust: &Trust, out: &Path) -> Result<()> {
        let (version, manifest, signatures) = self.checked(digest, trust)?;
        pack_again(&manifest, &signatures, &version.app, out)
    }

    fn checked(
        &self,
        digest: Digest,
        trust: &Trust,
    ) -> Result<(Version, AppManifest, Vec<String>)> {
        let path = self.version_path(digest);
        let bytes = read(&path.join(MANIFEST), LIMITS.manifest_bytes)?;
        let manifest = AppManifest::parse(bytes, &LIMITS)?;
        if manifest.digest != digest {
            return Err(ArtifactError::refused(format!(
                "{} is the manifest of {}: it was changed",
                path.join(MANIFEST).display(),
                manifest.digest
            )));
        }
        let signatures = signatures_in(&path)?;
        trust.check(&manifest, &signatures)?;
        let app = path.join(APP);
        verify_folder(&manifest, &app)?;
        Ok((Version { digest, app }, manifest, signatures))
    }

    fn version_path(&self, digest: Digest) -> PathBuf {
        let name = format!("sha256-{}", digest.hex());
        self.folder.join(VERSIONS).join(name)
    }

    /// The name by which other hosts know the host that has this folder. It is made once, and begins with that of the
    /// machine.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub fn host_id(&self) -> Result<String> {
        let _locked = self.lock()?;
        let path = self.folder.join(HOST_ID);
        match read(&path, HOST_ID_BYTES) {
            Ok(bytes) => {
                let id = String::from_utf8_lossy(&bytes).trim().to_owned();
                let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
                match !id.is_empty() && id.bytes().all(plain) {
                    true => Ok(id),
                    false => Err(ArtifactError::refused(format!(
                        "{} has letters, digits and `-` only: it was changed; without the file the host gets a new name",
                        path.display()
                    ))),
                }
            }
            Err(ArtifactError::Io(_, error)) if error.kind() == ErrorKind::NotFound => {
                let machine = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
                let machine = machine.trim().split('.').next().unwrap_or_default();
                let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
                let machine: String = machine.chars().take(40).map(plain).collect();
                let number = uuid::Uuid::new_v4().simple().to_string();
                let id = match &*machine {
                    "" => format!("host-{}", &number[..8]),
                    machine => format!("{machine}-{}", &number[..8]),
                };
                write(&path, id.as_bytes())?;
                Ok(id)
            }
            Err(error) => Err(error),
        }
    }

    /// The record of what is served; none before the first version.
    ///
    /// # Errors
    /// When the record cannot be read.
    pub fn record(&self) -> Result<Option<Record>> {
        let path = self.folder.join(ACTIVE);
        match read(&path, ACTIVE_BYTES) {
            Ok(bytes) => json(&path, &bytes).map(Some),
            Err(ArtifactError::Io(_, error)) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Replaces the record. After a crash, it is either the former one or this one.
    ///
    /// # Errors
    /// When the record cannot be written. The former one stays then.
    pub fn set_record(&self, record: &Record) -> Result<()> {
        let bytes = serde_json::to_vec(record).expect("it is plain data");
        write(&self.folder.join(ACTIVE), &bytes)
    }

    /// Replaces the record that was read or written last.
    ///
    /// # Errors
    /// When there is another one now, or as [`State::set_record`]. What there is stays then.
    pub fn replace_record(&self, last: &Record, record: &Record) -> Result<()> {
        let _locked = self.lock()?;
        match self.record()? {
            Some(there) if there == *last => self.set_record(record),
            _ => Err(ArtifactError::refused(format!(
                "{} is not as this host has left it: another host uses the folder, or somebody has changed it; restart the host that shall go on with it, and end others",
                self.folder.join(ACTIVE).display()
            ))),
        }
    }

    /// Makes a version the active one, whatever was before.
    ///
    /// # Errors
    /// As [`State::set_record`].
    pub fn activate(&self, active: Active, keep: usize) -> Result<Record> {
        let record = match self.record()? {
            Some(record) if record.active.digest == active.digest => return Ok(record),
            Some(record) => record.counted().activated(active, false, keep),
            None => Record::first(active),
        };
        self.set_record(&record)?;
        Ok(record)
    }

    /// Removes versions that the record does not name: all that have been there for an hour, and the oldest of those
    /// beyond `keep`. So what was uploaded can be deployed for a while, and a disk is not filled by uploads.
    ///
    /// # Errors
    /// When the folder cannot be read, or a version cannot be removed.
    pub fn prune(&self, record: &Record, keep: usize) -> Result<()> {
        let versions = self.folder.join(VERSIONS);
        let named: Vec<PathBuf> = (record.versions())
            .map(|version| self.version_path(version.digest))
            .collect();
        let reading = || ArtifactError::io(versions.display());
        let mut others = Vec::new();
        for entry in fs::read_dir(&versions).map_err(reading())? {
            let path = entry.map_err(reading())?.path();
            let made = fs::metadata(&path).and_then(|it| it.modified());
            if let (false, Ok(made)) = (named.contains(&path), made) {
                others.push((made.elapsed().unwrap_or_default(), path));
            }
        }
        others.sort();
        for (number, (age, path)) in others.iter().enumerate() {
            if number < keep && *age < UNUSED {
                continue;
            }
            // Aside first, so that it is never there in part.
            let incoming = self.incoming()?;
            let removed = fs::rename(path, incoming.path().join("old"));
            removed.map_err(ArtifactError::io(format!("removing {}", path.display())))?;
        }
        Ok(())
    }
}

impl Version {
    /// The configuration of the version in a place: [`crate::app::App::load`] takes it. `from`: what people are told that
    /// the version is from.
    ///
    /// # Errors
    /// When the place does not have or allow what the app asks for, or both together are not valid.
    pub fn config(&self, place: &Place, from: &str, purpose: Purpose) -> Result<Config> {
        let config = self.joined(place, purpose);
        let named = |error| ArtifactError::refused(format!("{from} ({}): {error}", self.digest));
        let mut config = config.map_err(named)?;
        let file = place.file.iter();
        let file = file.map(|file| format!("--place {} ", file.display()));
        config.named = file.chain([from.to_owned()]).collect();
        Ok(config)
    }

    fn joined(&self, place: &Place, purpose: Purpose) -> Result<Config> {
        let file = self.app.join(CONFIG_FILE);
        let text = read(&file, LIMITS.config_bytes)?;
        let text = String::from_utf8(text)
            .map_err(|_| ArtifactError::refused(format!("{} is not UTF-8", file.display())))?;
        let portable = Portable::parse(&file, &text)
            .map_err(|error| ArtifactError::refused(error.to_string()))?;
        let config = portable.at(place, &self.app, purpose);
        config.map_err(|error| ArtifactError::refused(error.to_string()))
    }
}

/// Whether a host still works on a folder of incoming files.
fn is_owned(folder: &Path) -> bool {
    let lock = File::open(folder.join(LOCK));
    lock.is_ok_and(|lock| lock.try_lock().is_err())
}

/// The signatures of the version in a folder.
fn signatures_in(folder: &Path) -> Result<Vec<String>> {
    let bytes = read(&folder.join(SIGNATURES), SIGNATURES_BYTES)?;
    json(&folder.join(SIGNATURES), &bytes)
}

fn write_signatures(folder: &Path, signatures: &[String]) -> Result<()> {
    let bytes = serde_json::to_vec(signatures).expect("they are plain data");
    write(&folder.join(SIGNATURES), &bytes)
}

/// Writes a file as a whole: beside its path first, then on the disk, then under its name. What its folder has by then is
/// on the disk, too.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().expect("it is in the folder of the state");
    let what = || ArtifactError::io(format!("writing {}", path.display()));
    let mut file = NamedTempFile::new_in(folder).map_err(what())?;
    file.write_all(bytes).map_err(what())?;
    file.as_file().sync_all().map_err(what())?;
    let persisted = file.persist(path);
    persisted.map_err(|error| what()(error.error))?;
    sync_folder(folder)
}

fn read(path: &Path, max: u64) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(ArtifactError::io(path.display()))?;
    let mut bytes = Vec::new();
    let read = file.take(max + 1).read_to_end(&mut bytes);
    read.map_err(ArtifactError::io(path.display()))?;
    match bytes.len() as u64 <= max {
        true => Ok(bytes),
        false => Err(ArtifactError::refused(format!(
            "{} has over {max} bytes: it was changed",
            path.display()
        ))),
    }
}

fn json<T: serde::de::DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T> {
    let parsed = serde_json::from_slice(bytes);
    parsed.map_err(|error| ArtifactError::refused(format!("{}: {error}", path.display())))
}
