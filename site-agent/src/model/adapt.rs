//! A trained model for other classes: the backbone stays to the bit, and what speaks of classes stays or begins anew.
//!
//! With a fixed table of embeddings no tensor belongs to a class: other rows of the same width need no change at all. Only
//! embeddings of another width make the layer that reads them new. A learned table keeps the rows of classes that both
//! taxonomies name.

use std::collections::BTreeMap;

use common::study::CLASS_TABLE_TENSOR as TABLE;
use common::taxonomy::{Class, Taxonomy};

use super::embedding::EMBEDDING_NAME;
use super::error::ModelError;
use super::head::FEATURE_WIDTH;
use super::tensors::{NamedTensors, TensorMismatch};

const TEXT_WEIGHT: &str = "text_to_vision.weight";
const TEXT_BIAS: &str = "text_to_vision.bias";

/// The parts of a network, by what their tensors' names begin with.
const PARTS: [&str; 6] =
    ["backbone.", "precls_conv.", "GAP.", "text_to_vision.", "organ_embedding.", "controller."];

/// What becomes of the layers that make a class's own small network of image and embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Controller {
    /// They stay, as far as the embeddings have the same width.
    Keep,
    /// They begin anew: controller and text layer.
    Fresh,
}

/// A model for other classes, and what was made of each part.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapted {
    /// The model.
    pub tensors: NamedTensors,
    /// Its parts, in the order of the forward pass.
    pub parts: Vec<AdaptedPart>,
}

/// What was made of one part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdaptedPart {
    /// Such as `backbone`.
    pub name: &'static str,
    /// Number of its tensors.
    pub tensors: usize,
    /// Numbers in them.
    pub numbers: usize,
    /// Where they come from.
    pub origin: Origin,
}

/// Where the numbers of a part come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The trained model, to the bit.
    Kept,
    /// The seed, and why.
    Fresh(String),
    /// Both: a learned table.
    Rows {
        /// Classes whose rows were kept.
        kept: Vec<String>,
        /// Classes whose rows begin anew.
        fresh: Vec<String>,
    },
}

/// Makes of `trained`, a model of the classes of `from`, one for the classes of `to`; `initial` is a fresh model for these.
///
/// # Errors
/// [`ModelError::Mismatch`] with every difference unless both are models of one backbone and width, and the rows of a learned
/// table are those of `from`.
pub fn adapt(
    trained: &NamedTensors,
    initial: NamedTensors,
    controller: Controller,
    from: &Taxonomy,
    to: &Taxonomy,
) -> Result<Adapted, ModelError> {
    check(trained, &initial, from)?;
    let origins = PARTS.map(|prefix| (prefix, origin(prefix, trained, &initial, controller, from, to)));
    let mut tensors = initial;
    let mut parts = Vec::new();
    for (prefix, origin) in origins {
        let mut part = AdaptedPart { name: prefix.trim_end_matches('.'), tensors: 0, numbers: 0, origin };
        for (name, tensor) in tensors.iter_mut().filter(|(name, _)| name.starts_with(prefix)) {
            part.tensors += 1;
            part.numbers += tensor.values().len();
            match (&part.origin, trained.get(name)) {
                (Origin::Kept, Some(kept)) => *tensor = kept.clone(),
                (Origin::Rows { .. }, Some(old)) => copy_rows(tensor.values_mut(), old.values(), from, to),
                _ => {}
            }
        }
        if part.tensors > 0 {
            parts.push(part);
        }
    }
    Ok(Adapted { tensors, parts })
}

/// The trained model has what the new one has, but for what depends on classes and embeddings.
fn check(trained: &NamedTensors, initial: &NamedTensors, from: &Taxonomy) -> Result<(), ModelError> {
    let of_classes = |name: &str| [TABLE, TEXT_WEIGHT, TEXT_BIAS].contains(&name);
    let others = initial.iter().filter(|(name, _)| !of_classes(name.as_str()));
    let mut expected: BTreeMap<String, Vec<usize>> =
        others.map(|(name, tensor)| (name.clone(), tensor.shape().to_vec())).collect();
    if trained.contains_key(TABLE) {
        expected.insert(TABLE.to_owned(), vec![from.len(), FEATURE_WIDTH]);
    } else {
        let any_width = text_width(trained).unwrap_or(0);
        expected.insert(TEXT_WEIGHT.to_owned(), vec![FEATURE_WIDTH, any_width]);
        expected.insert(TEXT_BIAS.to_owned(), vec![FEATURE_WIDTH]);
    }
    // An export may have its fixed table in the same file; the new model has another.
    let given = trained.iter().filter(|(name, _)| *name != EMBEDDING_NAME);
    let given = given.map(|(name, tensor)| (name.clone(), tensor.shape().to_vec())).collect();
    TensorMismatch::check_shapes(&expected, &given)
}

