//! Attacks on shadow mode: whatever a candidate is, and whatever it does with its copies, clients and the database see
//! what they would see without it, and the report says what was found, no more.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use amphi::app::rollout::shadow::{ShadowOptions, ShadowReport};
use futures::StreamExt as _;
use futures::future::join_all;
use reqwest::Method;

use crate::deploying::{app, done, refused, served as placed, status, version, word};
use crate::harness::wasi_http;
use crate::harness::{Kind, Mode, Reply};
use crate::shadow::{Served, module, numbers, options, other, ported};

/// A request: its method, its path, a header.
type Asked = (Method, &'static str, Option<(&'static str, &'static str)>);

/// What a client sees of an answer, without what differs each time: the time, and the id of the request.
fn seen(reply: &Reply) -> String {
    let headers: BTreeMap<String, Vec<String>> = (reply.headers.keys())
        .filter(|name| !["date", "x-request-id"].contains(&name.as_str()))
        .map(|name| {
            let values = reply.headers(name.as_str());
            (
                name.to_string(),
                values.into_iter().map(str::to_owned).collect(),
            )
        })
        .collect();
    let text = reply.text();
    let text = text.split("\nRequest ").next().unwrap_or_default();
    format!("{} {headers:?} {text}", reply.status)
}

async fn send(served: &Served, (method, path, header): &Asked) -> Reply {
    let url = format!("http://{}{path}", served.address);
    let mut request = served.client.request(method.clone(), url);
    if let Some((name, value)) = header {
        request = request.header(*name, *value);
    }
    Reply::of(request).await
}

/// Sends the requests one after the other, without a candidate and with one. Returns the report, and how long each request
/// took beside the candidate.
async fn same(
    (mode, kind): (Mode, Kind),
    modules: fn(Mode, &str) -> String,
    options: ShadowOptions,
    requests: &[Asked],
) -> (ShadowReport, Vec<Duration>) {
    let (mut sights, mut dumps, mut counters) = (Vec::new(), Vec::new(), Vec::new());
    let mut found = None;
    for with_copies in [false, true] {
        let served = Served::start_with(mode, kind, modules).await;
        let shadow = match with_copies {
            true => Some(served.shadow(options.clone()).await),
            false => None,
        };
        let sent = served.host.hub.counters().all();
        let (mut replies, mut took) = (Vec::new(), Vec::new());
        for request in requests {
            let since = Instant::now();
            replies.push(format!(
                "{request:?}: {}",
                seen(&send(&served, request).await)
            ));
            took.push(since.elapsed());
            // What is written while the body is sent, or by events, comes before the next request.
            served.settled().await;
            served.data.assert_quiet().await;
        }
        sights.push(replies);
        dumps.push(served.dump().await);
        counters.push(served.host.hub.counters().all() == sent);
        if let Some(shadow) = shadow {
            found = Some((shadow.report(), took));
        }
        served.end().await;
    }
    assert_eq!(sights[0], sights[1]);
    assert_eq!(dumps[0], dumps[1]);
    assert_eq!(counters, [true; 2], "no message was sent");
    found.expect("the second round has a candidate")
}

fn not_compared(report: &ShadowReport, words: &str) -> u64 {
    let found = report.not_compared.iter();
    let found = found.filter(|(why, _)| why.contains(words));
    found.map(|(_, number)| number).sum()
}

/// The sentences about requests to a path.
fn about<'a>(report: &'a ShadowReport, path: &str) -> Vec<&'a str> {
    let all = report.differences.iter().chain(&report.unclear_differences);
    let of_path = all.filter(|it| it.request.path == path);
    of_path
        .flat_map(|it| it.differences.iter().map(String::as_str))
        .collect()
}

shadow_tests!(
    chains_of_both_modes_are_copied,
    bodies_that_are_sent_later_are_sent_once,
    views_that_differ_in_kind_are_told_apart,
    sessions_and_forms_are_the_clients,
    conflicts_are_no_differences
);

/// The view's module behind middleware of the other mode, and of its own.
fn behind_both(mode: Mode, role: &str) -> String {
    let around = module("around", other(mode), role);
    format!(
        "{}\nmiddleware = [\"around::around\", \"ported::around\"]\n{around}\nmount = \"/other\"\n",
        module("ported", mode, role)
    )
}

