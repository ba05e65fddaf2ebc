//! t-SNE, exact (van der Maaten and Hinton, 2008): points of many dimensions in a plane, neighbours beside each other.
//!
//! Every pair is looked at, which is quick enough for [`MOST_POINTS`]. The same points and seed give the same bits on any
//! number of threads: each point's forces are summed by one task, in order. How far clusters lie from each other and how
//! large they are mean little in such a plane; who is whose neighbour means something.

use common::rng::{KeyedRng, Rng};
use rayon::prelude::*;

/// Points beyond which a map would take minutes and gigabytes.
pub const MOST_POINTS: usize = 2_000;

/// In the first quarter of the steps attraction is stronger by this, so that clusters find each other.
const EXAGGERATION: f64 = 12.0;
/// Shortest and longest memory of past steps: in the first quarter, and after it.
const MOMENTA: [f64; 2] = [0.5, 0.8];
/// Step for few points; for many it grows with their number, as in scikit-learn (Belkina et al., 2019).
const LEAST_RATE: f64 = 50.0;
/// Spread of the first places.
const FIRST_SPREAD: f64 = 1e-4;
/// Halvings of the search for a point's bandwidth.
const SEARCH_STEPS: usize = 64;

/// How a map is made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TsneSettings {
    /// About how many neighbours a point has; for few points a third of their number at most, and 1 at least.
    pub perplexity: f64,
    /// Steps of gradient descent.
    pub steps: usize,
    /// Of the first places.
    pub seed: u64,
}

/// A place in the plane for each point. Points are finite numbers, all of one length.
///
/// # Panics
/// When points differ in length: a mistake of the caller.
pub fn tsne(points: &[Vec<f32>], settings: &TsneSettings) -> Vec<[f64; 2]> {
    let n = points.len();
    assert!(points.windows(2).all(|pair| pair[0].len() == pair[1].len()), "points are of one space");
    let mut places = first_places(n, settings.seed);
    if n < 2 {
        return places;
    }
    let affinities = affinities(points, settings.perplexity);
    let mut descent = Descent::new(n);
    for step in 0..settings.steps {
        let early = step < settings.steps / 4;
        let (exaggeration, momentum) = if early { (EXAGGERATION, MOMENTA[0]) } else { (1.0, MOMENTA[1]) };
        let gradient = gradient(&places, &affinities, exaggeration);
        descent.step(&mut places, &gradient, momentum);
    }
    places
}

/// Normally distributed about the origin, by Box and Muller.
fn first_places(n: usize, seed: u64) -> Vec<[f64; 2]> {
    let mut rng = KeyedRng::new(seed).purpose("t-sne").rng();
    let mut place = || {
        // Above zero: its logarithm is finite.
        let uniform = 1.0 - rng.random::<f64>();
        let radius = FIRST_SPREAD * (-2.0 * uniform.ln()).sqrt();
        let turn = std::f64::consts::TAU * rng.random::<f64>();
        [radius * turn.cos(), radius * turn.sin()]
    };
    (0..n).map(|_| place()).collect()
}

/// The affinity of each two points, `[n, n]`: symmetric, 0 on the diagonal, with the sum 1.
fn affinities(points: &[Vec<f32>], perplexity: f64) -> Vec<f64> {
    let n = points.len();
    let perplexity = perplexity.min((n - 1) as f64 / 3.0).max(1.0);
    let rows: Vec<Vec<f64>> = (0..n).into_par_iter().map(|i| neighbours(points, i, perplexity)).collect();
    let mut joint = vec![0.0; n * n];
    for (i, row) in rows.iter().enumerate() {
        for (j, &share) in row.iter().enumerate() {
            let half = share / (2 * n) as f64;
            joint[i * n + j] += half;
            joint[j * n + i] += half;
        }
    }
    joint
}

/// How the neighbourhood of point `i` is shared among the others: a Gaussian as wide as the perplexity demands.
fn neighbours(points: &[Vec<f32>], i: usize, perplexity: f64) -> Vec<f64> {
    let mut distances: Vec<f64> = points.iter().map(|point| squared_distance(&points[i], point)).collect();
    // The nearest gets exponent 0, so that one neighbour at least has a share however narrow the Gaussian is.
    let others = || (0..points.len()).filter(move |&j| j != i);
    let nearest = others().map(|j| distances[j]).fold(f64::INFINITY, f64::min);
    distances.iter_mut().for_each(|distance| *distance -= nearest);
    let mean = others().map(|j| distances[j]).sum::<f64>() / others().count() as f64;
    let (mut precision, mut low, mut high) = (if mean > 0.0 { 1.0 / mean } else { 1.0 }, 0.0, f64::INFINITY);
    let mut shares = Vec::new();
    for _ in 0..SEARCH_STEPS {
        let (found, entropy) = shares_of(&distances, i, precision);
        shares = found;
        if entropy > perplexity.ln() {
            low = precision;
        } else {
            high = precision;
        }
        precision = if high.is_finite() { (low + high) / 2.0 } else { 2.0 * precision };
    }
    shares
}

