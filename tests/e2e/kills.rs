//! Killed anywhere: at instants that a seed draws, and at named points between two durable writes.
//!
//! An instant is a line that the victim says, drawn from those of an undisturbed run, and some microseconds after it. However
//! the study was disturbed, it ends with the bits of the one that was not, and no step that was kept is done again.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::ids::ModelHash;
use common::rng::{KeyedRng, Rng};

use crate::harness::federation::{Federation, ROUNDS};
use crate::harness::process::Process;
use crate::harness::study::STEPS;

/// Longest time between the drawn line and the kill: several steps.
const LONGEST_LINGER_US: u64 = 50_000;
/// Nobody is killed in the last part of what it says, in thousandths: what is killed there has finished.
const LATEST: usize = 800;

/// Points of a site, and of those that it passes several times in a round a later pass too.
const AT_A_SITE: [&str; 9] = [
    "site.after-download",
    "site.after-checkpoint",
    "site.after-checkpoint:5",
    "site.before-outbox-rename",
    "site.after-outbox",
    "site.after-journal-trained",
    "site.mid-upload",
    "site.mid-upload:7",
    "site.after-receipt-before-journal",
];
/// Points of the coordinator; the last is passed by the last round.
const AT_THE_COORDINATOR: [&str; 7] = [
    "coordinator.after-spool-keep",
    "coordinator.after-journal-stored",
    "coordinator.before-receipt",
    "coordinator.mid-aggregation",
    "coordinator.after-model-rename",
    "coordinator.after-commit-before-announce",
    "coordinator.after-commit-before-announce:2",
];

/// A strategy whose server keeps two moments, and one that keeps one.
const FEDADAM: &str = "strategy = \"fedadam\"\nserver_lr = 0.01\n";
const SERVER_MOMENTUM: &str = "strategy = \"server-momentum\"\n";
/// Points of a coordinator around the durable writes of model and moments, in the first round and in the last.
const WITH_MOMENTS: [&str; 6] = [
    "coordinator.mid-aggregation",
    "coordinator.after-model-rename",
    "coordinator.after-model-rename:2",
    "coordinator.after-moments",
    "coordinator.after-moments:2",
    "coordinator.after-commit-before-announce",
];

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Coordinator,
    /// By its place among the sites.
    Site(usize),
}

static EVERYBODY: [Victim; 3] = [Victim::Coordinator, Victim::Site(0), Victim::Site(1)];

/// When one is killed: at some part of what it says undisturbed, and a while after that line.
#[derive(Clone, Copy, Debug)]
struct Moment {
    victim: Victim,
    thousandths: usize,
    linger: Duration,
}

impl Moment {
    /// One for each of `victims`, in the order in which they come.
    fn draw(seed: u64, victims: &[Victim]) -> Vec<Self> {
        let mut draw = KeyedRng::new(seed).purpose("kill").rng();
        let mut drawn = Vec::new();
        for &victim in victims {
            let thousandths = draw.random_range(1..=LATEST);
            let linger = Duration::from_micros(draw.random_range(0..=LONGEST_LINGER_US));
            drawn.push(Self { victim, thousandths, linger });
        }
        drawn.sort_by_key(|moment| moment.thousandths);
        drawn
    }

    /// The victim's line after which it comes.
    fn line(&self, undisturbed: &Undisturbed) -> usize {
        let (before, end) = match self.victim {
            Victim::Coordinator => undisturbed.coordinator,
            Victim::Site(site) => (0, undisturbed.sites[site]),
        };
        before + ((end - before) * self.thousandths).div_ceil(1000)
    }
}

/// What all are compared with: a federation that nobody disturbed.
struct Undisturbed {
    /// As it was before it began, to be copied: setting up takes longer than the study.
    template: Federation,
    model: ModelHash,
    /// What lies where the server keeps its moments.
    moments: BTreeSet<PathBuf>,
    /// Lines before the sites are started, and at the end.
    coordinator: (usize, usize),
    sites: [usize; 2],
}

impl Undisturbed {
    fn measure() -> Self {
        Self::of(Federation::set_up())
    }

    fn of(mut template: Federation) -> Self {
        template.north.keep_every_step();
        template.south.keep_every_step();
        template.consortium.coordinator.0.kill();
        let mut running = Running::start(&template, None);
        let model = running.end().model;
        let moments = running.moments();
        let lines = running.federation.consortium.coordinator.0.said("").len();
        let (coordinator, sites) = ((running.before, lines), running.said.each_ref().map(Vec::len));
        drop(running);
        Self { template, model, moments, coordinator, sites }
    }
}

/// A federation under way.
struct Running {
    /// Before the federation: they end before their folders go.
    agents: [Process; 2],
    federation: Federation,
    /// Lines of the coordinator before the sites were started.
    before: usize,
    /// What each site said before it was killed.
    said: [Vec<String>; 2],
    killed: [usize; 2],
    since: Instant,
}

