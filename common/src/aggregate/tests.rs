//! Bit-equality, conservation, class rows, and refusals. The arithmetic of each rule is tested beside it, over [`Rounds`].

use proptest::prelude::*;

use super::*;
use crate::artifact::{Dtype, TensorSpec};
use crate::bfloat16;
use crate::ids::{AttemptId, Digest};
use crate::update::{UpdateExpectation, UpdateOffer, UpdateVerifier};

fn layout(tensors: &[(&str, &[u32])]) -> TensorLayout {
    let spec = |(name, shape): &(&str, &[u32])| TensorSpec {
        name: (*name).to_owned(),
        dtype: Dtype::F32,
        shape: shape.to_vec(),
    };
    TensorLayout::new(tensors.iter().map(spec).collect()).unwrap()
}

fn bytes(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn numbers(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|&le| f32::from_le_bytes(le)).collect()
}

/// The bytes of a delta in this format.
fn bytes_in(dtype: Dtype, numbers: &[f32]) -> Vec<u8> {
    match dtype {
        Dtype::F32 => bytes(numbers),
        Dtype::BF16 => numbers.iter().flat_map(|&number| bfloat16::round(number)).collect(),
    }
}

fn verified(site: &str, base: &ArtifactManifest, delta: &[f32], round: u32) -> VerifiedUpdate {
    verified_in(Dtype::F32, site, base, delta, round)
}

fn verified_in(
    dtype: Dtype,
    site: &str,
    base: &ArtifactManifest,
    delta: &[f32],
    round: u32,
) -> VerifiedUpdate {
    let (study, round) = (StudyDigest(Digest::of(b"study")), RoundId(round));
    let data = bytes_in(dtype, delta);
    let layout = base.layout().in_dtype(dtype);
    let manifest = ArtifactManifest::of(layout.clone(), &data);
    let attempt = AttemptId::from_bytes([1; 16]);
    let offer = UpdateOffer { study, round, base: base.hash(), attempt, steps: 1, manifest };
    let expectation = UpdateExpectation {
        site: site.parse().unwrap(),
        study,
        round,
        base: base.hash(),
        layout: layout.clone(),
        max_norm: None,
    };
    let mut verifier = UpdateVerifier::new(expectation, offer).unwrap();
    for (index, span) in (0..).zip(layout.spans()) {
        let start = span.offset as usize;
        verifier.push_chunk(index, &data[start..start + span.len as usize]).unwrap();
    }
    verifier.finish().unwrap()
}

#[derive(Debug)]
struct Sites {
    base: ArtifactManifest,
    global: Vec<f32>,
    deltas: Vec<(String, f64, Vec<f32>)>,
}

impl Sites {
    fn new(layout: TensorLayout, global: Vec<f32>, deltas: Vec<(String, f64, Vec<f32>)>) -> Self {
        let base = ArtifactManifest::of(layout, &bytes(&global));
        Self { base, global, deltas }
    }

    fn updates(&self) -> Vec<WeightedUpdate> {
        let update = |(site, weight, delta): &(String, f64, Vec<f32>)| WeightedUpdate {
            update: verified(site, &self.base, delta, 1),
            weight: *weight,
        };
        self.deltas.iter().map(update).collect()
    }

    fn aggregate(&self, aggregator: &Aggregator) -> (Vec<f32>, AggregatedModel) {
        let (mut out, mut data, mut chunks) = (Vec::new(), Vec::new(), Vec::new());
        for (index, span) in (0..).zip(self.base.layout().spans()) {
            let range = span.offset as usize..span.offset as usize + span.len as usize;
            let chunk_of = |site: &SiteId| {
                let (_, _, delta) = self.deltas.iter().find(|(name, ..)| name == site.as_str()).unwrap();
                bytes(delta)[range.clone()].to_vec()
            };
            let deltas: Vec<_> = aggregator.updates().iter().map(|u| chunk_of(u.update.site())).collect();
            let deltas: Vec<&[u8]> = deltas.iter().map(Vec::as_slice).collect();
            let base = &bytes(&self.global)[range];
            chunks.push(aggregator.aggregate_chunk(index, base, &deltas, &mut out).unwrap());
            data.extend_from_slice(&out);
        }
        let model = aggregator.seal(chunks).unwrap();
        assert_eq!(model.manifest(), &ArtifactManifest::of(self.base.layout().clone(), &data));
        (numbers(&data), model)
    }

