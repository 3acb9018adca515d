//! The table of all measurements, as Markdown.

use crate::rows::{Figure, Outcome, Row, Sample, Target};
use crate::statistics::Spread;

/// Prints the rows.
pub(crate) fn print(rows: &[(&Row, Outcome)]) {
    println!("| Amphi / other | Amphi | CPU | other | CPU | ratio | target | |");
    println!("|---|---|---|---|---|---|---|---|");
    for (row, outcome) in rows {
        println!("{}", line(row.name, row.unit, row.target, outcome));
    }
}

fn line(name: &str, unit: &str, target: Target, outcome: &Outcome) -> String {
    let samples = match outcome {
        Ok(samples) => samples,
        Err(why) => {
            let why = format!("{why:#}").replace('\n', " ");
            return format!("| {name} | | | | | | | skipped: {why} |");
        }
    };
    let ours: Vec<Figure> = samples.iter().map(|sample| sample.ours).collect();
    let others: Vec<Figure> = samples.iter().filter_map(|sample| sample.other).collect();
    let value = |figures: &[Figure]| Spread::of(figures.iter().map(|figure| figure.value));
    let cpu = |figures: &[Figure]| Spread::of(figures.iter().filter_map(|figure| figure.cpu_us));
    let ratio = |sample: &Sample| Some(sample.ours.value / sample.other?.value);
    let ratio = match target {
        Target::Beside => None,
        _ => Spread::of(samples.iter().filter_map(ratio)),
    };
    let (wanted, met) = match target {
        Target::RatioAtLeast(least) => (
            format!("≥ {least}"),
            ratio.map(|ratio| ratio.median >= least),
        ),
        Target::RatioAtMost(most) => (format!("≤ {most}"), ratio.map(|ratio| ratio.median <= most)),
        Target::AtMost(most) => (
            format!("≤ {most} {unit}"),
            value(&ours).map(|ours| ours.median <= most),
        ),
        Target::SameWork | Target::Beside => (String::new(), None),
    };
    let met = match met {
        Some(true) => "met",
        Some(false) => "**missed**",
        None => "",
    };
    let cells = [
        shown(value(&ours), unit),
        shown(cpu(&ours), "µs"),
        shown(value(&others), unit),
        shown(cpu(&others), "µs"),
        shown(ratio, ""),
    ];
    format!("| {name} | {} | {wanted} | {met} |", cells.join(" | "))
}

/// Median, minimum and maximum as text. Empty where nothing was measured.
fn shown(spread: Option<Spread>, unit: &str) -> String {
    let Some(Spread { median, min, max }) = spread else {
        return String::new();
    };
    let space = match unit {
        "" | "/s" => "",
        _ => " ",
    };
    let [median, min, max] = [median, min, max].map(digits);
    format!("{median}{space}{unit} ({min} – {max})")
}

/// A figure as text, with at least three digits.
fn digits(figure: f64) -> String {
    // The limits are those of the rounded figures: 99.96 is shown as `100`, not as `100.0`.
    match figure {
        999.5.. => {
            let whole = figure.round() as u64;
            let (millions, thousands, ones) =
                (whole / 1_000_000, whole / 1_000 % 1_000, whole % 1_000);
            match millions {
                0 => format!("{thousands},{ones:03}"),
                _ => format!("{millions},{thousands:03},{ones:03}"),
            }
        }
        99.95.. => format!("{figure:.0}"),
        9.995.. => format!("{figure:.1}"),
        _ => format!("{figure:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(pairs: &[(f64, f64, f64, f64)]) -> Outcome {
        let figure = |value, cpu_us| Figure {
            value,
            cpu_us: Some(cpu_us),
        };
        let sample = |&(ours, our_cpu, other, other_cpu): &(f64, f64, f64, f64)| {
            Sample::pair(figure(ours, our_cpu), figure(other, other_cpu))
        };
        Ok(pairs.iter().map(sample).collect())
    }

    #[test]
    fn a_line_has_rates_and_the_cpu_time_of_each() {
        let samples = samples(&[(2000.0, 30.0, 4000.0, 9.0), (3000.0, 34.0, 5000.0, 11.0)]);
        assert_eq!(
            line("a / b", "/s", Target::RatioAtLeast(0.6), &samples),
            "| a / b | 2,500/s (2,000 – 3,000) | 32.0 µs (30.0 – 34.0) | 4,500/s (4,000 – 5,000) | 10.0 µs (9.00 – 11.0) \
             | 0.55 (0.50 – 0.60) | ≥ 0.6 | **missed** |"
        );
    }

    #[test]
    fn a_ratio_is_shown_where_both_do_the_same_work() {
        let samples = samples(&[(3.0, 1.0, 2.0, 1.0)]);
        let same = line("a", "/s", Target::SameWork, &samples);
        assert!(same.ends_with("| 1.50 (1.50 – 1.50) |  |  |"), "{same}");
        let beside = line("a", "/s", Target::Beside, &samples);
        assert!(
            beside.ends_with("| 1.00 µs (1.00 – 1.00) |  |  |  |"),
            "{beside}"
        );
    }

    #[test]
    fn figures_without_a_peer_have_empty_cells() {
        let samples = Ok(vec![Sample::alone(30.0), Sample::alone(50.0)]);
        assert_eq!(
            line("a", "ms", Target::AtMost(40.0), &samples),
            "| a | 40.0 ms (30.0 – 50.0) |  |  |  |  | ≤ 40 ms | met |"
        );
    }

    #[test]
    fn a_row_that_was_not_measured_says_why() {
        let why = Err(anyhow::anyhow!("no wrk\nhere"));
        assert_eq!(
            line("a", "/s", Target::Beside, &why),
            "| a | | | | | | | skipped: no wrk here |"
        );
    }

    #[test]
    fn figures_have_three_digits() {
        let figures = [
            0.5,
            9.994,
            9.996,
            99.94,
            99.96,
            999.4,
            999.6,
            56_954.3,
            1_234_567.0,
        ];
        let shown = [
            "0.50",
            "9.99",
            "10.0",
            "99.9",
            "100",
            "999",
            "1,000",
            "56,954",
            "1,234,567",
        ];
        assert_eq!(figures.map(digits), shown);
    }
}
