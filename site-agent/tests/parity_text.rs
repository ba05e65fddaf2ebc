//! Numeric agreement of the text encoder with the reference's, on weights that both sides compute from the tensors' names
//! (`fixtures/clip/README.md`).

#![allow(clippy::unwrap_used, reason = "a failed step of a test ends it")]

mod support;

use std::collections::BTreeMap;

use serde::Deserialize;
use site_agent::model::{
    HostTensor, NamedTensors,
    record::write_safetensors,
    text::{TextEncoder, TextModel},
};
use support::{compare::assert_agrees, hash_fill, under_test::device_under_test};

const MERGES: &[u8] = include_bytes!("fixtures/clip/merges.txt");

/// `encoder.json`.
#[derive(Deserialize)]
struct Golden {
    /// Shapes by Hugging Face's names.
    tensors: BTreeMap<String, Vec<usize>>,
    tokens: Vec<Vec<usize>>,
    rows: Vec<Vec<f32>>,
}

fn golden() -> Golden {
    serde_json::from_slice(include_bytes!("fixtures/clip/encoder.json")).unwrap()
}

fn weights(golden: &Golden) -> NamedTensors {
    golden.tensors.iter().map(|(name, shape)| (name.clone(), hash_fill::weight(name, shape))).collect()
}

fn encoder(weights: &NamedTensors) -> TextEncoder {
    TextEncoder::from_safetensors(&write_safetensors(weights).unwrap(), &device_under_test()).unwrap()
}

/// The same numbers, as OpenAI names and keeps them.
fn as_openai_names(tensors: &NamedTensors) -> NamedTensors {
    let mut renamed = NamedTensors::new();
    for (name, tensor) in tensors {
        let (shape, values) = tensor.clone().into_parts();
        let Some((layer, rest)) =
            name.strip_prefix("text_model.encoder.layers.").and_then(|rest| rest.split_once('.'))
        else {
            let (ours, tensor) = match name.as_str() {
                "text_model.embeddings.token_embedding.weight" => ("token_embedding.weight", tensor.clone()),
                "text_model.embeddings.position_embedding.weight" => ("positional_embedding", tensor.clone()),
                "text_model.final_layer_norm.weight" => ("ln_final.weight", tensor.clone()),
                "text_model.final_layer_norm.bias" => ("ln_final.bias", tensor.clone()),
                "text_projection.weight" => ("text_projection", transposed(tensor)),
                other => panic!("unexpected tensor {other}"),
            };
            renamed.insert(ours.to_owned(), tensor);
            continue;
        };
        let kind = if name.ends_with("weight") { "weight" } else { "bias" };
        let Some(part) =
            ["q", "k", "v"].iter().position(|part| rest.starts_with(&format!("self_attn.{part}_")))
        else {
            let of_layer = rest
                .replace("self_attn.", "attn.")
                .replace("layer_norm", "ln_")
                .replace("fc1", "c_fc")
                .replace("fc2", "c_proj");
            renamed.insert(format!("transformer.resblocks.{layer}.{of_layer}"), tensor.clone());
            continue;
        };
        let all = format!("transformer.resblocks.{layer}.attn.in_proj_{kind}");
        let mut stacked = shape.clone();
        stacked[0] *= 3;
        let all = renamed.entry(all).or_insert_with(|| HostTensor::from_fn(stacked, |_| 0.0));
        all.values_mut()[part * values.len()..][..values.len()].copy_from_slice(&values);
    }
    renamed
}

fn transposed(tensor: &HostTensor) -> HostTensor {
    let (rows, columns) = (tensor.shape()[0], tensor.shape()[1]);
    HostTensor::from_fn(vec![columns, rows], |i| tensor.values()[i % rows * columns + i / rows])
}

#[test]
fn rows_of_prompts_are_those_of_the_reference() {
    let golden = golden();
    let rows = encoder(&weights(&golden)).encode(&golden.tokens).unwrap();
    assert_agrees("rows", rows.values(), &golden.rows.concat(), 1e-6);
}

#[test]
fn a_prompt_has_the_same_row_in_whatever_company() {
    let golden = golden();
    let encoder = encoder(&weights(&golden));
    let together = encoder.encode(&golden.tokens).unwrap();
    for (tokens, row) in golden.tokens.iter().zip(together.values().chunks(golden.rows[0].len())) {
        let alone = encoder.encode(std::slice::from_ref(tokens)).unwrap();
        assert_agrees("a row alone", alone.values(), row, 1e-6);
    }
}

#[test]
fn both_namings_of_the_same_weights_give_the_same_rows() {
    let golden = golden();
    let theirs = weights(&golden);
    let rows = encoder(&theirs).encode(&golden.tokens).unwrap();
    let renamed = encoder(&as_openai_names(&theirs)).encode(&golden.tokens).unwrap();
    assert_agrees("rows", renamed.values(), rows.values(), 1e-6);
}

#[test]
fn prompts_that_the_encoder_cannot_read_are_refused() {
    let golden = golden();
    let encoder = encoder(&weights(&golden));
    for wrong in [vec![], vec![0; 78], vec![600]] {
        assert!(encoder.encode(&[vec![1], wrong.clone()]).is_err(), "{wrong:?}");
    }
    assert!(encoder.encode(&[]).is_err());
}

#[test]
fn a_prompt_in_words_is_read_by_tokeniser_and_encoder_together() {
    let golden = golden();
    let weights = write_safetensors(&weights(&golden)).unwrap();
    let model = TextModel::new(&weights, MERGES, None, &device_under_test()).unwrap();
    let row = model.embed(&["A computerized  tomography of a SPLEEN".to_owned()]).unwrap();
    assert_agrees("row", row.values(), &golden.rows[0], 1e-6);
    let error = model.embed(&["liver ".repeat(80)]).unwrap_err();
    assert!(error.to_string().contains("reads 77"), "{error}");
}
