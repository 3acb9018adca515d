//! What the hosts of a fleet share, in NATS: two buckets of JetStream's key-value store, and one of its object store.
//!
//! ```text
//! KV_amphi-NAME-deploy  desired   what all hosts are to serve, and the change under way: one value, replaced only by
//!                                 whoever has read the one before
//! KV_amphi-NAME-hosts   ID        what a host serves, and how it is; written every two seconds, gone after two hours
//! OBJ_amphi-NAME        sha256-…  the files of artifacts
//! ```
//!
//! Buckets that are there already are used as they are: whoever has a cluster makes them with replicas. What is read here
//! was written by whoever may write to NATS: sizes are limited, and artifacts are checked as uploads are.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use async_nats::connection::State;
use async_nats::jetstream::context::{GetStreamErrorKind, KeyValueErrorKind, ObjectStoreErrorKind};
use async_nats::jetstream::kv::{self, UpdateErrorKind};
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::object_store::{self, InfoErrorKind, ObjectMetadata, ObjectStore};
use async_nats::jetstream::stream::{DiscardPolicy, LastRawMessageErrorKind, Stream};
use async_nats::jetstream::{self, Context, ErrorCode};
use async_nats::{Client, Event};
use futures::StreamExt as _;
use futures::future::try_join_all;
use serde::Serialize;
use serde::de::DeserializeOwned;
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use super::shared::{Desired, Heard, Report};
use crate::artifact::Digest;
use crate::channels;
use crate::config::FleetConfig;

/// How long one call may take.
const CALL: Duration = Duration::from_secs(4);
/// The most bytes of a value.
const VALUE_BYTES: usize = 512 << 10;
/// The most hosts of a fleet, those of the last hours included.
pub(super) const HOSTS: usize = 512;
/// The host's values that are asked for at the same time.
const AT_ONCE: usize = 16;
/// How long a host is remembered that is not heard any more.
const REMEMBERED: Duration = Duration::from_secs(2 * 60 * 60);
/// How long an artifact is kept that nothing names.
const UNUSED: Duration = Duration::from_secs(60 * 60);
/// How much of an artifact is read at once.
const PIECE: usize = 128 << 10;
/// The key of what all are to serve.
const DESIRED: &str = "desired";

/// The fleet's part of a NATS server.
pub(super) struct Store {
    client: Client,
    context: Context,
    name: String,
    opened: tokio::sync::Mutex<Option<Opened>>,
}

#[derive(Clone)]
struct Opened {
    desired: kv::Store,
    hosts: kv::Store,
    artifacts: ObjectStore,
}

/// What has become of an attempt to replace a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Written {
    /// It is replaced. The new value has this revision.
    Done(u64),
    /// Somebody has replaced it before.
    Overtaken,
}

impl Store {
    /// Begins to connect, and goes on with it while there is no server.
    ///
    /// # Errors
    /// When a URL is none.
    pub(super) async fn connect(config: &FleetConfig) -> anyhow::Result<Store> {
        let (servers, options) = channels::options(&config.urls)?;
        let options = options
            .connection_timeout(CALL)
            .request_timeout(Some(CALL))
            .custom_inbox_prefix(format!("amphi.{}.inbox", config.name))
            .event_callback(async |event| noted(&event))
            .retry_on_initial_connect();
        let connected = Box::pin(options.connect(servers)).await;
        // The kind has no URL in it; the source may.
        let client =
            connected.map_err(|error| anyhow!("NATS cannot be reached: {}", error.kind()))?;
        let mut context = jetstream::new(client.clone());
        context.set_timeout(CALL);
        Ok(Store {
            client,
            context,
            name: format!("amphi-{}", config.name),
            opened: tokio::sync::Mutex::default(),
        })
    }

