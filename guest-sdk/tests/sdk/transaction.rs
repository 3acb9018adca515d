//! Transactions of whole views and of `atomic` blocks, in both modes.

use amphi_sdk::prelude::*;
use amphi_sdk::testing::{App, post, run};

/// What the views below do after their insert.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Then {
    Succeed,
    Refuse,
    Fail,
    Break,
}

impl Then {
    fn outcome(self) -> Result<StatusCode> {
        match self {
            Then::Succeed => Ok(StatusCode::CREATED),
            Then::Refuse => Ok(StatusCode::CONFLICT),
            Then::Fail => Err(Error::conflict("no")),
            Then::Break => Ok(StatusCode::INTERNAL_SERVER_ERROR),
        }
    }
}

const INSERT: &str = "insert into a values (1)";

#[view(post, "/{then}", atomic)]
fn atomic(cx: &Context, Path(then): Path<Then>) -> Result<StatusCode> {
    cx.db().execute(INSERT, ())?;
    then.outcome()
}

#[view(post, "/{then}", atomic)]
async fn atomic_async(cx: &Context, Path(then): Path<Then>) -> Result<StatusCode> {
    cx.db().execute(INSERT, ()).await?;
    then.outcome()
}

#[view(post, "/{then}", atomic = false)]
fn loose(cx: &Context, Path(then): Path<Then>) -> Result<StatusCode> {
    cx.db().execute(INSERT, ())?;
    then.outcome()
}

#[view(post, "/{then}")]
fn unsaid(cx: &Context, Path(then): Path<Then>) -> Result<StatusCode> {
    cx.db().execute(INSERT, ())?;
    then.outcome()
}

fn app() -> App {
    App::new().execute_batch("create table a (x integer)")
}

fn count(app: &App) -> i64 {
    app.query::<i64>("select count(*) from a", ())[0]
}

#[test]
fn an_atomic_view_keeps_its_changes_unless_it_fails() {
    for (path, status, kept) in [
        ("/succeed", 201, 1),
        ("/refuse", 409, 1),
        ("/fail", 409, 0),
        ("/break", 500, 0),
    ] {
        let (a, b, c, d) = (app(), app(), app(), app());
        assert_eq!(
            (a.call::<atomic>(post(path)).status().as_u16(), count(&a)),
            (status, kept),
            "sync {path}"
        );
        assert_eq!(
            (
                b.call::<atomic_async>(post(path)).status().as_u16(),
                count(&b)
            ),
            (status, kept),
            "async {path}"
        );
        assert_eq!(
            (c.call::<loose>(post(path)).status().as_u16(), count(&c)),
            (status, 1),
            "not atomic {path}"
        );
        assert_eq!(
            (d.call::<unsaid>(post(path)).status().as_u16(), count(&d)),
            (status, kept),
            "by default {path}"
        );
    }
}

#[test]
fn atomic_blocks_nest_in_sync_code() {
    let app = app();
    let result = app.context().atomic(|tx| {
        tx.execute(INSERT, ())?;
        let inner: Result<()> = tx.atomic(|tx| {
            tx.execute(INSERT, ())?;
            Err(Error::conflict("the inner one fails"))
        });
        assert!(inner.is_err());
        tx.atomic(|tx| tx.execute(INSERT, ()))
    });
    assert_eq!(
        (result.expect("the outer one succeeds"), count(&app)),
        (1, 2)
    );

    let failed: Result<()> = app.context().atomic(|tx| {
        tx.atomic(|tx| tx.execute(INSERT, ()))?;
        Err(Error::conflict("the outer one fails"))
    });
    assert_eq!((failed.is_err(), count(&app)), (true, 2));
}

#[test]
fn atomic_blocks_nest_in_async_code_and_borrow() {
    let (app, cx) = {
        let app = app();
        let cx = app.async_context();
        (app, cx)
    };
    run(async {
        let statement = INSERT.to_owned();
        let mut tries = 0;
        cx.atomic(async |tx| {
            tries += 1;
            tx.execute(&statement, ()).await?;
            let inner: Result<()> = tx
                .atomic(async |tx| {
                    tx.execute(&statement, ()).await?;
                    Err(Error::conflict("the inner one fails"))
                })
                .await;
            assert!(inner.is_err());
            tx.atomic(async |tx| tx.execute(&statement, ()).await).await
        })
        .await
        .expect("the outer one succeeds");
        assert_eq!((tries, count(&app)), (1, 2));
    });
}

#[test]
fn a_dropped_atomic_block_rolls_back() {
    let app = app();
    let cx = app.async_context();
    run(async {
        let work = cx.atomic(async |tx| {
            tx.execute(INSERT, ()).await?;
            std::future::pending::<()>().await;
            Ok(())
        });
        let mut work = std::pin::pin!(work);
        for _ in 0..5 {
            assert!(
                std::future::poll_fn(|task| std::task::Poll::Ready(
                    work.as_mut().poll(task).is_pending()
                ))
                .await
            );
        }
    });
    assert_eq!(count(&app), 0);
}

#[test]
fn a_commit_that_fails_is_a_view_that_fails() {
    #[view(post, "/orphan", atomic)]
    fn orphan(cx: &Context) -> Result<&'static str> {
        cx.db().execute("insert into child values (7)", ())?;
        Ok("stored")
    }

    let app = App::new().execute_batch(
        "create table parent (id integer primary key);
         create table child (parent integer references parent (id) deferrable initially deferred)",
    );
    assert_eq!(
        app.call::<orphan>(post("/orphan")).status(),
        StatusCode::CONFLICT
    );
    assert_eq!(app.query::<i64>("select count(*) from child", ()), [0]);
}
