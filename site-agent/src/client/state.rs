//! The agent's state folder: what lies where, and the lock that keeps a second agent out.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::ids::{AttemptId, ModelHash, RoundId, StudyDigest};
use common::participant::Status;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::artifacts::ArtifactFolder;
use super::files::{self, FileError};
use super::outbox::Outbox;
use super::residual::Residuals;
use super::studies::StudyFolder;
use crate::train::optimizer::OptimizerState;
use crate::train::state::{StateError, UNFINISHED, read_state};
use crate::train::trainer::TrainError;

/// How long another process may have the lock before the folder is said to be in use. `site-agent status` has it for an
/// instant, to see whether an agent runs: one that starts just then is not to end over it.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between two tries.
const RETRY: Duration = Duration::from_millis(20);

/// The folders and files below one state folder.
#[derive(Clone, Debug)]
pub struct StateFolder(PathBuf);

/// Another agent works with this state folder.
#[derive(Debug, thiserror::Error)]
#[error("another site-agent runs with the state folder {0}")]
pub struct InUse(String);

/// What `site-agent status` shows; written by the running agent, read by anybody.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentStatus {
    /// When this was written.
    pub at: jiff::Timestamp,
    /// The agent's process.
    pub process: u32,
    /// Whether the coordinator has welcomed this site.
    pub connected: bool,
    /// Why not, when not.
    pub problem: Option<String>,
    /// Why nothing is done for now, such as a full disk.
    #[serde(default)]
    pub paused: Option<String>,
    /// What is not sent today, and why.
    #[serde(default)]
    pub waiting: Option<String>,
    /// Over which lane it is connected and why, in words.
    #[serde(default)]
    pub lane: Option<String>,
    /// `idle`, `downloading`, `training`, `uploading`.
    pub phase: String,
    /// Study and round of the work under way.
    pub work: Option<(StudyDigest, u32)>,
    /// Steps done and to do, while training.
    pub steps: Option<(u32, u32)>,
    /// `idle`, `downloading`, `evaluating` or `reporting`.
    pub evaluation: String,
    /// Studies that wait for `site-agent study approve`.
    pub waiting_for_approval: Vec<StudyDigest>,
}

impl AgentStatus {
    /// What the machine says, before anything else is known.
    pub fn of(machine: &Status) -> Self {
        Self {
            at: jiff::Timestamp::now(),
            process: std::process::id(),
            connected: machine.connected,
            problem: None,
            paused: None,
            waiting: None,
            lane: None,
            phase: machine.phase.to_owned(),
            work: machine.work.map(|(study, round)| (study, round.0)),
            steps: None,
            evaluation: machine.evaluation.to_owned(),
            waiting_for_approval: machine.undecided.iter().copied().collect(),
        }
    }
}

