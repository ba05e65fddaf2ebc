//! CLIP's text transformer: token numbers to one row for each prompt.
//!
//! Normalisation comes before each of a layer's two parts, attention sees only what came before, and the activation is
//! `x · sigmoid(1.702 x)`, as in the weights that OpenAI published. (Some later ones were trained with the exact Gaussian
//! unit: on them these rows would be slightly wrong.) What follows the end token cannot reach it, so prompts are as long as
//! the longest of them, not as long as the encoder's context.

use burn::tensor::{
    Device, Tensor, TensorData,
    activation::{sigmoid, softmax},
};

use super::{
    super::tensors::HostTensor,
    error::TextError,
    weights::{HEAD_WIDTH, Sizes, TextWeights},
};

/// Added to every variance before its root is taken.
const EPSILON: f64 = 1e-5;
/// Of the activation.
const SLOPE: f64 = 1.702;

/// The text transformer, for inference.
#[derive(Debug)]
pub struct TextEncoder {
    sizes: Sizes,
    /// On the host: a few of many rows are used.
    tokens: HostTensor,
    positions: HostTensor,
    layers: Vec<Layer>,
    last_norm: Norm,
    /// `[width, output]`.
    projection: Tensor<2>,
    device: Device,
}

impl TextEncoder {
    /// The text encoder in a safetensors file, with tensors as OpenAI or as Hugging Face name them.
    ///
    /// # Errors
    ///
    /// [`TextError::Weights`] with every tensor that is missing or misshapen, or [`TextError::Size`].
    pub fn from_safetensors(file: &[u8], device: &Device) -> Result<Self, TextError> {
        let weights = TextWeights::read(file)?;
        let (projection, projects_rows) = weights.projection();
        let projection = matrix(projection, device);
        Ok(Self {
            sizes: weights.sizes(),
            tokens: weights.tokens(),
            positions: weights.positions(),
            layers: (0..weights.sizes().layers).map(|layer| Layer::new(&weights, layer, device)).collect(),
            last_norm: Norm::new(weights.last_norm(), device),
            projection: if projects_rows { projection.transpose() } else { projection },
            device: device.clone(),
        })
    }

    /// Number of tokens that it has a row for.
    pub fn vocabulary(&self) -> usize {
        self.sizes.vocabulary
    }

    /// Most tokens of a prompt, start and end included.
    pub fn context(&self) -> usize {
        self.sizes.context
    }

    /// One row `[output]` for each prompt, of its last token; not normalised.
    ///
    /// # Errors
    ///
    /// [`TextError::Tokens`] for a prompt without tokens, with too many, or with one that has no row.
    pub fn encode(&self, prompts: &[Vec<usize>]) -> Result<HostTensor, TextError> {
        let is_readable = |prompt: &Vec<usize>| {
            (1..=self.sizes.context).contains(&prompt.len())
                && prompt.iter().all(|&token| token < self.sizes.vocabulary)
        };
        let count = prompts.len();
        // Without any prompt there is no row to give either.
        let wrong = if prompts.is_empty() { Some(0) } else { prompts.iter().position(|p| !is_readable(p)) };
        if let Some(index) = wrong {
            return Err(TextError::Tokens { index, count });
        }
        let length = prompts.iter().map(Vec::len).max().unwrap_or(0);
        let mask = causal_mask(length, &self.device);
        let embedded = self.embed(prompts, length);
        let x = self.layers.iter().fold(embedded, |x, layer| layer.forward(x, count, &mask));
        let last = |(i, prompt): (usize, &Vec<usize>)| x.clone().narrow(0, i * length + prompt.len() - 1, 1);
        let last = Tensor::cat(prompts.iter().enumerate().map(last).collect(), 0);
        let rows = self.last_norm.forward(last).matmul(self.projection.clone());
        let values = rows.to_data_as::<f32>().try_to_vec().expect("invariant: the values were read as f32");
        Ok(HostTensor::new(vec![count, self.sizes.output], values)?)
    }

    /// Token and place of each token, `[prompts * length, width]`; zeros behind the end of a prompt.
    fn embed(&self, prompts: &[Vec<usize>], length: usize) -> Tensor<2> {
        let width = self.sizes.width;
        let mut values = vec![0.0; prompts.len() * length * width];
        for (prompt, rows) in prompts.iter().zip(values.chunks_mut(length * width)) {
            let places = self.positions.values().chunks(width);
            for ((&token, place), row) in prompt.iter().zip(places).zip(rows.chunks_mut(width)) {
                // Invariant: `encode` has compared every token with the rows of the table.
                let token = &self.tokens.values()[token * width..][..width];
                for ((value, token), place) in row.iter_mut().zip(token).zip(place) {
                    *value = token + place;
                }
            }
        }
        Tensor::from_data(TensorData::new(values, [prompts.len() * length, width]), &self.device)
    }
}

