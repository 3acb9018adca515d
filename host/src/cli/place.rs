//! A place that runs elsewhere, as the commands see it that change what runs there: the client of the admin API.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use reqwest::{Body, Client, Method, RequestBuilder, Response, header};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_util::io::ReaderStream;

use super::routes::print;
use crate::admin::api::{Deploying, GoingBack, Line, Listed, Status, Uploaded};
use crate::artifact::Digest;
use crate::config::{ADMIN_SOCKET, Place, Purpose};
use crate::telemetry::log::escaped;
use crate::telemetry::stderr;

/// How long a connection may take to open.
const CONNECT_TIME: Duration = Duration::from_secs(10);
/// How long the place may take to say what runs there.
const ANSWER_TIME: Duration = Duration::from_secs(30);
/// The most bytes of an answer.
const ANSWER_BYTES: usize = 16 << 20;
/// The variable with the address.
const ADDRESS: &str = "AMPHI_PLACE";
/// The variable with the token.
const TOKEN: &str = "AMPHI_TOKEN";

#[derive(Args)]
pub(super) struct Remote {
    /// The place: the address of its admin API (http://HOST:PORT or unix:PATH), or, on its machine, its amphi-host.toml or
    /// the folder of an artifact that has no other place (NAME.state). The variable AMPHI_TOKEN has the token.
    #[arg(long, value_name = "PLACE", env = ADDRESS)]
    to: String,
}

/// A place, and the right to use its admin API.
pub(super) struct Connected {
    client: Client,
    base: String,
    shown: String,
}

impl Remote {
    pub(super) fn connect(&self) -> anyhow::Result<Connected> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let address = match Path::new(&self.to).extension() {
            Some(extension) if extension == "toml" => {
                let place = Place::load(Path::new(&self.to), Purpose::Check)?;
                let Some(address) = place.deploy.listen else {
                    bail!(
                        "{} has no admin API: write `listen = \"unix:admin.sock\"` in its `[deploy]`",
                        self.to
                    );
                };
                address.to_string()
            }
            _ if Path::new(&self.to).is_dir() => {
                format!("unix:{}", Path::new(&self.to).join(ADMIN_SOCKET).display())
            }
            _ => self.to.clone(),
        };
        let mut headers = header::HeaderMap::new();
        if let Ok(token) = std::env::var(TOKEN) {
            let value = format!("Bearer {}", token.trim()).parse();
            let mut value: header::HeaderValue =
                value.context("the variable AMPHI_TOKEN has characters that no token has")?;
            value.set_sensitive(true);
            headers.insert(header::AUTHORIZATION, value);
        }
        let builder = Client::builder()
            .connect_timeout(CONNECT_TIME)
            .redirect(reqwest::redirect::Policy::none())
            .default_headers(headers)
            .user_agent(concat!("amphi/", env!("CARGO_PKG_VERSION")));
        let (client, base) = match address.strip_prefix("unix:") {
            Some(path) => {
                let client = builder
                    .no_proxy()
                    .unix_socket(PathBuf::from(path))
                    .build()?;
                (client, "http://localhost".to_owned())
            }
            None if address.starts_with("http://") || address.starts_with("https://") => {
                let base = address.trim_end_matches('/').to_owned();
                // A proxy of the environment would get the token, and would ask a machine of its own.
                let builder = match is_this_machine(&base) {
                    true => builder.no_proxy(),
                    false => builder,
                };
                (builder.build()?, base)
            }
            None => bail!(
                "`{address}` is neither a folder that is there nor the address of a place: write http://HOST:PORT, unix:PATH, or the path of an amphi-host.toml or of a folder NAME.state"
            ),
        };
        Ok(Connected {
            client,
            base,
            shown: address,
        })
    }
}

