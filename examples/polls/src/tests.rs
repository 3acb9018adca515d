//! Native tests of the views, on a SQLite database in memory.

use crate::{admin, errors, pages, staff, store};
use amphi_sdk::StatusCode;
use amphi_sdk::testing::{App, TestRequest, TestResponse, get, post, run};
use time::{Duration, OffsetDateTime};

const PASSWORD: &str = "correct horse battery";

fn app() -> App {
    app_of("migrations")
}

/// An app with the tables of these migrations, but without the questions that they insert.
fn app_of(migrations: &str) -> App {
    App::new()
        .migrations(migrations)
        .execute_batch("delete from questions")
        .setting("admin_password", PASSWORD)
}

/// Inserts a question with the answers `Yes` and `No` that is published `days` days from now. Returns its id.
fn question(app: &App, text: &str, days: i64) -> i64 {
    let pub_date = OffsetDateTime::now_utc() + Duration::days(days);
    let draft = crate::forms::Draft {
        text: text.into(),
        pub_date,
        kept: Vec::new(),
        added: vec!["Yes".into(), "No".into()],
        removed: Vec::new(),
    };
    store::insert(&app.context(), &draft).expect("it is inserted")
}

fn votes(app: &App, question: i64) -> Vec<i64> {
    app.query(
        "select votes from choices where question_id = $1 order by id",
        (question,),
    )
}

fn choice(app: &App, question: i64, text: &str) -> i64 {
    app.query::<i64>(
        "select id from choices where question_id = $1 and text = $2",
        (question, text),
    )[0]
}

/// The session value `staff` of a browser that has logged in.
fn logged_in(app: &App) -> String {
    let answer = log_in(app, "admin", PASSWORD, "");
    answer.session("staff").expect("logged in")
}

fn log_in(app: &App, name: &str, password: &str, next: &str) -> TestResponse {
    let form = [("name", name), ("password", password), ("next", next)];
    app.call::<staff::log_in>(post("/admin/login").csrf().form(&form))
}

fn as_staff(app: &App, request: TestRequest) -> TestRequest {
    request.session("staff", &logged_in(app))
}

#[track_caller]
fn assert_shows(page: &TestResponse, texts: &[&str]) {
    for text in texts {
        assert!(page.text().contains(text), "{text}: {}", page.text());
    }
}

#[track_caller]
fn assert_hides(page: &TestResponse, texts: &[&str]) {
    for text in texts {
        assert!(!page.text().contains(text), "{text}: {}", page.text());
    }
}

#[test]
fn without_questions_the_first_page_says_so() {
    assert_shows(
        &app().call::<pages::index>(get("/")),
        &["There are no questions yet."],
    );
}

#[test]
fn the_first_page_has_the_latest_published_questions() {
    let app = app();
    for days in 1..=6 {
        question(&app, &format!("{days} days ago"), -days);
    }
    question(&app, "Just now <b>", 0);
    question(&app, "Tomorrow", 1);
    let page = app.call::<pages::index>(get("/"));
    assert_shows(&page, &["Just now &#60;b&#62;", "1 days ago", "4 days ago"]);
    assert_hides(&page, &["5 days ago", "Tomorrow"]);
    let (newest, older) = (page.text().find("Just now"), page.text().find("1 days ago"));
    assert!(newest < older, "{}", page.text());
    assert_eq!(page.text().matches("tag new").count(), 1);
}

#[test]
fn a_question_of_the_future_is_nowhere() {
    let app = app();
    let id = question(&app, "Tomorrow", 1);
    let yes = choice(&app, id, "Yes").to_string();
    let detail = app.call::<pages::detail>(get(&format!("/polls/{id}")));
    assert_eq!(detail.status(), StatusCode::NOT_FOUND);
    let results = app.call::<pages::results>(get(&format!("/polls/{id}/results")));
    assert_eq!(results.status(), StatusCode::NOT_FOUND);
    let vote = post(&format!("/polls/{id}/vote")).csrf();
    let vote = app.call::<pages::vote>(vote.form(&[("choice", &yes)]));
    assert_eq!(vote.status(), StatusCode::NOT_FOUND);
    assert_eq!(votes(&app, id), [0, 0]);
}