    fn run(&self, eta: f64) -> Vec<f32> {
        self.aggregate(&Aggregator::new(self.base.clone(), self.updates(), eta).unwrap()).0
    }
}

/// Rounds over one tensor, one after the other: model and moments go into the next.
#[derive(Debug)]
pub(super) struct Rounds {
    method: Method,
    round: u32,
    model: Vec<f32>,
    moments: Vec<Vec<u8>>,
}

impl Rounds {
    pub(super) fn new(method: Method, model: &[f32]) -> Self {
        let moments = method.rule.moments().iter().map(|_| vec![0; 4 * model.len()]).collect();
        Self { method, round: 0, model: model.to_vec(), moments }
    }

    /// A round with updates of these sites, weights and deltas. Returns what was clipped.
    pub(super) fn run(&mut self, sites: &[(&str, f64, &[f32])]) -> Vec<Clipped> {
        self.round += 1;
        let model = bytes(&self.model);
        let base = ArtifactManifest::of(layout(&[("w", &[self.model.len() as u32])]), &model);
        let dtype = self.method.update_dtype;
        let update = |&(site, weight, delta): &(&str, f64, &[f32])| WeightedUpdate {
            update: verified_in(dtype, site, &base, delta, self.round),
            weight,
        };
        let updates = sites.iter().map(update).collect();
        let aggregator = Aggregator::by_method(base.clone(), updates, &BTreeSet::new(), self.method).unwrap();
        let (mut workspace, mut out) = (Workspace::default(), Vec::new());
        let mut sum = aggregator.chunk(0, &mut workspace).unwrap();
        for update in aggregator.updates() {
            let site = update.update.site().as_str();
            let (_, _, delta) = sites.iter().find(|(name, ..)| *name == site).unwrap();
            sum.add(&bytes_in(dtype, delta)).unwrap();
        }
        sum.finish(&model, &mut self.moments, &mut out).unwrap();
        self.model = numbers(&out);
        aggregator.clipped().to_vec()
    }

    pub(super) fn model(&self) -> Vec<f32> {
        self.model.clone()
    }

    pub(super) fn moment(&self, index: usize) -> Vec<f32> {
        numbers(&self.moments[index])
    }
}

#[test]
fn contributions_are_shares_of_one_and_norms_before_clipping() {
    let deltas = vec![("b".to_owned(), 3.0, vec![3.0, 4.0]), ("a".to_owned(), 1.0, vec![0.0, 2.0])];
    let sites = Sites::new(layout(&[("w", &[2])]), vec![0.0, 0.0], deltas);
    let by = |method| {
        let nobody_late = BTreeSet::new();
        Aggregator::by_method(sites.base.clone(), sites.updates(), &nobody_late, method)
            .unwrap()
            .contributions()
    };
    let of = |site: &str, share, norm| Contribution { site: site.parse().unwrap(), share, norm };
    let clipped = Method { clipping: Clipping::Norm(1.0), ..Method::fedavg(1.0) };
    assert_eq!(by(clipped), [of("a", 0.25, 2.0), of("b", 0.75, 5.0)]);
    // What sorts gives every site as much of a say.
    let median = Method { rule: Rule::CoordinateMedian, ..clipped };
    assert_eq!(by(median), [of("a", 0.5, 2.0), of("b", 0.5, 5.0)]);
}

