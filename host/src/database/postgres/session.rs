//! One connection to a server: its client, its own task, and the statements that are prepared on it.

use std::future::poll_fn;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use hashlink::LruCache;
use tokio::task::JoinHandle;
use tokio_postgres::{AsyncMessage, CancelToken, Client, SimpleQueryMessage};

use super::super::STATEMENTS_KEPT;
use super::guard::Verdict;
use super::tls::{self, Tls};
use crate::config::PostgresServer;

/// How long a server may take to end a connection that the host has closed, or to answer a cancellation.
pub(super) const CLOSING_TIMEOUT: Duration = Duration::from_secs(10);

/// What takes away all that statements can leave in a connection but transactions and prepared statements. As
/// `discard all`, without forgetting the statements that the host itself has prepared. Names have their schema,
/// because the search path may be somebody's choice.
const CLEAN: &str = "set session authorization default; reset role; reset all; close all; unlisten *; \
    discard temp; discard sequences; \
    select pg_catalog.pg_advisory_unlock_all(), \
    exists (select from pg_catalog.pg_prepared_statements where from_sql)";

/// Whether reading a table calls nothing that somebody has written: it is one (no view, without policies and rules),
/// and neither an operator nor a cast of the database leads to a function in another language than C.
const IS_PLAIN: &str = "select coalesce((
        select relkind in ('r', 'p') and not relrowsecurity and not relhasrules
        from pg_catalog.pg_class where oid = pg_catalog.to_regclass($1)), false)
    and not exists (
        select from pg_catalog.pg_operator o join pg_catalog.pg_proc p on p.oid = o.oprcode
        where o.oid >= 16384 and p.prolang not in (12, 13))
    and not exists (
        select from pg_catalog.pg_cast c join pg_catalog.pg_proc p on p.oid = c.castfunc
        where c.oid >= 16384 and p.prolang not in (12, 13))";

/// A connection.
pub(super) struct Session {
    pub(super) client: Client,
    /// [`IS_PLAIN`], prepared by the first cleaning.
    is_plain: Option<tokio_postgres::Statement>,
    /// Ends when the connection is closed.
    connection: JoinHandle<()>,
    pub(super) statements: LruCache<String, Prepared>,
}

/// A statement that the server knows, and what the guard thinks of it.
#[derive(Clone)]
pub(super) struct Prepared {
    pub(super) statement: tokio_postgres::Statement,
    pub(super) verdict: Arc<Verdict>,
}

impl Session {
    pub(super) async fn connect(server: &PostgresServer, tls: &Tls) -> anyhow::Result<Session> {
        let (client, mut connection) = server.url.connect(tls.clone()).await?;
        let connection = tokio::spawn(async move {
            // What the server remarks beside its answers is for those who look closely.
            while let Some(message) = poll_fn(|context| connection.poll_message(context)).await {
                match message {
                    Ok(AsyncMessage::Notice(notice)) => tracing::debug!(%notice, "PostgreSQL"),
                    Ok(_) => {}
                    Err(error) => {
                        tracing::debug!(%error, "a connection to PostgreSQL ended");
                        return;
                    }
                }
            }
        });
        Ok(Session {
            client,
            is_plain: None,
            connection,
            statements: LruCache::new(STATEMENTS_KEPT),
        })
    }

    pub(super) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    pub(super) fn cancel_token(&self) -> CancelToken {
        self.client.cancel_token()
    }

    /// Whether the server says that reading this table leaves nothing in the session.
    pub(super) async fn is_plain(&self, table: &str) -> bool {
        let Some(check) = &self.is_plain else {
            return false;
        };
        let answer = self.client.query_one(check, &[&table]).await;
        answer.is_ok_and(|row| row.try_get(0).unwrap_or(false))
    }

    /// Ends what is open and takes away all that statements have left. Whether that worked.
    pub(super) async fn clean(&mut self, in_transaction: bool) -> bool {
        // A transaction that nobody knows of does not outlive this either. Without any, `rollback` alone would have
        // the server log a warning each time.
        let rollback = match in_transaction {
            true => "rollback",
            false => "begin; rollback",
        };
        let sql = format!("{rollback}; {CLEAN}");
        let cleaned = tokio::time::timeout(CLOSING_TIMEOUT, self.client.simple_query(&sql)).await;
        let Ok(Ok(messages)) = cleaned else {
            return false;
        };
        if self.is_plain.is_none() {
            let prepared = self.client.prepare(IS_PLAIN);
            let prepared = tokio::time::timeout(CLOSING_TIMEOUT, prepared).await;
            self.is_plain = prepared.ok().and_then(Result::ok);
        }
        // A name that was prepared in SQL would be there for the next one.
        messages.iter().any(|message| {
            matches!(message, SimpleQueryMessage::Row(row) if matches!(row.try_get(1), Ok(Some("f"))))
        })
    }

    /// Closes the connection and waits until the server has seen it.
    pub(super) async fn close(self) {
        let Session {
            client,
            mut connection,
            statements,
            ..
        } = self;
        drop((client, statements));
        let ended = tokio::time::timeout(CLOSING_TIMEOUT, &mut connection).await;
        if ended.is_err() {
            connection.abort();
        }
    }
}

/// A connection for the host's own business, beside the pool. Closed when dropped.
pub(in super::super) struct Alone(Session);

/// Connects beside the pool.
pub(in super::super) async fn connect_alone(server: &PostgresServer) -> anyhow::Result<Alone> {
    let tls = tls::client(server)?;
    let connect = Session::connect(server, &tls);
    let connected = tokio::time::timeout(server.connect_timeout, connect).await;
    let connected = connected.with_context(|| format!("{server} does not answer"))?;
    connected
        .map(Alone)
        .with_context(|| format!("{server} cannot be reached"))
}

impl Deref for Alone {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.0.client
    }
}

impl DerefMut for Alone {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.0.client
    }
}
