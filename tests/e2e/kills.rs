//! Killed anywhere: at instants that a seed draws, and at named points between two durable writes.
//!
//! An instant is a line that the victim says, drawn from those of an undisturbed run, and some microseconds after it. However
//! the study was disturbed, it ends with the bits of the one that was not, and no step that was kept is done again.

use std::time::{Duration, Instant};

use common::ids::ModelHash;
use common::rng::{KeyedRng, Rng};

use crate::harness::federation::{Federation, ROUNDS};
use crate::harness::process::Process;
use crate::harness::study::{NAME, STEPS};

/// Longest time between the drawn line and the kill: several steps.
const LONGEST_LINGER_US: u64 = 50_000;

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

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Coordinator,
    /// By its place among the sites.
    Site(usize),
}

static EVERYBODY: [Victim; 3] = [Victim::Coordinator, Victim::Site(0), Victim::Site(1)];

/// A federation under way.
struct Running {
    federation: Federation,
    agents: [Process; 2],
    /// What each site said before it was killed.
    said: [Vec<String>; 2],
    killed: [usize; 2],
}

/// What is compared, and how many lines each says on the way.
struct Undisturbed {
    model: ModelHash,
    /// Lines before the sites are started, and at the end.
    coordinator: (usize, usize),
    sites: [usize; 2],
}

impl Running {
    /// Sets everything up; the victim of a failpoint is started with it.
    fn start(armed: Option<(Victim, &str)>) -> Self {
        let mut federation = Self::set_up();
        let point_of = |victim| armed.and_then(|(who, point)| (who == victim).then_some(point));
        if let Some(point) = point_of(Victim::Coordinator) {
            federation.consortium.arm_coordinator(point);
            federation.consortium.coordinator.until_listening();
        }
        let north = federation.north.run_to(point_of(Victim::Site(0)));
        let south = federation.south.run_to(point_of(Victim::Site(1)));
        Self { federation, agents: [north, south], said: Default::default(), killed: [0; 2] }
    }

    fn undisturbed() -> Undisturbed {
        let mut federation = Self::set_up();
        let lines = |process: &mut Process| process.said("").len();
        let before = lines(&mut federation.consortium.coordinator.0);
        let agents = [federation.north.run_to(None), federation.south.run_to(None)];
        let mut running = Self { federation, agents, said: Default::default(), killed: [0; 2] };
        let model = running.end();
        Undisturbed {
            model,
            coordinator: (before, lines(&mut running.federation.consortium.coordinator.0)),
            sites: running.said.map(|said| said.len()),
        }
    }

    fn set_up() -> Federation {
        let federation = Federation::set_up();
        federation.north.keep_every_step();
        federation.south.keep_every_step();
        federation
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

    /// Waits for the study's end; the model that it made. Each round was made of the updates of both, and nothing was done
    /// twice.
    fn end(&mut self) -> ModelHash {
        // Until it listens, a command would open the store in its place.
        self.federation.consortium.coordinator.until_listening();
        // A coordinator that ended with the study's last word on its lips does not say it again.
        if self.federation.consortium.report(NAME).study.state != "finished" {
            self.federation.finished();
        }
        self.federation.assert_each_counted_once();
        for (agent, said) in self.agents.iter_mut().zip(&mut self.said) {
            said.extend(agent.kill());
        }
        for (said, killed) in self.said.iter().zip(self.killed) {
            let kept = kept_steps(said);
            assert!(
                kept.is_sorted_by(|before, after| before < after),
                "a kept step was done again: {said:#?}"
            );
            // One that was kept and not yet said when the site was killed is missing.
            let all = (ROUNDS * (STEPS - 1)) as usize;
            assert!(kept.len() + killed >= all, "{} of {all} steps were kept: {said:#?}", kept.len());
        }
        self.federation.consortium.report(NAME).study.model
    }
}

/// Rounds and steps that a site said it had kept, in this order.
fn kept_steps(said: &[String]) -> Vec<(u32, u32)> {
    let kept = said.iter().filter_map(|line| line.split_once(": kept after step "));
    let number = |text: &str| -> u32 { text.trim().parse().expect("a number") };
    kept.map(|(round, step)| (number(round.rsplit(' ').next().unwrap_or_default()), number(step))).collect()
}

/// Kills one of the three, or all one after the other, at instants that the seed draws; the model must be the same.
fn kill_at_seeded_instants(seed: u64, undisturbed: &Undisturbed) {
    let victims = match seed % 4 {
        3 => &EVERYBODY[..],
        one => &EVERYBODY[one as usize..][..1],
    };
    let mut draw = KeyedRng::new(seed).purpose("kill").rng();
    let mut running = Running::start(None);
    for &victim in victims {
        // Not the last lines: what is killed there has finished.
        let line = match victim {
            Victim::Coordinator => {
                let (before, end) = undisturbed.coordinator;
                before + draw.random_range(1..=(end - before) * 4 / 5)
            }
            Victim::Site(site) => draw.random_range(1..=undisturbed.sites[site] * 4 / 5),
        };
        let linger = Duration::from_micros(draw.random_range(0..=LONGEST_LINGER_US));
        // Printed when the test fails.
        println!("seed {seed}: {victim:?} is killed {linger:?} after its line {line}");
        running.process(victim).until_line(line);
        pass(linger);
        running.kill(victim);
    }
    assert_eq!(running.end(), undisturbed.model, "seed {seed}");
}

/// Has one end itself at a named point; the model must be the same.
fn end_at_failpoint(point: &str, undisturbed: &Undisturbed) {
    println!("{point}");
    let victim = if point.starts_with("site.") { Victim::Site(1) } else { Victim::Coordinator };
    let mut running = Running::start(Some((victim, point)));
    running.until_it_ends_itself(victim);
    assert_eq!(running.end(), undisturbed.model, "{point}");
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
    let undisturbed = Running::undisturbed();
    for seed in [0, 1] {
        kill_at_seeded_instants(seed, &undisturbed);
    }
}

#[test]
fn an_end_between_two_durable_writes_changes_no_bit() {
    let undisturbed = Running::undisturbed();
    for point in ["site.after-outbox", "coordinator.after-spool-keep", "coordinator.after-model-rename"] {
        end_at_failpoint(point, &undisturbed);
    }
}

#[test]
#[ignore = "slow: thirty federations of processes"]
fn kills_at_thirty_seeded_instants_change_no_bit() {
    let undisturbed = Running::undisturbed();
    for seed in 100..130 {
        kill_at_seeded_instants(seed, &undisturbed);
    }
}

#[test]
#[ignore = "slow: sixteen federations of processes"]
fn an_end_at_any_failpoint_changes_no_bit() {
    let undisturbed = Running::undisturbed();
    for point in AT_A_SITE.into_iter().chain(AT_THE_COORDINATOR) {
        end_at_failpoint(point, &undisturbed);
    }
}
