//! `amphi migrate`, and what is served when it has not been run.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::process::{Command, Stdio};

use serde_json::json;

use crate::harness::guests::AMPHI;
use crate::harness::steps::insert;
use crate::harness::{App, Kind};

async fn migrations_are_applied_once(kind: Kind) {
    let app = App::rules(kind, "").await;
    let first = app.run("migrate");
    assert!(
        first.success && first.stdout.contains("V1__tables"),
        "{first:?}"
    );
    let again = app.run("migrate");
    assert!(
        again.success && again.stdout.contains("nothing to do"),
        "{again:?}"
    );
    let server = app.serve().await;
    assert_eq!(
        server.told("/sync/run", json!([insert("a")])).await,
        json!([1])
    );
}
both_databases!(migrations_are_applied_once);

/// `serve` does not start while migrations are missing.
async fn an_app_with_pending_migrations_is_not_served(kind: Kind) {
    let app = App::rules(kind, "").await;
    let ran = app.run("serve");
    assert!(ran.error().contains("amphi migrate"), "{ran:?}");
    assert!(ran.error().contains("V1__tables"), "{ran:?}");
}
both_databases!(an_app_with_pending_migrations_is_not_served);

/// Several `amphi migrate` at the same time: one applies the migrations, the others find them applied.
async fn several_hosts_can_migrate_at_once(kind: Kind) {
    let app = App::rules(kind, "databases.default.migrations = \"migrations\"").await;
    let many: String = (1..40)
        .map(|number| format!("create table t{number} (a integer);\n"))
        .collect();
    app.write("migrations/V1__many.sql", &many);
    app.write(
        "migrations/V2__rows.sql",
        "create table done (a integer); insert into done values (1);",
    );
    let hosts: Vec<_> = (0..6)
        .map(|_| {
            let mut command = Command::new(AMPHI);
            command
                .arg("migrate")
                .arg(app.folder())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
            command.spawn().expect("it can be started")
        })
        .collect();
    for host in hosts {
        let output = host.wait_with_output().expect("it ends");
        assert!(output.status.success(), "{output:?}");
    }
    assert_eq!(app.data.count("select count(*) from done").await, 1);
    app.data.assert_quiet().await;
}
both_databases!(several_hosts_can_migrate_at_once);

/// A file that fails is rolled back as a whole, its error names what is wrong, and the corrected file can be applied.
async fn a_migration_that_fails_is_undone(kind: Kind) {
    let app = App::rules(kind, "databases.default.migrations = \"migrations\"").await;
    app.write("migrations/V1__good.sql", "create table good (a integer);");
    app.write(
        "migrations/V2__bad.sql",
        "create table half (a integer); insert into nowhere values (1);",
    );
    let ran = app.run("migrate");
    assert!(
        ran.error().contains("V2__bad") && ran.error().contains("nowhere"),
        "{ran:?}"
    );
    let half = match kind {
        Kind::Sqlite => "select count(*) from sqlite_master where name = 'half'",
        Kind::Postgres => "select count(*) from pg_class where relname = 'half'",
    };
    assert_eq!(app.data.count(half).await, 0);
    app.write("migrations/V2__bad.sql", "create table half (a integer);");
    assert!(app.run("migrate").success);
    assert_eq!(app.data.count(half).await, 1);
}
both_databases!(a_migration_that_fails_is_undone);

/// A file that ends its own transaction is refused: otherwise it could be applied in part without being recorded.
async fn a_migration_cannot_end_its_transaction(kind: Kind) {
    let app = App::rules(kind, "databases.default.migrations = \"migrations\"").await;
    app.write(
        "migrations/V1__half.sql",
        "create table half (a integer);\nCOMMIT;\ninsert into nowhere values (1);",
    );
    let ran = app.run("migrate");
    assert!(
        ran.error().contains("V1__half.sql:2: `commit` was refused")
            || ran.error().contains("V1__half.sql:2: `COMMIT` was refused"),
        "{ran:?}"
    );
    assert!(!exists(&app, kind, "half").await);
    app.write("migrations/V1__half.sql", "create table half (a integer);");
    assert!(app.run("migrate").success);
}
both_databases!(a_migration_cannot_end_its_transaction);

