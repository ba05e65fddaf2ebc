//! What the agent does when a part of it, or its disk, does not do its own. No coordinator is dialled.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use common::ids::{ClassId, Digest};
use common::manifest::{CaseLabels, LabelManifest};
use common::report::{EvaluationReport, ReportSubject};
use common::study::{EMBEDDING_TENSOR, StudyDocument};
use common::testing::example_study;
use common::wire::{self, Notice};
use rcgen::CertificateParams;

use super::*;
use crate::client::files::FileError;
use crate::client::identity::Membership;
use crate::client::studies::NewestModel;
use crate::client::work::Job;
use crate::egress::Policy;
use crate::model::{HostTensor, NamedTensors};
use crate::train::trainer::{RoundOutcome, StepReport};

const SITE: &str =
    "coordinator = \"127.0.0.1:1\"\nidentity = \"identity\"\nstate = \"state\"\npolicy = \"policy.toml\"\n";
const POLICY: &str = "[studies]\napprove = \"ask\"\n[egress]\nallow = [\"update\"]\nmax_update_mib = 1\nmax_mib_per_day = 2\n\
                      progress_every_s = 3600\n";
const ATTEMPT: AttemptId = AttemptId::from_bytes([1; 16]);

/// Work that scores any model, and counts how often, and has a fault in all else of its program.
#[derive(Default)]
struct Scores(Arc<AtomicU32>);

impl Work for Scores {
    fn count_labels(&mut self, _: &StudyDocument) -> anyhow::Result<LabelManifest> {
        panic!("a fault in the program")
    }

    fn train(
        &mut self,
        _: &StudyDocument,
        _: &RoundTask,
        _: AttemptId,
        _: &mut dyn FnMut(StepReport),
        _: &Cancel,
    ) -> anyhow::Result<RoundOutcome> {
        panic!("a fault in the program")
    }

    fn evaluate(
        &mut self,
        study: &StudyDocument,
        round: RoundId,
        model: ModelHash,
        _: &Cancel,
    ) -> anyhow::Result<EvaluationReport> {
        self.0.fetch_add(1, Ordering::Relaxed);
        let (site, taxonomy) = (site(), study.study().taxonomy.digest());
        let subject = ReportSubject { site, model, round, study: study.digest(), taxonomy };
        Ok(EvaluationReport::summarise(subject, &[], |_| 1.0, 1, 0))
    }
}

/// Work whose training ends when it is let, whatever it was told meanwhile; and the studies that it was told to forget.
struct Trains(std::sync::mpsc::Receiver<()>, std::sync::mpsc::Sender<StudyDigest>);

impl Work for Trains {
    fn count_labels(&mut self, _: &StudyDocument) -> anyhow::Result<LabelManifest> {
        anyhow::bail!("nobody asks")
    }

    fn train(
        &mut self,
        _: &StudyDocument,
        _: &RoundTask,
        _: AttemptId,
        _: &mut dyn FnMut(StepReport),
        _: &Cancel,
    ) -> anyhow::Result<RoundOutcome> {
        self.0.recv()?;
        let tensor = HostTensor::new(vec![1], vec![1.0])?;
        Ok(RoundOutcome { delta: NamedTensors::from([("w".to_owned(), tensor)]), steps: 4, mean_loss: 0.5 })
    }

    fn forget(&mut self, study: StudyDigest) {
        let _ = self.1.send(study);
    }

    fn evaluate(
        &mut self,
        _: &StudyDocument,
        _: RoundId,
        _: ModelHash,
        _: &Cancel,
    ) -> anyhow::Result<EvaluationReport> {
        anyhow::bail!("nobody asks")
    }
}

fn site() -> SiteId {
    "north".parse().unwrap()
}

/// The agent of a trainer whose files are in `folder`.
fn agent(folder: &Path) -> Agent {
    agent_of(folder, Role::Trainer, Box::new(Scores::default()))
}

fn agent_of(folder: &Path, role: Role, work: Box<dyn Work>) -> Agent {
    let config = SiteConfig::parse(&folder.join("site.toml"), SITE).unwrap();
    let keys = config.identity.keys().unwrap();
    let certificate = CertificateParams::new(Vec::new()).unwrap().self_signed(&keys.tls).unwrap();
    let membership = Membership { site: site(), role, consortium: "demo".to_owned() };
    config.identity.complete(&membership, &[certificate.der().clone()], certificate.der()).unwrap();
    let identity = config.identity.load().unwrap();
    let state = StateFolder::open(&config.state).unwrap();
    let egress = Egress::open(Policy::parse("policy.toml", POLICY).unwrap(), &state.ledger()).unwrap();
    Agent::open(&config, &identity, egress, state, work).unwrap()
}

