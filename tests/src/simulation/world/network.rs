//! The network: loses, doubles, delays and reorders; connections end and are dialled again; some sites are cut off for a while.
//!
//! Each message has its own delay, so one that was sent later may arrive first.

use common::evaluation;
use common::ids::{Role, SiteId};
use common::participant;
use common::rng::Rng;
use common::round::Event;
use common::time::Timestamp;

use super::{Happening, Reply, Request, World};
use crate::simulation::arithmetic::study;
use crate::simulation::site::Fetched;

impl World {
    /// Delays of the copies that arrive: none when lost, two when doubled.
    fn copies(&mut self) -> Vec<u64> {
        let fate = self.rng.random_range(0..100);
        let longest = self.delay_ms;
        if fate < self.lose {
            self.tally.lost += 1;
            return vec![];
        }
        let copies = if fate < self.lose + self.double { 2 } else { 1 };
        self.tally.duplicated += copies - 1;
        (0..copies).map(|_| self.soon(longest)).collect()
    }

    /// From a site. A request that is lost is given up by its sender; see [`World::request`].
    pub(super) fn send(&mut self, site: usize, link: u32, request: Request) {
        let copies = self.copies();
        // Until it is registered a site has nothing else to do on a connection: its driver gives that up, not the request.
        if copies.is_empty() && matches!(request, Request::Register { .. }) {
            return self.cut_at(site, link);
        }
        for delay in copies {
            self.at(delay, Happening::Arrives { site, link, request: request.clone() });
        }
    }

    /// To a site, on its present connection. A notice is never lost without the connection: streams are reliable.
    pub(super) fn reply(&mut self, site: usize, reply: Reply) {
        let Some(&link) = self.coordinator.links.get(&site) else { return };
        let copies = self.copies();
        if copies.is_empty() {
            return self.cut_at(site, link);
        }
        for delay in copies {
            self.at(delay, Happening::Reaches { site, link, reply: reply.clone() });
        }
    }

    pub(super) fn notice(&mut self, to: &SiteId, event: participant::Event) {
        if let Some(site) = self.index(to) {
            self.reply(site, Reply::Notice(event));
        }
    }

    pub(super) fn index(&self, site: &SiteId) -> Option<usize> {
        self.sites.iter().position(|known| known.identity.site == *site)
    }

    pub(super) fn cut_at(&mut self, site: usize, link: u32) {
        let delay = self.soon(60_000);
        self.at(delay, Happening::LinkDead { site, link });
        if self.sites[site].link == Some(link) {
            self.sites[site].link = None;
            self.feed_site(site, participant::Event::Disconnected);
            self.dial_in(site, 10_000);
        }
    }

    pub(super) fn cut(&mut self, site: usize) {
        if let Some(link) = self.sites[site].link {
            self.cut_at(site, link);
        }
    }

    /// Cuts sites off: what is under way either way is lost, and both ends notice the silence some time later. So the
    /// connection ends even where the network is back before that.
    pub(super) fn cut_off(&mut self, sites: &[usize], ms: u64) {
        for &site in sites {
            self.tally.partitioned += 1;
            let until = Timestamp(self.now.0 + ms);
            let known = self.cut_off.entry(site).or_insert(until);
            *known = until.max(*known);
            if let Some(link) = self.sites[site].link {
                let delay = self.soon(60_000);
                self.at(delay, Happening::LinkLost { site, link });
            }
        }
    }

    pub(super) fn is_cut_off(&self, site: usize) -> bool {
        self.cut_off.get(&site).is_some_and(|until| self.now < *until)
    }

    pub(super) fn dial_in(&mut self, site: usize, longest_ms: u64) {
        if !self.sites[site].dialing {
            self.sites[site].dialing = true;
            let delay = self.soon(longest_ms);
            self.at(delay, Happening::Dial { site });
        }
    }

    pub(super) fn dial(&mut self, site: usize) {
        self.sites[site].dialing = false;
        if !self.sites[site].up || self.sites[site].link.is_some() {
            return;
        }
        if !self.sites[site].enrolled {
            return self.dial_in(site, 120_000);
        }
        if !self.coordinator.up || self.is_cut_off(site) {
            return self.dial_in(site, 10_000);
        }
        if self.coordinator.links.contains_key(&site) {
            self.gone(site);
        }
        if !self.coordinator.up {
            return self.dial_in(site, 10_000);
        }
        self.next_link += 1;
        let link = self.next_link;
        self.coordinator.links.insert(site, link);
        self.sites[site].link = Some(link);
        self.feed_site(site, participant::Event::Connected);
        if self.stands_still() {
            return;
        }
        let study = study();
        let notice = match self.coordinator.rounds.is_over_for(self.sites[site].identity.role) {
            false => participant::Event::StudyOffered { study },
            true => participant::Event::StudyFinished { study },
        };
        self.reply(site, Reply::Notice(notice));
    }

    pub(super) fn gone(&mut self, site: usize) {
        self.coordinator.links.remove(&site);
        let id = self.sites[site].identity.site.clone();
        if self.sites[site].identity.role == Role::Trainer {
            self.feed(Event::SiteGone { site: id });
        } else {
            self.feed_evaluation(evaluation::Event::EvaluatorGone { site: id });
        }
    }

    pub(super) fn reaches(&mut self, site: usize, link: u32, reply: Reply) {
        if !self.sites[site].up || self.sites[site].link != Some(link) {
            return;
        }
        if self.is_cut_off(site) {
            self.tally.lost += 1;
            return;
        }
        match reply {
            Reply::Notice(participant::Event::ModelStored { artifact }) => {
                let stored = participant::Event::ModelStored { artifact };
                let lives = self.site_writes(site, |site| {
                    site.artifacts.insert(artifact, Fetched::Whole);
                });
                if lives {
                    self.feed_site(site, stored);
                }
            }
            Reply::Notice(event) => self.feed_site(site, event),
            // It cannot be read: no word goes out, and the site gives the offer up.
            Reply::Wanted { offer } if self.sites[site].rotten.contains(&offer.attempt) => {
                self.tally.faults += 1
            }
            Reply::Wanted { offer } => self.send(site, link, Request::Push { offer }),
        }
    }
}
