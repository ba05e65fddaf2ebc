//! CLIP's byte-pair encoding: a prompt to token numbers.
//!
//! Text is put into lower case, cut into words by CLIP's pattern, and each word's bytes are joined pair by pair, the
//! earliest pair of the merges file first, until no pair of it is left. Not done here: repair of broken Unicode and of
//! HTML entities, which CLIP's own code does with its training captions, and special tokens written out in a prompt.

use std::{collections::HashMap, io::Read};

use flate2::read::MultiGzDecoder;
use regex::Regex;

use super::error::TextError;

/// Larger than any real file of this kind: OpenAI's is 3 MiB unpacked.
const MOST_BYTES: u64 = 16 << 20;
/// What marks the last symbol of a word.
const WORD_END: &str = "</w>";
const START: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";
/// Tokens of every vocabulary that are no merge: each byte inside and at the end of a word, start and end.
const FIXED_TOKENS: usize = 2 * 256 + 2;
/// How words are cut. `regex` prefers the first alternative that fits, as CLIP's Python does.
const WORDS: &str = r"(?i)'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+";

/// Turns prompts into token numbers.
#[derive(Debug)]
pub struct Tokenizer {
    words: Regex,
    /// Token of each byte inside a word.
    inside: Vec<usize>,
    /// Token of each byte at the end of a word.
    last: Vec<usize>,
    /// Rank and token of each pair of tokens that is joined; a smaller rank is joined sooner.
    merges: HashMap<[usize; 2], (usize, usize)>,
    start: usize,
    end: usize,
}

impl Tokenizer {
    /// A tokeniser from the files that come with the weights: `merges.txt` of Hugging Face or `bpe_simple_vocab_16e6.txt` of
    /// OpenAI, either as it is or gzipped, and `vocab.json`. Without the latter, tokens are numbered as OpenAI does.
    /// `rows` is the number of tokens that the weights know.
    ///
    /// # Errors
    ///
    /// [`TextError`] if a file is none of these, or the two and `rows` do not belong together.
    pub fn new(merges: &[u8], vocabulary: Option<&[u8]>, rows: usize) -> Result<Self, TextError> {
        let text = unpack(merges)?;
        // OpenAI's file has five times the merges that the model was trained with.
        let pairs = parse_merges(&text, rows.saturating_sub(FIXED_TOKENS))?;
        let vocabulary = match vocabulary {
            Some(json) => parse_vocabulary(json)?,
            None => numbered(&pairs),
        };
        let largest = vocabulary.values().copied().max().unwrap_or(0);
        if largest >= rows {
            return Err(TextError::Rows { largest, rows });
        }
        Self::build(&pairs, &vocabulary)
    }

    /// Token numbers of a prompt, from start token to end token. As many as it takes: the encoder has a limit, not this.
    pub fn encode(&self, text: &str) -> Vec<usize> {
        let clean = text.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase();
        let words = self.words.find_iter(&clean).flat_map(|word| self.join(word.as_str().as_bytes()));
        std::iter::once(self.start).chain(words).chain([self.end]).collect()
    }

    fn build(pairs: &[[&str; 2]], vocabulary: &HashMap<String, usize>) -> Result<Self, TextError> {
        let mut missing = Vec::new();
        let mut token = |symbol: String| {
            vocabulary.get(&symbol).copied().unwrap_or_else(|| {
                missing.push(symbol);
                0
            })
        };
        let symbols = byte_symbols();
        let inside = symbols.map(|symbol| token(symbol.to_string())).to_vec();
        let last = symbols.map(|symbol| token(format!("{symbol}{WORD_END}"))).to_vec();
        let (start, end) = (token(START.to_owned()), token(END.to_owned()));
        let mut merges = HashMap::with_capacity(pairs.len());
        for (rank, &[a, b]) in pairs.iter().enumerate() {
            let joined = token(format!("{a}{b}"));
            merges.insert([token(a.to_owned()), token(b.to_owned())], (rank, joined));
        }
        if let Some(first) = missing.first() {
            return Err(TextError::Symbols { count: missing.len(), first: first.clone() });
        }
        // Invariant: the pattern is a constant that every test of this file compiles.
        let words = Regex::new(WORDS).expect("a valid pattern");
        Ok(Self { words, inside, last, merges, start, end })
    }

