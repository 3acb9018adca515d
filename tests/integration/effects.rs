//! Events: held until the commit, dropped by a rollback, and which context they carry.

use serde_json::{Value, json};

use crate::harness::steps::{
    about, atomic, broken, end, execute, get, insert, must, nap, publish, query_with, rollback,
    set, status,
};
use crate::harness::{App, Kind, Mode, Server, eventually};

/// What the subscribers of both modes have logged since a mark: for each delivered event, the topic and what the
/// subscriber's steps told.
fn heard(server: &Server, mark: u64) -> Vec<(String, Value)> {
    let lines = server.log.since(mark);
    let texts = lines
        .iter()
        .filter_map(|line| line.text("message").strip_prefix("heard topic="));
    texts
        .map(|text| {
            let (topic, told) = text.split_once(" told=").expect("it tells");
            let read = |text: &str| serde_json::from_str(text).expect("what is told is JSON");
            // The log writes a text that has spaces or quotes as a JSON string.
            let told = match read(told) {
                Value::String(quoted) => read(&quoted),
                told => told,
            };
            (topic.to_owned(), told)
        })
        .collect()
}

/// Waits until all events are delivered, and then returns what `heard` returns.
async fn all_heard(server: &Server, mark: u64) -> Vec<(String, Value)> {
    server.assert_baseline().await;
    heard(server, mark)
}

fn topics(heard: &[(String, Value)]) -> Vec<&str> {
    let mut topics: Vec<&str> = heard.iter().map(|(topic, _)| topic.as_str()).collect();
    topics.sort_unstable();
    topics
}

/// A subscriber finds in the database what the publisher wrote.
async fn r10_a_subscriber_always_sees_what_the_publisher_wrote(mode: Mode, kind: Kind) {
    let server = App::rules(kind, "").await.serve().await;
    let mark = server.log.mark();
    const EVENTS: usize = 200;
    let requests = (0..EVENTS).map(|number| {
        let tag = number.to_string();
        let look = query_with("select count(*) from rows where tag = $1", json!([tag]));
        // The row is written after the event is published, and some time passes before the commit.
        let steps = json!([
            must(publish("orders.new", json!([look]))),
            must(insert(&tag)),
            nap(2)
        ]);
        let server = &server;
        async move {
            server
                .steps(&format!("/{mode}/run/atomic"), steps)
                .await
                .ok()
                .len()
        }
    });
    futures::future::join_all(requests).await;
    let heard = all_heard(&server, mark).await;
    assert_eq!(
        heard.len(),
        2 * EVENTS,
        "each of both subscribers hears each event once"
    );
    let blind: Vec<_> = heard
        .iter()
        .filter(|(_, told)| *told != json!([[[1]]]))
        .collect();
    assert!(blind.is_empty(), "{blind:?}");
    server.assert_baseline().await;
}
both_modes_and_databases!(r10_a_subscriber_always_sees_what_the_publisher_wrote);

/// Events of a transaction that is rolled back are not delivered.
async fn r10_events_of_what_is_rolled_back_are_dropped(mode: Mode, kind: Kind) {
    let server = App::rules(kind, "").await.serve().await;
    let mark = server.log.mark();
    let event = || must(publish("orders.undone", json!([])));
    let orphan = execute("insert into children (parent) values (7)");
    for (view, steps) in [
        ("run/atomic", json!([insert("a"), event(), end("panic")])),
        ("run/atomic", json!([event(), insert("a"), end("error")])),
        ("run/atomic", json!([event(), insert("a"), status(500)])),
        ("run/atomic", json!([event(), insert("a"), rollback()])),
        ("run/atomic", json!([event(), insert("a"), broken()])),
        ("run/atomic", json!([event(), insert("a"), orphan])),
        ("limited", json!([event(), insert("a"), end("loop")])),
        ("brief", json!([event(), insert("a"), nap(60_000)])),
        // The events of a transaction without a statement are dropped, too.
        ("run/atomic", json!([event(), end("panic")])),
    ] {
        server.steps(&format!("/{mode}/{view}"), steps).await;
    }
    let left = server
        .request("POST", &format!("/{mode}/run/atomic"))
        .body(json!([event(), insert("a"), nap(60_000)]).to_string());
    let left = tokio::time::timeout(std::time::Duration::from_millis(100), left.send()).await;
    assert!(left.is_err(), "it waits");
    server.assert_baseline().await;
    assert_eq!(all_heard(&server, mark).await, []);
    assert_eq!(server.app.data.rows().await, 0);
    assert_eq!(server.metrics().await.get("amphi_queued"), 0.0);
}
both_modes_and_databases!(r10_events_of_what_is_rolled_back_are_dropped);

