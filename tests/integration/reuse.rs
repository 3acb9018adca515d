//! Instances that are kept for further requests, where a module has `instances = "reuse"` (R16).

use std::time::Duration;

use crate::harness::{App, Mode, Server, eventually};
use futures::future::join_all;

const REUSE: &str = "[modules.behaviour]\ninstances = \"reuse\"";

async fn reusing(more: &str) -> Server {
    App::new(&format!("{REUSE}\n{more}")).serve().await
}

/// How many requests the instance that answers has served, this one included.
async fn count(server: &Server, mode: Mode) -> u32 {
    let reply = server.get(&format!("/{mode}/global")).await;
    reply.ok().parse().expect("it is a number")
}

async fn r16_a_kept_instance_serves_one_request_after_the_other(mode: Mode) {
    let server = reusing("").await;
    for expected in 1..=20 {
        assert_eq!(count(&server, mode).await, expected);
    }
    // Concurrent requests have an instance each.
    let path = format!("/{mode}/nap/100");
    let replies = join_all((0..20).map(|_| server.get(&path))).await;
    assert!(replies.iter().all(|reply| reply.ok() == "slept 100"));
    server.assert_baseline().await;
    assert!(server.metrics().await.get("amphi_instances_kept") >= 20.0);
}
both_modes!(r16_a_kept_instance_serves_one_request_after_the_other);

async fn r16_kept_instances_are_recycled_by_count(mode: Mode) {
    let server = reusing("[limits]\nreuse_requests_max = 3").await;
    for expected in [1, 2, 3, 1, 2, 3, 1] {
        assert_eq!(count(&server, mode).await, expected);
    }
    assert_eq!(
        server.metrics().await.get("amphi_instances_recycled_total"),
        2.0
    );
}
both_modes!(r16_kept_instances_are_recycled_by_count);

async fn r16_kept_instances_are_recycled_by_age(mode: Mode) {
    let server = reusing("[limits]\nreuse_age_max_ms = 500").await;
    assert_eq!(count(&server, mode).await, 1);
    // Old instances are ended even if no request comes.
    eventually("no instance to be kept", async || {
        let kept = server.metrics().await.get("amphi_instances_kept");
        if kept == 0.0 { Ok(()) } else { Err(kept) }
    })
    .await;
    assert_eq!(count(&server, mode).await, 1);
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(count(&server, mode).await, 1);
}
both_modes!(r16_kept_instances_are_recycled_by_age);

async fn r16_kept_instances_are_recycled_by_memory(mode: Mode) {
    let server = reusing("[limits]\nreuse_memory_max_mb = 1").await;
    for _ in 0..3 {
        assert_eq!(count(&server, mode).await, 1);
    }
    assert_eq!(server.metrics().await.get("amphi_instances_kept"), 0.0);
}
both_modes!(r16_kept_instances_are_recycled_by_memory);

async fn r16_no_more_instances_are_kept_than_there_is_room_for(mode: Mode) {
    let server = reusing(&format!("[{mode}_views]\ninstances_kept_max = 2")).await;
    let path = format!("/{mode}/nap/200");
    join_all((0..10).map(|_| server.get(&path))).await;
    assert_eq!(server.metrics().await.get("amphi_instances_kept"), 2.0);
    let server = reusing(&format!("[{mode}_views]\ninstances_kept_max = 0")).await;
    assert_eq!(
        (count(&server, mode).await, count(&server, mode).await),
        (1, 1)
    );
}
both_modes!(r16_no_more_instances_are_kept_than_there_is_room_for);

/// A trap, a limit or a cancelled request ends the instance.
async fn r13_r16_an_instance_that_did_not_end_well_is_not_kept(mode: Mode) {
    let server =
        reusing("[limits]\ncpu_ms = 200\ntimeout_ms = 1000\nmemory_mb = 32\nlog_max_bytes = 200")
            .await;
    let mut ends: Vec<String> = ["panic", "exit", "loop", "recurse", "allocate", "sleep"]
        .map(|how| format!("/{mode}/fail/{how}"))
        .into();
    ends.push(format!("/{mode}/chatter/{}", "x".repeat(300)));
    for path in ends {
        count(&server, mode).await;
        assert_ne!(count(&server, mode).await, 1, "before {path}");
        server
            .request("POST", &path)
            .send()
            .await
            .expect("it answers");
        server.get(&path).await;
        assert_eq!(count(&server, mode).await, 1, "after {path}");
    }
    let nap = tokio::spawn(server.request("GET", &format!("/{mode}/nap/900")).send());
    eventually("the view to run", async || {
        let running = server.metrics().await.get("amphi_instances");
        if running == 1.0 { Ok(()) } else { Err(running) }
    })
    .await;
    nap.abort();
    server.assert_baseline().await;
    assert_eq!(count(&server, mode).await, 1, "after a client that left");
}
both_modes!(r13_r16_an_instance_that_did_not_end_well_is_not_kept);

