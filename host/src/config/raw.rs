//! `amphi.toml` as written: every key with its default and its unit.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::database::{Address, RawDatabase};
use crate::http::body::BodyLimits;
use crate::http::message::HeadSize;
use crate::telemetry::stderr;
use crate::threads::workers::PoolLimits;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    pub(super) app: App,
    #[serde(default = "unspanned")]
    pub(super) server: Spanned<Server>,
    #[serde(default = "unspanned")]
    pub(super) sync_views: Spanned<SyncViews>,
    #[serde(default = "unspanned")]
    pub(super) async_views: Spanned<AsyncViews>,
    #[serde(default = "unspanned")]
    pub(super) events: Spanned<Events>,
    #[serde(default = "unspanned")]
    pub(super) sockets: Spanned<Sockets>,
    #[serde(default = "unspanned")]
    pub(super) channels: Spanned<Channels>,
    #[serde(default = "unspanned")]
    pub(super) limits: Spanned<OwnLimits>,
    #[serde(default)]
    pub(super) databases: BTreeMap<String, Spanned<RawDatabase>>,
    #[serde(default, rename = "static")]
    pub(super) static_files: Option<StaticFiles>,
    #[serde(default)]
    pub(super) middleware: BTreeMap<String, Spanned<BTreeMap<String, Spanned<toml::Value>>>>,
    #[serde(default)]
    pub(super) modules: BTreeMap<String, Spanned<Module>>,
}

/// `amphi-host.toml`: the tables of `amphi.toml`, without those of the app, and what a host allows.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Place {
    pub(super) state: Spanned<PathBuf>,
    #[serde(default = "unspanned")]
    pub(super) server: Spanned<Server>,
    #[serde(default = "unspanned")]
    pub(super) sync_views: Spanned<SyncViews>,
    #[serde(default = "unspanned")]
    pub(super) async_views: Spanned<AsyncViews>,
    #[serde(default = "unspanned")]
    pub(super) events: Spanned<Events>,
    #[serde(default = "unspanned")]
    pub(super) sockets: Spanned<Sockets>,
    #[serde(default = "unspanned")]
    pub(super) channels: Spanned<Channels>,
    #[serde(default = "unspanned")]
    pub(super) limits: Spanned<OwnLimits>,
    #[serde(default)]
    pub(super) databases: BTreeMap<String, Spanned<RawDatabase>>,
    #[serde(default)]
    pub(super) middleware: BTreeMap<String, Spanned<BTreeMap<String, Spanned<toml::Value>>>>,
    #[serde(default)]
    pub(super) modules: BTreeMap<String, PlaceModule>,
    #[serde(default)]
    pub(super) grants: Grants,
    #[serde(default = "unspanned")]
    pub(super) deploy: Spanned<Deploy>,
}

/// What a place gives to a module.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PlaceModule {
    #[serde(default)]
    pub(super) settings: BTreeMap<String, Spanned<toml::Value>>,
    #[serde(default)]
    pub(super) secrets: BTreeMap<String, Spanned<Secret>>,
    #[serde(default)]
    pub(super) directories: Vec<Spanned<super::Directory>>,
}

/// What a place allows all modules at most.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Grants {
    pub(super) http: Vec<Spanned<String>>,
    pub(super) http_private: Vec<Spanned<String>>,
    pub(super) publish: Vec<Spanned<String>>,
    pub(super) subscribe: Vec<Spanned<String>>,
    pub(super) channels: Vec<Spanned<String>>,
}

/// Which artifacts a place runs, and who may change what runs.
#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Deploy {
    pub(super) app: Option<String>,
    pub(super) trusted_keys: Option<Vec<Spanned<String>>>,
    pub(super) listen: Option<Spanned<String>>,
    /// Whether the admin API may listen on an address that other machines can reach.
    pub(super) remote: bool,
    pub(super) tokens: BTreeMap<String, Token>,
    pub(super) keep: usize,
    pub(super) artifact_max_mb: u64,
    /// The hosts that serve the same: a name for them.
    pub(super) fleet: Option<Spanned<String>>,
    pub(super) health: Option<Spanned<String>>,
    pub(super) health_status: u16,
}

