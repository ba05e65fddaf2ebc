//! The section `[aggregation]`: from updates to the next global model. What each rule reckons is in [`crate::aggregate`].

use serde::{Deserialize, Serialize};

use super::check::positive;
use super::sections::{Late, Quorum, Weighting};
use crate::artifact::Dtype;
use crate::config::Problems;

/// The largest norm of an update that a study may name, and the limit where it names none: training does not come near it, and sums
/// of squares of what is longer are beyond what a server's moments can hold.
const LONGEST_UPDATE: f64 = 1e9;

/// From updates to the next global model.
///
/// The keys of one strategy are absent in studies by another; in a study's document its own are stated
/// ([`Aggregation::stated`]).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Aggregation {
    /// Which rule.
    #[serde(default)]
    pub strategy: Strategy,
    /// η: how much of the mean update is taken.
    #[serde(default = "one")]
    pub server_lr: f64,
    /// How sites weigh.
    #[serde(default)]
    pub weights: Weighting,
    /// Largest share of one site under `class-balanced` weights.
    #[serde(default = "half")]
    pub max_site_weight: f64,
    /// Largest L2 norm of an update; a larger one is refused. A billion when absent ([`Aggregation::longest_update`]).
    #[serde(default)]
    pub max_update_norm: Option<f64>,
    /// An update longer than so many times the median of its round is scaled down to that; 0 for never. Not written at its default,
    /// which must therefore stay what it is.
    #[serde(default = "clip_median_factor", skip_serializing_if = "is_clip_median_factor")]
    pub clip_median_factor: f64,
    /// A fixed L2 norm to scale longer updates down to, in the place of the median's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_norm: Option<f64>,
    /// μ of `fedprox`: how strongly local training is held near the global model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proximal_mu: Option<f64>,
    /// β of `server-momentum`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub momentum: Option<f64>,
    /// β₁ of `fedadam`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beta_1: Option<f64>,
    /// β₂ of `fedadam`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beta_2: Option<f64>,
    /// τ of `fedadam`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tau: Option<f64>,
    /// Share that `trimmed-mean` leaves out at each end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trim: Option<f64>,
    /// Number format of updates. In bfloat16 they have half the bytes, and each site keeps back what rounding took of one and adds
    /// it to its next. Not written where it is `f32`: such a study keeps the digest that it always had.
    #[serde(default, skip_serializing_if = "Dtype::is_f32")]
    pub update_dtype: Dtype,
}

/// The aggregation rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Strategy {
    /// Federated averaging.
    #[default]
    FedAvg,
    /// The same of updates that local training holds near the global model.
    FedProx,
    /// Federated averaging with momentum at the server.
    #[serde(rename = "server-momentum")]
    ServerMomentum,
    /// Adam at the server.
    FedAdam,
    /// Of each number, the mean without the largest and smallest.
    #[serde(rename = "trimmed-mean")]
    TrimmedMean,
    /// Of each number, the median.
    #[serde(rename = "coordinate-median")]
    CoordinateMedian,
}

impl Strategy {
    /// As the study has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::FedAvg => "fedavg",
            Self::FedProx => "fedprox",
            Self::ServerMomentum => "server-momentum",
            Self::FedAdam => "fedadam",
            Self::TrimmedMean => "trimmed-mean",
            Self::CoordinateMedian => "coordinate-median",
        }
    }

    /// Whether it sorts the sites' values and leaves the outer ones out.
    const fn discards(self) -> bool {
        matches!(self, Self::TrimmedMean | Self::CoordinateMedian)
    }

    /// Fewest sites that annotate a class for its part of the model to be made by this rule: of fewer, a rule that discards would
    /// leave out those that know the class. 0 for rules that count every site.
    pub const fn class_floor(self) -> u32 {
        if self.discards() { 3 } else { 0 }
    }
}

impl Aggregation {
    /// μ: how strongly local training is held near the global model; 0 unless the strategy is `fedprox`.
    pub fn proximal_mu(&self) -> f64 {
        match self.strategy {
            Strategy::FedProx => self.proximal_mu.unwrap_or(0.01),
            _ => 0.0,
        }
    }

    /// L2 norm from which on an update is refused.
    pub fn longest_update(&self) -> f64 {
        self.max_update_norm.unwrap_or(LONGEST_UPDATE)
    }

    /// β of `server-momentum`.
    pub fn momentum(&self) -> f64 {
        self.momentum.unwrap_or(0.9)
    }

