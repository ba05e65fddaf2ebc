//! Checkpoints as wholes: there and back, and what is refused. The reference's own files: `tests/parity_checkpoint.rs`.

use std::io::Cursor;

use super::{archive_writer::ArchiveWriter, *};

/// Tensors with the names and some of the shapes of both backbones.
fn tensors() -> NamedTensors {
    [
        ("backbone.down_tr64.ops.0.bn1.weight", vec![3]),
        ("backbone.down_tr64.ops.0.conv1.weight", vec![3, 1, 2, 2, 2]),
        ("backbone.swinViT.layers1.0.blocks.0.attn.relative_position_bias_table", vec![5, 2]),
        ("backbone.swinViT.layers1.0.blocks.1.attn.relative_position_bias_table", vec![5, 2]),
        ("controller.bias", vec![300]),
        ("text_to_vision.weight", vec![4, 7]),
    ]
    .map(|(name, shape)| (name.to_owned(), HostTensor::from_fn(shape, |i| (i as f32 - 1.3).exp2())))
    .into()
}

fn table() -> HostTensor {
    HostTensor::from_fn(vec![32, 7], |i| -(i as f32))
}

fn open(bytes: Vec<u8>) -> Result<Checkpoint<Cursor<Vec<u8>>>, CheckpointError> {
    Checkpoint::open(Cursor::new(bytes))
}

fn import(bytes: Vec<u8>, part: Part) -> Result<Imported, CheckpointError> {
    Imported::read(&mut open(bytes)?, part)
}

#[test]
fn an_exported_model_is_imported_to_the_bit() {
    let bytes = write_pytorch(&tensors(), Some(&table())).unwrap();
    let imported = import(bytes.clone(), Part::Whole).unwrap();
    assert_eq!(imported, Imported { part: Part::Whole, tensors: tensors(), embeddings: Some(table()) });
    assert_eq!(write_pytorch(&imported.tensors, imported.embeddings.as_ref()).unwrap(), bytes);
}

#[test]
fn odd_floats_survive() {
    let values = vec![f32::MIN_POSITIVE / 8.0, -0.0, f32::INFINITY, f32::MAX, f32::EPSILON];
    let tensors = NamedTensors::from([("GAP.3.bias".to_owned(), HostTensor::new(vec![5], values).unwrap())]);
    let imported = import(write_pytorch(&tensors, None).unwrap(), Part::Whole).unwrap();
    let bits = |tensors: &NamedTensors| {
        tensors["GAP.3.bias"].values().iter().map(|v| v.to_bits()).collect::<Vec<_>>()
    };
    assert_eq!(bits(&imported.tensors), bits(&tensors));
}

#[test]
fn an_export_has_what_a_strict_load_wants() {
    let mut written = open(write_pytorch(&tensors(), Some(&table())).unwrap()).unwrap();
    // Three buffers of one normalisation, two indices, and the table.
    assert_eq!(written.names().len(), tensors().len() + 6);
    assert!(written.names().iter().all(|name| name.starts_with("module.")));
    let mut values = |name: &str| written.read(&format!("module.backbone.{name}")).unwrap().values;
    assert_eq!(values("down_tr64.ops.0.bn1.running_mean"), Values::Floats(vec![0.0; 3]));
    assert_eq!(values("down_tr64.ops.0.bn1.running_var"), Values::Floats(vec![1.0; 3]));
    assert_eq!(values("down_tr64.ops.0.bn1.num_batches_tracked"), Values::Integers(vec![0]));
    let index = Values::Integers(layout::relative_position_index());
    for block in 0..2 {
        assert_eq!(values(&format!("swinViT.layers1.0.blocks.{block}.attn.relative_position_index")), index);
    }
}

#[test]
fn the_backbone_alone_leaves_head_and_table() {
    let bytes = write_pytorch(&tensors(), Some(&table())).unwrap();
    let imported = import(bytes, Part::Backbone).unwrap();
    assert_eq!(imported.tensors.len(), 4);
    assert!(imported.tensors.keys().all(|name| name.starts_with("backbone.")));
    assert_eq!(imported.embeddings, None);
}

#[test]
fn every_difference_from_the_model_is_in_one_table() {
    let mut model: BTreeMap<_, _> =
        tensors().iter().map(|(name, tensor)| (name.clone(), tensor.shape().to_vec())).collect();
    let mut imported = import(write_pytorch(&tensors(), Some(&table())).unwrap(), Part::Whole).unwrap();
    assert!(imported.check(&model, 32).is_ok());
    model.remove("controller.bias");
    model.insert("controller.weight".to_owned(), vec![153, 512, 1, 1, 1]);
    model.insert("text_to_vision.weight".to_owned(), vec![4, 8]);
    imported.embeddings = Some(HostTensor::from_fn(vec![31, 7], |_| 0.0));
    let Err(ModelError::Mismatch(mismatch)) = imported.check(&model, 32) else { panic!("accepted") };
    assert_eq!((mismatch.missing.len(), mismatch.extra.len(), mismatch.wrong_shape.len()), (1, 1, 2));
    assert!(
        mismatch.to_string().contains("organ_embedding: [31, 7], expected [32, 7] (31 channels"),
        "{mismatch}"
    );
}

