//! Doing what the operator asks. Works without a server too: then nobody is connected, and the next start goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::coverage::Coverage;
use common::evaluation;
use common::ids::{ClassId, ModelHash, Role, RoundId, SiteId, StudyDigest};
use common::round::{self, Answer, SiteShortage};
use common::study::{Study, StudyDraft};
use common::taxonomy::Taxonomy;
use common::wire::{Notice, Words};

use super::study_run::{Happening, StudyRun, TickError};
use super::{Driver, added, facts};
use crate::export::export_safetensors;
use crate::import::{import_safetensors, note};
use crate::operator::{Order, Reply, Request, SiteLine, Status, StudyLine, UnreadableStudy, gather, losses};
use crate::pki::{Invite, Token};
use crate::progress::Line;
use crate::report::{ReportData, Selected};
use crate::store::{self, InviteTerms, SiteRecord, SiteStatus, StoreError, StoredStudy};
use crate::{clock, error_report, files};

/// Longest note of a file that is shown.
const SHOWN_NOTE: usize = 100;

/// What went wrong, in words for the operator.
pub(super) struct Failure {
    words: String,
    hint: Option<String>,
}

impl Failure {
    pub(super) fn new(words: impl Into<String>, hint: &'static str) -> Self {
        Self { words: words.into(), hint: Some(hint.to_owned()) }
    }
}

impl<E: std::error::Error + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        let mut words = error.to_string();
        let mut hint = error_report::hint(&error);
        let mut source = error.source();
        while let Some(cause) = source {
            words.push_str(&format!("\n  caused by: {cause}"));
            hint = hint.or_else(|| error_report::hint(cause));
            source = cause.source();
        }
        Self { words, hint }
    }
}

impl Driver {
    /// Does what the operator asks, without a server.
    pub async fn operate_offline(mut self, request: Request) -> Reply {
        self.operate(request).await
    }

    pub(super) async fn operate(&mut self, request: Request) -> Reply {
        let done = match request {
            Request::Status => self.status().await.map(Reply::Status),
            Request::Invite { site, role, hours } => self.invite(site, role, hours).await,
            Request::Revoke { site } => self.revoke(site).await,
            Request::AddStudy { file, model, embeddings, taxonomy } => {
                self.add_study(&file, &model, &embeddings, taxonomy.as_deref()).await
            }
            Request::ShowStudy { study } => self.show_study(&study).await,
            Request::Control { study, order } => self.control(&study, order).await,
            Request::Pause { study, reason } => self.pause_for(&study, &reason).await,
            Request::Promote { study, round } => self.promote(&study, round.map(RoundId)).await,
            Request::Export { study, round, out } => self.export(&study, round.map(RoundId), out).await,
            Request::AddArtifact { copy } => self.add_artifact(copy).await,
            Request::Report { study, out } => self.report(study.as_deref(), &out).await,
        };
        done.unwrap_or_else(|Failure { words, hint }| Reply::failed(words, hint.as_deref()))
    }

    async fn status(&mut self) -> Result<Status, Failure> {
        let addresses = self.peers.addresses();
        let line = |record: SiteRecord| SiteLine {
            connected: addresses.get(&record.site).cloned(),
            site: record.site,
            role: record.role,
            status: record.status.to_string(),
            certificate_until: record.certificate_until.map(clock::rfc3339),
        };
        let mut studies = Vec::new();
        for stored in self.store.studies().await? {
            if let Some(run) = self.studies.get(&stored.digest) {
                studies.push(self.study_line(run).await?);
            }
        }
        let (fault, fault_detail) = self.fault().unzip();
        Ok(Status {
            consortium: self.authority.consortium().to_owned(),
            running: self.serving,
            address: self.address.clone(),
            fault: fault.map(str::to_owned),
            fault_detail: fault_detail.flatten(),
            sites: self.store.sites().await?.into_iter().map(line).collect(),
            studies,
            unreadable: self.unreadable.values().cloned().collect(),
        })
    }

    async fn show_study(&self, study: &str) -> Result<Reply, Failure> {
        let run = self.studies.get(&self.find(study)?).ok_or_else(no_study)?;
        let document = str::from_utf8(run.document.bytes())?.to_owned();
        Ok(Reply::Study { line: self.study_line(run).await?, document })
    }

