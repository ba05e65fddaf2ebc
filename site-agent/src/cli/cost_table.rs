//! What a model costs, as a table: numbers and multiply-adds by stage, with what was counted.

use crate::model::ModelConfig;
use crate::model::cost::{Cost, ModelCost, total};

/// What the figures are of. A reader compares them with others' only when these say the same.
const COUNTED: [&str; 2] = [
    "counted: products of convolutions, linear maps and attention, in padded windows too",
    "not counted: biases, normalisations, activations, softmax, pooling",
];

/// The lines of the table.
pub(super) fn lines(config: &ModelConfig, [x, y, z]: [usize; 3], cost: &ModelCost) -> Vec<String> {
    let (network, width, classes) = (config.backbone.words(), config.width, config.embedding.rows);
    let mut lines = vec![
        format!("{network} of width {width}, {classes} classes, one patch of {x} x {y} x {z} voxels:"),
        format!("{:<20} {:>18}  {:>19}", "stage", "trainable numbers", "multiply-adds, 10^9"),
    ];
    for (part, stages) in [("backbone", &cost.backbone), ("head", &cost.head)] {
        lines.extend(stages.iter().map(|stage| row(&format!("  {}", stage.name), stage.cost)));
        lines.push(row(part, total(stages)));
    }
    lines.push(row("all", cost.total()));
    let flops = 2.0 * billions(cost.total().multiply_adds);
    lines.push(format!("a multiply-add is 2 FLOPs: {flops:.1} GFLOPs"));
    lines.extend(COUNTED.map(str::to_owned));
    lines
}

fn row(name: &str, cost: Cost) -> String {
    format!("{name:<20} {:>18}  {:>19.3}", grouped(cost.parameters), billions(cost.multiply_adds))
}

fn billions(count: u64) -> f64 {
    count as f64 / 1e9
}

/// With a comma before each three digits.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{EmbeddingConfig, EmbeddingKind};

    #[test]
    fn the_papers_unet_is_tabled_with_its_parts_and_what_was_counted() {
        let embedding = EmbeddingConfig { kind: EmbeddingKind::Imported, rows: 32, width: 512 };
        let (config, patch) = (ModelConfig::unet(32, embedding), [96; 3]);
        let text = lines(&config, patch, &ModelCost::of(&config, patch).unwrap()).join("\n");
        for part in [
            "U-Net of width 32, 32 classes, one patch of 96 x 96 x 96 voxels:",
            "  up_tr64                       573,952              405.874\n",
            "backbone                     19,073,600              824.178\n",
            "head                            342,817                4.309\n",
            "all                          19,416,417              828.487\n",
            "a multiply-add is 2 FLOPs: 1657.0 GFLOPs\n",
            "not counted: biases",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
    }

    #[test]
    fn thousands_are_set_apart() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}
