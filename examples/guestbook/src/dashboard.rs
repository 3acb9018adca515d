//! The dashboard: an async view that asks twelve slow weather stations at the same time.

use crate::entries;
use crate::layout::{Section, page};
use amphi_sdk::prelude::*;
use maud::{Markup, html};
use std::time::Instant;

/// The dashboard sends one outbound request for each city. A request takes about 100 milliseconds.
const CITIES: [&str; 12] = [
    "Accra", "Berlin", "Dublin", "Hanoi", "Lima", "Lisbon", "Nairobi", "Oslo", "Quito", "Seoul",
    "Tunis", "Vienna",
];

/// The fields of a weather station's report that the dashboard shows.
#[derive(Deserialize)]
struct Report {
    celsius: i32,
    sky: String,
}

/// The report of one station, or the error of its request, and how long the request took.
struct Answer {
    city: &'static str,
    report: Result<Report>,
    took: Duration,
}

#[view(get, "/dashboard")]
pub async fn show(cx: &Context) -> Result<Markup> {
    let start = Instant::now();
    let (answers, count) = join!(
        join_all(CITIES.map(|city| ask(cx, city))),
        entries::count(cx),
    );
    let together = start.elapsed();
    let sum: Duration = answers.iter().map(|answer| answer.took).sum();
    let slowest = answers
        .iter()
        .map(|answer| answer.took)
        .max()
        .unwrap_or_default();

    let content = html! {
        h1 { "Dashboard" }
        dl.figures {
            (figure("All together", together))
            (figure("Slowest alone", slowest))
            (figure("One after the other", sum))
            div { dt { "Entries" } dd { (count?) } }
        }
        h2 { (CITIES.len()) " stations, asked at once" }
        ul.stations {
            @for answer in &answers { (station(answer, slowest)) }
        }
    };
    Ok(page(cx, Section::Dashboard, "Dashboard", content))
}

/// Asks one station. An error becomes part of the station's answer, so the other stations are shown all the same.
async fn ask(cx: &asynch::Context, city: &'static str) -> Answer {
    let start = Instant::now();
    let report = report(cx, city).await;
    if let Err(error) = &report {
        log::warn!("no report from {city}: {error}");
    }
    Answer {
        city,
        report,
        took: start.elapsed(),
    }
}

async fn report(cx: &asynch::Context, city: &str) -> Result<Report> {
    let request = cx
        .http()
        .get(format!("/weather/{city}"))
        .timeout(Duration::from_secs(2));
    request.send().await?.error_for_status()?.json()
}

fn figure(label: &str, duration: Duration) -> Markup {
    html! {
        div { dt { (label) } dd { (duration.as_millis()) span { " ms" } } }
    }
}

fn station(answer: &Answer, slowest: Duration) -> Markup {
    let share = 100 * answer.took.as_micros() / slowest.as_micros().max(1);
    html! {
        li {
            strong { (answer.city) }
            @match &answer.report {
                Ok(report) => span { (report.celsius) " °C, " (report.sky) },
                Err(_) => span.problem { "no answer" },
            }
            span.bar aria-hidden="true" { span style={ "width: " (share) "%" } {} }
            span.took { (answer.took.as_millis()) " ms" }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use amphi_sdk::http::ErrorKind;
    use amphi_sdk::log::Level;
    use amphi_sdk::testing::{App, failure, get, reply};

    const RAIN: &str = r#"{"city":"Oslo","celsius":-4,"sky":"rain"}"#;

    #[test]
    fn every_station_is_asked() {
        let app = App::new()
            .migrations("migrations")
            .on_get("/weather/*", reply(RAIN));
        let response = app.call::<show>(get("/dashboard"));
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.text().matches("-4 °C, rain").count(), CITIES.len());
        assert_eq!(app.sent().len(), CITIES.len());
    }

    #[test]
    fn a_silent_station_does_not_hide_the_others() {
        let app = App::new()
            .migrations("migrations")
            .on_get("/weather/Oslo", failure(ErrorKind::Timeout))
            .on_get("/weather/*", reply(RAIN));
        let response = app.call::<show>(get("/dashboard"));
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.text().matches("no answer").count(), 1);
        assert_eq!(app.logs()[0].level, Level::Warn);
    }
}