    /// Waits for a connection, for as long as one call may take.
    pub(super) async fn connected(&self) -> bool {
        let waiting = async {
            while self.client.connection_state() != State::Connected {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(CALL, waiting).await.is_ok()
    }

    /// Runs a call within its time. After a failure the buckets are looked up again, since the server may have lost them.
    async fn call<T>(
        &self,
        call: impl AsyncFnOnce(Opened) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        self.call_within(CALL, call).await
    }

    async fn call_within<T>(
        &self,
        time: Duration,
        call: impl AsyncFnOnce(Opened) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        if self.client.connection_state() != State::Connected {
            bail!("NATS cannot be reached");
        }
        // The client's futures are large, and so would be those of all callers.
        let calling = Box::pin(async { call(self.open().await?).await });
        let called = timeout(time, calling).await;
        let result =
            called.unwrap_or_else(|_| Err(anyhow!("NATS has not answered within {time:?}")));
        if result.is_err()
            && let Ok(mut opened) = self.opened.try_lock()
        {
            *opened = None;
        }
        result
    }

    async fn open(&self) -> anyhow::Result<Opened> {
        let mut opened = self.opened.lock().await;
        if let Some(opened) = &*opened {
            return Ok(opened.clone());
        }
        let deploy = self.bucket("deploy", Duration::ZERO);
        let hosts = self.bucket("hosts", REMEMBERED);
        let found = Opened {
            desired: deploy.await?,
            hosts: hosts.await?,
            artifacts: self.objects().await?,
        };
        Ok(opened.insert(found).clone())
    }

    async fn bucket(&self, what: &str, max_age: Duration) -> anyhow::Result<kv::Store> {
        let bucket = format!("{}-{what}", self.name);
        let making = || format!("the bucket {bucket} of NATS");
        let error = match self.context.get_key_value(&*bucket).await {
            Ok(store) => return Ok(store),
            Err(error) => error,
        };
        if error.kind() != KeyValueErrorKind::GetBucket || !is_missing(&error) {
            return Err(explained(error)).with_context(making);
        }
        // What the client's own function makes; that one fails on NATS 2.9, whose accounts say less.
        let config = jetstream::stream::Config {
            name: format!("KV_{bucket}"),
            subjects: vec![format!("$KV.{bucket}.>")],
            max_messages_per_subject: 1,
            max_age,
            max_message_size: i32::try_from(VALUE_BYTES).unwrap_or(i32::MAX),
            num_replicas: 1,
            discard: DiscardPolicy::New,
            allow_rollup: true,
            allow_direct: true,
            deny_delete: true,
            ..jetstream::stream::Config::default()
        };
        let created = self.context.create_stream(config).await;
        created.map_err(explained).with_context(making)?;
        let made = self.context.get_key_value(&*bucket).await;
        made.map_err(explained).with_context(making)
    }

    async fn objects(&self) -> anyhow::Result<ObjectStore> {
        let making = || format!("the object store {} of NATS", self.name);
        let error = match self.context.get_object_store(&self.name).await {
            Ok(store) => return Ok(store),
            Err(error) => error,
        };
        if error.kind() != ObjectStoreErrorKind::GetStore || !is_missing(&error) {
            return Err(explained(error)).with_context(making);
        }
        let config = object_store::Config {
            bucket: self.name.clone(),
            ..object_store::Config::default()
        };
        let created = self.context.create_object_store(config).await;
        created.map_err(explained).with_context(making)
    }

    /// What all hosts are to serve, and its revision. None: nobody has said yet; the revision is then what a first value
    /// replaces.
    pub(super) async fn desired(&self) -> anyhow::Result<(u64, Option<Desired>)> {
        self.call(async |opened| {
            let found = last(&opened.desired, DESIRED).await?;
            let Some(message) = found else {
                return Ok((0, None));
            };
            // Somebody has deleted it.
            if message.payload.is_empty() {
                return Ok((message.sequence, None));
            }
            let desired = parsed(&message)
                .context("the key `desired` of NATS was not written by a host of this version")?;
            Ok((message.sequence, Some(desired)))
        })
        .await
    }

    /// Replaces what all hosts are to serve, if it has this revision still. An error leaves open whether it was replaced.
    pub(super) async fn replace(
        &self,
        desired: &Desired,
        revision: u64,
    ) -> anyhow::Result<Written> {
        let value = written(desired)?;
        self.call(async |opened| {
            match opened.desired.update(DESIRED, value.into(), revision).await {
                Ok(revision) => Ok(Written::Done(revision)),
                Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => {
                    Ok(Written::Overtaken)
                }
                Err(error) => Err(explained(error)),
            }
        })
        .await
    }

    /// Tells the others how this host is.
    pub(super) async fn report(&self, id: &str, report: &Report) -> anyhow::Result<()> {
        let value = written(report)?;
        self.call(async |opened| {
            opened
                .hosts
                .put(id, value.into())
                .await
                .map_err(explained)?;
            Ok(())
        })
        .await
    }

    /// The hosts of the fleet, by name. What is no report of a host is left out.
    pub(super) async fn hosts(&self) -> anyhow::Result<Vec<Heard>> {
        self.call(async |opened| {
            let prefix = format!("$KV.{}-hosts.", self.name);
            let subjects = opened.hosts.stream.info_with_subjects(format!("{prefix}*"));
            let mut subjects = subjects.await.map_err(explained)?.take(HOSTS);
            let mut ids = Vec::new();
            while let Some(subject) = subjects.next().await {
                let (subject, _) = subject.map_err(explained)?;
                ids.extend(subject.strip_prefix(&prefix).map(str::to_owned));
            }
            ids.sort();
            heard(&opened.hosts, ids).await
        })
        .await
    }

    /// One host, by name. `own`: the name of this host, which has just reported: its time says what the server's is.
    pub(super) async fn host(&self, id: &str, own: &str) -> anyhow::Result<Option<Heard>> {
        self.call(async |opened| {
            let hosts = heard(&opened.hosts, vec![id.to_owned(), own.to_owned()]).await?;
            Ok(hosts.into_iter().find(|host| host.id == id))
        })
        .await
    }

    /// Puts the file of an artifact there. `signatures`: the digests of those in it.
    pub(super) async fn put(
        &self,
        digest: Digest,
        signatures: &[Digest],
        file: &Path,
        time: Duration,
    ) -> anyhow::Result<()> {
        let signatures = signatures.iter().map(|it| (it.to_string(), String::new()));
        let meta = ObjectMetadata {
            name: object(digest),
            metadata: signatures.collect(),
            ..ObjectMetadata::default()
        };
        self.call_within(time, async |opened| {
            let mut file = tokio::fs::File::open(file).await?;
            let putting = opened.artifacts.put(meta, &mut file);
            putting.await.map_err(explained)?;
            Ok(())
        })
        .await
        .context("keeping the artifact in NATS")
    }

    /// Whether an artifact is there, with these signatures at least.
    pub(super) async fn has(&self, digest: Digest, signatures: &[Digest]) -> anyhow::Result<bool> {
        self.call(
            async |opened| match opened.artifacts.info(object(digest)).await {
                Ok(info) => {
                    let has =
                        |signature: &Digest| info.metadata.contains_key(&signature.to_string());
                    Ok(!info.deleted && signatures.iter().all(has))
                }
                Err(error) if error.kind() == InfoErrorKind::NotFound => Ok(false),
                Err(error) => Err(explained(error)),
            },
        )
        .await
    }

    /// Gets an artifact of at most so many bytes into a file.
    pub(super) async fn get(
        &self,
        digest: Digest,
        out: &Path,
        max: u64,
        time: Duration,
    ) -> anyhow::Result<()> {
        self.call_within(time, async |opened| {
            let too_large = || {
                anyhow!(
                    "it is larger than {} MB (`artifact_max_mb` of `[deploy]`)",
                    max >> 20
                )
            };
            let mut object = opened
                .artifacts
                .get(object(digest))
                .await
                .map_err(explained)?;
            if object.info().size as u64 > max {
                return Err(too_large());
            }
            let mut file = tokio::fs::File::create(out).await?;
            let (mut piece, mut received) = (vec![0; PIECE], 0);
            loop {
                let read = timeout(CALL, object.read(&mut piece)).await;
                let length = read.with_context(|| format!("nothing came within {CALL:?}"))??;
                if length == 0 {
                    break;
                }
                received += length as u64;
                if received > max {
                    return Err(too_large());
                }
                file.write_all(&piece[..length]).await?;
            }
            file.flush().await?;
            Ok(())
        })
        .await
        .with_context(|| format!("getting {digest} from NATS"))
    }

    /// Removes artifacts that are not among these, once they have been there for an hour.
    pub(super) async fn prune(&self, named: &[Digest]) -> anyhow::Result<()> {
        self.call_within(10 * CALL, async |opened| {
            let named: Vec<String> = named.iter().map(|digest| object(*digest)).collect();
            let mut objects = opened.artifacts.list().await.map_err(explained)?;
            let mut old = Vec::new();
            while let Some(object) = objects.next().await {
                let object = object.map_err(explained)?;
                let age = object.modified.map(|at| OffsetDateTime::now_utc() - at);
                if !named.contains(&object.name) && age.is_none_or(|age| age > UNUSED) {
                    old.push(object.name);
                }
            }
            for name in old {
                opened.artifacts.delete(&name).await.map_err(explained)?;
            }
            Ok(())
        })
        .await
    }
}

/// What happens to the connection is seen by the calls that fail; only what the server refuses is worth a line.
fn noted(event: &Event) {
    match event {
        Event::ServerError(error) => {
            tracing::warn!(target: "amphi::admin", "NATS refuses: {error}");
        }
        event => tracing::debug!(target: "amphi::admin", "NATS: {event}"),
    }
}

/// What is known of these hosts.
async fn heard(store: &kv::Store, ids: Vec<String>) -> anyhow::Result<Vec<Heard>> {
    let mut messages = Vec::new();
    for some in ids.chunks(AT_ONCE) {
        let reading = some.iter().map(|id| last(store, id));
        messages.extend(try_join_all(reading).await?);
    }
    // All times are the server's: those of hosts may differ.
    let times = messages.iter().flatten().map(|message| message.time);
    let now = times.max().unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let known = ids.into_iter().zip(messages).filter_map(|(id, message)| {
        let message = message?;
        Some(Heard {
            id,
            report: parsed(&message)?,
            silent: Duration::try_from(now - message.time).unwrap_or_default(),
        })
    });
    Ok(known.collect())
}

/// The last value of a key, as the leader of the bucket has it: a replica's may be an earlier one.
async fn last(store: &kv::Store, key: &str) -> anyhow::Result<Option<StreamMessage>> {
    let stream: &Stream<_> = &store.stream;
    let subject = format!("$KV.{}.{key}", store.name);
    match stream.get_last_raw_message_by_subject(&subject).await {
        Ok(message) => Ok(Some(message)),
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
        Err(error) => Err(explained(error)),
    }
}

fn parsed<T: DeserializeOwned>(message: &StreamMessage) -> Option<T> {
    let bytes = &message.payload;
    let is_short = bytes.len() <= VALUE_BYTES;
    is_short
        .then(|| serde_json::from_slice(bytes).ok())
        .flatten()
}

fn written(value: &impl Serialize) -> anyhow::Result<Vec<u8>> {
    let bytes = serde_json::to_vec(value).expect("it is plain data");
    if bytes.len() > VALUE_BYTES {
        bail!(
            "it has over {VALUE_BYTES} bytes, which is too much for NATS: a smaller `keep` in `[deploy]` makes it shorter"
        );
    }
    Ok(bytes)
}

/// The name of an artifact in the object store.
fn object(digest: Digest) -> String {
    format!("sha256-{}", digest.hex())
}

/// Whether a bucket cannot be used because there is none.
fn is_missing(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<jetstream::context::GetStreamError>() {
            let GetStreamErrorKind::JetStream(error) = error.kind() else {
                return false;
            };
            return error.error_code() == ErrorCode::STREAM_NOT_FOUND;
        }
        next = error.source();
    }
    false
}

/// An error of the client, with its reasons.
fn explained(error: impl std::error::Error + Send + Sync + 'static) -> anyhow::Error {
    let text = error.to_string();
    let hint = match text.to_lowercase() {
        text if text.contains("jetstream not enabled") || text.contains("no responders") => {
            ": the fleet needs a NATS server with JetStream (`nats-server --jetstream`)"
        }
        text if text.contains("permission") => {
            ": the user of NATS needs `$JS.API.>`, `$KV.amphi-….>` and `$O.amphi-….>`"
        }
        _ => "",
    };
    anyhow!("NATS: {text}{hint}")
}