/// `[1, 1, length, length]`: 0 where a token (row) may look, −∞ at those that come after it.
fn causal_mask(length: usize, device: &Device) -> Tensor<4> {
    let value = |i: usize| if i % length > i / length { f32::NEG_INFINITY } else { 0.0 };
    let values: Vec<f32> = (0..length * length).map(value).collect();
    Tensor::from_data(TensorData::new(values, [1, 1, length, length]), device)
}

/// Attention, then two maps; each adds to its input.
#[derive(Debug)]
struct Layer {
    norms: [Norm; 2],
    attention_in: Linear,
    attention_out: Linear,
    maps: [Linear; 2],
}

impl Layer {
    fn new(weights: &TextWeights, layer: usize, device: &Device) -> Self {
        Self {
            norms: weights.norms(layer).map(|norm| Norm::new(norm, device)),
            attention_in: Linear::new(weights.attention_in(layer), device),
            attention_out: Linear::new(weights.attention_out(layer), device),
            maps: weights.maps(layer).map(|map| Linear::new(map, device)),
        }
    }

    /// `[prompts * length, width]` to the same shape.
    fn forward(&self, x: Tensor<2>, prompts: usize, mask: &Tensor<4>) -> Tensor<2> {
        let [before_attention, before_maps] = &self.norms;
        let [widen, narrow] = &self.maps;
        let x = x.clone() + self.attend(before_attention.forward(x), prompts, mask);
        let hidden = widen.forward(before_maps.forward(x.clone()));
        let hidden = hidden.clone() * sigmoid(hidden.mul_scalar(SLOPE));
        x + narrow.forward(hidden)
    }

    fn attend(&self, x: Tensor<2>, prompts: usize, mask: &Tensor<4>) -> Tensor<2> {
        let [rows, width] = x.dims();
        let all = self.attention_in.forward(x);
        // [prompts, heads, length, HEAD_WIDTH]
        let heads = |part: usize| {
            let split = [prompts, rows / prompts, width / HEAD_WIDTH, HEAD_WIDTH];
            all.clone().narrow(1, part * width, width).reshape(split).swap_dims(1, 2)
        };
        let [queries, keys, values] = [0, 1, 2].map(heads);
        let scale = 1.0 / (HEAD_WIDTH as f64).sqrt();
        let scores = queries.matmul(keys.transpose()).mul_scalar(scale) + mask.clone();
        let mixed = softmax(scores, 3).matmul(values).swap_dims(1, 2).reshape([rows, width]);
        self.attention_out.forward(mixed)
    }
}

/// Linear map of rows.
#[derive(Debug)]
struct Linear {
    /// `[in, out]`.
    weight: Tensor<2>,
    /// `[1, out]`.
    bias: Tensor<2>,
}

impl Linear {
    /// The weight comes as `[out, in]`.
    fn new([weight, bias]: [HostTensor; 2], device: &Device) -> Self {
        Self { weight: matrix(weight, device).transpose(), bias: row(bias, device) }
    }

    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        x.matmul(self.weight.clone()) + self.bias.clone()
    }
}

/// Normalisation of each row by its own mean and biased variance.
#[derive(Debug)]
struct Norm {
    /// Both `[1, width]`.
    weight: Tensor<2>,
    bias: Tensor<2>,
}

impl Norm {
    fn new([weight, bias]: [HostTensor; 2], device: &Device) -> Self {
        Self { weight: row(weight, device), bias: row(bias, device) }
    }

    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let centred = x.clone() - x.mean_dim(1);
        let variance = (centred.clone() * centred.clone()).mean_dim(1);
        centred / variance.add_scalar(EPSILON).sqrt() * self.weight.clone() + self.bias.clone()
    }
}

fn row(tensor: HostTensor, device: &Device) -> Tensor<2> {
    let (_, values) = tensor.into_parts();
    let length = values.len();
    Tensor::from_data(TensorData::new(values, [1, length]), device)
}

fn matrix(tensor: HostTensor, device: &Device) -> Tensor<2> {
    let (shape, values) = tensor.into_parts();
    // Invariant: the weights were checked against shapes of two axes.
    let [rows, columns]: [usize; 2] = shape.try_into().expect("a matrix");
    Tensor::from_data(TensorData::new(values, [rows, columns]), device)
}
