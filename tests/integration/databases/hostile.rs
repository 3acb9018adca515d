//! Hostile statements, each run while a neighbour (another client of the same server) reads.

use std::sync::Arc;
use std::time::{Duration, Instant};

use amphi::database::{Access, Face};
use amphi::threads::deadline::Deadline;

use super::{Fixture, READS, query, show};
use crate::harness::postgres::Postgres;

#[path = "../hostile_sql/postgres.rs"]
mod corpus;

/// How long a statement may run.
const TIME: Duration = Duration::from_millis(500);
/// How much longer the statement may take to end: the server has to cancel it, and other tests use the machine, too.
const MARGIN: Duration = Duration::from_secs(12);
/// How long the neighbour may wait while a statement runs. Of this time, the host takes milliseconds, and the server
/// the rest.
const NEIGHBOUR: Duration = Duration::from_secs(4);

/// Each statement of the corpus ends within its time while a neighbour is answered. Every fourth statement runs with
/// the access of a read-only view.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_statements_end_within_their_limits_and_leave_the_neighbours_alone() {
    // A server of its own, so that the load is not on the server of the other tests.
    let server = Postgres::start();
    let on_server = server.database().await;
    let fixture = Fixture::on(&on_server.url(), 2).await;
    let neighbour = Fixture::on(&on_server.url(), 1).await;
    let next = tokio::spawn(async move {
        let mut slowest = (Duration::ZERO, Instant::now());
        loop {
            let since = Instant::now();
            let deadline = Arc::new(Deadline::new(since + NEIGHBOUR));
            let select = query("select 7", &[]);
            let ran = (neighbour.database).run(Face::Async, &deadline, Access::default(), select);
            let ran = ran
                .await
                .unwrap_or_else(|error| panic!("{}", error.message));
            assert_eq!(show(&ran.table.rows[0][0]), "integer 7");
            if since.elapsed() > slowest.0 {
                slowest = (since.elapsed(), since);
            }
            assert!(
                slowest.0 < NEIGHBOUR,
                "a neighbour waited for {:?}",
                slowest.0
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    for (index, line) in corpus::CORPUS.iter().enumerate() {
        let sql = corpus::spelled(line);
        let access = match index % 4 {
            3 => READS,
            _ => Access::default(),
        };
        {
            let since = Instant::now();
            let deadline = Arc::new(Deadline::new(since + TIME));
            let ran = fixture
                .database
                .run(Face::Async, &deadline, access, query(&sql, &[]));
            let ran = tokio::time::timeout(TIME + MARGIN, ran).await;
            let ran = ran.unwrap_or_else(|_| panic!("{line} has not ended"));
            if let Err(error) = &ran {
                assert!(
                    error.message.len() < 20_000,
                    "{line}: {} bytes",
                    error.message.len()
                );
            }
            assert!(!next.is_finished(), "the neighbour has ended in {line}");
        }
        // The next borrower finds a clean session.
        let state = "select current_user = session_user and current_setting('search_path') = '\"$user\", public' \
            and current_setting('statement_timeout') = '0' and current_setting('work_mem') = '4MB' \
            and not exists (select from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()) \
            and not exists (select from pg_prepared_statements where from_sql)";
        assert_eq!(
            show(&fixture.one(state, &[]).await),
            "integer 1",
            "after {line}"
        );
    }
    next.abort();
}
