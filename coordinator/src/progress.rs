//! What the operator sees go by: one line for each thing that happened, as words or as JSON.
//!
//! Data for standard output. Logs, which are for finding faults, go to standard error through `tracing`.

use std::collections::BTreeMap;
use std::io::Write;

use common::ids::{Role, RoundId, SiteId};
use serde::{Deserialize, Serialize};

use crate::store::pause_name;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case", rename_all_fields = "snake_case")]
pub enum Line {
    /// The server answers at this address.
    Listening {
        /// `ip:port`.
        address: String,
        /// Over TCP as well as over QUIC.
        #[serde(default)]
        tcp: bool,
    },
    /// A site was enrolled.
    Enrolled {
        /// The site.
        site: SiteId,
        /// Its role.
        role: Role,
    },
    /// A site is connected.
    Connected {
        /// The site.
        site: SiteId,
        /// Its role.
        role: Role,
    },
    /// A site was revoked: its certificates no longer count, and its connection ends.
    Revoked {
        /// The site.
        site: SiteId,
    },
    /// A site's connection ended.
    Gone {
        /// The site.
        site: SiteId,
    },
    /// A request or connection was refused.
    Refused {
        /// The site, if it could be told.
        site: Option<SiteId>,
        /// Stable short name.
        code: String,
        /// What was asked and why not.
        detail: String,
    },
    /// How far a site's training is.
    Training {
        /// The site.
        site: SiteId,
        /// The round.
        round: RoundId,
        /// Steps done.
        step: u32,
        /// Of so many.
        steps: u32,
        /// Masked loss, if the site told it.
        loss: Option<f32>,
    },
    /// An evaluator's word on a model.
    Scored {
        /// The evaluator.
        site: SiteId,
        /// The round that made the model.
        round: RoundId,
        /// Mean Dice over the organs that some trainer annotates.
        organs: Option<f64>,
        /// As for organs, over lesions.
        lesions: Option<f64>,
        /// Mean Dice of each class that some trainer annotates, by name.
        classes: BTreeMap<String, f64>,
        /// The other scored classes.
        untrained: Vec<String>,
    },
    /// A turn in a study.
    Study {
        /// The study's name.
        study: String,
        /// Stable short name of what happened.
        what: String,
        /// In words.
        detail: String,
    },
    /// The store fails; nothing is lost, and nothing is announced until it works again.
    Fault {
        /// Stable short name.
        code: String,
        /// In words.
        detail: String,
    },
    /// The store works again; what waited goes on.
    Recovered {
        /// What the failure was called.
        code: String,
    },
    /// Somebody set the machine's clock.
    ClockStepped {
        /// How far; negative when it was set back.
        seconds: i64,
        /// The same in words.
        detail: String,
    },
    /// The server has stopped.
    Stopped,
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Listening { address, tcp: true } => write!(f, "listening on {address} (UDP and TCP)"),
            Self::Listening { address, tcp: false } => write!(f, "listening on {address} (UDP)"),
            Self::Enrolled { site, role } => write!(f, "{site}: enrolled as {role}"),
            Self::Connected { site, role } => write!(f, "{site}: connected ({role})"),
            Self::Revoked { site } => write!(f, "{site}: revoked"),
            Self::Gone { site } => write!(f, "{site}: gone"),
            Self::Refused { site: Some(site), code, detail } => {
                write!(f, "{site}: refused ({code}): {detail}")
            }
            Self::Refused { site: None, code, detail } => write!(f, "refused ({code}): {detail}"),
            Self::Training { site, round, step, steps, loss } => {
                write!(f, "{site}: round {round}, step {step} of {steps}")?;
                loss.map_or(Ok(()), |loss| write!(f, ", loss {loss:.4}"))
            }
            Self::Scored { site, round, organs, lesions, classes, untrained } => {
                let mean = |value: Option<f64>| value.map_or("unknown".to_owned(), |v| format!("{v:.3}"));
                write!(f, "{site}: round {round}, held-out Dice {} over organs", mean(*organs))?;
                if lesions.is_some() {
                    write!(f, ", {} over lesions", mean(*lesions))?;
                }
                classes.iter().try_for_each(|(name, dice)| write!(f, "\n    {name:<22} {dice:.3}"))?;
                if !untrained.is_empty() {
                    write!(f, "\n    annotated by no trainer: {}", untrained.join(", "))?;
                }
                Ok(())
            }
            Self::Study { study, detail, .. } => write!(f, "{study}: {detail}"),
            Self::Fault { code, detail } => match pause_name(code) {
                Some(name) => write!(f, "paused: {name}: {detail}"),
                None => write!(f, "store fails ({code}): {detail}"),
            },
            Self::Recovered { code } => match pause_name(code) {
                Some(name) => write!(f, "no longer paused: {name}; everything goes on"),
                None => write!(f, "the store works again ({code} is over)"),
            },
            Self::ClockStepped { detail, .. } => {
                write!(f, "clock stepped by {detail}; deadlines keep their length")
            }
            Self::Stopped => f.write_str("stopped"),
        }
    }
}

/// Where lines go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Words, a line each, on standard output.
    Words,
    /// JSON, an object a line, on standard output.
    Json,
    /// Nowhere.
    Silent,
}

impl Progress {
    /// Says one thing. A closed pipe is not our failure: training goes on without an audience.
    pub fn say(self, line: &Line) {
        let text = match self {
            Self::Words => line.to_string(),
            Self::Json => serde_json::to_string(line).unwrap_or_default(),
            Self::Silent => return,
        };
        let _ = writeln!(std::io::stdout().lock(), "{text}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_words_or_json_that_reads_back() {
        let line = Line::Training {
            site: "north".parse().unwrap(),
            round: RoundId(2),
            step: 5,
            steps: 20,
            loss: Some(0.5),
        };
        assert_eq!(line.to_string(), "north: round 2, step 5 of 20, loss 0.5000");
        let json = serde_json::to_string(&line).unwrap();
        assert_eq!(json, r#"{"event":"training","site":"north","round":2,"step":5,"steps":20,"loss":0.5}"#);
        assert_eq!(serde_json::from_str::<Line>(&json).unwrap(), line);
    }

    #[test]
    fn a_full_disk_is_a_pause_with_a_name() {
        let words = |code: &str| Line::Fault { code: code.to_owned(), detail: "why".to_owned() }.to_string();
        assert_eq!(words("disk-full"), "paused: disk full: why");
        assert_eq!(words("disk-read-only"), "paused: disk read-only: why");
        assert_eq!(words("store-corrupt"), "store fails (store-corrupt): why");
        let over = Line::Recovered { code: "disk-full".to_owned() };
        assert_eq!(over.to_string(), "no longer paused: disk full; everything goes on");
        let stepped = Line::ClockStepped { seconds: -7200, detail: "-2 h".to_owned() };
        assert_eq!(stepped.to_string(), "clock stepped by -2 h; deadlines keep their length");
    }
}
