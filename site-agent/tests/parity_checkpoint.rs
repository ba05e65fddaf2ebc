//! Checkpoints in the reference's own layouts (golden case l): every tensor is the hash fill of its name.

#![allow(clippy::unwrap_used, reason = "a failed step of a test ends it")]

mod support;

use std::{collections::BTreeMap, fs::File, io::Cursor};

use site_agent::model::{
    HostTensor,
    checkpoint::{Checkpoint, Imported, Part, write_pytorch},
    record::{read_safetensors, write_safetensors},
};
use support::{golden::Golden, hash_fill};

fn import(golden: &Golden, file: &str, part: Part) -> Imported {
    let mut checkpoint = Checkpoint::open(File::open(golden.path(file)).unwrap()).unwrap();
    Imported::read(&mut checkpoint, part).unwrap_or_else(|error| panic!("{file}: {error}"))
}

fn assert_is_hash_fill(name: &str, tensor: &HostTensor) {
    assert!(*tensor == hash_fill::weight(name, tensor.shape()), "{name} {:?}", tensor.shape());
}

#[test]
fn both_layouts_are_read_with_every_tensor_as_it_was_made() {
    let Some(golden) = Golden::open() else { return };
    for (file, expected) in
        [("l_unet_w2_layoutA.pth", unet_and_head(2)), ("l_swin_f12_layoutB.pth", swin_and_head(12))]
    {
        let imported = import(&golden, file, Part::Whole);
        assert_eq!(imported.check(&expected, 32).map_err(|error| error.to_string()), Ok(()), "{file}");
        for (name, tensor) in &imported.tensors {
            assert_is_hash_fill(name, tensor);
        }
        assert_is_hash_fill("organ_embedding", &imported.embeddings.unwrap());
    }
}

#[test]
fn both_layouts_come_back_to_the_bit() {
    let Some(golden) = Golden::open() else { return };
    for file in ["l_unet_w2_layoutA.pth", "l_swin_f12_layoutB.pth"] {
        let imported = import(&golden, file, Part::Whole);
        let exported = write_pytorch(&imported.tensors, imported.embeddings.as_ref()).unwrap();
        let mut checkpoint = Checkpoint::open(Cursor::new(exported)).unwrap();
        // The same stored names as in layout A, and those that layout B lacks.
        assert!(checkpoint.names().iter().all(|name| name.starts_with("module.")), "{file}");
        let again = Imported::read(&mut checkpoint, Part::Whole).unwrap();
        assert!(again == imported, "{file}");
        let safetensors = write_safetensors(&imported.tensors).unwrap();
        assert!(read_safetensors(&safetensors).unwrap() == imported.tensors, "{file}");
    }
}

#[test]
fn a_pre_trained_backbone_is_read_without_its_output() {
    let Some(golden) = Golden::open() else { return };
    let imported = import(&golden, "l_unet_w2_genesis.pt", Part::Backbone);
    let expected = unet_and_head(2);
    assert_eq!(imported.check(&expected, 32).map_err(|error| error.to_string()), Ok(()));
    assert_eq!((imported.tensors.len(), imported.embeddings), (62, None));
    for (name, tensor) in &imported.tensors {
        assert_is_hash_fill(name, tensor);
    }
}

// ---- names and shapes, as the specification has them (sections 7 to 9) ----------------------------------------------

type Shapes = BTreeMap<String, Vec<usize>>;

fn unet_and_head(w: usize) -> Shapes {
    let mut shapes = head(16 * w, 2 * w);
    let stages = [("down_tr64", 1, w), ("down_tr128", 2 * w, 2 * w), ("down_tr256", 4 * w, 4 * w)];
    let stages = stages.into_iter().chain([("down_tr512", 8 * w, 8 * w)]);
    for (stage, input, middle) in stages {
        unit(&mut shapes, &format!("{stage}.ops.0"), input, middle);
        unit(&mut shapes, &format!("{stage}.ops.1"), middle, 2 * middle);
    }
    for (stage, input) in [("up_tr256", 16 * w), ("up_tr128", 8 * w), ("up_tr64", 4 * w)] {
        layer(&mut shapes, &format!("backbone.{stage}.up_conv"), &[input, input, 2, 2, 2], input);
        unit(&mut shapes, &format!("{stage}.ops.0"), input + input / 2, input / 2);
        unit(&mut shapes, &format!("{stage}.ops.1"), input / 2, input / 2);
    }
    shapes
}

