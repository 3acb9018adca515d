//! PgBouncer between host and server: pooling by session works, pooling by transaction or statement is refused.

use serde_json::json;

use crate::harness::postgres::Postgres;
use crate::harness::postgres::pooler::Pooler;
use crate::harness::steps::{execute, insert, pinned, query, query_with};
use crate::harness::{App, Mode};

/// With pooling by session, everything works as without a pooler.
async fn r11_a_pooler_by_session_serves_what_a_server_does(mode: Mode) {
    let pooler = Pooler::start("session");
    let database = Postgres::shared().database().await;
    let toml = format!("databases.default.postgres = {:?}", pooler.url(&database));
    let server = App::rules_on(database, &toml).serve().await;
    let path = format!("/{mode}/run");
    for number in 0..5 {
        let replies = server
            .many_steps(
                16,
                &path,
                json!([
                    insert("a"),
                    query_with(&format!("select $1::integer + {number}"), json!([1]))
                ]),
            )
            .await;
        for reply in replies {
            assert_eq!(reply.told(), json!([1, [[1 + number]]]));
        }
    }
    let session = json!([
        pinned(json!([
            execute("set work_mem = '7MB'"),
            query("show work_mem")
        ])),
        query("show work_mem")
    ]);
    assert_eq!(
        server.told(&path, session).await,
        json!([[0, [["7MB"]]], [["4MB"]]])
    );
    assert_eq!(
        server
            .told(
                &format!("/{mode}/run/atomic"),
                json!([insert("b"), query("select count(*) from rows")])
            )
            .await,
        json!([1, [[81]]])
    );
    server.assert_baseline().await;
}
both_modes!(r11_a_pooler_by_session_serves_what_a_server_does);

/// A pooler that gives a session's connection to others between its statements would mix up their answers, so the host
/// does not start.
#[tokio::test]
async fn r11_a_pooler_by_transaction_is_refused() {
    for pool_mode in ["transaction", "statement"] {
        let pooler = Pooler::start(pool_mode);
        let database = Postgres::shared().database().await;
        let direct = database.url();
        let toml = format!("databases.default.postgres = {:?}", pooler.url(&database));
        let app = App::rules_on(database, &toml);
        for command in ["migrate", "serve"] {
            let ran = app.run(command);
            assert!(ran.error().contains("pool_mode = session"), "{ran:?}");
        }
        // No migration was applied through the pooler. Without the pooler, the migrations are applied.
        app.write(
            "amphi.toml",
            std::fs::read_to_string(app.path("amphi.toml"))
                .expect("it is there")
                .replace(&pooler.url(app.data.postgres().expect("it is")), &direct),
        );
        let ran = app.run("migrate");
        assert!(ran.success && ran.stdout.contains("V1__tables"), "{ran:?}");
    }
}
