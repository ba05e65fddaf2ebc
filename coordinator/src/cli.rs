//! The command line. Each command is a question to the coordinator, running or not, and how its answer is shown.

mod cross_site;
mod doctor;
mod init;
mod output;
mod show;

pub(crate) use output::{Lost, line};

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::{Args, Parser, Subcommand};
use common::ids::{Role, SiteId};
use common::study::StudyDocument;
use tokio_util::sync::CancellationToken;

use self::cross_site::CrossSiteCommand;
use self::init::Init;
use crate::config::Config;
use crate::error_report::Refused;
use crate::files::{self, Access};
use crate::operator::client::ask;
use crate::operator::{Order, Reply, Request};
use crate::progress::{Line, Progress};
use crate::service::Service;
use crate::{backup, demo};

/// The consortium's server: invites hospitals, runs rounds, reports how the model generalises.
#[derive(Debug, Parser)]
#[command(name = "coordinator", version, max_term_width = 100)]
pub struct Cli {
    /// The coordinator's settings.
    #[arg(long, global = true, default_value = "coordinator.toml", value_name = "FILE")]
    config: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make the consortium: settings, root and issuing certificate, state folder.
    Init(Init),
    /// Write an invite for a site; hand it over in person or encrypted.
    Invite(Invite),
    /// Run the server until interrupted; continues where it stopped.
    Run {
        /// One JSON object a line instead of words.
        #[arg(long)]
        json: bool,
    },
    /// Show studies and sites.
    Status {
        /// JSON instead of words.
        #[arg(long)]
        json: bool,
    },
    /// List the sites.
    Sites {
        /// JSON instead of words.
        #[arg(long)]
        json: bool,
    },
    /// End a site's membership, and its connection with it.
    Revoke {
        /// The site.
        site: SiteId,
    },
    /// Add and steer studies.
    #[command(subcommand)]
    Study(Study),
    /// Bring back a published model, or embeddings, that the disk has lost.
    #[command(subcommand)]
    Artifact(Artifact),
    /// Write report.html, report.csv and report.json of a study.
    Report {
        /// Its name or the first digits of its digest; the newest when left out.
        study: Option<String>,
        /// Into this folder.
        #[arg(long, default_value = "report", value_name = "DIR")]
        out: PathBuf,
    },
    /// Look at everything that is kept: database, journals, every byte of models and updates, disk, keys, certificates.
    Doctor {
        /// Move what is corrupt to `quarantine` in the state folder, and narrow permissions; needs a stopped server.
        #[arg(long)]
        repair: bool,
        /// One JSON object a line instead of words.
        #[arg(long)]
        json: bool,
    },
    /// Copy settings, certificates, keys and state into a new folder; the server may run meanwhile.
    Backup {
        /// The folder to make.
        #[arg(value_name = "TO")]
        to: PathBuf,
    },
    /// Bring back a backup into an empty state folder; the server must not run.
    Restore {
        /// The folder that `backup` made.
        #[arg(value_name = "FROM")]
        from: PathBuf,
    },
    /// Show everything on this machine: a consortium of processes that trains on phantoms and reports.
    Demo(demo::Options),
}

