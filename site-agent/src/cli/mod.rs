//! The commands of `site-agent`: arguments, and which function does what. Data goes to stdout, logs to stderr.
//!
//! ```text
//! enroll → check → run            once, whenever something changed, for ever
//! study show|approve, status      while it runs
//! evaluate, predict, features     the site's own use of a model
//! finetune                        a model of the site's own
//! pseudo-label                    a model's labels for what nobody annotated
//! split                           folds of patients for cross-validation
//! model, embed, phantom, egress   tools
//! ```
//! Exit codes are in [`error_report::Exit`].

mod adapt;
mod check;
mod checkpoint;
mod chosen_model;
mod chosen_scans;
mod cost_table;
mod egress;
mod embed;
mod enroll;
pub mod error_report;
mod evaluate;
mod features;
mod finetune;
mod heat_map;
mod model;
mod output;
mod phantom;
mod picture;
mod postprocess;
mod predict;
mod pseudo_label;
mod quartiles;
mod row_plot;
mod run;
mod scatter;
mod split;
mod status;
mod study;
mod window_progress;

use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};
use common::ids::SiteId;
use common::taxonomy::Taxonomy;

use self::error_report::{CliError, Exit};
use crate::client::config::SiteConfig;
use crate::client::files::{self, FileError};

/// Train and evaluate the universal segmentation model on this hospital's own scans. Only weights and numbers leave.
#[derive(Debug, Parser)]
#[command(name = "site-agent", version, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 done; 1 failed; 2 wrong command line; 64 wrong configuration; 65 unusable \
                          data; 69 coordinator unreachable; 77 refused by the coordinator or by the policy.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Make this site's keys and exchange an invite for a certificate.
    Enroll(enroll::EnrollArgs),
    /// Look at configuration, scans and link, and say in words what is wrong and what to do.
    Check(check::CheckArgs),
    /// Take part: stay connected, train or evaluate when asked, until stopped.
    Run(ConfigArgs),
    /// Say what the running agent does.
    Status(status::StatusArgs),
    /// Look at offered studies and approve them.
    #[command(subcommand)]
    Study(study::StudyCommand),
    /// Score a model on this site's own labelled scans; nothing leaves.
    Evaluate(evaluate::EvaluateArgs),
    /// Train a model further on this site's own scans alone, also for other classes; nothing leaves.
    Finetune(finetune::FinetuneArgs),
    /// Deal the patients of all data sets into folds for cross-validation.
    Split(split::SplitArgs),
    /// Label scans with a model, each on the grid of its own file.
    Predict(predict::PredictArgs),
    /// Draw how a model tells this site's labelled classes apart, as the paper's Figure 6 does; nothing leaves.
    Features(features::FeaturesArgs),
    /// Label this site's own training scans with a model where nobody annotated them, as a data set of its own.
    PseudoLabel(pseudo_label::PseudoLabelArgs),
    /// Make CT-like phantoms with known labels.
    Phantom(phantom::PhantomArgs),
    /// Make, adapt, look at, import and export model files.
    #[command(subcommand)]
    Model(model::ModelCommand),
    /// Make class embeddings, and see which classes they hold for alike.
    #[command(subcommand)]
    Embed(embed::EmbedCommand),
    /// Look at what has left this site.
    #[command(subcommand)]
    Egress(egress::EgressCommand),
}

/// Which configuration.
#[derive(Debug, Args)]
pub(crate) struct ConfigArgs {
    /// The site's configuration.
    #[arg(long, default_value = "site.toml", value_name = "FILE")]
    config: PathBuf,
}

impl ConfigArgs {
    fn read(&self) -> Result<SiteConfig, CliError> {
        let hint = "`site-agent enroll` writes a site.toml into the site's folder: name it with --config";
        SiteConfig::read(&self.config).map_err(|error| {
            let is_missing = error.downcast_ref::<FileError>().is_some_and(FileError::is_not_found);
            let wrong = CliError::new(error).exit(Exit::Config);
            // A slip is told with its line, and with what is allowed there.
            if is_missing { wrong.hint(hint) } else { wrong }
        })
    }
}

/// Which classes.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct TaxonomyArg {
    /// The classes (TOML), where they are not the 32 of the universal model.
    #[arg(long, value_name = "FILE")]
    taxonomy: Option<PathBuf>,
}

