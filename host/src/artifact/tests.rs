//! Artifacts that are made, and artifacts that an attacker has made.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use serde_json::{Value, json};
use tar::{EntryType, Header};
use tempfile::TempDir;

use super::layout::{APP, CONFIG, MANIFEST};
use super::signature::{self, Trust};
use super::*;
use crate::config::TrustedKey;

/// Small limits, so that tests can exceed them.
const SMALL: Limits = Limits {
    index_bytes: 4 << 10,
    manifests: 3,
    manifest_bytes: 16 << 10,
    config_bytes: 1 << 10,
    files: 20,
    component_bytes: 3_000,
    migration_bytes: 2_000,
    static_bytes: 2_000,
    total_bytes: 5_000,
    signatures: 2,
    signature_bytes: 1 << 10,
    path_bytes: 200,
    name_bytes: 50,
    path_depth: 6,
};

const TOML: &str = "[app]\nname = \"a\"\n";

fn folder() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

/// One entry of an archive, as an attacker may write it.
#[derive(Clone)]
struct Entry {
    name: String,
    kind: u8,
    size: Option<u64>,
    content: Vec<u8>,
}

fn file(name: &str, content: impl Into<Vec<u8>>) -> Entry {
    Entry {
        name: name.to_owned(),
        kind: b'0',
        size: None,
        content: content.into(),
    }
}

fn special(name: &str, kind: u8, content: &str) -> Entry {
    Entry {
        kind,
        ..file(name, content)
    }
}

