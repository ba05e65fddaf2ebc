//! `policy.toml`: what this hospital takes part in and what may leave it.
//!
//! The file is the data-protection officer's; nothing that the coordinator sends can widen it. Each refusal names the
//! line that caused it, so that whoever wonders at 17:50 knows which rule to discuss and with whom.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use common::config::{Diagnostics, Document, Problems};
use common::ids::StudyDigest;
use common::study::settings::Setting;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::outbound::Kind;
use super::require::{self, Requirement};

/// Who approves a study.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Approve {
    /// A person, with `site-agent study approve DIGEST`, or a digest listed in the policy.
    Ask,
    /// The policy itself: every study that no rule refuses.
    Any,
}

/// What a study asks for, as far as rules look at it.
#[derive(Clone, Debug, PartialEq)]
pub struct StudyTerms {
    /// Its digest.
    pub digest: StudyDigest,
    /// Rounds.
    pub rounds: u32,
    /// Optimiser steps in each.
    pub steps_per_round: u32,
    /// Fewest sites whose updates are averaged.
    pub quorum_sites: u32,
    /// Whether updates are bounded in norm.
    pub norm_bounded: bool,
    /// Whether this site trains in it: its updates are to leave.
    pub trains: bool,
    /// All that it sets.
    pub settings: Vec<Setting>,
}

/// What the policy says to a study.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Take part.
    Approved,
    /// No rule speaks against it; a person decides.
    Ask,
    /// A rule speaks against it.
    Refused(PolicyRefusal),
}

/// A rule that says no, and where it stands.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct PolicyRefusal {
    /// The policy's file name.
    pub file: String,
    /// Line of the rule, when the file states it.
    pub line: Option<usize>,
    /// Dotted key of the rule.
    pub rule: &'static str,
    /// What it refuses.
    pub what: String,
}

impl fmt::Display for PolicyRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        write!(f, ": `{}` refuses {}", self.rule, self.what)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPolicy {
    studies: RawStudies,
    egress: RawEgress,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawStudies {
    approve: Approve,
    #[serde(default)]
    approved: Vec<String>,
    #[serde(default)]
    refused: Vec<String>,
    max_rounds: Option<u32>,
    max_steps_per_round: Option<u32>,
    min_quorum_sites: Option<u32>,
    #[serde(default)]
    require_norm_bound: bool,
    #[serde(default)]
    require: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEgress {
    allow: Vec<String>,
    max_update_mib: u64,
    max_mib_per_day: u64,
    progress_every_s: u64,
}

/// A policy, valid by construction.
#[derive(Clone, Debug)]
pub struct Policy {
    file: String,
    lines: BTreeMap<&'static str, usize>,
    approve: Approve,
    approved: BTreeSet<StudyDigest>,
    refused: BTreeSet<StudyDigest>,
    max_rounds: Option<u32>,
    max_steps_per_round: Option<u32>,
    min_quorum_sites: Option<u32>,
    require_norm_bound: bool,
    /// Each with its line.
    require: Vec<(Requirement, Option<usize>)>,
    allow: BTreeSet<Kind>,
    quota: Quota,
}

/// The numbers that bound what leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Largest update, bytes.
    pub max_update_bytes: u64,
    /// Most content in one day (UTC), bytes.
    pub max_bytes_per_day: u64,
    /// Least time between two progress messages, seconds.
    pub progress_every_s: u64,
}

const RULES: [&str; 10] = [
    "studies.approve",
    "studies.refused",
    "studies.max_rounds",
    "studies.max_steps_per_round",
    "studies.min_quorum_sites",
    "studies.require_norm_bound",
    "egress.allow",
    "egress.max_update_mib",
    "egress.max_mib_per_day",
    "egress.progress_every_s",
];

impl Policy {
    /// Reads a policy; `file` is the name shown in messages.
    ///
    /// # Errors
    /// All mistakes at once, each with its line.
    pub fn parse(file: &str, text: &str) -> Result<Self, Diagnostics> {
        let document = Document::parse(file, text)?;
        let raw: RawPolicy = document.read()?;
        let mut problems = Problems::new();
        let approved = digests("studies.approved", &raw.studies.approved, &mut problems);
        let refused = digests("studies.refused", &raw.studies.refused, &mut problems);
        let require = require::read(&raw.studies.require, &mut problems);
        let allow = kinds(&raw.egress.allow, &mut problems);
        problems.in_range("egress.max_update_mib", raw.egress.max_update_mib, 1..=8192);
        problems.in_range("egress.max_mib_per_day", raw.egress.max_mib_per_day, 1..=8 << 20);
        problems.in_range("egress.progress_every_s", raw.egress.progress_every_s, 1..=3600);
        for digest in approved.intersection(&refused) {
            problems.add("studies.refused", format!("{} is approved and refused", digest.short()));
        }
        document.locate(problems)?;
        let mib = |n: u64| n.saturating_mul(1 << 20);
        let with_line = |rule: Requirement| {
            let line = line_of(&document, &format!("{}.{}", require::TABLE, rule.key));
            (rule, line)
        };
        Ok(Self {
            file: file.to_owned(),
            lines: RULES.iter().filter_map(|rule| Some((*rule, line_of(&document, rule)?))).collect(),
            approve: raw.studies.approve,
            approved,
            refused,
            max_rounds: raw.studies.max_rounds,
            max_steps_per_round: raw.studies.max_steps_per_round,
            min_quorum_sites: raw.studies.min_quorum_sites,
            require_norm_bound: raw.studies.require_norm_bound,
            require: require.into_iter().map(with_line).collect(),
            allow,
            quota: Quota {
                max_update_bytes: mib(raw.egress.max_update_mib),
                max_bytes_per_day: mib(raw.egress.max_mib_per_day),
                progress_every_s: raw.egress.progress_every_s,
            },
        })
    }

