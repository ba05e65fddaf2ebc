//! The tensors of a CLIP text encoder in a file: how OpenAI and how Hugging Face name them, and which shapes fit together.
//!
//! Sizes are read from the shapes. Both layouts are the same numbers, but that Hugging Face keeps the maps to queries, keys
//! and values apart, and that OpenAI keeps the last projection transposed. Tensors of the image encoder are not read.

use std::collections::BTreeMap;

use super::{
    super::{
        record::read_safetensors_where,
        tensors::{HostTensor, NamedTensors, TensorMismatch},
    },
    error::TextError,
};

/// Width of an attention head in every model that OpenAI published.
pub(super) const HEAD_WIDTH: usize = 64;
/// More than any CLIP text encoder has: a layer's number in a file is no promise of so many layers.
const MOST_LAYERS: usize = 64;
/// Wider than any; a shape with an empty axis can claim any length of the other.
const MOST_WIDTH: usize = 1 << 14;

/// Sizes of a text encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    /// Tokens that it has a row for.
    pub vocabulary: usize,
    /// Most tokens of a prompt.
    pub context: usize,
    /// Numbers per token.
    pub width: usize,
    /// Numbers per token between the two maps of a layer.
    pub hidden: usize,
    /// Layers.
    pub layers: usize,
    /// Numbers per prompt.
    pub output: usize,
}

/// The tensors of a text encoder: names and shapes are complete and fit together.
#[derive(Debug)]
pub(super) struct TextWeights {
    tensors: NamedTensors,
    naming: &'static Naming,
    sizes: Sizes,
}