    /// β₁ of `fedadam`.
    pub fn beta_1(&self) -> f64 {
        self.beta_1.unwrap_or(0.9)
    }

    /// β₂ of `fedadam`.
    pub fn beta_2(&self) -> f64 {
        self.beta_2.unwrap_or(0.99)
    }

    /// τ of `fedadam`.
    pub fn tau(&self) -> f64 {
        self.tau.unwrap_or(1e-3)
    }

    /// Share that `trimmed-mean` leaves out at each end.
    pub fn trim(&self) -> f64 {
        self.trim.unwrap_or(0.2)
    }

    /// With every key of its strategy stated, so that a document does not change its meaning with a later default.
    #[must_use]
    pub fn stated(self) -> Self {
        match self.strategy {
            Strategy::FedAvg | Strategy::CoordinateMedian => self,
            Strategy::FedProx => Self { proximal_mu: Some(self.proximal_mu()), ..self },
            Strategy::ServerMomentum => Self { momentum: Some(self.momentum()), ..self },
            Strategy::FedAdam => Self {
                beta_1: Some(self.beta_1()),
                beta_2: Some(self.beta_2()),
                tau: Some(self.tau()),
                ..self
            },
            Strategy::TrimmedMean => Self { trim: Some(self.trim()), ..self },
        }
    }

    /// Adds what is wrong with it, in a study with this quorum.
    pub(super) fn check(&self, quorum: &Quorum, problems: &mut Problems) {
        self.check_step(problems);
        problems.in_range("aggregation.max_site_weight", self.max_site_weight, 0.01..=1.0);
        if let Some(norm) = self.max_update_norm {
            positive("aggregation.max_update_norm", norm, LONGEST_UPDATE, problems);
        }
        self.check_clipping(problems);
        self.check_own_keys(problems);
        self.check_discarding(quorum, problems);
    }

    fn check_step(&self, problems: &mut Problems) {
        let key = "aggregation.server_lr";
        // Adam divides by the size of what it has seen: a rate of 1 would move every number by about 1.
        if self.strategy == Strategy::FedAdam && self.server_lr > 0.5 {
            let found =
                format!("{} is out of range: `fedadam` moves each number by about so much", self.server_lr);
            return problems.add_allowed(key, found, "above 0, at most 0.5; 0.01 is a start");
        }
        positive(key, self.server_lr, 10.0, problems);
    }

    fn check_clipping(&self, problems: &mut Problems) {
        let (key, factor) = ("aggregation.clip_median_factor", self.clip_median_factor);
        if factor != 0.0 && !(1.0..=1000.0).contains(&factor) {
            problems.add_allowed(key, format!("{factor} is out of range"), "0 for never, or 1 to 1000");
        }
        let Some(norm) = self.clip_norm else { return };
        positive("aggregation.clip_norm", norm, 1e9, problems);
        if factor != 0.0 && !is_clip_median_factor(&factor) {
            problems.add(key, "beside `clip_norm`, which is in its place: leave one of them out");
        }
    }

    /// Ranges of the strategy's keys; those of other strategies do not belong here.
    fn check_own_keys(&self, problems: &mut Problems) {
        let keys = [
            ("proximal_mu", self.proximal_mu, Strategy::FedProx, 0.0..=10.0),
            ("momentum", self.momentum, Strategy::ServerMomentum, 0.0..=0.999),
            ("beta_1", self.beta_1, Strategy::FedAdam, 0.0..=0.999),
            ("beta_2", self.beta_2, Strategy::FedAdam, 0.0..=0.9999),
            ("tau", self.tau, Strategy::FedAdam, 1e-8..=1.0),
            ("trim", self.trim, Strategy::TrimmedMean, 0.01..=0.45),
        ];
        for (key, value, strategy, range) in keys {
            let Some(value) = value else { continue };
            let key = format!("aggregation.{key}");
            if self.strategy == strategy {
                problems.in_range(&key, value, range);
            } else {
                let (of, here) = (strategy.name(), self.strategy.name());
                problems.add(key, format!("belongs to `{of}`; the strategy here is `{here}`"));
            }
        }
    }