    async fn study_line(&self, run: &StudyRun) -> Result<StudyLine, StoreError> {
        let status = run.rounds.status();
        let known = self.store.sites().await?;
        let trains = |site: &&SiteRecord| site.role == Role::Trainer && site.status == SiteStatus::Active;
        let trainers: BTreeSet<SiteId> = known.iter().filter(trains).map(|site| site.site.clone()).collect();
        let mut manifests = self.manifests(&run.digest()).await?;
        // In a study that is over, what a site has contributed stays when it leaves.
        if !run.rounds.is_over_for(Role::Trainer) {
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
            left_out: run.document.study().participants.leave_out.clone(),
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

    async fn invite(&mut self, site: SiteId, role: Role, hours: u32) -> Result<Reply, Failure> {
        let coordinator = self.address.clone().ok_or_else(|| {
            Failure::new(
                "no address to write into the invite",
                "set `address` in coordinator.toml to what sites dial, such as `federation.example.org:443`, and start the coordinator anew",
            )
        })?;
        if let Some(known) = self.store.site(&site).await?
            && known.status == SiteStatus::Active
            && known.role != role
        {
            return Err(Failure::new(
                format!("`{site}` takes part as {}, and a site has one role", known.role),
                "invite it under another name; to give this one up first: `coordinator revoke SITE`",
            ));
        }
        let (token, now) = (Token::random(), clock::now());
        let expires = now.after(Duration::from_secs(u64::from(hours) * 3600));
        let terms = InviteTerms { site: site.clone(), role };
        self.store.add_invite(token.hash(), &terms, now, expires).await?;
        let invite = Invite {
            consortium: self.authority.consortium().to_owned(),
            coordinator,
            root_sha256: data_encoding::HEXLOWER.encode(&self.authority.root_fingerprint()),
            site,
            role,
            expires: clock::rfc3339(expires),
            token: token.to_text(),
        };
        Ok(Reply::Invite { text: invite.to_toml()? })
    }

    async fn revoke(&mut self, site: SiteId) -> Result<Reply, Failure> {
        if !self.store.revoke_site(&site, clock::now()).await? {
            return Err(Failure::new(
                format!("no site is called `{site}`"),
                "`coordinator sites` lists them",
            ));
        }
        self.progress.say(&Line::Revoked { site: site.clone() });
        // The disconnection that follows tells the machines.
        self.seats.end_all(&site);
        self.expect_sites().await;
        let mut words = format!("{site} is revoked: its certificates no longer count");
        for run in self.studies.values().filter(|run| run.rounds.counted().contains_key(&site)) {
            let (name, round) = (&run.document.study().name, run.rounds.status().round);
            words.push_str(&format!("; its update of round {round} of `{name}` counts already, and stays"));
        }
        Ok(Reply::Done { words })
    }

    async fn add_study(
        &mut self,
        file: &Path,
        model: &Path,
        embeddings: &Path,
        taxonomy: Option<&Path>,
    ) -> Result<Reply, Failure> {
        let taxonomy = match taxonomy {
            Some(file) => Taxonomy::parse(&file.display().to_string(), &read_text(file)?)?,
            None => Taxonomy::standard(),
        };
        let text = read_text(file)?;
        let draft = StudyDraft::parse(&file.display().to_string(), &text, &taxonomy)?;
        let model = self.import(model).await?;
        let table = self.import(embeddings).await?;
        let document = draft.into_document(taxonomy, &model, &table)?;
        let (digest, name) = (document.digest(), document.study().name.clone());
        // One that is here is added again to bring its files back, whatever it says of them.
        if !self.studies.contains_key(&digest) {
            check_kind(file, document.study(), embeddings)?;
        }
        let stored =
            StoredStudy { digest, name, document: document.bytes().to_vec(), added_at: clock::now() };
        self.store.add_study(&stored).await?;
        let known = self.studies.get(&digest).map(|run| run.rounds.status().phase);
        let remark = known.map_or(Ok(None), |phase| added::again(&document.study().name, phase))?;
        if !self.studies.contains_key(&digest) {
            let run = StudyRun::restore(&self.store, stored).await?;
            let name = run.document.study().name.as_str().into();
            self.studies.insert(digest, run);
            self.expect_sites().await;
            self.peers.tell_all(&Notice::StudyOffered { study: digest, name });
        }
        Ok(Reply::Added { study: digest.to_string(), remark })
    }

    async fn import(&self, path: &Path) -> Result<common::artifact::ArtifactManifest, Failure> {
        let (artifacts, path) = (self.store.artifacts().clone(), path.to_owned());
        Ok(tokio::task::spawn_blocking(move || import_safetensors(&path, &artifacts)).await??)
    }

    async fn control(&mut self, study: &str, order: Order) -> Result<Reply, Failure> {
        let digest = self.find(study)?;
        let event = match order {
            Order::Start => round::Event::Start,
            Order::Pause => round::Event::Pause,
            Order::Resume => round::Event::Resume,
            Order::Abort => round::Event::Abort,
        };
        self.steer(digest, event, order).await
    }

    /// Pauses a study with words for its sites.
    async fn pause_for(&mut self, study: &str, reason: &str) -> Result<Reply, Failure> {
        let digest = self.find(study)?;
        // As the sites will read them: without control characters, and not too long.
        let words = Words::new(reason).as_str().to_owned();
        self.steer(digest, round::Event::PauseFor { words }, Order::Pause).await
    }

    async fn steer(
        &mut self,
        digest: StudyDigest,
        event: round::Event,
        order: Order,
    ) -> Result<Reply, Failure> {
        self.take_order(digest, Happening::Round(event)).await?;
        let run = self.studies.get(&digest).ok_or_else(no_study)?;
        let (status, study) = (run.rounds.status(), run.document.study());
        let mut words = control_words(order, &status, study.quorum.sites);
        if order == Order::Start {
            let warnings = names_of_nobody(study, &self.store.sites().await?);
            warnings.iter().for_each(|warning| words.push_str(&format!("\nwarning: {warning}")));
        }
        Ok(Reply::Done { words })
    }

    async fn take_order(&mut self, study: StudyDigest, happening: Happening) -> Result<(), Failure> {
        match self.try_take(study, happening).await {
            Ok(()) => Ok(()),
            Err(TickError::Store(error)) => Err(error.into()),
            Err(TickError::Command(error)) => {
                Err(Failure::new(error.to_string(), "`coordinator status` shows how the study stands"))
            }
        }
    }

    /// Has the sealed sites score a model: that of `round`, or the one that the validation sites scored best.
    async fn promote(&mut self, study: &str, round: Option<RoundId>) -> Result<Reply, Failure> {
        let digest = self.find(study)?;
        let data = self.gathered(&digest).await?;
        let sealed = &data.study.sealed;
        if sealed.is_empty() {
            return Err(Failure::new(
                "the study seals no test site",
                "a study names them in its section [evaluation]: test = [\"site\"]",
            ));
        }
        let (round, model, chosen) = match round {
            Some(round) => (round, model_of(&data, round)?, "by the operator".to_owned()),
            None => {
                let best = choice_of_all(&data)?;
                (best.round, best.model, format!("by validation: mean Dice {:.3}", best.mean_dice))
            }
        };
        let promoted = evaluation::Event::Promoted { round, model };
        self.take_order(digest, Happening::Evaluation(promoted)).await?;
        let sites: Vec<String> = sealed.iter().map(SiteId::to_string).collect();
        let words = format!(
            "promoted the model of round {round}, chosen {chosen}; to score it: {}",
            sites.join(", ")
        );
        Ok(Reply::Done { words })
    }

    /// Writes a global model to the file `out`.
    async fn export(&mut self, study: &str, round: Option<RoundId>, out: PathBuf) -> Result<Reply, Failure> {
        let digest = self.find(study)?;
        let run = self.studies.get(&digest).ok_or_else(no_study)?;
        let (status, study) = (run.rounds.status(), run.document.study());
        let (name, initial) = (study.name.clone(), study.initial_model);
        let (round, model) = match round {
            None => (status.model_round, status.model),
            Some(round @ RoundId(0)) => (round, initial),
            Some(round) => (round, model_of(&self.gathered(&digest).await?, round)?),
        };
        let artifacts = self.store.artifacts().clone();
        let note = format!("model {model} of round {round} of the study `{name}`, {digest}");
        let written = tokio::task::spawn_blocking(move || {
            let artifact = artifacts.read(&model)?;
            let artifact =
                artifact.ok_or_else(|| StoreError::corrupt("artifact", format!("model {model} is gone")))?;
            export_safetensors(&artifact, &note, &out).map(|()| out)
        });
        let out = written.await??;
        Ok(Reply::Done { words: format!("{}: the model of round {round} of `{name}`", out.display()) })
    }

    async fn report(&mut self, study: Option<&str>, out: &Path) -> Result<Reply, Failure> {
        let digest = match study {
            Some(study) => self.find(study)?,
            None => {
                let studies = self.store.studies().await?;
                self.find(&studies.last().ok_or_else(no_study)?.digest.to_string())?
            }
        };
        let data = self.gathered(&digest).await?;
        let data = ReportData { losses: losses(&self.store, &digest).await?, ..data };
        files::create_private_dir(out)
            .map_err(|e| Failure { words: format!("{}: {e}", out.display()), hint: None })?;
        Ok(Reply::Report { page: data.write(out)? })
    }

    /// The report but its losses, which the report alone needs.
    async fn gathered(&mut self, study: &StudyDigest) -> Result<ReportData, Failure> {
        // Fails only with the runtime, at the end.
        let _ = self.count_traffic().await;
        let run = self.studies.get(study).ok_or_else(no_study)?;
        let manifests = self.manifests(study).await?;
        Ok(gather(&self.store, self.authority.consortium(), &run.document, &run.rounds, &manifests).await?)
    }

    /// What the study calls a class.
    pub(super) fn class_name(&self, study: StudyDigest, class: ClassId) -> String {
        let run = self.studies.get(&study);
        run.map_or_else(|| format!("class {class}"), |run| run.document.study().taxonomy.name(class))
    }

    /// The one study that `text` means.
    fn find(&self, text: &str) -> Result<StudyDigest, Failure> {
        let is_meant =
            |name: &str, digest: &str| name == text || (text.len() >= 4 && digest.starts_with(text));
        let means = |run: &&StudyRun| is_meant(&run.document.study().name, &run.digest().to_string());
        let found: Vec<StudyDigest> = self.studies.values().filter(means).map(StudyRun::digest).collect();
        let unreadable = self.unreadable.values().find(|study| is_meant(&study.name, &study.digest));
        match (&found[..], unreadable) {
            ([digest], _) => Ok(*digest),
            ([], Some(UnreadableStudy { name, why, .. })) => Err(Failure::new(
                format!("the study `{name}` cannot be read: {why}"),
                "`coordinator doctor` says what to do",
            )),
            ([], None) => Err(Failure::new(
                format!("no study is called `{text}`"),
                "`coordinator study list` shows them",
            )),
            _ => Err(Failure::new(
                format!("several studies are called `{text}`"),
                "give the first digits of a digest: `coordinator study list` shows them",
            )),
        }
    }
}

/// What an order has led to.
fn control_words(order: Order, status: &round::Status, quorum: u32) -> String {
    let ready = status.ready.len();
    match order {
        Order::Start if ready < quorum as usize => {
            format!("started; the first round opens when {quorum} sites are ready, {ready} are")
        }
        Order::Start if !status.classes_short.is_empty() => {
            "started; the first round waits for sites of some classes: `coordinator status` names them"
                .to_owned()
        }
        Order::Start => "started".to_owned(),
        Order::Pause => "pausing: what is under way is finished, nothing new begins".to_owned(),
        Order::Resume => format!("resumed at round {} of {}", status.round.0, status.rounds),
        Order::Abort => format!("ended after round {}; model {} stands", status.round.0, status.model),
    }
}

/// Sites that a study names and that nobody is called, or who is of another role: a slip in `test` leaves a site unsealed.
fn names_of_nobody(study: &Study, known: &[SiteRecord]) -> Vec<String> {
    let gate = study.evaluation.gate.as_ref().map(|gate| gate.evaluators.as_slice()).unwrap_or_default();
    let named = [
        ("evaluation.test", study.evaluation.test.as_slice(), Role::Evaluator),
        ("evaluation.gate", gate, Role::Evaluator),
        ("participants.leave_out", study.participants.leave_out.as_slice(), Role::Trainer),
    ];
    let is_known =
        |name: &SiteId, role: Role| known.iter().any(|site| site.site == *name && site.role == role);
    let mut warnings = Vec::new();
    for (key, names, role) in named {
        let unknown = names.iter().filter(|name| !is_known(name, role));
        warnings.extend(unknown.map(|name| format!("`{key}` names `{name}`, and no {role} is called that")));
    }
    warnings
}

fn model_of(data: &ReportData, round: RoundId) -> Result<ModelHash, Failure> {
    let made = data.rounds.iter().find(|summary| summary.round == round).and_then(|summary| summary.model);
    made.ok_or_else(|| {
        Failure::new(format!("round {round} made no model"), "`coordinator report` lists the rounds")
    })
}

/// The model that validation chooses, where nothing newer is passed over: a sealed site's look cannot be taken back.
fn choice_of_all(data: &ReportData) -> Result<Selected, Failure> {
    let selection = data.selection();
    let failure = |words, hint| Err(Failure { words, hint: Some(hint) });
    match (selection.best, selection.newer_unscored()) {
        (Some(best), None) => Ok(best),
        (Some(best), Some(unscored)) => failure(
            format!("the choice would pass over {unscored}"),
            format!(
                "wait for these, or name a round with --round: of what all have scored, that of round {} is the best. \
                 A site that does not come back has no say once it is revoked",
                best.round
            ),
        ),
        (None, Some(unscored)) => failure(
            format!("each model lacks the report of some validation site: {unscored}"),
            "wait for their reports, or name a round with --round".to_owned(),
        ),
        (None, None) if data.has_validation_site() => failure(
            "no validation site has scored a model yet".to_owned(),
            "wait for their reports, or name a round with --round".to_owned(),
        ),
        (None, None) => failure(
            "there is no validation site to choose a model: every evaluator is sealed, or has left"
                .to_owned(),
            "name a round with --round: `coordinator report` lists them".to_owned(),
        ),
    }
}

/// The kind of the embeddings is pinned and reported: it must be what their file says, if that says anything.
fn check_kind(file: &Path, study: &Study, embeddings: &Path) -> Result<(), Failure> {
    let (kind, made) = (&study.embeddings.kind, note(embeddings)?);
    let Some(made) = made.filter(|made| !kind.agrees_with(made)) else { return Ok(()) };
    let one_line: String = made.chars().filter(|c| !c.is_control()).take(SHOWN_NOTE).collect();
    let (file, embeddings) = (file.display(), embeddings.display());
    Err(Failure::new(
        format!("{file}: `embeddings.kind`: `{kind}`, and {embeddings} was made as `{one_line}`"),
        "write the kind that the file has (`one-hot`, `few-hot`, else `imported:NAME`), or name the embeddings that are meant",
    ))
}

fn read_text(file: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(file)
        .map_err(|e| Failure::new(format!("{}: {e}", file.display()), error_report::READS_AS_ITS_USER))
}

fn no_study() -> Failure {
    Failure::new("there is no study", "add one with `coordinator study add`")
}

/// What a study waits for, as it continues "waits for"; of a gate, whose reports.
fn waits_for(status: &round::Status, gate: &BTreeSet<SiteId>) -> Option<String> {
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

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use common::ids::Digest;
    use common::study::EMBEDDING_TENSOR;
    use common::testing::{EXAMPLE_STUDY, example_study_with};
    use safetensors::tensor::TensorView;

    use super::*;
    use crate::driver::lost::tests::driver;
    use crate::fixture::{Fixture, NOW, site};
    use crate::pki::Serial;
    use crate::report::SiteSummary;
    use crate::report::tests::{add_site, sample};
    use crate::store::{RoundRecord, Store};

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
        let Reply::Failed { words, hint } = pause("old").await else { panic!("it stands still") };
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
        assert_eq!(
            driver.operate(add(&known)).await,
            Reply::Added { study, remark: None },
            "it is here already"
        );
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
        let line = async |driver: &Driver| driver.study_line(&driver.studies[&digest]).await.unwrap();
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
            choice_of_all(data)
                .map(|best| best.round.0)
                .map_err(|failure| (failure.words, failure.hint.unwrap()))
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
}