impl Default for Deploy {
    fn default() -> Deploy {
        Deploy {
            app: None,
            trusted_keys: None,
            listen: None,
            remote: false,
            tokens: BTreeMap::new(),
            keep: 8,
            artifact_max_mb: 512,
            fleet: None,
            health: None,
            health_status: 200,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Token {
    pub(super) sha256: Spanned<String>,
    pub(super) scopes: Vec<super::Scope>,
}

fn unspanned<T: Default>() -> Spanned<T> {
    Spanned::new(0..0, T::default())
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct App {
    pub(super) name: String,
    pub(super) atomic: Option<Spanned<Atomic>>,
    #[serde(default)]
    pub(super) middleware: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) allowed_origins: Vec<Spanned<String>>,
    pub(super) errors: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "`atomic` is \"unsafe-methods\", true or false")]
pub(super) enum Atomic {
    Flag(bool),
    Word(String),
}

/// `[server]`: sockets, HTTP limits and timeouts.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Server {
    pub(super) listen: Vec<Spanned<String>>,
    pub(super) admin: Option<Spanned<String>>,
    pub(super) trusted_proxies: Vec<Spanned<String>>,
    pub(super) client_address: Spanned<String>,
    /// Names under which `amphi up` is reached, beside `localhost` and IP addresses. Requests to any other name do not
    /// get the details of failures. Default none.
    pub development_hosts: Vec<String>,
    /// The most open connections; further ones wait in the kernel's queue. Default 10,000.
    pub connections_max: usize,
    /// The most bytes of all headers of a request together; a request with more gets 431. Default 32 KiB.
    pub headers_max_bytes: usize,
    /// The most headers of a request; a request with more gets 431. Default 100.
    pub headers_max: usize,
    /// The most bytes of path and query; a request with more gets 414. Default 8 KiB.
    pub uri_max_bytes: usize,
    /// How long the headers of a request may take to arrive, counted from when the connection becomes idle: so this
    /// also ends idle connections. Default 10,000.
    pub header_timeout_ms: u64,
    /// The most bytes of a request body; a request with more gets 413. Default 8 MiB, as for responses.
    pub body_max_bytes: u64,
    /// A body of at most this many bytes is passed to the guest with the request. Default 64 KiB.
    pub body_inline_bytes: u64,
    /// A body of at most this many bytes is kept in memory, a larger one in a temporary file. Default 1 MiB.
    pub body_memory_bytes: u64,
    /// How long a request body may take to arrive; a request that takes longer gets 408. Default 30,000.
    pub body_timeout_ms: u64,
    /// The most memory that the host keeps for all requests together, in megabytes; a request that needs more gets 503.
    /// Default 512.
    pub memory_budget_mb: u64,
    /// The most memory of guests that run at the same time, in megabytes: further requests wait for a place, or get 503.
    /// What counts is what a module's instances usually have. Default 4,096, at least 64.
    pub guest_memory_mb: u64,
    /// How long a client may leave a response unread before its connection is closed. On HTTP/2, the connection then
    /// takes no new requests, and those in flight have the same time again. Default 30,000.
    pub write_timeout_ms: u64,
    /// The most requests at the same time on one HTTP/2 connection. Default 200.
    pub http2_streams_max: u32,
    /// After SIGTERM: how long requests in flight may go on before they are cancelled; with 0, they are cancelled
    /// immediately. Default 30,000.
    pub drain_timeout_ms: u64,
    /// The most bytes of log lines that wait until standard error is read; further lines are lost. Default 1 MiB.
    pub log_queue_bytes: usize,
}

impl Server {
    /// The limits on receiving request bodies.
    pub fn body_limits(&self) -> BodyLimits {
        BodyLimits {
            max_bytes: self.body_max_bytes,
            memory_bytes: self.body_memory_bytes,
            inline_bytes: self.body_inline_bytes,
            timeout_ms: self.body_timeout_ms,
        }
    }
}

impl Default for Server {
    fn default() -> Self {
        Server {
            listen: vec![Spanned::new(0..0, "127.0.0.1:3000".to_owned())],
            admin: None,
            trusted_proxies: Vec::new(),
            client_address: Spanned::new(0..0, "x-forwarded-for".to_owned()),
            development_hosts: Vec::new(),
            connections_max: 10_000,
            headers_max_bytes: 32 << 10,
            headers_max: 100,
            uri_max_bytes: 8 << 10,
            header_timeout_ms: 10_000,
            body_max_bytes: 8 << 20,
            body_inline_bytes: 64 << 10,
            body_memory_bytes: 1 << 20,
            body_timeout_ms: 30_000,
            memory_budget_mb: 512,
            guest_memory_mb: 4_096,
            write_timeout_ms: 30_000,
            http2_streams_max: 200,
            drain_timeout_ms: 30_000,
            log_queue_bytes: stderr::QUEUE_BYTES,
        }
    }
}

/// `[sync_views]`: the pool of sync workers and its queue.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SyncViews {
    /// Workers that may compute at the same time. Default: the number of cores, at least 8. With several workers for a
    /// core, a few requests that compute for long do not keep the short ones waiting.
    pub workers: usize,
    /// Workers in all: the pool grows up to this number while workers wait in host calls. Default 64, or the number of
    /// cores if that is more.
    pub workers_max: usize,
    /// The most requests that may wait for a worker; a further one gets 503 (with 0, none waits). Default 1,024.
    pub queue_max: usize,
    /// How long a request waits for a worker before it gets 503. Default 5,000.
    pub queue_timeout_ms: u64,
    /// The most instances that are kept for further requests, of all modules with `instances = "reuse"` together;
    /// further instances are dropped after their request. Default 64.
    pub instances_kept_max: usize,
}

