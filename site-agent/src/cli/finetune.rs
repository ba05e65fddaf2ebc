//! `site-agent finetune`: a study's rounds on this site's scans alone. From a model to a model; nothing leaves.
//!
//! The study's file is the one that a coordinator would be given, so that what was tried here can be done in a consortium.
//! Its document is written beside the model: with both, `evaluate` and `predict` use the model like any other.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use common::ids::{ClassId, RoundId};
use common::study::{Study, StudyDocument, StudyDraft};
use indicatif::{ProgressBar, ProgressStyle};

use super::error_report::{CliError, Exit};
use super::run::cancelled_by_signal;
use super::{ConfigArgs, TaxonomyArg, limit_threads, line, model, runtime, site_name};
use crate::client::artifacts::lost_artifact;
use crate::client::checkpointing::CheckpointPolicy;
use crate::client::config::SiteConfig;
use crate::client::files;
use crate::client::finetune::{Ended, Finetune, RoundFolder};
use crate::client::state::StateFolder;
use crate::client::training::PreparedScans;
use crate::data::copies::Fingerprints;
use crate::model::NamedTensors;
use crate::train::burn_trainer::BurnTrainer;
use crate::train::state::StateError;
use crate::train::tensors::to_artifact;
use crate::train::trainer::{Cancel, StepReport};

/// Arguments of `finetune`.
#[derive(Debug, Args)]
pub(super) struct FinetuneArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// What and how to train (TOML), as for `coordinator study add`; its quorum and evaluation play no part.
    #[arg(long, value_name = "FILE")]
    study: PathBuf,
    /// The model to start from (safetensors); for other classes, one of `site-agent model adapt`.
    #[arg(long, value_name = "FILE")]
    model: PathBuf,
    /// The class embeddings (safetensors).
    #[arg(long, value_name = "FILE")]
    embeddings: PathBuf,
    #[command(flatten)]
    taxonomy: TaxonomyArg,
    /// Optimiser steps in all, rounded up to whole rounds; default: the rounds of the study.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    steps: Option<u32>,
    /// Where the model goes; safetensors. The study's document goes beside it, to NAME.study.json.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

pub(super) fn run(args: &FinetuneArgs) -> Result<(), CliError> {
    let config = args.config.read()?;
    limit_threads(config.threads)?;
    let prepared = Prepared::new(args, &config)?;
    prepared.introduce();
    let runtime = runtime()?;
    // Until here a signal ended the process at once: preparing scans leaves nothing half done.
    prepared.train(&args.out, &cancelled_by_signal(&runtime, "stopping after the step under way")?)
}

/// Everything that can be wrong has been looked at.
struct Prepared {
    document: StudyDocument,
    initial: NamedTensors,
    scans: PreparedScans,
    annotated: BTreeSet<ClassId>,
    trainer: BurnTrainer,
    rounds: RoundFolder,
    done: RoundId,
    checkpoints: CheckpointPolicy,
}

impl Prepared {
    fn new(args: &FinetuneArgs, config: &SiteConfig) -> Result<Self, CliError> {
        if args.out.exists() {
            let there = anyhow::anyhow!("{} exists", args.out.display());
            return Err(CliError::new(there).exit(Exit::Data).hint("move it away, or name another file"));
        }
        // Before what takes hours to make.
        let place = files::require_writable(&files::folder_of(&args.out));
        place.map_err(|error| CliError::new(error).or_hint("make the folder, or name a file in another"))?;
        let (initial, embeddings) = (model::read(&args.model)?, model::read(&args.embeddings)?);
        let document = document(args, &initial, &embeddings)?;
        let study = document.study();
        let state = StateFolder::open(&config.state)?;
        let known = &mut Fingerprints::default();
        let scans = PreparedScans::open(study, config, &state.cache(), "finetune", known)?;
        let annotated: BTreeSet<ClassId> =
            scans.summaries.iter().flat_map(|scan| scan.annotated.iter().copied()).collect();
        if annotated.is_empty() {
            let none = anyhow::anyhow!("no training scan of this site annotates a class of the study");
            let hint = "classes meet by name: a data set that is described with other classes than the standard ones \
                        says so by `taxonomy` in site.toml";
            return Err(CliError::new(none).exit(Exit::Data).hint(hint));
        }
        let trainer = scans.trainer(study, config, &site_name(config)?, &embeddings)?;
        let rounds = RoundFolder::open(&state.finetune(document.digest()))?;
        let done = rounds.done()?;
        let checkpoints = config.checkpoints;
        Ok(Self { initial, scans, annotated, trainer, rounds, done, document, checkpoints })
    }

    /// What is about to happen, and what is missing.
    fn introduce(&self) {
        let study = self.document.study();
        let Study { name, rounds, training, taxonomy, .. } = study;
        let (scans, steps) = (self.scans.summaries.len(), training.steps_per_round);
        line(format!(
            "{name} ({}): {rounds} rounds of {steps} steps on {scans} scans",
            self.document.digest()
        ));
        let of = |wanted: bool| {
            let classes = taxonomy.classes().iter();
            let named = classes.filter(|class| self.annotated.contains(&class.id) == wanted);
            named.map(|class| class.name.as_str()).collect::<Vec<_>>().join(", ")
        };
        line(format!("annotated here: {}", of(true)));
        if self.annotated.len() < taxonomy.len() {
            line(format!("not annotated here, and not learnt: {}", of(false)));
        }
        if self.done > RoundId(0) {
            line(format!("going on after round {}", self.done));
        }
    }