/// What a federation came to.
struct End {
    model: ModelHash,
    /// Steps that each site kept, none of them twice.
    kept: [usize; 2],
}

impl Running {
    /// Starts a copy of `template`; the victim of a failpoint is started with it.
    fn start(template: &Federation, armed: Option<(Victim, &str)>) -> Self {
        let since = Instant::now();
        let point_of = |victim| armed.and_then(|(who, point)| (who == victim).then_some(point));
        let mut federation = template.copy(point_of(Victim::Coordinator));
        let before = federation.consortium.coordinator.0.said("").len();
        let north = federation.north.run_to(point_of(Victim::Site(0)));
        let south = federation.south.run_to(point_of(Victim::Site(1)));
        let (agents, said, killed) = ([north, south], Default::default(), [0; 2]);
        Self { federation, agents, before, said, killed, since }
    }

    fn process(&mut self, victim: Victim) -> &mut Process {
        match victim {
            Victim::Coordinator => &mut self.federation.consortium.coordinator.0,
            Victim::Site(site) => &mut self.agents[site],
        }
    }

    /// Ends the victim where it stands, and starts it again.
    fn kill(&mut self, victim: Victim) {
        match victim {
            Victim::Coordinator => drop(self.federation.consortium.crash_coordinator()),
            Victim::Site(site) => {
                let said = self.agents[site].kill();
                self.start_again(site, said);
            }
        }
    }

    /// Waits until the victim has ended itself, and starts it again.
    fn until_it_ends_itself(&mut self, victim: Victim) {
        let said = self.process(victim).until_dead();
        match victim {
            Victim::Coordinator => drop(self.federation.consortium.crash_coordinator()),
            Victim::Site(site) => self.start_again(site, said),
        }
    }

    fn start_again(&mut self, site: usize, said: Vec<String>) {
        self.said[site].extend(said);
        self.killed[site] += 1;
        let sites = [&self.federation.north, &self.federation.south];
        self.agents[site] = sites[site].run_to(None);
    }

    /// Waits for the study's end. Each round was made of the updates of both, and nothing was done twice.
    fn end(&mut self) -> End {
        let model = self.federation.finished();
        self.federation.assert_each_counted_once();
        for (agent, said) in self.agents.iter_mut().zip(&mut self.said) {
            said.extend(agent.kill());
        }
        let kept = self.said.each_ref().map(|said| kept_steps(said));
        for ((kept, killed), said) in kept.iter().zip(self.killed).zip(&self.said) {
            assert!(
                kept.is_sorted_by(|before, after| before < after),
                "a kept step was done again: {said:#?}"
            );
            // One that was kept and not yet said when the site was killed is missing.
            let all = (ROUNDS * (STEPS - 1)) as usize;
            assert!(kept.len() + killed >= all, "{} of {all} steps were kept: {said:#?}", kept.len());
        }
        End { model, kept: kept.map(|kept| kept.len()) }
    }

    /// What lies where the server keeps its moments. Each is named by its hash: the same names are the same bytes.
    fn moments(&self) -> BTreeSet<PathBuf> {
        let folder = self.federation.consortium.path("state/server-state");
        let mut found = BTreeSet::new();
        names_below(&folder, &folder, &mut found);
        found
    }

    /// As [`Running::end`]: with the model of the undisturbed one, and its moments. A line of the table, which `--no-capture` shows.
    fn assert_undisturbed(&mut self, what: &str, undisturbed: &Undisturbed) {
        let End { model, kept: [north, south] } = self.end();
        assert_eq!(model, undisturbed.model, "{what}");
        assert_eq!(self.moments(), undisturbed.moments, "{what}");
        let seconds = self.since.elapsed().as_secs_f64();
        println!("{what:<96}  kept {north:>2} + {south:>2} steps, none twice  same model  {seconds:>5.1} s");
    }
}

impl Drop for Running {
    /// Where a test fails, what all three said last.
    fn drop(&mut self) {
        if std::thread::panicking() {
            for victim in EVERYBODY {
                println!("{}\n", self.process(victim).last_words());
            }
        }
    }
}

/// All that lies in `folder` and in the folders in it, as named from `root`.
fn names_below(root: &Path, folder: &Path, found: &mut BTreeSet<PathBuf>) {
    for entry in fs::read_dir(folder).expect("the coordinator made it") {
        let path = entry.expect("a file").path();
        if path.is_dir() {
            names_below(root, &path, found);
        }
        found.insert(path.strip_prefix(root).expect("it lies below").to_owned());
    }
}

/// Rounds and steps that a site said it had kept, in this order.
fn kept_steps(said: &[String]) -> Vec<(u32, u32)> {
    let kept = said.iter().filter_map(|line| line.split_once(": kept after step "));
    let number = |text: &str| -> u32 { text.trim().parse().expect("a number") };
    kept.map(|(round, step)| (number(round.rsplit(' ').next().unwrap_or_default()), number(step))).collect()
}

