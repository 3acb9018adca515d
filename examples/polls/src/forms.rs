//! The form of a question: how it is read, how `garde` checks it, and the errors that the page shows beside the fields.

use crate::store::{Choice, Question};
use amphi_sdk::prelude::*;
use garde::Validate;
use std::collections::HashSet;
use time::macros::format_description;
use time::{OffsetDateTime, PrimitiveDateTime, UtcOffset};

/// Limit for the characters of a question or an answer. The tables check the same limit.
pub const TEXT_MAX: usize = 200;
const CHOICES_MIN: usize = 2;
const CHOICES_MAX: usize = 50;

/// What a browser sends. Each row for an answer has a `choice_id` and a `choice_text`, so these two occur repeatedly.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Sent {
    text: String,
    pub_date: String,
    choice_id: Vec<String>,
    choice_text: Vec<String>,
    /// The ids of the answers whose box “Remove” is ticked.
    remove: Vec<i64>,
    /// The value of the button that was pressed: `save` or `rows`.
    action: String,
}

impl Sent {
    /// Whether the user asks for more empty rows, instead of saving the form.
    pub fn wants_rows(&self) -> bool {
        self.action == "rows"
    }
}

/// The form of one question, as the user has filled it in.
#[derive(Clone, Debug, Default, Validate)]
pub struct QuestionForm {
    #[garde(custom(line("Please write the question.")))]
    pub text: String,
    /// The time in UTC, in the format of `<input type="datetime-local">`.
    #[garde(custom(moment))]
    pub pub_date: String,
    #[garde(custom(enough), custom(distinct), dive)]
    pub choices: Vec<ChoiceForm>,
}

/// A row of the form, for one answer.
#[derive(Clone, Debug, Default, Validate)]
pub struct ChoiceForm {
    /// None for a new answer.
    #[garde(skip)]
    pub id: Option<i64>,
    #[garde(if(cond = self.counts(), custom(line("Please write the answer, or tick “Remove”."))))]
    pub text: String,
    #[garde(skip)]
    pub remove: bool,
}

impl ChoiceForm {
    /// Whether the row is an answer once the form is saved. A removed answer and an empty new row are not.
    fn counts(&self) -> bool {
        !self.remove && (self.id.is_some() || !self.text.is_empty())
    }
}

/// A rule for `garde`: a text of one line that is not empty.
fn line(when_empty: &'static str) -> impl FnOnce(&str, &()) -> garde::Result {
    move |text, _| match text.chars().count() {
        0 => Err(garde::Error::new(when_empty)),
        length if length > TEXT_MAX => Err(garde::Error::new(format!(
            "At most {TEXT_MAX} characters, please: these are {length}."
        ))),
        _ if text.contains(char::is_control) => {
            Err(garde::Error::new("Please leave out control characters."))
        }
        _ => Ok(()),
    }
}

fn moment(text: &str, (): &()) -> garde::Result {
    match (text, parse(text)) {
        (_, Some(_)) => Ok(()),
        ("", None) => Err(garde::Error::new("Please choose a date and a time.")),
        (_, None) => Err(garde::Error::new(
            "Please write the date and the time as 2026-11-28T18:30.",
        )),
    }
}

fn enough(choices: &[ChoiceForm], (): &()) -> garde::Result {
    match choices.iter().filter(|choice| choice.counts()).count() {
        ..CHOICES_MIN => Err(garde::Error::new(format!(
            "A question needs at least {CHOICES_MIN} answers."
        ))),
        CHOICES_MIN..=CHOICES_MAX => Ok(()),
        _ => Err(garde::Error::new(format!(
            "A question has at most {CHOICES_MAX} answers."
        ))),
    }
}

fn distinct(choices: &[ChoiceForm], (): &()) -> garde::Result {
    let mut seen = HashSet::new();
    for choice in choices.iter().filter(|choice| choice.counts()) {
        if !choice.text.is_empty() && !seen.insert(choice.text.to_lowercase()) {
            return Err(garde::Error::new(format!(
                "The answer “{}” is there twice.",
                choice.text
            )));
        }
    }
    Ok(())
}

/// Reads the time that a browser sends, with or without seconds. SQLite and PostgreSQL both store years 1900 to 9998.
fn parse(text: &str) -> Option<OffsetDateTime> {
    let format = format_description!(
        version = 2,
        "[year]-[month]-[day]T[hour]:[minute][optional [:[second]]]"
    );
    let moment = PrimitiveDateTime::parse(text, format).ok()?.assume_utc();
    (1900..=9998).contains(&moment.year()).then_some(moment)
}

/// Formats a time for `<input type="datetime-local">`, in UTC.
fn written(moment: OffsetDateTime) -> String {
    let format = format_description!(version = 2, "[year]-[month]-[day]T[hour]:[minute]");
    moment
        .to_offset(UtcOffset::UTC)
        .format(format)
        .expect("every moment has these parts")
}

/// A question that has been checked.
#[derive(Debug)]
pub struct Draft {
    pub text: String,
    pub pub_date: OffsetDateTime,
    /// The id and the text of each answer that stays.
    pub kept: Vec<(i64, String)>,
    pub added: Vec<String>,
    pub removed: Vec<i64>,
}

/// Error messages, each with the path of its field, such as `text` or `choices[2].text`.
#[derive(Debug, Default)]
pub struct Errors(Vec<(String, String)>);

