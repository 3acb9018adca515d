//! Statements, parameters and rows.

use amphi_sdk::Value;
use amphi_sdk::database::ErrorKind;
use amphi_sdk::prelude::*;
use amphi_sdk::testing::{App, run};

#[derive(Debug, FromRow, PartialEq)]
struct Thing {
    id: i64,
    #[row(column = "title")]
    name: Option<String>,
    r#type: bool,
}

const THINGS: &str =
    "create table things (id integer primary key, title text unique, type integer not null);
    insert into things values (1, 'one', 1), (2, null, 0);";

fn app() -> App {
    App::new().execute_batch(THINGS)
}

#[test]
fn rows_are_read_by_name_by_position_or_singly() {
    let app = app();
    let cx = app.context();
    let things: Vec<Thing> = cx
        .db()
        .query("select type, title, id from things order by id", ())
        .expect("it reads");
    assert_eq!(
        things,
        [
            Thing {
                id: 1,
                name: Some("one".into()),
                r#type: true
            },
            Thing {
                id: 2,
                name: None,
                r#type: false
            }
        ]
    );
    let pair: Option<(i64, String)> = cx
        .db()
        .query_one("select id, title from things where id = ?", (1,))
        .expect("");
    assert_eq!(pair, Some((1, "one".into())));
    assert_eq!(
        cx.db()
            .query_one::<Option<String>>("select title from things where id = 2", ())
            .expect(""),
        Some(None)
    );
    assert_eq!(
        cx.db()
            .query_one::<i64>("select id from things where id = 3", ())
            .expect(""),
        None
    );
}

#[test]
fn values_of_all_kinds_go_there_and_back() {
    let app = App::new();
    let cx = app.context();
    let params = (
        i64::MIN,
        7_u64,
        1.5,
        true,
        "text",
        String::from("owned"),
        vec![0_u8, 255],
        None::<i64>,
        Value::Null,
    );
    type Row = (
        i64,
        u64,
        f64,
        bool,
        String,
        String,
        Vec<u8>,
        Option<i64>,
        Value,
    );
    let row: Option<Row> = cx
        .db()
        .query_one("select ?, ?, ?, ?, ?, ?, ?, ?, ?", params.clone())
        .expect("it runs");
    let (a, b, c, d, e, f, g, h, i) = params;
    assert_eq!(row, Some((a, b, c, d, e.into(), f, g, h, i)));

    let names = ["one", "two"];
    assert_eq!(
        cx.db()
            .query::<(String, String)>("select ?, ?", &names[..])
            .expect("a slice")
            .len(),
        1
    );
    assert_eq!(
        cx.db()
            .query::<(String, String)>("select ?, ?", names)
            .expect("an array")
            .len(),
        1
    );
    assert_eq!(
        cx.db()
            .query::<(String, String)>("select ?, ?", names.to_vec())
            .expect("a vector")
            .len(),
        1
    );
    let error = cx
        .db()
        .query::<i64>("select ?", (u64::MAX,))
        .expect_err("that is too large");
    assert!(
        error
            .detail()
            .is_some_and(|text| text.contains("too large")),
        "{error}"
    );
}

#[test]
fn a_row_that_does_not_fit_says_where() {
    let app = app();
    let cx = app.context();
    let detail = |sql: &str| {
        let error = cx
            .db()
            .query::<Thing>(sql, ())
            .expect_err("it does not fit");
        error.detail().expect("it says where").to_owned()
    };
    assert_eq!(
        detail("select id, title from things"),
        "the query has no column `type`, which field `type` of `Thing` needs; it has: id, title"
    );
    assert_eq!(
        detail("select 'x' as id, title, type from things"),
        "column `id` has a text where field `id` of `Thing` expects an integer of type i64"
    );
    assert_eq!(
        detail("select null as id, title, type from things"),
        "column `id` has null where field `id` of `Thing` expects an integer of type i64; `Option` takes null"
    );
    let error = cx
        .db()
        .query::<(i64, i64)>("select id from things", ())
        .expect_err("one column is missing");
    assert!(
        error
            .detail()
            .is_some_and(|text| text.contains("1 columns (id)")),
        "{error}"
    );
    let error = cx
        .db()
        .query::<u8>("select 256", ())
        .expect_err("it is too large");
    assert!(
        error
            .detail()
            .is_some_and(|text| text.contains("the integer 256")),
        "{error}"
    );
}