#[test]
fn a_backbone_is_compared_with_a_backbone() {
    let mut model: BTreeMap<_, _> =
        tensors().iter().map(|(name, tensor)| (name.clone(), tensor.shape().to_vec())).collect();
    let bytes = write_pytorch(&tensors(), None).unwrap();
    let imported = import(bytes, Part::Backbone).unwrap();
    assert!(imported.check(&model, 32).is_ok());
    model.insert("backbone.down_tr64.ops.0.conv1.bias".to_owned(), vec![3]);
    assert!(matches!(imported.check(&model, 32), Err(ModelError::Mismatch(_))));
}

/// An archive of this pickle and these storages.
fn archive(pickle: &[u8], storages: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = ArchiveWriter::default();
    writer.add("x/data.pkl", pickle).unwrap();
    for (key, bytes) in storages {
        writer.add(&format!("x/data/{key}"), bytes).unwrap();
    }
    writer.finish().unwrap()
}

/// Instructions for one tensor of f32 in storage 0: its name, the storage's length, shape `[n]`.
fn named_tensor(name: &str, storage_length: u8, n: u8) -> Vec<u8> {
    let mut out = [b"X".as_slice(), &(name.len() as u32).to_le_bytes(), name.as_bytes()].concat();
    out.extend_from_slice(b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\n");
    out.extend_from_slice(b"X\x01\0\0\x000X\x03\0\0\0cpuK");
    out.extend_from_slice(&[storage_length, b't', b'Q', b'K', 0, b'K', n, 0x85, b'K', 1, 0x85]);
    out.extend_from_slice(b"\x89ccollections\nOrderedDict\n)RtR");
    out
}

fn pickle(tensors: &[Vec<u8>]) -> Vec<u8> {
    [b"\x80\x02}(".as_slice(), &tensors.concat(), b"u."].concat()
}

#[test]
fn a_bare_state_dict_is_read() {
    let bytes =
        archive(&pickle(&[named_tensor("GAP.3.bias", 2, 1)]), &[("0", &[0, 0, 0x80, 0x3f, 0, 0, 0, 0])]);
    let imported = import(bytes, Part::Whole).unwrap();
    assert_eq!(imported.tensors["GAP.3.bias"].values(), [1.0]);
}

#[test]
fn a_storage_shorter_than_its_tensor_is_refused() {
    for (said, needed, stored) in [(2, 2, 4), (1, 2, 8), (200, 1, 8)] {
        let bytes = archive(&pickle(&[named_tensor("w", said, needed)]), &[("0", &vec![0; stored])]);
        let error = import(bytes, Part::Whole).unwrap_err();
        assert!(matches!(error, CheckpointError::Tensor { .. }), "{said} {needed} {stored}: {error}");
    }
    let without = archive(&pickle(&[named_tensor("w", 1, 1)]), &[]);
    assert!(matches!(import(without, Part::Whole), Err(CheckpointError::Tensor { .. })));
}

#[test]
fn one_storage_is_not_read_again_and_again() {
    let many: Vec<_> = (0..99).map(|i| named_tensor(&format!("w{i}"), 250, 250)).collect();
    let bytes = archive(&pickle(&many), &[("0", &vec![0; 1 << 20])]);
    assert!(import(bytes, Part::Whole).unwrap_err().to_string().contains("too large a storage"));
}

#[test]
fn a_name_is_there_once() {
    for names in [["w", "w"], ["module.GAP.3.bias", "GAP.3.bias"], ["encoder1.w", "backbone.encoder1.w"]] {
        let bytes = archive(&pickle(&names.map(|name| named_tensor(name, 1, 1))), &[("0", &[0; 4])]);
        assert!(import(bytes, Part::Whole).unwrap_err().to_string().contains("twice"), "{names:?}");
    }
}

#[test]
fn a_wrong_index_and_integer_weights_are_refused() {
    let name = "swinViT.layers1.0.blocks.0.attn.relative_position_index";
    let bytes = archive(&pickle(&[named_tensor(name, 1, 1)]), &[("0", &[0; 4])]);
    assert!(import(bytes, Part::Whole).unwrap_err().to_string().contains("7 x 7 x 7"));
    let floats = named_tensor("w", 1, 1);
    let at = floats.windows(5).position(|window| window == b"Float").unwrap();
    let integers = [&floats[..at], b"Int", &floats[at + 5..]].concat();
    let bytes = archive(&pickle(&[integers]), &[("0", &[0; 4])]);
    assert!(import(bytes, Part::Whole).unwrap_err().to_string().contains("integers"));
}

#[test]
fn files_without_tensors_are_refused_in_words() {
    for (pickle, words) in [
        (b"K\x07.".as_slice(), "no dictionary"),
        (b"}.", "empty"),
        (b"}X\x03\0\0\0netK\x07s.", "`net` is no dictionary"),
        (b"}(X\x03\0\0\0net}X\x03\0\0\0net}u.", "`net` is there twice"),
        (b"}X\x05\0\0\0epochK\x07s.", "is no tensor"),
        (b"}X\x02\0\0\0\x1b[K\x07s.", "no name of a tensor"),
        (b"\x80\x02cposix\nsystem\n.", "posix.system"),
    ] {
        let error = open(archive(pickle, &[])).map(drop).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }
    let long = archive(&vec![b'N'; 1 << 21], &[]);
    assert!(open(long).map(drop).unwrap_err().to_string().contains("at most"));
}
