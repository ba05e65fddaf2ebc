use burn::module::list_param_ids;

use super::*;

fn config(kind: EmbeddingKind, rows: usize, width: usize) -> ModelConfig {
    ModelConfig::unet(8, EmbeddingConfig { kind, rows, width })
}

fn one_hot_model(seed: u64) -> UniversalModel {
    let embeddings = ClassEmbeddings::one_hot(32, 1.0).unwrap();
    let config = config(EmbeddingKind::OneHot, 32, 32);
    UniversalModel::new(&config, Some(&embeddings), seed, &Device::flex().autodiff()).unwrap()
}

fn classes(ids: &[u8]) -> Vec<ClassId> {
    ids.iter().map(|&id| ClassId::new(id).unwrap()).collect()
}

/// A small Swin UNETR for four classes.
fn transformer(device: &Device) -> UniversalModel {
    let network =
        ModelConfig { backbone: Backbone::SwinUnetr, width: 12, ..config(EmbeddingKind::OneHot, 4, 4) };
    let embeddings = ClassEmbeddings::one_hot(4, 1.0).unwrap();
    UniversalModel::new(&network, Some(&embeddings), 3, device).unwrap()
}

fn patches(n: usize) -> Tensor<5> {
    patches_of([n, 1, 16, 8, 8])
}

/// Such as a [`transformer`] takes.
fn tall_patches(n: usize) -> Tensor<5> {
    patches_of([n, 1, 64, 32, 32])
}

fn patches_of(shape: [usize; 5]) -> Tensor<5> {
    let values: Vec<f32> =
        (0..shape.iter().product()).map(|i: usize| ((i * 37) % 101) as f32 / 101.0).collect();
    Tensor::<1>::from_floats(values.as_slice(), &Device::flex()).reshape(shape)
}

fn values(tensor: Tensor<5>) -> Vec<f32> {
    tensor.into_data().try_to_vec().unwrap()
}

#[test]
fn the_initial_model_is_a_function_of_its_seed() {
    assert_eq!(one_hot_model(3).export(), one_hot_model(3).export());
    assert_ne!(one_hot_model(3).export(), one_hot_model(4).export());
}

#[test]
fn names_are_the_references_and_exclude_the_fixed_embeddings() {
    let names = one_hot_model(0).trainable_names();
    assert_eq!(names.len(), 74);
    for name in [
        "backbone.down_tr64.ops.0.conv1.weight",
        "backbone.up_tr64.up_conv.bias",
        "backbone.up_tr256.ops.1.bn1.weight",
        "precls_conv.0.weight",
        "GAP.3.bias",
        "controller.weight",
        "text_to_vision.weight",
    ] {
        assert!(names.iter().any(|n| n == name), "{name}");
    }
    assert!(!names.iter().any(|name| name.contains("organ_embedding")));
}

#[test]
fn a_learned_table_is_trainable_under_its_own_name() {
    let config = config(EmbeddingKind::Learned, 32, 256);
    let model = UniversalModel::new(&config, None, 0, &Device::flex().autodiff()).unwrap();
    let names = model.trainable_names();
    assert!(names.iter().any(|name| name == "organ_embedding.weight"));
    assert!(!names.iter().any(|name| name.starts_with("text_to_vision")));
}

#[test]
fn loading_keeps_parameter_ids_and_refuses_a_tensor_too_few() {
    let mut model = one_hot_model(1);
    let ids = list_param_ids(&model);
    let other = one_hot_model(2).export();
    model.load(&other).unwrap();
    assert_eq!(model.export(), other);
    assert_eq!(list_param_ids(&model), ids);

    let mut incomplete = other.clone();
    incomplete.remove("GAP.0.weight");
    assert!(matches!(model.load(&incomplete), Err(ModelError::Mismatch(_))));
    assert_eq!(model.export(), other);
}

#[test]
fn a_loaded_model_can_still_be_trained() {
    let mut model = one_hot_model(1);
    model.load(&one_hot_model(2).export()).unwrap();
    let logits = model.forward(patches(1), &classes(&[6])).unwrap();
    let gradients = model.gradients(&(logits.clone() * logits).mean()).export();
    let largest = |name: &str| gradients[name].values().iter().fold(0f32, |m, v| m.max(v.abs()));
    assert!(largest("backbone.down_tr64.ops.0.conv1.weight") > 0.0);
    assert!(largest("text_to_vision.weight") > 0.0);
}