async fn chains_of_both_modes_are_copied(mode: Mode, kind: Kind) {
    let limits = ShadowOptions {
        timeout: Duration::from_millis(700),
        named_max: 100,
        ..options(kind)
    };
    let deeds = [
        "nothing",
        "trap",
        "spin",
        "sleep",
        "memory",
        "write",
        "nest",
        "publish",
        "send",
        "fetch",
        "pin",
        "subrequest",
        "context",
        "fail",
        "refuse",
        "rollback",
        "poison",
        "commit",
    ];
    let mut requests: Vec<Asked> = vec![
        (Method::HEAD, "/count/one", None),
        (Method::GET, "/count/one", None),
    ];
    for deed in deeds {
        // Both links of the candidate's chain do it.
        requests.push((Method::POST, "/deeds/nothing", Some(("x-around", deed))));
        requests.push((Method::GET, "/safe/nothing", Some(("x-around", deed))));
    }
    let (report, took) = same((mode, kind), behind_both, limits, &requests).await;
    let [equal, differing, unclear, refused] = numbers(&report);
    assert_eq!(
        equal + differing + unclear + refused,
        requests.len() as u64,
        "{report:#?}"
    );
    assert!(equal >= 4, "{report:#?}");
    for words in ["makes outbound requests", "pins a connection"] {
        assert_eq!(not_compared(&report, words), 2, "{words}: {report:#?}");
    }
    let sentences = about(&report, "/deeds/nothing").join("\n");
    for words in [
        "status: 200 served, 500 (",
        "the candidate traps",
        "status: 200 served, 504",
        "event `orders.made`: sent 0 times served, 40 times candidate",
        "message to the group `room.1`: sent 0 times served, 2 times candidate",
        "status: 200 served, 409",
        "transaction: committed served, rolled back candidate",
    ] {
        assert!(sentences.contains(words), "no {words:?} in {sentences}");
    }
    // A copy that is compared again has its time twice.
    let longest = took.iter().max().expect("there are some");
    assert!(*longest < Duration::from_secs(6), "{took:?}");
}

/// A body that is produced while it is sent: that of a copy is not produced at all.
async fn bodies_that_are_sent_later_are_sent_once(mode: Mode, kind: Kind) {
    let requests = [
        (Method::GET, "/stream/text", None),
        (Method::HEAD, "/stream/text", None),
        (Method::POST, "/stream/text", None),
        (Method::GET, "/stream/differs", None),
    ];
    let (report, _) = same((mode, kind), ported, options(kind), &requests).await;
    let streamed = not_compared(&report, "is produced while it is sent");
    // Others' commits in the same PostgreSQL leave a difference unclear; there is none here but that of the head.
    assert_eq!((report.equal, streamed), (0, 3), "{report:#?}");
    assert_eq!(
        about(&report, "/stream/differs"),
        ["header `x-head`: `served` served, `candidate` candidate"]
    );
}

/// The candidate has no such route, or has it without a transaction; the client gets what the served version makes.
async fn views_that_differ_in_kind_are_told_apart(mode: Mode, kind: Kind) {
    let only = match mode {
        Mode::Sync => "/only/sync",
        Mode::Async => "/only/async",
    };
    let requests = [
        (Method::POST, only, None),
        (Method::POST, "/partly", None),
        (Method::POST, "/broken", None),
        (Method::POST, "/deeds/refuse", None),
        (Method::GET, "/safe/refuse", None),
        (Method::GET, "/nowhere", None),
        (Method::PUT, "/partly", None),
    ];
    let (report, _) = same((mode, kind), ported, options(kind), &requests).await;
    assert!(
        about(&report, only)[0].contains("no page (404) candidate"),
        "{report:#?}"
    );
    let partly = about(&report, "/partly");
    match mode {
        Mode::Sync => assert_eq!(
            partly[0],
            "transaction: the served view is atomic, the candidate's is not"
        ),
        Mode::Async => assert_eq!(
            not_compared(&report, "neither GET nor HEAD"),
            1,
            "{report:#?}"
        ),
    }
    assert_eq!(about(&report, "/broken"), [""; 0], "both fail");
    for path in ["/deeds/refuse", "/safe/refuse"] {
        let refused = about(&report, path).join("\n");
        for words in [
            "status: 200 served, 500 (",
            "the candidate answers 500) candidate",
        ] {
            assert!(refused.contains(words), "{path}: {report:#?}");
        }
    }
}

