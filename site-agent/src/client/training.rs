//! What local training of a study needs: this site's scans on the study's grid, and a trainer of its network.
//!
//! The rounds of a federation ([`site_work`](super::site_work)) and fine-tuning at this site alone
//! ([`finetune`](super::finetune)) train with the same, so that a step is the same bits in both.

use std::path::Path;
use std::sync::Arc;

use common::ids::SiteId;
use common::rng::KeyedRng;
use common::study::Study;
use common::study::sections::Unlabelled as UnlabelledMeans;

use super::config::SiteConfig;
use crate::data::DataError;
use crate::data::batch::Unlabelled;
use crate::data::cache::CaseCache;
use crate::data::copies::{Fingerprints, refuse_copies};
use crate::data::dataset::{Case, Split, refuse_pseudo_labels};
use crate::data::prepared::{CaseStore, CaseSummary};
use crate::data::sampler::{Sampler, SamplerSettings};
use crate::infer::network::{class_embeddings, model_config};
use crate::infer::predict::InferenceSettings;
use crate::model::{NamedTensors, UniversalModel, training_device};
use crate::train::burn_trainer::{BurnTrainer, TrainerSettings};

/// Batches made ahead of the device.
const PREFETCH: usize = 2;

/// Training scans on the grid of one study.
pub struct PreparedScans {
    /// The scans.
    pub store: Arc<CaseStore>,
    /// What each has to say in the label manifest.
    pub summaries: Vec<CaseSummary>,
    cache: CaseCache,
}

impl PreparedScans {
    /// Prepares the training scans that annotate any class of the study, through the cache in a folder; what `user` had there and needs no
    /// more goes. Scans that are `known` are compared without being read.
    ///
    /// # Errors
    /// What is wrong with the first scan that cannot be used, labels of a model that the study does not allow, or scans that are held out
    /// too, under another name.
    pub fn open(
        study: &Study,
        config: &SiteConfig,
        cache: &Path,
        user: &str,
        known: &mut Fingerprints,
    ) -> anyhow::Result<Self> {
        let mut cases = config.read_cases(&study.taxonomy)?;
        refuse_copies(&cases, known)?;
        cases.retain(|case| case.split == Split::Training && !case.annotated.is_empty());
        if !study.training.pseudo_labels {
            refuse_pseudo_labels(&cases)?;
        }
        tracing::info!(scans = cases.len(), "preparing the training scans");
        let taxonomy = Arc::new(study.taxonomy.clone());
        let settings = InferenceSettings::of(study).preprocessing;
        let cache = CaseCache::open(cache, user)?;
        let (store, summaries) = CaseStore::open(cases, settings, &taxonomy, &cache, config.memory_bytes)?;
        Ok(Self { store: Arc::new(store), summaries, cache })
    }

    /// Nobody goes on from here: the next to prepare scans in this cache may remove these.
    ///
    /// # Errors
    /// The system's refusal.
    pub fn forget(&self) -> Result<(), DataError> {
        self.cache.forget()
    }

    /// A trainer of the study's network on these scans, without a global model and without memory.
    ///
    /// # Errors
    /// No scan at all, or a study whose network cannot be built here.
    pub fn trainer(
        &self,
        study: &Study,
        config: &SiteConfig,
        site: &SiteId,
        embeddings: &NamedTensors,
    ) -> anyhow::Result<BurnTrainer> {
        let key = KeyedRng::new(study.seed).site(site);
        let sampler = Sampler::new(Arc::clone(&self.store), sampler_settings(study), key)?;
        let device = training_device(config.device, config.recompute)?;
        let network = model_config(study);
        let table = class_embeddings(&network, embeddings)?;
        let model = UniversalModel::new(&network, table.as_ref(), study.seed, &device)?;
        let (training, proximal_mu) = (study.training.clone(), study.aggregation.proximal_mu());
        let settings = TrainerSettings { training, prefetch: PREFETCH, proximal_mu };
        Ok(BurnTrainer::new(model, device, Arc::new(sampler), settings))
    }
}

/// The site's scans that are wanted and annotate any class of the study.
pub(super) fn annotated_cases(
    study: &Study,
    config: &SiteConfig,
    wanted: impl Fn(&Case) -> bool,
) -> anyhow::Result<Vec<Case>> {
    let mut cases = config.read_cases(&study.taxonomy)?;
    cases.retain(|case| wanted(case) && !case.annotated.is_empty());
    Ok(cases)
}

fn sampler_settings(study: &Study) -> SamplerSettings {
    SamplerSettings {
        patch: study.preprocessing.patch.map(|n| n as usize),
        micro_batch: study.training.micro_batch,
        sampling: study.sampling.clone(),
        unlabelled: match study.training.unlabelled {
            UnlabelledMeans::Masked => Unlabelled::Masked,
            UnlabelledMeans::Background => {
                Unlabelled::Background(study.taxonomy.classes().iter().map(|class| class.id).collect())
            }
        },
    }
}