fn archive(entries: &[Entry]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in entries {
        let mut header = Header::new_gnu();
        // The name as it is: `set_path` would refuse some.
        let name = entry.name.as_bytes();
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.set_entry_type(EntryType::new(entry.kind));
        header.set_size(entry.size.unwrap_or(entry.content.len() as u64));
        header.set_mode(0o644);
        header.set_cksum();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(&entry.content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

fn blob(content: &[u8]) -> Entry {
    file(
        &format!("blobs/sha256/{}", Digest::of(content).hex()),
        content,
    )
}

fn descriptor(media_type: &str, content: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": Digest::of(content).to_string(), "size": content.len() })
}

fn layer(path: &str, media_type: &str, content: &[u8]) -> Value {
    let mut layer = descriptor(media_type, content);
    layer["annotations"] = json!({ "org.opencontainers.image.title": path });
    layer
}

/// What the attacker changes of an artifact that is right.
struct Made {
    manifest: Value,
    contents: Vec<Vec<u8>>,
}

impl Made {
    fn of(files: &[(&str, &str, &[u8])]) -> Made {
        let layers = files.iter();
        let layers: Vec<Value> = layers
            .map(|(path, media_type, content)| layer(path, media_type, content))
            .collect();
        Made {
            manifest: json!({
                "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": APP,
                "config": descriptor(CONFIG, TOML.as_bytes()), "layers": layers,
            }),
            contents: files.iter().map(|(.., content)| content.to_vec()).collect(),
        }
    }

    fn entries(&self) -> Vec<Entry> {
        self.entries_with(self.manifest.to_string().as_bytes())
    }

    fn entries_with(&self, manifest: &[u8]) -> Vec<Entry> {
        let index = json!({ "schemaVersion": 2, "manifests": [descriptor(MANIFEST, manifest)] });
        let mut entries = vec![
            file("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#),
            file("index.json", index.to_string()),
            blob(manifest),
            blob(TOML.as_bytes()),
        ];
        let mut known = vec![Digest::of(TOML.as_bytes())];
        for content in &self.contents {
            let digest = Digest::of(content);
            if !known.contains(&digest) {
                known.push(digest);
                entries.push(blob(content));
            }
        }
        entries
    }
}

const WASM: &str = "application/wasm";
const SQL: &str = "application/sql";
const ANY: &str = "application/octet-stream";

fn usual() -> Made {
    Made::of(&[
        ("components/a.sync.wasm", WASM, b"\0asm"),
        ("migrations/default/V1__a.sql", SQL, b"create table a (b)"),
        ("static/css/style.css", ANY, b"body {}"),
        ("static/empty", ANY, b""),
        ("static/the same", ANY, b"body {}"),
    ])
}

/// Opens and unpacks an archive, and makes sure that a refusal leaves nothing behind.
fn take(bytes: &[u8]) -> std::result::Result<BTreeMap<String, Vec<u8>>, String> {
    let folder = folder();
    let path = folder.path().join("app.amphi");
    fs::write(&path, bytes).expect("there is room");
    let out = folder.path().join("out");
    let taken = Artifact::open_within(&path, &SMALL).and_then(|artifact| {
        artifact.verify()?;
        artifact.unpack(&out)
    });
    match taken {
        Ok(()) => Ok(files_in(&out)),
        Err(error) => {
            let left: Vec<_> = fs::read_dir(folder.path()).expect("it is there").collect();
            assert_eq!(left.len(), 1, "{error}: left {left:?}");
            Err(error.to_string())
        }
    }
}

fn files_in(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    fn visit(folder: &Path, from: &Path, into: &mut BTreeMap<String, Vec<u8>>) {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let kind = fs::symlink_metadata(&path)
                .expect("it is there")
                .file_type();
            if kind.is_dir() {
                visit(&path, from, into);
            } else {
                assert!(kind.is_file(), "{}", path.display());
                let name = path
                    .strip_prefix(from)
                    .expect("it is within")
                    .display()
                    .to_string();
                into.insert(name, fs::read(&path).expect("it can be read"));
            }
        }
    }
    let mut files = BTreeMap::new();
    visit(folder, folder, &mut files);
    files
}

#[track_caller]
fn refused(entries: &[Entry], part: &str) {
    refused_bytes(&archive(entries), part);
}

#[track_caller]
fn refused_bytes(bytes: &[u8], part: &str) {
    let error = take(bytes).expect_err("it is refused");
    assert!(error.contains(part), "no {part:?} in: {error}");
    assert!(error.len() < 2_000, "{error}");
}

#[test]
fn what_is_right_is_taken_as_it_is() {
    let files = take(&archive(&usual().entries())).expect("it is right");
    let names: Vec<&str> = files.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "amphi.toml",
            "components/a.sync.wasm",
            "migrations/default/V1__a.sql",
            "static/css/style.css",
            "static/empty",
            "static/the same",
        ]
    );
    assert_eq!(files["amphi.toml"], TOML.as_bytes());
    assert_eq!(files["static/the same"], b"body {}");
    // As `tar -C folder -cf app.amphi .` writes it.
    let mut folders = vec![
        special("./", b'5', ""),
        special("./blobs/sha256/", b'5', ""),
    ];
    folders.extend(usual().entries().into_iter().map(|entry| Entry {
        name: format!("./{}", entry.name),
        ..entry
    }));
    take(&archive(&folders)).expect("it is the same");
}

#[test]
fn paths_that_lead_elsewhere_are_refused() {
    let long = format!("static/{}", "a/".repeat(120));
    let long_name = format!("static/{}", "a".repeat(60));
    for (path, part) in [
        ("../a", "none is empty, `.` or `..`"),
        ("static/../../a", "none is empty, `.` or `..`"),
        ("static/./a", "none is empty, `.` or `..`"),
        ("/etc/passwd", "none is empty, `.` or `..`"),
        ("static//a", "none is empty, `.` or `..`"),
        ("static/", "none is empty, `.` or `..`"),
        ("", "none is empty, `.` or `..`"),
        ("static\\..\\a", "a backslash"),
        ("static/a\0b", "a control character"),
        ("static/a\nb", "a control character"),
        ("static/\u{85}", "a control character"),
        (&long, "it has over 200 bytes"),
        (&long_name, "a name has over 50 bytes"),
        ("static/a/b/c/d/e/f", "it is over 6 names deep"),
        ("amphi.toml", "an app has `components/"),
        ("static", "an app has `components/"),
        ("components/a/b.wasm", "an app has `components/"),
        ("components/a.so", "an app has `components/"),
        ("migrations/a.sql", "an app has `components/"),
        ("migrations/default/x/V1__a.sql", "an app has `components/"),
        ("manifest.json", "an app has `components/"),
    ] {
        refused(&Made::of(&[(path, ANY, b"x")]).entries(), part);
    }
}

#[test]
fn links_devices_and_extensions_are_refused() {
    let digest = Digest::of(b"x").hex();
    for (kind, content) in [
        (b'1', ""),
        (b'2', ""),
        (b'3', ""),
        (b'4', ""),
        (b'6', ""),
        (b'7', ""),
        (b'x', "25 size=1099511627776\n"),
        (b'g', "30 path=../../../../etc/passwd\n"),
        (b'L', "../../../../../etc/passwd"),
        (b'K', "/etc/passwd"),
        (b'S', ""),
        (b'D', ""),
        (b'V', ""),
        (b'M', ""),
        (0xff, ""),
    ] {
        let mut entries = usual().entries();
        entries.insert(2, special(&format!("blobs/sha256/{digest}"), kind, content));
        refused(&entries, "is not a plain file");
    }
    let mut entries = usual().entries();
    entries.push(special("static/", b'5', ""));
    refused(&entries, "`static/` of the archive is not a plain file");
}

#[test]
fn entries_that_do_not_belong_are_refused() {
    for name in [
        "../blobs/sha256/x",
        "/oci-layout",
        "blobs/sha512/00",
        "index.json/",
        "manifest.json",
        "blobs/sha256/../../x",
        "././index.json",
        "",
    ] {
        let mut entries = usual().entries();
        entries.push(file(name, "x"));
        refused(&entries, "does not belong into an artifact");
    }
    let capital = Digest::of(b"x").hex().to_uppercase();
    let mut entries = usual().entries();
    entries.push(file(&format!("blobs/sha256/{capital}"), "x"));
    refused(&entries, "does not belong into an artifact");
    let mut entries = usual().entries();
    entries.push(blob(b"nobody names me"));
    refused(&entries, "no manifest names the content sha256:");
    for at in 0..usual().entries().len() {
        let mut entries = usual().entries();
        entries.push(entries[at].clone());
        refused(&entries, "is there twice");
        let mut entries = usual().entries();
        entries.remove(at);
        assert!(take(&archive(&entries)).is_err(), "without the entry {at}");
    }
}

#[test]
fn what_is_damaged_or_changed_is_refused() {
    // Contents of the right size under the name of another content.
    for at in 2..usual().entries().len() {
        let mut entries = usual().entries();
        if entries[at].content.is_empty() {
            continue;
        }
        entries[at].content[0] ^= 1;
        refused(&entries, "it is damaged, or was changed");
        let mut entries = usual().entries();
        entries[at].content.push(b' ');
        refused(&entries, "bytes, and");
    }
    let whole = archive(&usual().entries());
    for length in (0..whole.len() - 1024).step_by(128) {
        let error = take(&whole[..length]).expect_err("it is cut off");
        assert!(!error.is_empty());
    }
    for bytes in [&b""[..], b"PK\x03\x04", &[0; 10_000], &[0xff; 10_000]] {
        refused_bytes(bytes, "this is not an artifact");
    }
}

#[test]
fn sizes_that_are_said_are_not_believed() {
    for size in [1 << 33, 1 << 62, u64::MAX] {
        let mut entries = usual().entries();
        entries.last_mut().expect("a content").size = Some(size);
        assert!(take(&archive(&entries)).is_err(), "{size}");
    }
    let mut made = usual();
    made.manifest["layers"][0]["size"] = json!(1_u64 << 40);
    refused(
        &made.entries(),
        "`components/a.sync.wasm` has 1099511627776 bytes: the most is 3000",
    );
    let mut made = usual();
    made.manifest["layers"][0]["size"] = json!(-1);
    refused(&made.entries(), "the manifest cannot be read");
    let mut made = usual();
    made.manifest["layers"][0]["size"] = json!(5);
    refused(
        &made.entries(),
        "`components/a.sync.wasm` has 4 bytes, and 5 by the manifest",
    );
    let big = vec![b'x'; 2_001];
    refused(
        &Made::of(&[("static/a", ANY, &big)]).entries(),
        "2001 bytes: the most is 2000",
    );
    // One content, many files: what is written counts, not what the archive has.
    let big = vec![b'x'; 2_000];
    let many = [
        ("static/a", ANY, &*big),
        ("static/b", ANY, &*big),
        ("static/c", ANY, &*big),
    ];
    refused(
        &Made::of(&many).entries(),
        "all files together have 6000 bytes: the most is 5000",
    );
    let toml = " ".repeat(1_025);
    let mut made = usual();
    made.manifest["config"] = descriptor(CONFIG, toml.as_bytes());
    made.contents.push(toml.into_bytes());
    refused(
        &made.entries(),
        "`amphi.toml` has 1025 bytes: the most is 1024",
    );
}

#[test]
fn numbers_are_bounded() {
    let names: Vec<String> = (0..21).map(|number| format!("static/{number}")).collect();
    let many: Vec<_> = names
        .iter()
        .map(|name| (name.as_str(), ANY, &b"x"[..]))
        .collect();
    refused(
        &Made::of(&many).entries(),
        "the app has 21 files: the most is 20",
    );
    let mut entries = usual().entries();
    entries.extend((0..40_u8).map(|number| blob(&[number])));
    refused(&entries, "or more entries: the most is");
    let mut manifest = usual().manifest.to_string();
    manifest.insert_str(1, &" ".repeat(20_000));
    let entries = usual().entries_with(manifest.as_bytes());
    refused(&entries, "bytes: the most is 16384");
    let mut entries = usual().entries();
    entries[1].content.extend(vec![b' '; 5_000]);
    refused(&entries, "`index.json` has");
    let bytes = vec![0; usize::try_from(SMALL.archive_bytes()).expect("it is small") + 1];
    refused_bytes(&bytes, "the file has");
}

#[test]
fn manifests_that_say_something_else_are_refused() {
    let change = |at: &str, to: Value| {
        let mut made = usual();
        *made.manifest.pointer_mut(at).expect("it is there") = to;
        made.entries()
    };
    refused(
        &change("/artifactType", json!("x")),
        "this is not the manifest of an app",
    );
    refused(
        &change("/mediaType", json!("x")),
        "this is not the manifest of an app",
    );
    refused(
        &change("/schemaVersion", json!(1)),
        "this is not the manifest of an app",
    );
    refused(
        &change("/config/mediaType", json!(WASM)),
        "the configuration is of the type",
    );
    refused(
        &change("/layers/0/mediaType", json!(ANY)),
        "`components/a.sync.wasm` is of the type",
    );
    refused(
        &change("/layers/2/mediaType", json!(format!("{ANY}+gzip"))),
        "is of the type",
    );
    refused(&change("/layers/2/annotations", json!({})), "has no path");
    refused(
        &change(
            "/layers/0/digest",
            json!(format!("sha512:{}", "0".repeat(128))),
        ),
        "this is not a digest",
    );
    let capital = usual().manifest["layers"][0]["digest"]
        .to_string()
        .to_uppercase();
    refused(
        &change("/layers/0/digest", json!(capital)),
        "this is not a digest",
    );
    refused(&change("/layers", json!({})), "the manifest cannot be read");
    let twice = [("static/a", ANY, &b"x"[..]), ("static/a", ANY, b"y")];
    refused(
        &Made::of(&twice).entries(),
        "two layers have the path `static/a`",
    );
    let nested = [("static/a", ANY, &b"x"[..]), ("static/a/b", ANY, b"y")];
    refused(
        &Made::of(&nested).entries(),
        "`static/a` is a file, and the path `static/a/b`",
    );
    // A parser that takes the other one of two keys would see another artifact.
    let double = usual()
        .manifest
        .to_string()
        .replacen("\"layers\"", "\"layers\":[],\"layers\"", 1);
    refused(&usual().entries_with(double.as_bytes()), "duplicate field");
    let title = "\"org.opencontainers.image.title\"";
    let double = usual().manifest.to_string();
    let double = double.replacen(title, &format!("{title}:\"static/x\",{title}"), 1);
    refused(&usual().entries_with(double.as_bytes()), "duplicate field");
    let deep = format!("{}1", "[".repeat(10_000));
    refused(
        &usual().entries_with(deep.as_bytes()),
        "the manifest cannot be read",
    );
    let deep = format!("{{\"x\":{}1", "[".repeat(10_000));
    refused(
        &usual().entries_with(deep.as_bytes()),
        "the manifest cannot be read",
    );
    refused(
        &usual().entries_with(b"\xff\xfe"),
        "the manifest cannot be read",
    );
    let mut entries = usual().entries();
    entries[0].content = br#"{"imageLayoutVersion":"2.0.0"}"#.to_vec();
    refused(&entries, "another version");
    for (manifests, part) in [
        (json!([]), "names no manifest of the type"),
        (json!([descriptor(MANIFEST, b"x")]), "is missing"),
    ] {
        let mut entries = usual().entries();
        let index = json!({ "schemaVersion": 2, "manifests": manifests });
        entries[1].content = index.to_string().into_bytes();
        refused(&entries, part);
    }
    let mut entries = usual().entries();
    let manifest = usual().manifest.to_string();
    let one = descriptor(MANIFEST, manifest.as_bytes());
    let index = json!({ "schemaVersion": 2, "manifests": [one, one] });
    entries[1].content = index.to_string().into_bytes();
    refused(&entries, "names two apps");
    let index = json!({ "schemaVersion": 2, "manifests": [one, one, one, one] });
    entries[1].content = index.to_string().into_bytes();
    refused(&entries, "4 manifests: the most is 3");
}

#[test]
fn what_is_no_file_is_refused() {
    let folder = folder();
    let error = Artifact::open(folder.path()).expect_err("it is a folder");
    assert!(error.to_string().contains("is not a file"), "{error}");
    let error = Artifact::open(Path::new("/dev/zero")).expect_err("it is a device");
    assert!(error.to_string().contains("is not a file"), "{error}");
    let pipe = folder.path().join("pipe");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .expect("a pipe can be made");
    let error = Artifact::open(&pipe).expect_err("it is a pipe");
    assert!(error.to_string().contains("is not a file"), "{error}");
}

/// An app on a disk, and its files.
fn sources() -> (TempDir, BTreeMap<String, PathBuf>) {
    let folder = folder();
    let mut files = BTreeMap::new();
    for (path, content) in [
        ("static/b.js", "alert()"),
        ("static/a/b.css", "body {}"),
        ("components/a.async.wasm", "\0asm"),
        ("migrations/default/V1__a.sql", "select 1"),
    ] {
        let file = folder.path().join(path);
        fs::create_dir_all(file.parent().expect("a folder")).expect("it is made");
        fs::write(&file, content).expect("there is room");
        files.insert(path.to_owned(), file);
    }
    (folder, files)
}

#[test]
fn the_same_app_has_the_same_digest_and_bytes() {
    let (first, files) = sources();
    let one = first.path().join("one.amphi");
    let digest = pack(TOML, &files, &one).expect("it is packed");
    let (second, others) = sources();
    for path in others.values() {
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("it is ours");
        let file = fs::File::options()
            .write(true)
            .open(path)
            .expect("it is ours");
        file.set_modified(std::time::UNIX_EPOCH)
            .expect("it is ours");
    }
    let other = second.path().join("other.amphi");
    assert_eq!(pack(TOML, &others, &other).expect("it is packed"), digest);
    let bytes = |path: &Path| fs::read(path).expect("it is there");
    assert_eq!(bytes(&one), bytes(&other));
    fs::write(&others["static/b.js"], "alert(1)").expect("there is room");
    assert_ne!(pack(TOML, &others, &other).expect("it is packed"), digest);
    let opened = Artifact::open(&one).expect("it is right");
    assert_eq!(opened.digest(), digest);
    let out = first.path().join("out");
    opened.unpack(&out).expect("it is unpacked");
    assert_eq!(files_in(&out).len(), 5);
    assert!(
        opened.unpack(&out).is_err(),
        "a folder that is there is not written to"
    );
    assert_eq!(files_in(&out).len(), 5);
}

#[test]
fn signatures_travel_and_are_checked() {
    let (folder, files) = sources();
    let path = folder.path().join("app.amphi");
    let digest = pack(TOML, &files, &path).expect("it is packed");
    let keys = || {
        let (secret, public) = signature::generate().expect("there are random numbers");
        (secret, TrustedKey::parse(&public).expect("it is a key"))
    };
    let ((own, own_key), (other, other_key)) = (keys(), keys());
    let opened = || Artifact::open(&path).expect("it is right");
    let check = |keys: &[&TrustedKey]| {
        let trust = Trust::Keys(keys.iter().map(|key| (*key).clone()).collect());
        let artifact = opened();
        let checked = trust.check(&artifact.manifest, &artifact.signatures);
        checked.map_err(|error| error.to_string())
    };
    let error = check(&[&own_key]).expect_err("nobody has signed");
    assert!(
        error.contains(&own_key.id()) && error.contains("it has none"),
        "{error}"
    );
    assert!(Trust::Anyone.check(&opened().manifest, &[]).is_ok());
    let signed = signature::sign(&opened().manifest, &own, None).expect("it is signed");
    sign(&opened(), signed.clone()).expect("it is written");
    assert_eq!(
        opened().digest(),
        digest,
        "a signature does not change the artifact"
    );
    assert_eq!(check(&[&own_key]), Ok(()));
    assert_eq!(check(&[&other_key, &own_key]), Ok(()));
    let error = check(&[&other_key]).expect_err("it is another key");
    assert!(
        error.contains(&format!("by the key {}", own_key.id())),
        "{error}"
    );
    assert!(check(&[]).is_err(), "nobody is trusted");
    let second = signature::sign(&opened().manifest, &other, None).expect("it is signed");
    sign(&opened(), second).expect("it is written");
    assert_eq!(opened().signatures.len(), 2);
    assert_eq!(check(&[&other_key]), Ok(()));
    assert_eq!(
        signature::names(&opened().signatures),
        [own_key.id(), other_key.id()]
    );

    // A signature of one artifact is none of another, nor is one that was changed.
    let artifact = opened();
    fs::write(&files["static/b.js"], "evil()").expect("there is room");
    pack(TOML, &files, &path).expect("it is packed");
    let changed = opened();
    let trust = Trust::Keys(vec![own_key.clone()]);
    let error = trust
        .check(&changed.manifest, &artifact.signatures)
        .expect_err("it is another one");
    assert!(error.to_string().contains("is not by it"), "{error}");
    let lines: Vec<&str> = signed.lines().collect();
    for broken in [
        String::new(),
        "\n\n\n\n".to_owned(),
        lines[..3].join("\n"),
        format!("{}\n{}\n{}\nAAAA", lines[0], lines[1], lines[2]),
        format!("{}\nAAAA\n{}\n{}", lines[0], lines[2], lines[3]),
        format!(
            "{}\n{}\ntrusted comment: other\n{}",
            lines[0], lines[1], lines[3]
        ),
        format!("{}\n{}\nx\n{}", lines[0], lines[1], lines[3]),
        signed.replace("RU", "RW"),
    ] {
        let signatures = [broken];
        let error = trust.check(&artifact.manifest, &signatures);
        assert!(error.is_err(), "{signatures:?}");
    }
}

#[test]
fn a_signature_of_another_app_in_the_file_is_refused() {
    let (folder, files) = sources();
    let path = folder.path().join("app.amphi");
    pack(TOML, &files, &path).expect("it is packed");
    let artifact = Artifact::open(&path).expect("it is right");
    let mut other = artifact.manifest.clone();
    other.bytes.push(b' ');
    let signed = super::write::signature_manifest(&other.descriptor(), &["x".to_owned()]);
    let signed = signed.expect("there is a signature");
    let mut entries = usual().entries();
    let manifest = usual().manifest.to_string();
    let index = json!({ "schemaVersion": 2, "manifests": [
        descriptor(MANIFEST, manifest.as_bytes()), descriptor(MANIFEST, &signed),
    ]});
    entries[1].content = index.to_string().into_bytes();
    entries.extend([blob(&signed), blob(b"{}"), blob(b"x")]);
    refused(&entries, "signatures of another app");
}

/// What can be done to the bytes of an artifact.
#[derive(Debug, Clone)]
enum Change {
    Set(usize, u8),
    Cut(usize),
    Remove(usize, usize),
    Repeat(usize, usize),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        (any::<usize>(), any::<u8>()).prop_map(|(at, to)| Change::Set(at, to)),
        any::<usize>().prop_map(Change::Cut),
        (any::<usize>(), 0..2_000_usize).prop_map(|(at, count)| Change::Remove(at, count)),
        (any::<usize>(), 0..2_000_usize).prop_map(|(at, count)| Change::Repeat(at, count)),
    ]
}

