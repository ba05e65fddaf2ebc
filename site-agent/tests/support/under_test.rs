//! The model under test, with the hash fill's weights.

use std::io::Cursor;

use burn::tensor::{Device, Tensor, TensorData};
use common::ids::ClassId;
use site_agent::model::{
    Backbone, ClassEmbeddings, DeviceKind, EmbeddingConfig, EmbeddingKind, HostTensor, ModelConfig,
    UniversalModel,
    checkpoint::{Checkpoint, write_pytorch},
    device,
};

use super::hash_fill;

pub(crate) const CLASSES: usize = 32;
/// Classes that BTCV annotates, and MSD Liver.
pub(crate) const BTCV: [u8; 14] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14];
pub(crate) const MSD_LIVER: [u8; 2] = [6, 27];

/// The processor, or the device that `CONSILIUM_TEST_DEVICE` names: every lane has the same numbers to reach.
pub(crate) fn device_under_test() -> Device {
    let named = std::env::var("CONSILIUM_TEST_DEVICE");
    device(named.map_or(DeviceKind::Cpu, |name| name.parse().unwrap())).unwrap()
}

pub(crate) fn training_device() -> Device {
    device_under_test().autodiff()
}

/// How much more than on the processor rounding may take away from what the widest layers give: burn's kernels, which every
/// other device has, add up the products of a convolution, up to 13,824 of them, in another order than ours. On lavapipe the
/// logits of the full-size U-Net were 5.6 times as far off as on the processor; on an H100 over Vulkan other rectifiers of the narrow
/// Swin UNETR were on the other side of zero, and a gradient 3.5 times as far off (docs/fidelity.md).
pub(crate) fn rounding() -> f64 {
    if device_under_test() == Device::flex() { 1.0 } else { 3.0 }
}

/// The universal model over a U-Net with the hash fill's weights and a hash-filled embedding table of CLIP's width.
pub(crate) fn hash_filled(width: usize) -> UniversalModel {
    hash_filled_backbone(Backbone::Unet, width)
}

/// As [`hash_filled`], over any backbone.
pub(crate) fn hash_filled_backbone(backbone: Backbone, width: usize) -> UniversalModel {
    hash_filled_on(&training_device(), backbone, width)
}

/// As [`hash_filled_backbone`], whatever the device under test is.
pub(crate) fn hash_filled_on(device: &Device, backbone: Backbone, width: usize) -> UniversalModel {
    let table = hash_fill::weight("organ_embedding", &[CLASSES, 512]);
    let embeddings = ClassEmbeddings::new(EmbeddingKind::Imported, table).unwrap();
    let embedding = EmbeddingConfig { kind: EmbeddingKind::Imported, rows: CLASSES, width: 512 };
    let config = ModelConfig { backbone, ..ModelConfig::unet(width, embedding) };
    let mut model = UniversalModel::new(&config, Some(&embeddings), 0, device).unwrap();
    let weights =
        model.export().iter().map(|(name, t)| (name.clone(), hash_fill::weight(name, t.shape()))).collect();
    model.load(&weights).unwrap();
    model
}

/// Number of tensors that PyTorch loads of a model, buffers and class embeddings among them.
pub(crate) fn exported_to_pytorch(backbone: Backbone) -> usize {
    // The same at any width: this one suits both.
    let tensors = hash_filled_on(&Device::flex(), backbone, 24).export();
    let table = hash_fill::weight("organ_embedding", &[CLASSES, 512]);
    let file = write_pytorch(&tensors, Some(&table)).unwrap();
    Checkpoint::open(Cursor::new(file)).unwrap().names().len()
}

pub(crate) fn all_classes() -> Vec<ClassId> {
    (0..CLASSES).map(|channel| ClassId::from_channel(channel).unwrap()).collect()
}

pub(crate) fn all_channels() -> Vec<usize> {
    (0..CLASSES).collect()
}

pub(crate) fn annotated(samples: &[&[u8]]) -> Vec<bool> {
    let mask = |ids: &&[u8]| all_classes().iter().map(|class| ids.contains(&class.get())).collect::<Vec<_>>();
    samples.iter().flat_map(mask).collect()
}

pub(crate) fn to_device<const D: usize>(tensor: &HostTensor, device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(tensor.values().to_vec(), tensor.shape().to_vec()), device)
}

pub(crate) fn to_host<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data_as::<f32>().try_to_vec().unwrap()
}

pub(crate) fn scalar(tensor: &Tensor<1>) -> f64 {
    f64::from(tensor.clone().into_scalar::<f32>())
}