impl SyncViews {
    /// The sizes of the worker pool and its queue.
    pub fn pool(&self) -> PoolLimits {
        PoolLimits {
            workers: self.workers,
            workers_max: self.workers_max,
            queue_max: self.queue_max,
            queue_timeout_ms: self.queue_timeout_ms,
        }
    }
}

impl Default for SyncViews {
    fn default() -> Self {
        SyncViews {
            workers: cores().max(8),
            workers_max: cores().max(64),
            queue_max: 1024,
            queue_timeout_ms: 5_000,
            instances_kept_max: 64,
        }
    }
}

/// `[async_views]`: the event loops, and the queue of requests for async instances.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AsyncViews {
    /// Event loops, each a thread. Default: the number of cores.
    pub loops: usize,
    /// The most requests with async functions that run at the same time. Default 1,000.
    pub in_flight_max: usize,
    /// The most web sockets whose functions keep the conversation, each with an instance for as long as its connection. A
    /// further one gets 503. Default 1,000.
    pub sockets_max: usize,
    /// The most requests that may wait to run; a further one gets 503 (with 0, none waits). Default 10,000.
    pub queue_max: usize,
    /// How long a request waits to run before it gets 503. Default 5,000.
    pub queue_timeout_ms: u64,
    /// The most instances that are kept for further requests, of all modules with `instances = "reuse"` together;
    /// further instances are dropped after their request. Default 256.
    pub instances_kept_max: usize,
}

impl Default for AsyncViews {
    fn default() -> Self {
        AsyncViews {
            loops: cores(),
            in_flight_max: 1_000,
            sockets_max: 1_000,
            queue_max: 10_000,
            queue_timeout_ms: 5_000,
            instances_kept_max: 256,
        }
    }
}

/// `[events]`: the queue of events.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Events {
    /// The most events that are held, queued or being handled, counted once for each subscriber. A further one is an
    /// error to the view that publishes it. Default 10,000.
    pub queue_max: usize,
    /// The most subscribers that run at the same time. Default 64.
    pub in_flight_max: usize,
    /// The most bytes of an event's payload. Default 64 KiB.
    pub payload_max_bytes: u64,
}

impl Default for Events {
    fn default() -> Self {
        Events {
            queue_max: 10_000,
            in_flight_max: 64,
            payload_max_bytes: 64 << 10,
        }
    }
}

/// `[sockets]`: web sockets.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sockets {
    /// The most bytes of a message of a client; a larger one closes the connection with 1009. Default 64 KiB.
    pub message_max_bytes: usize,
    /// The most messages and notices of one connection that wait for its view. Beyond it, the host reads no more of the
    /// client's messages; a notice closes the connection with 1013. Default 64.
    pub mailbox_max: usize,
    /// How long a message or notice waits for its view while there is no capacity, before its connection is closed with
    /// 1013. Default 30,000.
    pub capacity_timeout_ms: u64,
    /// The most bytes that wait until a client reads them; more close its connection with 1008. Default 256 KiB.
    pub outbox_max_bytes: usize,
    /// How many messages and pings of a client are read in a second, beyond a first such number at once; the others wait
    /// in its connection. 0: it is read as fast as its view handles messages. Default 1,000. Without effect while
    /// `messages_per_second_max` is set.
    pub messages_per_second: u32,
    /// The most messages of a client in a second; more close its connection with 1008. 0, the default: none is too many.
    pub messages_per_second_max: u32,
    /// How often a client that is silent is sent a ping; it is gone when it has not answered by the next one. Default
    /// 30,000.
    pub ping_ms: u64,
    /// How long a connection may be without messages in either direction before it is closed with 1001. 0, the default:
    /// as long as it likes.
    pub idle_timeout_ms: u64,
    /// Whether messages are compressed for clients that offer it (`permessage-deflate`, without context). A client can then
    /// make the host compute for up to 100 ms by a message of 64 kB. Default false.
    pub compression: bool,
}

