//! `site-agent egress`: what has left this site, from its own ledger.

use clap::{Args, Subcommand};

use super::error_report::CliError;
use super::{ConfigArgs, json, line};
use crate::client::files::FileError;
use crate::client::state::StateFolder;
use crate::egress::{self, Entry, LedgerEvent};

/// Commands about the ledger.
#[derive(Debug, Subcommand)]
pub(super) enum EgressCommand {
    /// List what left, was withheld or was refused, oldest first.
    List(ListArgs),
    /// Check that no line of the ledger was changed, removed or inserted.
    Verify(ConfigArgs),
}

/// Arguments of `egress list`.
#[derive(Debug, Args)]
pub(super) struct ListArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(command: &EgressCommand) -> Result<(), CliError> {
    match command {
        EgressCommand::List(args) => list(args),
        EgressCommand::Verify(config) => verify(config),
    }
}

fn list(args: &ListArgs) -> Result<(), CliError> {
    let mut shown = Ok(());
    read(&args.config, |entry| match args.json {
        true if shown.is_ok() => shown = json(entry),
        true => {}
        false => line(words(entry)),
    })?;
    shown
}

fn verify(config: &ConfigArgs) -> Result<(), CliError> {
    let found = read(config, |_| {})?;
    let head = found.head.map_or("empty".to_owned(), |head| format!("ends in {head}"));
    line(format!("the ledger is whole: {} lines, {head}", found.lines));
    if found.torn_bytes > 0 {
        line("its last line was never finished: a crash while writing; nothing was sent under it");
    }
    Ok(())
}

fn read(config: &ConfigArgs, seen: impl FnMut(&Entry)) -> Result<egress::Verified, CliError> {
    let ledger = StateFolder::at(&config.read()?.state).ledger();
    // One that may not be looked at is not none.
    if !ledger.try_exists().map_err(|source| FileError::new("read", &ledger, source))? {
        return Ok(egress::Verified::default());
    }
    let hint =
        "keep a copy of the ledger and tell whoever guards this machine: the agent does not go on with it";
    egress::verify(&ledger, seen).map_err(|error| CliError::new(error).hint(hint))
}

fn words(entry: &Entry) -> String {
    let Entry { seq, at, kind, event, study, round, bytes, content } = entry;
    let event = match event {
        LedgerEvent::Sending => "sending".to_owned(),
        LedgerEvent::Received { .. } => "received".to_owned(),
        LedgerEvent::Withheld { rule } => format!("withheld: {rule}"),
        LedgerEvent::Refused { code } => format!("refused: {code}"),
        LedgerEvent::Unanswered => "no answer".to_owned(),
    };
    let study = study.map_or(String::new(), |study| format!("  study {}", study.short()));
    let round = round.map_or(String::new(), |round| format!("  round {round}"));
    let content = content.to_string();
    let content = content.get(..8).unwrap_or_default();
    format!("{seq:>6}  {at:.0}  {:<18} {bytes:>11} bytes  {content}{study}{round}  {event}", kind.name())
}
