//! What the names in a checkpoint mean.
//!
//! The reference's files differ in a leading `module.` (from distributed training), in `backbone.` (which its older Swin
//! files lack), and in what else is beside the weights (specification §15). All of it comes down to one [`Role`] for each
//! name.

use crate::model::embedding::EMBEDDING_NAME;

/// The prefix that distributed training puts before every name.
pub(super) const DISTRIBUTED: &str = "module.";

/// Beginnings of names that belong to the backbone, said or not.
const BACKBONE_PARTS: [&str; 5] = ["swinViT", "encoder", "decoder", "down_tr", "up_tr"];

/// Beginnings of the names of the head.
const HEAD_PARTS: [&str; 5] = ["precls_conv.", "GAP.", "controller.", "text_to_vision.", "organ_embedding"];

/// Statistics that batch normalisation saves and, in this network, never reads.
pub(super) const RUNNING_MEAN: &str = "running_mean";
pub(super) const RUNNING_VAR: &str = "running_var";
pub(super) const BATCHES: &str = "num_batches_tracked";

/// The table of token distances, which follows from the window.
pub(super) const RELATIVE_INDEX: &str = "relative_position_index";
/// The trained table that it looks up.
pub(super) const BIAS_TABLE: &str = "relative_position_bias_table";

/// Tokens of a 7 x 7 x 7 window.
pub(super) const WINDOW_TOKENS: usize = 343;

/// What of a checkpoint is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Everything: a trained universal model.
    Whole,
    /// The backbone alone: a pre-trained one, or that of a trained model for another head.
    Backbone,
}

/// What a tensor of a checkpoint is to us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// A trained tensor of this name.
    Trained(String),
    /// The fixed class embeddings.
    Embeddings,
    /// Must be [`relative_position_index`].
    RelativeIndex,
    /// Nothing that the model has.
    PassedOver,
}

/// The role of a stored name.
pub(super) fn role(stored: &str, part: Part) -> Role {
    let plain = stored.strip_prefix(DISTRIBUTED).unwrap_or(stored);
    let rest = plain.strip_prefix("backbone.").unwrap_or(plain);
    let in_backbone = rest.len() < plain.len() || starts_with_one_of(rest, &BACKBONE_PARTS);
    let last = rest.rsplit('.').next().unwrap_or(rest);
    let is_output = rest.starts_with("out_tr.") || rest.starts_with("out.");
    // In pre-training files everything named "out" is the head of another task; no backbone's own name has it.
    let is_foreign =
        part == Part::Backbone && (rest.contains("out") || starts_with_one_of(rest, &HEAD_PARTS));
    match last {
        RUNNING_MEAN | RUNNING_VAR | BATCHES => Role::PassedOver,
        _ if is_output || is_foreign => Role::PassedOver,
        RELATIVE_INDEX => Role::RelativeIndex,
        _ if in_backbone => Role::Trained(format!("backbone.{rest}")),
        EMBEDDING_NAME if plain == EMBEDDING_NAME => Role::Embeddings,
        _ => Role::Trained(plain.to_owned()),
    }
}

fn starts_with_one_of(name: &str, parts: &[&str]) -> bool {
    parts.iter().any(|part| name.starts_with(part))
}

/// For each pair of tokens of a window, the row of the bias table: their distance along each axis plus 6, in base 13.
pub(super) fn relative_position_index() -> Vec<i64> {
    let tokens = WINDOW_TOKENS as i64;
    (0..tokens).flat_map(|a| (0..tokens).map(move |b| row_of_pair(a, b))).collect()
}

fn row_of_pair(a: i64, b: i64) -> i64 {
    let [place_a, place_b] = [a, b].map(|token| [token / 49, token / 7 % 7, token % 7]);
    place_a.iter().zip(place_b).fold(0, |row, (a, b)| row * 13 + (a - b + 6))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trained(stored: &str) -> Option<String> {
        match role(stored, Part::Whole) {
            Role::Trained(name) => Some(name),
            _ => None,
        }
    }

    #[test]
    fn all_layouts_give_one_name() {
        let weight = Some("backbone.encoder1.layer.conv1.conv.weight".to_owned());
        for prefix in ["", "module.", "backbone.", "module.backbone."] {
            assert_eq!(trained(&format!("{prefix}encoder1.layer.conv1.conv.weight")), weight, "{prefix}");
        }
        assert_eq!(trained("module.GAP.3.bias"), Some("GAP.3.bias".to_owned()));
        assert_eq!(trained("organ_embedding.weight"), Some("organ_embedding.weight".to_owned()));
        assert_eq!(role("module.organ_embedding", Part::Whole), Role::Embeddings);
    }

    #[test]
    fn only_one_prefix_is_stripped_and_unknown_names_stay_to_be_refused() {
        assert_eq!(trained("module.module.GAP.3.bias"), Some("module.GAP.3.bias".to_owned()));
        assert_eq!(trained("discriminator.weight"), Some("discriminator.weight".to_owned()));
    }

    #[test]
    fn statistics_and_foreign_outputs_are_passed_over() {
        for name in ["backbone.down_tr64.ops.0.bn1.running_var", "module.out_tr.conv.weight", "out.conv.bias"]
        {
            assert_eq!(role(name, Part::Whole), Role::PassedOver, "{name}");
        }
        let index = "swinViT.layers1.0.blocks.0.attn.relative_position_index";
        assert_eq!(role(index, Part::Whole), Role::RelativeIndex);
    }

    #[test]
    fn a_backbone_alone_has_no_head() {
        for name in ["module.GAP.3.bias", "organ_embedding", "module.readout.weight", "controller.weight"] {
            assert_eq!(role(name, Part::Backbone), Role::PassedOver, "{name}");
        }
        let kept = Role::Trained("backbone.up_tr64.up_conv.bias".to_owned());
        assert_eq!(role("module.up_tr64.up_conv.bias", Part::Backbone), kept);
        let unknown = Role::Trained("rotation_head.weight".to_owned());
        assert_eq!(role("rotation_head.weight", Part::Backbone), unknown);
    }

    #[test]
    fn the_index_of_a_window_is_that_of_the_specification() {
        let index = relative_position_index();
        assert_eq!(index.len(), WINDOW_TOKENS * WINDOW_TOKENS);
        assert_eq!((index[0], index[WINDOW_TOKENS - 1]), (6 * 169 + 6 * 13 + 6, 0));
        // Token 1 is one step along the last axis, token 49 one along the first.
        assert_eq!((index[WINDOW_TOKENS], index[49 * WINDOW_TOKENS]), (1098 + 1, 1098 + 169));
        assert_eq!(index.iter().copied().max(), Some(2196));
    }
}
