//! What the agent does when a part of it, or its disk, does not do its own. No coordinator is dialled.

use std::path::Path;

use common::manifest::LabelManifest;
use common::report::EvaluationReport;
use common::round::RoundTask;
use common::study::StudyDocument;
use common::testing::example_study;
use rcgen::CertificateParams;

use super::*;
use crate::client::identity::Membership;
use crate::client::work::Job;
use crate::egress::Policy;
use crate::train::trainer::{RoundOutcome, StepReport};

const SITE: &str =
    "coordinator = \"127.0.0.1:1\"\nidentity = \"identity\"\nstate = \"state\"\npolicy = \"policy.toml\"\n";
const POLICY: &str = "[studies]\napprove = \"ask\"\n[egress]\nallow = []\nmax_update_mib = 1\nmax_mib_per_day = 2\n\
                      progress_every_s = 3600\n";
const ATTEMPT: AttemptId = AttemptId::from_bytes([1; 16]);

/// Work with a fault in its program.
struct Faulty;

impl Work for Faulty {
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
        _: &StudyDocument,
        _: RoundId,
        _: ModelHash,
        _: &Cancel,
    ) -> anyhow::Result<EvaluationReport> {
        panic!("a fault in the program")
    }
}

/// The agent of a trainer whose files are in `folder`.
fn agent(folder: &Path) -> Agent {
    let config = SiteConfig::parse(&folder.join("site.toml"), SITE).unwrap();
    let keys = config.identity.keys().unwrap();
    let certificate = CertificateParams::new(Vec::new()).unwrap().self_signed(&keys.tls).unwrap();
    let membership =
        Membership { site: "north".parse().unwrap(), role: Role::Trainer, consortium: "demo".to_owned() };
    config.identity.complete(&membership, &[certificate.der().clone()], certificate.der()).unwrap();
    let identity = config.identity.load().unwrap();
    let state = StateFolder::open(&config.state).unwrap();
    let egress = Egress::open(Policy::parse("policy.toml", POLICY).unwrap(), &state.ledger()).unwrap();
    Agent::open(&config, &identity, egress, state, Box::new(Faulty)).unwrap()
}

fn task(base: ModelHash) -> RoundTask {
    RoundTask { study: example_study().digest(), round: RoundId(1), base, steps: 4, remaining_ms: 60_000 }
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