fn any_method() -> impl Strategy<Value = Method> {
    let adam = FedAdam { beta_1: 0.9, beta_2: 0.99, tau: 1e-3 };
    let rule = prop_oneof![
        Just(Rule::FedAvg),
        Just(Rule::ServerMomentum { momentum: 0.9 }),
        Just(Rule::FedAdam(adam)),
        Just(Rule::TrimmedMean { trim: 0.2 }),
        Just(Rule::CoordinateMedian),
    ];
    let clipping =
        prop_oneof![Just(Clipping::Off), Just(Clipping::Norm(100.0)), Just(Clipping::MedianFactor(1.5))];
    (rule, clipping).prop_map(|(rule, clipping)| Method { rule, clipping, ..Method::fedavg(0.5) })
}

/// Some sites with deltas over two small tensors.
fn some_sites() -> impl Strategy<Value = Sites> {
    let values = |n| proptest::collection::vec(-1e3f32..1e3, n);
    let site = (0.01f64..50.0, values(13));
    (values(13), proptest::collection::vec(site, 1..6)).prop_map(|(global, sites)| {
        let named = (0..).zip(sites).map(|(k, (weight, delta))| (format!("site-{k}"), weight, delta));
        Sites::new(layout(&[("a", &[4]), ("b", &[3, 3])]), global, named.collect())
    })
}

proptest! {
    #[test]
    fn the_order_of_arrival_does_not_change_a_bit(mut sites in some_sites(), turn in 0usize..6, flip: bool) {
        let first = sites.run(1.0);
        let turn = turn % sites.deltas.len();
        sites.deltas.rotate_left(turn);
        if flip {
            sites.deltas.reverse();
        }
        let second = sites.run(1.0);
        prop_assert_eq!(bytes(&first), bytes(&second));
    }

    #[test]
    fn by_no_rule_does_the_order_of_arrival_change_a_bit(
        method in any_method(),
        sites in proptest::collection::vec((0.01f64..50.0, proptest::collection::vec(-1e3f32..1e3, 3)), 1..7),
        turn in 0usize..7,
    ) {
        let names = ["a", "b", "c", "d", "e", "f"];
        let mut sites: Vec<(&str, f64, &[f32])> =
            names.iter().zip(&sites).map(|(&name, (weight, delta))| (name, *weight, &delta[..])).collect();
        let run = |sites: &[(&str, f64, &[f32])]| {
            let mut rounds = Rounds::new(method, &[0.5, -0.25, 0.0]);
            let clipped = [rounds.run(sites), rounds.run(sites)];
            (bytes(&rounds.model), rounds.moments, clipped)
        };
        let first = run(&sites);
        let turn = turn % sites.len();
        sites.rotate_left(turn);
        prop_assert_eq!(&first, &run(&sites));
        sites.reverse();
        prop_assert_eq!(&first, &run(&sites));
    }

    #[test]
    fn by_every_rule_updates_in_bfloat16_give_the_bits_of_the_same_numbers_in_f32(
        method in any_method(),
        sites in proptest::collection::vec((0.01f64..50.0, proptest::collection::vec(-1e3f32..1e3, 3)), 1..7),
    ) {
        // What bfloat16 holds, in f32.
        let round = |numbers: &Vec<f32>| -> Vec<f32> {
            numbers.iter().map(|&number| bfloat16::widen(bfloat16::round(number))).collect()
        };
        let rounded: Vec<_> = sites.iter().map(|(weight, delta)| (*weight, round(delta))).collect();
        let names = ["a", "b", "c", "d", "e", "f"];
        let sites: Vec<(&str, f64, &[f32])> =
            names.iter().zip(&rounded).map(|(&name, (weight, delta))| (name, *weight, &delta[..])).collect();
        let run = |update_dtype| {
            let mut rounds = Rounds::new(Method { update_dtype, ..method }, &[0.5, -0.25, 0.0]);
            let clipped = [rounds.run(&sites), rounds.run(&sites)];
            (bytes(&rounds.model), rounds.moments, clipped)
        };
        prop_assert_eq!(run(Dtype::F32), run(Dtype::BF16));
    }

    #[test]
    fn weights_are_conserved(mut sites in some_sites()) {
        // The same delta everywhere: whatever the weights, the mean is that delta.
        let delta = sites.deltas[0].2.clone();
        sites.deltas.iter_mut().for_each(|site| site.2.clone_from(&delta));
        for ((new, global), delta) in sites.run(1.0).iter().zip(&sites.global).zip(&delta) {
            let expected = f64::from(*global) + f64::from(*delta);
            prop_assert!((f64::from(*new) - expected).abs() <= expected.abs() * 1e-6 + 1e-9);
        }
    }

    #[test]
    fn the_aggregate_is_the_naive_mean(sites in some_sites(), eta in 0.0f64..2.0) {
        let total: f64 = sites.deltas.iter().map(|site| site.1).sum();
        for (k, new) in sites.run(eta).iter().enumerate() {
            let mean: f64 = sites.deltas.iter().map(|(_, w, delta)| w / total * f64::from(delta[k])).sum();
            let expected = f64::from(sites.global[k]) + eta * mean;
            prop_assert!((f64::from(*new) - expected).abs() <= expected.abs() * 1e-6 + 1e-9, "{new} {expected}");
        }
    }
}

