//! `site-agent split`: the patients of all data sets dealt into folds for cross-validation, and listed in a file.

use std::collections::BTreeSet;
use std::path::PathBuf;

use clap::Args;
use common::taxonomy::Taxonomy;

use super::error_report::{CliError, Exit};
use super::{ConfigArgs, line};
use crate::client::files;
use crate::data::DataError;
use crate::data::dataset::{Case, Split, read_datasets};
use crate::data::folds::{Folds, MAX_FOLDS};

/// Arguments of `split`.
#[derive(Debug, Args)]
pub(super) struct SplitArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Number of folds.
    #[arg(long, default_value_t = 5, value_name = "N",
          value_parser = clap::value_parser!(u32).range(2..=i64::from(MAX_FOLDS)))]
    folds: u32,
    /// The same seed deals the same patients alike.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(0..=i64::MAX as u64))]
    seed: u64,
    /// The listing. It names patients: it stays here.
    #[arg(long, default_value = "folds.toml", value_name = "FILE")]
    out: PathBuf,
}

pub(super) fn run(args: &SplitArgs) -> Result<(), CliError> {
    let config = args.config.read()?;
    if args.out.exists() {
        let there = anyhow::anyhow!("{} exists", args.out.display());
        let hint =
            "patients dealt anew change folds in the middle of a study: name another file, or move it away";
        return Err(CliError::new(there).exit(Exit::Data).hint(hint));
    }
    let cases = read_datasets(&config.datasets, &config.base, &Taxonomy::standard())?;
    let too_few = |error| CliError::new(DataError::from(error)).hint("name fewer with --folds");
    let folds = Folds::deal(&cases, args.folds, args.seed).map_err(too_few)?;
    files::write_new(&args.out, folds.to_toml().as_bytes())?;
    table(&folds, &cases).into_iter().for_each(line);
    line(format!("listed in {}; to leave one out, name file and fold in site.toml", args.out.display()));
    Ok(())
}

/// One line for each fold.
fn table(folds: &Folds, cases: &[Case]) -> Vec<String> {
    let row = |fold: u32| {
        let dealt =
            |case: &&Case| case.split == Split::Training && folds.fold_of(&case.patient) == Some(fold);
        let scans = cases.iter().filter(dealt);
        let patients: BTreeSet<&str> = scans.clone().map(|case| case.patient.as_str()).collect();
        format!("{fold:>4}  {:>8}  {:>5}", patients.len(), scans.count())
    };
    let head = format!("{:>4}  {:>8}  {:>5}", "fold", "patients", "scans");
    std::iter::once(head).chain((0..folds.count()).map(row)).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_listing_is_written_once_and_not_overwritten() {
        let site = tempfile::tempdir().unwrap();
        for case in ["a", "b", "c"] {
            let folder = site.path().join("data").join(case);
            fs::create_dir_all(&folder).unwrap();
            for file in ["ct.nii", "labels.nii"] {
                fs::write(folder.join(file), "").unwrap();
            }
        }
        let (config, out) = (site.path().join("site.toml"), site.path().join("folds.toml"));
        let text = "coordinator = \"c.example.org:443\"\nidentity = \"i\"\nstate = \"s\"\npolicy = \"p\"\n\
                    [[dataset]]\nname = \"own\"\nfolder = \"data\"\nlabel_map = \"lits\"\n";
        fs::write(&config, text).unwrap();
        let args = |folds, seed| SplitArgs {
            config: ConfigArgs { config: config.clone() },
            folds,
            seed,
            out: out.clone(),
        };
        let few = run(&args(4, 7)).unwrap_err().text();
        assert!(few.contains("3 patients") && few.ends_with("hint: name fewer with --folds"), "{few}");
        assert!(!out.exists());

        run(&args(3, 7)).unwrap();
        let folds = Folds::read(&out).unwrap();
        let dealt: BTreeSet<_> = ["a", "b", "c"].map(|case| folds.fold_of(&format!("own/{case}"))).into();
        assert_eq!(dealt, BTreeSet::from([Some(0), Some(1), Some(2)]));
        let again = run(&args(3, 8)).unwrap_err().text();
        assert!(again.contains("exists") && Folds::read(&out).unwrap() == folds, "{again}");
    }
}
