//! Momentum at the server (FedAvgM, Hsu et al. 2019): `u' = β u + Δ`, `w' = f32(w + η u')`, where Δ is the weighted mean of the
//! updates. The next round starts from `u'` as f32 holds it.

use super::chunk_sum::number;

/// Moves model and velocity by the mean, `sums / total`.
pub(super) fn step(
    model: &mut [[u8; 4]],
    velocity: &mut [[u8; 4]],
    sums: &[f64],
    total: f64,
    server_lr: f64,
    momentum: f64,
) {
    for ((weight, velocity), sum) in model.iter_mut().zip(velocity).zip(sums) {
        let moved = momentum * number(*velocity) + sum / total;
        *velocity = (moved as f32).to_le_bytes();
        *weight = ((number(*weight) + server_lr * moved) as f32).to_le_bytes();
    }
}

#[cfg(test)]
mod tests {
    use crate::aggregate::tests::Rounds;
    use crate::aggregate::{Method, Rule};

    /// Shares 3/4 and 1/4: the mean of 1 and 5 is 2, of −2 and 2 it is −1. With β = 1/2 and η = 1/2, by hand:
    ///
    /// | round | Δ | u | w |
    /// | --- | --- | --- | --- |
    /// | 0 | | 0 | 1 |
    /// | 1 | 2 | 2 | 2 |
    /// | 2 | −1 | 0 | 2 |
    /// | 3 | 2 | 2 | 3 |
    #[test]
    fn three_rounds_are_those_of_a_hand() {
        let method = Method { rule: Rule::ServerMomentum { momentum: 0.5 }, ..Method::fedavg(0.5) };
        let mut rounds = Rounds::new(method, &[1.0]);
        rounds.run(&[("a", 0.75, &[1.0]), ("b", 0.25, &[5.0])]);
        assert_eq!((rounds.model(), rounds.moment(0)), (vec![2.0], vec![2.0]));
        rounds.run(&[("a", 0.75, &[-2.0]), ("b", 0.25, &[2.0])]);
        assert_eq!((rounds.model(), rounds.moment(0)), (vec![2.0], vec![0.0]));
        rounds.run(&[("a", 0.75, &[1.0]), ("b", 0.25, &[5.0])]);
        assert_eq!((rounds.model(), rounds.moment(0)), (vec![3.0], vec![2.0]));
    }

    #[test]
    fn without_momentum_it_is_federated_averaging() {
        let sites: [(&str, f64, &[f32]); 2] = [("a", 0.7, &[0.1, -3.0]), ("b", 0.3, &[0.7, 2.0])];
        let method = Method { rule: Rule::ServerMomentum { momentum: 0.0 }, ..Method::fedavg(1.0) };
        let mut with = Rounds::new(method, &[0.5, 0.25]);
        let mut without = Rounds::new(Method::fedavg(1.0), &[0.5, 0.25]);
        with.run(&sites);
        without.run(&sites);
        assert_eq!(with.model(), without.model());
    }
}
