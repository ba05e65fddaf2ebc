use std::io::Write;

use proptest::prelude::*;

use super::*;

/// A small vocabulary, and what the reference makes of texts with it: `tests/fixtures/clip/README.md`.
const MERGES: &[u8] = include_bytes!("../../../../tests/fixtures/clip/merges.txt");
const VOCABULARY: &[u8] = include_bytes!("../../../../tests/fixtures/clip/vocab.json");
const TOKENS: &[u8] = include_bytes!("../../../../tests/fixtures/clip/tokens.json");
const ROWS: usize = 600;

fn assert_as_the_reference(tokenizer: &Tokenizer) {
    let golden: Vec<(String, Vec<usize>)> = serde_json::from_slice(TOKENS).unwrap();
    assert!(golden.len() > 32);
    for (text, tokens) in golden {
        assert_eq!(tokenizer.encode(&text), tokens, "{text:?}");
    }
}

#[test]
fn tokens_are_those_of_the_reference() {
    assert_as_the_reference(&Tokenizer::new(MERGES, Some(VOCABULARY), ROWS).unwrap());
}

#[test]
fn without_a_vocabulary_tokens_are_numbered_as_openai_does() {
    assert_as_the_reference(&Tokenizer::new(MERGES, None, ROWS).unwrap());
}

#[test]
fn merges_may_be_gzipped_and_more_than_the_weights_know() {
    let more = [MERGES, b"q q\nq x\n"].concat();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&more).unwrap();
    assert_as_the_reference(&Tokenizer::new(&gzip.finish().unwrap(), None, ROWS).unwrap());
}

#[test]
fn a_vocabulary_of_other_weights_is_refused() {
    let fewer = Tokenizer::new(MERGES, Some(VOCABULARY), ROWS - 1);
    assert!(matches!(fewer, Err(TextError::Rows { largest: 599, rows: 599 })), "{fewer:?}");
    let without = Tokenizer::new(MERGES, Some(b"{\"a\": 0}"), ROWS);
    assert!(matches!(without, Err(TextError::Symbols { .. })), "{without:?}");
    let too_few = Tokenizer::new(MERGES, None, 10);
    assert!(matches!(too_few, Err(TextError::Rows { rows: 10, .. })), "{too_few:?}");
}

#[test]
fn files_that_are_no_merges_are_refused_with_the_line() {
    let merges = |text: &str| Tokenizer::new(text.as_bytes(), None, ROWS).map(|_| ());
    assert!(matches!(merges(""), Err(TextError::File { file: "merges", .. })));
    assert!(matches!(merges("a b\n"), Err(TextError::File { .. })));
    for wrong in ["ab", "a b c", " b", ""] {
        let error = merges(&format!("#version: 0.2\na b\n{wrong}\nc d\n"));
        assert!(matches!(error, Err(TextError::Merge { line: 3, .. })), "{wrong:?}: {error:?}");
    }
    let not_text = Tokenizer::new(&[0xff, 0xfe], None, ROWS);
    assert!(matches!(not_text, Err(TextError::File { .. })), "{not_text:?}");
    let vocabulary = Tokenizer::new(MERGES, Some(b"[1]"), ROWS);
    assert!(matches!(vocabulary, Err(TextError::File { file: "vocabulary", .. })), "{vocabulary:?}");
}

#[test]
fn a_small_file_cannot_unpack_to_a_large_one() {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    // The limit lies within a character.
    gzip.write_all("é".repeat(1 + (8 << 20)).as_bytes()).unwrap();
    let error = Tokenizer::new(&gzip.finish().unwrap(), None, ROWS).unwrap_err();
    assert_eq!(error.to_string(), "the merges: more than 16777216 bytes");
}

#[test]
fn merges_of_another_system_and_merges_that_come_twice_are_read() {
    let text = String::from_utf8(MERGES.to_vec()).unwrap();
    assert_as_the_reference(&Tokenizer::new(text.replace('\n', "\r\n").as_bytes(), None, ROWS).unwrap());
    // A pair that comes again has the later rank, as in a dictionary of Python: `b c`, number 513, is joined first.
    let twice = Tokenizer::new(b"#version: 0.2\na b\nb c\na b\n", None, FIXED_TOKENS + 3).unwrap();
    let tokens = twice.encode("abcd");
    assert_eq!((tokens.len(), tokens[2]), (5, 513));
}

proptest! {
    #[test]
    fn any_text_has_tokens_that_the_weights_know(text in ".{0,60}") {
        let tokens = Tokenizer::new(MERGES, None, ROWS).unwrap().encode(&text);
        prop_assert!(tokens.len() >= 2 && tokens.iter().all(|&token| token < ROWS));
        prop_assert_eq!((tokens[0], tokens[tokens.len() - 1]), (ROWS - 2, ROWS - 1));
    }

    #[test]
    fn no_bytes_bring_the_reader_down(lines in "[a-c# \n]{0,60}", bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
        let _ = Tokenizer::new(format!("#version\n{lines}").as_bytes(), Some(&bytes), ROWS);
        let _ = Tokenizer::new(&bytes, Some(lines.as_bytes()), ROWS);
    }
}
