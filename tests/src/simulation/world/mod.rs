//! The driver of both sides: what the binaries do with actions, under a virtual clock and a bad network.

mod clock;
mod coordinator;
mod deaths;
mod disks;
mod evaluations;
mod hostile;
mod network;
mod operations;
mod other_study;
mod requests;
mod site_work;
mod sites;
mod unreadable;
mod work;

use std::collections::BTreeMap;

use common::aggregate::weights::{SiteCounts, site_weights};
use common::evaluation::{self, ReportExpectation};
use common::ids::{ArtifactHash, AttemptId, Digest, ModelHash, Role, RoundId, SiteId, StudyDigest};
use common::participant;
use common::rng::{ChaCha8Rng, Rng, SeedableRng};
use common::round::{DeclineReason, Event, Fault, RoundTask, Term, Timer, UpdateOffer};
use common::time::Timestamp;

use super::Outcome;
use super::arithmetic::{aggregate, initial_model, report_of, update_of};
use super::coordinator::{Coordinator, plan};
use super::coverage::Coverage;
use super::invariants::{Books, MAX_SITE_WEIGHT, Suspect, Violation};
use super::sabotage::Sabotage;
use super::scenario::{Scenario, site_id};
use super::site::{Checkpoint, Site};
use super::tally::Tally;

/// A federation that takes more steps than this does not finish.
const MOST_STEPS: u64 = 100_000;
/// Nor does one that is not through so long after its faults stopped, milliseconds.
const LONGEST_CALM: u64 = 2 * 24 * 3_600_000;

/// What a site asks of the coordinator.
#[derive(Clone, Debug)]
enum Request {
    Register {
        counts: SiteCounts,
    },
    Accept {
        round: RoundId,
    },
    Decline {
        round: RoundId,
        reason: DeclineReason,
    },
    Fetch {
        artifact: ArtifactHash,
    },
    Offer {
        offer: UpdateOffer,
    },
    /// All chunks, and the word that these were all.
    Push {
        offer: UpdateOffer,
    },
    Report {
        model: ModelHash,
        report: Digest,
    },
}

/// What reaches a site.
#[derive(Clone, Debug)]
enum Reply {
    Notice(participant::Event),
    Wanted { offer: UpdateOffer },
}

/// Something that is going to happen.
#[derive(Clone, Debug)]
enum Happening {
    NextOp,
    Arrives {
        site: usize,
        link: u32,
        request: Request,
    },
    Reaches {
        site: usize,
        link: u32,
        reply: Reply,
    },
    Dial {
        site: usize,
    },
    /// A site notices that nothing comes through any more.
    LinkLost {
        site: usize,
        link: u32,
    },
    /// The coordinator notices that a connection is dead.
    LinkDead {
        site: usize,
        link: u32,
    },
    ReviveSite {
        site: usize,
    },
    ReviveCoordinator,
    /// The coordinator can read the study when it starts next.
    StudyReadable,
    /// The coordinator's disk takes files again.
    DiskHasRoom,
    /// A site's does.
    SiteHasRoom {
        site: usize,
    },
    SiteWork {
        site: usize,
        incarnation: u32,
        work: Work,
    },
    CoordinatorWork {
        incarnation: u32,
        work: CoordinatorWork,
    },
    /// The coordinator's disk has an update.
    Stored {
        incarnation: u32,
        site: SiteId,
        offer: UpdateOffer,
    },
    RoundTimer {
        timer: Timer,
        at: Timestamp,
    },
    GateTimer {
        at: Timestamp,
    },
    SiteTimer {
        site: usize,
        timer: participant::Timer,
        at: Timestamp,
    },
}

impl Happening {
    /// The site whose process does this.
    fn of_site(&self) -> Option<usize> {
        match self {
            Self::Reaches { site, .. }
            | Self::SiteWork { site, .. }
            | Self::SiteTimer { site, .. }
            | Self::Dial { site } => Some(*site),
            _ => None,
        }
    }
}

#[derive(Clone, Debug)]
enum Work {
    Approve {
        study: StudyDigest,
    },
    /// The last step of a training, which went on from there.
    Train {
        task: RoundTask,
        attempt: AttemptId,
        from: Option<Checkpoint>,
    },
    /// A training is kept as far as it is.
    Keep {
        attempt: AttemptId,
        checkpoint: Checkpoint,
    },
    /// What a training had kept before it went on is told.
    SayKept {
        attempt: AttemptId,
        step: u32,
    },
    /// The process dies in the midst of this.
    Die {
        suspect: Suspect,
    },
    /// Trains again what the outbox has lost.
    Mend {
        offer: UpdateOffer,
    },
    Evaluate {
        model: ModelHash,
    },
    /// A request had no answer in time.
    GiveUp {
        failed: participant::Event,
    },
}