/// A file with a number below those applied is refused, by `serve` and `migrate` alike.
async fn a_late_migration_is_refused_by_name(kind: Kind) {
    let app = App::rules(kind, "databases.default.migrations = \"migrations\"").await;
    app.write("migrations/V1__a.sql", "create table a (a integer);");
    app.write("migrations/V3__c.sql", "create table c (a integer);");
    assert!(app.run("migrate").success);
    app.write("migrations/V2__b.sql", "create table b (a integer);");
    for command in ["migrate", "serve"] {
        let ran = app.run(command);
        assert!(
            ran.error().contains("V2__b.sql is new")
                && ran.error().contains("rename it to V4__b.sql"),
            "{ran:?}"
        );
    }
    std::fs::rename(
        app.path("migrations/V2__b.sql"),
        app.path("migrations/V4__b.sql"),
    )
    .expect("it can be renamed");
    assert!(app.run("migrate").success);
    assert!(exists(&app, kind, "b").await);
    // An applied file that is missing is an error, and so is an applied file that was changed.
    std::fs::remove_file(app.path("migrations/V3__c.sql")).expect("it can be removed");
    let ran = app.run("migrate");
    assert!(ran.error().contains("bring back V3__c.sql"), "{ran:?}");
    app.write("migrations/V3__c.sql", "create table c (a text);");
    for command in ["migrate", "serve"] {
        let ran = app.run(command);
        assert!(ran.error().contains("V3__c.sql was changed"), "{ran:?}");
    }
    // With its original text, the file is accepted again.
    app.write("migrations/V3__c.sql", "create table c (a integer);");
    assert!(app.run("migrate").success);
}
both_databases!(a_late_migration_is_refused_by_name);

/// A file that ends with `.sql` and is not named as a migration is refused, not ignored.
async fn misnamed_migrations_are_refused(kind: Kind) {
    for name in [
        "001_first.sql",
        "V1_x.sql",
        "V1__add-index.sql",
        "U1__undo.sql",
        "V99999999999999999999__x.sql",
    ] {
        let app = App::rules(kind, "databases.default.migrations = \"migrations\"").await;
        app.write(&format!("migrations/{name}"), "create table a (a integer);");
        for command in ["migrate", "serve"] {
            let ran = app.run(command);
            assert!(!ran.success && ran.error().contains(name), "{ran:?}");
        }
    }
    let app = App::rules(kind, "databases.default.migrations = \"migrations\"").await;
    app.write(
        "migrations/V20261128140312__stamp.sql",
        "create table stamp (a integer);",
    );
    app.write("migrations/README.md", "what is here");
    assert!(app.run("migrate").success);
    assert!(exists(&app, kind, "stamp").await);
}
both_databases!(misnamed_migrations_are_refused);

/// An error names file and line, and quotes the wrong word only once.
async fn errors_of_migrations_have_file_and_line(kind: Kind) {
    let app = App::rules(kind, "databases.default.migrations = \"migrations\"").await;
    app.write(
        "migrations/V1__a.sql",
        "create table a (a integer not null);\n\ninsert into a\nvalues (1), (nul);",
    );
    let ran = app.run("migrate");
    let error = ran.error();
    assert!(
        error.contains("V1__a.sql:4: ") && error.matches("nul").count() == 1,
        "{ran:?}"
    );
    assert!(!error.contains("db error"), "{ran:?}");
    app.write(
        "migrations/V1__a.sql",
        "create table a (a integer not null);\n\ninsert into a\nvalues (null);",
    );
    let ran = app.run("migrate");
    assert!(ran.error().contains("V1__a.sql:3: "), "{ran:?}");
}
both_databases!(errors_of_migrations_have_file_and_line);