/// An event belongs to the innermost block that it was published in.
async fn r10_events_of_an_undone_block_are_dropped_and_others_kept(mode: Mode, kind: Kind) {
    let server = App::rules(kind, "").await.serve().await;
    let event = |name: &str| must(publish(&format!("orders.{name}"), json!([])));
    for (view, expected) in [
        (
            "run/atomic",
            vec!["orders.after", "orders.before", "orders.kept"],
        ),
        ("run", vec!["orders.after", "orders.before", "orders.kept"]),
    ] {
        let mark = server.log.mark();
        let steps = json!([
            event("before"),
            atomic(json!([
                insert("kept"),
                event("kept"),
                atomic(json!([insert("x"), event("inner"), end("error")]))
            ])),
            atomic(json!([
                insert("x"),
                event("undone"),
                atomic(json!([insert("x"), event("within")])),
                end("error")
            ])),
            event("after"),
        ]);
        server.steps(&format!("/{mode}/{view}"), steps).await.ok();
        let heard = all_heard(&server, mark).await;
        let twice: Vec<&str> = expected.iter().flat_map(|topic| [*topic, *topic]).collect();
        assert_eq!(topics(&heard), twice, "{view}");
    }
    assert_eq!(server.app.data.tags().await, ["kept", "kept"]);
    server.assert_baseline().await;
}
both_modes_and_databases!(r10_events_of_an_undone_block_are_dropped_and_others_kept);

/// Outside a transaction, an event is delivered immediately, whatever becomes of the view that published it.
async fn r10_outside_of_a_transaction_events_go_at_once(mode: Mode, kind: Kind) {
    let server = App::rules(kind, "").await.serve().await;
    let mark = server.log.mark();
    let steps = json!([must(publish("orders.now", json!([]))), nap(60_000)]);
    let request = server
        .request("POST", &format!("/{mode}/run"))
        .body(steps.to_string())
        .send();
    let publisher = tokio::spawn(request);
    eventually("both to hear it", async || {
        let heard = heard(&server, mark);
        if heard.len() == 2 { Ok(()) } else { Err(heard) }
    })
    .await;
    assert!(!publisher.is_finished(), "the view is still there");
    publisher.abort();
    server
        .steps(
            &format!("/{mode}/run"),
            json!([must(publish("orders.then", json!([]))), end("panic")]),
        )
        .await;
    let heard = all_heard(&server, mark).await;
    assert_eq!(
        topics(&heard),
        ["orders.now", "orders.now", "orders.then", "orders.then"]
    );
    server.assert_baseline().await;
}
both_modes_and_databases!(r10_outside_of_a_transaction_events_go_at_once);

/// A subscriber has the publisher's request id, trace and context values, in a scope of its own.
async fn r14_an_event_carries_identity_and_values(mode: Mode) {
    let server = App::rules(Kind::Sqlite, "").await.serve().await;
    let mark = server.log.mark();
    let look = json!([
        about("request-id"),
        about("traceparent"),
        get("name"),
        set("name", "other"),
        get("name")
    ]);
    let steps = json!([
        about("request-id"),
        about("traceparent"),
        set("name", "ann"),
        must(publish("orders.new", look)),
        nap(50),
        get("name")
    ]);
    let told = server.told(&format!("/{mode}/run"), steps).await;
    assert_eq!(told[5], "ann", "what a subscriber sets is its own");
    let heard = all_heard(&server, mark).await;
    assert_eq!(heard.len(), 2);
    let trace = |told: &Value| {
        told.as_str()
            .and_then(|text| text.split('-').nth(1))
            .map(str::to_owned)
    };
    for (_, seen) in heard {
        assert_eq!(seen[0], told[0], "the same request");
        assert_eq!(trace(&seen[1]), trace(&told[1]), "the same trace");
        assert_eq!((&seen[2], &seen[4]), (&json!("ann"), &json!("other")));
    }
}
both_modes!(r14_an_event_carries_identity_and_values);