impl Connected {
    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.base))
    }

    async fn send(&self, request: RequestBuilder) -> anyhow::Result<Response> {
        let response = request.send().await;
        let response = response.with_context(|| format!("asking {}", self.shown))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let text = whole(response).await?;
        match serde_json::from_slice(&text) {
            Ok(Line::Failed(sentence)) => bail!("{} refuses: {sentence}", self.shown),
            _ => bail!(
                "{} answers {status}: it seems to be no admin API of Amphi",
                self.shown
            ),
        }
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let request = self.request(Method::GET, path).timeout(ANSWER_TIME);
        let text = whole(self.send(request).await?).await;
        let text = text.with_context(|| format!("asking {}", self.shown))?;
        serde_json::from_slice(&text).with_context(|| {
            format!(
                "{}{path} is not what the admin API of Amphi answers",
                self.shown
            )
        })
    }

    pub(super) async fn status(&self) -> anyhow::Result<Status> {
        self.get("/v1/status").await
    }

    pub(super) async fn versions(&self) -> anyhow::Result<Vec<Listed>> {
        self.get("/v1/versions").await
    }

    /// Prints the log, as it comes.
    pub(super) async fn logs(&self, follow: bool) -> anyhow::Result<()> {
        let path = if follow {
            "/v1/logs?follow"
        } else {
            "/v1/logs"
        };
        let mut response = self.send(self.request(Method::GET, path)).await?;
        let mut text = Vec::new();
        while let Some(piece) = response.chunk().await? {
            text.extend_from_slice(&piece);
            // A piece may end within a character.
            let whole = match text.iter().rposition(|byte| *byte == b'\n') {
                Some(end) => end + 1,
                None if text.len() > ANSWER_BYTES => text.len(),
                None => continue,
            };
            let lines: Vec<u8> = text.drain(..whole).collect();
            print(&escaped(&String::from_utf8_lossy(&lines)))?;
        }
        print(&escaped(&String::from_utf8_lossy(&text)))
    }

    /// Sends an artifact.
    pub(super) async fn upload(&self, file: &Path, generation: u64) -> anyhow::Result<Digest> {
        let opened = tokio::fs::File::open(file).await;
        let opened = opened.with_context(|| file.display().to_string())?;
        let length = opened.metadata().await?.len();
        let request = self
            .request(Method::POST, "/v1/artifacts")
            .header(header::IF_MATCH, format!("\"{generation}\""))
            .header(header::CONTENT_LENGTH, length)
            .body(Body::wrap_stream(ReaderStream::with_capacity(
                opened,
                64 << 10,
            )));
        let response = self.send(request).await?;
        let uploaded: Uploaded = serde_json::from_slice(&whole(response).await?)?;
        Ok(uploaded.digest)
    }

    pub(super) async fn deploy(&self, wanted: &Deploying, generation: u64) -> anyhow::Result<()> {
        self.change("/v1/deploy", wanted, generation).await
    }

    pub(super) async fn promote(&self) -> anyhow::Result<()> {
        let generation = self.status().await?.generation;
        self.change("/v1/promote", &(), generation).await
    }

    pub(super) async fn roll_back(&self, to: &GoingBack) -> anyhow::Result<()> {
        let generation = self.status().await?.generation;
        self.change("/v1/rollback", to, generation).await
    }

    /// Has a change made, and shows how it goes.
    async fn change(
        &self,
        path: &str,
        body: &impl Serialize,
        generation: u64,
    ) -> anyhow::Result<()> {
        let request = self
            .request(Method::POST, path)
            .header(header::IF_MATCH, format!("\"{generation}\""))
            .header(header::CONTENT_TYPE, "application/json")
            .body(serde_json::to_vec(body)?);
        let mut response = self.send(request).await?;
        let mut text = Vec::new();
        let lost = || {
            format!(
                "the connection to {} broke while the change was made: `amphi status` says what has come of it",
                self.shown
            )
        };
        while let Some(piece) = response.chunk().await.with_context(lost)? {
            text.extend_from_slice(&piece);
            while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = text.drain(..=end).collect();
                let line = serde_json::from_slice(&line).with_context(|| {
                    format!("{} answers what no admin API of Amphi does", self.shown)
                })?;
                match line {
                    Line::Step(step) => stderr::say(&escaped(&format!("… {step}"))),
                    Line::Warning(warning) => stderr::say(&escaped(&format!("warning: {warning}"))),
                    Line::Done(done) => return print(&escaped(&format!("{done}\n"))),
                    Line::Partly(what) => bail!("{what}"),
                    Line::Failed(why) => bail!("nothing was changed: {why}"),
                }
            }
            if text.len() > ANSWER_BYTES {
                break;
            }
        }
        bail!(lost())
    }
}

/// Whether an address is one of this machine.
fn is_this_machine(base: &str) -> bool {
    let url = reqwest::Url::parse(base).ok();
    let host = url.as_ref().and_then(|url| url.host_str());
    let host = host.unwrap_or_default().trim_matches(['[', ']']);
    let address: Option<IpAddr> = host.parse().ok();
    host == "localhost" || address.is_some_and(|address| address.is_loopback())
}

async fn whole(mut response: Response) -> anyhow::Result<Vec<u8>> {
    let mut text = Vec::new();
    while let Some(piece) = response.chunk().await? {
        if text.len() + piece.len() > ANSWER_BYTES {
            bail!("the answer has over {ANSWER_BYTES} bytes");
        }
        text.extend_from_slice(&piece);
    }
    Ok(text)
}
