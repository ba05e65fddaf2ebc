//! Where studies stand, in words for the operator: what each waits for, and what each site says.

use std::collections::{BTreeMap, BTreeSet};

use common::coverage::Coverage;
use common::ids::{Role, SiteId};
use common::round::{self, Answer, SiteShortage};

use super::attendance::members;
use super::manifests::Manifests;
use super::study_run::StudyRun;
use super::{Driver, facts};
use crate::operator::StudyLine;
use crate::store::{self, SiteRecord, StoreError};

impl Driver {
    /// Where a study stands, of the sites that are `known`.
    ///
    /// # Errors
    /// The store.
    pub(super) async fn study_line(
        &self,
        run: &StudyRun,
        known: &[SiteRecord],
    ) -> Result<StudyLine, StoreError> {
        let status = run.rounds.status();
        let trainers = members(known, Role::Trainer);
        let left_out = &run.document.study().participants.leave_out;
        let is_over = run.rounds.is_over_for(Role::Trainer);
        let Manifests { counting: mut manifests, mut refused } = self.manifests(&run.digest()).await?;
        refused.retain(|site, _| !is_over && trainers.contains(site) && !left_out.contains(site));
        // In a study that is over, what a site has contributed stays when it leaves.
        if !is_over {
            manifests.retain(|manifest| trainers.contains(&manifest.site));
        }
        let taxonomy = &run.document.study().taxonomy;
        let mut uncovered =
            Coverage::of(&manifests).uncovered(taxonomy.classes().iter().map(|class| class.id));
        if manifests.is_empty() {
            uncovered.clear();
        }
        let phase = match facts::classes_missing(&status.classes_short, |class| taxonomy.name(class)) {
            Some(classes) => format!("{}, waits for sites that annotate {classes}", status.phase),
            None => status.phase.to_owned(),
        };
        let trouble = self.trouble.as_ref().and_then(|trouble| store::pause_name(trouble.code));
        let state = match (trouble, status.paused) {
            (Some(name), _) => format!("paused: {name}, {phase}"),
            (None, Some(reason)) => {
                format!("{}, {phase}", super::plan::pause_state(reason, status.pause_words.as_deref()))
            }
            (None, None) => phase,
        };
        let mut answers = answers(&status);
        for (site, why) in refused {
            let answer = answers.entry(site).or_insert_with(|| "not asked".to_owned());
            answer.push_str(&format!("; its label manifest does not count: {why}"));
        }
        if self.serving && status.started && status.phase == "waiting" {
            for (site, why) in self.absent(run, &trainers).await? {
                answers.entry(site).or_insert_with(|| why.to_owned());
            }
        }
        Ok(StudyLine {
            name: run.document.study().name.clone(),
            digest: run.digest().to_string(),
            state,
            started: status.started,
            round: status.round.0,
            rounds: status.rounds,
            model: status.model.to_string(),
            waits_for: waits_for(&status, &run.evaluation.gate_waits_for()),
            left_out: left_out.clone(),
            ready: status.ready.into_iter().collect(),
            answers,
            scored_by: run.evaluation.reported(&status.model).into_iter().collect(),
            uncovered: uncovered.into_iter().map(|class| taxonomy.name(class)).collect(),
        })
    }

    /// Of these trainers, why each of those that are not ready for a study is not.
    async fn absent(
        &self,
        run: &StudyRun,
        trainers: &BTreeSet<SiteId>,
    ) -> Result<BTreeMap<SiteId, &'static str>, StoreError> {
        let approved = self.store.approvals(&run.digest()).await?;
        let (ready, left_out) = (run.rounds.status().ready, &run.document.study().participants.leave_out);
        let why = |site: &SiteId| match (self.peers.has(site), approved.contains(site)) {
            (false, _) => "not connected",
            (true, false) => "connected, has not approved the study",
            (true, true) => "connected, has not registered its data",
        };
        let asked = trainers.iter().filter(|site| !left_out.contains(site));
        let absent = asked.filter(|site| !ready.contains(*site));
        Ok(absent.map(|site| (site.clone(), why(site))).collect())
    }
}

/// What a study waits for, as it continues "waits for"; of a gate, whose reports.
pub(super) fn waits_for(status: &round::Status, gate: &BTreeSet<SiteId>) -> Option<String> {
    let short = |what: &str| {
        let SiteShortage { have, need } = status.sites_short?;
        Some(format!("{need} {what}, {have} {} there", if have == 1 { "is" } else { "are" }))
    };
    match status.phase {
        "waiting" if status.started => short("trainers"),
        "quorum-missing" => short("updates"),
        "committed" if !gate.is_empty() => {
            let sites: Vec<&str> = gate.iter().map(SiteId::as_str).collect();
            Some(format!("the reports of {}", sites.join(", ")))
        }
        _ => None,
    }
}

/// What to say of each site: of those that are not asked, why.
fn answers(status: &round::Status) -> BTreeMap<SiteId, String> {
    let excluded = status.excluded.iter().map(|(site, reason)| (site.clone(), format!("excluded: {reason}")));
    let asked = status.answers.iter().map(|(site, answer)| (site.clone(), answer_word(answer).to_owned()));
    let mut answers: BTreeMap<SiteId, String> = excluded.chain(asked).collect();
    for site in &status.late {
        let answer = answers.entry(site.clone()).or_insert_with(|| "not asked".to_owned());
        answer.push_str("; its late update of the round before counts");
    }
    answers
}

fn answer_word(answer: &Answer) -> &'static str {
    match answer {
        Answer::Invited => "asked",
        Answer::Accepted => "training",
        Answer::Silent => "silent",
        Answer::Declined { .. } => "declined",
        Answer::Updated(_) => "updated",
        Answer::Revoked => "revoked",
    }
}
