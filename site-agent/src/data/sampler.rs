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
use super::window::View;

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
        let index = rng.random_range(0..self.cases.len());
        let case = self.cases.load(index)?;
        let drawn = Augmentation::draw(&self.settings.sampling.augmentation, rng);
        let SamplerSettings { patch, sampling, .. } = &self.settings;
        let view = View::of(case.image.shape(), *patch, drawn.zoom);
        let centre = draw_centre(&case, &view, sampling, self.cases.crop_ratios(index), rng);
        Ok((Crop::cut(&case, centre, *patch, &drawn), case))
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

/// A set of voxels of a case, as its view shows it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Pool {
    Anywhere,
    Class(ClassId),
    /// The reference's foreground: a raw label above 0. Some files mark with one below what nobody looked at.
    Labelled,
    /// The reference's background: no raw label, and inside the body.
    BodyWithoutLabel,
    /// This raw label, inside the body.
    Raw(i32),
}

impl Pool {
    fn contains(self, case: &PreparedCase, view: &View, (at, offset): ([usize; 3], usize)) -> bool {
        let raw = || case.labels.raw().voxels()[offset];
        match self {
            Self::Anywhere => true,
            Self::Class(class) => case.labels.contains(class, offset),
            Self::Labelled => raw() > 0,
            Self::BodyWithoutLabel => Self::Raw(0).contains(case, view, (at, offset)),
            Self::Raw(value) => raw() == value && view.is_bright(&case.image, at, offset),
        }
    }

    fn size(self, case: &PreparedCase, view: &View) -> usize {
        view.rows().map(|row| row.filter(|&voxel| self.contains(case, view, voxel)).count()).sum()
    }

    fn nth(self, nth: usize, case: &PreparedCase, view: &View) -> Option<[usize; 3]> {
        let mut voxels = view.rows().flatten().filter(|&voxel| self.contains(case, view, voxel));
        voxels.nth(nth).map(|(at, _)| at)
    }
}

/// Draws a pool, then one of its voxels in the view.
fn draw_centre(
    case: &PreparedCase,
    view: &View,
    sampling: &Sampling,
    crop_ratios: &[u32],
    rng: &mut impl Rng,
) -> [usize; 3] {
    let (place, share) = (rng.random(), rng.random::<f64>());
    let sized = |pool: Pool| Some((pool, pool.size(case, view))).filter(|&(_, size)| size > 0);
    let balanced = match sampling.foreground {
        Foreground::AnyVoxel => by_raw_value(crop_ratios, sized, share),
        Foreground::EachClass => None,
    };
    let (pool, size) = balanced.unwrap_or_else(|| {
        let (foreground, background) = pools(case, sampling.foreground, place);
        let (wanted, other) = match share < sampling.foreground_probability {
            true => (foreground, background),
            false => (background, foreground),
        };
        // An empty pool hands over to the other (specification §5), and two empty ones to the whole case.
        sized(wanted).or_else(|| sized(other)).unwrap_or((Pool::Anywhere, Pool::Anywhere.size(case, view)))
    });
    let nth = rng.random_range(0..size.max(1));
    pool.nth(nth, case, view).unwrap_or_default()
}

