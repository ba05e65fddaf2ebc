//! What can be wrong with a text encoder's files and with what it is asked.

use super::super::error::ModelError;

/// A text encoder that cannot be built, or a prompt that it cannot read.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// The weights: no safetensors, or tensors that do not fit together.
    #[error("the weights of the text encoder")]
    Weights(#[from] ModelError),
    /// Sizes that no CLIP text encoder has.
    #[error(
        "the text encoder has {layers} layers of width {width}; expected 1 to {most_layers} layers and a width that is a \
         multiple of {head}"
    )]
    Size {
        /// Layers in the file.
        layers: usize,
        /// Numbers per token.
        width: usize,
        /// Most layers that are read.
        most_layers: usize,
        /// Width of an attention head.
        head: usize,
    },
    /// A tokeniser's file that is larger than any real one, or cannot be unpacked.
    #[error("the {file}: {problem}")]
    File {
        /// Which of the two.
        file: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// A line of the merges that is not two symbols.
    #[error("the merges, line {line}: expected two symbols with a space between them, got {got} characters")]
    Merge {
        /// Counted from 1.
        line: usize,
        /// Length of the line.
        got: usize,
    },
    /// Symbols that the vocabulary should have.
    #[error("the vocabulary lacks {count} symbols that the tokeniser needs, such as {first:?}")]
    Symbols {
        /// How many.
        count: usize,
        /// The first of them.
        first: String,
    },
    /// Vocabulary and weights are of different models.
    #[error("the vocabulary has tokens up to number {largest}, the weights have rows for {rows}")]
    Rows {
        /// Largest token.
        largest: usize,
        /// Rows of the token embedding.
        rows: usize,
    },
    /// A prompt of too many tokens. Cutting it would change what it says.
    #[error("{prompt:?} has {tokens} tokens with start and end, the text encoder reads {limit}")]
    TooLong {
        /// The prompt.
        prompt: String,
        /// Its tokens.
        tokens: usize,
        /// Most that are read.
        limit: usize,
    },
    /// Tokens that this encoder cannot read.
    #[error(
        "token sequence {index} of {count} is empty, too long, or has a token that the encoder has no row for"
    )]
    Tokens {
        /// Which sequence, counted from 0.
        index: usize,
        /// How many were given.
        count: usize,
    },
    /// A template without a place for the name.
    #[error("template {0:?} has no `{{}}` for the name of the class; known by name: v1, v2, v3")]
    Template(String),
}
