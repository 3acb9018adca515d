//! `amphi migrate`, and what is served when it has not been run.

use std::process::{Command, Stdio};

use serde_json::json;

use crate::harness::guests::AMPHI;
use crate::harness::steps::insert;
use crate::harness::{App, Kind};

both_databases! {
    async fn migrations_are_applied_once(kind: Kind) {
        let app = App::rules(kind, "").await;
        let first = app.run("migrate");
        assert!(first.success && first.stdout.contains("V1__tables"), "{first:?}");
        let again = app.run("migrate");
        assert!(again.success && again.stdout.contains("nothing to do"), "{again:?}");
        let server = app.serve().await;
        assert_eq!(server.told("/sync/run", json!([insert("a")])).await, json!([1]));
    }

    /// Nobody serves an app whose database is not what its views were written for.
    async fn an_app_with_pending_migrations_is_not_served(kind: Kind) {
        let app = App::rules(kind, "").await;
        let ran = app.run("serve");
        assert!(ran.error().contains("amphi migrate"), "{ran:?}");
        assert!(ran.error().contains("V1__tables"), "{ran:?}");
    }

    /// Several at once: one applies, the others find it done.
    async fn several_hosts_can_migrate_at_once(kind: Kind) {
        let app = App::rules(kind, "databases.default.migrations = \"migrations\"").await;
        let many: String = (1..40).map(|number| format!("create table t{number} (a integer);\n")).collect();
        app.write("migrations/V1__many.sql", &many);
        app.write("migrations/V2__rows.sql", "create table done (a integer); insert into done values (1);");
        let hosts: Vec<_> = (0..6)
            .map(|_| {
                let mut command = Command::new(AMPHI);
                command.arg("migrate").arg(app.folder()).stdout(Stdio::piped()).stderr(Stdio::piped());
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

    /// A file that fails leaves nothing of itself, names what is wrong, and can be mended.
    async fn a_migration_that_fails_is_undone(kind: Kind) {
        let app = App::rules(kind, "databases.default.migrations = \"migrations\"").await;
        app.write("migrations/V1__good.sql", "create table good (a integer);");
        app.write("migrations/V2__bad.sql", "create table half (a integer); insert into nowhere values (1);");
        let ran = app.run("migrate");
        assert!(ran.error().contains("V2__bad") && ran.error().contains("nowhere"), "{ran:?}");
        let half = match kind {
            Kind::Sqlite => "select count(*) from sqlite_master where name = 'half'",
            Kind::Postgres => "select count(*) from pg_class where relname = 'half'",
        };
        assert_eq!(app.data.count(half).await, 0);
        app.write("migrations/V2__bad.sql", "create table half (a integer);");
        assert!(app.run("migrate").success);
        assert_eq!(app.data.count(half).await, 1);
    }
}
