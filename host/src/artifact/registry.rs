//! Artifacts in a registry, by the distribution protocol of OCI.
//!
//! The few requests that this takes are made here: the known client libraries read manifests, tokens and errors of any
//! length into memory, and a registry may be an attacker, too. Everything that a registry answers is bounded by
//! [`Limits`], and contents are compared with their digests while they are written.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use docker_credential::DockerCredential;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use parking_lot::Mutex;
use reqwest::header::{self, HeaderValue};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, Url, redirect};
use tokio::sync::mpsc;

use super::layout::{Digest, EMPTY_CONTENT, MANIFEST};
use super::limits::{ArtifactError, LIMITS, Limits, Result, within};
use super::manifest::{self, AppManifest, json};
use super::read::Artifact;
use super::write::{Writer, is_whole, signature_manifest, signature_tag};

/// How long a connection may take to open.
const CONNECT_TIME: Duration = Duration::from_secs(10);
/// How long a registry may send nothing.
const SILENCE: Duration = Duration::from_secs(60);
/// How long a whole pull or push may take.
const WHOLE_TIME: Duration = Duration::from_secs(30 * 60);
/// The most bytes of an answer that is an error or a token.
const ANSWER_BYTES: u64 = 64 << 10;
/// How many contents are sent at the same time.
const SENT_AT_ONCE: usize = 4;
/// How many pieces of a content wait to be sent.
const PIECES: usize = 2;
/// The most redirects, of contents that a registry keeps elsewhere.
const REDIRECTS: usize = 5;

/// The name of an artifact in a registry: `HOST[:PORT]/NAME[:TAG][@DIGEST]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    host: String,
    name: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// What a reference on the command line begins with.
pub const SCHEME: &str = "oci://";

impl FromStr for Reference {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Reference, String> {
        let wrong = |why: &str| {
            Err(format!(
                "`{}` is not a reference to an artifact: {why}; write HOST[:PORT]/NAME[:TAG] or HOST[:PORT]/NAME@sha256:…, e.g. registry.example.com/team/shop:1.0",
                text.escape_debug()
            ))
        };
        let rest = text.strip_prefix(SCHEME).unwrap_or(text);
        let Some((host, rest)) = rest.split_once('/') else {
            return wrong("it has no `/`");
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || ".-:[]".contains(c);
        let is_host = host.chars().all(plain) && Url::parse(&format!("http://{host}/")).is_ok();
        if !is_host || !(host.contains(['.', ':']) || host == "localhost") {
            return wrong("the part before the first `/` is not the host of a registry");
        }
        let (rest, digest) = match rest.split_once('@') {
            None => (rest, None),
            Some((rest, digest)) => match digest.parse() {
                Ok(digest) => (rest, Some(digest)),
                Err(sentence) => return wrong(&format!("behind the `@`, {sentence}")),
            },
        };
        let (name, tag) = match rest.split_once(':') {
            None => (rest, None),
            Some((name, tag)) => (name, Some(tag.to_owned())),
        };
        let is_part = |part: &str| {
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
            let ends = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
            part.chars().all(plain) && part.starts_with(ends) && part.ends_with(ends)
        };
        if name.len() > 255 || !name.split('/').all(is_part) {
            return wrong(
                "a name has small letters, digits, `.`, `_` and `-`, with `/` between its parts",
            );
        }
        let is_tag = |tag: &String| {
            let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            (1..=128).contains(&tag.len()) && tag.chars().all(plain) && !tag.starts_with(['.', '-'])
        };
        if !tag.iter().all(is_tag) {
            return wrong("a tag has at most 128 letters, digits, `.`, `_` and `-`");
        }
        Ok(Reference {
            host: host.to_owned(),
            name: name.to_owned(),
            tag,
            digest,
        })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.name)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

impl Reference {
    /// The last part of the name: what a folder for the artifact's state is called.
    pub fn short_name(&self) -> &str {
        self.name.rsplit('/').next().unwrap_or(&self.name)
    }

    /// What a registry knows the manifest by.
    fn version(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".to_owned(),
        }
    }

