//! A site whose training is only a change of the weights: its process does everything else that an agent does.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::bail;
use common::ids::{AttemptId, ClassId, ModelHash, RoundId, SiteId};
use common::manifest::{CaseLabels, LabelManifest};
use common::report::EvaluationReport;
use common::rng::{KeyedRng, Rng};
use common::round::RoundTask;
use common::study::StudyDocument;
use coordinator::progress::{Line, Progress};
use site_agent::client::artifacts::ArtifactFolder;
use site_agent::client::config::SiteConfig;
use site_agent::client::driver::Agent;
use site_agent::client::state::StateFolder;
use site_agent::client::work::Work;
use site_agent::egress::Egress;
use site_agent::train::trainer::{Cancel, RoundOutcome, StepReport, TrainError};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Scans that the site says it has.
const SCANS: usize = 10;
/// Classes that it says are annotated in them.
const CLASSES: [u8; 3] = [1, 6, 11];
/// Said on standard output, as a turn in the study, when a round is trained.
pub(crate) const TRAINED: &str = "trained";
/// Longest step of the weights, relative.
const STEP: f32 = 1e-3;

/// Runs the agent of an enrolled site until it is told to stop.
pub(crate) fn run(config: &Path) -> anyhow::Result<()> {
    let config = SiteConfig::read(config)?;
    let policy = config.read_policy()?;
    let identity = config.identity.load()?;
    let state = StateFolder::open(&config.state)?;
    let _lock = state.lock()?;
    let egress = Egress::open(policy, &state.ledger())?;
    let work = Perturbation { site: identity.membership.site.clone(), artifacts: state.artifacts() };
    let runtime = tokio::runtime::Runtime::new()?;
    let ended = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        tokio::spawn(async move {
            terminate.recv().await;
            stopped.cancel();
        });
        Agent::open(&config, &identity, egress, state, Box::new(work))?.run(stop).await
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
    ended
}

/// Changes every weight by a share of itself, drawn for study, site and round: the same whenever it is done again, and no
/// chunk of it is like one of another round.
struct Perturbation {
    site: SiteId,
    artifacts: ArtifactFolder,
}

impl Work for Perturbation {
    fn count_labels(&mut self, study: &StudyDocument) -> anyhow::Result<LabelManifest> {
        let annotated: BTreeSet<ClassId> = CLASSES.into_iter().filter_map(ClassId::new).collect();
        let (dataset, patient) = ("synthetic", "synthetic");
        let scan = CaseLabels { dataset, patient, annotated: &annotated, present: &annotated, pseudo: false };
        let scans = std::iter::repeat_n(scan, SCANS);
        Ok(LabelManifest::count(self.site.clone(), study.study().taxonomy.digest(), scans, 1))
    }

    fn train(
        &mut self,
        study: &StudyDocument,
        task: &RoundTask,
        _attempt: AttemptId,
        progress: &mut dyn FnMut(StepReport),
        cancel: &Cancel,
    ) -> anyhow::Result<RoundOutcome> {
        if cancel.is_cancelled() {
            return Err(TrainError::Cancelled { steps: 0 }.into());
        }
        let mut tensors = self.artifacts.load(task.base)?;
        let key = KeyedRng::new(study.study().seed).site(&self.site).round(task.round);
        let draw: f32 = key.purpose("perturbation").rng().random();
        // In place: a second model beside the first would be the trainer's memory, not the agent's.
        let share = (draw - 0.5) * STEP;
        for tensor in tensors.values_mut() {
            tensor.values_mut().iter_mut().for_each(|value| *value *= share);
        }
        let (round, steps) = (task.round, task.steps);
        let (duration, waited) = (Duration::ZERO, Duration::ZERO);
        progress(StepReport { round, step: steps, steps, loss: 1.0, duration, waited, kept: 0 });
        let (study, detail) = (study.study().name.clone(), format!("round {round}"));
        Progress::Json.say(&Line::Study { study, what: TRAINED.to_owned(), detail });
        Ok(RoundOutcome { delta: tensors, steps, mean_loss: 1.0 })
    }

    fn evaluate(
        &mut self,
        _study: &StudyDocument,
        _round: RoundId,
        _model: ModelHash,
        _cancel: &Cancel,
    ) -> anyhow::Result<EvaluationReport> {
        bail!("this site has no scans to score a model on")
    }
}