/// The cookies that a client gets are those of the served version, and its tokens work.
async fn sessions_and_forms_are_the_clients(mode: Mode, kind: Kind) {
    let served = Served::start_with(mode, kind, ported).await;
    let shadow = served.shadow(options(kind)).await;
    let mut cookie = String::new();
    let mut with = async |method: Method, path: &str, token: &str| {
        let url = format!("http://{}{path}", served.address);
        let mut request = served.client.request(method, url);
        if !cookie.is_empty() {
            request = request.header("cookie", &cookie);
        }
        if !token.is_empty() {
            request = request.header("x-csrf-token", token);
        }
        let reply = Reply::of(request).await;
        let set = reply.headers("set-cookie");
        assert!(set.len() <= 1, "{reply:?}");
        if let Some(set) = set.first() {
            cookie = set.split(';').next().unwrap_or_default().to_owned();
        }
        reply
    };
    // At the third visit the candidate forgets the session; the client's goes on.
    for visits in ["0", "1", "2", "3"] {
        assert_eq!(with(Method::POST, "/visits", "").await.ok(), visits);
    }
    let report = shadow.report();
    let about_visits = about(&report, "/visits").join("\n");
    assert!(about_visits.contains("`set-cookie`"), "{report:#?}");
    let secret = with(Method::GET, "/token", "").await.ok().to_owned();
    assert_eq!(with(Method::POST, "/protected", "").await.status, 403);
    let allowed = with(Method::POST, "/protected", &secret).await;
    assert_eq!(allowed.ok(), "allowed");
    assert_eq!(served.count("protected").await, 1);
    assert_eq!(served.count("visit").await, 4);
    let report = format!("{:?}", shadow.report());
    let value = cookie.split_once('=').expect("it has a value").1;
    assert!(!report.contains(value), "a session is not shown");
    served.end().await;
}

/// Requests that conflict with each other are run again; what has become of the attempt beside the copy says nothing.
async fn conflicts_are_no_differences(mode: Mode, kind: Kind) {
    let served = Served::start_with(mode, kind, ported).await;
    let shadow = served.shadow(options(kind)).await;
    let clients = (0..4).map(async |_| {
        for _ in 0..15 {
            assert_eq!(served.post("/steady").await.ok(), "added");
        }
    });
    join_all(clients).await;
    let report = shadow.report();
    assert_eq!((report.differing, report.unclear), (0, 0), "{report:#?}");
    assert_eq!(report.equal + numbers(&report)[3], 60, "{report:#?}");
    let sql = "select n from counters where name = 'shared'";
    assert_eq!(served.data.count(sql).await, 60);
    served.end().await;
}

/// A failure that does not come again without the copy is no difference.
#[tokio::test(flavor = "multi_thread")]
async fn what_fails_beside_a_copy_only_is_not_compared() {
    for mode in [Mode::Sync, Mode::Async] {
        let served = Served::start_with(mode, Kind::Postgres, ported).await;
        served.data.execute("create sequence flaky").await;
        let shadow = served.shadow(options(Kind::Postgres)).await;
        // The copy gets 1, the request 2, and the request alone 3.
        assert_eq!(served.post("/flaky").await.ok(), "steady this time");
        let report = shadow.report();
        assert_eq!(report.compared, 0, "{report:#?}");
        assert_eq!(
            not_compared(&report, "and not without it"),
            1,
            "{report:#?}"
        );
        served.end().await;
    }
}

