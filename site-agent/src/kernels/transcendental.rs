//! Exponentials and their kin as polynomials, so that loops over them are vectorised.

/// `exp(x)` for `x ≤ 0`, to about two units in the last place, and NaN for NaN; a polynomial, so that loops over it are vectorised
/// (range reduction and coefficients as in Moshier's Cephes, `expf`).
#[inline(always)]
pub(super) fn exp_of_negative(x: f32) -> f32 {
    // Below −87 the result is denormal: taken for e^−87, which is nothing beside 1. Not by `max`, which takes NaN for −87.
    let x = if x < -87.0 { -87.0 } else { x };
    // Adding and taking away 1.5 · 2²³ rounds to the nearest whole number.
    const ROUND: f32 = 12_582_912.0;
    let whole = (x * std::f32::consts::LOG2_E + ROUND) - ROUND;
    let r = x - whole * 0.693_359_4 - whole * -2.121_944_4e-4;
    let tail = [1.987_569_1e-4f32, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5]
        .into_iter()
        .fold(0.0, |sum, coefficient| sum * r + coefficient);
    let power = f32::from_bits(((whole as i32 + 127) as u32) << 23);
    (tail * r * r + r + 1.0) * power
}

/// `ln(1 + e)` for `0 ≤ e ≤ 1`: `2 artanh(e / (2 + e))`, whose argument is at most a third, as an odd polynomial.
#[inline(always)]
pub(super) fn log_one_plus(e: f32) -> f32 {
    let s = e / (2.0 + e);
    let square = s * s;
    let sum = [1.0f32 / 15.0, 1.0 / 13.0, 1.0 / 11.0, 1.0 / 9.0, 1.0 / 7.0, 1.0 / 5.0, 1.0 / 3.0]
        .into_iter()
        .fold(0.0, |sum, coefficient| sum * square + coefficient);
    2.0 * s + 2.0 * s * square * sum
}

/// The standard normal distribution, `Φ(x)`, and its density, `φ(x)`: `Φ` to 1.5e-7 (Abramowitz and Stegun, 7.1.26).
#[inline(always)]
pub(super) fn normal(x: f32) -> (f32, f32) {
    let exponential = exp_of_negative(-0.5 * x * x);
    let t = 1.0 / (1.0 + 0.327_591_1 * std::f32::consts::FRAC_1_SQRT_2 * x.abs());
    let sum = [1.061_405_4f32, -1.453_152, 1.421_413_8, -0.284_496_72, 0.254_829_6]
        .into_iter()
        .fold(0.0, |sum, coefficient| sum * t + coefficient);
    let tail = 0.5 * sum * t * exponential;
    let below = if x < 0.0 { tail } else { 1.0 - tail };
    (below, exponential * 0.398_942_3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponential_and_logarithm_are_good_to_a_few_last_places() {
        for step in 0..87_000 {
            let x = -(step as f32) / 1000.0;
            let (got, exact) = (exp_of_negative(x), f64::from(x).exp());
            assert!((f64::from(got) / exact - 1.0).abs() < 3e-7, "exp({x}): {got} against {exact}");
            let (got, exact) = (log_one_plus(got), f64::from(got).ln_1p());
            assert!((f64::from(got) / exact - 1.0).abs() < 3e-7, "ln(1 + exp({x})): {got} against {exact}");
        }
    }

    #[test]
    fn the_normal_distribution_is_good_to_its_stated_error() {
        // Φ at whole numbers, to twelve places.
        let known =
            [(0.0, 0.5), (1.0, 0.841_344_746_069), (2.0, 0.977_249_868_052), (-3.0, 0.001_349_898_032)];
        for (x, expected) in known {
            assert!((f64::from(normal(x).0) - expected).abs() < 2e-7, "{x}");
        }
        // Its slope is the density.
        for step in -600..600 {
            let x = step as f32 / 100.0;
            let slope = (f64::from(normal(x + 0.05).0) - f64::from(normal(x - 0.05).0)) / 0.1;
            assert!((slope - f64::from(normal(x).1)).abs() < 3e-4, "{x}");
        }
    }
}