    /// What the policy says to a study that nobody here decided on yet.
    pub fn judge(&self, study: &StudyTerms) -> Verdict {
        match self.permit_study(study) {
            Err(refusal) => Verdict::Refused(refusal),
            Ok(()) if self.approve == Approve::Any || self.approved.contains(&study.digest) => {
                Verdict::Approved
            }
            Ok(()) => Verdict::Ask,
        }
    }

    /// Whether the rules let a study be approved at all, by whomever.
    ///
    /// # Errors
    /// The first rule that says no.
    pub fn permit_study(&self, study: &StudyTerms) -> Result<(), PolicyRefusal> {
        if self.refused.contains(&study.digest) {
            return Err(self.refuse("studies.refused", format!("study {}", study.digest.short())));
        }
        let above = |limit: Option<u32>, got: u32| limit.is_some_and(|limit| got > limit);
        if above(self.max_rounds, study.rounds) {
            return Err(self.refuse("studies.max_rounds", format!("{} rounds", study.rounds)));
        }
        if above(self.max_steps_per_round, study.steps_per_round) {
            let what = format!("{} steps per round", study.steps_per_round);
            return Err(self.refuse("studies.max_steps_per_round", what));
        }
        if self.min_quorum_sites.is_some_and(|least| study.quorum_sites < least) {
            let what = format!("a quorum of {} sites", study.quorum_sites);
            return Err(self.refuse("studies.min_quorum_sites", what));
        }
        if self.require_norm_bound && !study.norm_bounded {
            return Err(self.refuse("studies.require_norm_bound", "updates without a norm bound".to_owned()));
        }
        let refused =
            |(rule, line): &(Requirement, Option<usize>)| Some((*line, rule.refuses(&study.settings)?));
        if let Some((line, what)) = self.require.iter().find_map(refused) {
            return Err(PolicyRefusal { file: self.file.clone(), line, rule: require::TABLE, what });
        }
        // Whole rounds would be trained for nothing, and the others would wait for them.
        if study.trains { self.permit_kind(Kind::Update) } else { Ok(()) }
    }

