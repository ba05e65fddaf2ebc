//! The agent's state folder: what lies where.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};

use common::ids::{AttemptId, ModelHash, RoundId, StudyDigest};
use common::participant::Status;
use nix::fcntl::Flock;
use serde::{Deserialize, Serialize};

use super::artifacts::ArtifactFolder;
use super::files::{self, FileError};
use super::lock;
use super::no_part::NoPart;
use super::outbox::Outbox;
use super::owner;
use super::residual::Residuals;
use super::studies::StudyFolder;
use crate::train::optimizer::OptimizerState;
use crate::train::state::{StateError, UNFINISHED, read_state};
use crate::train::trainer::TrainError;

/// The folders and files below one state folder.
#[derive(Clone, Debug)]
pub struct StateFolder(PathBuf);

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
    /// Studies that it takes no part in for now.
    #[serde(default)]
    pub no_part: NoPart,
    /// Study and round of what the coordinator does not take or give for now, while other studies have their turn.
    #[serde(default)]
    pub set_aside: Vec<(StudyDigest, u32)>,
    /// `idle`, `downloading`, `training`, `uploading`.
    pub phase: String,
    /// Study and round of the work under way.
    pub work: Option<(StudyDigest, u32)>,
    /// Steps done and to do, while training.
    pub steps: Option<(u32, u32)>,
    /// `idle`, `downloading`, `evaluating` or `reporting`.
    pub evaluation: String,
    /// Studies that are over and whose last model is on its way here.
    #[serde(default)]
    pub last_models: Vec<StudyDigest>,
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
            no_part: NoPart::default(),
            set_aside: machine.set_aside.iter().map(|&(study, round)| (study, round.0)).collect(),
            phase: machine.phase.to_owned(),
            work: machine.work.map(|(study, round)| (study, round.0)),
            steps: None,
            evaluation: machine.evaluation.to_owned(),
            last_models: Vec::new(),
            waiting_for_approval: machine.undecided.iter().copied().collect(),
        }
    }
}

impl StateFolder {
    /// Opens the folder and makes it if need be. Not for root where it is another user's: what root made there, if only a lock, would
    /// keep that user's agent from starting.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn open(folder: &Path) -> Result<Self, FileError> {
        owner::refuse_root(folder)?;
        files::make_private_folder(folder)?;
        let state = Self(folder.to_owned());
        for part in ["artifacts", "studies", "optimizer", "checkpoint", "reports", "overlays", "cache"] {
            files::make_private_folder(&folder.join(part))?;
        }
        Ok(state)
    }

    /// The folder as it is, for whoever only looks: nothing is made.
    pub fn at(folder: &Path) -> Self {
        Self(folder.to_owned())
    }

    /// Keeps a second agent out as long as the returned file is open. Waits about a second for who only looks
    /// ([`StateFolder::is_locked`]), and blocks meanwhile: an agent takes it before its runtime has anything to do.
    ///
    /// # Errors
    /// [`InUse`](lock::InUse) while another agent holds it, or [`FileError`].
    pub fn lock(&self) -> anyhow::Result<Flock<File>> {
        lock::lock_patiently(&self.0, std::thread::sleep)
    }

    /// Whether an agent works with this folder; also where that cannot be told. Who looks shares the lock for that instant with
    /// others who look, and is not taken for an agent by them.
    pub fn is_locked(&self) -> bool {
        lock::is_locked(&self.0)
    }

    /// Whether the disk of this folder is mounted so that nothing can be written: then no agent can take the lock.
    pub fn is_read_only(&self) -> bool {
        files::is_read_only(&self.0)
    }

    /// Fetched models and embeddings.
    pub fn artifacts(&self) -> ArtifactFolder {
        ArtifactFolder::at(&self.0.join("artifacts"))
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

    /// Offered studies and what was decided about them, for whoever looks.
    pub fn studies(&self) -> StudyFolder {
        StudyFolder::at(&self.0.join("studies"))
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
    pub fn overlays(&self, study: StudyDigest, round: RoundId) -> PathBuf {
        self.0.join("overlays").join(format!("{}-round-{round}", study.short()))
    }

    /// Removes a study's pictures but those of `round` and of the newest round beside it: every scored model leaves one of each scan.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn prune_overlays(&self, study: StudyDigest, round: RoundId) -> Result<(), FileError> {
        // A folder that is not there yet holds nothing to remove.
        let listed = std::fs::read_dir(self.0.join("overlays")).into_iter().flatten().flatten();
        let of_study = format!("{}-round-", study.short());
        let drawn = listed.filter_map(|entry| {
            let drawn = entry.file_name().to_str()?.strip_prefix(&of_study)?.parse().ok()?;
            Some((RoundId(drawn), entry.path()))
        });
        let mut others: Vec<_> = drawn.filter(|(drawn, _)| *drawn != round).collect();
        others.sort_by(|a, b| b.cmp(a));
        others.into_iter().skip(1).try_for_each(|(_, path)| {
            std::fs::remove_dir_all(&path).map_err(|source| FileError::new("remove", &path, source))
        })
    }

    /// The signed report about a model.
    pub fn report(&self, model: ModelHash) -> PathBuf {
        self.0.join("reports").join(format!("{model}.json"))
    }

    /// Has `restore` take what the optimiser knew before `round`, read from [`StateFolder::optimizer_before`]. What is damaged, or
    /// of another model, is set aside, and said: training goes on with what it knew one round earlier, or with fresh moments. It is
    /// said, too, where `round` lies further back than what is kept.
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
        if self.has_outgrown(study, round) {
            tracing::warn!(
                "what the optimiser knew before round {round} is not kept any more, as later rounds were trained since: it begins anew"
            );
        }
        Ok(())
    }

    /// Whether what the optimiser knew before `round` went with rounds after it. Before the first there is nothing to know.
    fn has_outgrown(&self, study: StudyDigest, round: RoundId) -> bool {
        let later = self.optimizers(study).into_iter().any(|(after, _)| after > round);
        later && round > RoundId(1) && self.optimizer_before(study, round).is_none()
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

    /// Forgets what the optimiser learnt in all rounds of a study. Twice the model's size each, it would stay for ever.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn forget_optimizer(&self, study: StudyDigest) -> Result<(), FileError> {
        self.optimizers(study).iter().try_for_each(|(_, path)| files::remove(path))
    }

    fn learnt(&self, study: StudyDigest, round: RoundId) -> PathBuf {
        self.0.join("optimizer").join(format!("{study}-{round}.state"))
    }

    /// Removes what the optimiser would remember of any attempt but these.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn prune_optimizer(&self, keep: &BTreeSet<AttemptId>) -> Result<(), FileError> {
        let kept: Vec<PathBuf> = keep.iter().map(|&attempt| self.optimizer_after(attempt)).collect();
        // A folder that is not there yet holds nothing to remove.
        let listed = std::fs::read_dir(self.0.join("optimizer")).into_iter().flatten().flatten();
        let next =
            listed.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "next"));
        next.filter(|path| !kept.contains(path)).try_for_each(|path| files::remove(&path))
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

#[cfg(test)]
mod tests;