#[derive(Clone, Debug, PartialEq)]
enum CoordinatorWork {
    Aggregate { round: RoundId, base: ModelHash, terms: Vec<Term> },
    Commit { round: RoundId, model: ModelHash },
}

/// A whole federation.
#[derive(Debug)]
pub(super) struct World {
    scenario: Scenario,
    sabotage: Sabotage,
    rng: ChaCha8Rng,
    now: Timestamp,
    queue: BTreeMap<(Timestamp, u64), Happening>,
    sequence: u64,
    coordinator: Coordinator,
    /// What the coordinator's process computes or commits.
    job: Option<CoordinatorWork>,
    sites: Vec<Site>,
    /// The manifests registered last, as the harness knows them.
    registered: BTreeMap<SiteId, SiteCounts>,
    books: Books,
    next_op: usize,
    next_link: u32,
    /// When the faults stopped.
    calm_since: Option<Timestamp>,
    lose: u8,
    double: u8,
    delay_ms: u64,
    /// Sites that are cut off, until when.
    cut_off: BTreeMap<usize, Timestamp>,
    /// How much longer a durable write takes at most.
    disk_ms: u64,
    failing_commits: u32,
    failing_aggregation: Option<Fault>,
    tally: Tally,
    coverage: Coverage,
}

impl World {
    pub(super) fn new(scenario: Scenario, sabotage: Sabotage) -> Self {
        let coordinator = Coordinator::new(plan(&scenario, sabotage));
        let role = |site| if site < scenario.trainers { Role::Trainer } else { Role::Evaluator };
        let mut sites: Vec<_> = (0..scenario.sites()).map(|site| Site::new(site, role(site))).collect();
        for site in &mut sites[scenario.trainers - scenario.latecomers..scenario.trainers] {
            site.enrolled = false;
        }
        let tally = Tally { federations: 1, sites: sites.len() as u64, ..Tally::default() };
        let mut world = Self {
            rng: ChaCha8Rng::seed_from_u64(scenario.seed ^ 0x5eed),
            now: Timestamp(1_000_000),
            queue: BTreeMap::new(),
            sequence: 0,
            coordinator,
            job: None,
            sites,
            registered: BTreeMap::new(),
            books: Books::new(&scenario, initial_model()),
            next_op: 0,
            next_link: 0,
            calm_since: None,
            lose: 0,
            double: 0,
            delay_ms: 200,
            cut_off: BTreeMap::new(),
            disk_ms: 0,
            failing_commits: 0,
            failing_aggregation: None,
            tally,
            coverage: Coverage::default(),
            scenario,
            sabotage,
        };
        world.expect_trainers();
        world.feed(Event::Start);
        for site in 0..world.sites.len() {
            world.dial_in(site, 5_000);
        }
        world.at(0, Happening::NextOp);
        world
    }

    /// Runs the operations, then calms the weather and waits for the end.
    pub(super) fn run(mut self) -> Result<Outcome, Violation> {
        while !self.finished() {
            self.tally.steps += 1;
            let late = self.calm_since.is_some_and(|since| self.now.0 - since.0 > LONGEST_CALM);
            if self.tally.steps > MOST_STEPS || late {
                return Err(Violation(format!("no end in sight: {}", self.describe())));
            }
            let Some((key, happening)) = self.queue.pop_first() else {
                return Err(Violation(format!("nothing will ever happen again: {}", self.describe())));
            };
            self.now = self.now.max(key.0);
            self.happen(happening);
            self.check()?;
        }
        self.compare_with_undisturbed();
        self.check()?;
        self.tally.rounds = u64::from(self.books.rounds());
        let model = self.books.model_of(RoundId(self.scenario.rounds));
        Ok(Outcome { tally: self.tally, coverage: self.coverage, model, whole: self.tally.whole > 0 })
    }

    fn check(&mut self) -> Result<(), Violation> {
        match self.books.violation.take() {
            Some(broken) => Err(Violation(format!("step {}: {broken}", self.tally.steps))),
            None => Ok(()),
        }
    }

