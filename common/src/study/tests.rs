use proptest::prelude::*;

use super::sections::{EmbeddingKind, Foreground};
use super::*;
use crate::artifact::ArtifactManifest;
use crate::label_map::LabelMap;
use crate::testing::{EXAMPLE_STUDY, artifact_of_zeros, example_study, example_study_with};

#[test]
fn the_example_becomes_a_document_that_reads_back() {
    let document = example_study();
    let back = StudyDocument::parse(document.bytes().to_vec()).unwrap();
    assert_eq!(back, document);
    assert_eq!(back.study().embeddings.rows, 32);
}

#[test]
fn every_model_file_parses() {
    let files = [
        ("unet.toml", include_str!("../../../configs/models/unet.toml"), 32),
        ("unet-small.toml", include_str!("../../../configs/models/unet-small.toml"), 8),
    ];
    for (file, text, width) in files {
        assert_eq!(ModelConfig::parse(file, text).unwrap().width, width, "{file}");
        let refused =
            ModelConfig::parse(file, &text.replace(&format!("width = {width}"), "width = 9")).unwrap_err();
        assert_eq!(refused.items()[0].line, Some(3), "{file}");
    }
}

#[test]
fn the_example_of_a_new_task_is_a_study_over_its_own_classes() {
    let file = |name| match name {
        "taxonomy" => include_str!("../../../configs/examples/finetune/taxonomy.toml"),
        "dataset" => include_str!("../../../configs/examples/finetune/dataset.toml"),
        _ => include_str!("../../../configs/examples/finetune/study.toml"),
    };
    let taxonomy = Taxonomy::parse("taxonomy.toml", file("taxonomy")).unwrap();
    let map = LabelMap::parse("dataset.toml", file("dataset"), &taxonomy).unwrap();
    assert_eq!(map.producible(&taxonomy).len(), taxonomy.len());
    let model = artifact_of_zeros(&[
        ("backbone.down_tr64.ops.0.conv1.weight", &[32, 1, 3, 3, 3]),
        ("text_to_vision.weight", &[256, 512]),
    ]);
    let embeddings = artifact_of_zeros(&[("organ_embedding", &[2, 512])]);
    let draft = StudyDraft::parse("study.toml", file("study"), &taxonomy).unwrap();
    let document = draft.into_document(taxonomy, &model, &embeddings).unwrap();
    assert_eq!(document.study().embeddings.rows, 2);
    assert_eq!(StudyDocument::parse(document.bytes().to_vec()).unwrap(), document);
}

#[test]
fn the_published_settings_are_studies() {
    let files = [
        ("study-paper.toml", include_str!("../../../configs/examples/study-paper.toml"), (6, 50, 4e-4)),
        (
            "study-reference.toml",
            include_str!("../../../configs/examples/study-reference.toml"),
            (2, 100, 1e-4),
        ),
    ];
    let model = artifact_of_zeros(&[
        ("backbone.down_tr64.ops.0.conv1.weight", &[32, 1, 3, 3, 3]),
        ("text_to_vision.weight", &[256, 512]),
    ]);
    let embeddings = artifact_of_zeros(&[("organ_embedding", &[32, 512])]);
    for (file, text, published) in files {
        let draft = StudyDraft::parse(file, text, &Taxonomy::standard()).unwrap();
        let document = draft.into_document(Taxonomy::standard(), &model, &embeddings).unwrap();
        let (rounds, training) = (document.study().rounds, &document.study().training);
        let optimizer = &training.optimizer;
        assert_eq!((training.micro_batch, training.warmup_rounds, optimizer.base_lr), published, "{file}");
        assert_eq!((rounds, optimizer.weight_decay), (2000, 1e-5), "{file}");
        assert_eq!(document.study().sampling.foreground, Foreground::AnyVoxel, "{file}");
        assert_eq!(StudyDocument::parse(document.bytes().to_vec()).unwrap(), document, "{file}");
    }
}

