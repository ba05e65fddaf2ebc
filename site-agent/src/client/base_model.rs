//! The model that a round begins from, in the folder that it is kept in.

use std::error::Error;

use common::ids::ModelHash;

use super::artifacts::ArtifactFolder;
use crate::model::NamedTensors;
use crate::train::trainer::StoredModel;

/// A model on this site's disk, compared with its name whenever it is read.
pub(super) struct BaseModel {
    folder: ArtifactFolder,
    name: ModelHash,
}

impl BaseModel {
    /// The model of this name.
    pub(super) fn new(folder: &ArtifactFolder, name: ModelHash) -> Self {
        Self { folder: folder.clone(), name }
    }
}

impl StoredModel for BaseModel {
    fn read(&self) -> Result<NamedTensors, Box<dyn Error + Send + Sync>> {
        Ok(self.folder.load(self.name)?)
    }
}
