//! `site-agent check`: configuration, identity, policy, scans and link, each in a line of words.
//!
//! It changes nothing and sends nothing but a greeting, and not even that beside an agent that runs. It goes on after a mistake, so that
//! one run shows them all.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use clap::Args;
use common::ids::ClassId;
use common::taxonomy::Taxonomy;
use serde::Serialize;

use super::error_report::{CliError, Exit};
use super::{ConfigArgs, json, limit_threads, line, runtime};
use crate::client::config::{LeftOut, SiteConfig};
use crate::client::connection::Dial;
use crate::client::files::{self, FileError};
use crate::client::identity::{Identity, IdentityFolder};
use crate::client::owner;
use crate::client::state::{AgentStatus, StateFolder};
use crate::data::copies::{Fingerprints, refuse_copies};
use crate::data::dataset::{Case, Split, check_patients, read_dataset};
use crate::data::prepared::PreparedCase;
use crate::data::preprocess::Preprocessing;
use crate::egress;
use crate::model::device;

/// Arguments of `check`.
#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Do not look at the scans, which takes a second or more for each.
    #[arg(long)]
    skip_scans: bool,
    /// Do not call the coordinator.
    #[arg(long)]
    offline: bool,
    /// For machines.
    #[arg(long)]
    json: bool,
}

/// One line of the check.
#[derive(Debug, Serialize)]
struct Finding {
    /// What was looked at.
    what: String,
    /// Whether it is as it must be.
    ok: bool,
    /// What was found.
    found: String,
    /// What to do, when something is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    todo: Option<String>,
}

/// How the hint begins that names this command.
const CHECK: &str = "`site-agent check`";
/// A certificate that ends sooner is worth a word: a new one needs a person on each side.
const SOON: jiff::SignedDuration = jiff::SignedDuration::from_hours(30 * 24);

/// Findings so far; each is shown as it comes.
struct Findings {
    all: Vec<Finding>,
    quiet: bool,
}

impl Findings {
    fn add(&mut self, what: &str, result: Result<String, CliError>) {
        let finding = match result {
            Ok(found) => Finding { what: what.to_owned(), ok: true, found, todo: None },
            Err(error) => {
                let text = error.text();
                let (found, todo) = text.split_once("\n\nhint: ").unwrap_or((&text, ""));
                let found = found.trim_start_matches("error: ").replace("\nerror: ", "\n");
                // Who checks need not be told to check.
                let todo = Some(todo.to_owned()).filter(|todo| !todo.is_empty() && !todo.starts_with(CHECK));
                Finding { what: what.to_owned(), ok: false, found, todo }
            }
        };
        if !self.quiet {
            let mark = if finding.ok { "ok   " } else { "WRONG" };
            line(format!(
                "{mark} {:<14} {}",
                finding.what,
                finding.found.replace('\n', "\n                     ")
            ));
            if let Some(todo) = &finding.todo {
                line(format!("      → {todo}"));
            }
        }
        self.all.push(finding);
    }
}

pub(super) fn run(args: &CheckArgs) -> Result<(), CliError> {
    let mut findings = Findings { all: Vec::new(), quiet: args.json };
    match args.config.read() {
        Err(error) => findings.add("configuration", Err(error)),
        Ok(config) => {
            limit_threads(config.threads)?;
            findings.add("configuration", Ok(format!("coordinator at {}", config.coordinator)));
            check_site(&config, args, &mut findings)?;
        }
    }
    if args.json {
        json(&findings.all)?;
    }
    let wrong = findings.all.iter().filter(|finding| !finding.ok).count();
    if wrong > 0 {
        return Err(CliError::new(anyhow::anyhow!("{wrong} of {} checks failed", findings.all.len()))
            .exit(Exit::Config)
            .hint("mend what is marked WRONG and check again"));
    }
    Ok(())
}