fn set(names: &[&str]) -> BTreeSet<SiteId> {
    names.iter().map(|name| name.parse().unwrap()).collect()
}

#[test]
fn class_rows_average_over_the_sites_that_annotate_the_class() {
    let sites = Sites::new(
        layout(&[("bias", &[1]), ("organ_embedding.weight", &[3, 2])]),
        vec![0.1; 7],
        vec![("north".to_owned(), 1.0, vec![1.0; 7]), ("south".to_owned(), 3.0, vec![5.0; 7])],
    );
    let class = |id| ClassId::new(id).unwrap();
    // Class 1 at both sites, class 2 in the north alone, class 3 nowhere.
    let annotating = BTreeMap::from([(class(1), set(&["north", "south"])), (class(2), set(&["north"]))]);
    let aggregator = Aggregator::new(sites.base.clone(), sites.updates(), 1.0).unwrap();
    let aggregator = aggregator.with_class_rows("organ_embedding.weight", &annotating).unwrap();
    let (new, _) = sites.aggregate(&aggregator);
    assert_eq!(new, [4.1, 4.1, 4.1, 1.1, 1.1, 0.1, 0.1]);
}

#[test]
fn sorted_class_rows_are_of_the_sites_that_annotate_the_class() {
    let delta = |value: f32| vec![value; 6];
    let deltas = [("a", 1.0), ("b", 2.0), ("c", 9.0), ("d", 100.0)];
    let sites = Sites::new(
        layout(&[("table", &[3, 2])]),
        delta(0.5),
        deltas.iter().map(|&(site, value)| (site.to_owned(), 0.25, delta(value))).collect(),
    );
    let class = |id| ClassId::new(id).unwrap();
    // Class 3 nowhere.
    let annotating = BTreeMap::from([(class(1), set(&["a", "b", "c"])), (class(2), set(&["d"]))]);
    for rule in [Rule::TrimmedMean { trim: 0.2 }, Rule::CoordinateMedian] {
        let method = Method { rule, ..Method::fedavg(1.0) };
        let aggregator =
            Aggregator::by_method(sites.base.clone(), sites.updates(), &BTreeSet::new(), method).unwrap();
        let (new, _) = sites.aggregate(&aggregator.with_class_rows("table", &annotating).unwrap());
        assert_eq!(new, [2.5, 2.5, 100.5, 100.5, 0.5, 0.5], "{rule:?}");
    }
}

