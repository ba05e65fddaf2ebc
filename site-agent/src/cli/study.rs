//! `site-agent study`: what the consortium wants to train here, and the hospital's word on it.

use clap::{Args, Subcommand};
use common::ids::{Role, SiteId, StudyDigest};
use common::study::{LeftOut, Study, StudyDocument};
use common::taxonomy::Taxonomy;
use serde::Serialize;

use super::error_report::{CliError, Exit};
use super::{ConfigArgs, json, line, output};
use crate::client::config::SiteConfig;
use crate::client::state::StateFolder;
use crate::client::studies::{StudyFolder, terms_of};
use crate::egress::PolicyRefusal;

/// Commands about studies.
#[derive(Debug, Subcommand)]
pub(super) enum StudyCommand {
    /// List the offered studies, or show one in words.
    Show(ShowArgs),
    /// Take part in a study. Any change of it asks again.
    Approve(DecideArgs),
    /// Take no part in a study.
    Refuse(DecideArgs),
}

/// Arguments of `study show`.
#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    /// The study's digest, its first digits, or its name.
    digest: Option<String>,
    #[command(flatten)]
    config: ConfigArgs,
    /// For machines: of a study the exact document whose digest is approved, of the list each study's digest, name and state.
    #[arg(long)]
    json: bool,
}

/// Arguments of `study approve` and `study refuse`.
#[derive(Debug, Args)]
pub(super) struct DecideArgs {
    /// The study's digest, its first digits, or its name.
    digest: String,
    #[command(flatten)]
    config: ConfigArgs,
}

pub(super) fn run(command: &StudyCommand) -> Result<(), CliError> {
    match command {
        StudyCommand::Show(args) => show(args),
        StudyCommand::Approve(args) => decide(args, true),
        StudyCommand::Refuse(args) => decide(args, false),
    }
}

/// For whoever decides.
fn folder(config: &SiteConfig) -> Result<StudyFolder, CliError> {
    Ok(StateFolder::open(&config.state)?.studies())
}

/// Whether this site may take part, by the study's own word. A folder without an identity was offered nothing.
fn admitted(config: &SiteConfig, document: &StudyDocument) -> Result<Result<(), LeftOut>, CliError> {
    let membership = config.identity.membership()?;
    Ok(membership.map_or(Ok(()), |member| document.study().admit(&member.site, member.role)))
}

/// Whether the policy, as it stands now, lets this site take part. A folder without an identity was offered nothing.
fn permitted(config: &SiteConfig, document: &StudyDocument) -> anyhow::Result<Result<(), PolicyRefusal>> {
    let role = config.identity.membership()?.map_or(Role::Trainer, |member| member.role);
    Ok(config.read_policy()?.permit_study(&terms_of(document, role)))
}

/// The rule by which the running agent takes no part in a study: it goes by the policy of its start, and by the size of the model.
fn refused_by_agent(config: &SiteConfig, study: StudyDigest) -> Option<String> {
    let state = StateFolder::at(&config.state);
    let status = state.read_status().ok()?.filter(|_| state.is_locked())?;
    status.no_part.refused_by_policy(study).map(str::to_owned)
}

/// The study that the user means.
fn find(studies: &StudyFolder, prefix: &str) -> Result<StudyDocument, CliError> {
    let hint = "`site-agent study show` lists the studies that were offered; a running agent fetches them";
    let found = studies.find(prefix).and_then(|digest| studies.document(digest));
    let found = found.map_err(|error| CliError::new(error).or_hint(hint))?;
    found.ok_or_else(|| CliError::new(anyhow::anyhow!("study {prefix} is not here")).hint(hint))
}

fn show(args: &ShowArgs) -> Result<(), CliError> {
    let config = args.config.read()?;
    let studies = StateFolder::at(&config.state).studies();
    let Some(prefix) = &args.digest else { return list(&config, &studies, args.json) };
    let document = find(&studies, prefix)?;
    if args.json {
        // To the byte: whoever hashes what comes out gets the digest.
        output::exactly(document.bytes());
        return Ok(());
    }
    describe(&document).into_iter().for_each(line);
    line(decision(&config, &studies, &document)?);
    line("");
    document.study().settings_in_words().into_iter().for_each(line);
    Ok(())
}

/// A study of the list.
#[derive(Debug, Serialize)]
struct Listed {
    digest: StudyDigest,
    name: String,
    /// As [`decision`] has it.
    state: String,
}

fn list(config: &SiteConfig, studies: &StudyFolder, as_json: bool) -> Result<(), CliError> {
    let listed = listed(config, studies)?;
    if as_json {
        return json(&listed);
    }
    if listed.is_empty() {
        line("no study was offered yet");
    }
    for Listed { digest, name, state } in listed {
        line(format!("{}  {name}  {state}", digest.short()));
    }
    Ok(())
}

