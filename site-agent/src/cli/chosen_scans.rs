//! Which of this site's own labelled scans a command looks at.

use std::path::PathBuf;

use clap::Args;
use common::taxonomy::Taxonomy;

use super::error_report::{CliError, Exit};
use crate::client::config::SiteConfig;
use crate::data::DataError;
use crate::data::dataset::{Case, Split, read_datasets};
use crate::data::folds::Folds;

/// Scans, for commands that hold a model against the labels of annotators.
#[derive(Debug, Args)]
pub(super) struct ChosenScans {
    /// The validation scans only; default: all that are not excluded.
    #[arg(long)]
    validation: bool,
    /// The scans of this fold of `site-agent split` only.
    #[arg(long, value_name = "N", conflicts_with = "validation")]
    fold: Option<u32>,
    /// The file that lists the folds; default: the one that the configuration names.
    #[arg(long, value_name = "FILE", requires = "fold")]
    folds: Option<PathBuf>,
}

impl ChosenScans {
    /// The chosen scans, one at least. What was labelled by a model is never among them.
    pub(super) fn cases(&self, config: &SiteConfig, taxonomy: &Taxonomy) -> Result<Vec<Case>, CliError> {
        let mut cases = match self.fold {
            Some(fold) => {
                let folds = Folds::read(&self.folds_file(config)?)?;
                let all = read_datasets(&config.datasets, &config.base, taxonomy)?;
                folds.scans_of(fold, all).map_err(DataError::from)?
            }
            None => config.read_cases(taxonomy)?,
        };
        cases.retain(|case| !case.pseudo && !case.annotated.is_empty() && self.wants(case.split));
        if cases.is_empty() {
            return Err(self.nothing());
        }
        Ok(cases)
    }

    fn wants(&self, split: Split) -> bool {
        match split {
            Split::Validation => true,
            Split::Training => !self.validation,
            Split::Excluded => false,
        }
    }

    fn folds_file(&self, config: &SiteConfig) -> Result<PathBuf, CliError> {
        let configured = config.left_out.as_ref().map(|left_out| &left_out.folds);
        self.folds.as_ref().or(configured).cloned().ok_or_else(|| {
            CliError::new(anyhow::anyhow!("`--fold`: no file lists the folds"))
                .exit(Exit::Config)
                .hint("name it with --folds, or as `folds` in site.toml; `site-agent split` writes one")
        })
    }

    /// A table without a row, or a picture without a point, would look like a result.
    fn nothing(&self) -> CliError {
        let chosen = match self.fold {
            Some(fold) => format!("in fold {fold}"),
            None if self.validation => "for validation".to_owned(),
            None => "in use".to_owned(),
        };
        CliError::new(anyhow::anyhow!("none of this site's labelled scans is {chosen}"))
            .exit(Exit::Data)
            .hint("`validation_share` in site.toml and `split` in cases.toml say what scans are for")
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Command {
        #[command(flatten)]
        scans: ChosenScans,
    }

    fn chosen(words: &[&str]) -> Result<ChosenScans, clap::Error> {
        let words = std::iter::once("command").chain(words.iter().copied());
        <Command as clap::Parser>::try_parse_from(words).map(|command| command.scans)
    }

    fn names(words: &[&str], config: &SiteConfig) -> Result<Vec<String>, String> {
        let cases = chosen(words).unwrap().cases(config, &Taxonomy::standard());
        cases.map(|cases| cases.into_iter().map(|case| case.name).collect()).map_err(|error| error.text())
    }

    /// A site with a scan for validation, one that is excluded, two to train on, and one that a model labelled.
    fn site(folder: &Path) -> SiteConfig {
        for case in ["data/a", "data/b", "data/c", "data/d", "made/e"] {
            let case = folder.join(case);
            fs::create_dir_all(&case).unwrap();
            for file in ["ct.nii", "labels.nii"] {
                fs::write(case.join(file), "").unwrap();
            }
        }
        let table = "[a]\nsplit = \"validation\"\n[b]\nsplit = \"excluded\"\n";
        fs::write(folder.join("data/cases.toml"), table).unwrap();
        fs::write(folder.join("made/dataset.toml"), "[provenance]\n").unwrap();
        let text = "coordinator = \"c.example.org:443\"\nidentity = \"i\"\nstate = \"s\"\npolicy = \"p\"\n\
                    [[dataset]]\nname = \"own\"\nfolder = \"data\"\nlabel_map = \"lits\"\n\
                    [[dataset]]\nname = \"model\"\nfolder = \"made\"\nlabel_map = \"lits\"\n";
        SiteConfig::parse(&folder.join("site.toml"), text).unwrap()
    }

    #[test]
    fn neither_excluded_scans_nor_those_that_a_model_labelled_are_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let config = site(folder.path());
        assert_eq!(names(&[], &config).unwrap(), ["own/a", "own/c", "own/d"]);
        assert_eq!(names(&["--validation"], &config).unwrap(), ["own/a"]);

        let cases = read_datasets(&config.datasets, &config.base, &Taxonomy::standard()).unwrap();
        let file = folder.path().join("folds.toml");
        fs::write(&file, Folds::deal(&cases, 2, 7).unwrap().to_toml()).unwrap();
        let of_fold = |fold: &str| names(&["--fold", fold, "--folds", file.to_str().unwrap()], &config);
        let mut both = [of_fold("0").unwrap(), of_fold("1").unwrap()].concat();
        both.sort();
        assert_eq!(both, ["own/c", "own/d"]);
        let beyond = of_fold("2").unwrap_err();
        assert!(
            beyond.contains("no fold 2") && beyond.contains("hint: `fold` in site.toml, or `--fold`"),
            "{beyond}"
        );
    }

    #[test]
    fn a_choice_of_no_scan_is_an_error_and_no_empty_result() {
        let folder = tempfile::tempdir().unwrap();
        let config = site(folder.path());
        fs::write(folder.path().join("data/cases.toml"), "[a]\nsplit = \"training\"\n").unwrap();
        let none = names(&["--validation"], &config).unwrap_err();
        assert!(none.contains("is for validation") && none.contains("hint: "), "{none}");
    }

    #[test]
    fn a_fold_needs_a_file_and_excludes_the_other_choice() {
        let folder = tempfile::tempdir().unwrap();
        let without = names(&["--fold", "0"], &site(folder.path())).unwrap_err();
        assert!(without.contains("no file lists the folds"), "{without}");
        assert!(chosen(&["--fold", "0", "--validation"]).is_err());
        assert!(chosen(&["--folds", "folds.toml"]).is_err());
    }
}
