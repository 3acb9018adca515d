//! One connection to a server: its client, its own task, and the statements that are prepared on it.

use std::future::poll_fn;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use hashlink::LruCache;
use tokio::task::JoinHandle;
use tokio_postgres::types::ToSql;
use tokio_postgres::{AsyncMessage, CancelToken, Client, SimpleQueryMessage};

use super::super::statement::STATEMENTS_KEPT;
use super::Postgres;
use super::connector::Connector;
use super::guard::Verdict;
use super::plain::{CHECK, Check, Checked, Plain};
use super::wire::Limits;
use crate::config::PostgresServer;

/// How long a server may take to end a connection that the host has closed, or to answer a cancellation.
pub(super) const CLOSING_TIMEOUT: Duration = Duration::from_secs(10);

/// Resets the settings that statements have left. [`Session::clean`] sends it as a message of its own, which the server
/// runs as a transaction of its own. So the old settings (a time limit, read-only transactions) do not affect
/// [`CLEAN`].
pub(in super::super) const RESET: &str = "set session authorization default; reset role; reset all";

/// Removes everything else that statements can leave in a connection, except for prepared statements. It does what
/// `discard all` does, but keeps the statements that the host has prepared. The result has the number of statements
/// that were prepared in SQL, the number of statements that the host has prepared (without those with which
/// tokio-postgres looks up types), and the number of the server's process. All names have their schema, because a view
/// may have chosen the search path.
const CLEAN: &str = "close all; unlisten *; discard temp; discard sequences; \
    select pg_catalog.pg_advisory_unlock_all(), \
    pg_catalog.count(*) filter (where from_sql), \
    pg_catalog.count(*) filter (where not from_sql \
        and statement operator(pg_catalog.!~~) 'SELECT t.typname, t.typtype, t.typelem%' \
        and statement operator(pg_catalog.!~~) 'SELECT enumlabel%FROM pg_catalog.pg_enum%' \
        and statement operator(pg_catalog.!~~) 'SELECT attname, atttypid%FROM pg_catalog.pg_attribute%'), \
    pg_catalog.pg_backend_pid(), \
    pg_catalog.setseed(SEED) \
    from pg_catalog.pg_prepared_statements";

/// The statements that remove, within a transaction, what statements of it have left in the session and no savepoint
/// undoes.
pub(in super::super) fn forgetting() -> [String; 2] {
    let seed = fastrand::f64() * 2.0 - 1.0;
    [
        "close all; discard sequences".to_owned(),
        format!("select pg_catalog.pg_advisory_unlock_all(), pg_catalog.setseed({seed})"),
    ]
}

/// How often a second connection is opened to find out how a pooler works, and how long each attempt may take.
const POOLER_PROBES: usize = 3;
const POOLER_TIMEOUT: Duration = Duration::from_secs(2);

/// A connection.
pub(super) struct Session {
    pub(super) client: Client,
    /// The limits on its messages.
    pub(super) limits: Limits,
    /// [`CHECK`], prepared by the first cleaning.
    check: Option<tokio_postgres::Statement>,
    /// The task of the connection, which ends when the connection is closed.
    connection: JoinHandle<()>,
    pub(super) statements: LruCache<String, Prepared>,
    /// The number of the server's process, which `pg_backend_pid()` returns.
    process: u32,
    /// The value of [`Postgres::plans`] when the kept statements were last dropped.
    plans: u64,
}

/// A statement that is prepared on the server, with the guard's verdict on it.
#[derive(Clone)]
pub(super) struct Prepared {
    pub(super) statement: tokio_postgres::Statement,
    pub(super) verdict: Arc<Verdict>,
    /// The proof that the statement leaves nothing in a session. None: the statement may leave something.
    pub(super) plain: Option<Plain>,
}

impl Prepared {
    /// The question whether the statement leaves nothing in a session. The server is asked about the one table that the
    /// columns of the result belong to. None: the words or the columns of the statement show already that it may leave
    /// something.
    pub(super) fn check(&self) -> Option<Check> {
        let name = self.verdict.plain_read.clone()?;
        let mut tables = (self.statement.columns().iter()).filter_map(|column| column.table_oid());
        let oid = tables.next()?;
        tables
            .all(|other| other == oid)
            .then_some(Check { name, oid })
    }
}