#[test]
fn every_mistake_is_reported_at_once() {
    let text = EXAMPLE_STUDY
        .replace("rounds = 100", "rounds = 0")
        .replace("patch = [96, 96, 96]", "patch = [96, 100, 8]")
        .replace("window_hu = [-175.0, 250.0]", "window_hu = [250.0, -175.0]")
        .replace("kind = \"adamw\"", "kind = \"sgd\"")
        .replace("accept_s = 300", "accept_s = 8000")
        .replace("{ class = 31, mm = 4.0 }", "{ class = 77, mm = -4.0 }");
    let refused = StudyDraft::parse("study.toml", &text, &Taxonomy::standard()).unwrap_err();
    insta::assert_snapshot!(refused, @r#"
    study.toml:6: `rounds`: 0 is out of range
      allowed: 1 to 100000
    error: study.toml:19: `preprocessing.window_hu`: the first, 250, must be below the second, -175
    error: study.toml:20: `preprocessing.patch[1]`: 100
      allowed: a multiple of 8 from 16 to 512
    error: study.toml:20: `preprocessing.patch[2]`: 8
      allowed: a multiple of 8 from 16 to 512
    error: study.toml:37: `training.warmup_rounds`: 5 is out of range
      allowed: 0 to 0
    error: study.toml:45: `training.optimizer.weight_decay`: belongs to `adamw`; `sgd` has none
    error: study.toml:70: `quorum.accept_s`: 8000 is out of range
      allowed: 1 to 7200
    error: study.toml:73: `evaluation.every_rounds`: 5 is out of range
      allowed: 0 to 0
    error: study.toml:82: `evaluation.nsd_tolerance_mm.classes[2].mm`: -4 is out of range
      allowed: 0 to 100
    error: study.toml:82: `evaluation.nsd_tolerance_mm.classes[2].class`: the taxonomy has no class 77
    "#);
}

#[test]
fn embeddings_are_called_what_their_file_says_that_they_are() {
    let kind = |text: &str| EmbeddingKind::try_from(text.to_owned()).unwrap();
    let notes = ["one-hot, scale 4", "few-hot, scale 1; times 4", "CLIP text encoder; prompt \"a {}\"", ""];
    let agree = |text: &str| notes.map(|made| kind(text).agrees_with(made));
    assert_eq!(agree("one-hot"), [true, false, false, false]);
    assert_eq!(agree("few-hot"), [false, true, false, false]);
    assert_eq!(agree("imported:clip"), [false, false, true, true]);
}

#[test]
fn unknown_keys_and_wrong_words_are_reported_at_once() {
    let text = EXAMPLE_STUDY
        .replace("backbone = \"unet\"", "backbone = \"vnet\"")
        .replace("weights = \"samples\"", "weight = \"samples\"")
        .replace("kind = \"few-hot\"", "kind = \"imported:\"");
    let refused = StudyDraft::parse("study.toml", &text, &Taxonomy::standard()).unwrap_err();
    insta::assert_snapshot!(refused, @r#"
    study.toml:9: `model.backbone`: unknown variant `vnet`, expected `unet` or `swin_unetr`
    error: study.toml:14: `embeddings.kind`: embedding kind `imported:`: expected `one-hot`, `few-hot` or `imported:NAME`
    error: study.toml:54: `aggregation.weight`: unknown field `weight`, expected one of `strategy`, `server_lr`, `weights`, `max_site_weight`, `max_update_norm`, `clip_median_factor`, `clip_norm`, `proximal_mu`, `momentum`, `beta_1`, `beta_2`, `tau`, `trim`, `update_dtype`
    "#);
}

#[test]
fn artifacts_that_do_not_fit_are_refused() {
    let taxonomy = Taxonomy::standard();
    let draft = StudyDraft::parse("study.toml", EXAMPLE_STUDY, &taxonomy).unwrap();
    let model = |width| {
        let first = ("backbone.down_tr64.ops.0.conv1.weight", &[width, 1, 3, 3, 3][..]);
        artifact_of_zeros(&[first, ("text_to_vision.weight", &[256, 512])])
    };
    let table = artifact_of_zeros(&[("organ_embedding", &[32, 512])]);
    let refused = |model: &ArtifactManifest, embeddings: &ArtifactManifest| {
        draft.clone().into_document(taxonomy.clone(), model, embeddings).unwrap_err().to_string()
    };
    let refusal = |name, shape: &[u32]| refused(&model(32), &artifact_of_zeros(&[(name, shape)]));
    insta::assert_snapshot!(refused(&table, &table), @r"
    artifacts: `model`: not a U-Net
      allowed: a network with `backbone.down_tr64.ops.0.conv1.weight`: `site-agent model init` makes one
    ");
    insta::assert_snapshot!(refused(&model(16), &table), @r"
    artifacts: `model`: width 16
      allowed: 32, as `model.width` of the study
    ");
    insta::assert_snapshot!(refusal("organ_embedding", &[32, 32]), @r#"
    artifacts: `embeddings`: width 32
      allowed: 512, as the initial model
    "#);
    insta::assert_snapshot!(refusal("organ_embedding", &[31, 512]), @r#"
    study: `embeddings.rows`: 31
      allowed: 32, one per class
    "#);
    insta::assert_snapshot!(refusal("prompts", &[32, 512]), @r#"
    artifacts: `embeddings`: not an embedding table
      allowed: one tensor `organ_embedding` of shape [classes, width]
    "#);
}

#[test]
fn embeddings_are_trained_in_a_table_of_the_model_or_not_at_all() {
    let first = ("backbone.down_tr64.ops.0.conv1.weight", &[32, 1, 3, 3, 3][..]);
    let learned = |rows| artifact_of_zeros(&[first, (CLASS_TABLE_TENSOR, &[rows, 256])]);
    let reading = artifact_of_zeros(&[first, ("text_to_vision.weight", &[256, 256])]);
    let embeddings = artifact_of_zeros(&[(EMBEDDING_TENSOR, &[32, 256])]);
    let joined = |model: &ArtifactManifest, trainable| {
        let mut draft = StudyDraft::from(example_study().study());
        draft.embeddings.trainable = trainable;
        let document = draft.into_document(Taxonomy::standard(), model, &embeddings);
        document.map(drop).map_err(|refused| refused.to_string())
    };
    assert_eq!(joined(&learned(32), true), Ok(()));
    assert_eq!(joined(&reading, false), Ok(()));
    assert!(joined(&learned(31), true).unwrap_err().contains("[31, 256]"));
    for (model, trainable) in [(learned(32), false), (reading, true)] {
        assert!(joined(&model, trainable).unwrap_err().contains("`embeddings.trainable`"));
    }
}

#[test]
fn a_document_that_leaves_a_setting_to_defaults_is_refused() {
    let document = example_study();
    let text = String::from_utf8(document.bytes().to_vec()).unwrap();
    let shorter = text.replacen("    \"accumulation\": 1,\n", "", 1);
    assert_ne!(shorter, text);
    insta::assert_snapshot!(StudyDocument::parse(shorter.into_bytes()).unwrap_err(), @"study: is not in canonical form");
}

#[test]
fn a_document_with_an_unknown_setting_is_refused() {
    let text = String::from_utf8(example_study().bytes().to_vec()).unwrap();
    let longer = text.replacen("\"seed\"", "\"remote_code\": \"x\", \"seed\"", 1);
    assert!(StudyDocument::parse(longer.into_bytes()).is_err());
}

#[test]
fn a_study_names_pseudo_labels_only_where_it_allows_them() {
    let text = |document: &StudyDocument| String::from_utf8(document.bytes().to_vec()).unwrap();
    assert!(!text(&example_study()).contains("pseudo_labels"), "its bytes are those of older studies");
    let allowed = example_study_with(|draft| draft.training.pseudo_labels = true);
    assert!(text(&allowed).contains("\"pseudo_labels\": true"));
    assert_eq!(StudyDocument::parse(allowed.bytes().to_vec()).unwrap(), allowed);
    assert_ne!(allowed.digest(), example_study().digest());
}

#[test]
fn a_test_site_is_named_once_and_opens_no_gate() {
    let with = |test: &[&str]| {
        let mut draft = StudyDraft::from(example_study().study());
        draft.evaluation.test = test.iter().map(|site| site.parse().unwrap()).collect();
        draft.evaluation.gate =
            Some(sections::Gate { evaluators: vec!["north".parse().unwrap()], timeout_s: 60 });
        check::draft(&draft, &Taxonomy::standard()).into_result("study").map_err(|error| error.to_string())
    };
    assert_eq!(with(&["south", "east"]), Ok(()));
    assert!(with(&["south", "south"]).unwrap_err().contains("evaluation.test"));
    assert!(with(&["north"]).unwrap_err().contains("`north` is a test site"));
    assert!(!String::from_utf8(example_study().bytes().to_vec()).unwrap().contains("\"test\""));
}

#[test]
fn a_study_names_who_stays_out_only_where_somebody_does() {
    let text = |document: &StudyDocument| String::from_utf8(document.bytes().to_vec()).unwrap();
    assert!(!text(&example_study()).contains("participants"), "its bytes are those of older studies");
    let written = format!("{EXAMPLE_STUDY}\n[participants]\nleave_out = [\"north\", \"south\"]\n");
    let draft = StudyDraft::parse("study.toml", &written, &Taxonomy::standard()).unwrap();
    let document = example_study_with(|example| *example = draft);
    assert_eq!(
        document.study().participants.leave_out,
        ["north", "south"].map(|site| site.parse::<SiteId>().unwrap())
    );
    assert_eq!(StudyDocument::parse(document.bytes().to_vec()).unwrap(), document);
    assert_ne!(document.digest(), example_study().digest());
    let empty = format!("{EXAMPLE_STUDY}\n[participants]\nleave_out = []\n");
    let draft = StudyDraft::parse("study.toml", &empty, &Taxonomy::standard()).unwrap();
    assert_eq!(example_study_with(|example| *example = draft).digest(), example_study().digest());
}

#[test]
fn what_a_study_says_of_its_rounds_is_written_only_where_it_is_set() {
    let text = |document: &StudyDocument| String::from_utf8(document.bytes().to_vec()).unwrap();
    let plain = text(&example_study());
    for key in ["sites_per_class", "late", "staleness_weight", "min_volumes"] {
        assert!(!plain.contains(&format!("\"{key}\"")), "older studies keep their bytes: {key}");
    }
    let document = example_study_with(|draft| {
        draft.quorum.sites_per_class = 1;
        draft.participants.min_volumes = 20;
        draft.quorum.late = sections::Late::NextRound;
        draft.quorum.staleness_weight = 0.25;
    });
    for line in
        ["sites_per_class\": 1", "late\": \"next-round\"", "staleness_weight\": 0.25", "min_volumes\": 20"]
    {
        assert!(text(&document).contains(line), "{line}");
    }
    assert_eq!(StudyDocument::parse(document.bytes().to_vec()).unwrap(), document);
    let written = format!("{EXAMPLE_STUDY}\n[participants]\nmin_volumes = 0\n");
    let refused = StudyDraft::parse("study.toml", &written, &Taxonomy::standard()).unwrap_err();
    assert!(refused.to_string().contains("participants.min_volumes"), "{refused}");
}

#[test]
fn who_is_left_out_is_a_trainer_and_named_once() {
    let with = |leave_out: &[&str]| {
        let mut draft = StudyDraft::from(example_study().study());
        draft.participants.leave_out = leave_out.iter().map(|site| site.parse().unwrap()).collect();
        draft.evaluation.test = vec!["sealed".parse().unwrap()];
        draft.evaluation.gate =
            Some(sections::Gate { evaluators: vec!["gate".parse().unwrap()], timeout_s: 60 });
        check::draft(&draft, &Taxonomy::standard()).into_result("study").map_err(|error| error.to_string())
    };
    assert_eq!(with(&["north", "south"]), Ok(()));
    assert!(with(&["north", "north"]).unwrap_err().contains("names a site twice"));
    for scores in ["sealed", "gate"] {
        assert!(with(&[scores]).unwrap_err().contains("scores models, and never trains"), "{scores}");
    }
}

#[test]
fn a_study_leaves_out_trainers_alone() {
    let document = example_study_with(|draft| draft.participants.leave_out = vec!["north".parse().unwrap()]);
    let admit = |site: &str, role| document.study().admit(&site.parse().unwrap(), role);
    let refused = admit("north", Role::Trainer).unwrap_err();
    assert_eq!(refused.to_string(), "this study leaves north out: it is scored there, not trained");
    assert_eq!(admit("north", Role::Evaluator), Ok(()));
    assert_eq!(admit("south", Role::Trainer), Ok(()));
}

#[test]
fn any_change_is_another_digest() {
    let base = example_study().digest();
    let changes: [fn(&mut StudyDraft); 4] = [
        |draft| draft.seed += 1,
        |draft| draft.preprocessing.spacing_mm[2] = 1.6,
        |draft| draft.aggregation.max_update_norm = Some(1.0),
        |draft| draft.evaluation.min_count = 6,
    ];
    for change in changes {
        assert_ne!(example_study_with(change).digest(), base);
    }
}

#[test]
fn the_rate_is_positive_in_every_round_even_of_a_short_study() {
    for (rounds, warmup) in [(1, 0), (1, 1), (2, 2), (100, 5)] {
        let document = example_study_with(|draft| {
            draft.rounds = rounds;
            draft.training.warmup_rounds = warmup;
            draft.evaluation.every_rounds = 0;
        });
        for round in 1..=rounds {
            let rate = document.study().learning_rate(RoundId(round));
            assert!(rate > 0.0 && rate <= document.study().training.optimizer.base_lr, "{round}: {rate}");
        }
    }
}

proptest! {
    /// Floats are written so that they read back exactly: a study has one digest on every machine.
    #[test]
    fn parsing_what_was_printed_gives_the_same_study(
        seed in 0..=i64::MAX as u64,
        base_lr in 1e-12..10.0f64,
        spacing in 0.1..20.0f64,
        decay in 0.0..1.0f64,
        norm in proptest::option::of(1e-6..1e9f64),
    ) {
        let document = example_study_with(|draft| {
            draft.seed = seed;
            draft.training.optimizer.base_lr = base_lr;
            draft.training.optimizer.weight_decay = decay;
            draft.preprocessing.spacing_mm = [spacing, 1.0, 3.0];
            draft.aggregation.max_update_norm = norm;
        });
        prop_assert_eq!(StudyDocument::parse(document.bytes().to_vec()).unwrap(), document);
    }

    #[test]
    fn a_damaged_document_is_refused_without_panic(at in 0usize..4000, byte in any::<u8>()) {
        let document = example_study();
        let mut bytes = document.bytes().to_vec();
        let at = at % bytes.len();
        prop_assume!(bytes[at] != byte);
        bytes[at] = byte;
        if let Ok(other) = StudyDocument::parse(bytes) {
            prop_assert_ne!(other.digest(), document.digest());
        }
    }
}