#[derive(Debug, Args)]
struct Invite {
    /// The site's name: 1 to 40 of a-z, 0-9 and inner `-`.
    site: SiteId,
    /// What it is for.
    #[arg(long)]
    role: Role,
    /// How long the invite counts.
    #[arg(long, default_value_t = 72, value_parser = clap::value_parser!(u32).range(1..=8760), value_name = "HOURS")]
    hours: u32,
    /// The invite's file [default: SITE.invite.toml].
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Study {
    /// Add a study; prints its digest, which sites approve.
    Add {
        /// The study (TOML); see configs/examples/study.toml.
        file: PathBuf,
        /// Its initial model (safetensors), from `site-agent model init` or `import`.
        #[arg(long, value_name = "FILE")]
        model: PathBuf,
        /// Its class embeddings (safetensors), from `site-agent embed`.
        #[arg(long, value_name = "FILE")]
        embeddings: PathBuf,
        /// Its classes (TOML), where they are not the 32 of the universal model.
        #[arg(long, value_name = "FILE")]
        taxonomy: Option<PathBuf>,
    },
    /// List the studies.
    List {
        /// JSON instead of words.
        #[arg(long)]
        json: bool,
    },
    /// Show one study: where it stands, and every setting that decides something.
    Show {
        /// Its name or the first digits of its digest.
        study: String,
        /// The exact document whose digest sites approve.
        #[arg(long)]
        json: bool,
    },
    /// Open the first round as soon as sites are ready.
    Start {
        /// Its name or the first digits of its digest.
        study: String,
    },
    /// Finish what is under way and begin nothing more.
    Pause {
        /// Its name or the first digits of its digest.
        study: String,
        /// Words for the sites: their logs say why.
        #[arg(long, value_name = "WORDS")]
        reason: Option<String>,
    },
    /// Go on, or try again what failed.
    Resume {
        /// Its name or the first digits of its digest.
        study: String,
    },
    /// Have the sealed test sites score a model: the best by the validation sites, unless a round is named.
    Promote {
        /// Its name or the first digits of its digest.
        study: String,
        /// The round that made the model.
        #[arg(long, value_name = "ROUND")]
        round: Option<u32>,
    },
    /// Write a global model to a file (safetensors): the last one, unless a round is named.
    Export {
        /// Its name or the first digits of its digest.
        study: String,
        /// The round that made the model; 0 is the one that the study began with.
        #[arg(long, value_name = "ROUND")]
        round: Option<u32>,
        /// Where to; must not exist.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// End the study; its last model stands.
    Abort {
        /// Its name or the first digits of its digest.
        study: String,
    },
    /// Leave one site out: a study for each site that is left out, run one after the other, and the table of them all.
    #[command(subcommand)]
    CrossSite(CrossSiteCommand),
}

#[derive(Debug, Subcommand)]
enum Artifact {
    /// Put a copy in its place; each byte is compared with what was published.
    Add {
        /// Of a site: HASH.data of its state/artifacts, with HASH.json beside it. Of a backup: the folder HASH of state/artifacts.
        #[arg(value_name = "COPY")]
        copy: PathBuf,
    },
}

/// Does what the command line says. `stop` ends the commands that run on.
///
/// # Errors
/// Whatever went wrong, for [`crate::error_report`].
pub async fn execute(cli: Cli, stop: CancellationToken) -> anyhow::Result<()> {
    obey(cli, stop).await?;
    Ok(output::all_written()?)
}

async fn obey(cli: Cli, stop: CancellationToken) -> anyhow::Result<()> {
    let config = || Config::read(&cli.config);
    match cli.command {
        Command::Init(init) => init::initialise(&cli.config, &init).await,
        Command::Invite(Invite { site, role, hours, out }) => {
            let out = out.unwrap_or_else(|| format!("{site}.invite.toml").into());
            // Asked first, an invite whose file cannot be written would count and be lost.
            if out.exists() {
                bail!("{} exists: move it away, or name another file with --out", out.display());
            }
            let reply = ask(&config()?, Request::Invite { site, role, hours }).await?;
            write_invite(reply, &out)
        }
        Command::Run { json } => run(&config()?, json, stop).await,
        Command::Status { json } => show_status(&config()?, json, show::status).await,
        Command::Sites { json } => show_status(&config()?, json, show::sites).await,
        Command::Revoke { site } => done(ask(&config()?, Request::Revoke { site }).await?),
        Command::Study(study) => steer(&config()?, study, &stop).await,
        Command::Artifact(Artifact::Add { copy }) => {
            // The running coordinator has another working folder.
            let copy = std::path::absolute(copy)?;
            done(ask(&config()?, Request::AddArtifact { copy }).await?)
        }
        Command::Report { study, out } => {
            let out = std::path::absolute(out)?;
            done(ask(&config()?, Request::Report { study, out }).await?)
        }
        Command::Doctor { repair, json } => doctor::run(&config()?, repair, json, &stop).await,
        Command::Backup { to } => {
            config()?;
            back_up(&cli.config, &to).await
        }
        Command::Restore { from } => restore(&cli.config, &from),
        Command::Demo(options) => demo::run(options, stop).await,
    }
}

async fn back_up(settings: &Path, to: &Path) -> anyhow::Result<()> {
    let made = backup::back_up(settings, to).await?;
    line(&format!("{}: {} files, {}", to.display(), made.files, files::size_in_words(made.bytes)));
    line("it holds the key that signs sites' certificates: keep it as you keep that (root.key is not in it)");
    Ok(())
}

fn restore(settings: &Path, from: &Path) -> anyhow::Result<()> {
    let restored = backup::restore(settings, from)?;
    let size = files::size_in_words(restored.bytes);
    line(&format!("restored the backup of {}: {} files, {size}", restored.made_at, restored.files));
    line(
        "what happened since is not in it: sites that enrolled later need an invite, later rounds are trained again",
    );
    Ok(())
}

async fn run(config: &Config, json: bool, stop: CancellationToken) -> anyhow::Result<()> {
    let progress = if json { Progress::Json } else { Progress::Words };
    if let Some(service) = Service::open_when_disk_allows(config, progress, stop).await? {
        service.run().await?;
    }
    progress.say(&Line::Stopped);
    Ok(())
}

async fn steer(config: &Config, study: Study, stop: &CancellationToken) -> anyhow::Result<()> {
    let control = |study, order| Request::Control { study, order };
    let request = match study {
        Study::Add { file, model, embeddings, taxonomy } => Request::AddStudy {
            // The running coordinator has another working folder.
            file: std::path::absolute(file)?,
            model: std::path::absolute(model)?,
            embeddings: std::path::absolute(embeddings)?,
            taxonomy: taxonomy.map(std::path::absolute).transpose()?,
        },
        Study::List { json } => return show_status(config, json, show::studies).await,
        Study::Show { study, json } => return show_study(config, study, json).await,
        Study::Start { study } => control(study, Order::Start),
        Study::Pause { study, reason: Some(reason) } => Request::Pause { study, reason },
        Study::Pause { study, reason: None } => control(study, Order::Pause),
        Study::Resume { study } => control(study, Order::Resume),
        Study::Promote { study, round } => Request::Promote { study, round },
        Study::Export { study, round, out } => {
            Request::Export { study, round, out: std::path::absolute(out)? }
        }
        Study::Abort { study } => control(study, Order::Abort),
        Study::CrossSite(command) => return cross_site::run(config, command, stop).await,
    };
    done(ask(config, request).await?)
}

async fn show_status(
    config: &Config,
    json: bool,
    in_words: fn(&crate::operator::Status) -> String,
) -> anyhow::Result<()> {
    match ask(config, Request::Status).await? {
        Reply::Status(status) if json => line(&serde_json::to_string_pretty(&status)?),
        Reply::Status(status) => line(in_words(&status).trim_end()),
        other => return done(other),
    }
    Ok(())
}

async fn show_study(config: &Config, study: String, json: bool) -> anyhow::Result<()> {
    let (standing, document) = match ask(config, Request::ShowStudy { study }).await? {
        Reply::Study { line, document } => (line, document),
        other => return done(other),
    };
    if json {
        // To the byte: whoever hashes what comes out gets the digest.
        output::exactly(document.as_bytes());
        return Ok(());
    }
    let document = StudyDocument::parse(document.into_bytes())?;
    line(show::settings(&standing, document.study()).trim_end());
    Ok(())
}

fn write_invite(reply: Reply, out: &Path) -> anyhow::Result<()> {
    let Reply::Invite { text } = reply else { return done(reply) };
    files::write_new(out, text.as_bytes(), Access::Private).with_context(|| {
        let out = out.display();
        format!("{out} cannot be written, and the invite in it counts: make another, which replaces it, with --out")
    })?;
    line(&format!("{}: hand it over in person or encrypted; it counts once", out.display()));
    Ok(())
}

/// Says something beside the answer, on standard error: scripts read the other.
fn note(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "note: {text}");
}

/// Shows an answer that needs no more than a line.
fn done(reply: Reply) -> anyhow::Result<()> {
    match reply {
        Reply::Done { words } => line(&words),
        Reply::Added { study, remark } => {
            line(&study);
            remark.iter().for_each(|text| note(text));
        }
        Reply::Report { page } => line(&page.display().to_string()),
        Reply::Failed { words, hint, .. } => return Err(Refused { words, hint }.into()),
        Reply::Status(_) | Reply::Study { .. } | Reply::Invite { .. } => {
            bail!(
                "the coordinator answered another question: use the program of the same version as the server"
            )
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invite_lasts_an_hour_at_least() {
        let hours = |hours| {
            let words = ["coordinator", "invite", "north", "--role", "trainer", "--hours", hours];
            Cli::try_parse_from(words).map(drop).map_err(|error| error.kind())
        };
        assert_eq!(hours("1"), Ok(()));
        assert_eq!(hours("0"), Err(clap::error::ErrorKind::ValueValidation));
    }

    #[test]
    fn an_address_that_cannot_be_dialled_is_the_mistake_of_its_option() {
        let told = |address| {
            let words = ["coordinator", "init", "--consortium", "demo", "--address", address];
            Cli::try_parse_from(words).map(drop).map_err(|error| error.to_string())
        };
        assert_eq!(told("federation.example.org:443"), Ok(()));
        assert!(told("federation.example.org").unwrap_err().contains("'--address <HOST:PORT>'"));
    }
}