impl TaxonomyArg {
    fn read(&self) -> Result<Taxonomy, CliError> {
        read_taxonomy(self.taxonomy.as_deref())
    }
}

/// The taxonomy of a file, or the standard one.
fn read_taxonomy(file: Option<&Path>) -> Result<Taxonomy, CliError> {
    match file {
        Some(file) => Ok(Taxonomy::parse(&file.display().to_string(), &files::read_text(file)?)?),
        None => Ok(Taxonomy::standard()),
    }
}

/// Runs a command.
///
/// # Errors
/// What to tell the user, and the exit code.
pub fn run(cli: Cli) -> Result<(), CliError> {
    obey(cli)?;
    output::all_written()
}

fn obey(cli: Cli) -> Result<(), CliError> {
    match cli.command {
        Command::Enroll(args) => enroll::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Run(args) => run::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Study(command) => study::run(&command),
        Command::Evaluate(args) => evaluate::run(&args),
        Command::Finetune(args) => finetune::run(&args),
        Command::Split(args) => split::run(&args),
        Command::Predict(args) => predict::run(&args),
        Command::Features(args) => features::run(&args),
        Command::PseudoLabel(args) => pseudo_label::run(&args),
        Command::Phantom(args) => phantom::run(&args),
        Command::Model(command) => model::run(&command),
        Command::Embed(command) => embed::run(&command),
        Command::Egress(command) => egress::run(&command),
    }
}

/// The async runtime of commands that use the link: two threads are enough, the heavy work has its own.
fn runtime() -> Result<tokio::runtime::Runtime, CliError> {
    let built = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    Ok(built.map_err(anyhow::Error::from)?)
}

/// Bounds the threads of all parallel work in this process. Called once, before any of it.
fn limit_threads(threads: Option<usize>) -> Result<(), CliError> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.unwrap_or(0));
    Ok(pool.build_global().map_err(anyhow::Error::from)?)
}

/// This site's name, or a stand-in where it is not enrolled.
fn site_name(config: &SiteConfig) -> Result<SiteId, CliError> {
    match config.identity.load() {
        Ok(own) => Ok(own.membership.site),
        Err(_) => Ok("this-site".parse()?),
    }
}

/// One line of data on stdout.
fn line(text: impl std::fmt::Display) {
    output::line(&printable(&text.to_string()));
}

/// Text as a terminal may have it. Names come from foreign files and studies: their control characters are shown, not obeyed.
fn printable(text: &str) -> String {
    let shown = |c: char| if c.is_control() && !matches!(c, '\n' | '\t') { '\u{fffd}' } else { c };
    text.chars().map(shown).collect()
}

/// A value as JSON on stdout, for machines: every character of it.
fn json(value: &impl serde::Serialize) -> Result<(), CliError> {
    output::line(&serde_json::to_string_pretty(value).map_err(anyhow::Error::from)?);
    Ok(())
}

/// The path's last part, for lines about files.
fn shown(path: &Path) -> std::path::Display<'_> {
    path.file_name().map_or(path, Path::new).display()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_configuration_that_is_not_there_is_told_with_who_writes_one() {
        let site = tempfile::tempdir().unwrap();
        let config = ConfigArgs { config: site.path().join("site.toml") };
        let missing = config.read().unwrap_err().text();
        assert!(missing.contains("hint: `site-agent enroll` writes a site.toml"), "{missing}");
        std::fs::write(&config.config, "cordinator = \"c.example.org:443\"\n").unwrap();
        let slip = config.read().unwrap_err().text();
        assert!(slip.contains("site.toml:1: ") && !slip.contains("site-agent enroll"), "{slip}");
    }

    /// Root may give them: what it made would not be the agent's.
    #[test]
    fn commands_that_only_look_make_nothing() {
        let site = tempfile::tempdir().unwrap();
        let config = site.path().join("site.toml");
        let text = "coordinator = \"c.example.org:443\"\nidentity = \"i\"\nstate = \"s\"\npolicy = \"p\"\n";
        std::fs::write(&config, text).unwrap();
        for command in ["status", "egress list", "egress verify", "study show"] {
            let words: Vec<&str> = command.split(' ').collect();
            let args = [["site-agent"].as_slice(), &words, &["--config", config.to_str().unwrap()]].concat();
            run(Cli::try_parse_from(args).unwrap()).unwrap();
        }
        assert_eq!(std::fs::read_dir(site.path()).unwrap().count(), 1);
    }
}
