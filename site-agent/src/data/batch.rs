//! What one forward and backward pass reads: patches, targets, and which (sample, class) pairs count.

use std::collections::BTreeSet;

use common::ids::{ClassId, RoundId};

use super::window::View;
use super::{augment, augment::Augmentation, labels::LabelledCase, prepared::PreparedCase};

/// One patch with the labels of its case.
#[derive(Clone, Debug)]
pub struct Crop {
    image: Vec<f32>,
    /// Voxel of the case that labels each voxel of the patch; none for padding.
    offsets: Vec<Option<usize>>,
}

impl Crop {
    /// Cuts a patch around voxel `centre` of `case`, counted as [`View`] shows it with this patch and zoom.
    pub fn cut(case: &PreparedCase, centre: [usize; 3], patch: [usize; 3], drawn: &Augmentation) -> Self {
        let shape = case.image.shape();
        let window = View::of(shape, patch, drawn.zoom).window(centre, patch);
        let image =
            window.image(&case.image).into_iter().map(|value| value + drawn.shift).collect::<Vec<_>>();
        Self {
            image: augment::turn(&image, patch, drawn.quarter_turns),
            offsets: augment::turn(&window.label_offsets(shape), patch, drawn.quarter_turns),
        }
    }

    /// The windowed intensities, C order.
    pub fn image(&self) -> &[f32] {
        &self.image
    }

    /// The mask of `class` as 0 and 1; all 0 where the case does not annotate it.
    pub fn target(&self, labels: &LabelledCase, class: ClassId) -> impl Iterator<Item = u8> {
        let inside = move |offset: usize| labels.contains(class, offset);
        self.offsets.iter().map(move |offset| u8::from(offset.is_some_and(inside)))
    }
}

/// A micro-batch on the host, all arrays in C order.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Sides of a patch.
    pub patch: [usize; 3],
    /// Number of patches n.
    pub samples: usize,
    /// Intensities `[n, 1, x, y, z]`.
    pub images: Vec<f32>,
    /// The classes k that the head is asked for, ascending: those that some sample annotates.
    pub classes: Vec<ClassId>,
    /// Masks `[n, k, x, y, z]`, 0 and 1. Batches wait prepared, so these are as small as they can be.
    pub targets: Vec<u8>,
    /// For each (sample, class) pair `[n, k]`, whether it counts.
    pub annotated: Vec<bool>,
}

/// What unannotated structures are taken for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Unlabelled {
    /// Nothing: their pairs do not count.
    #[default]
    Masked,
    /// Background, in all of these classes: the mistake that masking avoids. For comparison only.
    Background(BTreeSet<ClassId>),
}

impl Batch {
    /// Joins crops and the cases that they were cut from.
    pub fn of<'a>(
        patch: [usize; 3],
        samples: impl IntoIterator<Item = (&'a Crop, &'a LabelledCase)>,
        unlabelled: &Unlabelled,
    ) -> Self {
        let samples: Vec<_> = samples.into_iter().collect();
        let mut classes: BTreeSet<ClassId> =
            samples.iter().flat_map(|(_, labels)| labels.annotated()).collect();
        if let Unlabelled::Background(all) = unlabelled {
            classes.extend(all);
        }
        let mut batch = Self {
            patch,
            samples: samples.len(),
            images: Vec::new(),
            classes: classes.into_iter().collect(),
            targets: Vec::new(),
            annotated: Vec::new(),
        };
        for (crop, labels) in samples {
            batch.images.extend_from_slice(&crop.image);
            for &class in &batch.classes {
                batch.targets.extend(crop.target(labels, class));
                let counts = labels.masks().contains_key(&class);
                batch.annotated.push(counts || *unlabelled != Unlabelled::Masked);
            }
        }
        batch
    }
}

/// Which micro-batch of a study: everything that its draws are keyed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchAddress {
    /// The round.
    pub round: RoundId,
    /// Optimiser step within the round, from 0.
    pub step: u32,
    /// Micro-batch within the step, from 0.
    pub micro: u32,
}

/// Where a trainer's batches come from: a pure function of the address.
pub trait BatchSource: Send + Sync {
    /// The micro-batch at `address`.
    ///
    /// # Errors
    /// When a case cannot be read.
    fn batch(&self, address: BatchAddress) -> Result<Batch, super::DataError>;
}
