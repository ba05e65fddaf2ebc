use common::ids::{ArtifactHash, Digest};

use super::*;

/// A small, finished study: three trainers, one evaluator, a dozen organs, two lesions.
pub(crate) fn sample() -> ReportData {
    let names = [
        (1, "spleen", "ac"),
        (2, "right kidney", "bc"),
        (3, "left kidney", "bc"),
        (4, "gall bladder", "a"),
        (6, "liver", "ac"),
        (7, "stomach", "c"),
        (8, "aorta", "b"),
        (9, "postcava", "b"),
        (11, "pancreas", "c"),
        (16, "right lung", "a"),
        (17, "left lung", "a"),
        (21, "bladder", "b"),
        (26, "kidney tumour", "b"),
        (27, "liver tumour", "a"),
    ];
    let class = |id| ClassId::new(id).unwrap();
    let site = |letter: char| format!("site-{letter}").parse::<SiteId>().unwrap();
    let model = |round: u32| ArtifactHash(Digest::of(&round.to_le_bytes()));
    let classes =
        names.map(|(id, name, _)| ClassSummary { class: class(id), name: name.to_owned(), lesion: id > 25 });
    let cells = names.iter().flat_map(|&(id, _, sites)| sites.chars().map(move |s| (id, s)));
    let coverage = cells.map(|(id, s)| CoverageCell {
        site: site(s),
        class: class(id),
        annotated: if s == 'c' { 8 } else { 16 },
        present: (id != 27).then_some(12),
        pseudo: 0,
    });
    let score = |round: u32, id: u8| {
        let dice = thousandths((1.0 - (-f64::from(round) / 3.0).exp()) * (0.97 - 0.013 * f64::from(id)));
        ClassScore {
            class: class(id),
            n: (id != 26).then_some(8),
            mean_dice: (id != 26).then_some(dice),
            interval: (id != 26).then_some([(dice - 0.06).max(0.0), (dice + 0.04).min(1.0)]),
            mean_nsd: (id != 26).then_some(dice * 0.96),
            tau_mm: Some(2.0),
            n_absent: Some(u32::from(id == 4)),
            false_positive_ml: (id == 4).then_some(1.25),
        }
    };
    let scores = |round| ModelScores {
        site: site('d'),
        round: RoundId(round),
        model: model(round),
        classes: names.iter().map(|&(id, ..)| score(round, id)).collect(),
    };
    let trainer = |letter, datasets: &[&str]| SiteSummary {
        site: site(letter),
        role: Role::Trainer,
        volumes: Some(16),
        datasets: datasets.iter().map(ToString::to_string).collect(),
        bytes_sent: 42_000_000,
        bytes_received: 47_300_000,
        revoked: false,
    };
    let evaluator =
        SiteSummary { role: Role::Evaluator, volumes: None, bytes_sent: 9_120, ..trainer('d', &[]) };
    let loss = |s: char, k: f64| LossSeries {
        site: site(s),
        points: (1..=40)
            .map(|i| (f64::from(i) / 5.0, thousandths(0.3 + k * (-f64::from(i) / 9.0).exp())))
            .collect(),
    };
    ReportData {
        format: FORMAT,
        generated_at: "2027-01-15T08:00:00Z".to_owned(),
        consortium: "demo".to_owned(),
        study: StudySummary {
            name: "Abdomen on phantoms".to_owned(),
            digest: StudyDigest(Digest::of(b"study")),
            taxonomy: TaxonomyDigest(Digest::of(b"taxonomy")),
            state: "finished".to_owned(),
            rounds: 8,
            rounds_committed: 8,
            seed: 7,
            embedding: "few-hot".to_owned(),
            weights: "samples".to_owned(),
            strategy: None,
            steps_per_round: None,
            metric_version: 1,
            model: model(8),
            sealed: Vec::new(),
        },
        classes: classes.to_vec(),
        sites: vec![
            trainer('a', &["phantom-a"]),
            trainer('b', &["phantom-b"]),
            trainer('c', &["one", "two"]),
            evaluator,
        ],
        coverage: coverage.collect(),
        scores: (0..=8).map(scores).collect(),
        losses: vec![loss('a', 1.4), loss('b', 1.1), loss('c', 1.7)],
        rounds: (1..=8)
            .map(|round| RoundSummary {
                round: RoundId(round),
                outcome: "committed".to_owned(),
                seconds: Some(21.4),
                sites: ['a', 'b', 'c'].map(site).to_vec(),
                model: Some(model(round)),
                contributions: Vec::new(),
                evaluated: true,
            })
            .collect(),
        board: None,
        overlays: Vec::new(),
    }
}

