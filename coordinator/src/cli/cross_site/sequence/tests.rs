use std::cell::RefCell;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixListener;

use super::*;
use crate::operator::socket_path;

/// Rounds of each study.
const ROUNDS: u32 = 2;

fn site(name: &str) -> SiteId {
    name.parse().unwrap()
}

fn leg(name: &str) -> Leg {
    Leg::of("abdomen", &site(name)).unwrap()
}

/// The study of a leg, as it was added.
fn study(leg: &Leg) -> StudyLine {
    StudyLine {
        name: leg.study.clone(),
        digest: format!("digest of {}", leg.study),
        state: "waiting".to_owned(),
        started: false,
        round: 1,
        rounds: ROUNDS,
        model: "ab".repeat(32),
        waits_for: None,
        left_out: vec![leg.site.clone()],
        ready: Vec::new(),
        answers: BTreeMap::new(),
        scored_by: Vec::new(),
        uncovered: Vec::new(),
    }
}

fn in_state(leg: &Leg, state: &str) -> StudyLine {
    StudyLine { state: state.to_owned(), started: true, ..study(leg) }
}

fn scored(leg: &Leg) -> StudyLine {
    StudyLine { scored_by: vec![leg.evaluator.clone()], ..in_state(leg, FINISHED) }
}

#[test]
fn a_study_begins_when_the_one_before_has_ended_and_is_scored() {
    let (north, south) = (leg("north"), leg("south"));
    let second = study(&south);
    let step = |first: &StudyLine, given_up: &BTreeSet<SiteId>| {
        format!("{:?}", next(&[(&north, first), (&south, &second)], given_up))
    };
    let nobody = BTreeSet::new();
    let first = study(&north);
    assert_eq!(step(&first, &nobody), format!("{:?}", Step::Start(&first)));
    for state in ["waiting", "collecting", "quorum-missing", "paused (by the operator): collecting"] {
        let first = in_state(&north, state);
        assert_eq!(step(&first, &nobody), format!("{:?}", Step::Watch(&first)), "{state}");
    }
    let finished = in_state(&north, FINISHED);
    assert_eq!(step(&finished, &nobody), format!("{:?}", Step::AwaitScore(&north)));
    let begun = format!("{:?}", Step::Start(&second));
    assert_eq!(step(&finished, &BTreeSet::from([site("north")])), begun, "given up");
    assert_eq!(step(&scored(&north), &nobody), begun);
    assert_eq!(step(&in_state(&north, ABORTED), &nobody), begun);
}

#[test]
fn whatever_somebody_else_started_ends_first() {
    let (north, south) = (leg("north"), leg("south"));
    let (first, second) = (study(&north), in_state(&south, "collecting"));
    let known = [(&north, &first), (&south, &second)];
    assert_eq!(next(&known, &BTreeSet::new()), Step::Watch(&second));
    let (first, second) = (scored(&north), scored(&south));
    assert_eq!(next(&[(&north, &first), (&south, &second)], &BTreeSet::new()), Step::End);
}

fn site_line(site: &SiteId, role: Role) -> SiteLine {
    let (connected, certificate_until) = (None, None);
    SiteLine { site: site.clone(), role, status: ACTIVE.to_owned(), connected, certificate_until }
}

/// What a coordinator says that has these studies, and all their sites.
fn status(legs: &[Leg], studies: Vec<StudyLine>) -> Status {
    let both = |leg: &Leg| [site_line(&leg.site, Role::Trainer), site_line(&leg.evaluator, Role::Evaluator)];
    Status {
        consortium: "demo".to_owned(),
        running: true,
        address: None,
        fault: None,
        fault_detail: None,
        sites: legs.iter().flat_map(both).collect(),
        studies,
        unreadable: Vec::new(),
    }
}