impl Session {
    /// Opens a connection. `surely`: fails if it cannot be found out whether a pooler shares the connection among
    /// clients.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses the user, or when a pooler shares the connection
    /// ([`Session::is_its_own`]).
    pub(super) async fn connect(connector: &Connector, surely: bool) -> anyhow::Result<Session> {
        let session = Session::connect_anywhere(connector).await?;
        session.is_its_own(connector, surely).await?;
        Ok(session)
    }

    async fn connect_anywhere(connector: &Connector) -> anyhow::Result<Session> {
        let limits = Limits::new();
        let (client, mut connection) = connector.connect(&limits).await?;
        let connection = tokio::spawn(async move {
            // Notices of the server are logged at the level `debug`.
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
        let process = process(&client).await?;
        Ok(Session {
            client,
            limits,
            check: None,
            connection,
            statements: LruCache::new(STATEMENTS_KEPT),
            process,
            plans: 0,
        })
    }

    /// Makes sure that the connection leads to the same process of the server for as long as it exists.
    ///
    /// A pooler between host and server (such as PgBouncer) reports a process number of its own when a connection
    /// begins. `pg_backend_pid()` then returns another number, which shows that there is a pooler. A pooler that pools
    /// by transaction gives the process to other clients after every transaction. Then prepared statements of one
    /// client would be looked up where another client has prepared others under the same names, and the answers would
    /// be those of other statements. So a second connection is opened: the two must never have the same process, and
    /// while the second one keeps a process in a transaction, the first must still have its own.
    async fn is_its_own(&self, connector: &Connector, surely: bool) -> anyhow::Result<()> {
        if self.process == self.limits.process() {
            return Ok(());
        }
        for _ in 0..POOLER_PROBES {
            let probed = tokio::time::timeout(POOLER_TIMEOUT, self.is_shared_out(connector)).await;
            match probed {
                Ok(Ok(false)) => {}
                Ok(Err(error)) => {
                    return Err(error.context(
                        "finding out how the pooler works that is between Amphi and the server",
                    ));
                }
                Ok(Ok(true)) => bail!(
                    "between Amphi and the server is a pooler, such as PgBouncer, that gives a connection to others after every transaction: statements that are prepared on it would be mixed up with those of others, and answers with them. Have it pool by session (`pool_mode = session` for this database), or connect to the server itself, of which Amphi keeps no more than `connections`"
                ),
                Err(_) if surely => bail!(
                    "between Amphi and the server is a pooler, such as PgBouncer, that has not given a second connection within {} ms, which is needed to find out whether it pools by session: let it have more connections (`default_pool_size`), or connect to the server itself",
                    POOLER_TIMEOUT.as_millis()
                ),
                // No second connection came in time: the pooler probably pools by session and has no connection left.
                Err(_) => return Ok(()),
            }
        }
        Ok(())
    }

    async fn is_shared_out(&self, connector: &Connector) -> anyhow::Result<bool> {
        let other = Session::connect_anywhere(connector).await?;
        match other.client.batch_execute("begin").await {
            Ok(()) => {}
            // A pooler that pools by statement refuses transactions.
            Err(error) if error.as_db_error().is_some() => return Ok(true),
            Err(error) => return Err(error.into()),
        }
        let (theirs, own) = (process(&other.client).await?, process(&self.client).await?);
        other.client.batch_execute("rollback").await?;
        Ok(other.process == self.process || theirs == self.process || own != self.process)
    }

    /// Drops prepared statements that may be older than a change of definitions.
    pub(super) fn refresh(&mut self, database: &Postgres) {
        let plans = database.plans();
        if std::mem::replace(&mut self.plans, plans) != plans {
            self.statements.clear();
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    pub(super) fn cancel_token(&self) -> CancelToken {
        self.client.cancel_token()
    }

    /// Whether the server can be asked about tables on this connection.
    pub(super) fn can_check(&self) -> bool {
        self.check.is_some()
    }

    /// The server's answer about a table; none: there is no answer.
    pub(super) async fn check(&self, check: &Check) -> Option<Checked> {
        let statement = self.check.as_ref()?;
        let params: [&(dyn ToSql + Sync); 2] = [&check.name, &check.oid];
        let row = self.client.query_one(statement, &params).await.ok()?;
        Some(Checked {
            is_plain: row.try_get(0).ok()?,
            has_functions: row.try_get(1).ok()?,
        })
    }

    /// Ends what is open in the session, and removes what statements have left in it. Returns whether that worked and
    /// exactly the host's prepared statements are left.
    pub(super) async fn clean(&mut self, in_transaction: bool) -> bool {
        // The rollback also ends a transaction that the host does not know of. Without any transaction, `rollback`
        // alone would make the server log a warning each time.
        let rollback = match in_transaction {
            true => "rollback",
            false => "begin; rollback",
        };
        // A pooler sets the client encoding itself, and `reset all` undoes that.
        let encoding = match self.process == self.limits.process() {
            true => "",
            false => "; set client_encoding = 'UTF8'",
        };
        let reset = format!("{rollback}; {RESET}{encoding}");
        // A new seed is the only way to undo `setseed`: the next user of the connection must not get numbers that an
        // earlier one has chosen.
        let clean = CLEAN.replace("SEED", &(fastrand::f64() * 2.0 - 1.0).to_string());
        // Both messages are sent together, without waiting for the first answer.
        let cleaned = futures::future::try_join(
            self.client.batch_execute(&reset),
            self.client.simple_query(&clean),
        );
        let cleaned = tokio::time::timeout(CLOSING_TIMEOUT, cleaned).await;
        let Ok(Ok(((), messages))) = cleaned else {
            return false;
        };
        // A statement that a view has prepared in SQL would be there for the next user of the connection. If a prepared
        // statement of the host is gone, its next use would fail. So the connection is clean in neither case.
        let ours = self.statements.len() + usize::from(self.check.is_some());
        let counts = |message: &SimpleQueryMessage| match message {
            SimpleQueryMessage::Row(row) => Some((
                row.try_get(1).ok()??.parse().ok()?,
                row.try_get(2).ok()??.parse().ok()?,
                row.try_get(3).ok()??.parse().ok()?,
            )),
            _ => None,
        };
        // The process changes when a pooler has begun to share connections.
        if messages.iter().find_map(counts) != Some((0_usize, ours, self.process)) {
            return false;
        }
        if self.check.is_none() {
            let prepared = self.client.prepare(CHECK);
            let prepared = tokio::time::timeout(CLOSING_TIMEOUT, prepared).await;
            self.check = prepared.ok().and_then(Result::ok);
        }
        true
    }

    /// Closes the connection, and waits until the server has ended it. Returns the number of the server's process if
    /// the process goes on, because what it runs ignores cancellations.
    pub(super) async fn close(self) -> Option<u32> {
        let Session {
            client,
            mut connection,
            statements,
            process,
            ..
        } = self;
        drop((client, statements));
        let ended = tokio::time::timeout(CLOSING_TIMEOUT, &mut connection).await;
        if ended.is_ok() {
            return None;
        }
        connection.abort();
        Some(process)
    }
}

/// The number of the server's process that answers on this connection.
async fn process(client: &Client) -> anyhow::Result<u32> {
    let messages = client
        .simple_query("select pg_catalog.pg_backend_pid()")
        .await?;
    let process = |message: &SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => row.get(0)?.parse().ok(),
        _ => None,
    };
    (messages.iter().find_map(process)).context("the server does not say which process it is")
}

/// A connection for the host's own business, beside the pool. Closed when dropped.
pub(in super::super) struct Alone(Session);

/// Opens a connection beside the pool.
pub(in super::super) async fn connect_alone(server: &PostgresServer) -> anyhow::Result<Alone> {
    let connector = Connector::new(server)?;
    let connect = Session::connect(&connector, true);
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
