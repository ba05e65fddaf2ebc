//! The training data of several sites in one place: what a federation is compared with, and never does.

use std::sync::Arc;

use common::rng::{KeyedRng, Rng};

use super::DataError;
use super::batch::{Batch, BatchAddress, BatchSource};

/// Batches of several sites; each micro-batch is one site's, each site as likely as its weight says.
pub struct Pooled {
    sites: Vec<(f64, Arc<dyn BatchSource>)>,
    key: KeyedRng,
}

impl Pooled {
    /// Joins the sources; `key` is the address of the study's seed.
    ///
    /// # Errors
    /// [`DataError::NoCases`] when no source has a weight above zero.
    pub fn new(sites: Vec<(f64, Arc<dyn BatchSource>)>, key: KeyedRng) -> Result<Self, DataError> {
        let usable = sites.iter().map(|(weight, _)| *weight).sum::<f64>() > 0.0;
        if usable { Ok(Self { sites, key }) } else { Err(DataError::NoCases) }
    }
}

impl BatchSource for Pooled {
    fn batch(&self, address: BatchAddress) -> Result<Batch, DataError> {
        let key = self.key.clone().round(address.round).step(address.step).sample(address.micro);
        let total: f64 = self.sites.iter().map(|(weight, _)| weight).sum();
        let mut place = key.purpose("site").rng().random::<f64>() * total;
        let chosen = self.sites.iter().find(|(weight, _)| {
            place -= weight;
            place < 0.0
        });
        // Rounding may leave `place` at 0 after the last site.
        let (_, source) = chosen.or(self.sites.last()).ok_or(DataError::NoCases)?;
        source.batch(address)
    }
}
