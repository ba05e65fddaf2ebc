//! `[studies.require]` of the policy: what the settings of a study may be.
//!
//! A rule stands under the key by which `site-agent study show` prints the setting, and names what is allowed: a value, bounds, or
//! a list of these. What a study does not set, or what has no effect in it, is `none` and allowed by that word alone: a rule
//! that says nothing of `none` wants the setting.

use common::config::{Problems, did_you_mean};
use common::study::settings::{KEYS, Setting, in_words};
use serde::Deserialize;
use serde_json::{Map, Value};

/// The table's name in the policy.
pub(super) const TABLE: &str = "studies.require";

/// What one setting may be.
#[derive(Clone, Debug)]
pub(super) struct Requirement {
    /// Dotted key of the setting.
    pub(super) key: &'static str,
    allowed: Vec<Allowed>,
}

#[derive(Clone, Debug)]
enum Allowed {
    /// This value, as people read it.
    Value(Value),
    /// A number between these.
    Within(Bounds),
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Bounds {
    min: Option<f64>,
    max: Option<f64>,
}

/// Reads the table; `problems` has what is wrong with it.
pub(super) fn read(table: &Map<String, Value>, problems: &mut Problems) -> Vec<Requirement> {
    let mut read = Vec::new();
    read_section("", table, &mut read, problems);
    read
}

fn read_section(
    prefix: &str,
    table: &Map<String, Value>,
    read: &mut Vec<Requirement>,
    problems: &mut Problems,
) {
    for (name, value) in table {
        let path = format!("{prefix}{name}");
        let below = format!("{path}.");
        match (KEYS.into_iter().find(|key| *key == path), value) {
            (Some(key), value) => {
                let allowed = read_allowed(key, value, problems);
                read.push(Requirement { key, allowed });
            }
            (None, Value::Object(section)) if KEYS.iter().any(|key| key.starts_with(&below)) => {
                read_section(&below, section, read, problems);
            }
            (None, _) => {
                let more = match did_you_mean(&path, KEYS) {
                    Some(key) => format!("did you mean `{key}`?"),
                    None => "`site-agent study show DIGEST` lists those of a study".to_owned(),
                };
                problems.add(format!("{TABLE}.{path}"), format!("is no setting of a study: {more}"));
            }
        }
    }
}

fn read_allowed(key: &str, value: &Value, problems: &mut Problems) -> Vec<Allowed> {
    let items = match value {
        Value::Array(items) => items.as_slice(),
        one => std::slice::from_ref(one),
    };
    let allowed: Vec<Allowed> = items.iter().filter_map(Allowed::of).collect();
    if allowed.is_empty() || allowed.len() < items.len() {
        let expected = "a value, `{ min = …, max = … }` of finite numbers or one of them, or a list of these";
        problems.add_allowed(format!("{TABLE}.{key}"), format!("{value} is no rule"), expected);
    }
    allowed
}

impl Requirement {
    /// What it refuses of a study with these settings; `None` when it allows them.
    pub(super) fn refuses(&self, settings: &[Setting]) -> Option<String> {
        let found = settings.iter().find(|setting| setting.path() == self.key);
        let value = found.map_or(&Value::Null, |setting| &setting.value);
        if self.allows(value) {
            return None;
        }
        let allowed: Vec<String> = self.allowed.iter().map(Allowed::in_words).collect();
        Some(format!("`{} = {}`; allowed: {}", self.key, in_words(value), allowed.join(", ")))
    }

    /// Of a list, each item must be allowed.
    fn allows(&self, value: &Value) -> bool {
        match value {
            Value::Array(items) if !items.is_empty() => items.iter().all(|item| self.allows(item)),
            value => self.allowed.iter().any(|allowed| allowed.covers(value)),
        }
    }
}

impl Allowed {
    fn of(value: &Value) -> Option<Self> {
        match value {
            Value::Null | Value::Array(_) => None,
            Value::Bool(_) | Value::Number(_) | Value::String(_) => Some(Self::Value(value.clone())),
            Value::Object(stated) => {
                let bounds = Bounds::deserialize(value).ok()?;
                let Bounds { min, max } = bounds;
                // A number that is none reads as a bound that is absent.
                let is_whole = [min, max].into_iter().flatten().count() == stated.len();
                let is_range = min.or(max).is_some() && min.zip(max).is_none_or(|(min, max)| min <= max);
                (is_whole && is_range).then_some(Self::Within(bounds))
            }
        }
    }

    fn covers(&self, value: &Value) -> bool {
        match self {
            // 3 and 3.0 are the same.
            Self::Value(own) if own.is_f64() || value.is_f64() => own.as_f64() == value.as_f64(),
            Self::Value(own) => in_words(own) == in_words(value),
            Self::Within(Bounds { min, max }) => value.as_f64().is_some_and(|number| {
                min.is_none_or(|min| number >= min) && max.is_none_or(|max| number <= max)
            }),
        }
    }