    fn is_loopback(&self) -> bool {
        let url = Url::parse(&format!("http://{}/", self.host));
        let host = url
            .as_ref()
            .ok()
            .and_then(Url::host_str)
            .unwrap_or_default();
        let plain = host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost"
            || plain
                .parse()
                .is_ok_and(|address: std::net::IpAddr| address.is_loopback())
    }
}

/// Fetches the artifact of `reference` into the file `out`. `check` sees the manifest and the signatures before anything
/// else is fetched. Writes to the disk between its waits, so it must not run on an event loop.
///
/// # Errors
/// When the registry cannot be reached or refuses, or the artifact is refused. There is no file then.
pub async fn pull(
    reference: &Reference,
    out: &Path,
    check: impl Fn(&AppManifest, &[String]) -> Result<()>,
) -> Result<Digest> {
    pull_within(reference, out, &LIMITS, check).await
}

/// Like [`pull`], with other limits.
///
/// # Errors
/// As [`pull`].
pub async fn pull_within(
    reference: &Reference,
    out: &Path,
    limits: &Limits,
    check: impl Fn(&AppManifest, &[String]) -> Result<()>,
) -> Result<Digest> {
    let pulling = async {
        let registry = Registry::connect(reference, "pull").await?;
        let Some(bytes) = registry.manifest(&reference.version(), limits).await? else {
            return Err(registry.refused(&format!("has no artifact `{}`", reference.version())));
        };
        if let Some(wanted) = reference.digest {
            is_whole(0, 0, Digest::of(&bytes), wanted)?;
        }
        let manifest = AppManifest::parse(bytes, limits)?;
        let signatures = registry.signatures(&manifest, limits).await?;
        check(&manifest, &signatures)?;
        let mut writer = Writer::begin(out, &manifest, &signatures)?;
        for (path, digest, size) in manifest.contents() {
            let what = format!("`{path}`");
            let Some(mut content) = writer.content(digest, size)? else {
                continue;
            };
            registry
                .blob(&what, digest, size, |piece| content.add(piece))
                .await?;
            let ended = content.end();
            ended.map_err(|error| registry.refused(&format!("sent {what}: {error}")))?;
        }
        writer.finish(out)?;
        Ok(manifest.digest)
    };
    in_time(reference, pulling).await
}

/// Sends an artifact to a registry, with its signatures.
///
/// # Errors
/// When the registry cannot be reached or refuses, or the file is damaged.
pub async fn push(artifact: &Arc<Artifact>, reference: &Reference) -> Result<()> {
    let pushing = async {
        if reference
            .digest
            .is_some_and(|wanted| wanted != artifact.digest())
        {
            return Err(ArtifactError::refused(format!(
                "the artifact is {}, and cannot be pushed as {reference}",
                artifact.digest()
            )));
        }
        let registry = Registry::connect(reference, "pull,push").await?;
        let manifest = &artifact.manifest;
        // The signatures first: whoever finds the artifact finds them, too.
        if let Some(signed) = signature_manifest(&manifest.descriptor(), &artifact.signatures) {
            let small = artifact.signatures.iter().map(String::as_bytes);
            for bytes in small.chain([EMPTY_CONTENT]) {
                registry.send_bytes(bytes).await?;
            }
            let tag = signature_tag(manifest.digest);
            registry.send_manifest(&tag, signed).await?;
        }
        let sending = manifest.contents().into_iter().map(|(path, digest, size)| {
            registry.send_content(Arc::clone(artifact), format!("`{path}`"), digest, size)
        });
        let sending = stream::iter(sending).buffer_unordered(SENT_AT_ONCE);
        sending.try_for_each(async |()| Ok(())).await?;
        let bytes = manifest.bytes.clone();
        registry.send_manifest(&reference.version(), bytes).await
    };
    in_time(reference, pushing).await
}

async fn in_time<T>(reference: &Reference, work: impl Future<Output = Result<T>>) -> Result<T> {
    let late = || {
        ArtifactError::refused(format!(
            "{reference}: it took longer than {} minutes",
            WHOLE_TIME.as_secs() / 60
        ))
    };
    let done = tokio::time::timeout(WHOLE_TIME, work).await;
    done.map_err(|_| late())?.map_err(|error| match error {
        ArtifactError::Refused(sentence) => {
            ArtifactError::Refused(format!("{reference}: {sentence}"))
        }
        other => other,
    })
}

/// A registry, and what is sent to it as proof of who asks.
struct Registry {
    client: Client,
    /// `https://HOST`
    base: String,
    name: String,
    host: String,
    authorization: Mutex<Option<HeaderValue>>,
}

/// A token that a registry gives for a name and password.
#[derive(serde::Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

impl Registry {
    /// Finds out how a registry is reached, and proves who asks. `actions`: what is going to be done.
    async fn connect(reference: &Reference, actions: &str) -> Result<Registry> {
        let host = &reference.host;
        let mut registry = Registry {
            client: client(reference.is_loopback())
                .map_err(|error| failed("the client for registries", &error))?,
            base: format!("https://{host}"),
            name: reference.name.clone(),
            host: reference.host.clone(),
            authorization: Mutex::default(),
        };
        let mut greeted = registry.greet().await;
        if greeted.is_err() && reference.is_loopback() {
            registry.base = format!("http://{host}");
            greeted = registry.greet().await;
        }
        let greeted =
            greeted.map_err(|error| registry.refused(&format!("cannot be reached: {error}")))?;
        if greeted.status() == StatusCode::UNAUTHORIZED {
            let authorization = registry.authorize(&greeted, actions).await?;
            registry.authorization = Mutex::new(Some(authorization));
        }
        Ok(registry)
    }

