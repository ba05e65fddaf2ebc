//! Which study and which of its models a command means.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use common::ids::{ArtifactHash, ModelHash};
use common::study::StudyDocument;

use super::error_report::{CliError, Exit};
use super::model;
use crate::client::artifacts::ArtifactError;
use crate::client::config::SiteConfig;
use crate::client::state::StateFolder;
use crate::client::studies::NewestModel;
use crate::infer::network::StudyNetwork;
use crate::model::{ModelError, NamedTensors};
use crate::train::tensors::to_artifact;
use crate::train::trainer::Cancel;

/// Study and model, for commands that use one outside of the federation's rounds.
#[derive(Debug, Args)]
pub(super) struct ChosenModel {
    /// The study: the first digits of its digest, or its document as a file. Default: the only one here.
    #[arg(long, value_name = "STUDY")]
    study: Option<String>,
    /// The model (safetensors). Default: that of the study's latest round of which this site has one.
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// The class embeddings of the study (safetensors). Default: those that this site has fetched.
    #[arg(long, value_name = "FILE")]
    embeddings: Option<PathBuf>,
    /// Take these embeddings though the study has others: for a model that was trained with them, such as an imported one.
    #[arg(long, requires = "embeddings")]
    other_embeddings: bool,
}

impl ChosenModel {
    /// The network of a study with the chosen weights; it stops when it is cancelled.
    pub(super) fn network(
        &self,
        config: &SiteConfig,
        document: &StudyDocument,
        cancel: Cancel,
    ) -> Result<StudyNetwork, CliError> {
        Ok(self.identified(config, document, cancel)?.0)
    }

    /// The same, and the model's hash: that of its tensors, wherever they were read from.
    pub(super) fn identified(
        &self,
        config: &SiteConfig,
        document: &StudyDocument,
        cancel: Cancel,
    ) -> Result<(StudyNetwork, ModelHash), CliError> {
        let state = StateFolder::at(&config.state);
        let embeddings = self.embeddings(&state, document)?;
        let build = |weights: &NamedTensors| {
            StudyNetwork::build(document.study(), weights, &embeddings, config.device, cancel.clone())
        };
        if let Some(path) = &self.model {
            let weights = model::read(path)?;
            let network = build(&weights).with_context(|| format!("{} and this study", path.display()))?;
            return Ok((network, to_artifact(&weights)?.0.hash()));
        }
        let studies = state.studies();
        match studies.newest_model(document.digest())? {
            Some(newest) => {
                let weights = noted(&state, document, newest)?;
                let is_last = studies.is_last(document, newest);
                tracing::info!("{}", words(newest, document.study().rounds, is_last));
                Ok((build(&weights)?, newest.model))
            }
            None => {
                let (hash, network) = unnoted(&state, document, build)?;
                tracing::info!("using the newest model that was fetched, {hash}");
                Ok((network, hash))
            }
        }
    }

    /// The chosen study.
    pub(super) fn study(&self, config: &SiteConfig) -> Result<StudyDocument, CliError> {
        if let Some(path) = self.study.as_deref().map(Path::new).filter(|path| path.is_file()) {
            let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
            return Ok(StudyDocument::parse(bytes)?);
        }
        let studies = StateFolder::at(&config.state).studies();
        let hint =
            "name one with --study; `site-agent study show` lists those that were offered to this site";
        let digest = studies.find(self.study.as_deref().unwrap_or_default());
        let digest = digest.map_err(|error| CliError::new(error).or_hint(hint))?;
        studies
            .document(digest)?
            .ok_or_else(|| CliError::new(anyhow::anyhow!("study {digest} is not here")).hint(hint))
    }

    /// The class embeddings that are taken though the study has others, if there are such.
    pub(super) fn foreign_embeddings(
        &self,
        document: &StudyDocument,
    ) -> Result<Option<ArtifactHash>, CliError> {
        let embeddings = &document.study().embeddings;
        let Some(path) = self.embeddings.as_ref().filter(|_| !embeddings.trainable) else { return Ok(None) };
        let got = to_artifact(&model::read(path)?)?.0.hash();
        Ok((got != embeddings.artifact).then_some(got))
    }

