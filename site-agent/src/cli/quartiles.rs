//! What a box plot shows of some numbers.

/// Quartiles and the reach of the whiskers, as Tukey draws them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Quartiles {
    /// The least value within 1.5 boxes of the box.
    pub low: f64,
    /// A quarter of the values lies below.
    pub first: f64,
    pub median: f64,
    /// A quarter of the values lies above.
    pub third: f64,
    /// The largest value within 1.5 boxes of the box.
    pub high: f64,
}

impl Quartiles {
    /// Of `values`, with straight lines between neighbours; `None` of no value.
    pub(super) fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let [first, median, third] =
            [quantile(&sorted, 0.25)?, quantile(&sorted, 0.5)?, quantile(&sorted, 0.75)?];
        let reach = 1.5 * (third - first);
        // The quartiles lie between values, so there is one on either side within reach.
        let low = sorted.iter().copied().find(|&value| value >= first - reach)?;
        let high = sorted.iter().copied().rfind(|&value| value <= third + reach)?;
        Some(Self { low, first, median, third, high })
    }

    /// Whether the whiskers do not reach `value`.
    pub(super) fn is_beyond(&self, value: f64) -> bool {
        !(self.low..=self.high).contains(&value)
    }
}

fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let place = share * (sorted.len().checked_sub(1)? as f64);
    let below = place as usize;
    let (low, high) = (*sorted.get(below)?, sorted.get(below + 1).or(sorted.last())?);
    Some(low + (high - low) * (place - below as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_lie_on_straight_lines_between_neighbours() {
        let even = Quartiles::of(&[1.0, 0.0, 0.5, 0.25]).unwrap();
        assert_eq!((even.first, even.median, even.third), (0.1875, 0.375, 0.625));
        assert_eq!((even.low, even.high), (0.0, 1.0));
        assert_eq!(Quartiles::of(&[]), None);
        let one = Quartiles::of(&[0.5]).unwrap();
        assert_eq!(one, Quartiles { low: 0.5, first: 0.5, median: 0.5, third: 0.5, high: 0.5 });
    }

    #[test]
    fn whiskers_end_at_the_last_value_within_one_and_a_half_boxes() {
        // The box is 0.25 to 0.5: whiskers may reach from -0.125 to 0.875.
        let quartiles = Quartiles::of(&[0.125, 0.25, 0.375, 0.5, 1.0]).unwrap();
        assert_eq!(quartiles, Quartiles { low: 0.125, first: 0.25, median: 0.375, third: 0.5, high: 0.5 });
        assert_eq!([0.125, 0.5, 1.0].map(|value| quartiles.is_beyond(value)), [false, false, true]);
    }
}