    async fn greet(&self) -> std::result::Result<Response, String> {
        let request = self.client.get(format!("{}/v2/", self.base));
        request.send().await.map_err(|error| shown(&error))
    }

    /// Answers the challenge of a registry.
    async fn authorize(&self, challenged: &Response, actions: &str) -> Result<HeaderValue> {
        let challenges = challenged.headers().get_all(header::WWW_AUTHENTICATE);
        let challenges = challenges.iter().filter_map(|value| value.to_str().ok());
        let challenges: Vec<_> = challenges
            .filter_map(|text| http_auth::parse_challenges(text).ok())
            .flatten()
            .collect();
        let credential = credential(&self.host).await;
        let basic = |user: &str, password: &str| {
            secret(&format!(
                "Basic {}",
                STANDARD.encode(format!("{user}:{password}"))
            ))
        };
        let is = |scheme: &'static str| {
            (challenges.iter()).find(move |found| found.scheme.eq_ignore_ascii_case(scheme))
        };
        if let Some(challenge) = is("bearer") {
            let parameter = |name: &str| {
                let mut parameters = challenge.params.iter();
                let found = parameters.find(|(found, _)| found.eq_ignore_ascii_case(name));
                found.map(|(_, value)| value.to_unescaped())
            };
            let realm = parameter("realm").and_then(|realm| Url::parse(&realm).ok());
            let Some(mut realm) = realm.filter(|realm| self.is_safe(realm)) else {
                return Err(self.refused("names no safe address to get a token at"));
            };
            let service = parameter("service");
            let mut query = realm.query_pairs_mut();
            query.extend_pairs(service.iter().map(|service| ("service", service)));
            query.append_pair("scope", &format!("repository:{}:{actions}", self.name));
            drop(query);
            let mut request = self.client.get(realm);
            match &credential {
                Some(DockerCredential::UsernamePassword(user, password)) => {
                    request = request.header(header::AUTHORIZATION, basic(user, password)?);
                }
                Some(DockerCredential::IdentityToken(token)) => {
                    return secret(&format!("Bearer {token}"));
                }
                None => {}
            }
            let answer = self.send("gives no token", request).await?;
            let answer = bounded("a token", answer, ANSWER_BYTES).await?;
            let token: Token = json("the token", &answer)?;
            let Some(token) = token.token.or(token.access_token) else {
                return Err(self.refused("gives no token"));
            };
            return secret(&format!("Bearer {token}"));
        }
        match (is("basic"), credential) {
            (Some(_), Some(DockerCredential::UsernamePassword(user, password))) => {
                basic(&user, &password)
            }
            _ => Err(self.refused(&format!(
                "wants to know who asks, and there is no name and password for it: `docker login {}` (or podman, skopeo, oras) puts them into ~/.docker/config.json, or into the folder DOCKER_CONFIG",
                self.host
            ))),
        }
    }

    /// Whether a password, a token or a content may be sent to an address that the registry names: none leaves a
    /// connection with TLS for one without.
    fn is_safe(&self, url: &Url) -> bool {
        url.scheme() == "https" || self.base.starts_with("http:")
    }

    fn refused(&self, sentence: &str) -> ArtifactError {
        ArtifactError::refused(format!("the registry {sentence}"))
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let url = format!("{}/v2/{}/{path}", self.base, self.name);
        self.authorized(self.client.request(method, url))
    }

    fn authorized(&self, request: RequestBuilder) -> RequestBuilder {
        match &*self.authorization.lock() {
            Some(value) => request.header(header::AUTHORIZATION, value),
            None => request,
        }
    }

    /// Sends a request, and takes only a success for an answer. `what`: what it means that there is none.
    async fn send(&self, what: &str, request: RequestBuilder) -> Result<Response> {
        match self.send_any(what, request).await? {
            Ok(answer) => Ok(answer),
            Err((status, said)) => Err(self.refused(&format!("{what}: {status}{said}"))),
        }
    }