/// Has another evaluator score the model of `round`, each class `less` below what `site-d` has.
pub(crate) fn add_site(data: &mut ReportData, site: &str, round: u32, less: f64) {
    let at_d = |scores: &&ModelScores| scores.site.as_str() == "site-d" && scores.round == RoundId(round);
    let mut scores = data.scores.iter().find(at_d).unwrap().clone();
    scores.site = site.parse().unwrap();
    for score in &mut scores.classes {
        score.mean_dice = score.mean_dice.map(|dice| dice - less);
    }
    data.scores.push(scores);
}

/// JSON gives three decimals back to the bit.
fn thousandths(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[test]
fn the_page_of_a_finished_study_stays_as_it_was_looked_at() {
    insta::assert_snapshot!(sample().to_html().unwrap());
}

#[test]
fn the_page_needs_nothing_from_elsewhere() {
    let page = sample().to_html().unwrap();
    for forbidden in ["http://", "https://", "<script", "<img", "@import", "url(", "<link"] {
        assert!(!page.contains(forbidden), "{forbidden}");
    }
}

#[test]
fn the_page_says_which_model_is_chosen_and_how_far_sites_lie_apart() {
    let mut data = sample();
    let alone = data.to_html().unwrap();
    assert!(alone.contains("Validation chooses the model of round 8, <code>07f7e162</code>"), "{alone}");
    assert!(alone.contains("once two of them have scored the same model") && !alone.contains("worst site"));

    add_site(&mut data, "site-e", 8, 0.25);
    let page = data.to_html().unwrap();
    assert!(page.contains(
        "<b>0.672</b><span>mean held-out Dice, organs, of the model of round 8, over 2 sites; the worst has 0.547</span>"
    ));
    let liver = r#"<td>liver</td><td class="n">2</td><td class="n">0.705</td><td class="n">0.580</td><td>site-e</td><td class="n">0.250</td><td title="site-d 0.830 (0.77 – 0.87); site-e 0.580 (0.77 – 0.87)"><svg class="mark" width="240" height="22""#;
    assert!(page.contains(liver), "{page}");
    assert!(page.contains(r#"<li><span class="key c1"></span>site-e</li>"#), "{page}");
}

#[test]
fn the_headline_is_of_one_model() {
    let mut data = sample();
    let alone = "<b>0.797</b><span>mean held-out Dice, organs, of the model of round 8</span>";
    let liver = "<span>liver</span><b>0.83</b>";
    assert!(data.to_html().unwrap().contains(alone));
    // A sealed one that was shown an earlier model, first by name, and one that has left long ago.
    add_site(&mut data, "site-a-held-out", 5, 0.0);
    add_site(&mut data, "site-e", 0, 0.0);
    data.study.sealed = vec!["site-a-held-out".parse().unwrap()];
    let evaluator = data.sites[3].clone();
    data.sites.push(SiteSummary { site: "site-e".parse().unwrap(), revoked: true, ..evaluator });
    let page = data.to_html().unwrap();
    assert!(page.contains(alone) && page.contains(liver), "{page}");
    assert!(page.contains("site-e has no say in the choice any more: it is no evaluator now."));
    assert!(page.contains("<h2>Model of round 0 at site-e</h2>"));
    // Of the model that all have scored, where it is chosen.
    data.sites.pop();
    let page = data.to_html().unwrap();
    assert!(page.contains("of the model of round 0, over 2 sites"), "{page}");
    assert!(
        page.contains("Passed over: 8 models, the newest of round 8, without reports of site-e."),
        "{page}"
    );
}

#[test]
fn the_page_says_which_sites_are_sealed_and_how_often_they_were_looked_at() {
    let mut data = sample();
    data.study.sealed = ["site-t", "site-u"].map(|site| site.parse().unwrap()).to_vec();
    let evaluator = data.sites[3].clone();
    data.sites.push(SiteSummary { site: "site-t".parse().unwrap(), ..evaluator });
    add_site(&mut data, "site-t", 5, 0.0);
    add_site(&mut data, "site-t", 8, 0.0);
    let page = data.to_html().unwrap();
    for words in [
        "site-t is a sealed test site, which has no say in the choice: looked at 2 times, at the models of rounds 5, 8.",
        "site-u is a sealed test site, which has no say in the choice: not looked at yet.",
        "<td>site-t</td><td>evaluator, sealed</td>",
        "</span>site-t (test)</li>",
        "<td>site-d</td><td>evaluator</td>",
    ] {
        assert!(page.contains(words), "{words}\n{page}");
    }
}

#[test]
fn the_page_marks_what_a_model_labelled() {
    let mut data = sample();
    assert!(!data.to_html().unwrap().contains("pseudo-labels"));
    data.coverage[0].pseudo = 3;
    let page = data.to_html().unwrap();
    assert!(
        page.contains("title=\"spleen: annotated in 16, present in 12, labelled by a model in 3\">16*</td>")
    );
    assert_eq!(page.matches("*</td>").count(), 1);
    assert!(page.contains("<p>* Some of these volumes were labelled by a model"), "{page}");
}

#[test]
fn a_class_that_no_scan_shows_is_told_from_one_that_too_few_do() {
    let mut data = sample();
    let last = data.scores.last_mut().unwrap();
    for score in &mut last.classes[3..5] {
        (score.n, score.mean_dice, score.interval, score.mean_nsd) = (None, None, None, None);
    }
    let page = data.to_html().unwrap();
    let row = |name: &str, scans: &str| {
        format!(
            r#"<td>{name}</td><td class="n">{}</td><td class="n">{scans}</td>"#,
            if name == "liver" { 2 } else { 1 }
        )
    };
    assert!(page.contains(&row("gall bladder", "none or too few")), "{page}");
    assert!(page.contains(&row("liver", "too few")), "{page}");
}

#[test]
fn the_report_says_how_updates_were_averaged_and_what_each_site_contributed() {
    let mut data = sample();
    let shares = [("site-a", 0.4, 12.25), ("site-b", 0.4, 0.0), ("site-c", 0.2, 0.0004)];
    data.rounds[7].contributions =
        shares.map(|(site, share, norm)| Contribution { site: site.parse().unwrap(), share, norm }).to_vec();
    (data.study.strategy, data.study.steps_per_round) = (Some("fedavg".to_owned()), Some(40));
    let page = data.to_html().unwrap();
    for words in [
        "<dt>strategy</dt><dd>fedavg, of 40 steps a round at each site</dd>",
        r#"<td class="wrap">site-a 40.0 %, norm 12.25; site-b 40.0 %, norm 0.00; site-c 20.0 %, norm 4.0e-4</td>"#,
        // Rounds of an older version.
        r#"<td class="wrap">site-a, site-b, site-c</td>"#,
        "<p>Beside each site its share of the average",
    ] {
        assert!(page.contains(words), "{words}\n{page}");
    }
    assert!(!sample().to_html().unwrap().contains("Beside each site its share"));

    let json = serde_json::to_value(&data).unwrap();
    assert_eq!(json["study"]["strategy"], "fedavg");
    assert_eq!(json["study"]["steps_per_round"], 40);
    let third = &json["rounds"][7]["contributions"][2];
    assert_eq!(*third, serde_json::json!({ "site": "site-c", "share": 0.2, "norm": 0.0004 }));
}

#[test]
fn names_are_escaped() {
    let mut data = sample();
    data.study.name = "<b>&".to_owned();
    data.classes[0].name = "\"><script>".to_owned();
    let page = data.to_html().unwrap();
    assert!(!page.contains("<script") && !page.contains("<b>&\""));
}

#[test]
fn a_study_without_any_result_still_has_a_page() {
    let data = ReportData {
        sites: vec![],
        coverage: vec![],
        scores: vec![],
        losses: vec![],
        rounds: vec![],
        classes: vec![],
        ..sample()
    };
    assert!(data.to_html().unwrap().contains("No evaluator has reported yet"));
}

#[test]
fn the_json_reads_back() {
    let dir = tempfile::tempdir().unwrap();
    let page = sample().write(dir.path()).unwrap();
    assert!(page.ends_with("report.html"));
    assert!(dir.path().join("report.csv").is_file());
    let mut back: ReportData =
        serde_json::from_slice(&std::fs::read(dir.path().join("report.json")).unwrap()).unwrap();
    assert_eq!(back.board.take(), Some(sample().board()));
    assert_eq!(serde_json::to_value(back).unwrap(), serde_json::to_value(sample()).unwrap());
}

#[test]
fn headline_means_leave_lesions_out() {
    let data = sample();
    let last = data.final_scores()[0];
    assert_eq!(last.round, RoundId(8));
    assert!(data.mean_dice(last, false).unwrap() > 0.75);
    assert!(data.mean_dice(last, true).unwrap() < 0.65);
}

#[test]
fn headline_means_leave_out_what_no_trainer_annotates() {
    let mut data = sample();
    let before = data.mean_dice(data.final_scores()[0], false).unwrap();
    let dropped = data.coverage[0].class;
    data.coverage.retain(|cell| cell.class != dropped);
    assert!(!data.is_trained(dropped));
    let last = data.final_scores()[0];
    let of_others: Vec<f64> = last
        .classes
        .iter()
        .filter(|s| s.class != dropped && data.classes.iter().any(|c| c.class == s.class && !c.lesion))
        .filter_map(|s| s.mean_dice)
        .collect();
    let expected = of_others.iter().sum::<f64>() / of_others.len() as f64;
    assert_ne!(before, expected);
    assert!((data.mean_dice(last, false).unwrap() - expected).abs() < 1e-12);
}
