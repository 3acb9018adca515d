//! What a view knows: its request, its settings, and nothing of other requests.

use futures::future::join_all;

use crate::harness::{App, Mode, Reply};

async fn r14_values_do_not_outlive_their_request(mode: Mode) {
    let server = App::new("").serve().await;
    let replies = join_all((0..100).map(|number| {
        let server = &server;
        async move {
            (
                number,
                server.get(&format!("/{mode}/remember/{number}")).await,
            )
        }
    }));
    for (number, reply) in replies.await {
        assert_eq!(reply.ok(), format!("nothing {number}"));
    }
    let limited = App::new("limits.context_value_max_bytes = 10")
        .serve()
        .await;
    assert_eq!(
        limited.get(&format!("/{mode}/remember/123456")).await.ok(),
        "nothing 123456"
    );
    let mark = limited.log.mark();
    assert_eq!(
        limited
            .get(&format!("/{mode}/remember/1234567"))
            .await
            .status,
        500
    );
    let lines = limited.log.requests(mark, 1).await;
    assert!(
        lines[0]
            .text("why")
            .contains("`context_value_max_bytes` is 10"),
        "{lines:#?}"
    );
}
both_modes!(r14_values_do_not_outlive_their_request);

/// Host and scheme of a request can be set by a trusted proxy only.
async fn r14_only_a_trusted_proxy_names_host_and_scheme(mode: Mode) {
    for (trusted, host, scheme) in [
        ("127.0.0.1", "shop.example:8443", "https"),
        ("10.1.2.3", "", ""),
    ] {
        let server = App::new(&format!("server.trusted_proxies = [\"{trusted}\"]"))
            .serve()
            .await;
        let header = async |name: &str| {
            let request = server.request("GET", &format!("/{mode}/header/{name}"));
            let request = request
                .header("x-forwarded-host", "evil.example, shop.example:8443")
                .header("x-forwarded-proto", "https");
            Reply::of(request.header("amphi-call-depth", "1.AAAA"))
                .await
                .ok()
                .to_owned()
        };
        assert_eq!(header("x-forwarded-host").await, host);
        assert_eq!(header("x-forwarded-proto").await, scheme);
        assert_eq!(header("amphi-call-depth").await, "");
        let own = server.address.to_string();
        assert_eq!(
            header("host").await,
            if host.is_empty() { &*own } else { host }
        );
    }
}
both_modes!(r14_only_a_trusted_proxy_names_host_and_scheme);

/// The host gives each request its id, whatever `x-request-id` the client sends. Views get the client's header
/// unchanged.
async fn r14_the_identity_of_a_request_cannot_be_forged(mode: Mode) {
    let server = App::new("").serve().await;
    let mark = server.log.mark();
    let request = server
        .request("GET", &format!("/{mode}/identity"))
        .header("x-request-id", "forged");
    let reply = Reply::of(request).await;
    let words: Vec<&str> = reply.ok().split(' ').collect();
    assert_eq!(
        words[1..],
        [&format!("/{mode}/identity"), "forged"],
        "headers arrive as they are"
    );
    assert_ne!(words[0], "forged");
    assert_eq!(
        server.log.requests(mark, 1).await[0].text("request"),
        words[0]
    );
    let other = server.get(&format!("/{mode}/identity")).await;
    assert_ne!(other.ok().split(' ').next(), Some(words[0]));
}
both_modes!(r14_the_identity_of_a_request_cannot_be_forged);

async fn r16_no_global_survives_a_request(mode: Mode) {
    let server = App::new("").serve().await;
    for _ in 0..50 {
        assert_eq!(server.get(&format!("/{mode}/global")).await.ok(), "1");
    }
    let replies = join_all((0..100).map(|_| server.get("/async/global"))).await;
    assert!(replies.iter().all(|reply| reply.ok() == "1"));
}
both_modes!(r16_no_global_survives_a_request);

