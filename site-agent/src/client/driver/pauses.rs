//! Where the agent stops doing anything, as its disk takes nothing, and goes on by itself once it does.

use super::Agent;
use crate::client::files;
use crate::client::work::LOOK_FOR_ROOM;

impl Agent {
    /// A full disk is no end, and neither is one that takes nothing for now.
    pub(super) fn or_pause(&mut self, done: anyhow::Result<()>) -> anyhow::Result<()> {
        match done {
            Err(error) if files::disk_trouble(&error).is_some() => {
                self.pause(&error);
                Ok(())
            }
            done => done,
        }
    }

    /// Gives the disk what the next update would have been written over.
    pub(in crate::client) fn give_up_spare(&self) {
        if let Err(error) = self.outbox.remove_spare() {
            tracing::warn!("outbox: a spare file stays: {error:#}");
        }
    }

    /// Gives the disk what is kept because it may be of use, also the newest models of studies that nothing is done for. Their embeddings
    /// stay: they are small, and without them no model of such a study can be used. With nothing under way the fetched models stay, too:
    /// they are all that `site-agent predict` has.
    pub(in crate::client) fn make_room(&self) {
        self.give_up_spare();
        let status = self.machine.status();
        if status.work.is_none() && status.evaluations.is_empty() {
            return;
        }
        let pruned = self.studies.newest_models().and_then(|newest| {
            let mut wanted = self.needed();
            wanted.extend(newest.into_iter().map(|newest| newest.embeddings));
            self.artifacts.prune(&wanted, 0)
        });
        if let Err(error) = pruned {
            let error = anyhow::Error::from(error);
            tracing::warn!("artifacts that nobody needs stay: {error:#}");
        }
    }

    /// Stops doing anything: what cannot be remembered must not be done.
    pub(in crate::client) fn pause(&mut self, error: &anyhow::Error) {
        self.is_halted = true;
        self.make_room();
        if self.status.paused.is_none() {
            let free = files::free_space(self.state.path());
            let name = files::disk_trouble(error).unwrap_or("disk");
            let why = format!("{name}: {error:#}; {free}, at least 1 MiB is needed");
            tracing::error!("paused: {why}; it is tried again each {} s", LOOK_FOR_ROOM.as_secs());
            tracing::error!("hint: {}; what is under way goes on by itself then", files::DISK_HINT);
            self.status.paused = Some(why);
        }
        // Perhaps there is room for so little.
        if let Err(error) = self.write_status() {
            tracing::warn!("status: {error:#}");
        }
    }

    /// Goes on where the disk had no room, if it has some now.
    pub(super) fn look_for_room(&mut self) -> anyhow::Result<()> {
        let trial = self.state.trial();
        let written = files::write(&trial, &vec![0; 1 << 20]).and_then(|()| files::remove(&trial));
        match written.map_err(anyhow::Error::from) {
            Err(error) if files::disk_trouble(&error).is_some() => return Ok(()),
            written => written?,
        }
        self.is_halted = false;
        self.go_on()?;
        if !self.is_halted && self.status.paused.take().is_some() {
            tracing::info!("the disk can be written again: everything goes on");
        }
        self.write_status()
    }
}
