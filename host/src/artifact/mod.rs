//! Artifacts: an app in one immutable file, named by its digest.
//!
//! An artifact is an OCI image layout, so that registries and their tools take it as it is; `app.amphi` is that layout as
//! one tar file. Its manifest names the app's part of the configuration and each file of the app: components, migrations,
//! static files. Every file is a content of its own, with its path beside its digest: there is no archive within the
//! archive, no compression and no link, so an artifact is never larger than its manifest says, and each file can be
//! checked by itself. Nothing of time, owner or machine is in it: the same app has the same digest everywhere.
//!
//! Whoever made an artifact may be an attacker. So the reader knows its whole size before it keeps anything
//! ([`LIMITS`]), takes paths from a short list of forms, writes only into a folder that it has made itself, compares
//! every content with its digest while it is written, and removes the folder when anything is wrong.
//!
//! What an app needs of a place is in its configuration ([`crate::config::Portable`]); unpacked versions are in
//! [`crate::deploy`].

pub mod layout;
mod limits;
mod manifest;
mod pack;
mod read;
pub mod registry;
pub mod signature;
mod write;

pub use layout::{CONFIG_FILE, Digest};
pub use limits::{ArtifactError, LIMITS, Limits, Result};
pub use manifest::{AppFile, AppManifest, Kind};
pub use pack::{files, pack, pack_again, sign};
pub use read::{Artifact, verify_folder};
pub use write::sync_folder;

#[cfg(test)]
mod tests;