fn task(base: ModelHash) -> RoundTask {
    RoundTask { study: example_study().digest(), round: RoundId(1), base, steps: 4, remaining_ms: 60_000 }
}

/// Five models on the disk.
fn store_models(agent: &Agent) -> Vec<ArtifactHash> {
    let store = |value: u8| {
        let tensor = HostTensor::new(vec![1], vec![f32::from(value)]).unwrap();
        agent.artifacts.store(&NamedTensors::from([("w".to_owned(), tensor)])).unwrap().hash()
    };
    (0..5).map(store).collect()
}

fn kept(agent: &Agent) -> BTreeSet<ArtifactHash> {
    agent.artifacts.newest_first().unwrap().into_iter().collect()
}

/// With what the agent ends of its own accord.
async fn end_of(agent: &mut Agent, link: &mut mpsc::Receiver<LinkEvent>) -> String {
    let (mut look, stop) = (tokio::time::interval(LOOK_FOR_DECISIONS), CancellationToken::new());
    let ended = tokio::time::timeout(Duration::from_secs(60), agent.serve(link, &mut look, &stop)).await;
    ended.expect("it does not live on without it").unwrap_err().to_string()
}

#[tokio::test]
async fn an_agent_whose_worker_panicked_ends() {
    let folder = tempfile::tempdir().unwrap();
    let mut agent = agent(folder.path());
    let (_out, mut link) = mpsc::channel(1);
    let base = ArtifactHash(example_study().digest().0);
    agent.worker.submit(Job::Train(Box::new(example_study()), task(base), ATTEMPT, Cancel::default()));
    let why = end_of(&mut agent, &mut link).await;
    assert!(why.starts_with("the worker panicked"), "{why}");
}

#[test]
fn decisions_are_read_again_when_their_folder_has_changed_and_not_before() {
    let folder = tempfile::tempdir().unwrap();
    let mut agent = agent(folder.path());
    let (document, study) = (example_study(), example_study().digest());
    agent.studies.store(study, document.bytes().to_vec()).unwrap();
    agent.feed(Event::StudyOffered { study }).unwrap();
    let path = agent.studies.path().to_owned();
    let settle = |hours: u64| {
        let long_ago = SystemTime::now() - Duration::from_secs(3600 * hours);
        std::fs::File::open(&path).unwrap().set_modified(long_ago).unwrap();
    };
    settle(9);
    assert_eq!(agent.decided_anew().unwrap(), []);
    // A decision, and the folder looks as if there were none.
    agent.studies.decide(study, true, "operator").unwrap();
    let written = agent.looked_at.unwrap();
    std::fs::File::open(&path).unwrap().set_modified(written).unwrap();
    assert_eq!(agent.decided_anew().unwrap(), [], "it is not read");
    settle(8);
    assert_eq!(agent.decided_anew().unwrap(), [study]);
    agent.look_for_decisions([study]).unwrap();
    settle(7);
    assert_eq!(agent.decided_anew().unwrap(), []);
    agent.studies.decide(study, false, "operator").unwrap();
    assert_eq!(agent.decided_anew().unwrap(), [study]);
}

/// An agent in mid-training that died eleven times, the last time long ago.
fn suspected(folder: &Path) -> Agent {
    let (document, study) = (example_study(), example_study().digest());
    let mut running = agent(folder);
    running.studies.store(study, document.bytes().to_vec()).unwrap();
    running.studies.decide(study, true, "operator").unwrap();
    let base = store_models(&running)[0];
    for event in [
        Event::StudyApproved { study, needs: BTreeSet::new(), takes_late: false },
        Event::RoundOpened { task: task(base) },
        Event::ModelStored { artifact: base },
    ] {
        running.feed(event).unwrap();
    }
    let now = now();
    for hours in (1..=11).rev() {
        running.journal.record(&Event::Started, Timestamp(now.0 - hours * 3_600_000)).unwrap();
    }
    drop(running);
    agent(folder)
}