/// The served version is a component of `wasi:http` 0.2 or 0.3, and the candidate one of the other version.
fn plain(mode: Mode, _: &str) -> String {
    let guest = match mode {
        Mode::Sync => "p2",
        Mode::Async => "p3",
    };
    format!(
        "[modules.x]\npath = {:?}\nmount = \"/x\"\ndatabases = [\"default\"]\nhttp = [\"self\"]\n",
        wasi_http::built(guest)
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_components_are_compared() {
    for mode in [Mode::Sync, Mode::Async] {
        compares_plain_components(mode).await;
    }
}

async fn compares_plain_components(mode: Mode) {
    let kind = Kind::Sqlite;
    let requests = [
        (Method::GET, "/x/status?code=404", None),
        (Method::HEAD, "/x/status?code=404", None),
        (Method::GET, "/x/500", None),
        (Method::GET, "/x/rows?tag=safe", None),
        (Method::POST, "/x/rows?tag=unsafe", None),
        // It waits after the head. A body that is whole before the component waits is sent with its length.
        (Method::GET, "/x/rows-late?tag=late&ms=50", None),
        (Method::GET, "/x/nap?ms=10", None),
    ];
    let (report, _) = same((mode, kind), plain, options(kind), &requests).await;
    let [equal, differing, unclear, _] = numbers(&report);
    assert_eq!((differing, unclear), (0, 0), "{report:#?}");
    let streamed = not_compared(&report, "is produced while it is sent");
    // A request that may change something is in a transaction.
    assert_eq!(equal + streamed, requests.len() as u64, "{report:#?}");
}

/// A body that takes long, or for ever, begins as soon as without a copy, and is not taken for a failure of the copy.
#[tokio::test(flavor = "multi_thread")]
async fn plain_streams_begin_at_once() {
    for mode in [Mode::Sync, Mode::Async] {
        begins_at_once(mode).await;
    }
}

async fn begins_at_once(mode: Mode) {
    let kind = Kind::Sqlite;
    let served = Served::start_with(mode, kind, plain).await;
    let shadow = served.shadow(options(kind)).await;
    for path in ["/x/endless", "/x/drip?n=20&ms=200"] {
        let since = Instant::now();
        let url = format!("http://{}{path}", served.address);
        let response = served.client.get(url).send().await.expect("it begins");
        assert_eq!(response.status(), 200);
        let first = response.bytes_stream().next().await;
        assert!(first.is_some_and(|piece| piece.is_ok()), "{path}");
        assert!(
            since.elapsed() < Duration::from_secs(3),
            "{path}: {:?}",
            since.elapsed()
        );
    }
    let report = shadow.report();
    assert_eq!(report.compared, 0, "{report:#?}");
    assert_eq!(
        not_compared(&report, "is produced while it is sent"),
        2,
        "{report:#?}"
    );
    served.end().await;
}

/// The limits of a shadow are those that were asked for, and a client chooses no candidate that is not for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_candidate_is_for_those_that_it_was_deployed_for() {
    let app = app();
    for word in ["one", "two"] {
        version(&app, word, |toml| toml);
    }
    let mut server = placed(app).await;
    for (flag, number, words) in [
        ("--shadow-timeout", "0", "1 to 60000 ms"),
        ("--shadow-timeout", "60001", "1 to 60000 ms"),
        ("--shadow-at-once", "0", "1 to 1024 requests at once"),
        ("--shadow-at-once", "1025", "1 to 1024 requests at once"),
    ] {
        let deploy = ["deploy", "two.amphi", "--shadow", flag, number];
        refused(&server.app, &deploy, &["nothing was changed", words]);
    }
    let limits = ["--shadow-timeout", "300", "--shadow-at-once", "1"];
    let shadow = [&["deploy", "two.amphi", "--shadow"][..], &limits].concat();
    let with_cookie = async |server: &crate::harness::Server, cookie: &str, canary: &str| {
        let request = server.request("GET", "/sync/setting/word");
        let request = request
            .header("cookie", cookie)
            .header("x-canary", canary)
            .header("amphi_rollout", "0");
        Reply::of(request).await.ok().to_owned()
    };
    let cookies = [
        "amphi_rollout=0",
        "amphi_rollout=9999",
        "amphi_rollout=",
        "amphi_rollout=-1; amphi_rollout=0",
        "a=b; amphi_rollout=00000",
    ];
    for audience in [
        &shadow[..],
        &["deploy", "two.amphi", "--canary", "header:x-canary=secret"],
        &["deploy", "two.amphi", "--canary", "0%"],
        &["deploy", "two.amphi", "--canary", "0%", "--by-address"],
    ] {
        done(&server.app, audience);
        for cookie in cookies {
            for canary in ["", "1", "Secret", "secret1"] {
                let got = with_cookie(&server, cookie, canary).await;
                assert_eq!(got, "one", "{audience:?} {cookie}");
            }
        }
    }
    done(
        &server.app,
        &["deploy", "two.amphi", "--canary", "header:x-canary=secret"],
    );
    assert_eq!(
        with_cookie(&server, "amphi_rollout=9999", "secret").await,
        "two"
    );

    done(&server.app, &shadow);
    server.kill();
    server.again_with(&["--place", "place.toml"]).await;
    let now = crate::harness::eventually("the candidate", async || {
        let now = status(&server.app);
        if now["candidate"].is_object() {
            Ok(now)
        } else {
            Err(now)
        }
    })
    .await;
    let trial = &now["candidate"]["trial"];
    assert_eq!(
        (&trial["shadow_timeout_ms"], &trial["shadow_at_once"]),
        (&300.into(), &1.into()),
        "{now}"
    );
    assert_eq!(word(&server, "sync").await, "one");
    assert_eq!(word(&server, "async").await, "one");
    let text = done(&server.app, &["status"]);
    assert!(
        text.contains("shadow     2 requests compared: 0 equal"),
        "{text}"
    );
    assert!(
        text.contains(
            "body: differs at byte 0 (of 3 served, 3 candidate): `one` served, `two` candidate"
        ),
        "{text}"
    );
    done(&server.app, &["promote"]);
    assert_eq!(word(&server, "sync").await, "two");
    server.assert_baseline().await;
}
