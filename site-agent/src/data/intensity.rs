//! Hounsfield units: whether a volume has them, and how they become what the network sees.

use rayon::prelude::*;
use thiserror::Error;

use super::volume::Volume;

/// Clips each voxel to `low..=high` (HU) and maps that range to 0..=1, as §4 of the specification (−175..250 there).
pub fn window(mut image: Volume<f32>, (low, high): (f32, f32)) -> Volume<f32> {
    image
        .voxels_mut()
        .par_iter_mut()
        .for_each(|voxel| *voxel = ((*voxel - low) / (high - low)).clamp(0.0, 1.0));
    image
}

/// A box of voxels: from `start` on, `shape` of them along each axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VoxelBox {
    /// Its first voxel.
    pub start: [usize; 3],
    /// Its voxels along each axis.
    pub shape: [usize; 3],
}

/// The smallest box around all voxels above zero: of a windowed CT, the patient. The whole volume where there is none.
pub fn foreground(windowed: &Volume<f32>) -> VoxelBox {
    let [nx, ny, nz] = windowed.shape();
    let bright = |x, y, z| windowed.at([x, y, z]) > 0.0;
    let merge = |(low, high): ([usize; 3], [usize; 3]), (l, h): ([usize; 3], [usize; 3])| {
        ([0, 1, 2].map(|i| low[i].min(l[i])), [0, 1, 2].map(|i| high[i].max(h[i])))
    };
    let nothing = || ([usize::MAX; 3], [0; 3]);
    let row = |x: usize, y: usize| {
        let first = (0..nz).find(|&z| bright(x, y, z))?;
        let last = (0..nz).rfind(|&z| bright(x, y, z))?;
        Some(([x, y, first], [x, y, last]))
    };
    let slab = |x: usize| (0..ny).filter_map(|y| row(x, y)).fold(nothing(), merge);
    let (start, last) = (0..nx).into_par_iter().map(slab).reduce(nothing, merge);
    if start[0] == usize::MAX {
        return VoxelBox { start: [0; 3], shape: windowed.shape() };
    }
    VoxelBox { start, shape: [0, 1, 2].map(|i| last[i] + 1 - start[i]) }
}

/// What a volume shows of the landmarks of the Hounsfield scale, as parts of all voxels that are not padding.
///
/// Padding is what lies below −1100: scanners fill the corners outside of their field with −1024 to −3024.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HounsfieldEvidence {
    /// Smallest value.
    pub min: f32,
    /// Largest value.
    pub max: f32,
    /// Part with −1100..=−700: air and lung.
    pub air: f64,
    /// Part with −150..=−30: fat.
    pub fat: f64,
    /// Part with −20..=120: water, muscle, blood, organs.
    pub soft_tissue: f64,
}

/// A volume whose values do not look like Hounsfield units.
#[derive(Debug, Error, PartialEq)]
#[error(
    "the values do not look like Hounsfield units: from {min} to {max}, {air:.1} % like air (-1100..-700), {fat:.1} % like fat \
     (-150..-30), {soft:.1} % like soft tissue (-20..120); a CT has {least_soft:.0} % of \
     soft tissue, and {least_air:.0} % of air or {least_fat:.0} % of fat, at least\n\nhint: is this an MR, a windowed picture, or a CT without its rescale slope and intercept? \
     If it is a CT all the same, write `hounsfield = \"assume\"` for this case in cases.toml; `predict` has \
     --assume-hounsfield",
    min = .0.min, max = .0.max, air = 100.0 * .0.air, fat = 100.0 * .0.fat, soft = 100.0 * .0.soft_tissue,
    least_soft = 100.0 * LEAST_SOFT_TISSUE, least_air = 100.0 * LEAST_AIR, least_fat = 100.0 * LEAST_FAT
)]
pub struct NotHounsfield(pub HounsfieldEvidence);

/// A patient is mostly water, whatever part of him was scanned.
const LEAST_SOFT_TISSUE: f64 = 0.03;
/// Air around the patient, in lungs or bowel.
const LEAST_AIR: f64 = 0.01;
/// Under the skin and between the organs, also where the volume was cropped to the body.
const LEAST_FAT: f64 = 0.02;

/// Whether values can be Hounsfield units: water near 0, and below it either air or fat.
///
/// That pins the scale at two points. An MR starts at 0 and has neither air nor fat there; stored values without their
/// intercept (air near 0, water near 1000) have nothing below zero; pictures (0..255, 0..1) likewise. A crop inside one
/// organ is refused too: nothing in it tells it from an MR.
///
/// # Errors
/// [`NotHounsfield`] with what was seen, and the setting by which the site takes the responsibility.
pub fn check_hounsfield(image: &Volume<f32>) -> Result<HounsfieldEvidence, NotHounsfield> {
    let evidence = survey(image);
    let below_water = evidence.air >= LEAST_AIR || evidence.fat >= LEAST_FAT;
    if evidence.soft_tissue >= LEAST_SOFT_TISSUE && below_water {
        Ok(evidence)
    } else {
        Err(NotHounsfield(evidence))
    }
}