/// Shares that add up to 1, none for `i` itself, and their entropy in nats.
fn shares_of(distances: &[f64], i: usize, precision: f64) -> (Vec<f64>, f64) {
    let share = |(j, &distance): (usize, &f64)| if j == i { 0.0 } else { (-precision * distance).exp() };
    let mut shares: Vec<f64> = distances.iter().enumerate().map(share).collect();
    let sum: f64 = shares.iter().sum();
    shares.iter_mut().for_each(|share| *share /= sum);
    let mean: f64 = shares.iter().zip(distances).map(|(share, distance)| share * distance).sum();
    (shares, sum.ln() + precision * mean)
}

fn squared_distance(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum()
}

/// What the others do to a point.
struct Forces {
    attraction: [f64; 2],
    /// Before its division by the sum of all closenesses.
    repulsion: [f64; 2],
    closeness: f64,
}

/// The gradient of the divergence between the affinities and the closenesses in the plane.
fn gradient(places: &[[f64; 2]], affinities: &[f64], exaggeration: f64) -> Vec<[f64; 2]> {
    let n = places.len();
    let of = |i: usize| forces(i, places, &affinities[i * n..][..n]);
    let forces: Vec<Forces> = (0..n).into_par_iter().map(of).collect();
    let sum: f64 = forces.iter().map(|force| force.closeness).sum();
    let joined = |force: &Forces| {
        let axis = |axis: usize| 4.0 * (exaggeration * force.attraction[axis] - force.repulsion[axis] / sum);
        [axis(0), axis(1)]
    };
    forces.iter().map(joined).collect()
}

fn forces(i: usize, places: &[[f64; 2]], affinities: &[f64]) -> Forces {
    let mut forces = Forces { attraction: [0.0; 2], repulsion: [0.0; 2], closeness: 0.0 };
    for (j, (place, affinity)) in places.iter().zip(affinities).enumerate() {
        if i == j {
            continue;
        }
        let apart = [places[i][0] - place[0], places[i][1] - place[1]];
        let closeness = 1.0 / (1.0 + apart[0] * apart[0] + apart[1] * apart[1]);
        for (axis, apart) in apart.into_iter().enumerate() {
            forces.attraction[axis] += affinity * closeness * apart;
            forces.repulsion[axis] += closeness * closeness * apart;
        }
        forces.closeness += closeness;
    }
    forces
}

/// Gradient descent with momentum and a step of its own for each coordinate (Jacobs, 1988).
struct Descent {
    rate: f64,
    moves: Vec<[f64; 2]>,
    gains: Vec<[f64; 2]>,
}

impl Descent {
    fn new(n: usize) -> Self {
        let rate = (n as f64 / EXAGGERATION / 4.0).max(LEAST_RATE);
        Self { rate, moves: vec![[0.0; 2]; n], gains: vec![[1.0; 2]; n] }
    }

    fn step(&mut self, places: &mut [[f64; 2]], gradient: &[[f64; 2]], momentum: f64) {
        let state = self.moves.iter_mut().zip(&mut self.gains).zip(gradient);
        let coordinates = places.iter_mut().zip(state).flat_map(|(place, ((moved, gain), gradient))| {
            place.iter_mut().zip(moved).zip(gain).zip(gradient)
        });
        for (((place, moved), gain), gradient) in coordinates {
            // A coordinate that goes on in one direction goes faster.
            let goes_on = *gradient * *moved < 0.0;
            *gain = if goes_on { *gain + 0.2 } else { (0.8 * *gain).max(0.01) };
            *moved = momentum * *moved - self.rate * *gain * *gradient;
            *place += *moved;
        }
        centre(places);
    }
}

