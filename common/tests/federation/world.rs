//! The driver of both sides: what the binaries do with actions, under a virtual clock and a bad network.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::AddAssign;

use common::aggregate::weights::{SiteCounts, site_weights};
use common::evaluation::{self, EvaluationMachine, EvaluatorKind, ReportExpectation};
use common::ids::{ArtifactHash, AttemptId, Digest, ModelHash, Role, RoundId, SiteId, StudyDigest};
use common::journal::Entry;
use common::participant;
use common::round::{
    Action, DeclineReason, Event, Fact, Fault, Gate, Quorum, RoundMachine, RoundPlan, RoundTask, Snapshot,
    Term, Timer, UpdateExpectation, UpdateOffer,
};
use common::time::Timestamp;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::invariants::{Books, Violation};
use crate::scenario::{Lie, Op, Scenario, counts};
use crate::site::Site;

/// A federation that takes more steps than this does not finish.
const MOST_STEPS: u64 = 60_000;

/// What is broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sabotage {
    None,
    /// The driver tells the sites about a model while it is being written.
    AnnounceBeforeDurable,
    /// The driver hands an update to the aggregation twice.
    CountTwice,
    /// The driver gives the receipt when the upload is offered.
    ReceiptBeforeDurable,
    /// The study's quorum does not reach the machine.
    IgnoreQuorum,
    /// The driver weighs by the manifests of now, not of the round's opening.
    WeighAgain,
    /// The driver does not write down that an update was stored.
    ForgetUpdates,
    /// The driver drops timers.
    ForgetTimers,
}

impl Sabotage {
    pub(crate) const BROKEN: [Self; 7] = [
        Self::AnnounceBeforeDurable,
        Self::CountTwice,
        Self::ReceiptBeforeDurable,
        Self::IgnoreQuorum,
        Self::WeighAgain,
        Self::ForgetUpdates,
        Self::ForgetTimers,
    ];
}

