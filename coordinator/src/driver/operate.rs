//! Doing what the operator asks. Works without a server too: then nobody is connected, and the next start goes on.

use std::path::{Path, PathBuf};
use std::time::Duration;

use common::evaluation;
use common::ids::{ClassId, ModelHash, Role, RoundId, SiteId, StudyDigest};
use common::round;
use common::study::{Study, StudyDocument};
use common::wire::{Notice, Words};
use tokio::sync::oneshot;

use super::beside::{Outcome, StudyFiles, Work, read_study};
use super::study_run::{Happening, StudyRun, TickError};
use super::{Driver, added, facts};
use crate::export::export_safetensors;
use crate::operator::{
    FailureCode, Order, Reply, Request, SiteLine, Status, UnreadableStudy, gather, losses,
};
use crate::pki::{Invite, Token};
use crate::progress::Line;
use crate::report::{ReportData, Selected};
use crate::store::{InviteTerms, SiteRecord, SiteStatus, StoreError, StoredStudy};
use crate::{clock, error_report, files};

/// What became of a request.
enum Begun {
    Done(Box<Reply>),
    /// It takes long, and is done beside the loop.
    Beside(Work),
}

/// What went wrong, in words for the operator.
pub(super) struct Failure {
    words: String,
    hint: Option<String>,
    code: Option<FailureCode>,
}

impl Failure {
    pub(super) fn new(words: impl Into<String>, hint: &'static str) -> Self {
        Self { words: words.into(), hint: Some(hint.to_owned()), code: None }
    }

    /// The same for programs too.
    pub(super) fn with(self, code: FailureCode) -> Self {
        Self { code: Some(code), ..self }
    }

    pub(super) fn into_reply(self) -> Reply {
        let Self { words, hint, code } = self;
        Reply::Failed { words, hint, code }
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
        Self { words, hint, code: None }
    }
}

impl Driver {
    /// Does what the operator asks, without a server.
    pub async fn operate_offline(mut self, request: Request) -> Reply {
        self.operate(request).await
    }

    /// As the loop does it that runs; until it is done, what comes in is obeyed here.
    pub(super) async fn operate(&mut self, request: Request) -> Reply {
        let (reply, mut answer) = oneshot::channel();
        self.begin(request, reply).await;
        loop {
            tokio::select! {
                answered = &mut answer => {
                    return answered.unwrap_or_else(|_| Reply::failed("the coordinator is stopping", None));
                }
                Some(command) = self.inbox.recv() => self.obey(command).await,
            }
        }
    }

    /// Begins what the operator asks: `reply` hears of it at once, or when work beside the loop is over.
    pub(super) async fn begin(&mut self, request: Request, reply: oneshot::Sender<Reply>) {
        let answer = match self.take_up(request).await {
            Ok(Begun::Beside(work)) => return self.do_beside(work, reply),
            Ok(Begun::Done(answer)) => *answer,
            Err(failure) => failure.into_reply(),
        };
        let _ = reply.send(answer);
    }

    async fn take_up(&mut self, request: Request) -> Result<Begun, Failure> {
        let done = match request {
            Request::AddStudy { file, model, embeddings, taxonomy } => {
                let files = StudyFiles { study: file, model, embeddings, taxonomy };
                return Ok(Begun::Beside(read_study(files, self.store.artifacts().clone())));
            }
            Request::Export { study, round, out } => {
                return self.export(&study, round.map(RoundId), out).await.map(Begun::Beside);
            }
            Request::AddArtifact { copy } => return self.add_artifact(copy).await.map(Begun::Beside),
            Request::Status => Reply::Status(self.status().await?),
            Request::Invite { site, role, hours } => self.invite(site, role, hours).await?,
            Request::Revoke { site } => self.revoke(site).await?,
            Request::ShowStudy { study } => self.show_study(&study).await?,
            Request::Control { study, order } => self.control(&study, order).await?,
            Request::Pause { study, reason } => self.pause_for(&study, &reason).await?,
            Request::Promote { study, round } => self.promote(&study, round.map(RoundId)).await?,
            Request::Report { study, out } => self.report(study.as_deref(), &out).await?,
        };
        Ok(Begun::Done(Box::new(done)))
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
        let (known, mut studies) = (self.store.sites().await?, Vec::new());
        for stored in self.store.studies().await? {
            if let Some(run) = self.studies.get(&stored.digest) {
                studies.push(self.study_line(run, &known).await?);
            }
        }
        let (fault, fault_detail) = self.fault().unzip();
        Ok(Status {
            consortium: self.authority.consortium().to_owned(),
            running: self.serving,
            address: self.address.clone(),
            fault: fault.map(str::to_owned),
            fault_detail: fault_detail.flatten(),
            sites: known.into_iter().map(line).collect(),
            studies,
            unreadable: self.unreadable.values().cloned().collect(),
        })
    }

