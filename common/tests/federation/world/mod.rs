//! The driver of both sides: what the binaries do with actions, under a virtual clock and a bad network.

mod coordinator;
mod evaluations;
mod network;
mod operations;
mod requests;
mod sites;

use std::collections::{BTreeMap, BTreeSet};

use common::aggregate::weights::{SiteCounts, site_weights};
use common::evaluation::{self, EvaluationMachine, EvaluatorKind, ReportExpectation};
use common::ids::{ArtifactHash, AttemptId, Digest, ModelHash, Role, RoundId, SiteId, StudyDigest};
use common::journal::Entry;
use common::participant;
use common::round::{
    Action, DeclineReason, Event, Fact, Fault, Gate, Late, Quorum, RoundMachine, RoundPlan, RoundTask,
    Snapshot, Term, Timer, UpdateExpectation, UpdateOffer,
};
use common::time::Timestamp;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::invariants::{Books, Violation};
use crate::sabotage::Sabotage;
use crate::scenario::{Lie, Op, Scenario, counts};
use crate::site::Site;
use crate::tally::Tally;

/// A federation that takes more steps than this does not finish.
const MOST_STEPS: u64 = 60_000;

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
    /// The coordinator notices that a connection is dead.
    LinkDead {
        site: usize,
        link: u32,
    },
    ReviveSite {
        site: usize,
    },
    ReviveCoordinator,
    SiteWork {
        site: usize,
        incarnation: u32,
        work: Work,
    },
    CoordinatorWork {
        incarnation: u32,
        work: CoordinatorWork,
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

#[derive(Clone, Debug)]
enum Work {
    Approve {
        study: StudyDigest,
    },
    Train {
        task: RoundTask,
        attempt: AttemptId,
    },
    Evaluate {
        model: ModelHash,
    },
    /// A request had no answer in time.
    GiveUp {
        failed: participant::Event,
    },
}

#[derive(Clone, Debug)]
enum CoordinatorWork {
    Aggregate { round: RoundId, terms: Vec<Term> },
    Commit { round: RoundId, model: ModelHash },
}

/// The coordinator's process and disk.
#[derive(Debug)]
struct Coordinator {
    rounds: RoundMachine,
    shadow: RoundMachine,
    evaluation: EvaluationMachine,
    snapshot: Option<String>,
    journal: Vec<String>,
    evaluation_journal: Vec<String>,
    artifacts: BTreeSet<ArtifactHash>,
    up: bool,
    incarnation: u32,
    links: BTreeMap<usize, u32>,
    timers: BTreeMap<Timer, Timestamp>,
    gate_timer: Option<Timestamp>,
    working: bool,
    fuse: Option<u32>,
}

/// A whole federation.
#[derive(Debug)]
pub(crate) struct World {
    scenario: Scenario,
    sabotage: Sabotage,
    rng: ChaCha8Rng,
    now: Timestamp,
    queue: BTreeMap<(Timestamp, u64), Happening>,
    sequence: u64,
    coordinator: Coordinator,
    sites: Vec<Site>,
    /// The manifests registered last, as the harness knows them.
    registered: BTreeMap<SiteId, SiteCounts>,
    books: Books,
    next_op: usize,
    next_link: u32,
    lose: u8,
    double: u8,
    delay_ms: u64,
    failing_commits: u32,
    failing_aggregations: u32,
    tally: Tally,
}

fn artifact(parts: &str) -> ArtifactHash {
    ArtifactHash(Digest::of(parts.as_bytes()))
}

fn study() -> StudyDigest {
    StudyDigest(Digest::of(b"study"))
}

fn plan(scenario: &Scenario, sabotage: Sabotage) -> RoundPlan {
    let sites = if sabotage == Sabotage::IgnoreQuorum { 1 } else { scenario.quorum };
    let evaluators = (scenario.trainers..scenario.sites()).map(crate::scenario::site_id).collect();
    RoundPlan {
        study: study(),
        initial_model: artifact("initial"),
        rounds: scenario.rounds,
        steps: 10,
        quorum: Quorum { sites, sites_per_class: 0, deadline_s: scenario.deadline_s, accept_s: 30 },
        late: Late::Refuse,
        weighting: scenario.weighting,
        max_site_weight: 0.5,
        server_lr: 1.0,
        evaluate_every: 2,
        gate: scenario.gated.then_some(Gate { evaluators, timeout_s: 1800 }),
        leave_out: BTreeSet::new(),
        min_volumes: 0,
    }
}

impl World {
    pub(crate) fn new(scenario: Scenario, sabotage: Sabotage) -> Self {
        let plan = plan(&scenario, sabotage);
        let rounds = RoundMachine::new(plan.clone());
        let coordinator = Coordinator {
            shadow: rounds.clone(),
            rounds,
            evaluation: EvaluationMachine::new(study(), plan.gate.clone()),
            snapshot: None,
            journal: vec![],
            evaluation_journal: vec![],
            artifacts: [plan.initial_model, artifact("embeddings")].into(),
            up: true,
            incarnation: 0,
            links: BTreeMap::new(),
            timers: BTreeMap::new(),
            gate_timer: None,
            working: false,
            fuse: None,
        };
        let role = |site| if site < scenario.trainers { Role::Trainer } else { Role::Evaluator };
        let sites = (0..scenario.sites()).map(|site| Site::new(site, role(site))).collect();
        let mut world = Self {
            rng: ChaCha8Rng::seed_from_u64(scenario.seed ^ 0x5eed),
            now: Timestamp(1_000_000),
            queue: BTreeMap::new(),
            sequence: 0,
            coordinator,
            sites,
            registered: BTreeMap::new(),
            books: Books::new(scenario.quorum, scenario.weighting, plan.initial_model),
            next_op: 0,
            next_link: 0,
            lose: 0,
            double: 0,
            delay_ms: 200,
            failing_commits: 0,
            failing_aggregations: 0,
            tally: Tally::default(),
            scenario,
            sabotage,
        };
        let trainers = (0..world.scenario.trainers).map(crate::scenario::site_id).collect();
        world.feed(Event::TrainersExpected { sites: trainers });
        world.feed(Event::Start);
        for site in 0..world.sites.len() {
            world.dial_in(site, 5_000);
        }
        world.at(0, Happening::NextOp);
        world
    }

    /// Runs the operations, then calms the weather and waits for the end.
    pub(crate) fn run(mut self) -> Result<Tally, Violation> {
        while !self.finished() {
            self.tally.steps += 1;
            if self.tally.steps > MOST_STEPS {
                return Err(Violation(format!("no end in sight: {}", self.describe())));
            }
            let Some((key, happening)) = self.queue.pop_first() else {
                return Err(Violation(format!("nothing will ever happen again: {}", self.describe())));
            };
            self.now = self.now.max(key.0);
            self.happen(happening);
            self.check();
            if let Some(broken) = self.books.violation.take() {
                return Err(Violation(format!("step {}: {broken}", self.tally.steps)));
            }
        }
        self.tally.rounds = u64::from(self.books.rounds());
        Ok(self.tally)
    }

    fn finished(&self) -> bool {
        let over = self.coordinator.up && self.coordinator.rounds.status().phase == "finished";
        let last = self.books.model_of(RoundId(self.scenario.rounds));
        let scored = last.is_some_and(|model| {
            let asked = self.scenario.trainers..self.scenario.sites();
            asked.map(crate::scenario::site_id).all(|site| {
                let report = report_of(&site, model);
                let kept = self.coordinator.evaluation.expect_report(&site, &model, &report);
                kept == Ok(ReportExpectation::AlreadyKept)
            })
        });
        over && scored && self.next_op >= self.scenario.ops.len() && self.sites.iter().all(Site::at_rest)
    }

    fn describe(&self) -> String {
        let sites: Vec<_> = self.sites.iter().map(|site| (site.up, site.machine.status())).collect();
        format!("{:?}; {sites:?}", self.coordinator.rounds.status())
    }

    /// Replay equals state, on both sides, after every step.
    fn check(&mut self) {
        let agrees = self.coordinator.shadow == self.coordinator.rounds;
        self.books.check(agrees, || "the coordinator's journal does not give its state".to_owned());
        for site in &self.sites {
            let agrees = site.replay_agrees();
            self.books
                .check(agrees, || format!("the journal of {} does not give its state", site.identity.site));
        }
    }

    fn at(&mut self, delay_ms: u64, happening: Happening) {
        self.sequence += 1;
        self.queue.insert((Timestamp(self.now.0 + delay_ms), self.sequence), happening);
    }

    fn soon(&mut self, longest_ms: u64) -> u64 {
        self.rng.random_range(1..=longest_ms)
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::NextOp => self.next_op(),
            Happening::Arrives { site, link, request } => self.arrives(site, link, request),
            Happening::Reaches { site, link, reply } => self.reaches(site, link, reply),
            Happening::Dial { site } => self.dial(site),
            Happening::LinkDead { site, link } => {
                if self.coordinator.links.get(&site) == Some(&link) {
                    self.gone(site);
                }
            }
            Happening::ReviveSite { site } => self.revive_site(site),
            Happening::ReviveCoordinator => self.revive_coordinator(),
            Happening::SiteWork { site, incarnation, work } => {
                if self.sites[site].up && self.sites[site].incarnation == incarnation {
                    self.site_work(site, work);
                }
            }
            Happening::CoordinatorWork { incarnation, work } => {
                if self.coordinator.up && self.coordinator.incarnation == incarnation {
                    self.coordinator.working = false;
                    self.coordinator_work(work);
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

fn report_of(site: &SiteId, model: ModelHash) -> Digest {
    Digest::of(format!("{site} {model}").as_bytes())
}

fn short(text: &str) -> [u8; 16] {
    let mut id = [0; 16];
    id.copy_from_slice(&Digest::of(text.as_bytes()).as_bytes()[..16]);
    id
}
