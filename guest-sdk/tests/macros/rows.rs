//! Types that cannot be read from a row, and values that cannot be parameters of a statement.
use amphi_sdk::prelude::*;

#[derive(FromRow)]
enum Either {
    A,
}

#[derive(FromRow)]
struct Pair(i64, i64);

struct Other;

#[derive(FromRow)]
struct Nested {
    other: Other,
}

#[derive(FromRow)]
struct Misspelt {
    #[row(name = "other")]
    id: i64,
}

fn reads(cx: &sync::Context) -> Result<()> {
    let _: Vec<Other> = cx.db().query("select 1", ())?;
    cx.db().execute("delete from a where id = ?", 7)?;
    cx.db().execute("delete from a where id = ?", (Other,))?;
    Ok(())
}

fn main() {}
