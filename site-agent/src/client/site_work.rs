//! The site's own work: its scans, its device, its network.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Context;
use common::ids::{ArtifactHash, AttemptId, ModelHash, RoundId, SiteId, StudyDigest};
use common::manifest::{CaseLabels, LabelManifest};
use common::report::{EvaluationReport, ReportSubject};
use common::round::RoundTask;
use common::study::sections::OptimizerState as BetweenRounds;
use common::study::{Study, StudyDocument};

use super::artifacts::ArtifactFolder;
use super::base_model::BaseModel;
use super::checkpointing::{RoundFile, Unkept};
use super::config::SiteConfig;
use super::files;
use super::scoring::{Scorer, Scoring};
use super::state::StateFolder;
use super::training::{PreparedScans, annotated_cases};
use super::work::Work;
use crate::data::cache::CaseCache;
use crate::data::copies::Fingerprints;
use crate::data::dataset::{Case, Split};
use crate::infer::evaluate::{Evaluation, numbered};
use crate::infer::network::StudyNetwork;
use crate::infer::overlay::OverlayFiles;
use crate::infer::predict::{InferenceSettings, NetworkSegmenter};
use crate::train::burn_trainer::BurnTrainer;
use crate::train::checkpoint::CheckpointKey;
use crate::train::state::store_state;
use crate::train::trainer::{Cancel, LocalTrainer, RoundOutcome, RoundPlan, StepReport};

/// Does the work of one site.
pub struct SiteWork {
    config: SiteConfig,
    site: SiteId,
    state: StateFolder,
    artifacts: ArtifactFolder,
    prepared: Option<(StudyDigest, PreparedScans)>,
    trainer: Option<(StudyDigest, BurnTrainer)>,
    /// The attempt with which the trainer's optimiser learnt last, and its round; none where each round begins without it.
    learnt: Option<(AttemptId, RoundId)>,
    unkept: Unkept,
    scoring: Scoring,
    /// Of any study: where two take turns, the scans are looked at anew at each turn.
    compared: Fingerprints,
}

impl SiteWork {
    /// The work of `site`.
    ///
    /// # Errors
    /// A state folder that cannot be used.
    pub fn new(config: SiteConfig, site: SiteId, state: StateFolder) -> anyhow::Result<Self> {
        let artifacts = state.artifacts();
        let (prepared, trainer, learnt, unkept) = (None, None, None, Unkept::default());
        let (scoring, compared) = (Scoring::default(), Fingerprints::default());
        Ok(Self { config, site, state, artifacts, prepared, trainer, learnt, unkept, scoring, compared })
    }

    fn prepared(&mut self, study: &StudyDocument) -> anyhow::Result<&PreparedScans> {
        if self.prepared.as_ref().is_none_or(|(digest, _)| *digest != study.digest()) {
            let user = study.digest().to_string();
            let (cache, known) = (self.state.cache(), &mut self.compared);
            let scans = PreparedScans::open(study.study(), &self.config, &cache, &user, known)?;
            self.prepared = Some((study.digest(), scans));
        }
        self.prepared.as_ref().map(|(_, scans)| scans).context("the scans were just prepared")
    }

    /// The trainer of a study, with what its optimiser knew before `round`.
    fn trainer(&mut self, study: &StudyDocument, round: RoundId) -> anyhow::Result<&mut BurnTrainer> {
        let is_of = |(digest, _): &(StudyDigest, BurnTrainer)| *digest == study.digest();
        // Asked for a round again, it must not know what it learnt in it.
        let knows_more = self.learnt.is_some_and(|(_, learnt)| learnt >= round);
        if knows_more || !self.trainer.as_ref().is_some_and(is_of) {
            // Two have no room in memory.
            (self.trainer, self.learnt) = (None, None);
            let trainer = self.new_trainer(study, round)?;
            self.trainer = Some((study.digest(), trainer));
        }
        self.trainer.as_mut().map(|(_, trainer)| trainer).context("the trainer was just made")
    }

    fn new_trainer(&mut self, document: &StudyDocument, round: RoundId) -> anyhow::Result<BurnTrainer> {
        let study = document.study();
        let embeddings = self.artifacts.load(study.embeddings.artifact)?;
        self.prepared(document)?;
        let (_, scans) = self.prepared.as_ref().context("the scans were just prepared")?;
        let mut trainer = scans.trainer(study, &self.config, &self.site, &embeddings)?;
        if study.training.optimizer_state == BetweenRounds::Keep {
            let restore = |known| trainer.restore_optimizer(known);
            self.state.recall_optimizer(document.digest(), round, restore)?;
        }
        Ok(trainer)
    }
}

/// How much of a round was work, and how much was waiting for scans.
#[derive(Default)]
struct Utilisation {
    duration: Duration,
    waited: Duration,
}

impl Utilisation {
    /// Share of the time from which on somebody should look after it.
    const STARVED: f64 = 0.2;

    fn add(&mut self, step: &StepReport) {
        self.duration += step.duration;
        self.waited += step.waited;
    }

    fn tell(&self, round: RoundId) {
        let share = self.waited.as_secs_f64() / self.duration.as_secs_f64().max(f64::MIN_POSITIVE);
        let (seconds, percent) = (self.duration.as_secs_f64(), 100.0 * share);
        tracing::info!("round {round}: {seconds:.1} s of training, {percent:.1} % of them waiting for scans");
        if share > Self::STARVED {
            tracing::warn!(
                "hint: scans are prepared more slowly than they are used: raise `memory_mib`, or put the state on a faster disk"
            );
        }
    }
}