impl Default for Sockets {
    fn default() -> Self {
        Sockets {
            message_max_bytes: 64 << 10,
            mailbox_max: 64,
            capacity_timeout_ms: 30_000,
            outbox_max_bytes: 256 << 10,
            messages_per_second: 1000,
            messages_per_second_max: 0,
            ping_ms: 30_000,
            idle_timeout_ms: 0,
            compression: false,
        }
    }
}

/// `[channels]`: groups of connections, on this host and across hosts.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Channels {
    #[serde(rename = "nats", skip_serializing)]
    pub(super) address: Option<Spanned<Address>>,
    /// The address of a NATS server, or several with commas between: hosts with the same NATS and the same name of the app
    /// are one app. It may come from the environment or a file, as that of a database. None: groups are those of this
    /// host.
    #[serde(skip)]
    pub nats: Option<String>,
    /// How many messages the histories of groups keep, by groups: `history = { "news.*" = 100 }`. Event streams and polls
    /// go on from there. Default none.
    pub history: BTreeMap<String, usize>,
    /// The context value of a connection that `members` tells of it. Default `user`.
    pub member_value: String,
    /// The most groups at the same time. Default 100,000.
    pub groups_max: usize,
    /// The most groups that one connection is a member of. Default 64.
    pub groups_per_connection_max: usize,
    /// The most bytes of a message or notice to a group. Default 64 KiB.
    pub payload_max_bytes: usize,
    /// The most event streams and polls at the same time. Default 10,000.
    pub subscribers_max: usize,
    /// The most bytes of all histories together. Default 64 MiB.
    pub history_max_bytes: usize,
}

impl Default for Channels {
    fn default() -> Self {
        Channels {
            address: None,
            nats: None,
            history: BTreeMap::new(),
            member_value: "user".to_owned(),
            groups_max: 100_000,
            groups_per_connection_max: 64,
            payload_max_bytes: 64 << 10,
            subscribers_max: 10_000,
            history_max_bytes: 64 << 20,
        }
    }
}

