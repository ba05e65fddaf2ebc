//! Norm clipping: an update that is far longer than the others is scaled down to a bound before it is averaged. Its weight in the
//! denominator stays, so clipping shortens a step and turns nobody else's up.

use super::coordinate_median::median;
use crate::ids::SiteId;
use crate::study::sections::Aggregation;

/// Fewest updates that say what is usual: of two, each would be the measure of the other.
const FEWEST: usize = 3;

/// How long an update may be and still count in full.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Clipping {
    /// As long as it likes.
    Off,
    /// So long.
    Norm(f64),
    /// So many times the median norm of the round's updates, where there are three or more of them.
    MedianFactor(f64),
}

/// An update that was scaled down.
#[derive(Clone, Debug, PartialEq)]
pub struct Clipped {
    /// Whose.
    pub site: SiteId,
    /// Its Euclidean norm.
    pub norm: f64,
    /// The norm that it counts with.
    pub bound: f64,
}

impl Clipping {
    /// What the study says.
    pub fn of(aggregation: &Aggregation) -> Self {
        match (aggregation.clip_norm, aggregation.clip_median_factor) {
            (Some(norm), _) => Self::Norm(norm),
            (None, factor) if factor > 0.0 => Self::MedianFactor(factor),
            (None, _) => Self::Off,
        }
    }

    /// Whether so few updates are enough for it to scale one of them down.
    pub const fn acts_on(self, updates: usize) -> bool {
        match self {
            Self::Off => false,
            Self::Norm(_) => true,
            Self::MedianFactor(_) => updates >= FEWEST,
        }
    }

    /// The bound for updates of these norms. A bound of 0 is none: where most sites have nothing to say, the one that has is heard.
    pub(super) fn bound(self, norms: &[f64]) -> Option<f64> {
        let bound = match self {
            Self::Off => return None,
            Self::Norm(norm) => norm,
            Self::MedianFactor(_) if !self.acts_on(norms.len()) => return None,
            Self::MedianFactor(factor) => factor * median(&mut norms.to_vec()),
        };
        Some(bound).filter(|&bound| bound > 0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregate::Method;
    use crate::aggregate::tests::Rounds;

    fn clipping(clipping: Clipping) -> Method {
        Method { clipping, ..Method::fedavg(1.0) }
    }

    #[test]
    fn the_bound_is_a_multiple_of_the_median_or_what_the_study_says() {
        assert_eq!(Clipping::MedianFactor(3.0).bound(&[1.0, 100.0, 2.0]), Some(6.0));
        assert_eq!(Clipping::MedianFactor(3.0).bound(&[1.0, 100.0, 2.0, 4.0]), Some(9.0));
        assert_eq!(Clipping::MedianFactor(3.0).bound(&[1.0, 100.0]), None, "two do not say what is usual");
        assert_eq!(
            Clipping::MedianFactor(3.0).bound(&[0.0, 0.0, 5.0]),
            None,
            "who has something to say is heard"
        );
        assert_eq!(Clipping::Norm(5.0).bound(&[1.0]), Some(5.0));
        assert_eq!(Clipping::Off.bound(&[1.0, 100.0, 2.0]), None);
    }

    /// Norms 5, 5 and 50, factor 2: the bound is 10 and c counts as (6, 8). With weights 1, 1 and 2, by hand:
    /// (3 + 3 + 2 · 6) / 4 = 4.5 and (4 + 4 + 2 · 8) / 4 = 6. The denominator stays 4.
    #[test]
    fn a_long_update_is_scaled_to_the_bound_and_said() {
        let mut rounds = Rounds::new(clipping(Clipping::MedianFactor(2.0)), &[0.0, 0.0]);
        let clipped =
            rounds.run(&[("a", 1.0, &[3.0, 4.0]), ("b", 1.0, &[3.0, 4.0]), ("c", 2.0, &[30.0, 40.0])]);
        assert_eq!(rounds.model(), [4.5, 6.0]);
        assert_eq!(clipped, [Clipped { site: "c".parse().unwrap(), norm: 50.0, bound: 10.0 }]);
        // And a round in which nobody is far from the others.
        let clipped =
            rounds.run(&[("a", 1.0, &[3.0, 4.0]), ("b", 1.0, &[3.0, 4.0]), ("c", 2.0, &[6.0, 8.0])]);
        assert_eq!(rounds.model(), [9.0, 12.0]);
        assert!(clipped.is_empty(), "{clipped:?}");
    }

    #[test]
    fn a_fixed_bound_holds_for_one_site_too() {
        let mut rounds = Rounds::new(clipping(Clipping::Norm(1.0)), &[0.0, 0.0]);
        let clipped = rounds.run(&[("a", 1.0, &[3.0, 4.0])]);
        assert_eq!(rounds.model(), [0.6, 0.8]);
        assert_eq!(clipped.len(), 1);
    }
}