/// A raw value by its ratio among those that the case has; `share` in [0, 1) chooses.
fn by_raw_value(
    ratios: &[u32],
    sized: impl Fn(Pool) -> Option<(Pool, usize)>,
    share: f64,
) -> Option<(Pool, usize)> {
    let present = (0..).zip(ratios).filter(|(_, ratio)| **ratio > 0);
    let present: Vec<_> =
        present.filter_map(|(value, &ratio)| Some((f64::from(ratio), sized(Pool::Raw(value))?))).collect();
    let mut left = share * present.iter().map(|(ratio, _)| ratio).sum::<f64>();
    let chosen = present.iter().find(|(ratio, _)| {
        left -= ratio;
        left < 0.0
    });
    chosen.or(present.last()).map(|&(_, pool)| pool)
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use common::ids::RoundId;
    use common::study::sections::Augmentation as AugmentSettings;
    use nalgebra::Matrix4;

    use super::*;
    use crate::data::geometry::Affine;
    use crate::data::labels::{LabelledCase, MaskSource};
    use crate::data::volume::{Grid, Volume};

    const SHAPE: [usize; 3] = [20, 16, 12];
    const PATCH: [usize; 3] = [8; 3];

    fn class(id: u8) -> ClassId {
        ClassId::new(id).unwrap()
    }

    /// Class 1 is one voxel, class 6 a slab, class 2 annotated and absent; class 9 is there and not annotated.
    fn case() -> PreparedCase {
        let grid = Grid { shape: SHAPE, affine: Affine::new(Matrix4::identity()).unwrap() };
        let mapped = Volume::from_fn(grid.clone(), |[i, j, k]| match (i, j, k) {
            (15, 4, 9) => 1,
            (0..5, ..) => 6,
            (_, 15, _) => 9,
            _ => 0,
        });
        let image = Volume::from_fn(grid, |[i, j, k]| (i * 1000 + j * 30 + k) as f32);
        let masks: BTreeMap<_, _> = [1, 2, 6].map(|id| (class(id), MaskSource::Mapped)).into();
        let raw = mapped.map(|&id| i32::from(id));
        PreparedCase::new(image, LabelledCase::new(mapped, raw, masks))
    }

    fn settings(foreground_probability: f64, foreground: Foreground) -> SamplerSettings {
        let augmentation = AugmentSettings::default();
        SamplerSettings {
            patch: PATCH,
            micro_batch: 2,
            sampling: Sampling { foreground_probability, foreground, augmentation },
            unlabelled: Unlabelled::Masked,
        }
    }

    /// Neither padded nor enlarged: its voxels are those of the case.
    fn plain() -> View {
        View::of(SHAPE, PATCH, 1.0)
    }

    fn sampler(settings: SamplerSettings) -> Sampler {
        Sampler::new(Arc::new(CaseStore::in_memory([case()])), settings, KeyedRng::new(3)).unwrap()
    }

    fn address(round: u32, step: u32, micro: u32) -> BatchAddress {
        BatchAddress { round: RoundId(round), step, micro }
    }

    #[test]
    fn a_batch_is_a_function_of_its_address() {
        let settings = settings(2.0 / 3.0, Foreground::EachClass);
        let (one, two) = (sampler(settings.clone()), sampler(settings));
        let first = one.batch(address(1, 2, 0)).unwrap();
        for other in [address(1, 2, 1), address(1, 3, 0), address(2, 2, 0)] {
            assert_ne!(one.batch(other).unwrap().images, first.images);
        }
        assert_eq!(two.batch(address(1, 2, 0)).unwrap(), first);
    }

    #[test]
    fn micro_batches_only_group_the_samples_of_a_step() {
        let whole = SamplerSettings { micro_batch: 4, ..settings(0.5, Foreground::EachClass) };
        let halves = sampler(settings(0.5, Foreground::EachClass));
        let mut images = halves.batch(address(1, 0, 0)).unwrap().images;
        images.extend(halves.batch(address(1, 0, 1)).unwrap().images);
        assert_eq!(sampler(whole).batch(address(1, 0, 0)).unwrap().images, images);
    }

    #[test]
    fn foreground_is_shared_among_the_classes_that_the_case_shows() {
        let case = case();
        let sampling = settings(0.6, Foreground::EachClass).sampling;
        let mut counts = [0; 3];
        for sample in 0..3000 {
            let centre =
                draw_centre(&case, &plain(), &sampling, &[], &mut KeyedRng::new(1).sample(sample).rng());
            match case.labels.mapped().at(centre) {
                1 => counts[0] += 1,
                6 => counts[1] += 1,
                _ => counts[2] += 1,
            }
        }
        // 0.3 each, and of the 0.4 anywhere a quarter falls into the slab.
        let expected = [900.0, 900.0 + 300.0, 900.0];
        for (got, expected) in counts.into_iter().zip(expected) {
            assert!((f64::from(got) - expected).abs() < 120.0, "{counts:?}");
        }
    }

    #[test]
    fn the_references_foreground_is_any_raw_label_and_its_background_is_inside_the_body() {
        let case = case();
        for (probability, labelled) in [(1.0, true), (0.0, false)] {
            let sampling = settings(probability, Foreground::AnyVoxel).sampling;
            for sample in 0..200 {
                let centre =
                    draw_centre(&case, &plain(), &sampling, &[], &mut KeyedRng::new(2).sample(sample).rng());
                assert_eq!(case.labels.raw().at(centre) != 0, labelled);
                assert!(labelled || case.image.at(centre) > 0.0);
            }
        }
    }

    #[test]
    fn a_raw_value_below_zero_is_neither_foreground_nor_background() {
        let PreparedCase { image, labels, .. } = case();
        let raw = labels.raw().map(|&value| if value == 9 { -1 } else { value });
        let labels = LabelledCase::new(labels.mapped().clone(), raw, labels.masks().clone());
        let case = PreparedCase::new(image, labels);
        for probability in [0.0, 1.0] {
            let sampling = settings(probability, Foreground::AnyVoxel).sampling;
            for sample in 0..200 {
                let mut rng = KeyedRng::new(5).sample(sample).rng();
                let centre = draw_centre(&case, &plain(), &sampling, &[], &mut rng);
                assert_ne!(case.labels.raw().at(centre), -1);
            }
        }
    }

    #[test]
    fn raw_values_are_drawn_by_their_ratios_and_absent_ones_count_for_nothing() {
        let (case, mut drawn) = (case(), BTreeMap::<i32, usize>::new());
        let sampling = settings(0.0, Foreground::AnyVoxel).sampling;
        // Values 2 to 5 do not occur; 7 and 8 are no values of the data set.
        let ratios = [1, 2, 50, 50, 50, 50, 5];
        for sample in 0..4000 {
            let centre =
                draw_centre(&case, &plain(), &sampling, &ratios, &mut KeyedRng::new(3).sample(sample).rng());
            *drawn.entry(case.labels.raw().at(centre)).or_default() += 1;
        }
        assert_eq!(drawn.keys().copied().collect::<Vec<_>>(), [0, 1, 6]);
        for (value, expected) in [(0, 500), (1, 1000), (6, 2500)] {
            assert!(drawn[&value].abs_diff(expected) < 120, "{value}: {} of 4000", drawn[&value]);
        }
    }

    #[test]
    fn centres_are_drawn_from_what_enlarging_leaves_in_sight() {
        let (case, view, mut drawn) = (case(), View::of(SHAPE, PATCH, 1.5), BTreeMap::<usize, usize>::new());
        let sampling = settings(1.0, Foreground::AnyVoxel).sampling;
        for sample in 0..3000 {
            let mut rng = KeyedRng::new(4).sample(sample).rng();
            let [i, ..] = draw_centre(&case, &view, &sampling, &[], &mut rng);
            *drawn.entry(i).or_default() += 1;
        }
        // Of the slab its planes 3 and 4, the latter twice; of class 1 two voxels of 578; and nothing of class 9, beyond the border.
        for plane in [0, 1, 2] {
            assert!(drawn[&plane].abs_diff(996) < 120, "{drawn:?}");
        }
        assert!(drawn.keys().all(|plane| [0, 1, 2, 18].contains(plane)), "{drawn:?}");
    }

    #[test]
    fn an_enlarged_patch_shows_what_it_is_centred_on() {
        let mut settings = settings(1.0, Foreground::AnyVoxel);
        let augmentation = &mut settings.sampling.augmentation;
        (augmentation.zoom_probability, augmentation.zoom_range) = (1.0, [1.5; 2]);
        let sampler = sampler(settings);
        for step in 0..50 {
            let batch = sampler.batch(address(1, step, 0)).unwrap();
            let each = batch.targets.chunks(batch.targets.len() / batch.samples);
            assert!(each.clone().all(|targets| targets.contains(&1)), "step {step}");
        }
    }

    #[test]
    fn targets_follow_the_image_and_unannotated_pairs_do_not_count() {
        let batch = sampler(settings(1.0, Foreground::EachClass)).batch(address(1, 0, 0)).unwrap();
        let ids: Vec<u8> = batch.classes.iter().map(|class| class.get()).collect();
        assert_eq!(ids, [1, 2, 6]);
        assert_eq!(batch.annotated, [true; 6]);
        let voxels: usize = PATCH.iter().product();
        let slab = &batch.targets[2 * voxels..3 * voxels];
        for (image, target) in batch.images.iter().zip(slab) {
            assert_eq!(*target == 1, *image < 5000.0, "the slab is where the image says so");
        }
    }

    #[test]
    fn taking_unlabelled_for_background_makes_every_pair_count() {
        let classes = [1, 2, 6, 9].map(class).into();
        let settings = SamplerSettings {
            unlabelled: Unlabelled::Background(classes),
            ..settings(0.0, Foreground::EachClass)
        };
        let batch = sampler(settings).batch(address(1, 0, 0)).unwrap();
        assert_eq!(batch.classes.len(), 4);
        assert_eq!(batch.annotated, [true; 8]);
        let voxels: usize = PATCH.iter().product();
        assert!(batch.targets[3 * voxels..4 * voxels].iter().all(|&t| t == 0), "class 9 is not annotated");
    }

    #[test]
    fn a_site_without_cases_is_told_so() {
        let empty = Arc::new(CaseStore::in_memory([]));
        let made = Sampler::new(empty, settings(0.5, Foreground::EachClass), KeyedRng::new(1));
        assert!(matches!(made, Err(DataError::NoCases)));
    }
}
