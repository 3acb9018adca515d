//! A program and what was seen of it, as text for people.

use std::fmt;

use super::program::{Client, Does, Part, Program, Shape, Step};
use super::run::{Note, Seen, Told};

/// A step that takes longer than this, in seconds, is shown with its time.
const LONG_S: f64 = 0.2;

/// A program with what its steps told.
pub struct Shown<'a> {
    pub program: &'a Program,
    pub seen: Option<&'a Seen>,
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shape {
            workers,
            workers_max,
            loops,
            in_flight_max,
            connections,
            readers,
            ..
        } = &self.program.shape;
        writeln!(
            f,
            "workers {workers}..{workers_max}, loops {loops}, places {in_flight_max}, connections {connections}, readers {readers}"
        )?;
        for (number, request) in self.program.requests.iter().enumerate() {
            let client = match request.client {
                Client::Stays => String::new(),
                other => format!(", client {other:?}"),
            };
            let reply = self.seen.map(|seen| &seen.replies[number]);
            let reply = reply.map_or_else(String::new, |reply| {
                let status = reply
                    .status
                    .map_or("no answer".to_owned(), |status| status.to_string());
                let transaction = reply
                    .transaction
                    .as_deref()
                    .map_or_else(String::new, |fate| format!(", {fate}"));
                format!(
                    " → {status} after {:?}{transaction} {}",
                    reply.took, reply.why
                )
            });
            writeln!(
                f,
                "request {number} after {} ms{client}{reply}",
                request.delay_ms
            )?;
            self.part(f, &request.part, true, 1)?;
        }
        Ok(())
    }
}

impl Shown<'_> {
    /// Shows a view and its middleware. The recursion is as deep as calls are nested.
    fn part(
        &self,
        f: &mut fmt::Formatter<'_>,
        part: &Part,
        is_request: bool,
        depth: usize,
    ) -> fmt::Result {
        let pad = "  ".repeat(depth);
        let all = self.program.shape.around(is_request);
        for (place, steps) in &part.around {
            let name = all
                .get(*place)
                .map_or_else(String::new, |around| around.header());
            writeln!(f, "{pad}middleware {name}")?;
            self.steps(f, steps, depth + 1)?;
        }
        writeln!(f, "{pad}view {}", part.view.path())?;
        self.steps(f, &part.steps, depth + 1)
    }

    fn steps(&self, f: &mut fmt::Formatter<'_>, steps: &[Step], depth: usize) -> fmt::Result {
        for step in steps {
            let pad = "  ".repeat(depth);
            let must = if step.must { "must " } else { "" };
            let name = match &step.does {
                Does::Block(_) => "block".to_owned(),
                Does::Dropped(_) => "block, dropped".to_owned(),
                Does::Pin(_) => "pin".to_owned(),
                Does::Stream { drain: true, .. } => "stream, read to its end".to_owned(),
                Does::Stream { drain: false, .. } => "stream, left".to_owned(),
                Does::Join(_) => "join".to_owned(),
                Does::Race(_) => "race".to_owned(),
                Does::Call(_) => "call".to_owned(),
                Does::Publish(_) => "publish".to_owned(),
                other => format!("{other:?}").to_lowercase(),
            };
            writeln!(f, "{pad}{} {must}{name}{}", step.id, self.told(step))?;
            match &step.does {
                Does::Call(part) => self.part(f, part, false, depth + 1)?,
                Does::Publish(steps) => self.steps(f, steps, depth + 1)?,
                _ => self.steps(f, step.inner(), depth + 1)?,
            }
        }
        Ok(())
    }

    /// A step's notes in the log: the lines in which it began and ended, and what it told.
    fn told(&self, step: &Step) -> String {
        let Some(seen) = self.seen else {
            return String::new();
        };
        let long = |note: &Note| match &note.ended {
            Some((_, at, _)) if at - note.began.1 > LONG_S => {
                format!(" in {:.1} s", at - note.began.1)
            }
            _ => String::new(),
        };
        let text = |note: &Note| match &note.ended {
            None => format!(" [{}..] no end", note.began.0),
            Some((end, _, Told::Ok(text))) => {
                format!(" [{}..{end}]{} {:.60}", note.began.0, long(note), text)
            }
            Some((end, _, Told::Failed(kind, text))) => {
                format!(
                    " [{}..{end}]{} {kind}: {text:.150}",
                    note.began.0,
                    long(note)
                )
            }
        };
        let notes = seen.notes.get(&step.id).into_iter().flatten();
        let row = seen
            .rows
            .get(&step.id)
            .map_or_else(String::new, |count| format!(" (rows: {count})"));
        notes.map(text).collect::<String>() + &row
    }
}
