//! How a site's process ends but for a kill at any moment: it dies in the midst of its work, as if of that, or it is told to stop.

use common::participant::{Action, Event};

use super::{Work, World};
use crate::simulation::coverage::of_site;
use crate::simulation::invariants::{Suspect, Taken};
use crate::simulation::sabotage::Sabotage;
use crate::simulation::site::{Deadly, Site};

impl World {
    /// Has a process die in a piece of work after so long, where the scenario wants that.
    pub(super) fn may_die(&mut self, site: usize, suspect: Suspect, delay: u64) {
        if self.sites[site].deadly.is_some() {
            self.site_job_at(site, delay, Work::Die { suspect });
        }
    }

    pub(super) fn die_in(&mut self, site: usize, suspect: Suspect) {
        let Site { training, evaluating, deadly, .. } = &mut self.sites[site];
        let is_at_it = match suspect {
            Suspect::Training(attempt) => *training == Some(attempt),
            Suspect::Scoring(model) => *evaluating == Some(model),
        };
        let Some(Deadly { times, step, further, back_ms }) = deadly.filter(|_| is_at_it) else { return };
        let again = Deadly { times: times.saturating_sub(1), step: step + further, further, back_ms };
        *deadly = Some(again).filter(|again| again.times > 0);
        self.tally.crashes += 1;
        self.end_site(site, Some(back_ms));
    }

    /// One more event at a site; whether its agent is told to stop in its place. Then it ends in order, and is started again.
    pub(super) fn stops(&mut self, site: usize) -> bool {
        let Site { up, stops_after, .. } = &mut self.sites[site];
        let Some(left) = stops_after.as_mut().filter(|_| *up) else { return false };
        if *left > 0 {
            *left -= 1;
            return false;
        }
        *stops_after = None;
        self.stop_site(site);
        true
    }

    fn stop_site(&mut self, site: usize) {
        self.tally.stopped += 1;
        if self.sabotage == Sabotage::ForgetStops {
            self.hold_unsaid(site, &Event::Stopped);
        } else if !self.waits_at_site(site) {
            self.take_at_site(site, Event::Stopped);
        }
        // On a full disk nothing says that this was no crash.
        if self.sites[site].up {
            self.end_site(site, None);
        }
    }

    /// Takes the update that the process before finished and did not live to note: its death is not held against that.
    pub(super) fn take_finished(&mut self, site: usize) {
        let outstanding = self.sites[site].machine.outstanding(self.site_now(site));
        let Site { outbox, rotten, .. } = &self.sites[site];
        let finished = outstanding.into_iter().find_map(|action| match action {
            Action::Train { task, attempt } if !rotten.contains(&attempt) => {
                outbox.get(&attempt).map(|&update| Event::Trained { attempt, update, steps: task.steps })
            }
            _ => None,
        });
        if let Some(finished) = finished {
            self.feed_site(site, finished);
        }
    }

    /// Counts what a site's machine took of deaths.
    pub(super) fn hold(&mut self, taken: &Taken<'_>) {
        if let Some(row) = self.books.suspects(taken) {
            self.tally.given_up += u64::from(row.to == "given-up");
            self.coverage.note(row);
        }
    }

    /// Sabotage: what its machine does not hear of.
    pub(super) fn hold_unsaid(&mut self, index: usize, event: &Event) {
        let (site, at) = (&self.sites[index], self.site_now(index));
        let (id, (_, to)) = (site.identity.site.clone(), of_site(&site.machine, site.evaluates()));
        self.hold(&Taken { site: &id, event, at, midst: None, actions: &[], to });
    }
}