/// A subscriber that fails is logged with the reason, and stops no other subscriber.
async fn a_subscriber_that_fails_is_logged(mode: Mode) {
    let server = App::rules(Kind::Sqlite, "").await.serve().await;
    let mark = server.log.mark();
    let steps = json!([
        must(publish("orders.new", json!([insert("a"), end("panic")]))),
        insert("b")
    ]);
    server
        .steps(&format!("/{mode}/run/atomic"), steps)
        .await
        .ok();
    let lines = server.log.requests(mark, 3).await;
    let failed: Vec<_> = lines
        .iter()
        .filter(|line| line.text("method") == "EVENT")
        .collect();
    assert_eq!(failed.len(), 2);
    for line in failed {
        assert_eq!(
            (line.text("path"), line.text("fault")),
            ("orders.new", "view"),
            "{line:?}"
        );
        assert!(line.text("why").contains("on purpose"), "{line:?}");
    }
    server.assert_baseline().await;
}
both_modes!(a_subscriber_that_fails_is_logged);

async fn events_need_a_grant_a_topic_and_room(mode: Mode) {
    let server = App::rules(
        Kind::Sqlite,
        "events = { queue_max = 4, payload_max_bytes = 1000 }",
    )
    .await
    .serve()
    .await;
    let path = format!("/{mode}/run/atomic");
    let told = |steps| {
        let (server, path) = (&server, path.as_str());
        async move { server.told(path, steps).await }
    };
    let refused = told(json!([publish("users.new", json!([]))])).await;
    assert!(
        refused[0]
            .as_str()
            .is_some_and(|told| told.contains("`users.new`") && told.contains("`publish`")),
        "{refused}"
    );
    let no_topic = told(json!([publish("orders.n w", json!([]))])).await;
    assert!(
        no_topic[0]
            .as_str()
            .is_some_and(|told| told.contains("orders.n w")),
        "{no_topic}"
    );
    let large = told(json!([publish(
        "orders.new",
        json!([set("x", &"x".repeat(1_000))])
    )]))
    .await;
    assert!(
        large[0]
            .as_str()
            .is_some_and(|told| told.contains("`payload_max_bytes`")),
        "{large}"
    );
    // There are two subscribers, so each event takes two places in the queue.
    let event = publish("orders.new", json!([]));
    let full = told(json!([event, event, event])).await;
    assert_eq!((&full[0], &full[1]), (&Value::Null, &Value::Null));
    assert!(
        full[2]
            .as_str()
            .is_some_and(|told| told.contains("`queue_max`")),
        "{full}"
    );
    server.assert_baseline().await;
}
both_modes!(events_need_a_grant_a_topic_and_room);

/// Subscribers that publish for each other are stopped at `outbound_depth_max`.
async fn events_within_each_other_have_a_limit(mode: Mode) {
    let server = App::rules(Kind::Sqlite, "limits.outbound_depth_max = 2")
        .await
        .serve()
        .await;
    let mark = server.log.mark();
    let third = publish("orders.third", json!([]));
    let second = publish("orders.second", json!([third]));
    let first = publish("orders.first", json!([second]));
    server.told(&format!("/{mode}/run"), json!([first])).await;
    let heard = all_heard(&server, mark).await;
    let of = |topic: &'static str| {
        heard
            .iter()
            .filter(move |(heard, _)| heard == topic)
            .map(|(_, told)| told.to_string())
    };
    assert_eq!(
        (
            of("orders.first").count(),
            of("orders.second").count(),
            of("orders.third").count()
        ),
        (2, 4, 0),
        "{heard:?}"
    );
    assert!(
        of("orders.second").all(|told| told.contains("`outbound_depth_max`")),
        "{heard:?}"
    );
}
both_modes!(events_within_each_other_have_a_limit);
