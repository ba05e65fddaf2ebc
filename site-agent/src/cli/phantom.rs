//! `site-agent phantom`: the made-up scans of one made-up hospital.

use std::path::PathBuf;

use clap::Args;

use super::error_report::CliError;
use super::line;
use crate::phantom::{HOSPITALS, Hospital, write_hospital};

/// Arguments of `phantom`.
#[derive(Debug, Args)]
pub(super) struct PhantomArgs {
    /// Whose scanner, patients and annotations: `site-d` annotates everything and lies outside the others' range.
    #[arg(long, value_parser = ["site-a", "site-b", "site-c", "site-d"])]
    hospital: String,
    /// Number of cases.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    cases: u32,
    /// The same seed gives the same scans.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Voxel size along right, anterior and superior, mm, such as `4,4,5`; default: the hospital's own.
    #[arg(long, value_name = "MM", value_delimiter = ',')]
    spacing: Option<Vec<f64>>,
    /// Where to: a folder for each data set is made in it.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

pub(super) fn run(args: &PhantomArgs) -> Result<(), CliError> {
    let hospital = hospital(&args.hospital)?;
    let spacing = args.spacing.as_deref().map(spacing_mm).transpose()?;
    let datasets = write_hospital(&args.out, hospital, args.seed, args.cases, spacing)?;
    let names: Vec<_> = datasets.iter().map(|dataset| dataset.name.as_str()).collect();
    line(format!(
        "{} phantoms of {} in {}: {}",
        args.cases,
        hospital.name,
        args.out.display(),
        names.join(", ")
    ));
    Ok(())
}

fn hospital(name: &str) -> anyhow::Result<&'static Hospital> {
    let found = HOSPITALS.iter().find(|hospital| hospital.name == name);
    let known = || HOSPITALS.iter().map(|hospital| hospital.name).collect::<Vec<_>>().join(", ");
    found.ok_or_else(|| anyhow::anyhow!("there is no phantom hospital `{name}`\n  known: {}", known()))
}

fn spacing_mm(given: &[f64]) -> Result<[f64; 3], CliError> {
    match <[f64; 3]>::try_from(given) {
        Ok(spacing) if spacing.iter().all(|mm| (0.5..=20.0).contains(mm)) => Ok(spacing),
        _ => {
            Err(CliError::new(anyhow::anyhow!("--spacing {given:?}: expected three numbers of 0.5 to 20 mm")))
        }
    }
}