async fn settings_and_secrets_are_the_modules_own(mode: Mode) {
    let toml = r#"
            [modules.behaviour.settings]
            title = "Guests"
            size = 7
            ratio = 0.5
            open = true
            [modules.behaviour.secrets]
            key = { env = "TEST_SECRET" }
            token = { file = "token.txt" }
            [modules.other]
            path = "GUESTS/behaviour"
            mount = "/other"
            databases = ["default"]
            http = ["self"]
            settings = { own = "yes" }
        "#;
    let guests = crate::harness::guests::folder().display().to_string();
    let app = App::new(&toml.replace("GUESTS", &guests));
    app.write("token.txt", "from a file\n");
    let server = app.serve().await;
    for (name, value) in [
        ("title", "Guests"),
        ("size", "7"),
        ("ratio", "0.5"),
        ("open", "true"),
        ("key", "hidden"),
        ("token", "from a file"),
    ] {
        assert_eq!(
            server.get(&format!("/{mode}/setting/{name}")).await.ok(),
            value,
            "{name}"
        );
        assert_eq!(
            server
                .get(&format!("/other/{mode}/setting/{name}"))
                .await
                .status,
            404,
            "{name} of another module"
        );
    }
    assert_eq!(
        server.get(&format!("/other/{mode}/setting/own")).await.ok(),
        "yes"
    );
    assert_eq!(
        server.get(&format!("/{mode}/setting/PATH")).await.status,
        404,
        "the host's environment is its own"
    );
}
both_modes!(settings_and_secrets_are_the_modules_own);

/// A view's output is logged with the view's name, and escaped so that it cannot look like another line.
async fn a_view_writes_into_the_log(mode: Mode) {
    let server = App::new("").serve().await;
    let mark = server.log.mark();
    assert_eq!(
        server.get(&format!("/{mode}/chatter/hey")).await.ok(),
        "said"
    );
    let request = server.log.requests(mark, 1).await[0]
        .text("request")
        .to_owned();
    let lines: Vec<_> = server
        .log
        .since(mark)
        .into_iter()
        .filter(|line| line.text("target") == "amphi::guest")
        .collect();
    let texts: Vec<&str> = lines.iter().map(|line| line.text("message")).collect();
    assert_eq!(
        texts,
        [
            "told: hey length=3",
            "a warning\nover two lines",
            "standard output",
            "standard error"
        ]
    );
    let levels: Vec<&str> = lines.iter().map(|line| line.text("level")).collect();
    assert_eq!(levels, ["INFO", "WARN", "INFO", "WARN"]);
    for line in &lines {
        assert_eq!(line.text("view"), mode.view("chatter"));
        assert_eq!(line.text("request"), request);
    }
    assert!(server.log.strays().is_empty());
}
both_modes!(a_view_writes_into_the_log);

async fn a_view_cannot_flood_the_log(mode: Mode) {
    let server = App::new("limits.log_max_bytes = 200").serve().await;
    let mark = server.log.mark();
    server
        .get(&format!("/{mode}/chatter/{}", "x".repeat(500)))
        .await
        .ok();
    server.log.requests(mark, 1).await;
    let lines = server.log.since(mark);
    let cut = lines
        .iter()
        .filter(|line| line.text("message").contains("`log_max_bytes`"))
        .count();
    assert_eq!(cut, 1, "{lines:#?}");
    assert!(
        !lines
            .iter()
            .any(|line| line.text("message").contains("xxx")),
        "{lines:#?}"
    );
}
both_modes!(a_view_cannot_flood_the_log);

async fn cookies_go_both_ways(mode: Mode) {
    let server = App::new("").serve().await;
    let reply = Reply::of(
        server
            .request("GET", &format!("/{mode}/cookies"))
            .header("cookie", "x=1; y=2"),
    )
    .await;
    assert_eq!(reply.ok(), "x=1,y=2");
    let set: Vec<_> = reply
        .headers
        .get_all("set-cookie")
        .iter()
        .map(|value| value.to_str().expect("a text"))
        .collect();
    assert_eq!(set, ["a=1", "b=2"]);
}
both_modes!(cookies_go_both_ways);