fn check_site(config: &SiteConfig, args: &CheckArgs, findings: &mut Findings) -> Result<(), CliError> {
    findings.add("policy", check_policy(config));
    findings.add("state", check_state(&config.state));
    if let Some((_, file)) = config.proxy.as_ref().and_then(|proxy| proxy.login.as_ref()) {
        findings.add("proxy password", proxy_password(file));
    }
    let device = device(config.device).map(|_| config.device.to_string());
    findings.add("device", device.map_err(CliError::new));
    let identity = config.identity.load();
    let identity = match identity {
        Ok(identity) => {
            let member = &identity.membership;
            let who = format!("{} `{}` of `{}`", member.role, member.site, member.consortium);
            findings.add("identity", Ok(who));
            findings.add("private keys", private_keys(&config.identity));
            if let Some(until) = certified_until(&identity) {
                findings.add("certificate", certificate(until, jiff::Timestamp::now()));
            }
            Some(identity)
        }
        Err(error) => {
            findings.add("identity", Err(CliError::new(error)));
            None
        }
    };
    let mut known = Fingerprints::default();
    if let Some(mut cases) = check_datasets(config, args, &mut known, findings) {
        let folds = config.left_out.as_ref().map(|left_out| check_folds(config, &mut cases, left_out));
        let is_dealt = folds.as_ref().is_none_or(Result::is_ok);
        if let Some(folds) = folds {
            findings.add("folds", folds);
        }
        if is_dealt
            && !args.skip_scans
            && let Some(found) = check_copies(&cases, &mut known)
        {
            findings.add("copies", found);
        }
    }
    if let Some(identity) = identity.filter(|_| !args.offline) {
        let link = match link_of_agent(&StateFolder::at(&config.state)) {
            Some(link) => link,
            None => runtime()?.block_on(check_link(config, &identity)),
        };
        findings.add("link", link);
    }
    Ok(())
}

fn check_policy(config: &SiteConfig) -> Result<String, CliError> {
    match config.read_policy() {
        Ok(_) => Ok("readable".to_owned()),
        Err(error) => {
            let is_missing = error.downcast_ref::<FileError>().is_some_and(FileError::is_not_found);
            let wrong = CliError::new(error);
            let hint = "put the file back, or name the one that counts here: `policy` in site.toml";
            Err(if is_missing { wrong.hint(hint) } else { wrong })
        }
    }
}

/// Whether the agent could go on from its state folder, or make it.
fn check_state(folder: &Path) -> Result<String, CliError> {
    owner::require_usable(folder)?;
    if !folder.exists() {
        return Ok(format!("{}: the agent makes it when it starts", folder.display()));
    }
    let foreign = owner::not_the_agents(folder);
    if let Some(first) = foreign.first() {
        let (count, whose) = (foreign.len(), owner::user());
        let wrong = anyhow::anyhow!("{count} files in it are of another user, such as {}", first.display());
        return Err(CliError::new(wrong).hint(format!("`sudo chown -R {whose} {}`", folder.display())));
    }
    let ledger = StateFolder::at(folder).ledger();
    if !ledger.exists() {
        return Ok(format!("{}: nothing has left yet", folder.display()));
    }
    let lines = egress::verify(&ledger, |_| {})?.lines;
    Ok(format!("{}: the ledger of {lines} lines is whole", folder.display()))
}

/// The file for the agent's user alone.
fn proxy_password(file: &Path) -> Result<String, CliError> {
    files::read_text(file)?;
    if fs::metadata(file).is_ok_and(|found| found.mode() & 0o077 == 0) {
        return Ok("for its owner alone".to_owned());
    }
    let wrong = anyhow::anyhow!("others may read or change {}", file.display());
    Err(CliError::new(wrong).hint(format!("`chmod 600 {}`", file.display())))
}

/// Keys that others may read are a finding, whether or not anybody did.
fn private_keys(identity: &IdentityFolder) -> Result<String, CliError> {
    let open: Vec<_> = identity.open_to_others().iter().map(|path| path.display().to_string()).collect();
    if open.is_empty() {
        return Ok("for their owner alone".to_owned());
    }
    let hint = format!(
        "`chmod go= {}`; if somebody may have read a key, have the coordinator's operator revoke this site, move the \
         folder {} away, and enroll with a new invite",
        open.join(" "),
        identity.path().display()
    );
    Err(CliError::new(anyhow::anyhow!("others may read or change {}", open.join(", "))).hint(hint))
}