/// Only differences of places mean anything: the middle is kept at the origin.
fn centre(places: &mut [[f64; 2]]) {
    let n = places.len() as f64;
    let middle = [0, 1].map(|axis| places.iter().map(|place| place[axis]).sum::<f64>() / n);
    for place in places {
        *place = [place[0] - middle[0], place[1] - middle[1]];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: TsneSettings = TsneSettings { perplexity: 10.0, steps: 400, seed: 5 };
    const OF_EACH: usize = 30;

    /// Three clusters in eight dimensions, ten apart, each within a cube of side one.
    fn clusters() -> Vec<Vec<f32>> {
        let mut rng = KeyedRng::new(1).rng();
        let mut point = |cluster: usize| -> Vec<f32> {
            let corner = |axis: usize| if axis == cluster { 10.0 } else { 0.0 };
            (0..8).map(|axis| corner(axis) + rng.random::<f32>()).collect()
        };
        (0..3 * OF_EACH).map(|i| point(i / OF_EACH)).collect()
    }

    #[test]
    fn three_well_separated_clusters_stay_separated() {
        let places = tsne(&clusters(), &SETTINGS);
        let distance = |i: usize, j: usize| (places[i][0] - places[j][0]).hypot(places[i][1] - places[j][1]);
        let pairs = || (0..places.len()).flat_map(|i| (0..i).map(move |j| (i, j)));
        let apart = |&(i, j): &(usize, usize)| i / OF_EACH != j / OF_EACH;
        let nearest_foreign =
            pairs().filter(apart).map(|(i, j)| distance(i, j)).fold(f64::INFINITY, f64::min);
        for i in 0..places.len() {
            let others = (0..places.len()).filter(|&j| j != i);
            let nearest = others.map(|j| distance(i, j)).fold(f64::INFINITY, f64::min);
            assert!(nearest < nearest_foreign, "point {i}: {nearest} {nearest_foreign}");
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_bits_on_any_number_of_threads() {
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| tsne(&clusters(), &SETTINGS))
        };
        let bits =
            |places: Vec<[f64; 2]>| places.into_iter().map(|p| p.map(f64::to_bits)).collect::<Vec<_>>();
        let first = bits(on(1));
        assert_eq!(first, bits(on(3)));
        assert_ne!(first, bits(tsne(&clusters(), &TsneSettings { seed: 6, ..SETTINGS })));
    }

    #[test]
    fn affinities_are_symmetric_and_as_broad_as_the_perplexity() {
        let points = clusters();
        let shares = neighbours(&points, 4, 10.0);
        let entropy: f64 = shares.iter().filter(|share| **share > 0.0).map(|share| -share * share.ln()).sum();
        assert!((entropy.exp() - 10.0).abs() < 1e-6, "{}", entropy.exp());
        assert_eq!(shares[4], 0.0);
        let (n, joint) = (points.len(), affinities(&points, 10.0));
        assert!((joint.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        assert!((0..n * n).all(|pair| joint[pair] == joint[pair % n * n + pair / n]));
    }

    #[test]
    fn the_perplexity_is_reached_in_whatever_unit_and_however_far_all_others_are() {
        for unit in [1e-15, 1.0, 1e15] {
            // On an axis of its own each: the nearest is hardly nearer than the farthest.
            let length = |i: usize| unit * (1.0 + i as f32 / 100.0);
            let point = |i: usize| -> Vec<f32> {
                (0..12).map(|axis| if axis == i { length(i) } else { 0.0 }).collect()
            };
            let points: Vec<Vec<f32>> = (0..12).map(point).collect();
            let shares = neighbours(&points, 5, 3.0);
            let entropy: f64 =
                shares.iter().filter(|share| **share > 0.0).map(|share| -share * share.ln()).sum();
            assert!((entropy.exp() - 3.0).abs() < 1e-6, "{unit}: {}", entropy.exp());
        }
    }

    #[test]
    fn the_gradient_is_that_of_the_divergence() {
        let (points, places) = (clusters(), first_places(3 * OF_EACH, 2));
        let places: Vec<[f64; 2]> = places.into_iter().map(|place| place.map(|x| x * 1e4)).collect();
        let (n, affinities) = (points.len(), affinities(&points, 10.0));
        let divergence = |places: &[[f64; 2]]| {
            let closeness = |i: usize, j: usize| {
                let [x, y] = [0, 1].map(|axis| places[i][axis] - places[j][axis]);
                1.0 / (1.0 + x * x + y * y)
            };
            let pairs = || (0..n * n).map(|pair| (pair / n, pair % n)).filter(|(i, j)| i != j);
            let sum: f64 = pairs().map(|(i, j)| closeness(i, j)).sum();
            let term = |(i, j): (usize, usize)| -affinities[i * n + j] * (closeness(i, j) / sum).ln();
            pairs().map(term).sum::<f64>()
        };
        let gradient = gradient(&places, &affinities, 1.0);
        for (i, axis) in [(0, 0), (31, 1), (88, 0)] {
            let moved = |by: f64| {
                let mut places = places.clone();
                places[i][axis] += by;
                divergence(&places)
            };
            let expected = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            assert!((gradient[i][axis] - expected).abs() < 1e-7, "{} {expected}", gradient[i][axis]);
        }
    }

    #[test]
    fn few_points_and_equal_points_have_finite_places() {
        let twins = [0.0, 0.0, 0.0, 5.0, 5.0].map(|x| vec![x]).to_vec();
        for points in [vec![], vec![vec![1.0]], vec![vec![1.0], vec![2.0]], vec![vec![3.0, 4.0]; 7], twins] {
            let places = tsne(&points, &SETTINGS);
            assert_eq!(places.len(), points.len());
            assert!(places.iter().flatten().all(|x| x.is_finite()), "{places:?}");
        }
    }
}