/// A file that cannot run in a transaction says so in its first line.
async fn a_migration_can_do_without_a_transaction(kind: Kind) {
    let app = App::rules(kind, "databases.default.migrations = \"migrations\"").await;
    let sql = match kind {
        Kind::Sqlite => "vacuum;",
        Kind::Postgres => {
            "create index concurrently by_a on a (a);\ncreate index concurrently by_b on a (a, a);"
        }
    };
    app.write("migrations/V1__a.sql", "create table a (a integer);");
    app.write("migrations/V2__b.sql", sql);
    let ran = app.run("migrate");
    assert!(
        ran.error().contains("V2__b.sql:1: ") && ran.error().contains("`-- amphi: no-transaction`"),
        "{ran:?}"
    );
    app.write(
        "migrations/V2__b.sql",
        format!("-- amphi: no-transaction\n{sql}"),
    );
    let hosts: Vec<_> = (0..3)
        .map(|_| {
            let mut command = Command::new(AMPHI);
            command
                .arg("migrate")
                .arg(app.folder())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
            command.spawn().expect("it can be started")
        })
        .collect();
    for host in hosts {
        let output = host.wait_with_output().expect("it ends");
        assert!(output.status.success(), "{output:?}");
    }
    let again = app.run("migrate");
    assert!(again.stdout.contains("nothing to do"), "{again:?}");
    app.data.assert_quiet().await;
}
both_databases!(a_migration_can_do_without_a_transaction);

/// Settings that a file leaves in the session do no harm to the next file: `pg_dump`, for one, empties the search path.
async fn a_migration_leaves_nothing_in_the_session(kind: Kind) {
    let app = App::rules(kind, "databases.default.migrations = \"migrations\"").await;
    let sql = match kind {
        Kind::Sqlite => "pragma case_sensitive_like = true; create temp table t (a);",
        Kind::Postgres => {
            "select pg_catalog.set_config('search_path', '', false); set standard_conforming_strings = off; create temp table t (a integer);"
        }
    };
    app.write("migrations/V1__a.sql", sql);
    app.write(
        "migrations/V2__b.sql",
        "create table b (a integer); create table t (a integer);",
    );
    let ran = app.run("migrate");
    assert!(ran.success, "{ran:?}");
    assert!(exists(&app, kind, "b").await);
}
both_databases!(a_migration_leaves_nothing_in_the_session);

/// Migrations that an early build recorded in another table count as applied.
async fn records_of_earlier_versions_are_taken_over(kind: Kind) {
    let app = App::rules(kind, "databases.default.migrations = \"migrations\"").await;
    app.write("migrations/V1__a.sql", "create table a (a integer);");
    std::fs::create_dir_all(app.path("data")).expect("the folder can be made");
    app.data
            .execute(
                "create table refinery_schema_history (version int4 primary key, name varchar(255), applied_on varchar(255), checksum varchar(255));
                insert into refinery_schema_history values (1, 'a', '2026-11-01T00:00:00Z', '1');
                create table a (a integer);",
            )
            .await;
    let ran = app.run("migrate");
    assert!(
        ran.error()
            .contains("V1__a.sql was changed after it was applied (2026-11-01"),
        "{ran:?}"
    );
    // The checksum of the crate `refinery` is a hash by the standard library's `DefaultHasher`.
    let mut hasher = DefaultHasher::new();
    ("a", 1_i32, "create table a (a integer);").hash(&mut hasher);
    let checksum = hasher.finish();
    app.data
        .execute(&format!(
            "update refinery_schema_history set checksum = '{checksum}'"
        ))
        .await;
    app.write("migrations/V2__b.sql", "create table b (a integer);");
    let ran = app.run("migrate");
    assert!(ran.success && !ran.stdout.contains("V1__a"), "{ran:?}");
    assert_eq!(
        app.data
            .count("select count(*) from amphi_migrations")
            .await,
        2
    );
    assert!(!exists(&app, kind, "refinery_schema_history").await);
    assert!(app.run("migrate").stdout.contains("nothing to do"));
}
both_databases!(records_of_earlier_versions_are_taken_over);

async fn exists(app: &App, kind: Kind, table: &str) -> bool {
    let sql = match kind {
        Kind::Sqlite => format!("select count(*) from sqlite_master where name = '{table}'"),
        Kind::Postgres => format!("select count(*) from pg_class where relname = '{table}'"),
    };
    app.data.count(&sql).await > 0
}