    /// Where every trainer took part in every round, the last model must be that of a federation without faults.
    fn compare_with_undisturbed(&mut self) {
        let Scenario { rounds, trainers, weighting, .. } = self.scenario;
        let manifest = |site| (site_id(site), self.scenario.counts(site, 0));
        let manifests = (0..trainers).map(manifest).collect();
        if !self.books.whole(rounds, &manifests) {
            return;
        }
        self.tally.whole = 1;
        let shares = site_weights(weighting, &manifests, MAX_SITE_WEIGHT).shares;
        let expected = (1..=rounds).map(RoundId).fold(initial_model(), |base, round| {
            let update = |site: &SiteId| update_of(site, round, base);
            aggregate(base, shares.iter().map(|(site, share)| (site.clone(), update(site), *share)))
        });
        let got = self.books.model_of(RoundId(rounds));
        self.books.check(got == Some(expected), || {
            format!("every trainer took part in every round, and the model is {got:?}, not {expected:?}")
        });
    }

    fn finished(&self) -> bool {
        if !self.coordinator.reads_study() || self.next_op < self.scenario.ops.len() {
            return false;
        }
        if !self.sites.iter().all(Site::at_rest) {
            return false;
        }
        match self.coordinator.rounds.status().phase {
            "aborted" => true,
            "finished" => self.scored(),
            _ => false,
        }
    }

    /// Whether every evaluator's report on the last model is kept.
    fn scored(&self) -> bool {
        let Some(model) = self.books.model_of(RoundId(self.scenario.rounds)) else { return false };
        self.scenario.evaluator_ids().all(|site| {
            let kept = self.coordinator.evaluation.expect_report(&site, &model, &report_of(&site, model));
            kept == Ok(ReportExpectation::AlreadyKept)
        })
    }

    fn describe(&self) -> String {
        let sites: Vec<_> = self.sites.iter().map(|site| (site.up, site.machine.status())).collect();
        format!("{:?}; {sites:?}", self.coordinator.rounds.status())
    }

    fn at(&mut self, delay_ms: u64, happening: Happening) {
        self.sequence += 1;
        self.queue.insert((Timestamp(self.now.0 + delay_ms), self.sequence), happening);
    }

    fn soon(&mut self, longest_ms: u64) -> u64 {
        self.rng.random_range(1..=longest_ms)
    }

    /// How much longer the disk takes now.
    fn disk(&mut self) -> u64 {
        self.rng.random_range(0..=self.disk_ms)
    }

    fn happen(&mut self, happening: Happening) {
        if let Some(wait) = self.halts_before(&happening) {
            return self.at(wait, happening);
        }
        if happening.of_site().is_some_and(|site| self.stops(site)) {
            return;
        }
        match happening {
            Happening::NextOp => self.next_op(),
            Happening::Arrives { site, link, request } => self.arrives(site, link, request),
            Happening::Reaches { site, link, reply } => self.reaches(site, link, reply),
            Happening::Dial { site } => self.dial(site),
            Happening::LinkLost { site, link } => {
                if self.sites[site].link == Some(link) {
                    self.cut_at(site, link);
                }
            }
            Happening::LinkDead { site, link } => {
                if self.coordinator.links.get(&site) == Some(&link) {
                    self.gone(site);
                }
            }
            Happening::StudyReadable => self.study_readable(),
            Happening::DiskHasRoom => self.disk_has_room(),
            Happening::SiteHasRoom { site } => self.site_has_room(site),
            Happening::ReviveSite { site } => self.revive_site(site),
            Happening::ReviveCoordinator => self.revive_coordinator(),
            Happening::SiteWork { site, incarnation, work } => {
                if self.sites[site].up && self.sites[site].incarnation == incarnation {
                    self.site_work(site, work);
                }
            }
            Happening::CoordinatorWork { incarnation, work } => {
                let lives = self.coordinator.up && self.coordinator.incarnation == incarnation;
                if lives && self.job.take_if(|job| *job == work).is_some() {
                    self.coordinator_work(work);
                }
            }
            Happening::Stored { incarnation, site, offer } => {
                if self.coordinator.up && self.coordinator.incarnation == incarnation {
                    self.store(site, offer);
                }
            }
            Happening::RoundTimer { timer, at } => {
                if self.coordinator.timers.get(&timer) == Some(&at) {
                    self.coordinator.timers.remove(&timer);
                    self.feed(Event::TimerFired(timer));
                }
            }
            Happening::GateTimer { at } => {
                if self.coordinator.gate_timer == Some(at) {
                    self.coordinator.gate_timer = None;
                    self.feed_evaluation(evaluation::Event::TimerFired(evaluation::Timer::Gate));
                }
            }
            Happening::SiteTimer { site, timer, at } => {
                if self.sites[site].timers.get(&timer) == Some(&at) {
                    self.sites[site].timers.remove(&timer);
                    self.feed_site(site, participant::Event::TimerFired(timer));
                }
            }
        }
    }
}