impl Errors {
    /// The first error message of a field.
    pub fn of(&self, field: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(path, _)| path == field)
            .map(|(_, message)| message.as_str())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<garde::Report> for Errors {
    fn from(report: garde::Report) -> Self {
        let errors = report
            .iter()
            .map(|(path, error)| (path.to_string(), error.message().to_owned()));
        Self(errors.collect())
    }
}

impl QuestionForm {
    /// The form for a new question, with `now` as its time of publication.
    pub fn empty(now: OffsetDateTime) -> Self {
        Self {
            pub_date: written(now),
            ..Self::default()
        }
    }

    pub fn of(question: &Question, choices: &[Choice]) -> Self {
        let choices = choices.iter().map(|choice| ChoiceForm {
            id: Some(choice.id),
            text: choice.text.clone(),
            remove: false,
        });
        Self {
            text: question.text.clone(),
            pub_date: written(question.pub_date),
            choices: choices.collect(),
        }
    }

    /// Reads what the browser has sent, without surrounding white space.
    pub fn read(sent: Sent) -> Result<Self> {
        if sent.choice_id.len() != sent.choice_text.len() {
            return Err(Error::bad_request(
                "Each answer of the form has an id and a text.",
            ));
        }
        let mut choices = Vec::new();
        for (id, text) in sent.choice_id.iter().zip(&sent.choice_text) {
            let id =
                match id.as_str() {
                    "" => None,
                    id => Some(id.parse().map_err(|_| {
                        Error::bad_request("An answer of the form has no valid id.")
                    })?),
                };
            choices.push(ChoiceForm {
                id,
                text: text.trim().to_owned(),
                remove: id.is_some_and(|id| sent.remove.contains(&id)),
            });
        }
        Ok(Self {
            text: sent.text.trim().to_owned(),
            pub_date: sent.pub_date.trim().to_owned(),
            choices,
        })
    }

    /// Adds empty rows for new answers.
    pub fn with_rows(mut self, count: usize) -> Self {
        let rows = self.choices.len() + count;
        self.choices.resize_with(rows, ChoiceForm::default);
        self
    }

    /// Checks the form. Returns the question, or the errors.
    pub fn checked(&self) -> Result<Draft, Errors> {
        self.validate()?;
        let mut draft = Draft {
            text: self.text.clone(),
            pub_date: parse(&self.pub_date).expect("the rule of the field has parsed it"),
            kept: Vec::new(),
            added: Vec::new(),
            removed: Vec::new(),
        };
        for choice in &self.choices {
            match choice.id {
                Some(id) if choice.remove => draft.removed.push(id),
                Some(id) => draft.kept.push((id, choice.text.clone())),
                None if choice.counts() => draft.added.push(choice.text.clone()),
                None => {}
            }
        }
        Ok(draft)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(text: &str, pub_date: &str, choices: &[(Option<i64>, &str, bool)]) -> QuestionForm {
        let choices = choices.iter().map(|&(id, text, remove)| ChoiceForm {
            id,
            text: text.into(),
            remove,
        });
        QuestionForm {
            text: text.into(),
            pub_date: pub_date.into(),
            choices: choices.collect(),
        }
    }

    const NEW: [(Option<i64>, &str, bool); 2] = [(None, "Yes", false), (None, "No", false)];

    fn wrong(form: &QuestionForm, field: &str) -> String {
        let errors = form.checked().expect_err("something is wrong");
        errors.of(field).unwrap_or_default().to_owned()
    }

    #[test]
    fn each_field_has_its_rules() {
        let when = "2026-11-28T18:30";
        assert!(form("Why?", when, &NEW).checked().is_ok());
        assert!(form("Why?", "2026-11-28T18:30:59", &NEW).checked().is_ok());
        assert!(form(&"é".repeat(200), when, &NEW).checked().is_ok());

        let empty = form("", "", &[]);
        assert_eq!(wrong(&empty, "text"), "Please write the question.");
        assert_eq!(
            wrong(&empty, "pub_date"),
            "Please choose a date and a time."
        );
        assert_eq!(
            wrong(&empty, "choices"),
            "A question needs at least 2 answers."
        );
        let long = form(&"é".repeat(201), when, &NEW);
        assert_eq!(
            wrong(&long, "text"),
            "At most 200 characters, please: these are 201."
        );
        let control = form("Why\0?", when, &NEW);
        assert_eq!(
            wrong(&control, "text"),
            "Please leave out control characters."
        );
        for wrong_date in [
            "tomorrow",
            "2026-13-01T00:00",
            "0000-01-01T00:00",
            "2026-11-28",
        ] {
            let message = wrong(&form("Why?", wrong_date, &NEW), "pub_date");
            assert!(
                message.starts_with("Please write the date"),
                "{wrong_date}: {message}"
            );
        }
    }

    #[test]
    fn rows_are_answers_when_something_is_in_them() {
        let when = "2026-11-28T18:30";
        let draft = form(
            "Why?",
            when,
            &[
                (Some(7), "Yes", false),
                (Some(8), "", true),
                (None, "Maybe", false),
                (None, "", false),
            ],
        );
        let draft = draft.checked().expect("it is right");
        assert_eq!(draft.kept, [(7, "Yes".to_owned())]);
        assert_eq!(draft.added, ["Maybe"]);
        assert_eq!(draft.removed, [8]);

        let emptied = form("Why?", when, &[(Some(7), "", false), (None, "No", false)]);
        assert_eq!(
            wrong(&emptied, "choices[0].text"),
            "Please write the answer, or tick “Remove”."
        );
        let removed = form("Why?", when, &[(Some(7), "Yes", true), (None, "No", false)]);
        assert_eq!(
            wrong(&removed, "choices"),
            "A question needs at least 2 answers."
        );
        let twice = form("Why?", when, &[(None, "Yes", false), (None, "yes", false)]);
        assert_eq!(wrong(&twice, "choices"), "The answer “yes” is there twice.");
    }
}
