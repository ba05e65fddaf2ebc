//! Everything the report says, out of the store.

use std::collections::{BTreeMap, BTreeSet};

use common::aggregate;
use common::ids::{ClassId, ModelHash, Role, RoundId, SiteId, StudyDigest};
use common::manifest::LabelManifest;
use common::report::{ClassReport, EvaluationReport, METRIC_VERSION};
use common::round::{self, RoundMachine, RoundPlan};
use common::signed::SignedDocument;
use common::study::StudyDocument;
use common::taxonomy::{ClassKind, Taxonomy};

use crate::clock;
use crate::report::{
    ClassScore, ClassSummary, Contribution, CoverageCell, FORMAT, LossSeries, ModelScores, ReportData,
    RoundSummary, SiteSummary, StudySummary,
};
use crate::store::{LossMean, RoundRecord, SiteRecord, SiteStatus, Store, StoreError, StoredReport};

/// Gathers the report of one study, without its [`losses`].
pub(crate) async fn gather(
    store: &Store,
    consortium: &str,
    document: &StudyDocument,
    machine: &RoundMachine,
    manifests: &[LabelManifest],
) -> Result<ReportData, StoreError> {
    let digest = document.digest();
    let taxonomy = &document.study().taxonomy;
    let rounds = store.rounds(&digest).await?;
    let mut contributions = store.contributions(&digest).await?;
    let summary = |record: &RoundRecord| {
        let contributions = contributions.remove(&record.round).unwrap_or_default();
        round_summary(record, contributions, machine.plan())
    };
    let summaries = rounds.iter().map(summary).collect();
    let reports = store.reports(&digest).await?;
    let reports = reports.iter().map(read_report).collect::<Result<Vec<_>, _>>()?;
    let made_in = made_in(document.study().initial_model, &rounds);
    let scores: Vec<ModelScores> = reports.iter().map(|report| model_scores(report, &made_in)).collect();
    let coverage = coverage(manifests);
    Ok(ReportData {
        format: FORMAT,
        generated_at: clock::rfc3339(clock::now()),
        consortium: consortium.to_owned(),
        study: study_summary(document, &machine.status(), &rounds),
        classes: classes(taxonomy, &coverage, &scores),
        sites: sites(store, manifests).await?,
        coverage,
        scores: by_round(scores),
        losses: Vec::new(),
        rounds: summaries,
        board: None,
        overlays: Vec::new(),
    })
}

/// The losses of one study. They take a while where there are many.
pub(crate) async fn losses(store: &Store, study: &StudyDigest) -> Result<Vec<LossSeries>, StoreError> {
    let mut series: BTreeMap<SiteId, Vec<(f64, f64)>> = BTreeMap::new();
    for LossMean { site, done, loss } in store.losses(study).await? {
        series.entry(site).or_default().push((done, loss));
    }
    Ok(series.into_iter().map(|(site, points)| LossSeries { site, points }).collect())
}

fn study_summary(document: &StudyDocument, status: &round::Status, rounds: &[RoundRecord]) -> StudySummary {
    let study = document.study();
    let weights = serde_json::to_value(study.aggregation.weights).ok();
    let committed = rounds.iter().filter(|round| round.model.is_some()).count();
    StudySummary {
        name: study.name.clone(),
        digest: document.digest(),
        taxonomy: study.taxonomy.digest(),
        state: status.paused.map_or(status.phase.to_owned(), |_| format!("paused, {}", status.phase)),
        rounds: study.rounds,
        rounds_committed: u32::try_from(committed).unwrap_or(u32::MAX),
        seed: study.seed,
        embedding: study.embeddings.kind.to_string(),
        weights: weights.and_then(|w| w.as_str().map(str::to_owned)).unwrap_or_default(),
        strategy: Some(study.aggregation.strategy.name().to_owned()),
        steps_per_round: Some(study.training.steps_per_round),
        metric_version: METRIC_VERSION,
        model: status.model,
        sealed: study.evaluation.test.clone(),
    }
}

fn classes(taxonomy: &Taxonomy, coverage: &[CoverageCell], scores: &[ModelScores]) -> Vec<ClassSummary> {
    let annotated = coverage.iter().map(|cell| cell.class);
    let scored = scores.iter().flat_map(|scores| scores.classes.iter().map(|score| score.class));
    let seen: BTreeSet<ClassId> = annotated.chain(scored).collect();
    let summary = |class: ClassId| ClassSummary {
        class,
        name: taxonomy.name(class).replace('_', " "),
        lesion: taxonomy.class(class).is_some_and(|class| class.kind != ClassKind::Organ),
    };
    seen.into_iter().map(summary).collect()
}

async fn sites(store: &Store, manifests: &[LabelManifest]) -> Result<Vec<SiteSummary>, StoreError> {
    let traffic: BTreeMap<SiteId, _> =
        store.traffic().await?.into_iter().map(|traffic| (traffic.site.clone(), traffic)).collect();
    let summary = |record: SiteRecord| {
        let trains = record.role == Role::Trainer;
        let manifest = manifests.iter().find(|manifest| manifest.site == record.site).filter(|_| trains);
        let datasets = manifest.into_iter().flat_map(|manifest| &manifest.datasets);
        let moved = traffic.get(&record.site);
        SiteSummary {
            volumes: manifest.map(|manifest| manifest.volumes),
            datasets: datasets.map(|dataset| dataset.name.clone()).collect(),
            bytes_sent: moved.map_or(0, |traffic| traffic.received),
            bytes_received: moved.map_or(0, |traffic| traffic.sent),
            site: record.site,
            role: record.role,
            revoked: record.status == SiteStatus::Revoked,
        }
    };
    Ok(store.sites().await?.into_iter().map(summary).collect())
}

