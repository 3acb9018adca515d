//! Simulated weather stations. Each report takes about 100 milliseconds.

use amphi_sdk::prelude::*;

const SKIES: [&str; 5] = ["clear", "fair", "cloudy", "rain", "fog"];

/// The report of one station.
#[derive(Debug, PartialEq, Serialize)]
struct Report {
    city: String,
    celsius: i32,
    sky: &'static str,
}

#[view(get, "/{city}")]
async fn report(cx: &Context, Path(city): Path<String>) -> Json<Report> {
    let seed = seed(&city);
    cx.sleep(Duration::from_millis(85 + u64::from(seed % 25)))
        .await;
    let celsius = i32::try_from(seed % 38).unwrap_or(0) - 8;
    Json(Report {
        celsius,
        sky: SKIES[seed as usize % SKIES.len()],
        city,
    })
}

/// A number made from the name of the city, so a city always has the same weather.
fn seed(city: &str) -> u32 {
    city.bytes().fold(17, |seed: u32, byte| {
        seed.wrapping_mul(31).wrapping_add(byte.into())
    }) >> 3
}

views![report];

#[cfg(test)]
mod tests {
    use super::*;
    use amphi_sdk::testing::{App, get};

    #[test]
    fn a_city_has_its_weather() {
        let app = App::new();
        let first = app.call::<report>(get("/Oslo"));
        assert_eq!(first.status(), StatusCode::OK);
        assert!(
            first.text().contains(r#""city":"Oslo""#),
            "{}",
            first.text()
        );
        assert_eq!(app.call::<report>(get("/Oslo")).text(), first.text());
    }
}
