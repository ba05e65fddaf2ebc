//! Which patches a site trains on: class-aware crops of random cases.
//!
//! Every draw is keyed by (study seed, site, round, step, sample): no state, so that prefetching, resuming a round and
//! training it again give the same patches.

use std::sync::Arc;

use common::ids::ClassId;
use common::rng::{KeyedRng, Rng};
use common::study::sections::{Foreground, Sampling};

use super::DataError;
use super::augment::Augmentation;
use super::batch::{Batch, BatchAddress, BatchSource, Crop, Unlabelled};
use super::prepared::{CaseStore, PreparedCase};

/// How patches are drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplerSettings {
    /// Sides of a patch, voxels along R, A, S.
    pub patch: [usize; 3],
    /// Patches of a micro-batch.
    pub micro_batch: u32,
    /// Where they lie and how they are varied.
    pub sampling: Sampling,
    /// What unannotated structures are taken for.
    pub unlabelled: Unlabelled,
}

/// Draws the batches of one site from its training cases.
pub struct Sampler {
    cases: Arc<CaseStore>,
    settings: SamplerSettings,
    key: KeyedRng,
}

impl Sampler {
    /// A sampler over `cases`; `key` is the address of (study seed, site).
    ///
    /// # Errors
    /// [`DataError::NoCases`] when there is nothing to draw from.
    pub fn new(cases: Arc<CaseStore>, settings: SamplerSettings, key: KeyedRng) -> Result<Self, DataError> {
        if cases.is_empty() {
            return Err(DataError::NoCases);
        }
        Ok(Self { cases, settings, key })
    }

    fn crop(&self, rng: &mut impl Rng) -> Result<(Crop, Arc<PreparedCase>), DataError> {
        let case = self.cases.load(rng.random_range(0..self.cases.len()))?;
        let drawn = Augmentation::draw(&self.settings.sampling.augmentation, rng);
        let centre = draw_centre(&case, &self.settings.sampling, rng);
        Ok((Crop::cut(&case, centre, self.settings.patch, &drawn), case))
    }
}

impl BatchSource for Sampler {
    fn batch(&self, address: BatchAddress) -> Result<Batch, DataError> {
        let BatchAddress { round, step, micro } = address;
        let step_key = self.key.clone().round(round).step(step).purpose("crop");
        let first = micro * self.settings.micro_batch;
        let crops = (first..first + self.settings.micro_batch)
            .map(|sample| self.crop(&mut step_key.clone().sample(sample).rng()))
            .collect::<Result<Vec<_>, _>>()?;
        let samples = crops.iter().map(|(crop, case)| (crop, &case.labels));
        Ok(Batch::of(self.settings.patch, samples, &self.settings.unlabelled))
    }
}

/// A set of voxels of a case.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Pool {
    Anywhere,
    Class(ClassId),
    Labelled,
    /// The reference's background: no raw label, and inside the body.
    BodyWithoutLabel,
}

impl Pool {
    fn contains(self, case: &PreparedCase, offset: usize) -> bool {
        let raw = || case.labels.raw().voxels()[offset];
        match self {
            Self::Anywhere => true,
            Self::Class(class) => case.labels.contains(class, offset),
            Self::Labelled => raw() != 0,
            Self::BodyWithoutLabel => raw() == 0 && case.image.voxels()[offset] > 0.0,
        }
    }

    fn size(self, case: &PreparedCase) -> usize {
        (0..case.image.grid().len()).filter(|&offset| self.contains(case, offset)).count()
    }
}

/// Draws foreground or not, then a pool, then one of its voxels.
fn draw_centre(case: &PreparedCase, sampling: &Sampling, rng: &mut impl Rng) -> [usize; 3] {
    let (foreground, background) = pools(case, sampling.foreground, rng.random());
    let wants_foreground = rng.random::<f64>() < sampling.foreground_probability;
    let (wanted, other) = if wants_foreground { (foreground, background) } else { (background, foreground) };
    // An empty pool hands over to the other (specification §5), and two empty ones to the whole case.
    let pool_of = |pool: Pool| Some((pool, pool.size(case))).filter(|&(_, size)| size > 0);
    let whole = (Pool::Anywhere, case.image.grid().len());
    let (pool, size) = pool_of(wanted).or_else(|| pool_of(other)).unwrap_or(whole);
    let nth = rng.random_range(0..size.max(1));
    let offset = (0..whole.1).filter(|&offset| pool.contains(case, offset)).nth(nth).unwrap_or(0);
    let [_, columns, rows] = case.image.shape();
    [offset / (columns * rows), offset / rows % columns, offset % rows]
}

/// Where foreground and other centres come from; `place` in [0, 1) chooses the class.
fn pools(case: &PreparedCase, foreground: Foreground, place: f64) -> (Pool, Pool) {
    match foreground {
        Foreground::EachClass => {
            let chosen = case.present.iter().nth((place * case.present.len() as f64) as usize);
            (chosen.map_or(Pool::Anywhere, |&class| Pool::Class(class)), Pool::Anywhere)
        }
        Foreground::AnyVoxel => (Pool::Labelled, Pool::BodyWithoutLabel),
    }
}
