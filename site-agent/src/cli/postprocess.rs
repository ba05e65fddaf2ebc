//! The choice between the network's own masks and those that the reference's rules leave.

use clap::ValueEnum;
use common::taxonomy::Taxonomy;

use crate::infer::postprocess::Rules;

/// What happens to masks before they are written or scored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum PostProcess {
    /// The reference's rules: most organs are their largest piece, lungs are two, tumours lie in their organ.
    Reference,
    /// Nothing: what the network says.
    Off,
}

impl PostProcess {
    /// The rules for a study's classes, if there shall be any.
    pub(super) fn rules(self, taxonomy: &Taxonomy) -> Option<Rules> {
        (self == Self::Reference).then(|| Rules::of(taxonomy))
    }
}