#[test]
fn a_row_that_nobody_annotates_keeps_its_moments_too() {
    let base = bytes(&[1.0, 1.0]);
    let manifest = ArtifactManifest::of(layout(&[("table", &[2, 1])]), &base);
    let update = WeightedUpdate { update: verified("a", &manifest, &[4.0, 4.0], 1), weight: 1.0 };
    let method = Method { rule: Rule::ServerMomentum { momentum: 0.5 }, ..Method::fedavg(1.0) };
    let aggregator = Aggregator::by_method(manifest, vec![update], &BTreeSet::new(), method).unwrap();
    let annotating = BTreeMap::from([(ClassId::new(1).unwrap(), set(&["a"]))]);
    let aggregator = aggregator.with_class_rows("table", &annotating).unwrap();
    let (mut workspace, mut out) = (Workspace::default(), Vec::new());
    let mut sum = aggregator.chunk(0, &mut workspace).unwrap();
    sum.add(&bytes(&[4.0, 4.0])).unwrap();
    let mut moments = [bytes(&[2.0, 2.0])];
    sum.finish(&base, &mut moments, &mut out).unwrap();
    assert_eq!(numbers(&out), [6.0, 1.0]);
    assert_eq!(numbers(&moments[0]), [5.0, 2.0]);
}

#[test]
fn moments_that_are_not_the_rules_are_an_error() {
    let sites = two_sites();
    let (base, one) = (bytes(&[0.0; 4]), bytes(&[0.0; 4]));
    let method = Method { rule: Rule::ServerMomentum { momentum: 0.9 }, ..Method::fedavg(1.0) };
    let wrong = [
        (Method::fedavg(1.0), vec![one.clone()], 0),
        (method, vec![], 1),
        (method, vec![one.clone(), one.clone()], 1),
        (method, vec![one[..8].to_vec()], 1),
    ];
    for (method, mut moments, expected) in wrong {
        let aggregator =
            Aggregator::by_method(sites.base.clone(), sites.updates(), &BTreeSet::new(), method).unwrap();
        let mut workspace = Workspace::default();
        let mut sum = aggregator.chunk(0, &mut workspace).unwrap();
        sum.add(&bytes(&[1.0; 4])).unwrap();
        sum.add(&bytes(&[2.0; 4])).unwrap();
        let got = moments.len();
        let error = sum.finish(&base, &mut moments, &mut Vec::new()).unwrap_err();
        assert_eq!(error, AggregateError::Moments { index: 0, expected, got });
    }
}

#[test]
fn rows_of_a_class_table_are_the_same_rows_in_bfloat16() {
    // 3 rows of 200,000 numbers: rows and chunks do not coincide. Every number here is a bfloat16.
    let row = 200_000;
    let base = ArtifactManifest::of(layout(&[("table", &[3, row as u32])]), &vec![0; 12 * row]);
    let class = |id| ClassId::new(id).unwrap();
    let annotating =
        BTreeMap::from([(class(1), set(&["a"])), (class(2), set(&["b"])), (class(3), set(&["a", "b"]))]);
    let run = |update_dtype| {
        let deltas = [1.0, 3.0].map(|value| vec![value; 3 * row]);
        let update = |(site, delta): (&str, &Vec<f32>)| WeightedUpdate {
            update: verified_in(update_dtype, site, &base, delta, 1),
            weight: 1.0,
        };
        let updates = ["a", "b"].into_iter().zip(&deltas).map(update).collect();
        let method = Method { update_dtype, ..Method::fedavg(1.0) };
        let aggregator = Aggregator::by_method(base.clone(), updates, &BTreeSet::new(), method).unwrap();
        let aggregator = aggregator.with_class_rows("table", &annotating).unwrap();
        let narrow = base.layout().in_dtype(update_dtype);
        let (mut new, mut out) = (Vec::new(), Vec::new());
        for ((index, span), ours) in (0..).zip(base.layout().spans()).zip(narrow.spans()) {
            let of = |delta: &Vec<f32>| {
                bytes_in(update_dtype, delta)[ours.offset as usize..][..ours.len as usize].to_vec()
            };
            let deltas: Vec<Vec<u8>> = deltas.iter().map(of).collect();
            let deltas: Vec<&[u8]> = deltas.iter().map(Vec::as_slice).collect();
            aggregator.aggregate_chunk(index, &vec![0; span.len as usize], &deltas, &mut out).unwrap();
            new.extend(numbers(&out));
        }
        new
    };
    let expected = [vec![1.0; row], vec![3.0; row], vec![2.0; row]].concat();
    assert!(run(Dtype::BF16) == expected && run(Dtype::F32) == expected);
}

