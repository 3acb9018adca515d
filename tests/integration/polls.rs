//! The example `polls`: everything that its pages offer, on both kinds of databases.

use futures::future::{join, join_all};
use reqwest::StatusCode;

use crate::harness::browser::{Browser, FORM};
use crate::harness::{App, Kind, Reply, Server};

/// How many visitors vote at the same time.
const VOTERS: usize = 50;

async fn the_polls_do_what_their_pages_offer(kind: Kind) {
    let app = App::polls(kind).await;
    let built = app.run("build");
    assert!(built.success, "{}", built.stderr);
    let server = app.serve().await;

    visitors(&server).await;
    modes(&server).await;
    forgeries(&server).await;
    votes_at_once(&server).await;
    doors(&server).await;
    let mut staff = logged_in(&server).await;
    mistakes(&server, &mut staff).await;
    questions(&server, &mut staff).await;
    list(&mut staff).await;

    let out = staff.post("/admin/logout", "").await;
    assert_eq!(led_to(&out), "/");
    assert_eq!(
        led_to(&staff.get("/admin").await),
        "/admin/login?next=/admin"
    );
    server.assert_baseline().await;
}
both_databases!(the_polls_do_what_their_pages_offer);

/// The address that a form redirects to.
#[track_caller]
fn led_to(reply: &Reply) -> &str {
    assert_eq!(reply.status, StatusCode::SEE_OTHER, "{reply:?}");
    reply.header("location")
}

#[track_caller]
fn assert_shows(page: &Reply, texts: &[&str]) {
    for text in texts {
        assert!(page.ok().contains(text), "{text}: {}", page.text());
    }
}

async fn votes(server: &Server, question: i64) -> i64 {
    let sql =
        format!("select cast(sum(votes) as bigint) from choices where question_id = {question}");
    server.app.data.count(&sql).await
}

async fn visitors(server: &Server) {
    let first = server.get("/").await;
    assert_shows(
        &first,
        &["How do you get to work?", "Which season do you like best?"],
    );
    assert!(!first.text().contains("century"), "{}", first.text());
    assert!(
        first
            .header("content-security-policy")
            .contains("default-src 'none'"),
        "{first:?}"
    );
    let style = server.get("/static/style.css").await;
    assert!(style.ok().contains("prefers-color-scheme"));

    let mut visitor = Browser::at(server, "/polls/3").await;
    let page = visitor.get("/polls/3").await;
    assert_shows(&page, &["By bicycle", "name=\"choice\" value=\"8\""]);
    let results = visitor.get("/polls/3/results").await;
    assert_shows(
        &results,
        &["0 votes", "What do you drink first in the morning?"],
    );
    assert_eq!(
        led_to(&visitor.post("/polls/3/vote", "choice=8").await),
        "/polls/3/results"
    );
    let results = visitor.get("/polls/3/results").await;
    assert_shows(&results, &["1 vote since", "100 %"]);

    // Nothing is chosen, or an answer of another question, or an answer that does not exist.
    for ballot in ["", "choice=", "choice=1", "choice=999"] {
        let refused = visitor.post("/polls/3/vote", ballot).await;
        let page = refused.expect(StatusCode::UNPROCESSABLE_ENTITY);
        assert!(page.contains("Please choose one of the answers."), "{page}");
    }
    // A question that is not published yet, and pages that do not exist.
    for path in ["/polls/4", "/polls/4/results", "/polls/999", "/nope"] {
        let page = visitor.get(path).await;
        let text = page.expect(StatusCode::NOT_FOUND);
        assert!(text.contains("There is nothing here."), "{path}: {text}");
    }
    let early = visitor.post("/polls/4/vote", "choice=12").await;
    early.expect(StatusCode::NOT_FOUND);
    assert_eq!((votes(server, 3).await, votes(server, 4).await), (1, 0));
}

/// In this example, the view `results` is async and the view `detail` is sync.
async fn modes(server: &Server) {
    let mark = server.log.mark();
    server.get("/polls/3/results").await.ok();
    server.get("/polls/3").await.ok();
    let lines = server.log.requests(mark, 2).await;
    let seen = lines
        .iter()
        .map(|line| (line.text("view"), line.text("mode")));
    assert_eq!(
        seen.collect::<Vec<_>>(),
        [
            ("polls::pages::results", "async"),
            ("polls::pages::detail", "sync")
        ]
    );
}