/// What the agent is at once a service manager has started it again.
fn started_again(folder: &Path) -> &'static str {
    let mut agent = agent(folder);
    agent.start().unwrap();
    let phase = agent.machine.status().phase;
    assert_eq!(agent.training.is_some(), phase == "training");
    phase
}

#[test]
fn a_training_in_which_the_agent_dies_is_not_begun_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    drop(suspected(folder.path()));
    assert_eq!(started_again(folder.path()), "idle");
}

#[test]
fn an_update_that_was_finished_is_not_given_up_for_a_death_before_it_was_noted() {
    let folder = tempfile::tempdir().unwrap();
    let agent = suspected(folder.path());
    let attempt = agent.under_way().into_iter().find_map(|action| match action {
        Action::Train { attempt, .. } => Some(attempt),
        _ => None,
    });
    let attempt = attempt.unwrap();
    let tensor = HostTensor::new(vec![1], vec![1.0]).unwrap();
    let delta = NamedTensors::from([("w".to_owned(), tensor)]);
    let finished = agent.outbox.keep(attempt, &RoundOutcome { delta, steps: 4, mean_loss: 0.5 }).unwrap();
    let outbox = agent.outbox.clone();
    std::fs::write(agent.state.checkpoint(), "of the round").unwrap();
    drop(agent);
    // Also at the start after that.
    assert_eq!([0; 2].map(|_| started_again(folder.path())), ["uploading"; 2]);
    assert_eq!(outbox.find(attempt), Some(finished));
    assert!(!StateFolder::at(&folder.path().join("state")).checkpoint().exists());
}

#[test]
fn only_a_death_or_the_workers_panic_is_held_against_the_training() {
    for (ended, phase) in [
        (Ok(()), "training"),
        (Err(anyhow::anyhow!("a decision may not be read")), "training"),
        (Err(panicked("an errand")), "training"),
        (Err(WorkerPanicked.into()), "idle"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut agent = suspected(folder.path());
        agent.note_end(&ended);
        drop(agent);
        // Nor is any death of before, after another end: the second start finds one again.
        assert_eq!([0; 2].map(|_| started_again(folder.path())), [phase; 2], "{ended:?}");
    }
}

#[tokio::test]
async fn an_agent_whose_link_or_errand_panicked_ends() {
    let folder = tempfile::tempdir().unwrap();
    let mut agent = agent(folder.path());
    let (out, mut link) = mpsc::channel(1);
    agent.tasks.spawn(async { panic!("a fault in the program") });
    let why = end_of(&mut agent, &mut link).await;
    assert!(why.starts_with("an errand panicked"), "{why}");
    drop(out);
    let why = end_of(&mut agent, &mut link).await;
    assert!(why.starts_with("the task that keeps the connection panicked"), "{why}");
}

#[test]
fn models_of_rounds_that_ended_without_an_update_go() {
    let folder = tempfile::tempdir().unwrap();
    let mut agent = agent(folder.path());
    let artifact = store_models(&agent)[0];
    for action in [Action::CancelTraining { attempt: ATTEMPT }, Action::CancelFetch { artifact }] {
        store_models(&agent);
        agent.execute(&action).unwrap();
        assert_eq!(kept(&agent).len(), 0, "{action:?}");
    }
    store_models(&agent);
    agent.start().unwrap();
    assert_eq!(kept(&agent).len(), 0, "at the next start");
}

#[test]
fn the_newest_model_of_a_study_stays_while_another_study_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let mut agent = agent_of(folder.path(), Role::Evaluator, Box::new(Scores::default()));
    let documents = [1, 2].map(|seed| common::testing::example_study_with(|draft| draft.seed = seed));
    let [ended, other] = documents.map(|document| {
        let study = document.digest();
        agent.studies.store(study, document.bytes().to_vec()).unwrap();
        agent.feed(Event::StudyApproved { study, needs: BTreeSet::new(), takes_late: false }).unwrap();
        study
    });
    let zeros = HostTensor::from_fn(vec![32, 32], |_| 0.0);
    let embeddings = agent.artifacts.store(&NamedTensors::from([(EMBEDDING_TENSOR.to_owned(), zeros)]));
    let embeddings = embeddings.unwrap().hash();
    assert_eq!(embeddings, example_study().study().embeddings.artifact);
    let models = store_models(&agent);
    let mut evaluate = |study, round, model| {
        // No coordinator hears of the report: the next model is asked for as if it had.
        agent.execute(&Action::Evaluate { study, round: RoundId(round), model }).unwrap();
        agent.outcomes.blocking_recv().unwrap();
        agent.evaluating = None;
    };
    evaluate(ended, 40, models[0]);
    for (round, model) in (1..).zip(&models[1..]) {
        evaluate(other, round, *model);
    }
    let newest = |study| agent.studies.newest_model(study).unwrap().map(|newest| newest.model);
    assert_eq!((newest(ended), newest(other)), (Some(models[0]), Some(models[4])));
    assert!(kept(&agent).contains(&models[0]) && kept(&agent).contains(&embeddings));
    assert!(kept(&agent).len() < models.len(), "others go");
}