/// Kills each of `victims` at an instant that the seed draws; the model must be the same.
fn kill_at_seeded_instants(seed: u64, victims: &[Victim], undisturbed: &Undisturbed) {
    let mut what = format!("seed {seed}:");
    let mut running = Running::start(&undisturbed.template, None);
    for moment in Moment::draw(seed, victims) {
        let Moment { victim, linger, .. } = moment;
        let line = moment.line(undisturbed);
        // It says how far it is each second: in a slower run, as the undisturbed one may have been, it says more.
        let (name, last) = match victim {
            Victim::Coordinator => ("coordinator", "finished with model"),
            Victim::Site(0) => ("north", "the study is over"),
            Victim::Site(_) => ("south", "the study is over"),
        };
        what.push_str(&format!(" {name} {:.1} ms after line {line};", linger.as_secs_f64() * 1e3));
        // Shown when the test fails.
        println!("{what}");
        running.process(victim).until_line(line, last);
        pass(linger);
        running.kill(victim);
    }
    running.assert_undisturbed(&what, undisturbed);
}

/// Has the coordinator end itself at one named point after the other, each in a process of its own; the model must be the same, and so
/// must the moments.
fn end_coordinator_at_each(points: &[&str], undisturbed: &Undisturbed) {
    let what = points.join(", then ");
    println!("{what}");
    let (&first, others) = points.split_first().expect("a point");
    let mut running = Running::start(&undisturbed.template, Some((Victim::Coordinator, first)));
    for &next in others {
        running.process(Victim::Coordinator).until_dead();
        running.federation.consortium.crash_coordinator_before(Some(next));
    }
    running.until_it_ends_itself(Victim::Coordinator);
    running.assert_undisturbed(&what, undisturbed);
}

/// Has one end itself at a named point; the model must be the same.
fn end_at_failpoint(point: &str, undisturbed: &Undisturbed) {
    println!("{point}");
    let victim = if point.starts_with("site.") { Victim::Site(1) } else { Victim::Coordinator };
    let mut running = Running::start(&undisturbed.template, Some((victim, point)));
    running.until_it_ends_itself(victim);
    running.assert_undisturbed(point, undisturbed);
}

/// The seeds of the long test; one alone where `CONSILIUM_KILL_SEED` names it.
fn seeds() -> Vec<u64> {
    match std::env::var("CONSILIUM_KILL_SEED") {
        Ok(seed) => vec![seed.parse().expect("CONSILIUM_KILL_SEED is a number")],
        Err(_) => (100..130).collect(),
    }
}

/// Lets a time pass that nobody waits for anything in: it is the phase of a kill, too short for a sleep to keep.
fn pass(time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        std::hint::spin_loop();
    }
}

#[test]
fn a_kill_at_an_instant_that_nobody_chose_changes_no_bit() {
    let undisturbed = Undisturbed::measure();
    for (seed, victim) in (0..).zip([Victim::Coordinator, Victim::Site(0)]) {
        kill_at_seeded_instants(seed, &[victim], &undisturbed);
    }
}

#[test]
fn an_end_between_two_durable_writes_changes_no_bit() {
    let undisturbed = Undisturbed::measure();
    for point in ["site.after-outbox", "coordinator.after-spool-keep", "coordinator.after-model-rename"] {
        end_at_failpoint(point, &undisturbed);
    }
}

/// One federation, ended three times: between the two files of the first round, after both of them, and between those of the last.
#[test]
fn an_end_between_a_model_and_its_moments_changes_no_bit_of_either() {
    let undisturbed = Undisturbed::of(Federation::set_up_by(FEDADAM));
    assert!(!undisturbed.moments.is_empty(), "the server keeps some");
    let points =
        ["coordinator.after-model-rename", "coordinator.after-moments", "coordinator.after-model-rename:2"];
    end_coordinator_at_each(&points, &undisturbed);
}

/// Thirty instants for each of the three: every federation survives all three kills.
#[test]
#[ignore = "slow: thirty federations of processes"]
fn kills_at_thirty_seeded_instants_change_no_bit() {
    let undisturbed = Undisturbed::measure();
    for seed in seeds() {
        kill_at_seeded_instants(seed, &EVERYBODY, &undisturbed);
    }
}

#[test]
#[ignore = "slow: sixteen federations of processes"]
fn an_end_at_any_failpoint_changes_no_bit() {
    let undisturbed = Undisturbed::measure();
    for point in AT_A_SITE.into_iter().chain(AT_THE_COORDINATOR) {
        end_at_failpoint(point, &undisturbed);
    }
}

#[test]
#[ignore = "slow: seven federations of processes"]
fn an_end_at_any_failpoint_changes_no_bit_of_a_model_with_moments() {
    let undisturbed = Undisturbed::of(Federation::set_up_by(SERVER_MOMENTUM));
    for point in WITH_MOMENTS {
        end_coordinator_at_each(&[point], &undisturbed);
    }
}