/// Width of the embeddings that a model reads, if it reads any.
fn text_width(tensors: &NamedTensors) -> Option<usize> {
    tensors.get(TEXT_WEIGHT)?.shape().get(1).copied()
}

fn origin(
    prefix: &str,
    trained: &NamedTensors,
    initial: &NamedTensors,
    controller: Controller,
    from: &Taxonomy,
    to: &Taxonomy,
) -> Origin {
    let asked = || Origin::Fresh("asked for".to_owned());
    match prefix {
        "text_to_vision." => match (text_width(trained), text_width(initial)) {
            (None, _) => Origin::Fresh("the model had a learned class table in its place".to_owned()),
            (Some(old), Some(new)) if old != new => {
                Origin::Fresh(format!("the embeddings are {new} wide, the model read {old}"))
            }
            _ if controller == Controller::Fresh => asked(),
            _ => Origin::Kept,
        },
        "controller." if controller == Controller::Fresh => asked(),
        "organ_embedding." if !trained.contains_key(TABLE) => {
            Origin::Fresh("the model read embeddings in its place".to_owned())
        }
        "organ_embedding." => {
            let known = |class: &&Class| from.counterpart(class).is_some();
            let (kept, fresh): (Vec<_>, Vec<_>) = to.classes().iter().partition(known);
            let names = |classes: Vec<&Class>| classes.into_iter().map(|class| class.name.clone()).collect();
            Origin::Rows { kept: names(kept), fresh: names(fresh) }
        }
        _ => Origin::Kept,
    }
}