    fn train(mut self, out: &Path, cancel: &Cancel) -> Result<(), CliError> {
        let study = self.document.study();
        let mut lines = RoundLines::new(study, self.done);
        let finetune = Finetune {
            study,
            digest: self.document.digest(),
            annotated: &self.annotated,
            rounds: &self.rounds,
            checkpoints: self.checkpoints,
        };
        let mut progress = |step| lines.take(&step);
        let ended = finetune.run(self.initial, &mut self.trainer, &mut progress, cancel);
        lines.bar.finish_and_clear();
        let ended = ended.map_err(|error| explained(error, self.rounds.path()))?;
        let tuned = match ended {
            Ended::Done(tuned) => tuned,
            Ended::Stopped(round) => {
                let stopped = anyhow::anyhow!("stopped: {round} of {} rounds are done", study.rounds);
                let hint = "the same command goes on from there, with the next step of the round under way";
                return Err(CliError::new(stopped).hint(hint));
            }
        };
        let beside = out.with_extension("study.json");
        files::write(&beside, self.document.bytes())?;
        model::write(out, &tuned)?;
        self.rounds.remove()?;
        self.scans.forget()?;
        line(format!("{}: {}", out.display(), model::size(&tuned)));
        line(format!("{}: its study, for `evaluate --study` and `predict --study`", beside.display()));
        Ok(())
    }
}

/// What there is to do about rounds that cannot be gone on from: nobody else has them.
fn explained(error: anyhow::Error, rounds: &Path) -> CliError {
    let is_damaged =
        error.chain().any(|cause| matches!(cause.downcast_ref(), Some(StateError::Damaged { .. })));
    let is_lost = is_damaged || lost_artifact(&error).is_some();
    let explained = CliError::new(error);
    if !is_lost {
        return explained;
    }
    explained.hint(format!("what was kept is damaged: remove {} and begin anew", rounds.display()))
}

/// The study that a coordinator would make of the same files.
fn document(
    args: &FinetuneArgs,
    initial: &NamedTensors,
    embeddings: &NamedTensors,
) -> Result<StudyDocument, CliError> {
    let taxonomy = args.taxonomy.read()?;
    let text = files::read_text(&args.study)?;
    let mut draft = StudyDraft::parse(&args.study.display().to_string(), &text, &taxonomy)?;
    if let Some(steps) = args.steps {
        draft.rounds = steps.div_ceil(draft.training.steps_per_round);
        // A study may not ask for warm-up or scores after its end, and these were written for its own number of rounds.
        draft.training.warmup_rounds = draft.training.warmup_rounds.min(draft.rounds);
        draft.evaluation.every_rounds = draft.evaluation.every_rounds.min(draft.rounds);
    }
    let (initial, _) = to_artifact(initial)?;
    let (embeddings, _) = to_artifact(embeddings)?;
    let hint = "`site-agent model adapt` makes a model for other classes and embeddings";
    let joined = draft.into_document(taxonomy, &initial, &embeddings);
    joined.map_err(|mistakes| CliError::new(mistakes).or_hint(hint))
}

/// A bar on a terminal, and a line for each round everywhere.
struct RoundLines<'a> {
    study: &'a Study,
    bar: ProgressBar,
    /// Of the steps of this round that this process did.
    done: u32,
    loss: f64,
    time: Duration,
}

impl<'a> RoundLines<'a> {
    fn new(study: &'a Study, done: RoundId) -> Self {
        let steps = u64::from(study.training.steps_per_round);
        // It draws on a terminal alone.
        let bar = ProgressBar::new(u64::from(study.rounds) * steps);
        // The template is ours; should it not parse, the default bar does.
        if let Ok(style) = ProgressStyle::with_template("{wide_bar} {pos}/{len} steps {msg:14} {eta}") {
            bar.set_style(style);
        }
        bar.set_position(u64::from(done.0) * steps);
        bar.reset_eta();
        Self { study, bar, done: 0, loss: 0.0, time: Duration::ZERO }
    }

    fn take(&mut self, step: &StepReport) {
        let rounds_before = u64::from(step.round.0.saturating_sub(1));
        self.bar.set_position(rounds_before * u64::from(step.steps) + u64::from(step.step));
        self.bar.set_message(format!("loss {:.4}", step.loss));
        self.done += 1;
        self.loss += step.loss;
        self.time += step.duration;
        if step.step < step.steps {
            return;
        }
        let (rate, seconds) = (self.study.learning_rate(step.round), self.time.as_secs_f64());
        let of_round = format!("round {} of {}", step.round, self.study.rounds);
        let loss = self.loss / f64::from(self.done);
        let words = format!("{of_round}: loss {loss:.4}, learning rate {rate:.1e}, {seconds:.1} s");
        self.bar.suspend(|| line(words));
        (self.done, self.loss, self.time) = (0, 0.0, Duration::ZERO);
    }
}

#[cfg(test)]
mod tests;