fn coverage(manifests: &[LabelManifest]) -> Vec<CoverageCell> {
    let cells = |manifest: &LabelManifest| {
        let site = manifest.site.clone();
        let cell = move |count: &common::manifest::ClassCount| CoverageCell {
            site: site.clone(),
            class: count.class,
            annotated: count.annotated,
            present: count.present,
            pseudo: count.pseudo,
        };
        manifest.classes.iter().map(cell).collect::<Vec<_>>()
    };
    manifests.iter().flat_map(cells).collect()
}

fn read_report(stored: &StoredReport) -> Result<EvaluationReport, StoreError> {
    EvaluationReport::from_bytes(&stored.document).map_err(|e| StoreError::corrupt("report", e))
}

/// The round that made each model, the first of several.
fn made_in(initial: ModelHash, rounds: &[RoundRecord]) -> BTreeMap<ModelHash, RoundId> {
    let made = rounds.iter().rev().filter_map(|record| Some((record.model?, record.round)));
    made.chain([(initial, RoundId(0))]).collect()
}

/// The round is ours to know: reports that were kept before it was checked may say another.
fn model_scores(report: &EvaluationReport, made_in: &BTreeMap<ModelHash, RoundId>) -> ModelScores {
    let subject = &report.subject;
    ModelScores {
        site: subject.site.clone(),
        round: made_in.get(&subject.model).copied().unwrap_or(subject.round),
        model: subject.model,
        classes: report.classes.iter().map(class_score).collect(),
    }
}

fn class_score(report: &ClassReport) -> ClassScore {
    let present = report.present.as_ref();
    let absent = report.absent.as_ref();
    ClassScore {
        class: report.class,
        n: present.map(|p| p.n),
        mean_dice: present.map(|p| p.mean_dice),
        interval: present.map(|p| [p.ci_low, p.ci_high]),
        mean_nsd: present.map(|p| p.mean_nsd),
        tau_mm: Some(report.tau_mm),
        n_absent: absent.map(|a| a.n),
        false_positive_ml: absent.map(|a| a.false_positive_volume_ml),
    }
}

fn by_round(mut scores: Vec<ModelScores>) -> Vec<ModelScores> {
    let key = |scores: &ModelScores| -> (RoundId, SiteId, ModelHash) {
        (scores.round, scores.site.clone(), scores.model)
    };
    scores.sort_by_key(key);
    scores
}

fn round_summary(
    record: &RoundRecord,
    contributions: Vec<aggregate::Contribution>,
    plan: &RoundPlan,
) -> RoundSummary {
    let contribution = |aggregate::Contribution { site, share, norm }| Contribution { site, share, norm };
    // A model that never counted is nobody's.
    let counted = contributions.into_iter().filter(|_| record.model.is_some());
    let seconds = record.closed_at.map(|closed| closed.since(record.opened_at).as_secs_f64());
    RoundSummary {
        round: record.round,
        outcome: record.outcome.clone().unwrap_or_else(|| "open".to_owned()),
        seconds,
        sites: record.sites.clone(),
        model: record.model,
        contributions: counted.map(contribution).collect(),
        evaluated: plan.evaluates(record.round),
    }
}

#[cfg(test)]
mod tests {
    use common::ids::{ArtifactHash, Digest, TaxonomyDigest};
    use common::manifest::CaseLabels;
    use common::report::ReportSubject;
    use common::testing::example_study;

    use super::*;
    use crate::driver::counts;
    use crate::fixture::{NOW, site};

    /// Shares of sites are made of [`counts`] alone.
    #[test]
    fn shares_do_not_follow_from_what_scans_show() {
        let class = ClassId::new(27).unwrap();
        let (annotated, nothing) = (BTreeSet::from([class]), BTreeSet::new());
        let patients: Vec<String> = (0..12).map(|patient: u32| patient.to_string()).collect();
        let manifest = |showing: usize| {
            let cases = patients.iter().enumerate().map(|(index, patient)| CaseLabels {
                dataset: "lits",
                patient,
                annotated: &annotated,
                present: if index < showing { &annotated } else { &nothing },
                pseudo: false,
            });
            LabelManifest::count(site(), TaxonomyDigest(Digest::of(b"taxonomy")), cases, 5)
        };
        let told = |showing| manifest(showing).count_of(class).unwrap().present;
        assert_eq!((told(6), told(2)), (Some(6), None), "two of twelve are kept back");
        assert_eq!(counts(&manifest(6)), counts(&manifest(2)));
    }

    #[test]
    fn scores_stand_under_the_round_that_made_their_model_whatever_a_site_says() {
        let document = example_study();
        let initial = document.study().initial_model;
        let model = |name: &str| ArtifactHash(Digest::of(name.as_bytes()));
        let record = |round, name| RoundRecord {
            round: RoundId(round),
            opened_at: NOW,
            closed_at: None,
            outcome: None,
            model: Some(model(name)),
            sites: Vec::new(),
        };
        // The second round changed nothing.
        let made_in = made_in(initial, &[record(1, "a"), record(2, "a"), record(3, "b")]);
        let round = |model| {
            let subject = ReportSubject {
                site: site(),
                model,
                round: RoundId(u32::MAX),
                study: document.digest(),
                taxonomy: document.study().taxonomy.digest(),
            };
            let report = EvaluationReport::summarise(subject, &[], |_| 1.0, 1, 7);
            model_scores(&report, &made_in).round.0
        };
        assert_eq!([initial, model("a"), model("b"), model("c")].map(round), [0, 1, 3, u32::MAX]);
    }
}