async fn forgeries(server: &Server) {
    let ballot = |browser: &Browser<'_>, token: &str| {
        let request = browser.request("POST", "/polls/1/vote");
        request
            .header("content-type", FORM)
            .body(format!("csrf_token={token}&choice=1"))
    };
    let victim = Browser::at(server, "/polls/1").await;
    let other = Browser::at(server, "/polls/1").await;
    let without_session = Browser::new(server);
    for forged in [
        ballot(&victim, ""),
        ballot(&victim, &other.token),
        ballot(&without_session, &victim.token),
        ballot(&victim, &victim.token).header("sec-fetch-site", "cross-site"),
    ] {
        Reply::of(forged).await.expect(StatusCode::FORBIDDEN);
    }
    assert_eq!(votes(server, 1).await, 0);
}

/// Many visitors vote at the same time: each vote is counted, while others read the results.
async fn votes_at_once(server: &Server) {
    let voters = join_all((0..VOTERS).map(|_| Browser::at(server, "/polls/2"))).await;
    let voted = join_all(voters.into_iter().map(|mut voter| async move {
        let voted = voter.post("/polls/2/vote", "choice=5").await;
        assert_eq!(led_to(&voted), "/polls/2/results");
    }));
    let read = join_all((0..VOTERS).map(|_| async {
        server.get("/polls/2/results").await.ok();
    }));
    join(voted, read).await;
    let counted = server
        .app
        .data
        .count("select votes from choices where id = 5")
        .await;
    assert_eq!(usize::try_from(counted), Ok(VOTERS));
    let results = server.get("/polls/2/results").await;
    assert_shows(&results, &["50 votes since", "100 %", "(50 votes)"]);
}

async fn doors(server: &Server) {
    for (path, login) in [
        ("/admin", "/admin/login?next=/admin"),
        (
            "/admin/questions/new",
            "/admin/login?next=/admin/questions/new",
        ),
        ("/admin/questions/1", "/admin/login?next=/admin/questions/1"),
        (
            "/admin/questions/1/delete",
            "/admin/login?next=/admin/questions/1/delete",
        ),
    ] {
        assert_eq!(led_to(&server.get(path).await), login);
    }
    let mut visitor = Browser::at(server, "/polls/1").await;
    let deleted = visitor.post("/admin/questions/1/delete", "").await;
    assert_eq!(led_to(&deleted), "/admin/login?next=/admin");
    assert_shows(&visitor.get("/polls/1").await, &["Which season"]);
}

async fn logged_in(server: &Server) -> Browser<'_> {
    let password = std::fs::read_to_string(server.app.path("admin_password"))
        .expect("the host has generated it");
    let mut browser = Browser::at(server, "/admin/login?next=/admin/questions/1").await;
    for wrong in [
        "name=admin&password=admin",
        "name=admin&password=",
        "name=&password=",
    ] {
        let refused = browser.post("/admin/login", wrong).await;
        let page = refused.expect(StatusCode::UNPROCESSABLE_ENTITY);
        assert!(page.contains("Name or password is wrong."), "{page}");
        assert_eq!(
            led_to(&browser.get("/admin").await),
            "/admin/login?next=/admin"
        );
        browser.get("/admin/login").await.ok();
    }
    let right = format!(
        "name=admin&password={}&next=/admin/questions/1",
        password.trim()
    );
    let entered = browser.post("/admin/login", &right).await;
    assert_eq!(led_to(&entered), "/admin/questions/1");
    let list = browser.get("/admin").await;
    assert_shows(&list, &["4 questions", "century", "tag scheduled"]);
    assert_eq!(list.header("cache-control"), "no-store");
    browser
}

async fn mistakes(server: &Server, staff: &mut Browser<'_>) {
    staff.get("/admin/questions/new").await.ok();
    let long = "x".repeat(201);
    let fields = format!(
        "text={long}&pub_date=soon&choice_id=&choice_text=%3Cb%3EOne&choice_id=&choice_text="
    );
    let refused = staff.post("/admin/questions/new", &fields).await;
    let page = refused.expect(StatusCode::UNPROCESSABLE_ENTITY);
    for shown in [
        "id=\"text-error\">At most 200 characters, please: these are 201.",
        "id=\"pub_date-error\">Please write the date",
        "id=\"choices-error\">A question needs at least 2 answers.",
        "value=\"&#60;b&#62;One\"",
        &long,
    ] {
        assert!(page.contains(shown), "{shown}: {page}");
    }
    // An answer that has an id and no text, in a form without other mistakes.
    let fields =
        "text=Why%3F&pub_date=2026-01-01T00:00&choice_id=1&choice_text=&choice_id=2&choice_text=B";
    let refused = staff.post("/admin/questions/1", fields).await;
    let page = refused.expect(StatusCode::UNPROCESSABLE_ENTITY);
    assert!(
        page.contains("id=\"row-1-error\">Please write the answer"),
        "{page}"
    );
    let torn = staff.post("/admin/questions/new", "choice_id=").await;
    torn.expect(StatusCode::BAD_REQUEST);
    assert_eq!(
        server
            .app
            .data
            .count("select count(*) from questions")
            .await,
        4
    );
    assert_shows(&server.get("/polls/1").await, &["Which season"]);
}