    fn in_words(&self) -> String {
        match self {
            Self::Value(value) => in_words(value),
            Self::Within(Bounds { min: Some(min), max: Some(max) }) => format!("{min} to {max}"),
            Self::Within(Bounds { min: Some(min), max: None }) => format!("at least {min}"),
            Self::Within(Bounds { min: None, max: Some(max) }) => format!("at most {max}"),
            Self::Within(Bounds { min: None, max: None }) => "any number".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use common::study::StudyDraft;
    use common::testing::example_study_with;

    use super::*;

    /// What these lines refuse of the example study after a change.
    fn refused(lines: &str, change: impl FnOnce(&mut StudyDraft)) -> Vec<String> {
        let settings = example_study_with(change).study().settings();
        let mut problems = Problems::new();
        let rules = read(&toml::from_str(lines).unwrap(), &mut problems);
        assert_eq!(problems, Problems::new());
        rules.iter().filter_map(|rule| rule.refuses(&settings)).collect()
    }

    /// What is wrong with these lines.
    fn wrong(lines: &str) -> String {
        let mut problems = Problems::new();
        read(&toml::from_str(lines).unwrap(), &mut problems);
        problems.into_result("policy.toml").map_err(|wrong| wrong.to_string()).unwrap_err()
    }

    #[test]
    fn a_setting_has_a_value_or_one_of_a_list() {
        let rules = "training.pseudo_labels = false\n[aggregation]\nstrategy = [\"fedavg\", \"fedprox\"]\nserver_lr = 1\n";
        assert_eq!(refused(rules, |_| {}), [""; 0]);
        let found = refused(rules, |draft| {
            draft.training.pseudo_labels = true;
            draft.aggregation.strategy = common::study::sections::Strategy::ServerMomentum;
            draft.aggregation.server_lr = 0.5;
        });
        let expected = [
            "`aggregation.server_lr = 0.5`; allowed: 1",
            "`aggregation.strategy = server-momentum`; allowed: fedavg, fedprox",
            "`training.pseudo_labels = true`; allowed: false",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_number_stays_within_bounds() {
        let sites =
            |least: u32| format!("quorum.sites = {{ min = {least} }}\nrounds = {{ min = 1, max = 100000 }}");
        let three = |draft: &mut StudyDraft| draft.quorum.sites = 3;
        assert_eq!(refused(&sites(3), three), [""; 0]);
        assert_eq!(refused(&sites(4), three), ["`quorum.sites = 3`; allowed: at least 4"]);
        let small = "preprocessing.patch = { max = 64 }";
        assert_eq!(refused(small, |draft| draft.preprocessing.patch = [64, 64, 32]), [""; 0]);
        let found = refused(small, |draft| draft.preprocessing.patch = [64, 96, 64]);
        assert_eq!(found, ["`preprocessing.patch = 64, 96, 64`; allowed: at most 64"]);
    }

    #[test]
    fn what_a_study_does_not_set_is_none() {
        let bounded = "aggregation.max_update_norm = { max = 100 }";
        let refusal = "`aggregation.max_update_norm = none`; allowed: at most 100";
        assert_eq!(refused(bounded, |_| {}), [refusal]);
        assert_eq!(refused(bounded, |draft| draft.aggregation.max_update_norm = Some(50.0)), [""; 0]);
        let or_none =
            "quorum.staleness_weight = [\"none\", { max = 0.5 }]\nparticipants.leave_out = \"none\"";
        assert_eq!(refused(or_none, |_| {}), [""; 0], "no late update counts, and nobody is left out");
        let found = refused(or_none, |draft| draft.participants.leave_out = vec!["west".parse().unwrap()]);
        assert_eq!(found, ["`participants.leave_out = west`; allowed: none"]);
    }

    #[test]
    fn a_rule_that_would_never_be_asked_or_kept_is_a_mistake() {
        assert_eq!(
            wrong("training.pseudo_label = false"),
            "policy.toml: `studies.require.training.pseudo_label`: is no setting of a study: did you mean \
             `training.pseudo_labels`?"
        );
        for rule in ["[]", "{}", "{ max = nan }", "{ min = 2, max = 1 }", "{ least = 1 }", "[[1]]"] {
            let wrong = wrong(&format!("quorum.sites = {rule}"));
            assert!(wrong.starts_with("policy.toml: `studies.require.quorum.sites`: "), "{rule}: {wrong}");
        }
        assert!(wrong("training = false").contains("`studies.require.training`: is no setting of a study"));
    }
}
