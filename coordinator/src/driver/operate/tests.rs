use std::collections::{BTreeMap, BTreeSet, HashMap};

use common::ids::Digest;
use common::round::{ClassShortage, RoundMachine, SiteShortage};
use common::study::EMBEDDING_TENSOR;
use common::study::sections::Strategy;
use common::taxonomy::Taxonomy;
use common::testing::{EXAMPLE_STUDY, example_study_with};
use safetensors::tensor::TensorView;

use super::*;
use crate::driver::lost::tests::driver;
use crate::driver::plan::round_plan;
use crate::driver::standing::waits_for;
use crate::fixture::{Fixture, NOW, site};
use crate::pki::Serial;
use crate::report::SiteSummary;
use crate::report::tests::{add_site, sample};
use crate::store::{RoundRecord, Store, StoredManifest};

async fn enrol(store: &Store, role: Role) {
    let (token, now) = (Token::random(), clock::now());
    let (terms, until) = (InviteTerms { site: site(), role }, now.after(Duration::from_secs(60)));
    store.add_invite(token.hash(), &terms, now, until).await.unwrap();
    store.enrol(token.hash(), &[7; 32], Serial::random(), until, now).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_study_that_cannot_be_read_stands_still_and_the_others_go_on() {
    let fixture = Fixture::new().await;
    let store = fixture.store().await;
    let document = b"{\"format\": \"of another time\"}".to_vec();
    let (digest, name) = (StudyDigest(Digest::of(&document)), "old".to_owned());
    store.add_study(&StoredStudy { digest, name, document, added_at: NOW }).await.unwrap();
    let mut driver = driver(&fixture, store).await;

    let Reply::Status(status) = driver.operate(Request::Status).await else { panic!("it is there") };
    let good = fixture.digest().to_string();
    assert_eq!(status.studies.iter().map(|study| &study.digest).collect::<Vec<_>>(), [&good]);
    let [unreadable] = &status.unreadable[..] else { panic!("{status:?}") };
    assert_eq!((unreadable.name.as_str(), &unreadable.digest), ("old", &digest.to_string()));

    let mut pause = async |study: &str| {
        driver.operate(Request::Control { study: study.to_owned(), order: Order::Pause }).await
    };
    let Reply::Failed { words, hint, .. } = pause("old").await else { panic!("it stands still") };
    assert!(words.starts_with("the study `old` cannot be read: study in the store: "), "{words}");
    assert!(hint.unwrap().contains("coordinator doctor"));
    assert!(matches!(pause(&good).await, Reply::Done { .. }));
}

/// Writes tensors of zeros, with what the file says of how they were made.
fn write_zeros(path: &Path, tensors: &[(&str, &[usize])], made: &str) {
    let bytes = |shape: &[usize]| vec![0u8; 4 * shape.iter().product::<usize>()];
    let zeros: Vec<Vec<u8>> = tensors.iter().map(|(_, shape)| bytes(shape)).collect();
    let views = tensors.iter().zip(&zeros).map(|((name, shape), zeros)| {
        (*name, TensorView::new(safetensors::Dtype::F32, shape.to_vec(), zeros).unwrap())
    });
    let notes = HashMap::from([("made".to_owned(), made.to_owned())]);
    std::fs::write(path, safetensors::serialize(views, Some(notes)).unwrap()).unwrap();
}

#[tokio::test]
async fn a_new_study_has_the_kind_of_embeddings_that_their_file_says() {
    let fixture = Fixture::new().await;
    let mut driver = driver(&fixture, fixture.store().await).await;
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let width = fixture.study.study().model.width as usize;
    let model: [(&str, &[usize]); 3] = [
        ("backbone.down_tr64.ops.0.conv1.weight", &[width, 1, 3, 3, 3]),
        ("controller.bias", &[153]),
        ("text_to_vision.weight", &[256, 32]),
    ];
    write_zeros(&path("model"), &model, "");
    write_zeros(&path("table"), &[(EMBEDDING_TENSOR, &[32, 32])], "one-hot, scale 4");
    let add = |text: &str| {
        let file = path("study.toml");
        std::fs::write(&file, text).unwrap();
        Request::AddStudy { file, model: path("model"), embeddings: path("table"), taxonomy: None }
    };

    let Reply::Failed { words, .. } = driver.operate(add(EXAMPLE_STUDY)).await else {
        panic!("a few-hot study was added with one-hot embeddings");
    };
    let (kind, made) = ("study.toml: `embeddings.kind`: `few-hot`", "made as `one-hot, scale 4`");
    assert!(words.contains(kind) && words.ends_with(made), "{words}");
    let right = EXAMPLE_STUDY.replace("kind = \"few-hot\"", "kind = \"one-hot\"");
    assert!(matches!(driver.operate(add(&right)).await, Reply::Added { .. }));
    let known = EXAMPLE_STUDY.replace("[quorum]\nsites = 2", "[quorum]\nsites = 1");
    let study = fixture.digest().to_string();
    let Reply::Added { study: again, .. } = driver.operate(add(&known)).await else { panic!("it is here") };
    assert_eq!(again, study);
}

#[tokio::test]
async fn an_enrolled_site_is_invited_in_its_own_role_alone() {
    let fixture = Fixture::new().await;
    let store = fixture.store().await;
    enrol(&store, Role::Evaluator).await;
    let mut driver = driver(&fixture, store).await;
    driver.address = Some("federation.example.org:443".to_owned());

    let invite = |role| Request::Invite { site: site(), role, hours: 1 };
    let Reply::Failed { words, .. } = driver.operate(invite(Role::Trainer)).await else {
        panic!("a held-out site was invited to train");
    };
    assert_eq!(words, "`north` takes part as evaluator, and a site has one role");
    assert!(matches!(driver.operate(invite(Role::Evaluator)).await, Reply::Invite { .. }));
    driver.operate(Request::Revoke { site: site() }).await;
    assert!(matches!(driver.operate(invite(Role::Trainer)).await, Reply::Invite { .. }));
}

#[tokio::test]
async fn who_revokes_a_site_is_told_where_its_update_stays() {
    let fixture = Fixture::new().await;
    let store = fixture.store().await;
    enrol(&store, Role::Trainer).await;
    let mut driver = driver(&fixture, store).await;

    let Reply::Done { words } = driver.operate(Request::Revoke { site: site() }).await else {
        panic!("it takes part");
    };
    let name = &fixture.study.study().name;
    let told = format!("; its update of round 1 of `{name}` counts already, and stays");
    assert_eq!(words, format!("north is revoked: its certificates no longer count{told}"));
}

#[tokio::test]
async fn status_says_what_a_study_waits_for() {
    let fixture = Fixture::new().await;
    let store = fixture.store().await;
    enrol(&store, Role::Trainer).await;
    let study = example_study_with(|draft| draft.quorum.sites = 3);
    let (digest, name) = (study.digest(), "abdomen of three".to_owned());
    let stored = StoredStudy { digest, name, document: study.bytes().to_vec(), added_at: NOW };
    store.add_study(&stored).await.unwrap();
    let mut driver = driver(&fixture, store).await;
    driver.serving = true;
    let line = async |driver: &Driver| {
        let known = driver.store.sites().await.unwrap();
        driver.study_line(&driver.studies[&digest], &known).await.unwrap()
    };
    assert_eq!(line(&driver).await.waits_for, None, "for its start");

    driver.operate(Request::Control { study: digest.to_string(), order: Order::Start }).await;
    let shown = line(&driver).await;
    assert_eq!(shown.waits_for.as_deref(), Some("3 trainers, 0 are there"));
    assert_eq!(shown.answers, BTreeMap::from([(site(), "not connected".to_owned())]));
    assert_eq!(shown.uncovered, [""; 0], "nobody has registered");

    let mut status = driver.studies[&digest].rounds.status();
    (status.phase, status.sites_short) = ("quorum-missing", Some(SiteShortage { have: 1, need: 3 }));
    let gate = BTreeSet::from(["east", "west"].map(|name| name.parse().unwrap()));
    assert_eq!(waits_for(&status, &gate).as_deref(), Some("3 updates, 1 is there"));
    status.phase = "committed";
    assert_eq!(waits_for(&status, &gate).as_deref(), Some("the reports of east, west"));
    assert_eq!(waits_for(&status, &BTreeSet::new()), None);
}

#[test]
fn resume_says_why_a_rule_that_leaves_sites_out_still_waits() {
    let warned = |strategy| {
        let document = example_study_with(|draft| {
            (draft.quorum.sites, draft.quorum.sites_per_class) = (5, 3);
            draft.aggregation.strategy = strategy;
        });
        let study = document.study();
        let mut status = RoundMachine::new(round_plan(&document)).status();
        let class = ClassId::new(11).unwrap();
        status.classes_short = BTreeMap::from([(class, ClassShortage { have: 1, need: 3 })]);
        assert_eq!(too_few_for_rule(&status, study), None, "no round is short of updates");
        status.phase = "quorum-missing";
        (too_few_for_rule(&status, study), study.taxonomy.name(class))
    };
    assert_eq!(warned(Strategy::FedAvg).0, None);
    let (warning, class) = warned(Strategy::TrimmedMean);
    let expected = format!(
        "round 1 still waits for updates from sites that annotate {class} (1 of 3): of fewer than 3, `trimmed-mean` would \
         leave out the only one that knows the class. Bring such sites and resume again, or abort the study and go on \
         from its last model with another strategy"
    );
    assert_eq!(warning, Some(expected));
}

/// A label manifest of [`site`]: five volumes, all of which annotate `class`.
fn label_manifest(taxonomy: &Taxonomy, class: usize) -> Vec<u8> {
    let manifest = serde_json::json!({
        "format": "consilium label manifest 1",
        "site": site(),
        "taxonomy": taxonomy.digest(),
        "volumes": 5,
        "classes": [{ "class": class, "annotated": 5, "present": null }],
        "datasets": [{ "name": "mine", "volumes": 5 }],
    });
    manifest.to_string().into_bytes()
}

#[tokio::test]
async fn a_manifest_of_an_earlier_build_that_would_be_refused_now_counts_for_nothing() {
    let fixture = Fixture::new().await;
    let (store, digest) = (fixture.store().await, fixture.digest());
    enrol(&store, Role::Trainer).await;
    store.approve_study(&digest, &site(), NOW).await.unwrap();
    let taxonomy = &fixture.study.study().taxonomy;
    let mut driver = driver(&fixture, store.clone()).await;
    let keep = async |document: Vec<u8>| {
        let stored = StoredManifest { site: site(), document, signature: vec![0; 64] };
        store.put_manifest(&digest, &stored, NOW).await.unwrap();
    };
    let unknown_class = label_manifest(taxonomy, taxonomy.len() + 1);
    for (document, why) in
        [(unknown_class, "class 33, which the study does not"), (b"{}".to_vec(), "missing field")]
    {
        keep(document).await;
        assert_eq!(driver.readiness(digest, &site()).await.unwrap(), None, "{why}");
        assert_eq!(driver.manifests(&digest).await.unwrap().counting, [], "{why}");
        let Reply::Status(status) = driver.operate(Request::Status).await else { panic!("{why}") };
        let told = &status.studies[0].answers[&site()];
        assert!(told.starts_with("updated; its label manifest does not count: "), "{told}");
        assert!(told.contains(why), "{told}");
    }
    keep(label_manifest(taxonomy, taxonomy.len())).await;
    assert!(driver.readiness(digest, &site()).await.unwrap().is_some());
    assert_eq!(driver.manifests(&digest).await.unwrap().counting.len(), 1);
}

#[tokio::test]
async fn a_name_that_nobody_has_is_told_at_the_start() {
    let fixture = Fixture::new().await;
    let store = fixture.store().await;
    enrol(&store, Role::Trainer).await;
    let known = store.sites().await.unwrap();
    let study = example_study_with(|draft| {
        draft.evaluation.test = vec![site(), "st-mary".parse().unwrap()];
        draft.participants.leave_out = vec!["south".parse().unwrap()];
    });
    let warned = names_of_nobody(study.study(), &known);
    assert_eq!(
        warned,
        [
            "`evaluation.test` names `north`, and no evaluator is called that",
            "`evaluation.test` names `st-mary`, and no evaluator is called that",
            "`participants.leave_out` names `south`, and no trainer is called that"
        ]
    );
}

#[tokio::test]
async fn nobody_waits_for_reports_of_a_site_that_is_revoked_or_has_trained() {
    let fixture = Fixture::new().await;
    let (store, digest) = (fixture.store().await, fixture.digest());
    enrol(&store, Role::Evaluator).await;
    store.approve_study(&digest, &site(), NOW).await.unwrap();
    let mut driver = driver(&fixture, store).await;
    let (round, model) = (RoundId(1), fixture.study.study().initial_model);
    let requested = evaluation::Event::Requested { round, model };
    driver.take(digest, Happening::Evaluation(requested)).await;
    let waited_for = async |driver: &mut Driver| {
        let happening = driver.readiness(digest, &site()).await.unwrap();
        if let Some(happening) = happening {
            driver.take(digest, happening).await;
        }
        driver.studies[&digest].evaluation.pending(&model).contains(&site())
    };
    assert!(waited_for(&mut driver).await);
    driver.operate(Request::Revoke { site: site() }).await;
    assert!(!waited_for(&mut driver).await);

    enrol(&driver.store, Role::Evaluator).await;
    assert!(waited_for(&mut driver).await, "it is back");
    let record = RoundRecord {
        round,
        opened_at: NOW,
        closed_at: Some(NOW),
        outcome: None,
        model: Some(model),
        sites: vec![site()],
    };
    driver.store.close_round(&digest, &record).await.unwrap();
    assert!(!waited_for(&mut driver).await, "it has trained");
}

#[test]
fn a_model_is_promoted_by_validation_only_where_nothing_newer_is_passed_over() {
    let round = |data: &ReportData| {
        choice_of_all(data).map(|best| best.round.0).map_err(|failure| (failure.words, failure.hint.unwrap()))
    };
    let mut data = sample();
    assert_eq!(round(&data), Ok(8));
    add_site(&mut data, "site-e", 0, 0.1);
    let (words, hint) = round(&data).unwrap_err();
    let passed = "8 models, the newest of round 8, without reports of site-e";
    assert_eq!(words, format!("the choice would pass over {passed}"));
    assert!(hint.contains("--round") && hint.contains("that of round 0"), "{hint}");
    let evaluator = data.sites[3].clone();
    data.sites.push(SiteSummary { site: "site-e".parse().unwrap(), revoked: true, ..evaluator });
    assert_eq!(round(&data), Ok(8));
}

#[test]
fn whom_promote_waits_for_may_come() {
    let words =
        |data: &ReportData| choice_of_all(data).map(|best| best.round).map_err(|failure| failure.words);
    let mut data = sample();
    data.scores.clear();
    assert_eq!(words(&data), Err("no validation site has scored a model yet".to_owned()));
    data.study.sealed = vec!["site-d".parse().unwrap()];
    let nobody = "there is no validation site to choose a model: every evaluator is sealed, or has left";
    assert_eq!(words(&data), Err(nobody.to_owned()));
}