async fn questions(server: &Server, staff: &mut Browser<'_>) {
    let rows = "choice_id=&choice_text=Tea&choice_id=&choice_text=%C3%9Cbung+%26+Co";
    let more = format!("text=Later%3F&pub_date=2200-01-01T00:00&{rows}&action=rows");
    let more = staff.post("/admin/questions/new", &more).await;
    assert_eq!(more.ok().matches("name=\"choice_text\"").count(), 4);

    let new = format!("text=Later%3F&pub_date=2200-01-01T00:00&{rows}&action=save");
    assert_eq!(
        led_to(&staff.post("/admin/questions/new", &new).await),
        "/admin"
    );
    let list = staff.get("/admin").await;
    assert_shows(
        &list,
        &["“Later?” was added.", "5 questions", "/admin/questions/5"],
    );
    assert!(!staff.get("/admin").await.ok().contains("was added"));
    server.get("/polls/5").await.expect(StatusCode::NOT_FOUND);

    let form = staff.get("/admin/questions/5").await;
    assert_shows(
        &form,
        &[
            "value=\"Later?\"",
            "value=\"2200-01-01T00:00\"",
            "value=\"Übung &#38; Co\"",
        ],
    );
    let rows = "choice_id=14&choice_text=Green+tea&choice_id=15&choice_text=x&remove=15&choice_id=&choice_text=Water";
    let change = format!("text=Now%3F&pub_date=2026-01-01T00:00&{rows}");
    assert_eq!(
        led_to(&staff.post("/admin/questions/5", &change).await),
        "/admin"
    );
    let mut visitor = Browser::at(server, "/polls/5").await;
    let page = visitor.get("/polls/5").await;
    assert_shows(&page, &["Now?", "Green tea", "Water"]);
    assert!(!page.text().contains("Co<"), "{}", page.text());
    assert_eq!(
        led_to(&visitor.post("/polls/5/vote", "choice=14").await),
        "/polls/5/results"
    );

    // A form that was opened before the change, and still has the removed answer.
    let rows = "choice_id=14&choice_text=Black+tea&choice_id=15&choice_text=x";
    let late = format!("text=Late%3F&pub_date=2026-01-01T00:00&{rows}");
    let late = staff.post("/admin/questions/5", &late).await;
    late.expect(StatusCode::CONFLICT);
    assert_shows(&visitor.get("/polls/5").await, &["Now?", "Green tea"]);
    assert_eq!(votes(server, 5).await, 1);
    let asked = staff.get("/admin/questions/5/delete").await;
    assert_shows(&asked, &["Delete this question?", "2 answers and 1 vote "]);
    assert_eq!(
        led_to(&staff.post("/admin/questions/5/delete", "").await),
        "/admin"
    );
    assert_shows(
        &staff.get("/admin").await,
        &["“Now?” was deleted.", "4 questions"],
    );
    server.get("/polls/5").await.expect(StatusCode::NOT_FOUND);
    assert_eq!(
        server.app.data.count("select count(*) from choices").await,
        13
    );
}

async fn list(staff: &mut Browser<'_>) {
    for (query, count, shown) in [
        ("?when=scheduled", "1 question<", "century"),
        ("?when=month", "0 questions", "No question fits."),
        ("?q=SEASON", "1 question<", "Which season"),
        (
            "?q=season&when=scheduled",
            "0 questions",
            "No question fits.",
        ),
        ("?q=%25", "0 questions", "No question fits."),
        ("?page=7", "4 questions", "How do you get to work?"),
    ] {
        let page = staff.get(&format!("/admin{query}")).await;
        assert_shows(&page, &[count, shown]);
    }
    let season = staff.get("/admin?q=drink").await;
    assert_shows(&season, &["class=\"number\">3<", "class=\"number\">50<"]);
    staff
        .get("/admin?when=never")
        .await
        .expect(StatusCode::BAD_REQUEST);
}
