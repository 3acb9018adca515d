//! What was measured, as Markdown.

use crate::rows::{Outcome, Row, Sample, Target};

/// The rows.
pub(crate) fn print(rows: &[(&Row, Outcome)]) {
    println!("| Amphi / other | Amphi | other | ratio | target | |");
    println!("|---|---|---|---|---|---|");
    for (row, outcome) in rows {
        let samples = match outcome {
            Ok(samples) => samples,
            Err(why) => {
                let why = format!("{why:#}").replace('\n', " ");
                println!("| {} | | | | | skipped: {why} |", row.name);
                continue;
            }
        };
        let ours = Spread::of(samples.iter().map(|sample| sample.ours));
        let other = Spread::of(samples.iter().filter_map(|sample| sample.other));
        let ratio = |sample: &Sample| sample.other.map(|other| sample.ours / other);
        let ratio = Spread::of(samples.iter().filter_map(ratio));
        let (target, met) = match row.target {
            Target::AtLeast(least) => (
                format!("≥ {least}"),
                reached(&ratio, |ratio| ratio >= least),
            ),
            Target::AtMost(most) => (format!("≤ {most}"), reached(&ratio, |ratio| ratio <= most)),
            Target::NoMore(most) => {
                let unit = row.unit;
                (
                    format!("≤ {most} {unit}"),
                    reached(&ours, |ours| ours <= most),
                )
            }
        };
        println!(
            "| {} | {} | {} | {} | {target} | {} |",
            row.name,
            shown(&ours, row.unit),
            shown(&other, row.unit),
            shown(&ratio, ""),
            if met { "met" } else { "**missed**" }
        );
    }
}

/// The median, and how far the others are from it.
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Spread {
    /// None when there is nothing.
    fn of(figures: impl Iterator<Item = f64>) -> Option<Spread> {
        let mut figures: Vec<f64> = figures.collect();
        figures.sort_by(f64::total_cmp);
        Some(Spread {
            median: *figures.get(figures.len() / 2)?,
            min: *figures.first()?,
            max: *figures.last()?,
        })
    }
}

fn reached(spread: &Option<Spread>, enough: impl Fn(f64) -> bool) -> bool {
    spread.as_ref().is_some_and(|spread| enough(spread.median))
}

fn shown(spread: &Option<Spread>, unit: &str) -> String {
    let Some(Spread { median, min, max }) = spread else {
        return String::new();
    };
    let figure = |figure: f64| match figure {
        1000.0.. => {
            let whole = figure.round() as u64;
            format!("{},{:03}", whole / 1000, whole % 1000)
        }
        100.0.. => format!("{figure:.0}"),
        10.0.. => format!("{figure:.1}"),
        _ => format!("{figure:.2}"),
    };
    let space = if unit.is_empty() || unit == "/s" {
        ""
    } else {
        " "
    };
    format!(
        "{}{space}{unit} ({} – {})",
        figure(*median),
        figure(*min),
        figure(*max)
    )
}
