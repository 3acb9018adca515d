//! The pages for staff: the list of questions, the form for a question and its answers, and the page that deletes one.

use crate::forms::{ChoiceForm, Errors, QuestionForm, Sent};
use crate::search::{self, Filter, Line, PER_PAGE, When};
use crate::site;
use crate::staff::{HOME, Staff, staff_only};
use crate::store::{self, Question};
use amphi_sdk::prelude::*;
use askama::Template;
use time::OffsetDateTime;

/// Empty rows for answers: `ROWS_OF_NEW` for a new question, `ROWS_MORE` for a form that has rows already.
const ROWS_OF_NEW: usize = 4;
const ROWS_MORE: usize = 2;

/// What all admin pages show.
struct Frame<'a> {
    staff: &'a Staff,
    csrf: &'a Csrf,
}

#[derive(Template)]
#[template(path = "admin/list.html")]
struct List<'a> {
    site: String,
    frame: Frame<'a>,
    notice: Option<String>,
    filter: &'a Filter,
    /// The options of the filter by time, each with whether it is selected.
    times: [(When, bool); 5],
    rows: Vec<Row>,
    count: u32,
    page: u32,
    last: u32,
}

struct Row {
    line: Line,
    status: &'static str,
}

impl Row {
    fn new(line: Line, now: OffsetDateTime) -> Self {
        let question = Question {
            id: line.id,
            text: String::new(),
            pub_date: line.pub_date,
        };
        let status = if !question.is_published(now) {
            "Scheduled"
        } else if question.is_new(now) {
            "New"
        } else {
            "Published"
        };
        Self { line, status }
    }
}

#[view(get, "/admin", middleware = [staff_only])]
pub fn list(
    cx: &Context,
    staff: Staff,
    session: Session,
    csrf: Csrf,
    Query(filter): Query<Filter>,
) -> Result<Html> {
    let now = OffsetDateTime::now_utc();
    let count = search::count(cx, &filter, now)?;
    let last = count.div_ceil(PER_PAGE).max(1);
    let page = filter.page.unwrap_or(1).clamp(1, last);
    let notice = session.get("notice");
    session.remove("notice");
    let lines = search::lines(cx, &filter, now, page)?;
    let list = List {
        site: site(cx),
        frame: Frame {
            staff: &staff,
            csrf: &csrf,
        },
        notice,
        filter: &filter,
        times: When::ALL.map(|when| (when, when == filter.when)),
        rows: lines.into_iter().map(|line| Row::new(line, now)).collect(),
        count,
        page,
        last,
    };
    Ok(Html(list.render()?))
}

#[derive(Template)]
#[template(path = "admin/form.html")]
struct FormPage<'a> {
    site: String,
    frame: Frame<'a>,
    /// None for a new question.
    question: Option<&'a Question>,
    form: &'a QuestionForm,
    rows: Vec<FormRow<'a>>,
    errors: &'a Errors,
}

struct FormRow<'a> {
    choice: &'a ChoiceForm,
    error: Option<&'a str>,
}

fn form_page(
    cx: &sync::Context,
    (staff, csrf): (&Staff, &Csrf),
    question: Option<&Question>,
    form: &QuestionForm,
    errors: &Errors,
) -> Result<Html> {
    let row = |(index, choice)| FormRow {
        choice,
        error: errors.of(&format!("choices[{index}].text")),
    };
    let page = FormPage {
        site: site(cx),
        frame: Frame { staff, csrf },
        question,
        form,
        rows: form.choices.iter().enumerate().map(row).collect(),
        errors,
    };
    Ok(Html(page.render()?))
}

#[view(get, "/admin/questions/new", middleware = [staff_only])]
pub fn add_form(cx: &Context, staff: Staff, csrf: Csrf) -> Result<Html> {
    let form = QuestionForm::empty(OffsetDateTime::now_utc()).with_rows(ROWS_OF_NEW);
    form_page(cx, (&staff, &csrf), None, &form, &Errors::default())
}