/// Where a file has which tensor.
#[derive(Debug)]
struct Naming {
    tokens: &'static str,
    positions: &'static str,
    last_norm: &'static str,
    projection: &'static str,
    /// Whether the projection is `[output, width]`.
    projects_rows: bool,
    /// What the names of a layer's tensors begin with, before its number.
    layers: &'static str,
    /// Maps to queries, keys and values, one after the other or in one.
    attention_in: &'static [&'static str],
    attention_out: &'static str,
    norms: [&'static str; 2],
    maps: [&'static str; 2],
}

const OPENAI: Naming = Naming {
    tokens: "token_embedding.weight",
    positions: "positional_embedding",
    last_norm: "ln_final.",
    projection: "text_projection",
    projects_rows: false,
    layers: "transformer.resblocks.",
    attention_in: &["attn.in_proj_"],
    attention_out: "attn.out_proj.",
    norms: ["ln_1.", "ln_2."],
    maps: ["mlp.c_fc.", "mlp.c_proj."],
};

const HUGGING_FACE: Naming = Naming {
    tokens: "text_model.embeddings.token_embedding.weight",
    positions: "text_model.embeddings.position_embedding.weight",
    last_norm: "text_model.final_layer_norm.",
    projection: "text_projection.weight",
    projects_rows: true,
    layers: "text_model.encoder.layers.",
    attention_in: &["self_attn.q_proj.", "self_attn.k_proj.", "self_attn.v_proj."],
    attention_out: "self_attn.out_proj.",
    norms: ["layer_norm1.", "layer_norm2."],
    maps: ["mlp.fc1.", "mlp.fc2."],
};

impl TextWeights {
    /// Reads the text encoder of a file; whatever else is in it stays unread.
    ///
    /// # Errors
    ///
    /// [`TextError`]; missing and misshapen tensors are listed all at once, by the names of the file's own kind.
    pub(super) fn read(file: &[u8]) -> Result<Self, TextError> {
        let tensors =
            read_safetensors_where(file, |name| [&OPENAI, &HUGGING_FACE].iter().any(|n| n.has(name)))?;
        let is_hugging_face = tensors.keys().any(|name| name.starts_with("text_model."));
        let naming: &'static Naming = if is_hugging_face { &HUGGING_FACE } else { &OPENAI };
        let sizes = naming.sizes(&tensors);
        let is_known_size = (1..=MOST_LAYERS).contains(&sizes.layers)
            && (1..=MOST_WIDTH).contains(&sizes.width)
            && sizes.width.is_multiple_of(HEAD_WIDTH)
            && sizes.hidden > 0
            && sizes.output > 0;
        if !is_known_size {
            let Sizes { layers, width, .. } = sizes;
            return Err(TextError::Size { layers, width, most_layers: MOST_LAYERS, head: HEAD_WIDTH });
        }
        TensorMismatch::check(&naming.shapes(sizes), &tensors)?;
        Ok(Self { tensors, naming, sizes })
    }

    pub(super) fn sizes(&self) -> Sizes {
        self.sizes
    }

    /// `[vocabulary, width]`.
    pub(super) fn tokens(&self) -> HostTensor {
        self.tensor(self.naming.tokens)
    }

    /// `[context, width]`.
    pub(super) fn positions(&self) -> HostTensor {
        self.tensor(self.naming.positions)
    }

    /// Values of the map to the output, and whether they are `[output, width]` or else `[width, output]`.
    pub(super) fn projection(&self) -> (HostTensor, bool) {
        (self.tensor(self.naming.projection), self.naming.projects_rows)
    }

    /// Weight and bias `[width]` of the last normalisation.
    pub(super) fn last_norm(&self) -> [HostTensor; 2] {
        self.pair(self.naming.last_norm)
    }

    /// Weight and bias `[width]` of a layer's normalisations, before the attention and after it.
    pub(super) fn norms(&self, layer: usize) -> [[HostTensor; 2]; 2] {
        self.naming.norms.map(|name| self.pair(&self.naming.in_layer(layer, name)))
    }

    /// Weight and bias of a layer's maps: from width to hidden, and back.
    pub(super) fn maps(&self, layer: usize) -> [[HostTensor; 2]; 2] {
        self.naming.maps.map(|name| self.pair(&self.naming.in_layer(layer, name)))
    }

    /// Weight and bias of the map from attention to width.
    pub(super) fn attention_out(&self, layer: usize) -> [HostTensor; 2] {
        self.pair(&self.naming.in_layer(layer, self.naming.attention_out))
    }

    /// Weight `[3 width, width]` and bias `[3 width]` of the map to queries, keys and values.
    pub(super) fn attention_in(&self, layer: usize) -> [HostTensor; 2] {
        let parts = self.naming.attention_in.iter().map(|name| self.pair(&self.naming.in_layer(layer, name)));
        let (weights, biases): (Vec<_>, Vec<_>) = parts.map(|[weight, bias]| (weight, bias)).unzip();
        [stack(weights), stack(biases)]
    }

    fn pair(&self, prefix: &str) -> [HostTensor; 2] {
        ["weight", "bias"].map(|end| self.tensor(&format!("{prefix}{end}")))
    }

    fn tensor(&self, name: &str) -> HostTensor {
        // Invariant: `read` has found every name that the naming gives.
        self.tensors.get(name).cloned().expect("a tensor of a checked file")
    }
}

/// Tensors of equal rows below each other.
fn stack(parts: Vec<HostTensor>) -> HostTensor {
    let mut shape = parts.first().map_or_else(|| vec![0], |part| part.shape().to_vec());
    shape[0] = parts.iter().map(|part| part.shape()[0]).sum();
    let values = parts.into_iter().flat_map(|part| part.into_parts().1).collect();
    // Invariant: rows are counted as they are joined.
    HostTensor::new(shape, values).expect("rows of equal shape")
}

impl Naming {
    /// Whether a name is one of the text encoder's.
    fn has(&self, name: &str) -> bool {
        let known = [self.tokens, self.positions, self.last_norm, self.projection, self.layers];
        known.iter().any(|start| name.starts_with(start))
    }

    fn in_layer(&self, layer: usize, name: &str) -> String {
        format!("{}{layer}.{name}", self.layers)
    }

    /// Sizes by the shapes that are there; those of CLIP ViT-B/32 where there are none, so that what is missing has a
    /// shape in the list of what is missing.
    fn sizes(&self, tensors: &NamedTensors) -> Sizes {
        let axis = |name: &str, axis: usize| tensors.get(name).and_then(|t| t.shape().get(axis)).copied();
        let norm = axis(&format!("{}weight", self.last_norm), 0);
        let width = norm.or(axis(self.tokens, 1)).or(axis(self.positions, 1)).unwrap_or(512);
        let first_map = format!("{}weight", self.in_layer(0, self.maps[0]));
        let number = |name: &String| name.strip_prefix(self.layers)?.split('.').next()?.parse::<usize>().ok();
        let last_layer = tensors.keys().filter_map(number).max();
        Sizes {
            vocabulary: axis(self.tokens, 0).unwrap_or(49_408),
            context: axis(self.positions, 0).unwrap_or(77),
            width,
            hidden: axis(&first_map, 0).unwrap_or(width.saturating_mul(4)),
            layers: last_layer.map_or(12, |last| last.saturating_add(1)),
            output: axis(self.projection, usize::from(!self.projects_rows)).unwrap_or(width),
        }
    }

    /// Every tensor of a text encoder of these sizes.
    fn shapes(&self, sizes: Sizes) -> BTreeMap<String, Vec<usize>> {
        let Sizes { vocabulary, context, width, hidden, layers, output } = sizes;
        let projection = if self.projects_rows { [output, width] } else { [width, output] };
        let mut shapes = BTreeMap::from([
            (self.tokens.to_owned(), vec![vocabulary, width]),
            (self.positions.to_owned(), vec![context, width]),
            (self.projection.to_owned(), projection.to_vec()),
        ]);
        let mut pair = |prefix: String, weight: Vec<usize>| {
            shapes.insert(format!("{prefix}bias"), vec![weight[0]]);
            shapes.insert(format!("{prefix}weight"), weight);
        };
        pair(self.last_norm.to_owned(), vec![width]);
        for layer in 0..layers {
            let mut of_layer = |name: &str, weight: Vec<usize>| pair(self.in_layer(layer, name), weight);
            for name in self.norms {
                of_layer(name, vec![width]);
            }
            for &name in self.attention_in {
                of_layer(name, vec![3 * width / self.attention_in.len(), width]);
            }
            of_layer(self.attention_out, vec![width, width]);
            of_layer(self.maps[0], vec![hidden, width]);
            of_layer(self.maps[1], vec![width, hidden]);
        }
        shapes
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::{error::ModelError, record::write_safetensors};
    use super::*;

    const SMALL: Sizes = Sizes { vocabulary: 5, context: 4, width: 64, hidden: 32, layers: 2, output: 3 };

    fn zeros(naming: &Naming) -> NamedTensors {
        let shapes = naming.shapes(SMALL).into_iter();
        shapes.map(|(name, shape)| (name, HostTensor::from_fn(shape, |_| 0.0))).collect()
    }

    #[test]
    fn sizes_are_read_from_the_shapes_of_either_naming() {
        for naming in [&OPENAI, &HUGGING_FACE] {
            let mut tensors = zeros(naming);
            tensors.insert("visual.proj".to_owned(), HostTensor::from_fn(vec![2], |_| 0.0));
            let read = TextWeights::read(&write_safetensors(&tensors).unwrap()).unwrap();
            assert_eq!(read.sizes(), SMALL);
            assert_eq!(read.attention_in(1).map(|t| t.shape().to_vec()), [vec![192, 64], vec![192]]);
        }
    }

    #[test]
    fn everything_that_is_missing_or_misshapen_is_listed_at_once() {
        let mut tensors = zeros(&HUGGING_FACE);
        tensors.remove("text_projection.weight");
        tensors.remove("text_model.encoder.layers.0.mlp.fc2.bias");
        let wrong = "text_model.encoder.layers.1.layer_norm1.bias";
        tensors.insert(wrong.to_owned(), HostTensor::from_fn(vec![63], |_| 0.0));
        let error = TextWeights::read(&write_safetensors(&tensors).unwrap()).unwrap_err();
        let TextError::Weights(ModelError::Mismatch(mismatch)) = error else { panic!("{error:?}") };
        assert_eq!(mismatch.missing, ["text_model.encoder.layers.0.mlp.fc2.bias", "text_projection.weight"]);
        assert_eq!(mismatch.wrong_shape.len(), 1);
        assert_eq!(mismatch.wrong_shape[0].name, wrong);
    }

    #[test]
    fn a_layer_number_is_no_promise_of_layers() {
        let mut tensors = zeros(&OPENAI);
        let far = format!("transformer.resblocks.{}.ln_1.bias", usize::MAX);
        tensors.insert(far, HostTensor::from_fn(vec![64], |_| 0.0));
        let error = TextWeights::read(&write_safetensors(&tensors).unwrap()).unwrap_err();
        assert!(matches!(error, TextError::Size { layers: usize::MAX, .. }), "{error:?}");
    }
}
