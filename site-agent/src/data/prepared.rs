//! Cases ready for sampling: image and labels on the network's grid, made once and kept.

use std::collections::BTreeSet;
use std::sync::Arc;

use common::ids::ClassId;
use common::taxonomy::Taxonomy;

use super::DataError;
use super::cache::{CaseCache, CaseKey};
use super::dataset::Case;
use super::labels::LabelledCase;
use super::nifti::{Image, Limits, read_labels};
use super::orientation;
use super::preprocess::{Preprocessing, preprocess_image};
use super::volume::Volume;

/// Image (f32), mapped class (u8) and raw label (i32).
const BYTES_PER_VOXEL: usize = 9;

/// A case on the network's grid.
#[derive(Clone, Debug, PartialEq)]
pub struct PreparedCase {
    /// Windowed to 0..1, axes R, A, S, cropped to the patient.
    pub image: Volume<f32>,
    /// Its labels, on the same grid.
    pub labels: LabelledCase,
    /// The annotated classes with at least one voxel on this grid.
    pub present: BTreeSet<ClassId>,
}

impl PreparedCase {
    /// Joins an image and its labels.
    ///
    /// # Panics
    /// When their grids differ: a mistake of the caller.
    pub fn new(image: Volume<f32>, labels: LabelledCase) -> Self {
        assert_eq!(image.shape(), labels.grid().shape, "labels lie on the grid of their image");
        let shown = |&class: &ClassId| (0..image.grid().len()).any(|offset| labels.contains(class, offset));
        let present = labels.annotated().filter(shown).collect();
        Self { image, labels, present }
    }

    /// Reads the files of `case` and brings them to the network's grid.
    ///
    /// # Errors
    /// Whatever is wrong with the case; the error names it.
    pub fn read(case: &Case, settings: &Preprocessing, taxonomy: &Taxonomy) -> Result<Self, DataError> {
        Self::of_scan(case, case.read_scan()?, settings, taxonomy)
    }

    /// The same of a scan that was read ([`Case::read_scan`]).
    ///
    /// # Errors
    /// As [`PreparedCase::read`].
    pub fn of_scan(
        case: &Case,
        image: Image,
        settings: &Preprocessing,
        taxonomy: &Taxonomy,
    ) -> Result<Self, DataError> {
        let (raw, _) = orientation::to_ras(&read_labels(&case.labels, &Limits::default())?);
        let file = case.labels.display().to_string();
        let labels = LabelledCase::transfer(raw, &case.label_map, &case.annotated, taxonomy, &file)
            .map_err(DataError::of_case(&case.name))?;
        let prepared = preprocess_image(image, settings).map_err(DataError::of_case(&case.name))?;
        let labels = labels.prepared(&prepared.journey).map_err(DataError::of_case(&case.name))?;
        Ok(Self::new(prepared.image, labels))
    }
}

/// The prepared cases of a site: in memory as far as they may, the others on disk.
pub struct CaseStore {
    cases: Vec<(Slot, CropRatios)>,
}

/// Of the case's label map.
type CropRatios = Vec<u32>;

/// Where a prepared case is. Settled when the store is opened, so that nothing is ever evicted or waited for.
enum Slot {
    Memory(Arc<PreparedCase>),
    Disk(Box<dyn Fn() -> Result<PreparedCase, DataError> + Send + Sync>),
}

/// What a case contributes to the label manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaseSummary {
    /// Key of its label map.
    pub dataset: String,
    /// Whose it is; does not leave the site.
    pub patient: String,
    /// Classes that it annotates.
    pub annotated: BTreeSet<ClassId>,
    /// Annotated classes with at least one voxel.
    pub present: BTreeSet<ClassId>,
    /// Whether a model, and no annotator, labelled it.
    pub pseudo: bool,
}

impl CaseStore {
    /// Prepares every case, through the cache, which keeps these for its user and no others; keeps those in memory that fit into
    /// `memory_bytes`, in order.
    ///
    /// # Errors
    /// What is wrong with the first case that cannot be used.
    pub fn open(
        cases: Vec<Case>,
        settings: Preprocessing,
        taxonomy: &Arc<Taxonomy>,
        cache: &CaseCache,
        memory_bytes: usize,
    ) -> Result<(Self, Vec<CaseSummary>), DataError> {
        let key_of = |case| CaseKey::of(case, &settings, taxonomy.digest());
        let keys = cases.iter().map(key_of).collect::<Result<Vec<_>, _>>()?;
        // Before any is prepared: there may be no room beside those that nobody needs.
        cache.keep_only(&keys)?;
        let (mut slots, mut summaries, mut room) = (Vec::new(), Vec::new(), memory_bytes);
        for (case, key) in cases.into_iter().zip(keys) {
            let summary = |prepared: &PreparedCase| CaseSummary {
                dataset: case.label_map.key.clone(),
                patient: case.patient.clone(),
                annotated: case.annotated.clone(),
                present: prepared.present.clone(),
                pseudo: case.pseudo,
            };
            let prepared = cache.load_or(key, || PreparedCase::read(&case, &settings, taxonomy))?;
            summaries.push(summary(&prepared));
            let needed = prepared.image.grid().len() * BYTES_PER_VOXEL;
            let ratios = case.label_map.crop_ratios.clone();
            let slot = if needed <= room {
                room -= needed;
                Slot::Memory(Arc::new(prepared))
            } else {
                let (cache, taxonomy) = (cache.clone(), taxonomy.clone());
                Slot::Disk(Box::new(move || {
                    cache.load_or(key, || PreparedCase::read(&case, &settings, &taxonomy))
                }))
            };
            slots.push((slot, ratios));
        }
        Ok((Self { cases: slots }, summaries))
    }

    /// A store of cases that are already prepared.
    pub fn in_memory(cases: impl IntoIterator<Item = PreparedCase>) -> Self {
        let slot = |case| (Slot::Memory(Arc::new(case)), CropRatios::new());
        Self { cases: cases.into_iter().map(slot).collect() }
    }

    /// [`crop_ratios`](common::label_map::LabelMap::crop_ratios) of the label map of case number `index`.
    ///
    /// # Panics
    /// When there is no such case: a mistake of the caller.
    pub fn crop_ratios(&self, index: usize) -> &[u32] {
        &self.cases[index].1
    }

    /// Number of cases.
    pub fn len(&self) -> usize {
        self.cases.len()
    }

    /// Whether there is no case.
    pub fn is_empty(&self) -> bool {
        self.cases.is_empty()
    }

    /// Case number `index`.
    ///
    /// # Errors
    /// A case on disk that can be read no more.
    ///
    /// # Panics
    /// When there is no such case: a mistake of the caller.
    pub fn load(&self, index: usize) -> Result<Arc<PreparedCase>, DataError> {
        match &self.cases[index].0 {
            Slot::Memory(case) => Ok(case.clone()),
            Slot::Disk(read) => read().map(Arc::new),
        }
    }
}