fn survey(image: &Volume<f32>) -> HounsfieldEvidence {
    let voxels = image.voxels();
    let among = |low: f32, high: f32| voxels.par_iter().filter(|v| (low..=high).contains(*v)).count() as f64;
    let tissue = among(-1100.0, f32::INFINITY).max(1.0);
    HounsfieldEvidence {
        min: voxels.par_iter().copied().reduce(|| f32::INFINITY, f32::min),
        max: voxels.par_iter().copied().reduce(|| f32::NEG_INFINITY, f32::max),
        air: among(-1100.0, -700.0) / tissue,
        fat: among(-150.0, -30.0) / tissue,
        soft_tissue: among(-20.0, 120.0) / tissue,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use nalgebra::Matrix4;

    use super::*;
    use crate::data::fixtures::shared;
    use crate::data::geometry::Affine;
    use crate::data::nifti::{Limits, read_image};
    use crate::data::volume::Grid;

    fn volume(shape: [usize; 3], value: impl Fn([usize; 3]) -> f32 + Sync) -> Volume<f32> {
        Volume::from_fn(Grid { shape, affine: Affine::new(Matrix4::identity()).unwrap() }, value)
    }

    fn read(path: &Path) -> Volume<f32> {
        read_image(path, &Limits::default()).unwrap().volume
    }

    #[test]
    fn the_window_maps_its_ends_to_zero_and_one() {
        let hu = [-1000.0, -175.0, 37.5, 250.0, 3000.0];
        let windowed = window(volume([1, 1, 5], |[_, _, k]| hu[k]), (-175.0, 250.0));
        assert_eq!(windowed.voxels(), [0.0, 0.0, 0.5, 1.0, 1.0]);
    }

    #[test]
    fn the_foreground_box_is_tight_on_every_side() {
        let lit = [[1, 4, 2], [3, 2, 5], [2, 3, 3]];
        let image = volume([5, 6, 7], |index| if lit.contains(&index) { 0.25 } else { 0.0 });
        assert_eq!(foreground(&image), VoxelBox { start: [1, 2, 2], shape: [3, 3, 4] });
        let dark = volume([5, 6, 7], |_| 0.0);
        assert_eq!(foreground(&dark), VoxelBox { start: [0; 3], shape: [5, 6, 7] });
    }

    #[test]
    fn real_ct_passes_whole_and_cropped_to_the_body() {
        let Some(data) = shared("data") else { return };
        let cases = ["abdomen-pelvis-3mm", "upper-abdomen-3mm", "thorax-aorta-1.5mm"]
            .map(|case| format!("cases/{case}"));
        let sites = ["a", "b", "c"]
            .into_iter()
            .flat_map(|site| [1, 2].map(|case| format!("federated/site-{site}/case-{case}")));
        for case in cases.into_iter().chain(sites) {
            let ct = read(&data.join(&case).join("ct.nii.gz"));
            let whole = check_hounsfield(&ct).unwrap_or_else(|error| panic!("{case}: {error}"));
            // The middle third along each axis: body alone.
            let [nx, ny, nz] = ct.shape().map(|n| n / 3);
            let middle = volume([nx, ny, nz], |[i, j, k]| ct.at([nx + i, ny + j, nz + k]));
            let inside = check_hounsfield(&middle).unwrap_or_else(|error| panic!("{case}, cropped: {error}"));
            println!("{case}: {whole:?}; middle {inside:?}");
        }
        check_hounsfield(&read(&data.join("odd-nifti/plain-nii1.nii"))).unwrap();
    }

    #[test]
    fn an_mr_is_refused_with_the_way_out() {
        let Some(mr) = shared("data/negative/mr-not-ct/mr.nii.gz") else { return };
        let error = check_hounsfield(&read(&mr)).unwrap_err();
        insta::assert_snapshot!(error.to_string(), @r#"
        the values do not look like Hounsfield units: from -47 to 833, 0.0 % like air (-1100..-700), 0.0 % like fat (-150..-30), 52.4 % like soft tissue (-20..120); a CT has 3 % of soft tissue, and 1 % of air or 2 % of fat, at least

        hint: is this an MR, a windowed picture, or a CT without its rescale slope and intercept? If it is a CT all the same, write `hounsfield = "assume"` for this case in cases.toml; `predict` has --assume-hounsfield
        "#);
    }

    #[test]
    fn a_ct_that_lost_its_scale_is_refused() {
        let Some(path) = shared("data/cases/abdomen-pelvis-3mm/ct.nii.gz") else { return };
        let ct = read(&path);
        let refused = |changed: Volume<f32>| check_hounsfield(&changed).is_err();
        assert!(refused(ct.map(|v| v + 1024.0)), "stored values without intercept");
        assert!(refused(window(ct.clone(), (-175.0, 250.0))), "windowed to 0..1");
        assert!(refused(window(ct.clone(), (-175.0, 250.0)).map(|v| 255.0 * v)), "windowed to 0..255");
        assert!(refused(ct.map(|v| (v + 400.0) / 500.0)), "standardised");
        assert!(refused(ct.map(|v| v / 1000.0)), "in units of 1000 HU");
        assert!(!refused(ct.map(|v| if *v < -900.0 { -3024.0 } else { *v })), "padded instead of air");
    }
}
