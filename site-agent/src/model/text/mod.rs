//! Class embeddings by a language model: the text encoder of CLIP, on weights that the user brings.
//!
//! A [`Template`] makes a prompt of each class's name, [`Tokenizer`] cuts it into tokens as CLIP was trained to read them,
//! and [`TextEncoder`] gives a row of numbers for it. Inference only: nothing here is trained, and nothing is downloaded.
//! The rows are used as they are, of whatever length (specification §6).

mod error;
mod template;
mod tokenizer;
mod transformer;
mod weights;

use burn::tensor::Device;

pub use self::{error::TextError, template::Template, tokenizer::Tokenizer, transformer::TextEncoder};
use super::tensors::HostTensor;

/// Tokeniser and encoder that belong together.
#[derive(Debug)]
pub struct TextModel {
    tokenizer: Tokenizer,
    encoder: TextEncoder,
}

impl TextModel {
    /// Reads the weights (safetensors, tensors as OpenAI or as Hugging Face name them) and the tokeniser's files; see
    /// [`Tokenizer::new`].
    ///
    /// # Errors
    ///
    /// [`TextError`] names the file's fault; tensors that do not fit are listed all at once.
    pub fn new(
        weights: &[u8],
        merges: &[u8],
        vocabulary: Option<&[u8]>,
        device: &Device,
    ) -> Result<Self, TextError> {
        let encoder = TextEncoder::from_safetensors(weights, device)?;
        let tokenizer = Tokenizer::new(merges, vocabulary, encoder.vocabulary())?;
        Ok(Self { tokenizer, encoder })
    }

    /// One row for each prompt: `[prompts, width]`, not normalised.
    ///
    /// # Errors
    ///
    /// [`TextError::TooLong`] for a prompt of more tokens than the encoder reads.
    pub fn embed(&self, prompts: &[String]) -> Result<HostTensor, TextError> {
        let limit = self.encoder.context();
        let encode = |prompt: &String| {
            let tokens = self.tokenizer.encode(prompt);
            let length = tokens.len();
            if length <= limit {
                Ok(tokens)
            } else {
                Err(TextError::TooLong { prompt: prompt.clone(), tokens: length, limit })
            }
        };
        self.encoder.encode(&prompts.iter().map(encode).collect::<Result<Vec<_>, _>>()?)
    }
}
