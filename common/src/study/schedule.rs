//! The learning rate over rounds (specification §11).

/// Warm-up, then cosine: linear from 0 to `base` at index `warmup - 1`, `base` again at `warmup`, 0 at `end`.
///
/// `index` counts from 1. With `warmup` 0 the cosine starts at once; past `end` the rate stays 0, and a warm-up that never
/// ends leaves no cosine.
pub fn warmup_cosine(base: f64, warmup: u32, end: u32, index: u32) -> f64 {
    if index < warmup {
        return base * f64::from(index) / f64::from(warmup - 1);
    }
    if warmup >= end {
        return base;
    }
    let done = f64::from(index - warmup) / f64::from(end - warmup);
    base * 0.5 * (1.0 + (std::f64::consts::PI * done.min(1.0)).cos())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::shared_file;

    #[test]
    fn the_rate_follows_the_reference_schedules() {
        let cases = [
            ("g_lr_small.csv", 1e-3, 5, 20),
            ("g_lr_code_default.csv", 1e-4, 100, 2000),
            ("g_lr_paper_50_warmup.csv", 4e-4, 50, 2000),
        ];
        for (file, base, warmup, end) in cases {
            let Some(bytes) = shared_file(&format!("golden/{file}")) else { return };
            let text = String::from_utf8(bytes).unwrap();
            for line in text.lines().skip(1) {
                let columns: Vec<f64> = line.split(',').map(|number| number.parse().unwrap()).collect();
                let rate = warmup_cosine(base, warmup, end, columns[1] as u32);
                assert!((rate - columns[3]).abs() <= 1e-15, "{file}: {line}: {rate}");
            }
        }
    }

    #[test]
    fn degenerate_schedules_stay_finite() {
        assert_eq!(warmup_cosine(1.0, 0, 2, 1), 0.5);
        assert_eq!(warmup_cosine(1.0, 1, 1, 1), 1.0);
        assert_eq!(warmup_cosine(1.0, 5, 3, 2), 0.5);
        assert_eq!(warmup_cosine(1.0, 0, 2, 9), 0.0);
    }
}
