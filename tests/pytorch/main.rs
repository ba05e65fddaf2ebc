//! PyTorch itself as the judge of our checkpoints. Everything that needs no PyTorch is tested beside the code.

#![allow(clippy::unwrap_used, reason = "a failed step of a test ends it")]

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use common::study::sections::{Backbone, PatchMerging};
use site_agent::model::{
    ClassEmbeddings, DeviceKind, EmbeddingConfig, EmbeddingKind, HostTensor, ModelConfig, NamedTensors,
    UniversalModel,
    checkpoint::{Checkpoint, Imported, Part, write_pytorch},
    device,
    embedding::EMBEDDING_NAME,
    record::write_safetensors,
};

const CLASSES: usize = 32;
const WIDTH: usize = 512;

#[test]
#[ignore = "slow: installs PyTorch from its registry"]
fn pytorch_loads_an_export_and_what_it_saves_is_imported() {
    let python = python_with_torch();
    // The narrowest of each.
    for (backbone, width) in [(Backbone::Unet, 8), (Backbone::SwinUnetr, 12)] {
        assert_survives_pytorch(&python, backbone, width);
    }
}

fn assert_survives_pytorch(python: &Path, backbone: Backbone, width: usize) {
    let folder = tempfile::tempdir().unwrap();
    let (tensors, table) = model(backbone, width);
    let write = |name: &str, bytes: Vec<u8>| fs::write(folder.path().join(name), bytes).unwrap();
    let tables = NamedTensors::from([(EMBEDDING_NAME.to_owned(), table.clone())]);
    write("export.pth", write_pytorch(&tensors, Some(&table)).unwrap());
    write("model.safetensors", write_safetensors(&tensors).unwrap());
    write("table.safetensors", write_safetensors(&tables).unwrap());

    let script = bench().join("load_export.py");
    let output = Command::new(python)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .arg(script)
        .arg(folder.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{backbone:?}: {}", String::from_utf8_lossy(&output.stderr));

    let saved = File::open(folder.path().join("saved.pth")).unwrap();
    let imported = Imported::read(&mut Checkpoint::open(saved).unwrap(), Part::Whole).unwrap();
    assert!(imported == Imported { part: Part::Whole, tensors, embeddings: Some(table) }, "{backbone:?}");
}

/// A model of random numbers and its embeddings.
fn model(backbone: Backbone, width: usize) -> (NamedTensors, HostTensor) {
    let table = HostTensor::from_fn(vec![CLASSES, WIDTH], |i| (i as f32).sin());
    let embeddings = ClassEmbeddings::new(EmbeddingKind::Imported, table.clone()).unwrap();
    let embedding = EmbeddingConfig { kind: EmbeddingKind::Imported, rows: CLASSES, width: WIDTH };
    let config = ModelConfig { backbone, width, patch_merging: PatchMerging::default(), embedding };
    let cpu = device(DeviceKind::Cpu).unwrap();
    (UniversalModel::new(&config, Some(&embeddings), 3, &cpu).unwrap().export(), table)
}

fn bench() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("bench")
}

fn python_with_torch() -> PathBuf {
    let output = Command::new(bench().join("torch_env")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}