fn listed(config: &SiteConfig, studies: &StudyFolder) -> Result<Vec<Listed>, CliError> {
    let mut listed = Vec::new();
    for digest in studies.list()? {
        if let Some(document) = studies.document(digest)? {
            let (name, state) = (document.study().name.clone(), decision(config, studies, &document)?);
            listed.push(Listed { digest, name, state });
        }
    }
    Ok(listed)
}

fn decision(
    config: &SiteConfig,
    studies: &StudyFolder,
    document: &StudyDocument,
) -> Result<String, CliError> {
    let is_over = studies.is_over(document.digest());
    let over = if is_over { "over; " } else { "" };
    if let Err(left_out) = admitted(config, document)? {
        return Ok(format!("{over}{left_out}"));
    }
    let decision = studies.decision(document.digest())?;
    // Who takes no part by a word of his own need not hear of the policy. One that cannot be read is for `check` to tell.
    if !is_over && decision.as_ref().is_none_or(|decision| decision.approved) {
        let refused = permitted(config, document).ok().and_then(Result::err);
        let refused = refused.map(|refusal| refusal.to_string());
        if let Some(rule) = refused.or_else(|| refused_by_agent(config, document.digest())) {
            return Ok(format!("refused by the policy: {rule}"));
        }
    }
    Ok(match decision {
        Some(decision) => {
            let word = if decision.approved { "approved" } else { "refused" };
            let last = last_model(config, studies, document)?;
            format!("{over}{word} by the {} at {}{last}", decision.by, decision.at)
        }
        None if is_over => "over; nobody decided about it".to_owned(),
        None => format!("undecided: `site-agent study approve {}`", document.digest().short()),
    })
}

/// That the last model of a study that is over is here, if it is.
fn last_model(
    config: &SiteConfig,
    studies: &StudyFolder,
    document: &StudyDocument,
) -> Result<String, CliError> {
    let newest = studies.newest_model(document.digest())?;
    let last = newest.filter(|newest| studies.is_last(document, *newest) == Some(true));
    let here = last.filter(|last| StateFolder::at(&config.state).artifacts().has(last.model));
    Ok(here.map_or(String::new(), |here| format!("; its last model, of round {}, is here", here.round)))
}

/// What a data-protection officer wants to know.
fn describe(document: &StudyDocument) -> Vec<String> {
    let Study { name, rounds, training, quorum, aggregation, evaluation, preprocessing, model, .. } =
        document.study();
    let bound = aggregation.max_update_norm.map_or("no bound".to_owned(), |norm| format!("at most {norm}"));
    let taxonomy = &document.study().taxonomy;
    let classes = taxonomy.len();
    let names: Vec<&str> = taxonomy.classes().iter().map(|class| class.name.as_str()).collect();
    let those =
        if *taxonomy == Taxonomy::standard() { String::new() } else { format!(": {}", names.join(", ")) };
    let [x, y, z] = preprocessing.spacing_mm;
    let evaluates = match evaluation.every_rounds {
        0 => "after the last round".to_owned(),
        1 => "after every round".to_owned(),
        n => format!("after every {n} rounds"),
    };
    let labels = if training.pseudo_labels { "of annotators, and of models" } else { "of annotators alone" };
    let without = match document.study().participants.leave_out.as_slice() {
        [] => "nobody".to_owned(),
        sites => sites.iter().map(SiteId::as_str).collect::<Vec<_>>().join(", "),
    };
    vec![
        format!("study      {name}"),
        format!("digest     {}", document.digest()),
        format!("trains     {rounds} rounds of {} steps; {classes} classes{those}", training.steps_per_round),
        format!("labels     {labels}"),
        format!("network    {}, width {}; scans at {x} x {y} x {z} mm", model.backbone.words(), model.width),
        format!("averages   at least {} sites; norm of an update: {bound}", quorum.sites),
        format!("without    {without}"),
        format!("evaluates  {evaluates}; numbers below {} patients stay here", evaluation.min_count),
        "leaves     label counts, loss, weights, metrics; no scan, no mask, no picture".to_owned(),
    ]
}