    /// The class embeddings that the study names. Of the same shape others would do, and every mask would be wrong.
    fn embeddings(&self, state: &StateFolder, document: &StudyDocument) -> Result<NamedTensors, CliError> {
        let (study, embeddings) = (document.digest().short(), &document.study().embeddings);
        // The model has what it learns in itself.
        if embeddings.trainable {
            return Ok(NamedTensors::new());
        }
        let Some(path) = &self.embeddings else {
            return state.artifacts().load(embeddings.artifact).map_err(|error| {
                let what = format!("the class embeddings of study {study} cannot be read");
                let hint = "the next round that this site takes part in brings them; or ask the operator for the file that the study was added with and name it with --embeddings";
                unread(error, what, hint)
            });
        };
        let table = model::read(path)?;
        let (expected, got) = (embeddings.artifact, to_artifact(&table)?.0.hash());
        if got == expected || self.other_embeddings {
            return Ok(table);
        }
        let others = anyhow::anyhow!(
            "{} has other class embeddings ({}) than study {study} ({}, {})",
            path.display(),
            got.short(),
            expected.short(),
            embeddings.kind
        );
        let hint = "`site-agent embed show FILE` says how they were made; name those of the study, or leave --embeddings out where this site has fetched them; \
                    for a model that was trained with these add --other-embeddings";
        Err(CliError::new(others).exit(Exit::Data).hint(hint))
    }
}

/// Why an artifact of the study cannot be had; the hint is for one that is not here any more.
fn unread(error: ArtifactError, what: String, hint: &str) -> CliError {
    let is_gone = matches!(error, ArtifactError::Absent(_) | ArtifactError::Damaged(_));
    let error = CliError::new(anyhow::Error::new(error).context(what));
    if is_gone { error.hint(hint) } else { error }
}

/// Which model is used; of a study that is over, whether it is the last one, and else how to have that.
fn words(NewestModel { round, model, .. }: NewestModel, rounds: u32, is_last: Option<bool>) -> String {
    let words = format!("using the model of round {round} of {rounds}, {model}");
    match is_last {
        None => words,
        Some(true) => format!("{words}, the last of the study"),
        Some(false) => format!(
            "{words}; the study is over, and this is not its last model: where this site trained in it, `site-agent run` fetches that once it is connected; \
             or ask the operator for it (`coordinator study export`) and name it with --model"
        ),
    }
}

/// The newest model of a study, or why it cannot be had: never an older one, and never that of another study in its place.
fn noted(
    state: &StateFolder,
    document: &StudyDocument,
    NewestModel { round, model, .. }: NewestModel,
) -> Result<NamedTensors, CliError> {
    state.artifacts().load(model).map_err(|error| {
        let study = document.digest().short();
        let what = format!(
            "the model of round {round} of study {study} cannot be read, the newest that this site had"
        );
        let hint = "the next round that this site takes part in brings a newer one, and the last of a study that is over is fetched again when the agent connects anew; or ask the operator for it and name it with --model";
        unread(error, what, hint)
    })
}

/// The newest model of a site that was offered no other study. Agents of earlier versions did not note whose a model is, and studies of one
/// architecture have tensors of the same names and shapes: beside another study nothing would tell them apart.
fn unnoted(
    state: &StateFolder,
    document: &StudyDocument,
    build: impl Fn(&NamedTensors) -> Result<StudyNetwork, ModelError>,
) -> Result<(ModelHash, StudyNetwork), CliError> {
    let study = document.digest();
    let none = || {
        CliError::new(anyhow::anyhow!("this site has no model of study {} yet", study.short()))
            .hint("name one with --model (`coordinator study export` writes it for you), or let `site-agent run` take part in a round first; which study the models of an earlier version are of is not known")
    };
    if state.studies().list()? != [study] {
        return Err(none());
    }
    let artifacts = state.artifacts();
    let mut here = artifacts.newest_first()?.into_iter();
    // Any other artifact, such as the embeddings, has other tensors.
    let found = here.find_map(|hash| Some((hash, build(&artifacts.load(hash).ok()?).ok()?)));
    found.ok_or_else(none)
}

#[cfg(test)]
mod tests;
