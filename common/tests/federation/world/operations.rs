//! What the scenario does to the federation, and the liar among its sites.

use super::*;

impl World {
    pub(super) fn next_op(&mut self) {
        let Some(op) = self.scenario.ops.get(self.next_op).cloned() else { return self.calm() };
        self.next_op += 1;
        let delay = if let Op::Advance { ms } = op { ms } else { 0 };
        self.at(delay, Happening::NextOp);
        match op {
            Op::Advance { .. } => {}
            Op::Weather { lose, double, delay_ms } => {
                (self.lose, self.double, self.delay_ms) = (lose, double, delay_ms);
            }
            Op::Disconnect { site } => self.cut(site),
            Op::CrashSiteAfter { site, actions } => self.sites[site].fuse = Some(actions),
            Op::CrashCoordinatorAfter { actions } => self.coordinator.fuse = Some(actions),
            Op::FailTraining { site, times } => self.sites[site].failing_trainings = times,
            Op::FillStorage { times } => self.failing_commits = times,
            Op::FailAggregation { times } => self.failing_aggregations = times,
            Op::Pause => self.feed(Event::Pause),
            Op::Resume => self.feed(Event::Resume),
            Op::ChangeManifest { site } => self.sites[site].manifest += 1,
            Op::Hostile { site, lie } => self.lie(site, lie),
        }
    }

    /// The faults stop, and the operator resumes what is paused.
    pub(super) fn calm(&mut self) {
        (self.lose, self.double, self.delay_ms) = (0, 0, 200);
        let paused = self.coordinator.rounds.status().paused;
        if self.coordinator.up && paused.is_some() {
            self.feed(Event::Resume);
        }
        self.at(600_000, Happening::NextOp);
    }

    /// A site that pushes what it was not asked for, past its own machine.
    pub(super) fn lie(&mut self, site: usize, lie: Lie) {
        let (Some(link), true) = (self.sites[site].link, site < self.scenario.trainers) else { return };
        let status = self.coordinator.rounds.status();
        let attempt =
            |text: &str| AttemptId::from_bytes(*b"0123456789abcdef").max(AttemptId::from_bytes(short(text)));
        let unique = format!("lie {} {site}", self.sequence);
        let mut offer = UpdateOffer {
            study: study(),
            round: status.round,
            base: status.model,
            attempt: attempt(&unique),
            steps: 10,
            update: artifact(&unique),
        };
        let counted = self.books.receipt_of(&self.sites[site].identity.site);
        match (lie, counted) {
            (Lie::Study, _) => offer.study = StudyDigest(Digest::of(b"another")),
            (Lie::Round, _) => offer.round = RoundId(status.round.0 + 1),
            (Lie::Base, _) => offer.base = artifact("another base"),
            (Lie::Steps, _) => offer.steps = 9,
            (Lie::Content, Some((round, attempt))) => (offer.round, offer.attempt) = (round, attempt),
            (Lie::Second, Some((round, _))) => offer.round = round,
            (Lie::Content | Lie::Second, None) => return,
        }
        self.send(site, link, Request::Push { offer });
    }
}
