//! The list of questions for staff. The conditions depend on the filter, so `sea-query` builds the statements.

use crate::store::shown;
use amphi_sdk::database::{ToValue, Value};
use amphi_sdk::prelude::*;
use sea_query::{Cond, Expr, ExprTrait, Func, Order, PostgresQueryBuilder, Query, SelectStatement};
use time::OffsetDateTime;

pub const PER_PAGE: u32 = 10;

/// What the list is filtered by.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Filter {
    /// The text to search for in the questions.
    pub q: String,
    pub when: When,
    pub page: Option<u32>,
}

/// The filter by time of publication.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum When {
    #[default]
    Any,
    Day,
    Week,
    Month,
    Scheduled,
}

impl When {
    pub const ALL: [Self; 5] = [
        Self::Any,
        Self::Day,
        Self::Week,
        Self::Month,
        Self::Scheduled,
    ];

    /// The value in the query of the URL.
    pub fn value(self) -> &'static str {
        match self {
            Self::Any => "any",
            Self::Day => "day",
            Self::Week => "week",
            Self::Month => "month",
            Self::Scheduled => "scheduled",
        }
    }

    pub fn label(self) -> &'static str {
        match self {
            Self::Any => "Any time",
            Self::Day => "Past day",
            Self::Week => "Past 7 days",
            Self::Month => "Past 30 days",
            Self::Scheduled => "Scheduled",
        }
    }

    fn condition(self, now: OffsetDateTime) -> Option<Cond> {
        let pub_date = || Expr::col(("questions", "pub_date"));
        let past = |days| {
            let since = now - time::Duration::days(days);
            Some(
                Cond::all()
                    .add(pub_date().gt(since))
                    .add(pub_date().lte(now)),
            )
        };
        match self {
            Self::Any => None,
            Self::Day => past(1),
            Self::Week => past(7),
            Self::Month => past(30),
            Self::Scheduled => Some(Cond::all().add(pub_date().gt(now))),
        }
    }
}

/// A line of the list.
#[derive(Debug, FromRow)]
pub struct Line {
    pub id: i64,
    pub text: String,
    pub pub_date: OffsetDateTime,
    /// How many answers the question has.
    pub choices: i64,
    pub votes: i64,
}

impl Line {
    pub fn published_on(&self) -> String {
        shown(self.pub_date)
    }
}

impl Filter {
    fn select(&self, now: OffsetDateTime) -> SelectStatement {
        let mut select = Query::select();
        select.from("questions");
        if let Some(condition) = self.when.condition(now) {
            select.cond_where(condition);
        }
        if !self.q.trim().is_empty() {
            // The database lowers the text and the pattern, so both change alike: SQLite lowers ASCII letters only.
            select.and_where(Expr::cust_with_values(
                "lower(questions.text) like lower($1) escape '!'",
                [pattern(&self.q)],
            ));
        }
        select
    }

    fn count(&self, now: OffsetDateTime) -> SelectStatement {
        let mut select = self.select(now);
        select.expr(Expr::col(("questions", "id")).count());
        select
    }

    /// Selects one page of the list. Pages are numbered from 1.
    fn lines(&self, now: OffsetDateTime, page: u32) -> SelectStatement {
        let columns = [
            ("questions", "id"),
            ("questions", "text"),
            ("questions", "pub_date"),
        ];
        let votes = Func::coalesce([Expr::col(("choices", "votes")).sum(), Expr::cust("0")]);
        let mut select = self.select(now);
        select
            .columns(columns)
            .expr_as(Expr::col(("choices", "id")).count(), "choices")
            // In PostgreSQL, the sum of `bigint` values has the type `numeric`.
            .expr_as(Expr::from(votes).cast_as("bigint"), "votes")
            .left_join(
                "choices",
                Expr::col(("choices", "question_id")).equals(("questions", "id")),
            )
            .group_by_columns(columns)
            .order_by(("questions", "pub_date"), Order::Desc)
            .order_by(("questions", "id"), Order::Desc)
            .limit(PER_PAGE.into())
            .offset(u64::from(PER_PAGE) * u64::from(page.saturating_sub(1)));
        select
    }
}

/// A pattern for LIKE with the escape character `!`. Zero characters are dropped, since PostgreSQL refuses them.
fn pattern(search: &str) -> String {
    let mut pattern = String::from("%");
    for c in search.trim().chars().filter(|&c| c != '\0') {
        if matches!(c, '%' | '_' | '!') {
            pattern.push('!');
        }
        pattern.push(c);
    }
    pattern + "%"
}

/// A statement and its parameters. SQLite, too, accepts the SQL that sea-query builds for PostgreSQL, with `$1`, `$2` …
fn built(select: &SelectStatement) -> Result<(String, Vec<Value>)> {
    let (sql, values) = select.build(PostgresQueryBuilder);
    let values = values.0.into_iter().map(parameter);
    Ok((sql, values.collect::<Result<_>>()?))
}

/// Converts a value of sea-query into a parameter. The statements in this file use no other types than these three.
fn parameter(value: sea_query::Value) -> Result<Value> {
    use sea_query::Value as Bound;
    match value {
        Bound::BigUnsigned(number) => number.to_value(),
        Bound::String(text) => text.to_value(),
        Bound::TimeDateTimeWithTimeZone(moment) => moment.to_value(),
        other => Err(Error::internal(format!(
            "no parameter is made of {other:?}"
        ))),
    }
}

#[both]
pub async fn count(cx: &Context, filter: &Filter, now: OffsetDateTime) -> Result<u32> {
    let (sql, values) = built(&filter.count(now))?;
    let count = cx.db().query_one(&sql, values).await?;
    Ok(count.unwrap_or(0))
}

#[both]
pub async fn lines(
    cx: &Context,
    filter: &Filter,
    now: OffsetDateTime,
    page: u32,
) -> Result<Vec<Line>> {
    let (sql, values) = built(&filter.lines(now, page))?;
    cx.db().query(&sql, values).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_has_what_is_asked_for() {
        let now = OffsetDateTime::UNIX_EPOCH;
        let (sql, values) = built(&Filter::default().count(now)).expect("it is built");
        assert_eq!(sql, r#"SELECT COUNT("questions"."id") FROM "questions""#);
        assert_eq!(values, []);

        let filter = Filter {
            q: " 50% ".into(),
            when: When::Scheduled,
            page: None,
        };
        let (sql, values) = built(&filter.lines(now, 3)).expect("it is built");
        assert!(
            sql.contains(
                r#"WHERE "questions"."pub_date" > $1 AND (lower(questions.text) like lower($2) escape '!')"#
            ),
            "{sql}"
        );
        assert!(sql.ends_with("LIMIT $3 OFFSET $4"), "{sql}");
        assert_eq!(values[1], Value::Text("%50!%%".into()));
        assert_eq!(values[2..], [Value::Integer(10), Value::Integer(20)]);
    }
}