#[test]
fn who_trained_in_a_study_has_its_last_model_once_it_is_over() {
    let folder = tempfile::tempdir().unwrap();
    let mut agent = agent(folder.path());
    let (document, study) = (example_study(), example_study().digest());
    agent.studies.store(study, document.bytes().to_vec()).unwrap();
    agent.studies.decide(study, true, "operator").unwrap();
    let (models, embeddings) = (store_models(&agent), document.study().embeddings.artifact);
    let of = |round, model| NewestModel { round: RoundId(round), model, embeddings };
    let end = |agent: &mut Agent, round, model| {
        let (round, outcome) = (RoundId(round), wire::RoundOutcome::Committed);
        let closed = Notice::RoundClosed { study, round, model: Some(model), outcome };
        for notice in [closed, Notice::StudyFinished { study, model }] {
            agent.heard(LinkEvent::Notice(notice)).unwrap();
        }
        (agent.studies.newest_model(study).unwrap(), agent.last_models.studies())
    };
    assert_eq!(end(&mut agent, 3, models[0]), (None, vec![]), "it never trained");

    agent.studies.note_model(study, of(2, models[0])).unwrap();
    let last = ArtifactHash(Digest::of(b"last"));
    assert_eq!(end(&mut agent, 3, last), (Some(of(2, models[0])), vec![study]), "on its way");
    assert_eq!(agent.studies.is_last(&document, of(2, models[0])), Some(false));
    assert_eq!(agent.status.last_models, [study]);
    agent.feed(Event::ModelStored { artifact: last }).unwrap();
    assert_eq!(agent.studies.newest_model(study).unwrap(), Some(of(3, last)));
    assert_eq!(agent.studies.is_last(&document, of(3, last)), Some(true));
    assert_eq!(agent.status.last_models, []);

    assert_eq!(end(&mut agent, 3, last), (Some(of(3, last)), vec![study]), "the disk lost it");
    let name = "demo".into();
    agent.heard(LinkEvent::Notice(Notice::StudyOffered { study, name })).unwrap();
    assert_eq!(agent.last_models.studies(), [], "its coordinator was restored, and goes on with it");

    store_models(&agent);
    assert_eq!(end(&mut agent, 4, models[1]), (Some(of(4, models[1])), vec![]), "it is here");
    assert_eq!(end(&mut agent, 4, models[1]), (Some(of(4, models[1])), vec![]));
    assert_eq!(end(&mut agent, 3, last), (Some(of(4, models[1])), vec![]), "a later one is here");
    agent.studies.decide(study, false, "operator").unwrap();
    assert_eq!(end(&mut agent, 5, last), (Some(of(4, models[1])), vec![]), "it takes no part any more");
}

#[test]
fn a_full_disk_gets_all_but_what_is_needed_and_nothing_while_nothing_is_under_way() {
    let folder = tempfile::tempdir().unwrap();
    let mut agent = agent(folder.path());
    let models = store_models(&agent);
    let newest = NewestModel { round: RoundId(9), model: models[3], embeddings: models[2] };
    agent.studies.note_model(StudyDigest(Digest::of(b"ended")), newest).unwrap();
    let full = FileError::new("write", Path::new("/state/x"), io::ErrorKind::StorageFull.into()).into();
    agent.pause(&full);
    assert_eq!(kept(&agent).len(), models.len(), "for `site-agent predict`");

    agent.is_halted = false;
    let study = example_study().digest();
    let needs = BTreeSet::from([models[0]]);
    agent.feed(Event::StudyApproved { study, needs, takes_late: false }).unwrap();
    agent.feed(Event::RoundOpened { task: task(models[1]) }).unwrap();
    agent.pause(&full);
    let embeddings = models[2];
    assert_eq!(kept(&agent), BTreeSet::from([models[0], models[1], embeddings]));
}