#[test]
fn what_would_fail_in_the_end_is_refused_at_once() {
    let legs = [leg("north")];
    let refused = |change: fn(&mut Status)| {
        let mut status = status(&legs, vec![study(&legs[0])]);
        change(&mut status);
        let known = [(&legs[0], &status.studies[0])];
        check(&status, &known).map_err(|error| error.to_string())
    };
    assert_eq!(refused(|_| {}), Ok(()));
    let keeps_nobody_out = refused(|status| status.studies[0].left_out.clear()).unwrap_err();
    assert_eq!(keeps_nobody_out, "the study `abdomen-without-north` does not leave north out");
    let no_evaluator = refused(|status| status.sites.truncate(1)).unwrap_err();
    assert_eq!(no_evaluator, "no evaluator is called `north-held-out`");
    let revoked = refused(|status| status.sites[0].status = "revoked".to_owned()).unwrap_err();
    assert_eq!(revoked, "no trainer is called `north`");
    let aborted = refused(|status| status.studies[0].state = ABORTED.to_owned()).unwrap_err();
    assert_eq!(aborted, "the study `abdomen-without-north` was aborted: the table would be without north");
    // What has begun is beyond that.
    let begun = refused(|status| {
        status.sites.clear();
        status.studies[0].started = true;
    });
    assert_eq!(begun, Ok(()));
}

#[test]
fn what_a_study_waits_for_is_said() {
    let said = |state: &str, ready: &[&str]| {
        let ready = ready.iter().map(|name| site(name)).collect();
        progress(&StudyLine { ready, ..in_state(&leg("north"), state) })
    };
    assert_eq!(said("collecting", &["south"]), "abdomen-without-north: round 1 of 2");
    let waits = "abdomen-without-north: round 1 of 2 waits for sites, ";
    assert_eq!(said("waiting", &[]), format!("{waits}none is ready"));
    assert_eq!(said("waiting", &["south", "west"]), format!("{waits}ready: south, west"));
    assert_eq!(said("quorum-missing", &[]), "abdomen-without-north: round 1 of 2, quorum-missing");
}

#[test]
fn an_aborted_study_gives_its_name_to_another() {
    let legs = [leg("north")];
    let found = |studies: Vec<StudyLine>| {
        let status = status(&legs, studies);
        find(&status, &legs[0].study).map(|study| study.digest.clone()).map_err(|error| error.to_string())
    };
    let (aborted, again) = (in_state(&legs[0], ABORTED), study(&legs[0]));
    let again = StudyLine { digest: "another".to_owned(), ..again };
    assert_eq!(found(vec![aborted.clone(), again.clone()]), Ok("another".to_owned()));
    assert_eq!(found(vec![aborted.clone()]), Ok(aborted.digest));
    let twice = found(vec![study(&legs[0]), again]).unwrap_err();
    assert_eq!(twice, "several studies are called `abdomen-without-north`");
    assert_eq!(found(Vec::new()).unwrap_err(), "no study is called `abdomen-without-north`");
}

/// A coordinator on its socket. At each question about its status, what is under way moves on.
struct World {
    status: Status,
    /// Digests, in order.
    started: Vec<String>,
    /// Studies that were started while another was not over and scored.
    too_early: usize,
    evaluators_score: bool,
}

impl World {
    fn of(legs: &[Leg]) -> RefCell<Self> {
        let status = status(legs, legs.iter().map(study).collect());
        RefCell::new(Self { status, started: Vec::new(), too_early: 0, evaluators_score: true })
    }

    fn answer(&mut self, request: Request) -> Reply {
        match request {
            Request::Status => {
                let reply = Reply::Status(self.status.clone());
                self.move_on();
                reply
            }
            Request::Control { study, order: Order::Start } => self.start(&study),
            other => panic!("the sequence asks for no more than that: {other:?}"),
        }
    }

    fn start(&mut self, digest: &str) -> Reply {
        let open = |study: &&StudyLine| study.started && study.scored_by.is_empty();
        self.too_early += self.status.studies.iter().filter(open).count();
        self.started.push(digest.to_owned());
        let study = self.status.studies.iter_mut().find(|study| study.digest == digest).unwrap();
        (study.started, study.state) = (true, "collecting".to_owned());
        Reply::Done { words: "started".to_owned() }
    }

    fn move_on(&mut self) {
        for study in self.status.studies.iter_mut().filter(|study| study.started) {
            match (study.state == FINISHED, study.round < study.rounds) {
                (false, true) => study.round += 1,
                (false, false) => study.state = FINISHED.to_owned(),
                (true, _) if self.evaluators_score && study.scored_by.is_empty() => {
                    study.scored_by = vec![format!("{}-held-out", study.left_out[0]).parse().unwrap()];
                }
                (true, _) => {}
            }
        }
    }
}