#[test]
fn logits_of_a_class_do_not_depend_on_which_classes_come_with_it() {
    let model = one_hot_model(5);
    let all = model.forward(patches(2), &classes(&[1, 6, 27])).unwrap();
    let one = model.forward(patches(2), &classes(&[6])).unwrap();
    let difference = (all.slice([0..2, 1..2]) - one).abs().max().into_scalar::<f32>();
    assert!(difference < 1e-5, "{difference}");
}

#[test]
fn inference_gives_a_window_the_same_bits_in_any_batch() {
    let models = [(one_hot_model(5), patches(5)), (transformer(&Device::flex()), tall_patches(3))];
    for (model, windows) in models {
        let infer = |windows: Tensor<5>| values(model.infer(windows, &classes(&[1, 3])).unwrap());
        let together = infer(windows.clone());
        for batch in [1, 2] {
            let parts = windows.clone().split(batch, 0).into_iter();
            let parts: Vec<f32> = parts.flat_map(&infer).collect();
            assert!(parts == together, "{:?}, {batch} at a time", model.config().backbone);
        }
    }
}

#[test]
fn training_normalises_the_patches_of_a_batch_together_and_inference_does_not() {
    let (model, two, class) = (one_hot_model(5), patches(2), classes(&[2]));
    let alone = values(model.forward(two.clone().narrow(0, 0, 1), &class).unwrap());
    let first = |logits: Tensor<5>| values(logits.narrow(0, 0, 1));
    assert_ne!(first(model.forward(two.clone(), &class).unwrap()), alone);
    assert_eq!(first(model.infer(two, &class).unwrap()), alone);
}

#[test]
fn inference_equals_the_training_pass_of_one_patch() {
    let model = one_hot_model(5);
    let trained = values(model.forward(patches(1), &classes(&[2])).unwrap());
    assert_eq!(values(model.infer(patches(1), &classes(&[2])).unwrap()), trained);
}

#[test]
fn impossible_inputs_are_refused() {
    let model = one_hot_model(0);
    let device = Device::flex();
    let zeros = |shape: [usize; 5]| Tensor::zeros(shape, &device);
    let one = classes(&[1]);
    for sides in [[8, 8, 12], [8, 8, 8], [0, 8, 16]] {
        let [x, y, z] = sides;
        assert!(
            matches!(model.forward(zeros([1, 1, x, y, z]), &one), Err(ModelError::Patch { .. })),
            "{sides:?}"
        );
    }
    let two_channels = model.forward(zeros([1, 2, 16, 8, 8]), &one);
    assert!(matches!(two_channels, Err(ModelError::InputChannels { got: 2 })));
    assert!(matches!(model.forward(patches(1), &[]), Err(ModelError::NoClass)));
    assert!(matches!(model.forward(patches(1), &classes(&[33])), Err(ModelError::Class { rows: 32, .. })));
}

#[test]
fn embeddings_other_than_the_configured_ones_are_refused() {
    let device = Device::flex();
    let embeddings = ClassEmbeddings::one_hot(31, 1.0).unwrap();
    let fixed = config(EmbeddingKind::OneHot, 32, 32);
    let learned = config(EmbeddingKind::Learned, 32, 256);
    for (config, given) in [(&fixed, Some(&embeddings)), (&fixed, None), (&learned, Some(&embeddings))] {
        assert!(matches!(UniversalModel::new(config, given, 0, &device), Err(ModelError::Embedding { .. })));
    }
}

#[test]
fn recomputing_changes_no_bit_of_a_transformers_gradients() {
    let run = |recompute: bool| {
        let model = transformer(&training_device(DeviceKind::Cpu, recompute).unwrap());
        let logits = model.forward(tall_patches(1), &classes(&[1, 3])).unwrap();
        model.gradients(&(logits.clone() * logits).mean()).export()
    };
    assert!(run(false) == run(true));
}