#[test]
fn a_study_document_that_the_disk_damaged_stops_nothing_and_training_waits_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let (document, study) = (example_study(), example_study().digest());
    let before = agent(folder.path());
    before.studies.store(study, document.bytes().to_vec()).unwrap();
    before.studies.decide(study, true, "operator").unwrap();
    drop(before);
    std::fs::write(folder.path().join(format!("state/studies/{study}.study.json")), "{").unwrap();

    let mut agent = agent(folder.path());
    agent.start().unwrap();
    let base = store_models(&agent)[0];
    agent.feed(Event::StudyApproved { study, needs: BTreeSet::new(), takes_late: false }).unwrap();
    agent.feed(Event::RoundOpened { task: task(base) }).unwrap();
    agent.feed(Event::ModelStored { artifact: base }).unwrap();
    assert!(agent.training.is_none());
    // No failure is counted: nothing is to be tried again at some time.
    assert_eq!((agent.machine.status().phase, agent.timers.len()), ("training", 0));

    agent.studies.store(study, document.bytes().to_vec()).unwrap();
    agent.learnt(News::StudyHere(study)).unwrap();
    assert!(agent.training.is_some() && agent.unread.is_empty());
}

#[test]
fn a_manifest_that_nobody_would_take_is_neither_signed_nor_kept_to_be_sent() {
    let folder = tempfile::tempdir().unwrap();
    let mut agent = agent(folder.path());
    let document = example_study();
    let (study, needs) = (document.digest(), BTreeSet::new());
    agent.feed(Event::StudyApproved { study, needs, takes_late: false }).unwrap();
    let classes = BTreeSet::from([ClassId::new(6).unwrap()]);
    let dataset = "ct-2024/MUELLER-HANS-19510304";
    let case = CaseLabels { dataset, patient: "p1", annotated: &classes, present: &classes, pseudo: false };
    let manifest = LabelManifest::count(site(), document.study().taxonomy.digest(), [case], 1);
    agent.worked(Outcome::Counted(Box::new(document), Ok(manifest))).unwrap();
    assert!(agent.manifests.is_empty());
    let told: Vec<String> = agent.status.no_part.words().collect();
    assert!(told.len() == 1 && told[0].contains("the training scans cannot be used"), "{told:?}");
}

#[test]
fn a_round_whose_update_may_never_leave_is_left_before_it_is_trained() {
    let folder = tempfile::tempdir().unwrap();
    let mut agent = agent(folder.path());
    let (document, study) = (example_study(), example_study().digest());
    agent.studies.store(study, document.bytes().to_vec()).unwrap();
    let numbers = 1 << 19;
    let tensor = HostTensor::new(vec![numbers], vec![0.0; numbers]).unwrap();
    let base = agent.artifacts.store(&NamedTensors::from([("w".to_owned(), tensor)])).unwrap().hash();
    agent.feed(Event::StudyApproved { study, needs: BTreeSet::new(), takes_late: false }).unwrap();
    agent.feed(Event::RoundOpened { task: task(base) }).unwrap();
    agent.feed(Event::ModelStored { artifact: base }).unwrap();
    assert!(agent.training.is_none() && agent.worker.finish(), "it was not even begun");
    assert_eq!(agent.machine.status().phase, "idle");
    let rule = "policy.toml:5: `egress.max_update_mib` refuses `update` of 2 MiB";
    assert_eq!(agent.status.no_part.refused_by_policy(study), Some(rule));
}