#[test]
fn failures_have_a_kind_and_a_status() {
    let app = app();
    let cx = app.context();
    let failure = |sql: &str, id: i64| {
        let error = cx.db().execute(sql, (id,)).expect_err("it fails");
        (
            error.database_kind().expect("it comes from the database"),
            error.status().as_u16(),
        )
    };
    assert_eq!(
        failure("insert into things values (?, 'one', 1)", 9),
        (ErrorKind::Unique, 409)
    );
    assert_eq!(
        failure("insert into nothing values (?)", 9),
        (ErrorKind::Statement, 500)
    );
    assert_eq!(failure("select 1, ?, ?", 9), (ErrorKind::Statement, 500));
    assert_eq!(failure("begin", 9), (ErrorKind::Denied, 500));
    let error = cx
        .database("other")
        .execute("select 1", ())
        .expect_err("there is none");
    assert_eq!(error.database_kind(), Some(ErrorKind::Denied));
    assert_eq!(
        cx.db()
            .execute("update things set type = 1", ())
            .expect("it runs"),
        2
    );
}

#[test]
fn large_results_come_in_batches_in_both_modes() {
    let app = App::new().execute_batch(
        "create table numbers as with recursive n(i) as (select 1 union all select i + 1 from n where i < 1000)
         select i from n",
    );
    let cx = app.context();
    let rows = cx
        .db()
        .rows::<i64>("select i from numbers", ())
        .expect("it opens");
    assert_eq!(rows.columns(), ["i"]);
    assert_eq!(rows.map(|row| row.expect("it reads")).sum::<i64>(), 500_500);

    let cx = app.async_context();
    let sum: Result<i64> = run(async {
        let mut sum = 0;
        let mut rows = cx.db().rows::<i64>("select i from numbers", ()).await?;
        while let Some(number) = rows.next().await? {
            sum += number;
        }
        assert_eq!(rows.next().await?, None);
        Ok(sum)
    });
    assert_eq!(sum.expect("it reads"), 500_500);
}