impl StateFolder {
    /// Opens the folder and makes it if need be.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn open(folder: &Path) -> Result<Self, FileError> {
        files::make_private_folder(folder)?;
        let state = Self(folder.to_owned());
        for part in ["optimizer", "checkpoint", "reports", "overlays", "cache"] {
            files::make_private_folder(&folder.join(part))?;
        }
        Ok(state)
    }

    /// Keeps a second agent out as long as the returned file is open. Waits about a second for who only looks
    /// ([`StateFolder::is_locked`]), and blocks meanwhile: an agent takes it before it has a runtime.
    ///
    /// # Errors
    /// [`InUse`] while another agent holds it, or [`FileError`].
    pub fn lock(&self) -> anyhow::Result<Flock<File>> {
        lock_patiently(&self.0, std::thread::sleep)
    }

    /// Whether an agent works with this folder; also where that cannot be told. Who looks shares the lock for that instant with
    /// others who look, and is not taken for an agent by them.
    pub fn is_locked(&self) -> bool {
        try_lock(&self.0, FlockArg::LockSharedNonblock).is_err()
    }

    /// Fetched models and embeddings.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn artifacts(&self) -> Result<ArtifactFolder, FileError> {
        ArtifactFolder::open(&self.0.join("artifacts"))
    }

    /// Updates that wait to be sent.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn outbox(&self) -> Result<Outbox, FileError> {
        Outbox::open(&self.0.join("outbox"))
    }

    /// What rounding took from updates.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn residuals(&self) -> Result<Residuals, FileError> {
        Residuals::open(&self.0.join("residual"))
    }

    /// Removes what a crash left of files that were being written. For the agent alone, which holds the lock.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn remove_unfinished(&self) -> Result<(), FileError> {
        // Not `studies` and `finetune`: other commands write there meanwhile.
        let parts = ["", "artifacts", "outbox", "optimizer", "residual", "checkpoint", "reports", "journal"];
        parts.into_iter().try_for_each(|part| files::remove_unfinished(&self.0.join(part)))
    }

    /// Offered studies and what was decided about them.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn studies(&self) -> Result<StudyFolder, FileError> {
        StudyFolder::open(&self.0.join("studies"))
    }

    /// The machine's memory.
    pub fn journal(&self) -> PathBuf {
        self.0.join("journal")
    }

    /// The egress ledger.
    pub fn ledger(&self) -> PathBuf {
        self.0.join("egress.jsonl")
    }

    /// Prepared scans.
    pub fn cache(&self) -> PathBuf {
        self.0.join("cache")
    }

    /// Pictures of prediction and truth for one model of a study.
    pub fn overlays(&self, study: StudyDigest, round: u32) -> PathBuf {
        self.0.join("overlays").join(format!("{}-round-{round}", study.short()))
    }

    /// The signed report about a model.
    pub fn report(&self, model: ModelHash) -> PathBuf {
        self.0.join("reports").join(format!("{model}.json"))
    }

    /// Has `restore` take what the optimiser knew before `round`, read from [`StateFolder::optimizer_before`]. What is damaged, or
    /// of another model, is set aside, and said: training goes on with what it knew one round earlier, or with fresh moments.
    ///
    /// # Errors
    /// [`StateError`] where it may be read later, [`FileError`], or what `restore` says of anything but another model.
    pub fn recall_optimizer(
        &self,
        study: StudyDigest,
        round: RoundId,
        mut restore: impl FnMut(OptimizerState) -> Result<(), TrainError>,
    ) -> anyhow::Result<()> {
        while let Some(path) = self.optimizer_before(study, round) {
            match read_state(&path).map(&mut restore) {
                Ok(Err(TrainError::Model(misfit))) => {
                    let aside = self.set_optimizer_aside(&path)?;
                    let (path, misfit) = (path.display(), misfit.to_string());
                    // Its first line counts the tensors, the others name every one.
                    let misfit = misfit.lines().next().unwrap_or_default();
                    tracing::warn!(
                        "what the optimiser remembers is of another model: {path}: {misfit}; it is set aside as {aside}, and training goes on without it"
                    );
                }
                Ok(restored) => return Ok(restored?),
                Err(StateError::Io { path, source }) if !files::is_unreadable(&source) => {
                    return Err(StateError::Io { path, source }.into());
                }
                Err(error) => {
                    let aside = self.set_optimizer_aside(&path)?;
                    tracing::error!(
                        "what the optimiser remembers is lost: {error}; it is set aside as {aside}, and training goes on without it"
                    );
                }
            }
        }
        Ok(())
    }

    /// In the place of what was set aside before: each is twice as large as the model. Says where.
    fn set_optimizer_aside(&self, path: &Path) -> Result<String, FileError> {
        let aside = self.0.join("optimizer").join("set-aside");
        files::rename(path, &aside)?;
        Ok(aside.display().to_string())
    }

    /// What the optimiser knew before `round`: what it had learnt in the newest round below whose update counts. A coordinator
    /// whose disk lost an update, or that was restored from a backup, asks for a round that was trained before.
    pub fn optimizer_before(&self, study: StudyDigest, round: RoundId) -> Option<PathBuf> {
        let newest = self.optimizers(study).into_iter().filter(|(after, _)| *after < round).max();
        newest.map(|(_, path)| path)
    }

    /// What the optimiser had learnt after each round that is kept.
    fn optimizers(&self, study: StudyDigest) -> Vec<(RoundId, PathBuf)> {
        let listed = std::fs::read_dir(self.0.join("optimizer")).into_iter().flatten().flatten();
        let after = |path: PathBuf| {
            let name = path.file_name()?.to_str()?;
            let round = name.strip_prefix(&format!("{study}-"))?.strip_suffix(".state")?.parse().ok()?;
            Some((RoundId(round), path))
        };
        listed.filter_map(|entry| after(entry.path())).collect()
    }

    /// Where the round under way stands.
    pub fn checkpoint(&self) -> PathBuf {
        self.0.join("checkpoint").join("round.checkpoint")
    }

    /// What the optimiser would remember if `attempt` counted.
    pub fn optimizer_after(&self, attempt: AttemptId) -> PathBuf {
        self.0.join("optimizer").join(format!("{attempt}.next"))
    }

    /// Makes what the optimiser learnt in `attempt` its memory after `round`, and forgets all but that and the round
    /// before; does nothing when that was done already.
    ///
    /// The moments are to be those of the steps that the global model has taken. So this is called when the coordinator has
    /// every byte of the update, and before it is asked to count it:
    /// - not at the offer: a round that closes before the update is whole goes on without it, and so does the optimiser, with
    ///   what it knew before;
    /// - not at the receipt: a receipt can be lost with the process, or cross the notice that its round has closed, and the next
    ///   round would be trained with other bits than in a run that nothing disturbed.
    ///
    /// What counts is therefore always kept; what is refused after all is forgotten ([`StateFolder::demote_optimizer`]). In
    /// between lies an update that was asked to be counted and has no answer when its round closes: it is taken to count.
    /// After a restart all of this is as the disk has it, which is what a running agent goes by too.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn promote_optimizer(
        &self,
        study: StudyDigest,
        round: RoundId,
        attempt: AttemptId,
    ) -> Result<(), FileError> {
        let next = self.optimizer_after(attempt);
        if !next.exists() {
            return Ok(());
        }
        files::rename(&next, &self.learnt(study, round))?;
        let mut earlier = self.optimizers(study);
        earlier.retain(|(after, _)| *after < round);
        let before = earlier.iter().max().map(|(after, _)| *after);
        let is_spent = |after: RoundId| after != round && Some(after) != before;
        let all = self.optimizers(study).into_iter();
        all.filter(|(after, _)| is_spent(*after)).try_for_each(|(_, path)| files::remove(&path))
    }

    /// Forgets what the optimiser learnt in `round`: its update does not count. Durable when it returns: the machine asks for it
    /// again only until the next event, and what came back after that would be remembered as if the update counted.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn demote_optimizer(&self, study: StudyDigest, round: RoundId) -> Result<(), FileError> {
        files::remove_durably(&self.learnt(study, round))
    }

    fn learnt(&self, study: StudyDigest, round: RoundId) -> PathBuf {
        self.0.join("optimizer").join(format!("{study}-{round}.state"))
    }

    /// Removes what the optimiser would remember of any attempt but `keep`.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn prune_optimizer(&self, keep: Option<AttemptId>) -> Result<(), FileError> {
        let kept = keep.map(|attempt| self.optimizer_after(attempt));
        // A folder that is not there yet holds nothing to remove.
        let listed = std::fs::read_dir(self.0.join("optimizer")).into_iter().flatten().flatten();
        let next =
            listed.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "next"));
        next.filter(|path| Some(path) != kept.as_ref()).try_for_each(|path| files::remove(&path))
    }

    /// Random bytes that name this installation, drawn at the first call and kept.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn installation(&self) -> Result<[u8; 16], FileError> {
        let path = self.0.join("installation.json");
        if let Some(drawn) = files::read_json(&path)? {
            return Ok(drawn);
        }
        let mut drawn = [0; 16];
        let filled = aws_lc_rs::rand::fill(&mut drawn);
        filled.map_err(|_| {
            FileError::new("draw randomness for", &path, std::io::Error::other("none to be had"))
        })?;
        files::write_json(&path, &drawn)?;
        Ok(drawn)
    }

    /// Rounds of fine-tuning at this site alone, until they are all done.
    pub fn finetune(&self, study: StudyDigest) -> PathBuf {
        self.0.join("finetune").join(study.to_string())
    }

    /// The running agent's status file: a picture for people, which nothing goes by.
    pub fn status(&self) -> PathBuf {
        self.0.join("status.json")
    }

    /// What the agent said of itself last; `None` also where a loss of power tore that.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn read_status(&self) -> Result<Option<AgentStatus>, FileError> {
        match files::read(&self.status()) {
            Err(error) if error.is_not_found() => Ok(None),
            read => Ok(serde_json::from_slice(&read?).ok()),
        }
    }

    /// Written and removed to see whether the disk has room.
    pub fn trial(&self) -> PathBuf {
        self.0.join(format!("{UNFINISHED}trial"))
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

/// Keeps a second process out of a folder as long as the returned file is open. Does not wait: for a folder whose lock nobody
/// takes for an instant.
pub(super) fn lock_folder(folder: &Path) -> anyhow::Result<Flock<File>> {
    try_lock(folder, FlockArg::LockExclusiveNonblock)
}

/// As [`lock_folder`], and again after each `pause` until patience is at its end.
fn lock_patiently(folder: &Path, mut pause: impl FnMut(Duration)) -> anyhow::Result<Flock<File>> {
    let mut waited = Duration::ZERO;
    loop {
        match lock_folder(folder) {
            Err(error) if error.is::<InUse>() && waited < PATIENCE => {
                pause(RETRY);
                waited += RETRY;
            }
            taken => return taken,
        }
    }
}

fn try_lock(folder: &Path, how: FlockArg) -> anyhow::Result<Flock<File>> {
    let path = folder.join("lock");
    let opened = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = opened.map_err(|source| FileError::new("write", &path, source))?;
    let locked = Flock::lock(file, how);
    locked.map_err(|_| InUse(folder.display().to_string()).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_crash_left_half_written_goes_and_all_else_stays() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateFolder::open(folder.path()).unwrap();
        let (half, whole) = (format!("{UNFINISHED}x1"), "whole.state".to_owned());
        for (part, name) in [("optimizer", &half), ("checkpoint", &half), ("", &half), ("optimizer", &whole)]
        {
            std::fs::write(folder.path().join(part).join(name), "bytes").unwrap();
        }
        state.remove_unfinished().unwrap();
        let left = |part: &str| std::fs::read_dir(folder.path().join(part)).unwrap().count();
        assert_eq!((left("optimizer"), left("checkpoint")), (1, 0));
        assert!(!folder.path().join(half).exists());
    }

    #[test]
    fn an_agent_that_starts_while_its_status_is_asked_for_waits_for_the_lock() {
        let folder = tempfile::tempdir().unwrap();
        let mut looks = Some(try_lock(folder.path(), FlockArg::LockSharedNonblock).unwrap());
        let taken = lock_patiently(folder.path(), |_| drop(looks.take()));
        assert!(taken.is_ok());
        assert!(looks.is_none(), "it was let go while the agent waited");
    }

    #[test]
    fn a_second_agent_is_refused_after_a_second() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateFolder::open(folder.path()).unwrap();
        let _first = state.lock().unwrap();
        let mut waited = Duration::ZERO;
        let refused = lock_patiently(folder.path(), |pause| waited += pause).unwrap_err();
        assert_eq!(waited, PATIENCE);
        assert!(refused.is::<InUse>());
        let words = format!("another site-agent runs with the state folder {}", folder.path().display());
        assert_eq!(refused.to_string(), words);
    }

    #[test]
    fn who_asks_for_the_status_is_not_taken_for_an_agent() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateFolder::open(folder.path()).unwrap();
        let looks = try_lock(folder.path(), FlockArg::LockSharedNonblock).unwrap();
        assert!(!state.is_locked());
        drop(looks);
        let _agent = state.lock().unwrap();
        assert!(state.is_locked());
    }

    #[test]
    fn the_optimiser_remembers_the_rounds_that_count_and_no_others() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateFolder::open(folder.path()).unwrap();
        let study = StudyDigest(common::ids::Digest::of(b"study"));
        let attempts = [1, 2, 3, 4].map(|n| AttemptId::from_bytes([n; 16]));
        let train = |round: usize, learnt: &str| {
            std::fs::write(state.optimizer_after(attempts[round - 1]), learnt).unwrap();
        };
        let deliver = |round: u32| {
            state.promote_optimizer(study, RoundId(round), attempts[round as usize - 1]).unwrap();
        };
        let before = |round: u32| {
            state.optimizer_before(study, RoundId(round)).map(|path| std::fs::read_to_string(path).unwrap())
        };
        train(1, "one");
        deliver(1);
        assert_eq!(before(2).as_deref(), Some("one"));
        // Round 2 closes before its update is whole, over a restart.
        train(2, "two");
        state.prune_optimizer(Some(attempts[1])).unwrap();
        assert!(state.optimizer_after(attempts[1]).exists(), "it may still count");
        state.prune_optimizer(None).unwrap();
        assert_eq!(before(3).as_deref(), Some("one"));
        // Round 3 is delivered, and refused.
        train(3, "three");
        deliver(3);
        state.demote_optimizer(study, RoundId(3)).unwrap();
        assert_eq!(before(4).as_deref(), Some("one"));
        // Round 4 is delivered; a crash before the journal knows of the receipt has it offered again.
        train(4, "four");
        deliver(4);
        state.prune_optimizer(Some(attempts[3])).unwrap();
        deliver(4);
        assert_eq!(before(5).as_deref(), Some("four"));
    }

    #[test]
    fn a_damaged_memory_of_the_optimiser_is_set_aside_and_training_goes_on() {
        use crate::model::NamedTensors;
        use crate::train::state::store_state;

        let folder = tempfile::tempdir().unwrap();
        let state = StateFolder::open(folder.path()).unwrap();
        let study = StudyDigest(common::ids::Digest::of(b"study"));
        let learn = |round: u32| {
            let attempt = AttemptId::from_bytes([1; 16]);
            let learnt = OptimizerState { steps: u64::from(round), moments: NamedTensors::new() };
            store_state(&state.optimizer_after(attempt), &learnt.into_live()).unwrap();
            state.promote_optimizer(study, RoundId(round), attempt).unwrap();
        };
        let steps = |round: u32| {
            let mut steps = None;
            let restore = |known: OptimizerState| {
                steps = Some(known.steps);
                Ok(())
            };
            state.recall_optimizer(study, RoundId(round), restore).unwrap();
            steps
        };
        learn(1);
        learn(2);
        assert_eq!(steps(3), Some(2));
        let newest = state.learnt(study, RoundId(2));
        let mut bytes = std::fs::read(&newest).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&newest, &bytes).unwrap();
        // The second time as after a restart: nothing is left to be found damaged.
        for _ in 0..2 {
            assert_eq!(steps(3), Some(1));
            assert!(!newest.exists());
        }
        let aside = folder.path().join("optimizer").join("set-aside");
        assert_eq!(std::fs::read(&aside).unwrap(), bytes);
        std::fs::write(state.learnt(study, RoundId(1)), "cut short").unwrap();
        assert_eq!(steps(3), None, "fresh moments");
        learn(3);
        assert_eq!(steps(4), Some(3));
    }

    #[test]
    fn a_memory_of_the_optimiser_that_is_of_another_model_is_set_aside_and_training_goes_on() {
        use std::collections::BTreeMap;

        use crate::model::tensors::TensorMismatch;
        use crate::model::{HostTensor, NamedTensors};
        use crate::train::state::store_state;

        let folder = tempfile::tempdir().unwrap();
        let state = StateFolder::open(folder.path()).unwrap();
        let study = StudyDigest(common::ids::Digest::of(b"study"));
        let learn = |round: u32, name: &str, shape: &[usize]| {
            let attempt = AttemptId::from_bytes([1; 16]);
            let moment = HostTensor::from_fn(shape.to_vec(), |i| i as f32);
            let moments = NamedTensors::from([(name.to_owned(), moment)]);
            let learnt = OptimizerState { steps: u64::from(round), moments };
            store_state(&state.optimizer_after(attempt), &learnt.into_live()).unwrap();
            state.promote_optimizer(study, RoundId(round), attempt).unwrap();
        };
        let model = BTreeMap::from([("first.w".to_owned(), vec![3])]);
        let steps = |round: u32| {
            let mut steps = None;
            let restore = |known: OptimizerState| -> Result<(), TrainError> {
                TensorMismatch::check(&model, &known.moments)?;
                steps = Some(known.steps);
                Ok(())
            };
            state.recall_optimizer(study, RoundId(round), restore).unwrap();
            steps
        };
        learn(1, "first.w", &[3]);
        learn(2, "first.w", &[4]);
        let newest = state.learnt(study, RoundId(2));
        let bytes = std::fs::read(&newest).unwrap();
        // What is wrong with the trainer is no fault of the memory.
        let refused = state.recall_optimizer(study, RoundId(3), |_| Err(TrainError::NoGlobalModel));
        assert!(matches!(refused.unwrap_err().downcast_ref(), Some(TrainError::NoGlobalModel)));
        // The second time as after a restart: nothing is left that does not fit.
        for _ in 0..2 {
            assert_eq!(steps(3), Some(1));
            assert!(!newest.exists());
        }
        assert_eq!(std::fs::read(folder.path().join("optimizer").join("set-aside")).unwrap(), bytes);
        learn(2, "first.other", &[3]);
        learn(3, "first.other", &[3]);
        assert_eq!(steps(4), None, "fresh moments");
        learn(4, "first.w", &[3]);
        assert_eq!(steps(5), Some(4));
    }

    #[test]
    fn a_torn_status_is_as_good_as_none() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateFolder::open(folder.path()).unwrap();
        assert_eq!(state.read_status().unwrap(), None);
        std::fs::write(state.status(), "{\"at\": \"20").unwrap();
        assert_eq!(state.read_status().unwrap(), None);
    }

    #[test]
    fn a_round_that_is_asked_for_again_begins_with_what_the_optimiser_knew_before_it() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateFolder::open(folder.path()).unwrap();
        let study = StudyDigest(common::ids::Digest::of(b"study"));
        let learn = |round: u32, learnt: &str| {
            let attempt = AttemptId::from_bytes([1; 16]);
            std::fs::write(state.optimizer_after(attempt), learnt).unwrap();
            state.promote_optimizer(study, RoundId(round), attempt).unwrap();
            // Asked for again after a crash, it changes nothing.
            state.promote_optimizer(study, RoundId(round), attempt).unwrap();
        };
        let before = |round: u32| {
            state.optimizer_before(study, RoundId(round)).map(|path| std::fs::read_to_string(path).unwrap())
        };
        assert_eq!(before(1), None);
        for (round, learnt) in [(1, "one"), (2, "two"), (3, "three")] {
            learn(round, learnt);
        }
        assert_eq!((before(4).as_deref(), before(3).as_deref()), (Some("three"), Some("two")));
        assert_eq!(before(2), None, "it is kept no longer");
        // The round of before, again: what was learnt after it counts no more.
        learn(2, "two again");
        assert_eq!((before(4).as_deref(), before(3).as_deref()), (Some("two again"), Some("two again")));
        assert_eq!(state.optimizer_before(StudyDigest(common::ids::Digest::of(b"other")), RoundId(9)), None);
    }
}