/// Until when the site's certificate is valid.
fn certified_until(identity: &Identity) -> Option<jiff::Timestamp> {
    let peer = link::PeerIdentity::from_certificate(identity.credentials.chain.first()?).ok()?;
    jiff::Timestamp::from_millisecond(i64::try_from(peer.not_after.0).ok()?).ok()
}

/// A certificate that has ended, or soon will, is a finding.
fn certificate(until: jiff::Timestamp, now: jiff::Timestamp) -> Result<String, CliError> {
    let wrong = match until.duration_since(now) {
        left if left > SOON => return Ok(format!("valid until {until}")),
        left if left.is_positive() => format!("ends at {until}, in {} days", left.as_hours() / 24),
        _ => format!("ended at {until}"),
    };
    let hint = "ask the coordinator's operator for a new invite, and enroll with it again";
    Err(CliError::new(anyhow::anyhow!(wrong)).hint(hint))
}

/// The link of the agent that runs, if one does. A site has one connection: a greeting of ours would end the agent's.
fn link_of_agent(state: &StateFolder) -> Option<Result<String, CliError>> {
    if !state.is_locked() {
        return None;
    }
    let link = state.read_status().map_err(CliError::new).and_then(|status| match status {
        Some(AgentStatus { connected: true, lane, .. }) => {
            Ok(format!("the agent that runs is connected {}", lane.unwrap_or_default()))
        }
        status => {
            let problem = status.and_then(|status| status.problem).unwrap_or_else(|| "not yet".to_owned());
            let wrong = anyhow::anyhow!("the agent that runs is not connected: {problem}");
            Err(CliError::new(wrong).hint("`site-agent status` follows it: it dials again by itself"))
        }
    });
    Some(link)
}

async fn check_link(config: &SiteConfig, identity: &Identity) -> Result<String, CliError> {
    let (connected, lane) = Dial::new(config.network()?, identity).try_once().await?;
    let welcome = connected.welcome;
    connected.dialled.close().await;
    Ok(format!("welcomed by `{}` as {} `{}` {lane}", welcome.consortium, welcome.role, welcome.site))
}