fn listen(state: &Path) -> UnixListener {
    let path = socket_path(state).unwrap();
    // The file of one that was killed.
    let _ = std::fs::remove_file(&path);
    UnixListener::bind(path).unwrap()
}

/// Answers so many questions.
async fn serve(listener: &UnixListener, world: &RefCell<World>, questions: usize) {
    for _ in 0..questions {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut question = String::new();
        BufReader::new(&mut stream).read_line(&mut question).await.unwrap();
        let reply = world.borrow_mut().answer(serde_json::from_str(&question).unwrap());
        stream.write_all(&serde_json::to_vec(&reply).unwrap()).await.unwrap();
    }
}

fn sequence<'a>(state: &'a Path, legs: &'a [Leg], score_within: Duration) -> Sequence<'a> {
    Sequence { state, legs, score_within, every: Duration::from_millis(1) }
}

/// Every study was started once, in order and in its turn.
fn assert_in_turn(world: &RefCell<World>) {
    let world = world.borrow();
    let digests: Vec<_> = world.status.studies.iter().map(|study| study.digest.clone()).collect();
    assert_eq!((&world.started, world.too_early), (&digests, 0));
}

const PATIENT: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn the_studies_are_run_one_after_the_other() {
    let folder = tempfile::tempdir().unwrap();
    let legs = ["north", "south", "west"].map(leg);
    let world = World::of(&legs);
    let (listener, sequence) = (listen(folder.path()), sequence(folder.path(), &legs, PATIENT));
    tokio::select! {
        () = serve(&listener, &world, usize::MAX) => {}
        ended = sequence.run() => ended.unwrap(),
    }
    assert_in_turn(&world);
}

#[tokio::test]
async fn a_sequence_that_was_stopped_goes_on_where_the_studies_stand() {
    let folder = tempfile::tempdir().unwrap();
    let legs = ["north", "south"].map(leg);
    let world = World::of(&legs);
    let sequence = sequence(folder.path(), &legs, PATIENT);
    // Stopped after seven answers, then after six, and so on: it may not have taken in the last of them.
    for questions in (1..8).rev() {
        let listener = listen(folder.path());
        tokio::select! {
            biased;
            () = serve(&listener, &world, questions) => {}
            ended = sequence.run() => ended.unwrap(),
        }
    }
    assert_in_turn(&world);
}

#[tokio::test]
async fn a_coordinator_that_stops_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let legs = ["north", "south"].map(leg);
    let world = World::of(&legs);
    let (first, sequence) = (listen(folder.path()), sequence(folder.path(), &legs, PATIENT));
    let serves = async {
        serve(&first, &world, 3).await;
        // Killed over a question; its socket's file stays until the next one comes.
        drop(first.accept().await.unwrap());
        drop(first);
        serve(&listen(folder.path()), &world, usize::MAX).await;
    };
    tokio::select! {
        () = serves => {}
        ended = sequence.run() => ended.unwrap(),
    }
    assert_in_turn(&world);
}

#[tokio::test]
async fn a_score_that_does_not_come_is_given_up_in_time() {
    let folder = tempfile::tempdir().unwrap();
    let legs = ["north", "south"].map(leg);
    let world = World::of(&legs);
    world.borrow_mut().evaluators_score = false;
    let (listener, sequence) = (listen(folder.path()), sequence(folder.path(), &legs, Duration::ZERO));
    tokio::select! {
        () = serve(&listener, &world, usize::MAX) => {}
        ended = sequence.run() => ended.unwrap(),
    }
    let world = world.borrow();
    assert_eq!(world.started.len(), 2);
    assert!(world.status.studies.iter().all(|study| study.state == FINISHED));
}

#[tokio::test]
async fn without_a_coordinator_nothing_is_begun() {
    let folder = tempfile::tempdir().unwrap();
    let legs = [leg("north")];
    let refused = sequence(folder.path(), &legs, PATIENT).run().await.unwrap_err();
    assert!(refused.to_string().starts_with("no coordinator is running"), "{refused}");
}