    async fn send_any(
        &self,
        what: &str,
        request: RequestBuilder,
    ) -> Result<std::result::Result<Response, (StatusCode, String)>> {
        let answer = request.send().await.map_err(|error| failed(what, &error))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(Ok(answer));
        }
        let said = bounded("an error", answer, ANSWER_BYTES).await;
        let said = said.unwrap_or_default();
        let said: String = String::from_utf8_lossy(&said).chars().take(300).collect();
        let said = match said.trim() {
            "" => String::new(),
            said => format!(", {}", said.escape_debug()),
        };
        Ok(Err((status, said)))
    }

    /// A manifest; none if the registry has no such one.
    async fn manifest(&self, version: &str, limits: &Limits) -> Result<Option<Vec<u8>>> {
        let request = self.request(Method::GET, &format!("manifests/{version}"));
        let what = format!("does not give the manifest `{version}`");
        match self
            .send_any(&what, request.header(header::ACCEPT, MANIFEST))
            .await?
        {
            Ok(answer) => {
                let bytes = bounded("the manifest", answer, limits.manifest_bytes).await?;
                Ok(Some(bytes))
            }
            Err((StatusCode::NOT_FOUND, _)) => Ok(None),
            Err((status, said)) => Err(self.refused(&format!("{what}: {status}{said}"))),
        }
    }

    async fn signatures(&self, app: &AppManifest, limits: &Limits) -> Result<Vec<String>> {
        let tag = signature_tag(app.digest);
        let Some(bytes) = self.manifest(&tag, limits).await? else {
            return Ok(Vec::new());
        };
        let Some(layers) = manifest::signatures(&bytes, app.digest, limits)? else {
            return Err(self.refused(&format!("has signatures of another app as `{tag}`")));
        };
        let mut signatures = Vec::new();
        for layer in layers {
            let mut text = Vec::new();
            let add = |piece: &[u8]| {
                text.extend_from_slice(piece);
                let size = text.len() as u64;
                within("a signature has", size, layer.size, "bytes")
            };
            self.blob("a signature", layer.digest, layer.size, add)
                .await?;
            is_whole(
                text.len() as u64,
                layer.size,
                Digest::of(&text),
                layer.digest,
            )?;
            let text = String::from_utf8(text);
            signatures.push(text.map_err(|_| self.refused("sent a signature that is not UTF-8"))?);
        }
        Ok(signatures)
    }

    /// Fetches a content in pieces. The caller compares it with its digest.
    async fn blob(
        &self,
        what: &str,
        digest: Digest,
        size: u64,
        mut add: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let request = self.request(Method::GET, &format!("blobs/{digest}"));
        let what = format!("does not give {what}");
        let mut answer = self.send(&what, request).await?;
        if answer.content_length().is_some_and(|length| length != size) {
            return Err(self.refused(&format!("{what} with the size that the manifest says")));
        }
        while let Some(piece) = answer
            .chunk()
            .await
            .map_err(|error| failed(&what, &error))?
        {
            add(&piece).map_err(|error| self.refused(&format!("{what} as it is: {error}")))?;
        }
        Ok(())
    }

    async fn has(&self, digest: Digest) -> Result<bool> {
        let request = self.request(Method::HEAD, &format!("blobs/{digest}"));
        match self.send_any("does not say what it has", request).await? {
            Ok(_) => Ok(true),
            Err((StatusCode::NOT_FOUND, _)) => Ok(false),
            Err((status, _)) => Err(self.refused(&format!("does not say what it has: {status}"))),
        }
    }

    async fn send_bytes(&self, bytes: &[u8]) -> Result<()> {
        let digest = Digest::of(bytes);
        if self.has(digest).await? {
            return Ok(());
        }
        let body = reqwest::Body::from(bytes.to_vec());
        self.send_blob(digest, bytes.len() as u64, body).await
    }

    async fn send_content(
        &self,
        artifact: Arc<Artifact>,
        what: String,
        digest: Digest,
        size: u64,
    ) -> Result<()> {
        if self.has(digest).await? {
            return Ok(());
        }
        let (sender, receiver) = mpsc::channel(PIECES);
        // The file is read on a thread for blocking work, which ends when the request does: sending then fails.
        let reading = tokio::task::spawn_blocking(move || {
            artifact.copy_content(&what, digest, size, |piece| {
                let sent =
                    sender.blocking_send(Ok::<_, std::io::Error>(Bytes::copy_from_slice(piece)));
                sent.map_err(|_| ArtifactError::refused(format!("{what} was not taken")))
            })
        });
        let pieces = stream::unfold(receiver, async |mut receiver| {
            receiver.recv().await.map(|piece| (piece, receiver))
        });
        let sent = self
            .send_blob(digest, size, reqwest::Body::wrap_stream(pieces))
            .await;
        let read = reading.await;
        // What the registry says comes before the end of reading that it caused.
        sent?;
        read.map_err(|error| ArtifactError::refused(error.to_string()))?
    }

    async fn send_blob(&self, digest: Digest, size: u64, body: reqwest::Body) -> Result<()> {
        let what = "does not take contents";
        let request = self.request(Method::POST, "blobs/uploads/");
        let request = request.header(header::CONTENT_LENGTH, 0);
        let begun = self.send(what, request).await?;
        let location = begun.headers().get(header::LOCATION);
        let location = location.and_then(|value| value.to_str().ok());
        let base = Url::parse(&self.base).map_err(|error| self.refused(&error.to_string()))?;
        let url = location.and_then(|location| begun.url().join(location).ok());
        let Some(mut url) = url.filter(|url| self.is_safe(url)) else {
            return Err(self.refused("names no safe address to send contents to"));
        };
        let is_own = url.origin() == base.origin();
        url.query_pairs_mut()
            .append_pair("digest", &digest.to_string());
        let mut request = self.client.put(url);
        if is_own {
            request = self.authorized(request);
        }
        let request = request
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .header(header::CONTENT_LENGTH, size)
            .body(body);
        self.send(what, request).await.map(drop)
    }

    async fn send_manifest(&self, version: &str, bytes: Vec<u8>) -> Result<()> {
        let request = self
            .request(Method::PUT, &format!("manifests/{version}"))
            .header(header::CONTENT_TYPE, MANIFEST)
            .body(bytes);
        let what = format!("does not take the manifest `{version}`");
        self.send(&what, request).await.map(drop)
    }
}