    async fn show_study(&self, study: &str) -> Result<Reply, Failure> {
        let run = self.studies.get(&self.find(study)?).ok_or_else(no_study)?;
        let document = str::from_utf8(run.document.bytes())?.to_owned();
        Ok(Reply::Study { line: self.study_line(run, &self.store.sites().await?).await?, document })
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

    /// Adds a study whose artifacts are here; `kind` is what its embeddings' file says to it.
    pub(super) async fn add_study(
        &mut self,
        document: StudyDocument,
        kind: Result<(), Failure>,
    ) -> Result<Reply, Failure> {
        let (digest, name) = (document.digest(), document.study().name.clone());
        // One that is here is added again to bring its files back, whatever it says of them.
        if !self.studies.contains_key(&digest) {
            kind?;
        }
        let stored =
            StoredStudy { digest, name, document: document.bytes().to_vec(), added_at: clock::now() };
        self.store.add_study(&stored).await?;
        let known = self.studies.get(&digest).map(|run| run.rounds.status().phase);
        let again = known.map_or(Ok(None), |phase| added::again(&document.study().name, phase))?;
        let remark = again.or_else(|| added::without_bound(document.study()));
        if !self.studies.contains_key(&digest) {
            let run = StudyRun::restore(&self.store, stored).await?;
            let name = run.document.study().name.as_str().into();
            self.studies.insert(digest, run);
            self.expect_sites().await;
            self.peers.tell_all(&Notice::StudyOffered { study: digest, name });
        }
        Ok(Reply::Added { study: digest.to_string(), remark })
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
        if order == Order::Resume {
            self.tell_resumed(digest);
        }
        let run = self.studies.get(&digest).ok_or_else(no_study)?;
        let (status, study) = (run.rounds.status(), run.document.study());
        let mut words = control_words(order, &status, study.quorum.sites);
        if order == Order::Start {
            let warnings = names_of_nobody(study, &self.store.sites().await?);
            warnings.iter().for_each(|warning| words.push_str(&format!("\nwarning: {warning}")));
        }
        if order == Order::Resume
            && let Some(warning) = too_few_for_rule(&status, study)
        {
            words.push_str(&format!("\nwarning: {warning}"));
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
    async fn export(&mut self, study: &str, round: Option<RoundId>, out: PathBuf) -> Result<Work, Failure> {
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
        Ok(Box::new(move || -> Result<Outcome, Failure> {
            let artifact = artifacts.read(&model)?;
            let artifact =
                artifact.ok_or_else(|| StoreError::corrupt("artifact", format!("model {model} is gone")))?;
            export_safetensors(&artifact, &note, &out)?;
            Ok(Outcome::Done { words: format!("{}: the model of round {round} of `{name}`", out.display()) })
        }))
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
        files::create_private_dir(out).map_err(|e| Failure {
            words: format!("{}: {e}", out.display()),
            hint: None,
            code: None,
        })?;
        Ok(Reply::Report { page: data.write(out)? })
    }

    /// The report but its losses, which the report alone needs.
    async fn gathered(&mut self, study: &StudyDigest) -> Result<ReportData, Failure> {
        // Fails only with the runtime, at the end.
        let _ = self.count_traffic().await;
        let run = self.studies.get(study).ok_or_else(no_study)?;
        let manifests = self.manifests(study).await?.counting;
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

/// Why `resume` does not end a round: the study's rule leaves sites out, and too few of a class have sent their updates.
fn too_few_for_rule(status: &round::Status, study: &Study) -> Option<String> {
    let strategy = study.aggregation.strategy;
    let classes = facts::classes_missing(&status.classes_short, |class| study.taxonomy.name(class))?;
    (status.phase == "quorum-missing" && strategy.class_floor() > 0).then(|| {
        format!(
            "round {} still waits for updates from sites that annotate {classes}: of fewer than {}, `{}` would leave out \
             the only one that knows the class. Bring such sites and resume again, or abort the study and go on from its \
             last model with another strategy",
            status.round,
            strategy.class_floor(),
            strategy.name()
        )
    })
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
    let failure = |words, hint| Err(Failure { words, hint: Some(hint), code: None });
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

fn no_study() -> Failure {
    Failure::new("there is no study", "add one with `coordinator study add`")
}

#[cfg(test)]
mod tests;