    fn check_discarding(&self, quorum: &Quorum, problems: &mut Problems) {
        let (name, sites, each) = (self.strategy.name(), quorum.sites, quorum.sites_per_class);
        if self.strategy.discards() && (sites < 5 || each < self.strategy.class_floor()) {
            let found = format!(
                "`{name}` with a quorum of {sites} sites and {each} for each class: with partial labels it would discard \
                 the only site that annotates a class"
            );
            let allowed = "`quorum.sites` of at least 5 and `quorum.sites_per_class` of at least 3, or another strategy";
            problems.add_allowed("aggregation.strategy", found, allowed);
        }
        if self.strategy.discards() && quorum.late == Late::NextRound {
            let found = format!("`{name}` counts every update in full, a late one too");
            problems.add_allowed(
                "aggregation.strategy",
                found,
                "`quorum.late = \"refuse\"`, or another strategy",
            );
        }
    }
}

fn one() -> f64 {
    1.0
}

fn half() -> f64 {
    0.5
}

fn clip_median_factor() -> f64 {
    3.0
}

fn is_clip_median_factor(factor: &f64) -> bool {
    *factor == clip_median_factor()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::study::{StudyDocument, StudyDraft};
    use crate::taxonomy::Taxonomy;
    use crate::testing::{EXAMPLE_STUDY, example_study, example_study_with};

    /// What is wrong with the example study with these lines in the place of its `strategy`.
    fn refused(lines: &str) -> String {
        let text = EXAMPLE_STUDY.replace("strategy = \"fedavg\"\nserver_lr = 1.0\n", lines);
        assert_ne!(text, EXAMPLE_STUDY);
        match StudyDraft::parse("study.toml", &text, &Taxonomy::standard()) {
            Ok(_) => "nothing".to_owned(),
            Err(refused) => refused.to_string(),
        }
    }

    #[test]
    fn every_strategy_has_its_own_keys_and_no_others() {
        assert_eq!(refused("strategy = \"fedprox\"\nproximal_mu = 0.1\n"), "nothing");
        assert_eq!(refused("strategy = \"server-momentum\"\nmomentum = 0.5\n"), "nothing");
        let adam = "strategy = \"fedadam\"\nserver_lr = 0.01\nbeta_1 = 0.9\nbeta_2 = 0.99\ntau = 1e-3\n";
        assert_eq!(refused(adam), "nothing");
        assert_eq!(
            refused("strategy = \"server-momentum\"\nproximal_mu = 0.1\nmomentum = 1.0\n"),
            "study.toml:53: `aggregation.proximal_mu`: belongs to `fedprox`; the strategy here is `server-momentum`\n\
             error: study.toml:54: `aggregation.momentum`: 1 is out of range\n  allowed: 0 to 0.999"
        );
        assert_eq!(
            refused("tau = 1e-3\n"),
            "study.toml:52: `aggregation.tau`: belongs to `fedadam`; the strategy here is `fedavg`"
        );
    }

    #[test]
    fn a_rate_of_one_is_too_much_for_adam() {
        assert_eq!(
            refused("strategy = \"fedadam\"\nserver_lr = 1.0\n"),
            "study.toml:53: `aggregation.server_lr`: 1 is out of range: `fedadam` moves each number by about so much\n  \
             allowed: above 0, at most 0.5; 0.01 is a start"
        );
    }

    #[test]
    fn rules_that_discard_sites_need_enough_of_them_for_each_class() {
        let problems = |strategy, sites, sites_per_class| {
            let mut draft = StudyDraft::from(example_study().study());
            (draft.aggregation.strategy, draft.quorum.sites) = (strategy, sites);
            draft.quorum.sites_per_class = sites_per_class;
            let mut problems = Problems::new();
            draft.aggregation.check(&draft.quorum, &mut problems);
            draft.quorum.late = Late::NextRound;
            let mut late = Problems::new();
            draft.aggregation.check(&draft.quorum, &mut late);
            let late = late.into_result("study").map_err(|refused| refused.to_string());
            (problems.into_result("study").map_err(|refused| refused.to_string()), late)
        };
        for strategy in [Strategy::TrimmedMean, Strategy::CoordinateMedian] {
            let (refusing, late) = problems(strategy, 5, 3);
            assert_eq!(refusing, Ok(()));
            assert!(late.unwrap_err().contains("counts every update in full, a late one too"));
            let name = strategy.name();
            for (sites, each) in [(4, 3), (5, 2), (2, 0)] {
                assert_eq!(
                    problems(strategy, sites, each).0,
                    Err(format!(
                        "study: `aggregation.strategy`: `{name}` with a quorum of {sites} sites and {each} for each class: \
                         with partial labels it would discard the only site that annotates a class\n  allowed: \
                         `quorum.sites` of at least 5 and `quorum.sites_per_class` of at least 3, or another strategy"
                    ))
                );
            }
        }
        assert_eq!(problems(Strategy::ServerMomentum, 1, 0), (Ok(()), Ok(())));
    }

    #[test]
    fn clipping_is_by_the_median_by_a_norm_or_off() {
        assert_eq!(refused("clip_median_factor = 0.0\n"), "nothing");
        assert_eq!(refused("clip_norm = 5.0\n"), "nothing");
        assert_eq!(
            refused("clip_median_factor = 0.5\n"),
            "study.toml:52: `aggregation.clip_median_factor`: 0.5 is out of range\n  allowed: 0 for never, or 1 to 1000"
        );
        assert_eq!(
            refused("clip_norm = 0.0\n"),
            "study.toml:52: `aggregation.clip_norm`: 0 is out of range\n  allowed: above 0, at most 1000000000"
        );
        assert_eq!(
            refused("clip_norm = 5.0\nclip_median_factor = 2.0\n"),
            "study.toml:53: `aggregation.clip_median_factor`: beside `clip_norm`, which is in its place: leave one of them \
             out"
        );
    }

    #[test]
    fn a_document_states_the_keys_of_its_strategy_and_no_others() {
        let text = |strategy, server_lr| {
            let document = example_study_with(|draft| {
                (draft.aggregation.strategy, draft.aggregation.server_lr) = (strategy, server_lr);
            });
            String::from_utf8(document.bytes().to_vec()).unwrap()
        };
        let keys =
            ["clip_median_factor", "clip_norm", "proximal_mu", "momentum", "beta_1", "beta_2", "tau", "trim"];
        let stated = |text: &str| -> Vec<&str> {
            keys.into_iter().filter(|key| text.contains(&format!("\"{key}\""))).collect()
        };
        assert!(stated(&text(Strategy::FedAvg, 1.0)).is_empty(), "its bytes are those of older studies");
        assert_eq!(stated(&text(Strategy::FedProx, 1.0)), ["proximal_mu"]);
        assert_eq!(stated(&text(Strategy::ServerMomentum, 1.0)), ["momentum"]);
        assert_eq!(stated(&text(Strategy::FedAdam, 0.01)), ["beta_1", "beta_2", "tau"]);
        assert!(text(Strategy::FedAdam, 0.01).contains("\"strategy\": \"fedadam\""));
    }

    #[test]
    fn only_fedprox_holds_training_near_the_global_model() {
        let mut aggregation = example_study().study().aggregation.clone();
        assert_eq!(aggregation.proximal_mu(), 0.0);
        aggregation.strategy = Strategy::FedProx;
        assert_eq!(aggregation.proximal_mu(), 0.01);
        aggregation.proximal_mu = Some(0.3);
        assert_eq!(aggregation.proximal_mu(), 0.3);
    }

    #[test]
    fn updates_are_in_f32_unless_the_study_says_bf16() {
        let text = |document: &StudyDocument| String::from_utf8(document.bytes().to_vec()).unwrap();
        let (wide, narrow) =
            (example_study(), example_study_with(|draft| draft.aggregation.update_dtype = Dtype::BF16));
        assert_eq!(wide.study().aggregation.update_dtype, Dtype::F32);
        assert!(!text(&wide).contains("update_dtype"), "its bytes are those of older studies");
        assert!(text(&narrow).contains("\"update_dtype\": \"bf16\""));
        assert_ne!(wide.digest(), narrow.digest());
        let again = StudyDocument::parse(narrow.bytes().to_vec()).unwrap();
        assert_eq!(again.study().aggregation.update_dtype, Dtype::BF16);
        assert_eq!(refused("update_dtype = \"bf16\"\n"), "nothing");
        assert_eq!(refused("update_dtype = \"f32\"\n"), "nothing");
        let words = refused("update_dtype = \"f16\"\n");
        assert_eq!(
            words,
            "study.toml:52: `aggregation.update_dtype`: unknown variant `f16`, expected `f32` or `bf16`"
        );
    }

    #[test]
    fn a_strategy_is_called_what_the_study_calls_it() {
        for strategy in [
            Strategy::FedAvg,
            Strategy::FedProx,
            Strategy::ServerMomentum,
            Strategy::FedAdam,
            Strategy::TrimmedMean,
            Strategy::CoordinateMedian,
        ] {
            assert_eq!(serde_json::to_string(&strategy).unwrap(), format!("\"{}\"", strategy.name()));
        }
    }
}
