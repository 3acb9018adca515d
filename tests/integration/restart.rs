//! PostgreSQL is stopped and started again while requests use it.

use std::cell::Cell;
use std::time::Duration;

use futures::future::{join, join_all};
use serde_json::json;

use crate::harness::postgres::{Postgres, Stop};
use crate::harness::steps::{insert, must, nap};
use crate::harness::{App, Mode, Server, eventually};

const CLIENTS: usize = 16;

/// Waits until `count` requests were answered with `status`.
async fn answers(server: &Server, mark: u64, status: i64, count: usize) {
    eventually("answers", async || {
        let lines = server.log.requests_now(mark);
        let seen = lines
            .iter()
            .filter(|line| line.number("status") == status)
            .count();
        if seen >= count { Ok(()) } else { Err(seen) }
    })
    .await;
}

/// Requests in flight get 503 and are rolled back; after the restart requests succeed, without a restart of the host.
async fn r9_r13_a_database_that_restarts_is_a_503_until_it_is_back(mode: Mode) {
    let mut postgres = Postgres::start();
    let toml = "databases.default.connections = 16";
    let server = App::rules_on(postgres.database().await, toml).serve().await;
    let path = format!("/{mode}/run/atomic");
    for how in [Stop::Fast, Stop::Crash] {
        server
            .steps(&path, json!([must(insert("before"))]))
            .await
            .ok();
        // Each client sends requests that insert two rows, with a pause in between.
        let stop = Cell::new(false);
        let steps = json!([must(insert("half")), nap(20), must(insert("half"))]);
        let clients = join_all((0..CLIENTS).map(|_| async {
            let (mut done, mut refused) = (0, 0);
            while !stop.get() {
                let reply = server.steps(&path, steps.clone()).await;
                match reply.status {
                    200 => done += 1,
                    503 => refused += 1,
                    _ => panic!("{reply:?}"),
                }
            }
            (done, refused)
        }));
        let restart = async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let mark = server.log.mark();
            postgres.stop(how);
            answers(&server, mark, 503, CLIENTS).await;
            postgres.restart();
            answers(&server, server.log.mark(), 200, 2 * CLIENTS).await;
            stop.set(true);
        };
        let (ended, ()) = join(clients, restart).await;
        let (done, refused) = ended
            .iter()
            .fold((0, 0), |sum, ended| (sum.0 + ended.0, sum.1 + ended.1));
        assert!(refused > 0 && done > 0, "{done} done, {refused} refused");
        for line in server
            .log
            .requests_now(0)
            .iter()
            .filter(|line| line.number("status") == 503)
        {
            assert_ne!(line.text("transaction"), "committed", "{line:?}");
        }
        server.assert_baseline().await;

        let database = &server.app.data;
        database.assert_quiet().await;
        let halves = usize::try_from(
            database
                .count("select count(*) from rows where tag = 'half'")
                .await,
        )
        .expect("it counts");
        assert_eq!(halves % 2, 0, "all of a request or nothing");
        // If the answer to a commit is lost with the connection, the commit may have happened: at most one such commit
        // per client.
        assert!(
            (2 * done..=2 * done + 2 * CLIENTS).contains(&halves),
            "{halves} rows of {done} requests"
        );
        database.execute("delete from rows").await;
    }
}
both_modes!(r9_r13_a_database_that_restarts_is_a_503_until_it_is_back);
