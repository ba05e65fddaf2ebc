//! Federated averaging (McMahan et al. 2017): `w' = f32(w + η · Σ w_s Δ_s / Σ w_s)`. FedProx (Li et al. 2020) is the same here:
//! what sets it apart is done at the sites.

use super::chunk_sum::number;

/// Begins each sum with `weight · Δ`: to the bit what adding it to nothing gives.
pub(super) fn begin(sums: &mut [f64], deltas: &[[u8; 4]], weight: f64) {
    for (sum, &delta) in sums.iter_mut().zip(deltas) {
        // Nothing and -0.0 are 0.0.
        *sum = 0.0 + weight * number(delta);
    }
}

/// Adds `weight · Δ` to each sum.
pub(super) fn add(sums: &mut [f64], deltas: &[[u8; 4]], weight: f64) {
    for (sum, &delta) in sums.iter_mut().zip(deltas) {
        *sum += weight * number(delta);
    }
}

/// Moves the model by the mean, `sums / total`, times the server's learning rate.
pub(super) fn step(model: &mut [[u8; 4]], sums: &[f64], total: f64, server_lr: f64) {
    for (weight, sum) in model.iter_mut().zip(sums) {
        *weight = ((number(*weight) + server_lr * sum / total) as f32).to_le_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::{add, begin};
    use crate::aggregate::Method;
    use crate::aggregate::tests::Rounds;

    /// Weights 3 and 1. By hand, η = 1/2: the mean of (1, 4) and (5, 0) is (2, 3), of (−2, 0) and (2, 8) it is (−1, 2);
    /// so (1, 0) becomes (2, 1.5) and then (1.5, 2.5).
    #[test]
    fn two_rounds_are_those_of_a_hand() {
        let mut rounds = Rounds::new(Method::fedavg(0.5), &[1.0, 0.0]);
        rounds.run(&[("a", 3.0, &[1.0, 4.0]), ("b", 1.0, &[5.0, 0.0])]);
        assert_eq!(rounds.model(), [2.0, 1.5]);
        rounds.run(&[("a", 3.0, &[-2.0, 0.0]), ("b", 1.0, &[2.0, 8.0])]);
        assert_eq!(rounds.model(), [1.5, 2.5]);
    }

    #[test]
    fn sums_begin_as_if_the_first_update_were_added_to_nothing() {
        let deltas = [0.0, -0.0, 1.0 / 3.0, -f32::MIN_POSITIVE].map(f32::to_le_bytes);
        // What was there before is overwritten.
        let (mut begun, mut added) = ([f64::NAN; 4], [0.0; 4]);
        begin(&mut begun, &deltas, 3.0);
        add(&mut added, &deltas, 3.0);
        assert_eq!(begun.map(f64::to_bits), added.map(f64::to_bits));
    }
}
