//! Adam at the server (Reddi et al. 2021, "Adaptive Federated Optimization", algorithm 2):
//! `m' = β₁ m + (1 − β₁) Δ`, `v' = β₂ v + (1 − β₂) Δ²`, `w' = f32(w + η m' / (√v' + τ))`, where Δ is the weighted mean of the
//! updates. As in the paper, neither moment is corrected for its start; both start from 0. The next round starts from the moments as
//! f32 holds them.

use super::chunk_sum::number;

/// What FedAdam is set by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FedAdam {
    /// β₁: what stays of the first moment from round to round.
    pub beta_1: f64,
    /// β₂: what stays of the second.
    pub beta_2: f64,
    /// τ: the larger, the less numbers that move little are sped up.
    pub tau: f64,
}

impl FedAdam {
    /// Moves model and moments by the mean, `sums / total`.
    pub(super) fn step(
        self,
        model: &mut [[u8; 4]],
        first: &mut [[u8; 4]],
        second: &mut [[u8; 4]],
        sums: &[f64],
        total: f64,
        server_lr: f64,
    ) {
        let Self { beta_1, beta_2, tau } = self;
        for (((weight, first), second), sum) in model.iter_mut().zip(first).zip(second).zip(sums) {
            let delta = sum / total;
            let m = beta_1 * number(*first) + (1.0 - beta_1) * delta;
            let v = beta_2 * number(*second) + (1.0 - beta_2) * delta * delta;
            *first = (m as f32).to_le_bytes();
            *second = (v as f32).to_le_bytes();
            *weight = ((number(*weight) + server_lr * m / (v.sqrt() + tau)) as f32).to_le_bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregate::tests::Rounds;
    use crate::aggregate::{Method, Rule};

    fn method(beta_1: f64, beta_2: f64, tau: f64, server_lr: f64) -> Method {
        let rule = Rule::FedAdam(FedAdam { beta_1, beta_2, tau });
        Method { rule, ..Method::fedavg(server_lr) }
    }

    /// Shares 3/4 and 1/4: the mean of 1 and 5 is 2, of 0 and −8 it is −2. With β₁ = 1/2, β₂ = 3/4, τ = 1, η = 1, by hand:
    ///
    /// | round | Δ | m | v | w |
    /// | --- | --- | --- | --- | --- |
    /// | 0 | | 0 | 0 | 1 |
    /// | 1 | 2 | 1 | 1 | 1 + 1/(1 + 1) = 1.5 |
    /// | 2 | −2 | −1/2 | 3/4 + 1 = 7/4 | 1.5 − 0.5/(√1.75 + 1) = 1.2847485 |
    #[test]
    fn two_rounds_are_those_of_a_hand() {
        let mut rounds = Rounds::new(method(0.5, 0.75, 1.0, 1.0), &[1.0]);
        rounds.run(&[("a", 0.75, &[1.0]), ("b", 0.25, &[5.0])]);
        assert_eq!((rounds.model(), rounds.moment(0), rounds.moment(1)), (vec![1.5], vec![1.0], vec![1.0]));
        rounds.run(&[("a", 0.75, &[0.0]), ("b", 0.25, &[-8.0])]);
        assert_eq!((rounds.moment(0), rounds.moment(1)), (vec![-0.5], vec![1.75]));
        let [weight] = rounds.model()[..] else { panic!("one number") };
        assert!((weight - 1.284_748_5).abs() < 1e-6, "{weight}");
    }

    #[test]
    fn a_number_that_never_moves_stays_and_one_that_moves_little_is_sped_up() {
        let mut rounds = Rounds::new(method(0.9, 0.99, 1e-3, 0.01), &[1.0, 1.0, 1.0]);
        rounds.run(&[("a", 1.0, &[0.0, 1e-3, 1e-1])]);
        let [still, little, much] = rounds.model()[..] else { panic!("three numbers") };
        assert_eq!(still, 1.0);
        // By hand: 0.01 · 1e-4 / (1e-4 + 1e-3) and 0.01 · 1e-2 / (1e-2 + 1e-3): a hundred times the delta moves ten times as far.
        assert!((little - 1.0 - 0.000_909_09).abs() < 1e-6, "{little}");
        assert!((much - 1.0 - 0.009_090_9).abs() < 1e-6, "{much}");
    }
}