#[test]
fn votes_are_counted_and_shown() {
    let app = app();
    let id = question(&app, "Tea?", -3);
    question(&app, "Another one", -2);
    let path = format!("/polls/{id}/vote");
    let detail = app.call::<pages::detail>(get(&format!("/polls/{id}")));
    assert_shows(&detail, &["Tea?", "Yes", "No", "csrf_token"]);
    for answer in ["Yes", "Yes", "No"] {
        let choice = choice(&app, id, answer).to_string();
        let form = post(&path).csrf_field().form(&[("choice", &choice)]);
        let answer = app.call::<pages::vote>(form);
        assert_eq!(
            (answer.status(), answer.header("location")),
            (
                StatusCode::SEE_OTHER,
                Some(&*format!("/polls/{id}/results"))
            )
        );
    }
    assert_eq!(votes(&app, id), [2, 1]);
    let results = app.call::<pages::results>(get(&format!("/polls/{id}/results")));
    assert_shows(
        &results,
        &["3 votes", "67 %", "33 %", "(1 vote)", "Another one"],
    );
}

#[test]
fn a_vote_needs_an_answer_of_its_question_and_the_token() {
    let app = app();
    let (id, other) = (question(&app, "Tea?", -1), question(&app, "Coffee?", -1));
    let foreign = choice(&app, other, "Yes").to_string();
    let path = format!("/polls/{id}/vote");
    let ballots: [&[(&str, &str)]; 3] = [&[], &[("choice", "")], &[("choice", &foreign)]];
    for form in ballots {
        let page = app.call::<pages::vote>(post(&path).csrf().form(form));
        assert_eq!(page.status(), StatusCode::UNPROCESSABLE_ENTITY);
        assert_shows(&page, &["Please choose one of the answers.", "Tea?"]);
    }
    let own = choice(&app, id, "Yes").to_string();
    let forged = app.call::<pages::vote>(post(&path).form(&[("choice", &own)]));
    assert_eq!(forged.status(), StatusCode::FORBIDDEN);
    assert_eq!(
        (votes(&app, id), votes(&app, other)),
        (vec![0, 0], vec![0, 0])
    );
}

/// `store::vote`, a function under `#[both]`, does the same in both modes.
#[test]
fn votes_count_in_both_modes() {
    let app = app();
    let id = question(&app, "Tea?", -1);
    let yes = choice(&app, id, "Yes");
    assert!(store::vote(&app.context(), id, yes).expect("sync"));
    let cx = app.async_context();
    assert!(run(async { store::vote(&cx, id, yes).await }).expect("async"));
    assert_eq!(votes(&app, id), [2, 0]);
}