/// The rows of classes that both taxonomies name, each to its new place.
fn copy_rows(new: &mut [f32], old: &[f32], from: &Taxonomy, to: &Taxonomy) {
    for (row, class) in new.chunks_exact_mut(FEATURE_WIDTH).zip(to.classes()) {
        let start = from.counterpart(class).map(|known| known.channel() * FEATURE_WIDTH);
        if let Some(trained) = start.and_then(|start| old.get(start..start + FEATURE_WIDTH)) {
            row.copy_from_slice(trained);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        ClassEmbeddings, DeviceKind, EmbeddingConfig, EmbeddingKind, HostTensor, ModelConfig, UniversalModel,
        device,
    };

    /// Heart and liver: the first is new, the second has another number than in the standard taxonomy.
    fn two() -> Taxonomy {
        let text = "[[class]]\nid = 1\nname = \"Heart\"\nkind = \"organ\"\n\
                    [[class]]\nid = 2\nname = \"Liver\"\nkind = \"organ\"\n";
        Taxonomy::parse("two.toml", text).unwrap()
    }

    fn fixed(rows: usize, width: usize, seed: u64) -> NamedTensors {
        let table = HostTensor::from_fn(vec![rows, width], |i| i as f32);
        let table = ClassEmbeddings::new(EmbeddingKind::Imported, table).unwrap();
        model(EmbeddingConfig { kind: table.kind(), rows, width }, Some(&table), seed)
    }

    fn learned(rows: usize, seed: u64) -> NamedTensors {
        model(EmbeddingConfig { kind: EmbeddingKind::Learned, rows, width: FEATURE_WIDTH }, None, seed)
    }

    fn model(embedding: EmbeddingConfig, table: Option<&ClassEmbeddings>, seed: u64) -> NamedTensors {
        let config = ModelConfig::unet(8, embedding);
        UniversalModel::new(&config, table, seed, &device(DeviceKind::Cpu).unwrap()).unwrap().export()
    }

    fn adapted(trained: &NamedTensors, initial: &NamedTensors, controller: Controller) -> Adapted {
        adapt(trained, initial.clone(), controller, &Taxonomy::standard(), &two()).unwrap()
    }

    fn origin_of<'a>(adapted: &'a Adapted, name: &str) -> &'a Origin {
        &adapted.parts.iter().find(|part| part.name == name).unwrap().origin
    }

    /// Names of the tensors of one part that are not those of another model.
    fn changed(one: &NamedTensors, other: &NamedTensors) -> Vec<String> {
        one.iter()
            .filter(|(name, tensor)| other.get(*name) != Some(*tensor))
            .map(|(n, _)| n.clone())
            .collect()
    }

    #[test]
    fn embeddings_of_the_same_width_leave_every_tensor_as_it_was() {
        let (trained, initial) = (fixed(32, 20, 1), fixed(2, 20, 2));
        let kept = adapted(&trained, &initial, Controller::Keep);
        assert_eq!(kept.tensors, trained);
        assert!(kept.parts.iter().all(|part| part.origin == Origin::Kept), "{:?}", kept.parts);
        assert_eq!(kept.parts.iter().map(|part| part.tensors).sum::<usize>(), trained.len());
    }

    #[test]
    fn a_fresh_controller_is_that_of_the_seed_and_the_rest_is_kept_to_the_bit() {
        let (trained, initial) = (fixed(32, 20, 1), fixed(2, 20, 2));
        let fresh = adapted(&trained, &initial, Controller::Fresh);
        let names = ["controller.bias", "controller.weight", "text_to_vision.bias", "text_to_vision.weight"];
        assert_eq!(changed(&fresh.tensors, &trained), names);
        assert!(names.iter().all(|name| fresh.tensors[*name] == initial[*name]));
        assert!(matches!(origin_of(&fresh, "controller"), Origin::Fresh(why) if why == "asked for"));
        assert_eq!(adapted(&trained, &initial, Controller::Fresh), fresh);
    }

    #[test]
    fn embeddings_of_another_width_make_the_text_layer_new_and_are_named() {
        let (trained, initial) = (fixed(32, 20, 1), fixed(2, 7, 2));
        let wider = adapted(&trained, &initial, Controller::Keep);
        assert_eq!(changed(&wider.tensors, &trained), ["text_to_vision.bias", "text_to_vision.weight"]);
        let Origin::Fresh(why) = origin_of(&wider, "text_to_vision") else { panic!("it cannot be kept") };
        assert_eq!(why, "the embeddings are 7 wide, the model read 20");
        assert_eq!(origin_of(&wider, "controller"), &Origin::Kept);
    }

    #[test]
    fn a_learned_table_keeps_the_rows_of_classes_of_the_same_name() {
        let (trained, initial) = (learned(32, 1), learned(2, 2));
        let fewer = adapted(&trained, &initial, Controller::Keep);
        let rows = |tensors: &NamedTensors| tensors[TABLE].values().to_vec();
        let (new, old) = (rows(&fewer.tensors), rows(&trained));
        assert_eq!(new[..FEATURE_WIDTH], rows(&initial)[..FEATURE_WIDTH], "a heart is new");
        assert_eq!(new[FEATURE_WIDTH..], old[5 * FEATURE_WIDTH..6 * FEATURE_WIDTH], "a liver was class 6");
        let Origin::Rows { kept, fresh } = origin_of(&fewer, "organ_embedding") else { panic!("no table") };
        assert_eq!(
            (kept.as_slice(), fresh.as_slice()),
            (&["Liver".to_owned()][..], &["Heart".to_owned()][..])
        );
        assert_eq!(changed(&fewer.tensors, &trained), [TABLE]);
    }

    #[test]
    fn a_learned_table_can_be_left_for_embeddings() {
        let (trained, initial) = (learned(32, 1), fixed(2, 7, 2));
        let read = adapted(&trained, &initial, Controller::Keep);
        assert!(read.tensors.keys().eq(initial.keys()));
        assert_eq!(changed(&read.tensors, &trained), ["text_to_vision.bias", "text_to_vision.weight"]);
        assert!(matches!(origin_of(&read, "text_to_vision"), Origin::Fresh(_)));
    }

    #[test]
    fn a_model_of_another_backbone_or_taxonomy_is_refused_with_every_difference() {
        let mut short = fixed(32, 20, 1);
        short.remove("GAP.3.bias");
        let refused = |trained: &NamedTensors, initial: NamedTensors| {
            adapt(trained, initial, Controller::Keep, &Taxonomy::standard(), &two()).unwrap_err().to_string()
        };
        let words = refused(&short, fixed(2, 20, 2));
        assert!(words.contains("1 missing, 0 unknown, 0 of another shape"), "{words}");
        let words = refused(&learned(3, 1), learned(2, 2));
        assert!(words.contains("organ_embedding.weight: [3, 256], expected [32, 256]"), "{words}");
    }

    #[test]
    fn a_fixed_table_in_the_models_own_file_is_passed_over() {
        let mut trained = fixed(32, 20, 1);
        trained.insert(EMBEDDING_NAME.to_owned(), HostTensor::from_fn(vec![32, 20], |i| i as f32));
        let kept = adapted(&trained, &fixed(2, 20, 2), Controller::Keep);
        assert!(!kept.tensors.contains_key(EMBEDDING_NAME));
    }
}
