//! The pages for visitors.

use crate::site;
use crate::store::{self, Choice, Question};
use amphi_sdk::prelude::*;
use askama::Template;
use time::OffsetDateTime;

/// How many questions the first page shows.
const LATEST: u32 = 5;
/// How many other questions the page with the results of a question lists.
const MORE: usize = 3;

#[derive(Template)]
#[template(path = "index.html")]
struct Index {
    site: String,
    teasers: Vec<Teaser>,
}

struct Teaser {
    question: Question,
    new: bool,
}

#[view(get, "/")]
pub fn index(cx: &Context) -> Result<Html> {
    let now = OffsetDateTime::now_utc();
    let teaser = |question: Question| Teaser {
        new: question.is_new(now),
        question,
    };
    let questions = store::latest(cx, now, LATEST)?;
    let page = Index {
        site: site(cx),
        teasers: questions.into_iter().map(teaser).collect(),
    };
    Ok(Html(page.render()?))
}

#[derive(Template)]
#[template(path = "detail.html")]
struct Detail<'a> {
    site: String,
    csrf: &'a Csrf,
    question: &'a Question,
    choices: &'a [Choice],
    problem: Option<&'a str>,
}

#[view(get, "/polls/{id}")]
pub fn detail(cx: &Context, csrf: Csrf, Path(id): Path<i64>) -> Result<Html> {
    let question = store::published(cx, id, OffsetDateTime::now_utc())?;
    detail_page(cx, &csrf, &question, None)
}

fn detail_page(
    cx: &sync::Context,
    csrf: &Csrf,
    question: &Question,
    problem: Option<&str>,
) -> Result<Html> {
    let page = Detail {
        site: site(cx),
        csrf,
        question,
        choices: &store::choices(cx, question.id)?,
        problem,
    };
    Ok(Html(page.render()?))
}

/// The form of a vote. `choice` is `None` when the visitor has chosen no answer.
#[derive(Deserialize)]
pub struct Ballot {
    choice: Option<i64>,
}

#[view(post, "/polls/{id}/vote", atomic)]
pub fn vote(
    cx: &Context,
    csrf: Csrf,
    Path(id): Path<i64>,
    Protected(Form(ballot)): Protected<Form<Ballot>>,
) -> Result<Response> {
    let question = store::published(cx, id, OffsetDateTime::now_utc())?;
    let counted = match ballot.choice {
        Some(choice) => store::vote(cx, id, choice)?,
        None => false,
    };
    if counted {
        // With a redirect, the visitor can reload the next page without voting again.
        return Redirect::see_other(format!("/polls/{id}/results")).into_response();
    }
    let problem = Some("Please choose one of the answers.");
    let page = detail_page(cx, &csrf, &question, problem)?;
    (StatusCode::UNPROCESSABLE_ENTITY, page).into_response()
}

#[derive(Template)]
#[template(path = "results.html")]
struct Results {
    site: String,
    question: Question,
    bars: Vec<Bar>,
    votes: i64,
    more: Vec<Question>,
}

/// An answer with its share of the votes.
struct Bar {
    choice: Choice,
    percent: i64,
    leads: bool,
}

fn bars(choices: Vec<Choice>) -> Vec<Bar> {
    let votes: i64 = choices.iter().map(|choice| choice.votes).sum();
    let most = choices.iter().map(|choice| choice.votes).max();
    let bar = |choice: Choice| Bar {
        percent: (200 * choice.votes + votes) / (2 * votes).max(1),
        leads: choice.votes > 0 && Some(choice.votes) == most,
        choice,
    };
    choices.into_iter().map(bar).collect()
}

#[view(get, "/polls/{id}/results")]
pub async fn results(cx: &Context, Path(id): Path<i64>) -> Result<Html> {
    let now = OffsetDateTime::now_utc();
    let (question, choices, mut more) = try_join!(
        store::published(cx, id, now),
        store::choices(cx, id),
        store::latest(cx, now, LATEST),
    )?;
    more.retain(|other| other.id != id);
    more.truncate(MORE);
    let page = Results {
        site: site(cx),
        question,
        votes: choices.iter().map(|choice| choice.votes).sum(),
        bars: bars(choices),
        more,
    };
    Ok(Html(page.render()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_shares_of_all_votes() {
        let of = |votes: &[i64]| -> Vec<(i64, bool)> {
            let choice = |votes| Choice {
                id: 1,
                text: "?".into(),
                votes,
            };
            let bars = bars(votes.iter().copied().map(choice).collect());
            bars.iter().map(|bar| (bar.percent, bar.leads)).collect()
        };
        assert_eq!(of(&[0, 0]), [(0, false), (0, false)]);
        assert_eq!(of(&[3, 1]), [(75, true), (25, false)]);
        assert_eq!(of(&[1, 1, 1]), [(33, true), (33, true), (33, true)]);
        assert_eq!(of(&[2, 1]), [(67, true), (33, false)]);
        assert_eq!(of(&[0, 7]), [(0, false), (100, true)]);
    }
}