#[view(post, "/admin/questions/new", atomic, middleware = [staff_only])]
pub fn add(
    cx: &Context,
    staff: Staff,
    session: Session,
    csrf: Csrf,
    Protected(Form(sent)): Protected<Form<Sent>>,
) -> Result<Response> {
    let wants_rows = sent.wants_rows();
    let form = QuestionForm::read(sent)?;
    if wants_rows {
        let form = form.with_rows(ROWS_MORE);
        return form_page(cx, (&staff, &csrf), None, &form, &Errors::default())?.into_response();
    }
    match form.checked() {
        Ok(draft) => {
            let id = store::insert(cx, &draft)?;
            log::info!("question added", question = id, by = staff.name);
            done(&session, &format!("“{}” was added.", draft.text))
        }
        Err(errors) => {
            let page = form_page(cx, (&staff, &csrf), None, &form, &errors)?;
            (StatusCode::UNPROCESSABLE_ENTITY, page).into_response()
        }
    }
}

#[view(get, "/admin/questions/{id}", middleware = [staff_only])]
pub fn edit_form(cx: &Context, staff: Staff, csrf: Csrf, Path(id): Path<i64>) -> Result<Html> {
    let question = store::find(cx, id)?;
    let form = QuestionForm::of(&question, &store::choices(cx, id)?).with_rows(ROWS_MORE);
    let errors = Errors::default();
    form_page(cx, (&staff, &csrf), Some(&question), &form, &errors)
}

#[view(post, "/admin/questions/{id}", atomic, middleware = [staff_only])]
pub fn edit(
    cx: &Context,
    staff: Staff,
    session: Session,
    csrf: Csrf,
    Path(id): Path<i64>,
    Protected(Form(sent)): Protected<Form<Sent>>,
) -> Result<Response> {
    let question = store::find(cx, id)?;
    let wants_rows = sent.wants_rows();
    let form = QuestionForm::read(sent)?;
    let shown = |form: &QuestionForm, errors: &Errors| {
        form_page(cx, (&staff, &csrf), Some(&question), form, errors)
    };
    if wants_rows {
        return shown(&form.with_rows(ROWS_MORE), &Errors::default())?.into_response();
    }
    match form.checked() {
        Ok(draft) => {
            store::change(cx, id, &draft)?;
            log::info!("question changed", question = id, by = staff.name);
            done(&session, &format!("“{}” was changed.", draft.text))
        }
        Err(errors) => (StatusCode::UNPROCESSABLE_ENTITY, shown(&form, &errors)?).into_response(),
    }
}

#[derive(Template)]
#[template(path = "admin/delete.html")]
struct DeletePage<'a> {
    site: String,
    frame: Frame<'a>,
    question: &'a Question,
    choices: usize,
    votes: i64,
}

#[view(get, "/admin/questions/{id}/delete", middleware = [staff_only])]
pub fn delete_form(cx: &Context, staff: Staff, csrf: Csrf, Path(id): Path<i64>) -> Result<Html> {
    let question = store::find(cx, id)?;
    let choices = store::choices(cx, id)?;
    let page = DeletePage {
        site: site(cx),
        frame: Frame {
            staff: &staff,
            csrf: &csrf,
        },
        question: &question,
        choices: choices.len(),
        votes: choices.iter().map(|choice| choice.votes).sum(),
    };
    Ok(Html(page.render()?))
}

#[view(post, "/admin/questions/{id}/delete", atomic, middleware = [staff_only])]
pub fn delete(
    cx: &Context,
    staff: Staff,
    session: Session,
    Path(id): Path<i64>,
    _: Protected,
) -> Result<Response> {
    let question = store::find(cx, id)?;
    store::delete(cx, id)?;
    log::info!("question deleted", question = id, by = staff.name);
    done(&session, &format!("“{}” was deleted.", question.text))
}

/// Redirects to the list of questions, which shows the notice once.
fn done(session: &Session, notice: &str) -> Result<Response> {
    session.set("notice", notice)?;
    Redirect::see_other(HOME).into_response()
}
