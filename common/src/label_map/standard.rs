//! The label maps that come with the program: `configs/datasets/*.toml`, compiled in.

use super::LabelMap;
use crate::taxonomy::Taxonomy;

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        /// Name and text of each built-in label map.
        pub(super) const FILES: &[(&str, &str)] =
            &[$(($name, include_str!(concat!("../../../configs/datasets/", $name, ".toml")))),*];
    };
}

files!(
    "btcv",
    "btcv-after-60",
    "pancreas-ct",
    "chaos",
    "lits",
    "kits",
    "3d-ircadb",
    "word",
    "abdomenct-1k",
    "amos",
    "msd-liver",
    "msd-lung",
    "msd-pancreas",
    "msd-hepatic-vessel",
    "msd-spleen",
    "msd-colon",
    "ct-org",
    "abdomenct-12organ",
    "private-pancreas",
    "totalsegmentator",
    "universal",
);

/// The map with this file name or key.
pub(super) fn find(name: &str) -> Option<LabelMap> {
    let taxonomy = Taxonomy::standard();
    // Invariant: every compiled-in file is parsed by a test.
    let parse = |(file, text): &(&str, &str)| {
        LabelMap::parse(file, text, &taxonomy).expect("the compiled-in label maps are valid")
    };
    match FILES.iter().find(|(file, _)| *file == name) {
        Some(entry) => Some(parse(entry)),
        None => FILES.iter().map(parse).find(|map| map.key == name),
    }
}