/// Declares each limit once, for two structs: `Limits` has the limits that apply, each with a default; `OwnLimits` has
/// those that a table names, which replace the others.
macro_rules! limits {
    ($($(#[doc = $doc:literal])* $name:ident: $type:ty = $default:expr,)*) => {
        /// `[limits]` and `[modules.NAME.limits]`: what one request may use.
        #[derive(Debug, Clone, PartialEq, Eq, Serialize)]
        pub struct Limits {
            $($(#[doc = $doc])* pub $name: $type,)*
        }

        impl Default for Limits {
            fn default() -> Self {
                Limits { $($name: $default,)* }
            }
        }

        #[derive(Default, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub(super) struct OwnLimits {
            $(pub(super) $name: Option<$type>,)*
        }

        impl OwnLimits {
            pub(super) fn over(&self, app: &Limits) -> Limits {
                Limits { $($name: self.$name.unwrap_or(app.$name),)* }
            }
        }
    };
}

limits! {
    /// The most CPU time of one call of a guest function, in milliseconds. Default 1,000, or `timeout_ms` if that is
    /// less.
    cpu_ms: u64 = 1_000,
    /// The most time until the response, in milliseconds, counted from when the whole request has arrived. Default
    /// 30,000.
    timeout_ms: u64 = 30_000,
    /// The most linear memory of an instance, in megabytes. Default 64, at most 1,024.
    memory_mb: u64 = 64,
    /// The most bytes of a view's response body. Default 8 MiB.
    response_max_bytes: u64 = 8 << 20,
    /// The most bytes of a response body that its view produces while it is sent, and of the body of an outbound request or
    /// its response that a view writes or reads in pieces. Default 16 GiB.
    stream_max_bytes: u64 = 16 << 30,
    /// The most time for producing a response body while it is sent, in milliseconds, counted from the response's head.
    /// Default 3,600,000 (an hour).
    stream_timeout_ms: u64 = 3_600_000,
    /// The most CPU time for a response whose body is produced while it is sent, in milliseconds. Default 60,000.
    stream_cpu_ms: u64 = 60_000,
    /// The most bytes that a view passes to the host in one call. Default 8 MiB. A view's response may be as large as
    /// `response_max_bytes`, if that is more.
    call_max_bytes: u64 = 8 << 20,
    /// The most events that one request publishes. Default 1,000.
    events_max: usize = 1_000,
    /// The most headers of a view's response, of an outbound request, or of the response to an outbound request.
    /// Default 256.
    headers_max: usize = 256,
    /// The most bytes of all headers of a view's response, of an outbound request, or of the response to an outbound
    /// request. Each header counts 32 bytes beside its text. Default 64 KiB.
    headers_max_bytes: u64 = 64 << 10,
    /// The most bytes of the rows of one query whose result is read as a whole (a result that is read in pieces has no
    /// such limit). Default 8 MiB.
    rows_max_bytes: u64 = 8 << 20,
    /// The most outbound requests that one request has in flight at the same time. Default 64.
    outbound_max: usize = 64,
    /// How many levels deep requests of the app to itself may be nested. Default 8.
    outbound_depth_max: u32 = 8,
    /// The most bytes of the body of the response to an outbound request, if it is received as a whole. Default 8 MiB.
    outbound_response_max_bytes: u64 = 8 << 20,
    /// The most context values of a request. Default 64.
    context_values_max: usize = 64,
    /// The most bytes of one context value with its name. Default 8 KiB.
    context_value_max_bytes: usize = 8 << 10,
    /// The most bytes that one guest function may log in one call; the rest is cut, and a note is logged. Default 64
    /// KiB.
    log_max_bytes: usize = 64 << 10,
    /// With `instances = "reuse"`: the most requests that one instance serves. Default 10,000.
    reuse_requests_max: u32 = 10_000,
    /// With `instances = "reuse"`: the greatest age of an instance, in milliseconds. Default 60,000.
    reuse_age_max_ms: u64 = 60_000,
    /// With `instances = "reuse"`: the most linear memory of an instance that is kept, in megabytes. Default 32.
    reuse_memory_max_mb: u64 = 32,
}

impl Limits {
    /// The largest head of a view's response, of an outbound request, or of the response to an outbound request.
    pub fn head_max(&self) -> HeadSize {
        HeadSize {
            headers: self.headers_max,
            bytes: self.headers_max_bytes,
        }
    }

    /// The most bytes that a view can pass to the host in one call, or as its response.
    pub fn handed_over_max(&self) -> u64 {
        let answer = self
            .response_max_bytes
            .saturating_add(self.headers_max_bytes * 2);
        self.call_max_bytes.max(answer).saturating_add(64 << 10)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StaticFiles {
    pub(super) dir: Spanned<PathBuf>,
    #[serde(default = "static_mount")]
    pub(super) mount: Spanned<String>,
    #[serde(default)]
    pub(super) hidden: bool,
}

fn static_mount() -> Spanned<String> {
    Spanned::new(0..0, "/static".to_owned())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Module {
    pub(super) path: Spanned<PathBuf>,
    pub(super) build: Option<Spanned<String>>,
    #[serde(default = "root")]
    pub(super) mount: Spanned<String>,
    #[serde(default)]
    pub(super) databases: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) http: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) http_private: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) middleware: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) publish: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) subscribe: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) channels: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) subrequests: bool,
    #[serde(default)]
    pub(super) directories: Vec<Spanned<super::Directory>>,
    #[serde(default)]
    pub(super) blocking_wasi: bool,
    #[serde(default)]
    pub(super) stream_bodies: bool,
    #[serde(default)]
    pub(super) commit_at_head: bool,
    #[serde(default)]
    pub(super) ungranted_imports: bool,
    #[serde(default)]
    pub(super) settings: BTreeMap<String, Spanned<toml::Value>>,
    #[serde(default)]
    pub(super) secrets: BTreeMap<String, Spanned<Secret>>,
    #[serde(default)]
    pub(super) instances: Instances,
    pub(super) atomic: Option<Spanned<Atomic>>,
    pub(super) limits: Option<Spanned<OwnLimits>>,
}

/// Whether an instance serves one request or several, one after the other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Instances {
    #[default]
    Fresh,
    Reuse,
}

fn root() -> Spanned<String> {
    Spanned::new(0..0, "/".to_owned())
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Secret {
    pub(super) env: Option<String>,
    pub(super) file: Option<PathBuf>,
    /// Whether the file is made when it does not exist.
    #[serde(default)]
    pub(super) generate: bool,
}
