//! Phantoms as files: for each data set of a hospital a folder of cases and its label map.
//!
//! ```text
//! <folder>/<data set>/dataset.toml                  label map
//! <folder>/<data set>/case-0003/{ct,labels}.nii.gz  labels in the data set's own numbers
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::Context;
use common::ids::ClassId;
use common::label_map::{Annotated, Fold, LabelMap, Purpose, RawMask, Target};
use common::taxonomy::{ClassKind, Taxonomy};

use super::hospital::{Hospital, PhantomDataset};
use super::{Phantom, generate};
use crate::data::dataset::{DatasetConfig, LABEL_MAP_FILE};
use crate::data::nifti::{write_image_i16, write_labels};
use crate::data::volume::Volume;

/// Writes cases 0 to `cases` - 1 of `hospital` under `folder` and returns its data sets, with folders relative to it.
///
/// Each case goes to one of the hospital's data sets, in turn. `spacing_mm` replaces the hospital's own voxel size.
///
/// # Errors
/// The disk's refusal.
pub fn write_hospital(
    folder: &Path,
    hospital: &Hospital,
    seed: u64,
    cases: u32,
    spacing_mm: Option<[f64; 3]>,
) -> anyhow::Result<Vec<DatasetConfig>> {
    let taxonomy = Taxonomy::standard();
    for dataset in hospital.datasets {
        let target = folder.join(dataset.name);
        fs::create_dir_all(&target).with_context(|| format!("cannot make {}", target.display()))?;
        let map = label_map(hospital, dataset, &taxonomy).to_toml(&taxonomy);
        fs::write(target.join(LABEL_MAP_FILE), map).context("cannot write a label map")?;
    }
    for (case, dataset) in (0..cases).zip(hospital.datasets.iter().cycle()) {
        let target = folder.join(dataset.name).join(format!("case-{case:04}"));
        fs::create_dir_all(&target).with_context(|| format!("cannot make {}", target.display()))?;
        let phantom = generate(hospital, seed, case, spacing_mm);
        write_image_i16(&target.join("ct.nii.gz"), &phantom.ct)?;
        write_labels(&target.join("labels.nii.gz"), &raw_labels(&phantom, dataset))?;
    }
    let config = |dataset: &PhantomDataset| DatasetConfig {
        name: dataset.name.to_owned(),
        folder: dataset.name.into(),
        label_map: None,
        taxonomy: None,
        annotated: None,
        validation_share: 0.0,
    };
    Ok(hospital.datasets.iter().map(config).collect())
}

/// The labels of a phantom in the numbers of a data set; a tumour that it does not annotate counts as its organ.
fn raw_labels(phantom: &Phantom, dataset: &PhantomDataset) -> Volume<u8> {
    let mut raw_of = [0; 256];
    for label in dataset.labels {
        label.classes.iter().for_each(|&class| raw_of[usize::from(class)] = label.value);
    }
    let both = phantom.organs.voxels().iter().zip(phantom.tumours.voxels());
    let raw = both.map(|(&organ, &tumour)| match raw_of[usize::from(tumour)] {
        0 => raw_of[usize::from(organ)],
        value => value,
    });
    Volume::new(phantom.organs.grid().clone(), raw.collect())
}

/// The label map of a phantom data set: tumours fold into their organ, a value for both sides is split.
fn label_map(hospital: &Hospital, dataset: &PhantomDataset, taxonomy: &Taxonomy) -> LabelMap {
    let classes = |ids: &[u8]| ids.iter().filter_map(|&id| ClassId::new(id)).collect::<Vec<_>>();
    let mut map = LabelMap {
        name: format!("{} {}", hospital.name, dataset.name),
        key: dataset.name.to_owned(),
        purpose: Purpose::Training,
        values: BTreeMap::from([(0, Target::Drop)]),
        annotated: Annotated::Always(Vec::new()),
        folds: Vec::new(),
        splits: Vec::new(),
        raw_masks: Vec::new(),
        exclusions: Vec::new(),
        crop_ratios: Vec::new(),
        merge: Vec::new(),
        provenance: None,
    };
    let mut annotated = Vec::new();
    for label in dataset.labels {
        let named = classes(label.classes);
        let Some(&first) = named.first() else { continue };
        map.values.insert(i32::from(label.value), Target::Class(first));
        if named.len() == 2 {
            map.splits.push(first);
        }
        let organ = taxonomy.class(first).filter(|class| class.kind != ClassKind::Organ);
        if let Some(&organ) = organ.and_then(|lesion| lesion.parents.first()) {
            map.folds.push(Fold { from: vec![first], into: organ });
            map.raw_masks.push(RawMask { class: first, values: vec![i32::from(label.value)] });
        }
        annotated.extend(named);
    }
    map.annotated = Annotated::Always(annotated);
    map
}