    /// Whether a message of this kind may leave.
    ///
    /// # Errors
    /// [`PolicyRefusal`] of `egress.allow`.
    pub fn permit_kind(&self, kind: Kind) -> Result<(), PolicyRefusal> {
        if Kind::GOVERNED.contains(&kind) && !self.allow.contains(&kind) {
            return Err(self.refuse("egress.allow", format!("`{}`", kind.name())));
        }
        Ok(())
    }

    /// The numbers that bound what leaves.
    pub fn quota(&self) -> Quota {
        self.quota
    }

    /// A refusal by `rule`, which must be one of the file's keys.
    pub(super) fn refuse(&self, rule: &'static str, what: String) -> PolicyRefusal {
        PolicyRefusal { file: self.file.clone(), line: self.lines.get(rule).copied(), rule, what }
    }
}

/// The line of a key, if the file states it.
fn line_of(document: &Document<'_>, key: &str) -> Option<usize> {
    let mut probe = Problems::new();
    probe.add(key, "");
    document.locate(probe).err()?.items().first()?.line
}

fn digests(key: &str, texts: &[String], problems: &mut Problems) -> BTreeSet<StudyDigest> {
    let mut read = BTreeSet::new();
    for (index, text) in texts.iter().enumerate() {
        match text.parse::<StudyDigest>() {
            Ok(digest) => drop(read.insert(digest)),
            Err(error) => problems.add(format!("{key}[{index}]"), error.to_string()),
        }
    }
    read
}

fn kinds(names: &[String], problems: &mut Problems) -> BTreeSet<Kind> {
    let mut read = BTreeSet::new();
    for (index, name) in names.iter().enumerate() {
        match Kind::GOVERNED.into_iter().find(|kind| kind.name() == name) {
            Some(kind) => drop(read.insert(kind)),
            None => {
                let known: Vec<_> = Kind::GOVERNED.iter().map(|kind| kind.name()).collect();
                problems.add_allowed(
                    format!("egress.allow[{index}]"),
                    format!("unknown kind `{name}`"),
                    known.join(", "),
                );
            }
        }
    }
    read
}

#[cfg(test)]
mod tests {
    use common::ids::Digest;
    use common::testing::{example_study, example_study_with};

    use super::*;

    const TEXT: &str = "[studies]\napprove = \"any\"\nmax_rounds = 10\nmin_quorum_sites = 3\n\n[egress]\n\
                        allow = [\"label-manifest\", \"progress\"]\nmax_update_mib = 1\nmax_mib_per_day = 2\n\
                        progress_every_s = 5\n";

    fn study() -> StudyTerms {
        let digest = StudyDigest(Digest::of(b"study"));
        let (norm_bounded, trains, settings) = (false, false, Vec::new());
        StudyTerms {
            digest,
            rounds: 10,
            steps_per_round: 25,
            quorum_sites: 3,
            norm_bounded,
            trains,
            settings,
        }
    }

    #[test]
    fn a_refused_kind_names_file_line_and_rule() {
        let policy = Policy::parse("policy.toml", TEXT).unwrap();
        assert_eq!(policy.permit_kind(Kind::Progress), Ok(()));
        assert_eq!(policy.permit_kind(Kind::Answer), Ok(()));
        let refusal = policy.permit_kind(Kind::Update).unwrap_err();
        assert_eq!(refusal.to_string(), "policy.toml:7: `egress.allow` refuses `update`");
    }

