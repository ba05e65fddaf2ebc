//! The cost of the text-driven head of specification §7, in the form in which we compute it.

use super::{Cost, Stage, map, norm, products, trained};
use crate::kernels::segmentor::{HIDDEN, PARAMETERS};
use crate::model::head::FEATURE_WIDTH;
use crate::model::{EmbeddingConfig, EmbeddingKind};

/// Stages of a head over `voxels`, asked for every class; `channels` of the bottleneck and of the decoder's output.
pub(super) fn stages(
    [bottleneck, decoder]: [u64; 2],
    embedding: &EmbeddingConfig,
    voxels: u64,
) -> Vec<Stage> {
    let (hidden, feature, generated) = (HIDDEN as u64, FEATURE_WIDTH as u64, PARAMETERS as u64);
    let classes = embedding.rows as u64;
    let linear = |input, output, places| map(1, input, output, places) + trained(output);
    // The image's half of the controller's map is done once, the other half for each class.
    let halves =
        map(1, feature, generated, 1).multiply_adds + map(1, feature, generated, classes).multiply_adds;
    let controller = Cost { multiply_adds: halves, ..linear(2 * feature, generated, 1) };
    let stage = |name, cost| Stage { name, cost };
    vec![
        stage("precls_conv", norm(decoder) + linear(decoder, hidden, voxels)),
        stage("GAP", norm(bottleneck) + linear(bottleneck, feature, 1)),
        class_vectors(embedding),
        stage("controller", controller),
        // Three generated layers, 8 to 8 to 8 to 1, for each class.
        stage("segmentor", products(classes * voxels * (2 * hidden * hidden + hidden))),
    ]
}

fn class_vectors(embedding: &EmbeddingConfig) -> Stage {
    let (classes, width, feature) = (embedding.rows as u64, embedding.width as u64, FEATURE_WIDTH as u64);
    match embedding.kind {
        EmbeddingKind::Learned => Stage { name: "organ_embedding", cost: trained(classes * feature) },
        EmbeddingKind::OneHot | EmbeddingKind::FewHot | EmbeddingKind::Imported => {
            Stage { name: "text_to_vision", cost: map(1, width, feature, classes) + trained(feature) }
        }
    }
}