/// Corrects the checksum of each header, so that what is behind it is reached.
fn with_checksums(mut bytes: Vec<u8>) -> Vec<u8> {
    for block in bytes.chunks_exact_mut(512) {
        if &block[257..262] == b"ustar" {
            let mut header = Header::new_gnu();
            header.as_mut_bytes().copy_from_slice(block);
            header.set_cksum();
            block.copy_from_slice(header.as_bytes());
        }
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    /// Whatever is done to an artifact, it is refused, or what is unpacked is what was packed.
    #[test]
    fn a_changed_artifact_is_refused_or_the_same(
        changes in proptest::collection::vec(change(), 1..5),
        checksums in any::<bool>(),
    ) {
        let whole = archive(&usual().entries());
        let right = take(&whole).expect("it is right");
        let mut bytes = whole;
        for change in changes {
            let length = bytes.len().max(1);
            match change {
                Change::Set(at, to) => {
                    if let Some(byte) = bytes.get_mut(at % length) {
                        *byte = to;
                    }
                }
                Change::Cut(at) => bytes.truncate(at % length),
                Change::Remove(at, count) => {
                    let at = (at % length).min(bytes.len());
                    bytes.drain(at..bytes.len().min(at + count));
                }
                Change::Repeat(at, count) => {
                    let at = (at % length).min(bytes.len());
                    let piece = bytes[at..bytes.len().min(at + count)].to_vec();
                    bytes.splice(at..at, piece);
                }
            }
        }
        if checksums {
            bytes = with_checksums(bytes);
        }
        if let Ok(files) = take(&bytes) {
            prop_assert_eq!(files, right);
        }
    }

    /// No text is a path that leads out of a folder.
    #[test]
    fn a_path_stays_in_its_folder(path in "(static|components|migrations|\\.\\.|)(/(\\.|\\.\\.|a|%2e%2e|\\\\|~|\u{1F600}){0,3}){0,8}") {
        if Kind::of(&path, &LIMITS).is_ok() {
            let joined = Path::new("/folder").join(&path);
            prop_assert!(joined.components().all(|part| !matches!(part, std::path::Component::ParentDir)));
            prop_assert!(joined.starts_with("/folder"));
            prop_assert_eq!(joined.components().count(), 2 + path.split('/').count());
        }
    }
}

#[test]
fn references_are_read_as_they_are_written() {
    let digest = Digest::of(b"x");
    for text in [
        "localhost/a".to_owned(),
        "localhost:5000/team/shop_1.2-x:1.0-RC_1".to_owned(),
        "registry.example.com/a/b/c".to_owned(),
        "[::1]:5000/a".to_owned(),
        format!("127.0.0.1:5000/a:b@{digest}"),
        format!("a.b/c@{digest}"),
    ] {
        let reference: registry::Reference = text.parse().expect("it is one");
        assert_eq!(reference.to_string(), text);
        let with_scheme: registry::Reference = format!("oci://{text}").parse().expect("it is one");
        assert_eq!(with_scheme, reference);
    }
    for text in [
        "",
        "a",
        "a/b",
        "/b",
        "user@localhost/b",
        "a.b?c/d",
        "a.b#c/d",
        "a.b\\c/d",
        "a b.c/d",
        "https://a.b/c",
        "oci://oci://a.b/c",
        "a.b/",
        "a.b//c",
        "a.b/../c",
        "a.b/C",
        "a.b/.c",
        "a.b/c-",
        "a.b/c:",
        "a.b/c:-d",
        "a.b/c:d e",
        "a.b/c:d:e",
        "a.b/c:../../x",
        "a.b/c@sha256:00",
        "a.b/c@md5:00",
        "a.b:port/c",
    ] {
        let parsed = text.parse::<registry::Reference>();
        let sentence = parsed.expect_err(text);
        assert!(
            sentence.contains("is not a reference to an artifact"),
            "{sentence}"
        );
    }
}