#[test]
fn the_admin_is_for_those_who_log_in() {
    let app = app();
    let sent_away = app.call::<admin::edit_form>(get("/admin/questions/7"));
    assert_eq!(
        sent_away.header("location"),
        Some("/admin/login?next=/admin/questions/7")
    );
    let lost = app.call::<admin::edit>(post("/admin/questions/7"));
    assert_eq!(lost.header("location"), Some("/admin/login?next=/admin"));
    let forged = get("/admin").session("staff", "admin");
    let forged = app.call::<admin::list>(forged);
    assert_eq!(forged.status(), StatusCode::SEE_OTHER);

    for (name, password) in [
        ("admin", "wrong"),
        ("admin", ""),
        ("root", PASSWORD),
        ("admin", "correct horse battery "),
    ] {
        let refused = log_in(&app, name, password, "");
        assert_eq!(refused.status(), StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(refused.session::<String>("staff"), None);
        assert_shows(&refused, &["Name or password is wrong.", name]);
        assert_hides(&refused, &[PASSWORD]);
    }
    let right = log_in(&app, "admin", PASSWORD, "/admin/questions/7");
    assert_eq!(right.header("location"), Some("/admin/questions/7"));
    let elsewhere = log_in(&app, "admin", PASSWORD, "//evil.example/admin");
    assert_eq!(elsewhere.header("location"), Some("/admin"));

    let out = app.call::<staff::log_out>(as_staff(&app, post("/admin/logout")).csrf());
    assert_eq!(out.session::<String>("staff"), None);
}

#[test]
fn another_password_ends_the_sessions() {
    let app = app();
    let request = as_staff(&app, get("/admin"));
    assert_eq!(
        app.call::<admin::list>(request.clone()).status(),
        StatusCode::OK
    );
    let app = app.setting("admin_password", "another horse battery");
    assert_eq!(
        app.call::<admin::list>(request).status(),
        StatusCode::SEE_OTHER
    );
    let app = app.setting("admin_password", "short");
    let refused = log_in(&app, "admin", "short", "");
    assert_eq!(refused.status(), StatusCode::INTERNAL_SERVER_ERROR);
}

#[test]
fn the_list_is_filtered_and_searched() {
    let app = app();
    for (text, days) in [
        ("Scheduled one", 3),
        ("Fresh 100%", 0),
        ("Last week", -6),
        ("Last month", -20),
        ("Long ago", -400),
    ] {
        question(&app, text, days);
    }
    let list = |query: &str| {
        let page = app.call::<admin::list>(as_staff(&app, get(&format!("/admin{query}"))));
        assert_eq!(page.status(), StatusCode::OK, "{query}");
        page
    };
    assert_shows(
        &list(""),
        &[
            "5 questions",
            "tag scheduled",
            "tag new",
            "tag published",
            "Long ago",
        ],
    );
    for (query, count, shown) in [
        ("?when=scheduled", "1 question<", "Scheduled one"),
        ("?when=day", "1 question<", "Fresh"),
        ("?when=week", "2 questions", "Last week"),
        ("?when=month", "3 questions", "Last month"),
        ("?q=LAST", "2 questions", "Last month"),
        ("?q=%25", "1 question<", "Fresh"),
        ("?q=last&when=week", "1 question<", "Last week"),
        ("?q=nothing", "0 questions", "No question fits."),
    ] {
        assert_shows(&list(query), &[count, shown]);
    }
    let wrong = app.call::<admin::list>(as_staff(&app, get("/admin?when=never")));
    assert_eq!(wrong.status(), StatusCode::BAD_REQUEST);

    for n in 1..=8 {
        question(&app, &format!("More {n}"), -1000 - n);
    }
    assert_shows(&list(""), &["13 questions", "Page 1 of 2", "rel=\"next\""]);
    assert_shows(&list("?page=2"), &["Page 2 of 2", "More 8"]);
    assert_shows(&list("?page=9"), &["Page 2 of 2"]);
}

#[test]
fn a_question_is_added() {
    let app = app();
    let form = |action: &str| {
        [
            ("text", " Tea or coffee? ".to_owned()),
            ("pub_date", "2026-01-02T03:04".to_owned()),
            ("choice_id", String::new()),
            ("choice_text", "Tea".to_owned()),
            ("choice_id", String::new()),
            ("choice_text", " Coffee ".to_owned()),
            ("choice_id", String::new()),
            ("choice_text", String::new()),
            ("action", action.to_owned()),
        ]
    };
    let send = |action: &str| {
        let request = as_staff(&app, post("/admin/questions/new")).csrf_field();
        app.call::<admin::add>(request.form(&form(action)))
    };
    let more = send("rows");
    assert_eq!(more.status(), StatusCode::OK);
    assert_eq!(more.text().matches("name=\"choice_text\"").count(), 5);
    assert!(app.query::<i64>("select id from questions", ()).is_empty());

    let saved = send("save");
    assert_eq!(
        (saved.status(), saved.header("location")),
        (StatusCode::SEE_OTHER, Some("/admin"))
    );
    assert_eq!(
        saved.session::<String>("notice").as_deref(),
        Some("“Tea or coffee?” was added.")
    );
    assert_eq!(
        app.query::<(String, String)>("select text, pub_date from questions", ()),
        [(
            "Tea or coffee?".to_owned(),
            "2026-01-02T03:04:00.000000Z".to_owned()
        )]
    );
    assert_eq!(
        app.query::<String>("select text from choices order by id", ()),
        ["Tea", "Coffee"]
    );

    let notice = as_staff(&app, get("/admin")).session("notice", "It was added.");
    let list = app.call::<admin::list>(notice);
    assert_shows(&list, &["It was added."]);
    assert_eq!(list.session::<String>("notice"), None);
}

#[test]
fn what_is_wrong_stands_beside_the_fields() {
    let app = app();
    let request = as_staff(&app, post("/admin/questions/new")).csrf();
    let page = app.call::<admin::add>(request.form(&[
        ("text", ""),
        ("pub_date", "soon"),
        ("choice_id", ""),
        ("choice_text", "Only one <b>"),
    ]));
    assert_eq!(page.status(), StatusCode::UNPROCESSABLE_ENTITY);
    assert_shows(
        &page,
        &[
            "id=\"text-error\">Please write the question.",
            "id=\"pub_date-error\">Please write the date",
            "id=\"choices-error\">A question needs at least 2 answers.",
            "value=\"Only one &#60;b&#62;\"",
        ],
    );
    assert!(app.query::<i64>("select id from questions", ()).is_empty());

    let request = as_staff(&app, post("/admin/questions/new"));
    let forged = app.call::<admin::add>(request.form(&[("text", "Why?")]));
    assert_eq!(forged.status(), StatusCode::FORBIDDEN);
    let request = as_staff(&app, post("/admin/questions/new")).csrf();
    let torn = app.call::<admin::add>(request.form(&[("choice_id", "")]));
    assert_eq!(torn.status(), StatusCode::BAD_REQUEST);
}

#[test]
fn a_question_is_changed_and_keeps_its_votes() {
    let app = app();
    let id = question(&app, "Tea?", -1);
    let (yes, no) = (choice(&app, id, "Yes"), choice(&app, id, "No"));
    store::vote(&app.context(), id, yes).expect("it votes");
    let path = format!("/admin/questions/{id}");
    let form = app.call::<admin::edit_form>(as_staff(&app, get(&path)));
    assert_shows(&form, &["value=\"Tea?\"", "value=\"Yes\"", "Delete"]);

    let send = |rows: &[(i64, &str)], remove: &[i64]| {
        let mut fields = vec![
            ("text".to_owned(), "Green tea?".to_owned()),
            ("pub_date".to_owned(), "2026-01-02T03:04".to_owned()),
        ];
        for (id, text) in rows {
            let id = if *id == 0 {
                String::new()
            } else {
                id.to_string()
            };
            fields.push(("choice_id".to_owned(), id));
            fields.push(("choice_text".to_owned(), (*text).to_owned()));
        }
        for id in remove {
            fields.push(("remove".to_owned(), id.to_string()));
        }
        let request = as_staff(&app, post(&path)).csrf();
        app.call::<admin::edit>(request.form(&fields))
    };
    let emptied = send(&[(yes, ""), (no, "No")], &[]);
    assert_eq!(emptied.status(), StatusCode::UNPROCESSABLE_ENTITY);
    assert_shows(&emptied, &["id=\"row-1-error\">Please write the answer"]);

    let saved = send(&[(yes, "Yes, please"), (no, "No"), (0, "Later")], &[no]);
    assert_eq!(saved.status(), StatusCode::SEE_OTHER);
    assert_eq!(
        app.query::<(String, i64)>("select text, votes from choices order by id", ()),
        [("Yes, please".to_owned(), 1), ("Later".to_owned(), 0)]
    );
    // The form has an answer that has been deleted meanwhile, so nothing of the form is written.
    let late = send(&[(yes, "Yes"), (no, "No")], &[]);
    assert_eq!(late.status(), StatusCode::CONFLICT);
    assert_eq!(
        app.query::<String>("select text from choices order by id", ()),
        ["Yes, please", "Later"]
    );
    let nothing = app.call::<admin::edit_form>(as_staff(&app, get("/admin/questions/99")));
    assert_eq!(nothing.status(), StatusCode::NOT_FOUND);
}

#[test]
fn deleting_asks_first() {
    let app = app();
    let id = question(&app, "Tea?", -1);
    let path = format!("/admin/questions/{id}/delete");
    let asked = app.call::<admin::delete_form>(as_staff(&app, get(&path)));
    assert_shows(&asked, &["Delete this question?", "2 answers and 0 votes"]);
    let forged = app.call::<admin::delete>(as_staff(&app, post(&path)));
    assert_eq!(forged.status(), StatusCode::FORBIDDEN);
    assert_eq!(votes(&app, id), [0, 0]);
    let deleted = app.call::<admin::delete>(as_staff(&app, post(&path)).csrf());
    assert_eq!(deleted.header("location"), Some("/admin"));
    assert_eq!(votes(&app, id), [] as [i64; 0]);
    let twice = app.call::<admin::delete>(as_staff(&app, post(&path)).csrf());
    assert_eq!(twice.status(), StatusCode::NOT_FOUND);
}

#[test]
fn failures_have_a_page() {
    let app = app();
    let alone = app.call::<errors::page>(get("/error/500"));
    assert_eq!(alone.status(), StatusCode::NOT_FOUND);
    let app = app.value("error.message", "There is no such question.");
    assert_shows(
        &app.call::<errors::page>(get("/error/404")),
        &["There is nothing here."],
    );
    assert_shows(
        &app.call::<errors::page>(get("/error/409")),
        &["There is no such question."],
    );
}

/// The migrations for PostgreSQL make the same tables and example questions as those for SQLite.
#[test]
fn both_kinds_of_tables_do() {
    for migrations in ["migrations", "migrations-postgres"] {
        let app = App::new()
            .migrations(migrations)
            .setting("admin_password", PASSWORD);
        let page = app.call::<pages::index>(get("/"));
        assert_shows(&page, &["How do you get to work?"]);
        assert_hides(&page, &["century"]);
        let list = app.call::<admin::list>(as_staff(&app, get("/admin")));
        assert_shows(&list, &["4 questions", "century"]);
        let id = choice(&app, 1, "Spring");
        assert!(store::vote(&app.context(), 1, id).expect("it votes"));
    }
}