#[test]
fn an_update_in_another_format_than_the_studys_is_foreign() {
    let base = ArtifactManifest::of(layout(&[("w", &[2])]), &[0; 8]);
    for (has, wants) in [(Dtype::F32, Dtype::BF16), (Dtype::BF16, Dtype::F32)] {
        let update = WeightedUpdate { update: verified_in(has, "a", &base, &[1.0, 2.0], 1), weight: 1.0 };
        let method = Method { update_dtype: wants, ..Method::fedavg(1.0) };
        let refused = Aggregator::by_method(base.clone(), vec![update], &BTreeSet::new(), method);
        assert!(matches!(refused, Err(AggregateError::Foreign { .. })));
    }
}

#[test]
fn a_class_table_over_several_chunks_keeps_its_rows() {
    // 3 rows of 200,000 numbers: rows and chunks of 262,144 numbers do not coincide.
    let row = 200_000;
    let delta = |value: f32| vec![value; 3 * row];
    let sites = Sites::new(
        layout(&[("table", &[3, row as u32])]),
        delta(0.0),
        vec![("a".to_owned(), 1.0, delta(1.0)), ("b".to_owned(), 1.0, delta(3.0))],
    );
    let class = |id| ClassId::new(id).unwrap();
    let annotating =
        BTreeMap::from([(class(1), set(&["a"])), (class(2), set(&["b"])), (class(3), set(&["a", "b"]))]);
    let aggregator = Aggregator::new(sites.base.clone(), sites.updates(), 1.0).unwrap();
    let (new, _) = sites.aggregate(&aggregator.with_class_rows("table", &annotating).unwrap());
    assert_eq!(new, [vec![1.0; row], vec![3.0; row], vec![2.0; row]].concat());
}

#[test]
fn a_class_without_a_row_changes_nothing() {
    let sites =
        Sites::new(layout(&[("table", &[2, 1])]), vec![0.0; 2], vec![("a".to_owned(), 1.0, vec![1.0; 2])]);
    let class = |id| ClassId::new(id).unwrap();
    let annotating = BTreeMap::from([(class(1), set(&["a"])), (class(200), set(&["a"]))]);
    let aggregator = Aggregator::new(sites.base.clone(), sites.updates(), 1.0).unwrap();
    let (new, _) = sites.aggregate(&aggregator.with_class_rows("table", &annotating).unwrap());
    assert_eq!(new, [1.0, 0.0]);
}

#[test]
fn a_model_without_the_class_table_is_an_error() {
    let sites = two_sites();
    let aggregator = Aggregator::new(sites.base.clone(), sites.updates(), 1.0).unwrap();
    let error = aggregator.with_class_rows("table", &BTreeMap::new()).unwrap_err();
    assert_eq!(error, AggregateError::ClassTable { tensor: "table".to_owned() });
}

fn two_sites() -> Sites {
    let deltas = vec![("a".to_owned(), 1.0, vec![1.0; 4]), ("b".to_owned(), 1.0, vec![2.0; 4])];
    Sites::new(layout(&[("w", &[4])]), vec![0.0; 4], deltas)
}

