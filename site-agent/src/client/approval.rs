//! Whether this site takes part in a study: the policy decides or leaves it to a person, and a study that is not here is fetched first.

use common::ids::{ModelHash, StudyDigest};
use common::participant::{Action, Event};
use common::study::{Study, StudyDocument};
use link::LinkError;

use super::driver::{Agent, Errand, News};
use super::site_work::needed_artifacts;
use super::studies::{Decision, terms_of};
use super::waiting::{Came, Wait};
use super::{errands, files};
use crate::egress::Verdict;

impl Agent {
    /// Has the study decided about, and its document here before that.
    pub(super) fn ask_approval(&mut self, study: StudyDigest) -> anyhow::Result<Option<Event>> {
        if self.studies.document(study)?.is_some() {
            return self.judge(study);
        }
        self.fetch_study(study);
        Ok(None)
    }

    /// Has a study document here, for the first time or because the disk lost it; then it is judged.
    pub(super) fn fetch_study(&mut self, study: StudyDigest) {
        let (studies, news) = (self.studies.clone(), self.news.clone());
        let again = Action::AskApproval { study };
        self.begin(Errand::Study(study), &again, move |connection, _| async move {
            match errands::fetch_study(&connection, &studies, study).await {
                Ok(_) => drop(news.send(News::StudyHere(study)).await),
                Err(error) if files::disk_trouble(&error).is_some() => {
                    let what = format!("study {}", study.short());
                    return Came::Waits(Box::new(Wait::for_room(&what, &error, studies.path(), 0)));
                }
                Err(error) if error.downcast_ref::<LinkError>().is_some_and(LinkError::is_transient) => {
                    return Came::Waits(Box::new(Wait::again(format!("study {}: {error}", study.short()))));
                }
                Err(error) => tracing::warn!("study {}: {error:#}", study.short()),
            }
            Came::Nothing
        });
    }

    /// Asks the decisions so far, then the policy; without an answer a person has to decide.
    pub(super) fn judge(&mut self, study: StudyDigest) -> anyhow::Result<Option<Event>> {
        if let Some(event) = self.decided(study)? {
            return Ok(Some(event));
        }
        let Some(document) = self.studies.document(study)? else { return Ok(None) };
        match self.verdict(&document) {
            Verdict::Approved => self.decided(study),
            Verdict::Refused(refusal) => {
                tracing::error!("study `{}` is refused by the policy: {refusal}", document.study().name);
                Ok(Some(Event::StudyRefused { study }))
            }
            Verdict::Ask => {
                let short = study.short();
                tracing::warn!(
                    "study `{}` waits for you: `site-agent study show {short}`, then `site-agent study approve {short}`",
                    document.study().name
                );
                Ok(None)
            }
        }
    }

    /// What the operator or the policy decided, as an event; `None` while nobody did.
    pub(super) fn decided(&mut self, study: StudyDigest) -> anyhow::Result<Option<Event>> {
        let Some(document) = self.studies.document(study)? else { return Ok(None) };
        let name = &document.study().name;
        let admitted = document.study().admit(&self.site, self.role);
        let mut decision = self.studies.decision(study)?;
        let verdict = self.verdict(&document);
        if decision.is_none() && admitted.is_ok() && matches!(verdict, Verdict::Approved) {
            decision = Some(self.studies.decide(study, true, "policy")?);
            tracing::info!("study `{name}` is approved by the policy");
        }
        self.decisions.insert(study, decision.clone());
        // Whatever was decided: nobody would take an update.
        if let Err(left_out) = admitted {
            tracing::info!("study `{name}`: {left_out}");
            return Ok(Some(Event::StudyRefused { study }));
        }
        Ok(match (decision, verdict) {
            // A policy that was tightened since binds the operator too.
            (Some(_), Verdict::Refused(refusal)) => {
                tracing::error!("study `{name}` is refused by the policy: {refusal}");
                Some(Event::StudyRefused { study })
            }
            (Some(Decision { approved: false, by, .. }), _) => {
                tracing::info!("study `{name}` is refused by the {by}");
                Some(Event::StudyRefused { study })
            }
            (Some(_), _) => Some(approved(&document)),
            (None, _) => None,
        })
    }

    /// The policy's. Where the disk lost what was decided, which may have been no, the policy does not say yes in a person's place.
    fn verdict(&mut self, document: &StudyDocument) -> Verdict {
        let study = document.digest();
        let verdict = match self.egress.policy().judge(&terms_of(document, self.role)) {
            Verdict::Approved if self.studies.is_decision_lost(study) => Verdict::Ask,
            verdict => verdict,
        };
        let refusal = match &verdict {
            Verdict::Refused(refusal) if !self.studies.is_over(study) => Some(refusal),
            _ => None,
        };
        self.status.no_part.judged(study, refusal);
        verdict
    }

    /// Refuses a study whose updates would stay here, being too large for the policy: they are as large as the model that training
    /// begins from, which is here by now.
    pub(super) fn refuse_too_large(
        &mut self,
        document: &StudyDocument,
        base: ModelHash,
    ) -> anyhow::Result<Option<Event>> {
        // Gone, it is missed when it is used, and fetched again.
        let Some(model) = self.artifacts.manifest(base)? else { return Ok(None) };
        let (study, Study { name, aggregation, .. }) = (document.digest(), document.study());
        let update = model.layout().in_dtype(aggregation.update_dtype);
        let Err(refusal) = self.egress.permit_update(update.bytes()) else { return Ok(None) };
        tracing::error!("study `{name}` is refused by the policy: {refusal}");
        self.status.no_part.judged(study, Some(&refusal));
        Ok(Some(Event::StudyRefused { study }))
    }
}

fn approved(document: &StudyDocument) -> Event {
    let (needs, takes_late) =
        (needed_artifacts(document.study()), !document.study().quorum.late.is_refused());
    Event::StudyApproved { study: document.digest(), needs, takes_late }
}