/// What happened in one federation, or in many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) steps: u64,
    pub(crate) rounds: u64,
    pub(crate) crashes: u64,
    pub(crate) lost: u64,
    pub(crate) duplicated: u64,
    pub(crate) refused: u64,
    pub(crate) answered_again: u64,
    pub(crate) faults: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.steps += other.steps;
        self.rounds += other.rounds;
        self.crashes += other.crashes;
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.refused += other.refused;
        self.answered_again += other.answered_again;
        self.faults += other.faults;
    }
}

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
        quorum: Quorum { sites, deadline_s: scenario.deadline_s, accept_s: 30 },
        weighting: scenario.weighting,
        max_site_weight: 0.5,
        server_lr: 1.0,
        evaluate_every: 2,
        gate: scenario.gated.then_some(Gate { evaluators, timeout_s: 1800 }),
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

    // Operations.

    fn next_op(&mut self) {
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
    fn calm(&mut self) {
        (self.lose, self.double, self.delay_ms) = (0, 0, 200);
        let paused = self.coordinator.rounds.status().paused;
        if self.coordinator.up && paused.is_some() {
            self.feed(Event::Resume);
        }
        self.at(600_000, Happening::NextOp);
    }

    /// A site that pushes what it was not asked for, past its own machine.
    fn lie(&mut self, site: usize, lie: Lie) {
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

    // The network.

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

    /// From a site. A request that is lost is given up by its sender; see [`World::execute_site`].
    fn send(&mut self, site: usize, link: u32, request: Request) {
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
    fn reply(&mut self, site: usize, reply: Reply) {
        let Some(&link) = self.coordinator.links.get(&site) else { return };
        let copies = self.copies();
        if copies.is_empty() {
            return self.cut_at(site, link);
        }
        for delay in copies {
            self.at(delay, Happening::Reaches { site, link, reply: reply.clone() });
        }
    }

    fn notice(&mut self, to: &SiteId, event: participant::Event) {
        if let Some(site) = self.index(to) {
            self.reply(site, Reply::Notice(event));
        }
    }

    fn index(&self, site: &SiteId) -> Option<usize> {
        self.sites.iter().position(|known| known.identity.site == *site)
    }

    fn cut_at(&mut self, site: usize, link: u32) {
        let delay = self.soon(60_000);
        self.at(delay, Happening::LinkDead { site, link });
        if self.sites[site].link == Some(link) {
            self.sites[site].link = None;
            self.feed_site(site, participant::Event::Disconnected);
            self.dial_in(site, 10_000);
        }
    }

    fn cut(&mut self, site: usize) {
        if let Some(link) = self.sites[site].link {
            self.cut_at(site, link);
        }
    }

    fn dial_in(&mut self, site: usize, longest_ms: u64) {
        if !self.sites[site].dialing {
            self.sites[site].dialing = true;
            let delay = self.soon(longest_ms);
            self.at(delay, Happening::Dial { site });
        }
    }

    fn dial(&mut self, site: usize) {
        self.sites[site].dialing = false;
        if !self.sites[site].up || self.sites[site].link.is_some() {
            return;
        }
        if !self.coordinator.up {
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
        self.reply(site, Reply::Notice(participant::Event::StudyOffered { study: study() }));
    }

    fn gone(&mut self, site: usize) {
        self.coordinator.links.remove(&site);
        let id = self.sites[site].identity.site.clone();
        if self.sites[site].identity.role == Role::Trainer {
            self.feed(Event::SiteGone { site: id });
        } else {
            self.feed_evaluation(evaluation::Event::EvaluatorGone { site: id });
        }
    }

    /// A message of a dead connection may still be read by the coordinator's end, unless a newer one took its place.
    fn arrives(&mut self, site: usize, link: u32, request: Request) {
        if !self.coordinator.up || self.coordinator.links.get(&site) != Some(&link) {
            return;
        }
        let id = self.sites[site].identity.site.clone();
        match request {
            Request::Register { counts } if self.sites[site].identity.role == Role::Trainer => {
                self.registered.insert(id.clone(), counts.clone());
                self.feed(Event::SiteReady { site: id, counts });
            }
            Request::Register { .. } => {
                let kind = EvaluatorKind::Validation;
                self.feed_evaluation(evaluation::Event::EvaluatorReady { site: id, kind });
            }
            Request::Accept { round } => self.feed(Event::RoundAccepted { site: id, round }),
            Request::Decline { round, reason } => self.feed(Event::RoundDeclined { site: id, round, reason }),
            Request::Fetch { artifact } => {
                let there = self.coordinator.artifacts.contains(&artifact);
                let stored = participant::Event::ModelStored { artifact };
                let failed = participant::Event::FetchFailed { artifact };
                self.reply(site, Reply::Notice(if there { stored } else { failed }));
            }
            Request::Offer { offer } => self.offered(site, &id, offer),
            Request::Push { offer } => self.pushed(id, offer),
            Request::Report { model, report } => self.reported(site, id, model, report),
        }
    }

    fn offered(&mut self, site: usize, id: &SiteId, offer: UpdateOffer) {
        let attempt = offer.attempt;
        if self.sabotage == Sabotage::ReceiptBeforeDurable {
            self.books.receipt(id, offer.round, attempt, offer.update);
            return self.notice(id, participant::Event::Receipt { attempt });
        }
        match self.coordinator.rounds.expect_update(id, &offer) {
            Ok(UpdateExpectation::Wanted { .. }) => self.reply(site, Reply::Wanted { offer }),
            Ok(UpdateExpectation::AlreadyCounted) => {
                self.tally.answered_again += 1;
                self.notice(id, participant::Event::Receipt { attempt });
            }
            Err(rejection) => {
                self.tally.refused += 1;
                let code = rejection.code().to_owned();
                self.notice(id, participant::Event::Refused { attempt, code });
            }
        }
    }

    fn pushed(&mut self, site: SiteId, offer: UpdateOffer) {
        self.books.stored(site.clone(), offer.attempt, offer.update);
        self.feed(Event::UpdateStored { site, offer });
    }

    fn reported(&mut self, site: usize, id: SiteId, model: ModelHash, report: Digest) {
        match self.coordinator.evaluation.expect_report(&id, &model, &report) {
            Ok(ReportExpectation::Wanted) => {
                self.feed_evaluation(evaluation::Event::ReportStored { site: id, model, report });
            }
            Ok(ReportExpectation::AlreadyKept) => {
                self.reply(site, Reply::Notice(participant::Event::ReportReceipt { model }));
            }
            Err(rejection) => {
                let code = rejection.code().to_owned();
                self.reply(site, Reply::Notice(participant::Event::ReportRefused { model, code }));
            }
        }
    }

    fn reaches(&mut self, site: usize, link: u32, reply: Reply) {
        if !self.sites[site].up || self.sites[site].link != Some(link) {
            return;
        }
        match reply {
            Reply::Notice(event) => {
                if let participant::Event::ModelStored { artifact } = event {
                    self.sites[site].artifacts.insert(artifact);
                }
                self.feed_site(site, event);
            }
            Reply::Wanted { offer } => self.send(site, link, Request::Push { offer }),
        }
    }

    // The coordinator.

    /// One more thing done; true when it was the process's last.
    fn coordinator_burns(&mut self) -> bool {
        match &mut self.coordinator.fuse {
            Some(0) => {
                self.kill_coordinator();
                true
            }
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        }
    }

    fn kill_coordinator(&mut self) {
        self.tally.crashes += 1;
        let Coordinator { up, incarnation, links, timers, gate_timer, working, fuse, .. } =
            &mut self.coordinator;
        (*up, *gate_timer, *working, *fuse) = (false, None, false, None);
        *incarnation += 1;
        timers.clear();
        let links = std::mem::take(links);
        let delay = self.soon(60_000);
        self.at(delay, Happening::ReviveCoordinator);
        for (site, link) in links {
            self.cut_at(site, link);
        }
    }

    fn revive_coordinator(&mut self) {
        let plan = plan(&self.scenario, self.sabotage);
        let coordinator = &mut self.coordinator;
        let snapshot: Option<Snapshot> = coordinator
            .snapshot
            .as_ref()
            .map(|text| serde_json::from_str(text).expect("a snapshot reads back"));
        let read =
            |line: &String| serde_json::from_str::<Entry<Event>>(line).expect("a journal line reads back");
        let entries: Vec<_> = coordinator.journal.iter().map(read).collect();
        let rounds = RoundMachine::replay(plan.clone(), snapshot, entries).expect("its own snapshot");
        let same = rounds == coordinator.rounds;
        let read =
            |line: &String| serde_json::from_str::<Entry<evaluation::Event>>(line).expect("reads back");
        let entries: Vec<_> = coordinator.evaluation_journal.iter().map(read).collect();
        let evaluation = EvaluationMachine::replay(study(), plan.gate, None, entries).expect("no snapshot");
        let same = same && evaluation == coordinator.evaluation;
        (coordinator.shadow, coordinator.rounds, coordinator.evaluation) =
            (rounds.clone(), rounds, evaluation);
        coordinator.up = true;
        self.books.check(same, || "the coordinator that came back is not the one that died".to_owned());
        self.feed_evaluation(evaluation::Event::Restarted);
        self.feed(Event::Restarted);
    }

    fn feed(&mut self, event: Event) {
        if !self.coordinator.up || self.coordinator_burns() {
            return;
        }
        let forgotten =
            self.sabotage == Sabotage::ForgetUpdates && matches!(event, Event::UpdateStored { .. });
        if !forgotten {
            let line = serde_json::to_string(&Entry { at: self.now, event: event.clone() }).expect("JSON");
            let read: Entry<Event> = serde_json::from_str(&line).expect("a journal line is an event");
            let _ = self.coordinator.shadow.tick(read.event, read.at);
            self.coordinator.journal.push(line);
        }
        let before = self.coordinator.rounds.status();
        let widens = event == Event::Resume && before.phase == "quorum-missing" && before.paused.is_none();
        let actions = self.coordinator.rounds.tick(event, self.now).unwrap_or_default();
        self.observe(&actions, widens);
        for action in actions {
            if !self.coordinator.up || self.coordinator_burns() {
                return;
            }
            self.execute(action);
        }
    }

    fn note_asked(&mut self, round: RoundId) {
        let ready = self.coordinator.rounds.status().ready;
        let known = |site: &SiteId| Some((site.clone(), self.registered.get(site)?.clone()));
        let manifests = ready.iter().filter_map(known).collect();
        self.books.asked(round, &manifests);
    }

    fn execute(&mut self, action: Action) {
        match action {
            Action::OpenRound { task, to } => {
                self.books.announced(task.base, "a base");
                for site in to {
                    self.notice(&site, participant::Event::RoundOpened { task: task.clone() });
                }
            }
            Action::CloseRound { round, model, .. } => self.close_round(round, model),
            Action::Acknowledge { site, round, attempt, update } => {
                self.books.receipt(&site, round, attempt, update);
                self.notice(&site, participant::Event::Receipt { attempt });
            }
            Action::Refuse { site, attempt, rejection } => {
                self.tally.refused += 1;
                let code = rejection.code().to_owned();
                self.notice(&site, participant::Event::Refused { attempt, code });
            }
            Action::Aggregate { round, base, mut terms, .. } => {
                if self.sabotage == Sabotage::CountTwice {
                    terms.extend(terms.first().cloned());
                }
                if self.sabotage == Sabotage::WeighAgain {
                    self.weigh_again(&mut terms);
                }
                self.books.aggregating(round, base, &terms);
                self.work(CoordinatorWork::Aggregate { round, terms });
            }
            Action::Commit { round, model } => {
                if self.sabotage == Sabotage::AnnounceBeforeDurable {
                    self.close_round(round, Some(model));
                }
                self.work(CoordinatorWork::Commit { round, model });
            }
            Action::Evaluate { round, model } => {
                self.books.announced(model, "a candidate");
                self.feed_evaluation(evaluation::Event::Requested { round, model });
            }
            Action::AnnouncePaused { to, .. } => {
                for site in to {
                    self.notice(&site, participant::Event::StudyPaused { study: study() });
                }
            }
            Action::AnnounceFinished { model, to } => {
                self.books.announced(model, "the result");
                for site in to {
                    self.notice(&site, participant::Event::StudyFinished { study: study() });
                }
            }
            Action::SetTimer { timer, at } => {
                if self.sabotage != Sabotage::ForgetTimers {
                    self.coordinator.timers.insert(timer, at);
                    self.at(at.since(self.now).as_millis() as u64, Happening::RoundTimer { timer, at });
                }
            }
            Action::ClearTimer(timer) => {
                self.coordinator.timers.remove(&timer);
            }
            Action::Report(_) => {}
        }
    }

    /// Keeps the books: the journal has the event, whether or not the process lives to execute the actions.
    fn observe(&mut self, actions: &[Action], widens: bool) {
        for action in actions {
            match action {
                Action::Report(Fact::RoundOpened { round, .. }) => self.note_asked(*round),
                Action::Report(Fact::UpdateDuplicated { .. }) => self.tally.answered_again += 1,
                _ => {}
            }
        }
        if widens {
            self.note_asked(self.coordinator.rounds.status().round);
        }
    }

    fn close_round(&mut self, round: RoundId, model: Option<ModelHash>) {
        if let Some(model) = model {
            self.books.announced(model, "a new model");
        }
        let links: Vec<_> = self.coordinator.links.keys().copied().collect();
        for site in links {
            self.reply(site, Reply::Notice(participant::Event::RoundClosed { study: study(), round }));
        }
    }

    /// One job at a time; asked for again while it runs, it is not begun again.
    fn work(&mut self, work: CoordinatorWork) {
        if !self.coordinator.working {
            self.coordinator.working = true;
            let (delay, incarnation) = (self.soon(20_000), self.coordinator.incarnation);
            self.at(delay, Happening::CoordinatorWork { incarnation, work });
        }
    }

    fn coordinator_work(&mut self, work: CoordinatorWork) {
        match work {
            CoordinatorWork::Aggregate { round, .. } if self.failing_aggregations > 0 => {
                self.failing_aggregations -= 1;
                self.tally.faults += 1;
                self.feed(Event::AggregationFailed { round, fault: Fault::Numbers });
            }
            CoordinatorWork::Aggregate { round, terms } => {
                let model = artifact(&format!("{round} {terms:?}"));
                self.feed(Event::Aggregated { round, model });
            }
            CoordinatorWork::Commit { round, .. } if self.failing_commits > 0 => {
                self.failing_commits -= 1;
                self.tally.faults += 1;
                self.feed(Event::CommitFailed { round, fault: Fault::StorageFull });
            }
            CoordinatorWork::Commit { round, model } => {
                self.books.committed(round, model);
                self.coordinator.artifacts.insert(model);
                self.feed(Event::Committed { round, model });
                if self.coordinator.up {
                    let snapshot = serde_json::to_string(&self.coordinator.rounds.snapshot()).expect("JSON");
                    self.coordinator.snapshot = Some(snapshot);
                    self.coordinator.journal.clear();
                }
            }
        }
    }

    fn feed_evaluation(&mut self, event: evaluation::Event) {
        if !self.coordinator.up || self.coordinator_burns() {
            return;
        }
        let line = serde_json::to_string(&Entry { at: self.now, event: event.clone() }).expect("JSON");
        self.coordinator.evaluation_journal.push(line);
        for action in self.coordinator.evaluation.tick(event, self.now) {
            if !self.coordinator.up || self.coordinator_burns() {
                return;
            }
            self.execute_evaluation(action);
        }
    }

    fn execute_evaluation(&mut self, action: evaluation::Action) {
        match action {
            evaluation::Action::RequestEvaluation { to, round, model } => {
                self.books.announced(model, "a model to evaluate");
                self.notice(&to, participant::Event::EvaluationRequested { study: study(), round, model });
            }
            evaluation::Action::OpenGate { model, .. } => self.feed(Event::GateOpened { model }),
            evaluation::Action::Acknowledge { site, model, .. } => {
                self.notice(&site, participant::Event::ReportReceipt { model });
            }
            evaluation::Action::Refuse { site, model, rejection } => {
                let code = rejection.code().to_owned();
                self.notice(&site, participant::Event::ReportRefused { model, code });
            }
            evaluation::Action::SetTimer { at, .. } => {
                self.coordinator.gate_timer = Some(at);
                self.at(at.since(self.now).as_millis() as u64, Happening::GateTimer { at });
            }
            evaluation::Action::ClearTimer(_) => self.coordinator.gate_timer = None,
            evaluation::Action::Report(_) => {}
        }
    }

    /// Sabotage: the shares that today's manifests give.
    fn weigh_again(&self, terms: &mut [Term]) {
        let known = |term: &Term| Some((term.site.clone(), self.registered.get(&term.site)?.clone()));
        let responders = terms.iter().filter_map(known).collect();
        let shares = site_weights(self.scenario.weighting, &responders, 0.5).shares;
        for term in terms {
            term.share = shares.get(&term.site).copied().unwrap_or_default();
        }
    }

    // The sites.

    fn site_burns(&mut self, site: usize) -> bool {
        match &mut self.sites[site].fuse {
            Some(0) => {
                self.kill_site(site);
                true
            }
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        }
    }

    fn kill_site(&mut self, site: usize) {
        self.tally.crashes += 1;
        if let Some(link) = self.sites[site].link {
            let delay = self.soon(60_000);
            self.at(delay, Happening::LinkDead { site, link });
        }
        self.sites[site].die();
        let delay = self.soon(120_000);
        self.at(delay, Happening::ReviveSite { site });
    }

    fn revive_site(&mut self, site: usize) {
        let same = self.sites[site].revive();
        self.books.check(same, || format!("site {site} that came back is not the one that died"));
        self.feed_site(site, participant::Event::Restarted);
        self.dial_in(site, 10_000);
    }

    fn feed_site(&mut self, site: usize, event: participant::Event) {
        if !self.sites[site].up || self.site_burns(site) {
            return;
        }
        let now = self.now;
        self.sites[site].write(&event, now);
        for action in self.sites[site].machine.tick(event, now) {
            if !self.sites[site].up || self.site_burns(site) {
                return;
            }
            self.execute_site(site, action);
        }
        self.sites[site].snapshot_when_idle();
    }

    fn execute_site(&mut self, site: usize, action: participant::Action) {
        use participant::{Action, Event};
        match action {
            Action::AskApproval { study } => self.site_job(site, 60_000, Work::Approve { study }),
            Action::RegisterManifest { .. } => {
                let counts = counts(site, self.sites[site].manifest);
                self.request(site, Request::Register { counts }, None);
            }
            Action::AcceptRound { task } => self.request(site, Request::Accept { round: task.round }, None),
            Action::DeclineRound { round, reason, .. } => {
                self.request(site, Request::Decline { round, reason }, None);
            }
            Action::FetchArtifact { artifact } => {
                if self.sites[site].artifacts.contains(&artifact) {
                    self.feed_site(site, Event::ModelStored { artifact });
                } else {
                    self.request(site, Request::Fetch { artifact }, Some(Event::FetchFailed { artifact }));
                }
            }
            Action::Train { task, attempt } => {
                if self.sites[site].training != Some(attempt) {
                    self.sites[site].training = Some(attempt);
                    self.site_job(site, 120_000, Work::Train { task, attempt });
                }
            }
            Action::CancelTraining { attempt } => {
                self.sites[site].training.take_if(|running| *running == attempt);
                self.sites[site].outbox.remove(&attempt);
            }
            Action::OfferUpdate { offer } => {
                let attempt = offer.attempt;
                let there = self.sites[site].outbox.get(&attempt) == Some(&offer.update);
                self.books.check(there, || format!("site {site} offers what is not in its outbox"));
                self.request(site, Request::Offer { offer }, Some(Event::UploadFailed { attempt }));
            }
            Action::DropUpdate { attempt, .. } => {
                self.sites[site].outbox.remove(&attempt);
            }
            Action::PruneOutbox { keep } => {
                self.sites[site].outbox.retain(|attempt, _| Some(*attempt) == keep)
            }
            Action::Evaluate { model, .. } => {
                let there = self.sites[site].artifacts.contains(&model);
                self.books.check(there, || format!("site {site} evaluates what it does not have"));
                if self.sites[site].evaluating.replace(model) != Some(model) {
                    self.site_job(site, 120_000, Work::Evaluate { model });
                }
            }
            Action::SendReport { model, report } => {
                let failed = Event::ReportFailed { model };
                self.request(site, Request::Report { model, report }, Some(failed));
            }
            Action::SetTimer { timer, at } => {
                self.sites[site].timers.insert(timer, at);
                self.at(at.since(self.now).as_millis() as u64, Happening::SiteTimer { site, timer, at });
            }
            Action::ClearTimer(timer) => {
                self.sites[site].timers.remove(&timer);
            }
            Action::CancelFetch { .. } | Action::CancelEvaluation { .. } | Action::Report(_) => {}
        }
    }

    /// Sends a request; what it means when no answer comes is fed after a while, answered or not: late failures are ignored.
    fn request(&mut self, site: usize, request: Request, failed: Option<participant::Event>) {
        let Some(link) = self.sites[site].link else { return };
        self.send(site, link, request);
        if let Some(failed) = failed {
            let incarnation = self.sites[site].incarnation;
            let work = Work::GiveUp { failed };
            self.at(200_000, Happening::SiteWork { site, incarnation, work });
        }
    }

    fn site_job(&mut self, site: usize, longest_ms: u64, work: Work) {
        let (delay, incarnation) = (self.soon(longest_ms), self.sites[site].incarnation);
        self.at(delay, Happening::SiteWork { site, incarnation, work });
    }

    fn site_work(&mut self, site: usize, work: Work) {
        use participant::Event;
        match work {
            Work::Approve { study } => {
                let needs = [artifact("embeddings")].into();
                self.feed_site(site, Event::StudyApproved { study, needs });
            }
            Work::Train { task, attempt } => {
                if self.sites[site].training.take_if(|running| *running == attempt).is_none() {
                    return;
                }
                if self.sites[site].failing_trainings > 0 {
                    self.sites[site].failing_trainings -= 1;
                    self.tally.faults += 1;
                    return self.feed_site(site, Event::TrainingFailed { attempt });
                }
                // Training again after a crash need not give the same numbers; what is in the outbox stands.
                let content = artifact(&format!("{attempt} {}", self.sites[site].incarnation));
                let update = *self.sites[site].outbox.entry(attempt).or_insert(content);
                self.feed_site(site, Event::Trained { attempt, update, steps: task.steps });
            }
            Work::Evaluate { model } => {
                self.sites[site].evaluating.take_if(|running| *running == model);
                let report = report_of(&self.sites[site].identity.site, model);
                self.feed_site(site, Event::Evaluated { model, report });
            }
            Work::GiveUp { failed } => self.feed_site(site, failed),
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