#[test]
fn a_finished_evaluation_waits_for_room_and_is_not_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let scored = Arc::new(AtomicU32::new(0));
    let mut agent = agent_of(folder.path(), Role::Evaluator, Box::new(Scores(Arc::clone(&scored))));
    let document = example_study();
    let (study, model) = (document.digest(), ArtifactHash(Digest::of(b"model")));
    agent.studies.store(study, document.bytes().to_vec()).unwrap();
    for event in [
        Event::StudyApproved { study, needs: BTreeSet::new(), takes_late: false },
        Event::EvaluationRequested { study, round: RoundId(1), model },
        Event::ModelStored { artifact: model },
    ] {
        agent.feed(event).unwrap();
    }
    let outcome = agent.outcomes.blocking_recv().unwrap();
    files::IS_FULL.set(true);
    agent.worked(outcome).unwrap();
    agent.look_for_room().unwrap();
    assert!(agent.is_halted);
    files::IS_FULL.set(false);
    agent.look_for_room().unwrap();
    assert_eq!((agent.is_halted, agent.machine.status().evaluation), (false, "reporting"));
    assert!(agent.worker.finish());
    assert_eq!(scored.load(Ordering::Relaxed), 1);
}

#[test]
fn an_approval_that_is_taken_back_ends_training_and_nothing_of_it_leaves() {
    let folder = tempfile::tempdir().unwrap();
    let ((ends, may_end), (forgets, forgotten)) = (std::sync::mpsc::channel(), std::sync::mpsc::channel());
    let mut agent = agent_of(folder.path(), Role::Trainer, Box::new(Trains(may_end, forgets)));
    let (document, study) = (example_study(), example_study().digest());
    agent.studies.store(study, document.bytes().to_vec()).unwrap();
    agent.studies.decide(study, true, "operator").unwrap();
    agent.start().unwrap();
    let base = store_models(&agent)[0];
    agent.feed(Event::RoundOpened { task: task(base) }).unwrap();
    for artifact in [base, document.study().embeddings.artifact] {
        agent.feed(Event::ModelStored { artifact }).unwrap();
    }
    let (attempt, cancel) = agent.training.clone().expect("it trains");
    let registering = CancellationToken::new();
    agent.errands.insert(Errand::Register(study), registering.clone());
    agent.look_around().unwrap();
    assert!(!cancel.is_cancelled() && !registering.is_cancelled());

    agent.studies.decide(study, false, "operator").unwrap();
    agent.look_around().unwrap();
    assert_eq!(agent.machine.status().phase, "idle");
    assert!(cancel.is_cancelled() && !cancel.is_suspended() && registering.is_cancelled());
    // Training had just ended: its update is in the outbox by now.
    ends.send(()).unwrap();
    let outcome = agent.outcomes.blocking_recv().unwrap();
    agent.worked(outcome).unwrap();
    assert_eq!((agent.machine.status().phase, agent.outbox.find(attempt)), ("idle", None));
    agent.feed(Event::RoundOpened { task: task(base) }).unwrap();
    assert_eq!(agent.machine.status().phase, "idle", "the next one is declined");

    agent.studies.decide(study, true, "operator").unwrap();
    agent.look_around().unwrap();
    assert_eq!(agent.decided_anew().unwrap(), [], "it is acted on once");
    agent.feed(Event::RoundOpened { task: task(base) }).unwrap();
    assert_eq!(agent.machine.status().phase, "downloading");
    assert!(agent.worker.finish());
    assert_eq!(forgotten.try_recv(), Ok(study), "what its optimiser learnt goes from memory too");
}

#[test]
fn what_was_counted_or_scored_for_a_study_that_was_refused_meanwhile_stays_here() {
    let folder = tempfile::tempdir().unwrap();
    let mut agent = agent(folder.path());
    let (document, study) = (example_study(), example_study().digest());
    agent.feed(Event::StudyApproved { study, needs: BTreeSet::new(), takes_late: false }).unwrap();
    agent.feed(Event::StudyRefused { study }).unwrap();
    let liver = BTreeSet::from([ClassId::new(6).unwrap()]);
    let scan =
        CaseLabels { dataset: "lits", patient: "p1", annotated: &liver, present: &liver, pseudo: false };
    let scans = std::iter::repeat_n(scan, 10);
    let manifest = LabelManifest::count(site(), document.study().taxonomy.digest(), scans, 1);
    agent.worked(Outcome::Counted(Box::new(document), Ok(manifest))).unwrap();
    assert!(agent.manifests.is_empty());

    let (model, sending) = (ArtifactHash(Digest::of(b"model")), CancellationToken::new());
    agent.errands.insert(Errand::Report(model), sending.clone());
    agent.execute(&Action::CancelEvaluation { model }).unwrap();
    assert!(sending.is_cancelled());
}