    /// The tokens of one word.
    fn join(&self, word: &[u8]) -> Vec<usize> {
        let Some((&end, body)) = word.split_last() else { return Vec::new() };
        let mut tokens: Vec<usize> = body.iter().map(|&byte| self.inside[usize::from(byte)]).collect();
        tokens.push(self.last[usize::from(end)]);
        while let Some((pair, joined)) = self.next_merge(&tokens) {
            tokens = replace_pair(&tokens, pair, joined);
        }
        tokens
    }

    /// The pair that is joined first, and what it becomes.
    fn next_merge(&self, tokens: &[usize]) -> Option<([usize; 2], usize)> {
        let merge = |pair: &[usize; 2]| self.merges.get(pair).map(|&(rank, joined)| (rank, *pair, joined));
        let (_, pair, joined) = tokens.array_windows().filter_map(merge).min()?;
        Some((pair, joined))
    }
}

/// Every occurrence of `pair` joined, from the left.
fn replace_pair(tokens: &[usize], pair: [usize; 2], joined: usize) -> Vec<usize> {
    let mut replaced = Vec::with_capacity(tokens.len());
    let mut rest = tokens;
    while let Some((&first, after)) = rest.split_first() {
        if rest.starts_with(&pair) {
            replaced.push(joined);
            rest = &rest[2..];
        } else {
            replaced.push(first);
            rest = after;
        }
    }
    replaced
}

/// The character that stands for each byte in files of this kind: itself if it is printable, else one beyond Latin-1.
fn byte_symbols() -> [char; 256] {
    let mut symbols = ['\0'; 256];
    for (byte, symbol) in bytes_in_order() {
        symbols[usize::from(byte)] = symbol;
    }
    symbols
}

/// Bytes and their characters in the order in which they are numbered: printable ones first.
fn bytes_in_order() -> impl Iterator<Item = (u8, char)> {
    let is_printable = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let (printable, others): (Vec<u8>, Vec<u8>) = (0..=u8::MAX).partition(is_printable);
    let own = printable.into_iter().map(|byte| (byte, char::from(byte)));
    own.chain(others.into_iter().zip('\u{100}'..='\u{143}'))
}

/// The vocabulary as OpenAI numbers it.
fn numbered(pairs: &[[&str; 2]]) -> HashMap<String, usize> {
    let inside = bytes_in_order().map(|(_, symbol)| symbol.to_string());
    let last = bytes_in_order().map(|(_, symbol)| format!("{symbol}{WORD_END}"));
    let joined = pairs.iter().map(|pair| pair.concat());
    let special = [START, END].map(str::to_owned);
    inside.chain(last).chain(joined).chain(special).zip(0..).collect()
}

fn parse_vocabulary(json: &[u8]) -> Result<HashMap<String, usize>, TextError> {
    let wrong = |problem| TextError::File { file: "vocabulary", problem };
    if json.len() as u64 > MOST_BYTES {
        return Err(wrong(format!("more than {MOST_BYTES} bytes")));
    }
    serde_json::from_slice(json).map_err(|error| wrong(format!("expected a JSON object of numbers: {error}")))
}

fn unpack(file: &[u8]) -> Result<String, TextError> {
    let wrong = |problem: String| TextError::File { file: "merges", problem };
    let mut bytes = Vec::new();
    let is_gzip = file.starts_with(&[0x1f, 0x8b]);
    let source: Box<dyn Read + '_> =
        if is_gzip { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };
    source.take(MOST_BYTES + 1).read_to_end(&mut bytes).map_err(|error| wrong(error.to_string()))?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err(wrong(format!("more than {MOST_BYTES} bytes")));
    }
    String::from_utf8(bytes).map_err(|error| wrong(error.utf8_error().to_string()))
}

/// The first `most` pairs of symbols.
fn parse_merges(text: &str, most: usize) -> Result<Vec<[&str; 2]>, TextError> {
    let mut lines = text.trim_end().lines().zip(1..);
    // Both kinds of files begin so; OpenAI's with a quotation mark and its own name before it.
    if !lines.next().is_some_and(|(line, _)| line.contains("#version")) {
        let problem = "expected a first line with `#version`, as in merges.txt".to_owned();
        return Err(TextError::File { file: "merges", problem });
    }
    lines.take(most).map(parse_merge).collect()
}

fn parse_merge((line, number): (&str, usize)) -> Result<[&str; 2], TextError> {
    match line.split_once(' ') {
        Some((a, b)) if !a.is_empty() && !b.is_empty() && !b.contains(' ') => Ok([a, b]),
        _ => Err(TextError::Merge { line: number, got: line.chars().count() }),
    }
}

#[cfg(test)]
mod tests;
