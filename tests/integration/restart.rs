//! PostgreSQL goes away and comes back while it is used.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use serde_json::json;

use crate::harness::postgres::{Postgres, Stop};
use crate::harness::steps::{insert, must, nap};
use crate::harness::{App, Mode, eventually};

both_modes! {
    /// Acceptance: requests in flight fail with 503 and are rolled back, later ones succeed, with the same host.
    async fn r9_r13_a_database_that_restarts_is_a_503_until_it_is_back(mode: Mode) {
        let mut postgres = Postgres::start();
        let toml = "databases.default.connections = 16";
        let server = Arc::new(App::rules_on(postgres.database().await, toml).serve().await);
        let path = format!("/{mode}/run/atomic");
        for how in [Stop::Fast, Stop::Crash] {
            server.steps(&path, json!([must(insert("before"))])).await.ok();
            // Load: each client inserts two rows per request, with a pause in between.
            let stop = Arc::new(AtomicBool::new(false));
            let clients: Vec<_> = (0..16)
                .map(|_| {
                    let (server, stop, path) = (Arc::clone(&server), Arc::clone(&stop), path.clone());
                    tokio::spawn(async move {
                        let steps = json!([must(insert("half")), nap(20), must(insert("half"))]);
                        let (mut done, mut refused, mut others) = (0_usize, 0_usize, Vec::new());
                        while !stop.load(Relaxed) {
                            let reply = server.steps(&path, steps.clone()).await;
                            match reply.status {
                                200 => done += 1,
                                503 => refused += 1,
                                _ => others.push(reply),
                            }
                        }
                        (done, refused, others)
                    })
                })
                .collect();
            tokio::time::sleep(Duration::from_millis(500)).await;
            let mark = server.log.mark();
            postgres.stop(how);
            eventually("a request to be refused", async || {
                let refused = server.log.requests_now(mark).iter().filter(|line| line.number("status") == 503).count();
                if refused >= 16 { Ok(()) } else { Err(refused) }
            })
            .await;
            postgres.restart();
            let mark = server.log.mark();
            eventually("requests to succeed again", async || {
                let done = server.log.requests_now(mark).iter().filter(|line| line.number("status") == 200).count();
                if done >= 32 { Ok(()) } else { Err(done) }
            })
            .await;
            stop.store(true, Relaxed);
            let (mut done, mut refused) = (0, 0);
            for client in clients {
                let ended = client.await.expect("no client panics");
                assert!(ended.2.is_empty(), "{:#?}", ended.2);
                (done, refused) = (done + ended.0, refused + ended.1);
            }
            assert!(refused > 0 && done > 0, "{done} done, {refused} refused");
            for line in server.log.requests_now(0).iter().filter(|line| line.number("status") == 503) {
                assert_ne!(line.text("transaction"), "committed", "{line:?}");
            }
            server.assert_baseline().await;

            let database = &server.app.data;
            database.assert_quiet().await;
            let halves = usize::try_from(database.count("select count(*) from rows where tag = 'half'").await).expect("it counts");
            assert_eq!(halves % 2, 0, "all of a request or nothing");
            // A commit whose answer was lost with the connection may have been one; each client had one at most.
            assert!((2 * done..=2 * done + 2 * 16).contains(&halves), "{halves} rows of {done} requests");
            database.execute("delete from rows").await;
        }
    }
}