fn decide(args: &DecideArgs, approved: bool) -> Result<(), CliError> {
    let config = args.config.read()?;
    let studies = folder(&config)?;
    let document = find(&studies, &args.digest)?;
    if approved {
        let hint = "there is nothing to approve: the study's operator decided that";
        let admitted = admitted(&config, &document)?;
        admitted.map_err(|left_out| CliError::new(left_out).exit(Exit::Refused).hint(hint))?;
        let hint = "this rule is your hospital's own: whoever keeps policy.toml can change it; then start the agent again";
        permitted(&config, &document)?
            .map_err(|refusal| CliError::new(refusal).exit(Exit::Refused).hint(hint))?;
    }
    studies.decide(document.digest(), approved, "operator")?;
    let word = if approved { "approved" } else { "refused" };
    line(format!("{word}: {} ({})", document.study().name, document.digest()));
    if let Some(rule) = refused_by_agent(&config, document.digest()).filter(|_| approved) {
        line(format!(
            "the agent that runs goes by the policy of its start, {rule}: start it again after a change"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use common::ids::RoundId;
    use common::participant::{Identity, ParticipantMachine};
    use common::testing::{example_study, example_study_with};

    use super::*;
    use crate::client::state::AgentStatus;
    use crate::client::studies::NewestModel;
    use crate::model::{HostTensor, NamedTensors};

    #[test]
    fn a_study_that_is_over_is_not_listed_as_one_that_waits_or_goes_on() {
        let site = tempfile::tempdir().unwrap();
        let text = "coordinator = \"c.example.org:443\"\nidentity = \"i\"\nstate = \"s\"\npolicy = \"p\"\n";
        let config = SiteConfig::parse(&site.path().join("site.toml"), text).unwrap();
        let (studies, document) = (folder(&config).unwrap(), example_study());
        let study = document.digest();
        let artifacts = StateFolder::at(&config.state).artifacts();
        let tensor = HostTensor::new(vec![1], vec![1.0]).unwrap();
        let last = artifacts.store(&NamedTensors::from([("w".to_owned(), tensor)])).unwrap().hash();
        studies.note_over(study, Some(last)).unwrap();
        assert!(!studies.is_over(study), "it was never here");
        studies.store(study, document.bytes().to_vec()).unwrap();
        let told = || decision(&config, &studies, &document).unwrap();
        assert!(told().starts_with("undecided: "), "{}", told());
        studies.note_over(study, Some(last)).unwrap();
        assert_eq!(told(), "over; nobody decided about it");
        let for_machines = serde_json::to_value(listed(&config, &studies).unwrap()).unwrap();
        let (name, state) = (&document.study().name, told());
        assert_eq!(for_machines, serde_json::json!([{ "digest": study, "name": name, "state": state }]));
        studies.decide(study, true, "operator").unwrap();
        assert!(told().starts_with("over; approved by the operator at "), "{}", told());
        let note = |round, model| {
            let embeddings = document.study().embeddings.artifact;
            studies.note_model(study, NewestModel { round: RoundId(round), model, embeddings }).unwrap();
        };
        note(1, document.study().initial_model);
        assert!(!told().contains("its last model"), "{}", told());
        note(2, last);
        assert!(told().ends_with("; its last model, of round 2, is here"), "{}", told());
        artifacts.remove(last).unwrap();
        assert!(!told().contains("its last model"), "{}", told());
        assert_eq!(studies.list().unwrap(), [study]);
        // A coordinator that was restored from a backup goes on with it.
        studies.note_over(study, None).unwrap();
        assert!(told().starts_with("approved by the operator at "), "{}", told());
    }

    #[test]
    fn a_study_that_the_policy_refuses_is_shown_with_the_rule_and_not_as_one_to_approve() {
        let site = tempfile::tempdir().unwrap();
        let text = "coordinator = \"c.example.org:443\"\nidentity = \"i\"\nstate = \"s\"\npolicy = \"p\"\n";
        let config = SiteConfig::parse(&site.path().join("site.toml"), text).unwrap();
        let (studies, document) = (folder(&config).unwrap(), example_study());
        let told = || decision(&config, &studies, &document).unwrap();
        let policy = include_str!("../../../configs/examples/policy.toml");
        std::fs::write(&config.policy, policy.replace("min_quorum_sites = 2", "min_quorum_sites = 99"))
            .unwrap();
        let rule = "p:15: `studies.min_quorum_sites` refuses a quorum of ";
        assert!(told().starts_with("refused by the policy: ") && told().contains(rule), "{}", told());
        studies.decide(document.digest(), true, "operator").unwrap();
        assert!(told().contains(rule), "no approval overrides it: {}", told());
        std::fs::write(&config.policy, policy).unwrap();
        assert!(told().starts_with("approved by the operator"), "{}", told());

        // The agent that runs read the policy before.
        let state = StateFolder::open(&config.state).unwrap();
        let mut status = AgentStatus::of(&ParticipantMachine::new(identity()).status());
        let (file, what) = ("p".to_owned(), "it then".to_owned());
        let refusal = PolicyRefusal { file, line: Some(15), rule: "studies.min_quorum_sites", what };
        status.no_part.judged(document.digest(), Some(&refusal));
        crate::client::files::show_json(&state.status(), &status).unwrap();
        assert!(told().starts_with("approved by the operator"), "it is stopped: {}", told());
        let _runs = state.lock().unwrap();
        assert_eq!(told(), format!("refused by the policy: {refusal}"));
    }

    fn identity() -> Identity {
        Identity { site: "north".parse().unwrap(), role: Role::Trainer, installation: [0; 16] }
    }

    #[test]
    fn a_study_is_shown_with_whom_it_leaves_out() {
        let shown = |document: &StudyDocument| {
            describe(document).into_iter().find(|line| line.starts_with("without")).unwrap()
        };
        assert_eq!(shown(&example_study()), "without    nobody");
        let left_out = example_study_with(|draft| {
            draft.participants.leave_out =
                ["north", "south"].map(|site| site.parse::<SiteId>().unwrap()).to_vec();
        });
        assert_eq!(shown(&left_out), "without    north, south");
    }
}