#[test]
fn updates_that_do_not_belong_together_are_refused() {
    let sites = two_sites();
    let new = |updates| Aggregator::new(sites.base.clone(), updates, 1.0).map(|_| ());
    let site = |name: &str| name.parse::<SiteId>().unwrap();
    let weighted = |update| WeightedUpdate { update, weight: 1.0 };

    assert_eq!(new(vec![]), Err(AggregateError::NoWeight));
    let twice = [sites.updates(), sites.updates()].concat();
    assert_eq!(new(twice), Err(AggregateError::TwoUpdates { site: site("a") }));
    let late = weighted(verified("c", &sites.base, &[0.0; 4], 2));
    assert_eq!(new([sites.updates(), vec![late]].concat()), Err(AggregateError::Foreign { site: site("c") }));
    let other_base = ArtifactManifest::of(sites.base.layout().clone(), &[1; 16]);
    let stale = weighted(verified("c", &other_base, &[0.0; 4], 1));
    assert_eq!(
        new([sites.updates(), vec![stale]].concat()),
        Err(AggregateError::Foreign { site: site("c") })
    );
    let late = BTreeSet::from([site("c")]);
    let with_late = |base: &ArtifactManifest, round| {
        let stale = weighted(verified("c", base, &[0.0; 4], round));
        Aggregator::by_method(
            sites.base.clone(),
            [sites.updates(), vec![stale]].concat(),
            &late,
            Method::fedavg(1.0),
        )
        .map(|_| ())
    };
    assert_eq!(with_late(&other_base, 0), Ok(()));
    assert_eq!(with_late(&sites.base, 1), Err(AggregateError::Foreign { site: site("c") }), "it is not late");
    let mut weightless = sites.updates();
    weightless.iter_mut().for_each(|update| update.weight = 0.0);
    assert_eq!(new(weightless), Err(AggregateError::NoWeight));
    let mut negative = sites.updates();
    negative[0].weight = -1.0;
    assert!(matches!(new(negative), Err(AggregateError::Factor { .. })));
}

#[test]
fn bytes_that_changed_on_disk_are_noticed() {
    let sites = two_sites();
    let aggregator = Aggregator::new(sites.base.clone(), sites.updates(), 1.0).unwrap();
    let mut out = Vec::new();
    let (good, bad) = (bytes(&[1.0; 4]), bytes(&[1.5; 4]));
    let mut workspace = Workspace::default();
    let mut sum = aggregator.chunk(0, &mut workspace).unwrap();
    assert!(matches!(sum.add(&bad), Err(AggregateError::Chunk { .. })));
    sum.add(&good).unwrap();
    assert_eq!(
        sum.finish(&bytes(&[0.0; 4]), &mut [], &mut out),
        Err(AggregateError::Sites { index: 0, expected: 2, got: 1 })
    );
    let deltas = [good, bytes(&[2.0; 4])];
    let deltas = [deltas[0].as_slice(), &deltas[1]];
    let wrong_base = aggregator.aggregate_chunk(0, &bytes(&[9.0; 4]), &deltas, &mut out);
    assert!(matches!(wrong_base, Err(AggregateError::Chunk { .. })));
    assert!(aggregator.aggregate_chunk(1, &[], &deltas, &mut out).is_err());
    assert!(matches!(aggregator.seal(vec![]), Err(AggregateError::Incomplete(_))));
}

#[test]
fn a_value_beyond_f32_is_an_error() {
    let sites =
        Sites::new(layout(&[("w", &[1])]), vec![f32::MAX], vec![("a".to_owned(), 1.0, vec![f32::MAX])]);
    let aggregator = Aggregator::new(sites.base.clone(), sites.updates(), 1.0).unwrap();
    let max = bytes(&[f32::MAX]);
    let error = aggregator.aggregate_chunk(0, &max, &[&max], &mut Vec::new()).unwrap_err();
    assert_eq!(error, AggregateError::NotFinite { tensor: "w".to_owned() });
}