/// All scans, by name; `None` where they cannot all be read, or used together. What their images are is noted meanwhile.
fn check_datasets(
    config: &SiteConfig,
    args: &CheckArgs,
    known: &mut Fingerprints,
    findings: &mut Findings,
) -> Option<Vec<Case>> {
    if config.datasets.is_empty() {
        let none = anyhow::anyhow!("site.toml names none");
        findings.add(
            "data sets",
            Err(CliError::new(none).hint("add a [[dataset]] with name, folder and label_map")),
        );
    }
    let (mut all, mut is_whole) = (Vec::new(), true);
    for dataset in &config.datasets {
        let what = format!("data `{}`", dataset.name);
        // In the data set's own words, whatever the classes of a study are.
        let read = dataset.own_taxonomy(&config.base).and_then(|own| {
            let taxonomy = own.unwrap_or_else(Taxonomy::standard);
            Ok((read_dataset(dataset, &config.base, &taxonomy)?, taxonomy))
        });
        match read {
            Err(error) => {
                findings.add(&what, Err(CliError::new(error)));
                is_whole = false;
            }
            Ok((cases, taxonomy)) => {
                findings.add(&what, Ok(summary(&cases, &taxonomy)));
                if !args.skip_scans {
                    check_cases(&what, &cases, &taxonomy, known, findings);
                }
                all.extend(cases);
            }
        }
    }
    // A patient may have scans in several data sets.
    if let Err(error) = check_patients(&all) {
        let hint = "give all scans of the patient the same `split` in cases.toml, and data sets that share patients the \
                    same `validation_share`";
        findings.add("patients", Err(CliError::new(error).hint(hint)));
        is_whole = false;
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    is_whole.then_some(all)
}

/// Whether a scan is trained on and held out under two names; none where no scan is held out.
fn check_copies(cases: &[Case], known: &mut Fingerprints) -> Option<Result<String, CliError>> {
    let is_held_out = |case: &Case| case.split == Split::Validation;
    cases.iter().any(is_held_out).then(|| {
        refuse_copies(cases, known)?;
        Ok("no validation scan is trained on under another name".to_owned())
    })
}

/// Whether the folds fit the scans, of which they are left out, and how many of them training has.
fn check_folds(
    config: &SiteConfig,
    cases: &mut [Case],
    LeftOut { fold, .. }: &LeftOut,
) -> Result<String, CliError> {
    let hint = "`site-agent split` deals the patients anew; `fold` in site.toml is one of the file's";
    config.leave_out(cases).map_err(|error| CliError::new(error).hint(hint))?;
    let trained = cases.iter().filter(|case| case.split == Split::Training).count();
    Ok(format!("fold {fold} is left out: {trained} of {} scans are trained on", cases.len()))
}

/// What the scans are for, and how many of them annotate each class: studies count training scans alone.
fn summary(cases: &[Case], taxonomy: &Taxonomy) -> String {
    let of = |split| cases.iter().filter(move |case| case.split == split);
    let used = [(Split::Training, "training"), (Split::Validation, "validation")];
    let used = used.into_iter().filter(|(split, _)| of(*split).count() > 0).map(|(split, name)| {
        let mut annotated = BTreeMap::new();
        for class in of(split).flat_map(|case| &case.annotated) {
            *annotated.entry(*class).or_insert(0) += 1;
        }
        let classes = annotated.into_iter().map(|(class, n)| format!("{} ({n})", taxonomy.name(class)));
        let classes = classes.collect::<Vec<_>>().join(", ");
        format!("{} {name} scans; annotated: {classes}", of(split).count())
    });
    let excluded = Some(of(Split::Excluded).count()).filter(|excluded| *excluded > 0);
    let excluded = excluded.map(|excluded| format!("{excluded} excluded scans"));
    used.chain(excluded).chain(label_maps(cases)).collect::<Vec<_>>().join("\n")
}

/// How many scans each label map reads, where the names of the scans choose among several.
fn label_maps(cases: &[Case]) -> Option<String> {
    let mut maps: BTreeMap<&str, (&str, usize)> = BTreeMap::new();
    for map in cases.iter().map(|case| &case.label_map) {
        maps.entry(map.key.as_str()).or_insert((map.name.as_str(), 0)).1 += 1;
    }
    let counts = maps.values().map(|(name, scans)| format!("`{name}` ({scans})")).collect::<Vec<_>>();
    (counts.len() > 1).then(|| format!("label maps, by the names of the scans: {}", counts.join(", ")))
}

/// Reads every scan that is not excluded as training would; scans that are fine get one line together.
fn check_cases(
    what: &str,
    cases: &[Case],
    taxonomy: &Taxonomy,
    known: &mut Fingerprints,
    findings: &mut Findings,
) {
    let mut fine = 0;
    let mut on_both_sides: BTreeMap<ClassId, Vec<&str>> = BTreeMap::new();
    for case in cases.iter().filter(|case| case.split != Split::Excluded) {
        let read = known.read_scan(case);
        match read.and_then(|scan| PreparedCase::of_scan(case, scan, &Preprocessing::default(), taxonomy)) {
            Ok(prepared) => {
                fine += 1;
                let mut rights = rights_alone(case, taxonomy);
                rights.retain(|right| prepared.labels.is_on_both_sides(*right));
                for right in rights {
                    on_both_sides.entry(right).or_default().push(&case.name);
                }
            }
            Err(error) => findings.add(what, Err(CliError::new(error))),
        }
    }
    if fine > 0 {
        findings.add(what, Ok(format!("{fine} scans are readable: geometry, intensities and labels agree")));
    }
    for (right, scans) in on_both_sides {
        findings.add(what, Err(both_sides(&taxonomy.name(right), &scans)));
    }
}

/// The right ones of pairs that a case annotates, where no value of its label map leads to the left one.
fn rights_alone(case: &Case, taxonomy: &Taxonomy) -> Vec<ClassId> {
    let producible = case.label_map.producible(taxonomy);
    let is_alone = |right: &ClassId| taxonomy.left_of(*right).is_some_and(|left| !producible.contains(&left));
    case.annotated.iter().copied().filter(is_alone).collect()
}

/// Every left organ would be taught as a right one.
fn both_sides(right: &str, scans: &[&str]) -> CliError {
    let (count, first) = (scans.len(), scans.first().copied().unwrap_or_default());
    let wrong = anyhow::anyhow!(
        "`{right}` is on both sides of the body in {count} scans, such as `{first}`, and no value leads to the left one"
    );
    CliError::new(wrong).exit(Exit::Data).hint(format!(
        "where its value holds both, add a `[[split]]` with `class = \"{right}\"` to the label map, and the left one to \
         `annotated`; exclude a scan in which it is right"
    ))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use common::ids::Role;
    use common::participant::{self, ParticipantMachine};
    use nalgebra::{Matrix4, Vector4};

    use super::*;
    use crate::data::geometry::Affine;
    use crate::data::nifti::{write_image_i16, write_labels};
    use crate::data::volume::{Grid, Volume};

    #[test]
    fn keys_that_others_may_read_are_a_finding() {
        let site = tempfile::tempdir().unwrap();
        let identity = IdentityFolder::new(site.path().join("identity"));
        identity.keys().unwrap();
        assert!(private_keys(&identity).is_ok(), "as enrolment makes them");
        for (path, open) in
            [("identity", 0o750), ("identity/tls.key", 0o644), ("identity/signing.key", 0o604)]
        {
            let path = site.path().join(path);
            let set = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let private = fs::metadata(&path).unwrap().permissions().mode();
            set(open);
            let told = private_keys(&identity).unwrap_err().text();
            let hint = format!("hint: `chmod go= {}`; if somebody may have read a key", path.display());
            assert!(told.contains("others may read or change") && told.contains(&hint), "{told}");
            set(private);
        }
    }

    #[derive(Debug, clap::Parser)]
    struct Command {
        #[command(flatten)]
        args: CheckArgs,
    }

    /// What is found in the data of a site whose data sets have these names, and are folders in `site`; livers and their tumours, unless
    /// they say otherwise.
    fn findings_in(site: &Path, datasets: &[&str], options: &[&str]) -> Vec<Finding> {
        let mut text =
            "coordinator = \"c.example.org:443\"\nidentity = \"i\"\nstate = \"s\"\npolicy = \"p.toml\"\n"
                .to_owned();
        for name in datasets {
            let says = site.join(name).join("dataset.toml").exists();
            let map = if says { "" } else { "label_map = \"lits\"\n" };
            text += &format!("[[dataset]]\nname = \"{name}\"\nfolder = \"{name}\"\n{map}");
        }
        let config = SiteConfig::parse(&site.join("site.toml"), &text).unwrap();
        let words = std::iter::once("check").chain(options.iter().copied());
        let Command { args } = <Command as clap::Parser>::try_parse_from(words).unwrap();
        let mut findings = Findings { all: Vec::new(), quiet: true };
        check_datasets(&config, &args, &mut Fingerprints::default(), &mut findings);
        findings.all
    }

    fn give_case(site: &Path, case: &str) {
        let folder = site.join(case);
        fs::create_dir_all(&folder).unwrap();
        for file in ["ct.nii", "labels.nii"] {
            fs::write(folder.join(file), "no scan").unwrap();
        }
    }

    #[test]
    fn a_patient_in_training_and_in_validation_is_a_finding_also_across_data_sets() {
        let site = tempfile::tempdir().unwrap();
        for dataset in ["old", "new"] {
            give_case(site.path(), &format!("{dataset}/a"));
            fs::write(site.path().join(dataset).join("cases.toml"), "[a]\npatient = \"p3\"\n").unwrap();
        }
        let wrong = || {
            let all = findings_in(site.path(), &["old", "new"], &["--skip-scans"]);
            all.into_iter().filter(|finding| !finding.ok).collect::<Vec<_>>()
        };
        assert!(wrong().is_empty());
        let table = "[a]\npatient = \"p3\"\nsplit = \"validation\"\n";
        fs::write(site.path().join("new/cases.toml"), table).unwrap();
        let told = wrong();
        let [patients] = &told[..] else { panic!("{told:?}") };
        assert!(patients.what == "patients" && patients.found.contains("`p3`"), "{patients:?}");
        assert!(patients.todo.as_ref().is_some_and(|todo| todo.contains("the same `split`")), "{patients:?}");
    }

    #[test]
    fn an_excluded_scan_is_counted_and_not_looked_at() {
        let site = tempfile::tempdir().unwrap();
        for case in ["a", "b", "c", "d"] {
            give_case(site.path(), &format!("own/{case}"));
        }
        let table = "[c]\nsplit = \"validation\"\nannotated = [\"liver\"]\n[d]\nsplit = \"excluded\"\n";
        fs::write(site.path().join("own/cases.toml"), table).unwrap();
        let all = findings_in(site.path(), &["own"], &["--skip-scans"]);
        let expected = "2 training scans; annotated: Liver (2), Liver Tumor (2)\n\
                        1 validation scans; annotated: Liver (1)\n1 excluded scans";
        assert_eq!(all[0].found, expected);

        let named = |all: &[Finding], case: &str| all.iter().any(|finding| finding.found.contains(case));
        let all = findings_in(site.path(), &["own"], &[]);
        assert!(named(&all, "own/c") && !named(&all, "own/d"), "{all:?}");
        let table = ["a", "b", "c", "d"].map(|case| format!("[{case}]\nsplit = \"excluded\"\n")).concat();
        fs::write(site.path().join("own/cases.toml"), table).unwrap();
        let all = findings_in(site.path(), &["own"], &[]);
        assert!(all.iter().all(|finding| finding.ok), "{all:?}");
    }

    #[test]
    fn scans_that_annotate_less_by_their_numbers_are_told_of() {
        let site = tempfile::tempdir().unwrap();
        for case in ["label0003", "label0004", "label0061"] {
            give_case(site.path(), &format!("own/{case}"));
        }
        let text = "name = \"own\"\nfolder = \"own\"\nlabel_map = \"btcv\"\n";
        let cases = read_dataset(&toml::from_str(text).unwrap(), site.path(), &Taxonomy::standard()).unwrap();
        let told = summary(&cases, &Taxonomy::standard());
        assert!(told.contains("Aorta (2)") && told.contains("Liver (3)"), "{told}");
        let maps =
            "\nlabel maps, by the names of the scans: `BTCV` (2), `BTCV, cases numbered 60 and above` (1)";
        assert!(told.ends_with(maps), "{told}");
        assert_eq!(label_maps(&cases[..2]), None);
    }

    #[test]
    fn a_right_kidney_on_both_sides_of_the_body_is_a_finding() {
        let site = tempfile::tempdir().unwrap();
        let (own, case) = (site.path().join("own"), site.path().join("own/a"));
        fs::create_dir_all(&case).unwrap();
        let affine = Affine::new(Matrix4::from_diagonal(&Vector4::new(1.5, 1.5, 1.5, 1.0))).unwrap();
        let grid = Grid { shape: [9, 4, 4], affine };
        write_image_i16(&case.join("ct.nii"), &Volume::from_fn(grid.clone(), |_| 100)).unwrap();
        let kidneys = Volume::from_fn(grid, |[x, ..]| u8::from(!(2..7).contains(&x)));
        write_labels(&case.join("labels.nii"), &kidneys).unwrap();
        // Made-up scans do not look like CT.
        fs::write(own.join("cases.toml"), "[a]\nhounsfield = \"assume\"\n").unwrap();
        let wrong = |annotated: &str, split: &str| {
            let map = format!(
                "name = \"Own\"\nkey = \"own\"\nuse = \"training\"\nannotated = [{annotated}]\n\
                 [values]\n1 = \"right kidney\"\n{split}"
            );
            fs::write(own.join("dataset.toml"), map).unwrap();
            let all = findings_in(site.path(), &["own"], &[]);
            all.into_iter().filter(|finding| !finding.ok).collect::<Vec<_>>()
        };
        let told = wrong("\"right kidney\"", "");
        let [both] = &told[..] else { panic!("{told:?}") };
        assert!(both.found.contains("both sides of the body in 1 scans, such as `own/a`"), "{both:?}");
        assert!(both.todo.as_ref().is_some_and(|todo| todo.contains("`[[split]]`")), "{both:?}");
        let split = "[[split]]\nclass = \"right kidney\"\n";
        assert!(wrong("\"right kidney\", \"left kidney\"", split).is_empty());
    }

    #[test]
    fn a_policy_that_is_missing_is_told_with_what_to_do() {
        let site = tempfile::tempdir().unwrap();
        let text =
            "coordinator = \"c.example.org:443\"\nidentity = \"i\"\nstate = \"s\"\npolicy = \"p.toml\"\n";
        let config = SiteConfig::parse(&site.path().join("site.toml"), text).unwrap();
        let told = || check_policy(&config).map_err(|error| error.text());
        let missing = told().unwrap_err();
        assert!(missing.contains("p.toml") && missing.contains("hint: put the file back"), "{missing}");
        fs::write(site.path().join("p.toml"), include_str!("../../../configs/examples/policy.toml")).unwrap();
        assert_eq!(told(), Ok("readable".to_owned()));
    }

    #[test]
    fn a_state_from_which_no_agent_could_go_on_is_a_finding_and_nothing_is_made() {
        let site = tempfile::tempdir().unwrap();
        let folder = site.path().join("state");
        let told = || check_state(&folder).map_err(|error| error.text());
        assert!(told().unwrap().ends_with("the agent makes it when it starts"));
        assert!(!folder.exists());
        let state = StateFolder::open(&folder).unwrap();
        assert!(told().unwrap().ends_with("nothing has left yet"));
        fs::write(state.ledger(), "{}\n").unwrap();
        let wrong = told().unwrap_err();
        assert!(wrong.contains("egress ledger line 1: ") && wrong.contains("hint: keep a copy"), "{wrong}");
        let file = site.path().join("file");
        fs::write(&file, "").unwrap();
        let wrong = check_state(&file.join("state")).unwrap_err().text();
        assert!(wrong.contains("cannot write in"), "{wrong}");
    }

    #[test]
    fn a_proxy_password_that_others_may_read_is_a_finding() {
        let site = tempfile::tempdir().unwrap();
        let file = site.path().join("proxy.password");
        assert!(proxy_password(&file).is_err(), "it is not there");
        fs::write(&file, "secret").unwrap();
        let told = |mode| {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            proxy_password(&file).map_err(|error| error.text())
        };
        assert_eq!(told(0o600), Ok("for its owner alone".to_owned()));
        let wrong = told(0o640).unwrap_err();
        assert!(wrong.contains("hint: `chmod 600 ") && !wrong.contains("secret"), "{wrong}");
    }

    #[test]
    fn beside_an_agent_that_runs_its_own_link_is_told_and_none_dialled() {
        let site = tempfile::tempdir().unwrap();
        let state = StateFolder::open(&site.path().join("state")).unwrap();
        let say = |status: &AgentStatus| files::show_json(&state.status(), status).unwrap();
        let told = || link_of_agent(&state).map(|link| link.map_err(|error| error.text()));
        let (site, role) = ("north".parse().unwrap(), Role::Trainer);
        let identity = participant::Identity { site, role, installation: [0; 16] };
        let starting = AgentStatus::of(&ParticipantMachine::new(identity).status());
        let lane = Some("over TCP, as site.toml says".to_owned());
        let connected = AgentStatus { connected: true, lane, ..starting.clone() };
        say(&connected);
        assert_eq!(told(), None, "none runs");

        let _runs = state.lock().unwrap();
        let words = "the agent that runs is connected over TCP, as site.toml says".to_owned();
        assert_eq!(told(), Some(Ok(words)));
        let problem = Some("no answer: the connection timed out".to_owned());
        for (status, why) in
            [(AgentStatus { problem, ..starting.clone() }, "no answer: "), (starting, "not yet")]
        {
            say(&status);
            let wrong = told().unwrap().unwrap_err();
            assert!(wrong.contains(&format!("is not connected: {why}")), "{wrong}");
        }
    }

    #[test]
    fn a_certificate_that_ends_soon_is_a_finding() {
        let until: jiff::Timestamp = "2027-03-31T12:00:00Z".parse().unwrap();
        let on = |day: &str| certificate(until, day.parse().unwrap()).map_err(|error| error.text());
        assert_eq!(on("2027-01-01T00:00:00Z"), Ok("valid until 2027-03-31T12:00:00Z".to_owned()));
        let soon = on("2027-03-21T00:00:00Z").unwrap_err();
        assert!(soon.contains("in 10 days") && soon.contains("new invite"), "{soon}");
        assert!(on("2027-04-01T00:00:00Z").unwrap_err().contains("ended at"), "it has ended");
    }
}