    #[test]
    fn a_study_beyond_a_rule_is_refused_and_the_line_named() {
        let policy = Policy::parse("policy.toml", TEXT).unwrap();
        assert_eq!(policy.judge(&study()), Verdict::Approved);
        let Verdict::Refused(refusal) = policy.judge(&StudyTerms { quorum_sites: 2, ..study() }) else {
            panic!("expected a refusal")
        };
        assert_eq!((refusal.line, refusal.rule), (Some(4), "studies.min_quorum_sites"));
        assert!(policy.permit_study(&StudyTerms { rounds: 11, ..study() }).is_err());
    }

    #[test]
    fn a_study_with_a_setting_that_is_not_allowed_is_refused_and_the_line_named() {
        let rules = "[studies.require]\nrounds = { max = 500 }\ntraining.pseudo_labels = false\n\n[egress]";
        let policy = Policy::parse("policy.toml", &TEXT.replace("[egress]", rules)).unwrap();
        let settings = example_study().study().settings();
        assert_eq!(policy.judge(&StudyTerms { settings, ..study() }), Verdict::Approved);
        let settings = example_study_with(|draft| draft.training.pseudo_labels = true).study().settings();
        let Verdict::Refused(refusal) = policy.judge(&StudyTerms { settings, ..study() }) else {
            panic!("expected a refusal")
        };
        let words =
            "policy.toml:8: `studies.require` refuses `training.pseudo_labels = true`; allowed: false";
        assert_eq!(refusal.to_string(), words);
        let slip = TEXT.replace("[egress]", &rules.replace("pseudo_labels", "pseudo_label"));
        let shown = Policy::parse("policy.toml", &slip).unwrap_err().to_string();
        assert!(shown.starts_with("policy.toml:8: `studies.require.training.pseudo_label`"), "{shown}");
    }

    #[test]
    fn a_study_whose_updates_may_not_leave_is_not_trained_in() {
        let policy = Policy::parse("policy.toml", TEXT).unwrap();
        let trained = StudyTerms { trains: true, ..study() };
        let Verdict::Refused(refusal) = policy.judge(&trained) else { panic!("expected a refusal") };
        assert_eq!(refusal.to_string(), "policy.toml:7: `egress.allow` refuses `update`");
        let allowed = TEXT.replace("\"progress\"", "\"update\"");
        assert_eq!(Policy::parse("policy.toml", &allowed).unwrap().judge(&trained), Verdict::Approved);
    }

    #[test]
    fn asking_is_overruled_by_a_listed_digest_only() {
        let ask = TEXT.replace("\"any\"", "\"ask\"");
        assert_eq!(Policy::parse("policy.toml", &ask).unwrap().judge(&study()), Verdict::Ask);
        let listed = format!("\"ask\"\napproved = [\"{}\"]", study().digest);
        let listed = Policy::parse("policy.toml", &TEXT.replace("\"any\"", &listed)).unwrap();
        assert_eq!(listed.judge(&study()), Verdict::Approved);
        let refused = format!("\"any\"\nrefused = [\"{}\"]", study().digest);
        let refused = Policy::parse("policy.toml", &TEXT.replace("\"any\"", &refused)).unwrap();
        assert!(matches!(refused.judge(&study()), Verdict::Refused(r) if r.rule == "studies.refused"));
    }

    #[test]
    fn all_mistakes_are_reported_at_once() {
        let wrong =
            TEXT.replace("\"progress\"]", "\"voxels\"]").replace("max_update_mib = 1", "max_update_mib = 0");
        let shown = Policy::parse("policy.toml", &wrong).unwrap_err().to_string();
        assert!(shown.contains("unknown kind `voxels`") && shown.contains("max_update_mib"), "{shown}");
    }

    #[test]
    fn the_example_is_a_policy() {
        let text = include_str!("../../../configs/examples/policy.toml");
        Policy::parse("policy.toml", text).unwrap();
        let (before, after) = text.split_once("[studies.require]").unwrap();
        let all = format!("{before}[studies.require]{}", after.replacen("\n# ", "\n", 5));
        assert_eq!(Policy::parse("policy.toml", &all).unwrap().require.len(), 5, "{all}");
    }
}
