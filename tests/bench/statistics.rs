//! Statistics of repeated measurements.

/// Median, smallest and largest of several measurements.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// The spread of these measurements; `None` when there are none. The median of an even number of measurements is
    /// the mean of the middle two.
    pub(crate) fn of(measurements: impl IntoIterator<Item = f64>) -> Option<Spread> {
        let mut sorted: Vec<f64> = measurements.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = match sorted.len() % 2 {
            0 => f64::midpoint(sorted[middle - 1], sorted[middle]),
            _ => sorted[middle],
        };
        Some(Spread { median, min, max })
    }
}

/// The 99th percentile: the smallest value that at least 99 % of the values do not exceed. `None` when there are no
/// values.
pub(crate) fn p99<T: Ord + Copy>(values: &mut [T]) -> Option<T> {
    values.sort_unstable();
    let rank = (values.len() * 99).div_ceil(100);
    values.get(rank.checked_sub(1)?).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn median(measurements: &[f64]) -> Option<f64> {
        Spread::of(measurements.iter().copied()).map(|spread| spread.median)
    }

    #[test]
    fn the_median_of_an_odd_number_is_the_middle_one() {
        assert_eq!(median(&[7.0]), Some(7.0));
        assert_eq!(median(&[9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[5.0, 4.0, 100.0, 1.0, 3.0]), Some(4.0));
    }

    #[test]
    fn the_median_of_an_even_number_is_the_mean_of_the_middle_two() {
        assert_eq!(median(&[10.0, 20.0]), Some(15.0));
        assert_eq!(median(&[20.0, 10.0]), Some(15.0));
        assert_eq!(median(&[1.0, 100.0, 4.0, 2.0]), Some(3.0));
    }

    #[test]
    fn a_spread_has_the_smallest_and_the_largest() {
        let spread = Spread {
            median: 2.5,
            min: -1.0,
            max: 8.0,
        };
        assert_eq!(Spread::of([3.0, 8.0, -1.0, 2.0]), Some(spread));
    }

    #[test]
    fn no_measurements_have_no_statistics() {
        assert_eq!(Spread::of([]), None);
        assert_eq!(p99::<u32>(&mut []), None);
    }

    #[test]
    fn the_99th_percentile_leaves_out_one_in_a_hundred() {
        let mut hundred: Vec<u32> = (1..=100).rev().collect();
        assert_eq!(p99(&mut hundred), Some(99));
        let mut thousand: Vec<u32> = (1..=1000).rev().collect();
        assert_eq!(p99(&mut thousand), Some(990));
        assert_eq!(p99(&mut [3, 1, 2]), Some(3));
    }
}