/// Weight and bias.
fn layer(shapes: &mut Shapes, name: &str, weight: &[usize], bias: usize) {
    shapes.insert(format!("{name}.weight"), weight.to_vec());
    shapes.insert(format!("{name}.bias"), vec![bias]);
}

/// Convolution and batch normalisation.
fn unit(shapes: &mut Shapes, name: &str, input: usize, output: usize) {
    layer(shapes, &format!("backbone.{name}.conv1"), &[output, input, 3, 3, 3], output);
    layer(shapes, &format!("backbone.{name}.bn1"), &[output], output);
}

fn head(bottleneck: usize, decoder: usize) -> Shapes {
    let mut shapes = Shapes::new();
    layer(&mut shapes, "GAP.0", &[bottleneck], bottleneck);
    layer(&mut shapes, "GAP.3", &[256, bottleneck, 1, 1, 1], 256);
    layer(&mut shapes, "precls_conv.0", &[decoder], decoder);
    layer(&mut shapes, "precls_conv.2", &[8, decoder, 1, 1, 1], 8);
    layer(&mut shapes, "controller", &[153, 512, 1, 1, 1], 153);
    layer(&mut shapes, "text_to_vision", &[256, 512], 256);
    shapes
}

fn swin_and_head(c: usize) -> Shapes {
    let mut shapes = head(16 * c, c);
    layer(&mut shapes, "backbone.swinViT.patch_embed.proj", &[c, 1, 2, 2, 2], c);
    for (stage, heads) in [3, 6, 12, 24].into_iter().enumerate() {
        let (dim, stage) = (c << stage, format!("backbone.swinViT.layers{}.0", stage + 1));
        for block in 0..2 {
            let block = format!("{stage}.blocks.{block}");
            layer(&mut shapes, &format!("{block}.norm1"), &[dim], dim);
            layer(&mut shapes, &format!("{block}.norm2"), &[dim], dim);
            layer(&mut shapes, &format!("{block}.attn.qkv"), &[3 * dim, dim], 3 * dim);
            layer(&mut shapes, &format!("{block}.attn.proj"), &[dim, dim], dim);
            layer(&mut shapes, &format!("{block}.mlp.linear1"), &[4 * dim, dim], 4 * dim);
            layer(&mut shapes, &format!("{block}.mlp.linear2"), &[dim, 4 * dim], dim);
            shapes.insert(format!("{block}.attn.relative_position_bias_table"), vec![2197, heads]);
        }
        layer(&mut shapes, &format!("{stage}.downsample.norm"), &[8 * dim], 8 * dim);
        shapes.insert(format!("{stage}.downsample.reduction.weight"), vec![2 * dim, 8 * dim]);
    }
    for (encoder, input, output) in
        [(1, 1, c), (2, c, c), (3, 2 * c, 2 * c), (4, 4 * c, 4 * c), (10, 16 * c, 16 * c)]
    {
        residual(&mut shapes, &format!("encoder{encoder}.layer"), input, output);
    }
    for (decoder, input, output) in
        [(5, 16 * c, 8 * c), (4, 8 * c, 4 * c), (3, 4 * c, 2 * c), (2, 2 * c, c), (1, c, c)]
    {
        let transposed = format!("backbone.decoder{decoder}.transp_conv.conv.weight");
        shapes.insert(transposed, vec![input, output, 2, 2, 2]);
        residual(&mut shapes, &format!("decoder{decoder}.conv_block"), 2 * output, output);
    }
    shapes
}

/// Two convolutions without bias, and a third where the number of channels changes.
fn residual(shapes: &mut Shapes, name: &str, input: usize, output: usize) {
    let mut convolution = |i: usize, input: usize, side: usize| {
        let shape = vec![output, input, side, side, side];
        shapes.insert(format!("backbone.{name}.conv{i}.conv.weight"), shape);
    };
    convolution(1, input, 3);
    convolution(2, output, 3);
    if input != output {
        convolution(3, input, 1);
    }
}