fn client(loopback: bool) -> reqwest::Result<Client> {
    // The first provider counts; the client for outbound requests may have set the same one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let policy = redirect::Policy::custom(|attempt| {
        let from = attempt.previous().last();
        if attempt.previous().len() > REDIRECTS {
            return attempt.error("too many redirects");
        }
        match from.is_some_and(|from| from.scheme() == "https") && attempt.url().scheme() != "https"
        {
            true => attempt.error("a redirect from TLS to plain HTTP"),
            false => attempt.follow(),
        }
    });
    let builder = Client::builder()
        .redirect(policy)
        .connect_timeout(CONNECT_TIME)
        .read_timeout(SILENCE)
        .user_agent(concat!("amphi/", env!("CARGO_PKG_VERSION")));
    match loopback {
        true => builder.no_proxy().build(),
        false => builder.build(),
    }
}

/// The name and password that `docker login` has kept for a registry.
async fn credential(host: &str) -> Option<DockerCredential> {
    let server = host.to_owned();
    // Asking may start a program that keeps passwords.
    let asking = tokio::task::spawn_blocking(move || docker_credential::get_credential(&server));
    asking.await.ok()?.ok()
}

/// A header that is not shown in logs.
fn secret(text: &str) -> Result<HeaderValue> {
    let mut value = HeaderValue::from_str(text).map_err(|_| {
        ArtifactError::refused("the name, password or token has characters that no header can have")
    })?;
    value.set_sensitive(true);
    Ok(value)
}

/// Reads an answer that is small.
async fn bounded(what: &str, mut answer: Response, max: u64) -> Result<Vec<u8>> {
    let what = format!("{what} has");
    within(&what, answer.content_length().unwrap_or(0), max, "bytes")?;
    let mut bytes = Vec::new();
    while let Some(piece) = answer
        .chunk()
        .await
        .map_err(|error| failed(&what, &error))?
    {
        within(
            &what,
            (bytes.len() + piece.len()) as u64,
            max,
            "or more bytes",
        )?;
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

fn failed(what: &str, error: &reqwest::Error) -> ArtifactError {
    ArtifactError::refused(format!("the registry {what}: {}", shown(error)))
}

/// An error with its causes. The address is left out: it may have a token in it.
fn shown(error: &reqwest::Error) -> String {
    let mut text = String::new();
    let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(error);
    if cause.is_none() {
        text = match error {
            error if error.is_timeout() => "it took too long".to_owned(),
            _ => "the connection failed".to_owned(),
        };
    }
    while let Some(error) = cause {
        if !text.is_empty() {
            text += ": ";
        }
        text += &error.to_string();
        cause = error.source();
    }
    text
}