#[test]
fn migrations_are_applied_in_order() {
    let folder = std::env::temp_dir().join(format!("amphi-sdk-migrations-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a temporary folder can be made");
    std::fs::write(folder.join("V2__rename.sql"), "alter table a rename to b")
        .expect("it is written");
    std::fs::write(folder.join("V10__fill.sql"), "insert into b values (10)")
        .expect("it is written");
    std::fs::write(folder.join("V1__make.sql"), "create table a (x)").expect("it is written");
    let app = App::new().migrations(&folder);
    std::fs::remove_dir_all(&folder).expect("it is removed");
    assert_eq!(app.query::<i64>("select x from b", ()), [10]);
}

#[test]
fn json_and_arrays_are_texts() {
    #[derive(Debug, Deserialize, PartialEq, Serialize)]
    struct Shape {
        sides: u8,
    }

    let app = App::new();
    let cx = app.context();
    let (tags, shape): (Json<Vec<String>>, Option<Json<Shape>>) = cx
        .db()
        .query_one("select ?, ?", (Json(["a", "b"]), Json(Shape { sides: 3 })))
        .expect("it reads")
        .expect("there is a row");
    assert_eq!(tags.0, ["a", "b"]);
    assert_eq!(shape.map(|shape| shape.0), Some(Shape { sides: 3 }));
    let numbers: Vec<Json<Vec<i64>>> = cx.db().query("select '[1,2]'", ()).expect("it reads");
    assert_eq!(numbers[0].0, [1, 2]);
    let error = cx
        .db()
        .query::<(Json<Shape>,)>("select '[1,2]'", ())
        .expect_err("it is another shape");
    assert!(
        error
            .detail()
            .is_some_and(|text| text.contains("expects JSON that fits")),
        "{error}"
    );
}

/// Runs only with `--features time,uuid`.
#[cfg(all(feature = "time", feature = "uuid"))]
#[test]
fn dates_times_and_uuids_are_values() {
    use time::macros::{date, datetime, time};
    let app = app();
    let cx = app.context();
    let id = uuid::Uuid::from_u128(7);
    let written = (
        date!(2026 - 11 - 21),
        time!(04:05:06.789),
        datetime!(2026-11-21 04:05:06),
        datetime!(2026-11-21 04:05:06.123456789 +02:00),
        id,
        None::<time::Date>,
    );
    let texts: Option<(String, String, String, String, String, Option<String>)> = cx
        .db()
        .query_one("select $1, $2, $3, $4, $5, $6", written)
        .expect("they are texts");
    let texts = texts.expect("one row");
    assert_eq!(
        [&texts.0, &texts.1, &texts.2, &texts.3, &texts.4],
        [
            "2026-11-21",
            "04:05:06.789000",
            "2026-11-21T04:05:06.000000",
            "2026-11-21T02:05:06.123456Z",
            "00000000-0000-0000-0000-000000000007",
        ]
    );
    type Row = (
        time::Date,
        time::Time,
        time::PrimitiveDateTime,
        time::OffsetDateTime,
        uuid::Uuid,
    );
    let read: Option<Row> = cx
        .db()
        .query_one(
            "select $1, $2, $3, $4, $5",
            (texts.0, texts.1, texts.2, texts.3, id),
        )
        .expect("they are what they were");
    let read = read.expect("one row");
    assert_eq!(read.3, datetime!(2026-11-21 02:05:06.123456 UTC));
    assert_eq!(
        (read.0, read.1, read.2, read.4),
        (written.0, written.1, written.2, id)
    );
    // The same point in time in the forms in which databases write it.
    let at = |text: &str| {
        let row = cx
            .db()
            .query_one::<(time::OffsetDateTime,)>("select $1", (text,));
        row.map(|row| row.expect("one row").0)
    };
    let wanted = datetime!(2026-11-21 04:05:06 UTC);
    for text in [
        "2026-11-21 04:05:06",
        "2026-11-21T04:05:06Z",
        "2026-11-21T04:05:06.0Z",
        "2026-11-21T06:05:06+02:00",
    ] {
        assert_eq!(at(text).expect(text), wanted);
    }
    assert!(at("infinity").is_err() && at("2026-11-21").is_err());
    let bytes = cx
        .db()
        .query_one::<(uuid::Uuid,)>("select x'00000000000000000000000000000007'", ());
    assert_eq!(bytes.expect("16 bytes"), Some((id,)));
}

#[test]
fn numbered_parameters_may_come_in_any_order() {
    let app = app();
    let cx = app.context();
    let row = cx
        .db()
        .query_one("select $2, $1, $2", (1, 2))
        .expect("it runs");
    assert_eq!(row, Some((2, 1, 2)));
    let changed = cx.db().execute("drop table things", ()).expect("it runs");
    assert_eq!(changed, 0);
}

#[test]
fn constraints_are_told_apart() {
    let app = App::new().execute_batch(
        "create table strict_ones (
            id integer primary key, name text not null unique,
            age integer check (age > 0), parent integer references strict_ones (id),
            constraint short check (length(name) < 5)
        ) strict",
    );
    let cx = app.context();
    let failed = |sql: &str| {
        let error = cx.db().execute(sql, ()).expect_err(sql);
        let violation = error.violation().expect("a constraint").clone();
        assert!(error.database_kind().is_some_and(ErrorKind::is_constraint));
        (
            error.database_kind().expect("it is the database's"),
            error.status().as_u16(),
            violation.constraint,
            violation.columns.join(","),
        )
    };
    cx.db()
        .execute("insert into strict_ones values (1, 'a', 1, null)", ())
        .expect("it is right");
    let columns = |kind, status, columns: &str| (kind, status, None, columns.to_owned());
    for (values, wanted) in [
        ("2, 'a', 1, null", columns(ErrorKind::Unique, 409, "name")),
        ("1, 'b', 1, null", columns(ErrorKind::Unique, 409, "id")),
        ("2, 'b', 1, 7", columns(ErrorKind::ForeignKey, 409, "")),
        ("2, null, 1, null", columns(ErrorKind::NotNull, 400, "name")),
        (
            "2, 'b', 'x', null",
            columns(ErrorKind::DataType, 400, "age"),
        ),
        (
            "2, 'bcdef', 1, null",
            (
                ErrorKind::Check,
                400,
                Some("short".to_owned()),
                String::new(),
            ),
        ),
    ] {
        assert_eq!(
            failed(&format!("insert into strict_ones values ({values})")),
            wanted
        );
    }
}