impl Work for SiteWork {
    fn count_labels(&mut self, study: &StudyDocument) -> anyhow::Result<LabelManifest> {
        let (site, min_count) = (self.site.clone(), self.config.min_count);
        let summaries = &self.prepared(study)?.summaries;
        let cases = summaries.iter().map(|case| CaseLabels {
            dataset: &case.dataset,
            patient: &case.patient,
            annotated: &case.annotated,
            present: &case.present,
            pseudo: case.pseudo,
        });
        Ok(LabelManifest::count(site, study.study().taxonomy.digest(), cases, min_count))
    }

    fn train(
        &mut self,
        study: &StudyDocument,
        task: &RoundTask,
        attempt: AttemptId,
        progress: &mut dyn FnMut(StepReport),
        cancel: &Cancel,
    ) -> anyhow::Result<RoundOutcome> {
        let RoundTask { round, base, steps, .. } = *task;
        let global = BaseModel::new(&self.artifacts, base);
        let key = CheckpointKey { study: study.digest(), round, base, steps };
        self.unkept.clear();
        let kept = RoundFile::new(self.state.checkpoint(), key, self.config.checkpoints);
        let mut kept = kept.telling(self.unkept.clone());
        let trainer = self.trainer(study, round)?;
        trainer.load_stored(Box::new(global))?;
        let plan = RoundPlan { round, steps, learning_rate: study.study().learning_rate(round) };
        let mut busy = Utilisation::default();
        let mut progress = |step: StepReport| {
            busy.add(&step);
            progress(step);
        };
        let trained = trainer.train_round_kept(&plan, &mut kept, &mut progress, cancel);
        if trained.is_err() {
            // What its optimiser knew went with the round: the next one begins with what is on the disk.
            self.trainer = None;
        }
        self.unkept.clear();
        let outcome = trained?;
        busy.tell(round);
        let is_remembered = study.study().training.optimizer_state == BetweenRounds::Keep;
        self.learnt = is_remembered.then_some((attempt, round));
        Ok(outcome)
    }

    fn unkept(&self) -> Unkept {
        self.unkept.clone()
    }

    fn keep_learnt(&mut self, attempt: AttemptId) -> anyhow::Result<()> {
        let Some((_, trainer)) =
            self.trainer.as_ref().filter(|_| self.learnt.is_some_and(|(learnt, _)| learnt == attempt))
        else {
            return Ok(());
        };
        Ok(store_state(&self.state.optimizer_after(attempt), &trainer.optimizer_state())?)
    }

    fn leave_round(&mut self) {
        if let Err(error) = files::remove(&self.state.checkpoint()) {
            tracing::warn!("{error:#}");
        }
    }

    /// The next round begins with what is on the disk, as it would after a restart.
    fn unlearn(&mut self, attempt: AttemptId) {
        if self.learnt.is_some_and(|(learnt, _)| learnt == attempt) {
            self.trainer = None;
        }
    }

    /// Approved again, it begins with fresh moments, and its scans are prepared anew where the cache has lost them: as after a restart.
    fn forget(&mut self, study: StudyDigest) {
        if self.trainer.as_ref().is_some_and(|(of, _)| *of == study) {
            (self.trainer, self.learnt) = (None, None);
        }
        self.prepared.take_if(|(of, _)| *of == study);
        let cache = CaseCache::open(&self.state.cache(), &study.to_string());
        if let Err(error) = cache.and_then(|cache| cache.forget()) {
            tracing::warn!("scans that were prepared for study {} stay in the cache: {error}", study.short());
        }
    }

    fn evaluate(
        &mut self,
        document: &StudyDocument,
        round: RoundId,
        model: ModelHash,
        cancel: &Cancel,
    ) -> anyhow::Result<EvaluationReport> {
        let study = document.study();
        let weights = self.artifacts.load(model)?;
        let embeddings = self.artifacts.load(study.embeddings.artifact)?;
        let network = StudyNetwork::build(study, &weights, &embeddings, self.config.device, cancel.clone())?;
        // The network has its own: a copy would lie there as long as scans are scored.
        drop(weights);
        // What a model said is no truth to score another by.
        let cases =
            annotated_cases(study, &self.config, |case| case.split != Split::Excluded && !case.pseudo)?;
        let overlays = self.state.overlays(document.digest(), round);
        files::make_private_folder(&overlays)?;
        if let Err(error) = self.state.prune_overlays(document.digest(), round) {
            tracing::warn!("pictures of earlier rounds stay: {:#}", anyhow::Error::from(error));
        }
        let window_batch = self.config.window_batch;
        let settings = InferenceSettings { window_batch, ..InferenceSettings::of(study) };
        let tau_mm = |class| study.evaluation.nsd_tolerance_mm.of(class);
        let cases: Vec<&Case> = cases.iter().collect();
        let overlays = OverlayFiles::new(&overlays, &cases);
        let evaluation = Evaluation {
            window_hu: settings.preprocessing.window_hu,
            taxonomy: &study.taxonomy,
            tau_mm: &tau_mm,
            overlays: Some(&overlays),
        };
        let segmenter = NetworkSegmenter { settings, network: &network };
        let subject = ReportSubject {
            site: self.site.clone(),
            model,
            round,
            study: document.digest(),
            taxonomy: study.taxonomy.digest(),
        };
        let scorer = Scorer {
            evaluation: &evaluation,
            preprocessing: &segmenter.settings.preprocessing,
            segmenter: &segmenter,
            cancel,
        };
        let scores = self.scoring.score(&subject, &cases, &scorer)?;
        let scores = numbered(cases.iter().copied().zip(&scores));
        let min_count = self.config.min_count.max(study.evaluation.min_count);
        Ok(EvaluationReport::summarise(subject, &scores, tau_mm, min_count, study.seed))
    }
}

/// What a site needs of a study beside the model of each task.
pub fn needed_artifacts(study: &Study) -> BTreeSet<ArtifactHash> {
    BTreeSet::from([study.embeddings.artifact])
}