/// After an error that a view returns, the instance is kept and the request's transaction is rolled back.
async fn r9_r16_a_kept_instance_keeps_nothing_of_a_transaction(mode: Mode) {
    let server = reusing("").await;
    count(&server, mode).await;
    for how in ["error", "status-500", "refuse"] {
        server.post(&format!("/{mode}/fail/{how}"), "").await;
    }
    assert_ne!(count(&server, mode).await, 1, "the instance is kept");
    assert_eq!(server.rows(), 0);
    server.post(&format!("/{mode}/rows/kept"), "").await;
    assert_eq!(server.tags(), ["kept"]);
    server.assert_baseline().await;
}
both_modes!(r9_r16_a_kept_instance_keeps_nothing_of_a_transaction);

/// Output of a kept instance is logged with the id of the request that wrote it.
async fn r14_r16_lines_of_a_kept_instance_belong_to_their_requests(mode: Mode) {
    let server = reusing("").await;
    for text in ["one", "two"] {
        let mark = server.log.mark();
        server.get(&format!("/{mode}/chatter/{text}")).await.ok();
        let request = server.log.requests(mark, 1).await[0]
            .text("request")
            .to_owned();
        let lines = server.log.since(mark);
        let said: Vec<_> = lines
            .iter()
            .filter(|line| line.text("target") == "amphi::guest")
            .collect();
        assert_eq!(said.len(), 4, "{lines:?}");
        assert!(
            said.iter().all(|line| line.text("request") == request),
            "{lines:?}"
        );
        assert!(said[0].text("message").contains(text), "{lines:?}");
    }
}
both_modes!(r14_r16_lines_of_a_kept_instance_belong_to_their_requests);

/// Unfinished lines and text that looks like a panic belong to the request that wrote them, and do not appear in the
/// log of a later request on the same instance.
async fn r16_what_one_request_writes_is_not_told_of_another(mode: Mode) {
    let base = format!(
        "[modules.greedy]\npath = \"{}/greedy\"\ninstances = \"reuse\"\npublish = [\"greed.*\"]\nsubscribe = [\"greed.*\"]\nhttp = [\"self\"]",
        crate::harness::guests::folder().display()
    );
    let server = App::new(&base).serve().await;
    let ask = async |what: &str| {
        let mark = server.log.mark();
        let reply = server.post(&format!("/{mode}/ask/{what}"), "").await;
        let line = server.log.requests(mark, 1).await.remove(0);
        let id = line.text("request").to_owned();
        let of_guest = server
            .log
            .since(mark)
            .into_iter()
            .filter(|line| line.text("target") == "amphi::guest");
        let told: Vec<_> = of_guest
            .map(|line| (line.text("request") == id, line.text("message").to_owned()))
            .collect();
        (reply.status, line.text("why").to_owned(), told)
    };
    let own = |text: &str| (true, text.to_owned());
    for _ in 0..3 {
        let (status, _, told) = ask("half-line/1/7").await;
        assert_eq!(
            (status, told),
            (200, vec![own("and another of 7"), own("half a line of 7")])
        );
        let (_, _, told) = ask("error-line/1/8").await;
        assert_eq!(told, [own("a line of 8")]);
        let (status, _, told) = ask("panicked/1/9").await;
        assert_eq!(
            (status, told),
            (200, vec![own("panicked at src/secret.rs:9:1: SECRET 9")])
        );
        let (_, _, told) = ask("error-line/1/8").await;
        assert_eq!(told, [own("a line of 8")]);
    }
    // The instance was kept, and the log of a trap has nothing of the earlier requests.
    assert!(server.metrics().await.get("amphi_instances_kept") >= 1.0);
    let (status, why, _) = ask("trap/1/0").await;
    assert_eq!(status, 500);
    assert!(why.contains("trapped") && !why.contains("SECRET"), "{why}");
    // Output beyond the limit ends the instance, so the next request's output is complete.
    let (_, _, told) = ask("lines/2000/50").await;
    assert!(told.iter().all(|(own, _)| *own), "{told:#?}");
    let (_, _, told) = ask("error-line/1/8").await;
    assert_eq!(told, [own("a line of 8")]);
    server.assert_baseline().await;
}
both_modes!(r16_what_one_request_writes_is_not_told_of_another);
