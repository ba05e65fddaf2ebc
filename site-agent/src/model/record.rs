//! Named tensors as safetensors files.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read, Write};

use safetensors::{
    Dtype, SafeTensors,
    tensor::{Metadata, TensorInfo, TensorView},
};

use super::{
    error::ModelError,
    live::{LiveTensor, PIECE},
    tensors::{HostTensor, NamedTensors, value_count},
};

/// Key of the note in a file's metadata.
const NOTE: &str = "made";

/// Reads every tensor of a safetensors file as f32.
///
/// # Errors
///
/// [`ModelError::Safetensors`] for other bytes, [`ModelError::Dtype`] for a tensor that is not floating point.
pub fn read_safetensors(bytes: &[u8]) -> Result<NamedTensors, ModelError> {
    read_safetensors_where(bytes, |_| true)
}

/// As [`read_safetensors`], of the tensors with a name that is wanted alone: the rest may be of any format.
///
/// # Errors
///
/// As [`read_safetensors`].
pub fn read_safetensors_where(
    bytes: &[u8],
    is_wanted: impl Fn(&str) -> bool,
) -> Result<NamedTensors, ModelError> {
    let file = SafeTensors::deserialize(bytes)?;
    let wanted = file.iter().filter(|(name, _)| is_wanted(name));
    wanted.map(|(name, view)| Ok((name.to_owned(), decode(name, &view)?))).collect()
}

/// Writes tensors as F32, in ascending order of name: equal tensors give equal bytes.
///
/// # Errors
///
/// [`ModelError::Safetensors`] if the header would be too large.
pub fn write_safetensors(tensors: &NamedTensors) -> Result<Vec<u8>, ModelError> {
    write(tensors, None)
}

/// As [`write_safetensors`], with a note of how the tensors were made; [`note`] reads it.
///
/// # Errors
///
/// As [`write_safetensors`].
pub fn write_safetensors_with_note(tensors: &NamedTensors, note: &str) -> Result<Vec<u8>, ModelError> {
    // One key alone: the order of several would not be the same in each run.
    write(tensors, Some(HashMap::from([(NOTE.to_owned(), note.to_owned())])))
}

/// As [`write_safetensors_with_note`], piece by piece to where it goes: no second copy of the tensors is in memory.
///
/// # Errors
///
/// What the other end says.
pub fn write_safetensors_to(
    out: &mut dyn Write,
    tensors: &BTreeMap<String, &LiveTensor>,
    note: Option<&str>,
) -> io::Result<()> {
    let mut header = serde_json::Map::new();
    if let Some(note) = note {
        header.insert("__metadata__".to_owned(), serde_json::json!({ NOTE: note }));
    }
    let mut end = 0;
    for (name, tensor) in tensors {
        let start = end;
        end += 4 * tensor.elements();
        let entry =
            serde_json::json!({ "dtype": "F32", "shape": tensor.shape(), "data_offsets": [start, end] });
        header.insert(name.clone(), entry);
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    let mut bytes = Vec::new();
    for values in tensors.values().flat_map(|tensor| tensor.pieces()) {
        bytes.clear();
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        out.write_all(&bytes)?;
    }
    Ok(())
}

/// Tensors and note of a file of `length` bytes that [`write_safetensors_to`] wrote, piece by piece: no second copy of the
/// tensors is in memory.
///
/// # Errors
///
/// [`io::ErrorKind::InvalidData`] or [`io::ErrorKind::UnexpectedEof`] for other bytes, or what the other end says.
pub fn read_safetensors_from(file: &mut dyn Read, length: u64) -> io::Result<(NamedTensors, Option<String>)> {
    let mut header = [0; 8];
    file.read_exact(&mut header)?;
    let header = u64::from_le_bytes(header);
    let data =
        length.checked_sub(8).and_then(|rest| rest.checked_sub(header)).ok_or_else(not_written_here)?;
    let mut header = vec![0; usize::try_from(header).map_err(|_| not_written_here())?];
    file.read_exact(&mut header)?;
    let header: Metadata = serde_json::from_slice(&header)?;
    let note = header.metadata().as_ref().and_then(|metadata| metadata.get(NOTE).cloned());

    let mut infos: Vec<(String, &TensorInfo)> = header.tensors().into_iter().collect();
    infos.sort_by_key(|(_, info)| info.data_offsets);
    let (mut tensors, mut at) = (NamedTensors::new(), 0);
    for (name, TensorInfo { dtype, shape, data_offsets: (start, end) }) in infos {
        // Compared with the file's length first: no room is made for more numbers than are there.
        let is_here = *dtype == Dtype::F32 && *start == at && *end as u64 <= data;
        let numbers =
            value_count(shape).filter(|numbers| is_here && numbers.checked_mul(4) == end.checked_sub(at));
        let values = read_values(file, numbers.ok_or_else(not_written_here)?)?;
        let tensor = HostTensor::new(shape.clone(), values).map_err(|_| not_written_here())?;
        tensors.insert(name, tensor);
        at = *end;
    }
    if at as u64 == data { Ok((tensors, note)) } else { Err(not_written_here()) }
}

fn read_values(file: &mut dyn Read, numbers: usize) -> io::Result<Vec<f32>> {
    let (mut values, mut bytes) = (Vec::with_capacity(numbers), Vec::<u8>::new());
    while values.len() < numbers {
        bytes.resize(4 * PIECE.min(numbers - values.len()), 0);
        file.read_exact(&mut bytes)?;
        values.extend(bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)));
    }
    Ok(values)
}

fn not_written_here() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "not a safetensors file as it is written here")
}

/// How the tensors of a file were made, if the file says so. Foreign text: show it with care.
pub fn note(bytes: &[u8]) -> Option<String> {
    let (_, metadata) = SafeTensors::read_metadata(bytes).ok()?;
    metadata.metadata().as_ref()?.get(NOTE).cloned()
}

fn write(tensors: &NamedTensors, metadata: Option<HashMap<String, String>>) -> Result<Vec<u8>, ModelError> {
    let bytes: Vec<(&String, &HostTensor, Vec<u8>)> = tensors
        .iter()
        .map(|(name, tensor)| (name, tensor, tensor.values().iter().flat_map(|v| v.to_le_bytes()).collect()))
        .collect();
    let views = bytes
        .iter()
        .map(|(name, tensor, data)| Ok((*name, TensorView::new(Dtype::F32, tensor.shape().to_vec(), data)?)))
        .collect::<Result<Vec<_>, ModelError>>()?;
    Ok(safetensors::serialize(views, metadata)?)
}

fn decode(name: &str, view: &TensorView<'_>) -> Result<HostTensor, ModelError> {
    use burn::tensor::{bf16, f16};
    let data = view.data();
    let values = match view.dtype() {
        Dtype::F32 => decode_values(data, f32::from_le_bytes),
        Dtype::F64 => decode_values(data, |bytes| f64::from_le_bytes(bytes) as f32),
        Dtype::F16 => decode_values(data, |bytes| f16::from_le_bytes(bytes).to_f32()),
        Dtype::BF16 => decode_values(data, |bytes| bf16::from_le_bytes(bytes).to_f32()),
        other => return Err(ModelError::Dtype { name: name.to_owned(), dtype: format!("{other:?}") }),
    };
    HostTensor::new(view.shape().to_vec(), values)
}

fn decode_values<const N: usize>(data: &[u8], decode: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    data.as_chunks::<N>().0.iter().map(|&bytes| decode(bytes)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::LiveTensors;

    #[test]
    fn tensors_read_back_as_written() {
        let tensors = NamedTensors::from([
            ("a.weight".to_owned(), HostTensor::from_fn(vec![2, 3], |i| i as f32 - 0.1)),
            ("b".to_owned(), HostTensor::new(vec![0], vec![]).unwrap()),
        ]);
        assert_eq!(read_safetensors(&write_safetensors(&tensors).unwrap()).unwrap(), tensors);
    }

    #[test]
    fn half_precision_is_widened_and_integers_are_refused() {
        let half = [0x00, 0x3c, 0x00, 0xc0]; // 1.0 and -2.0, little-endian
        let view = TensorView::new(Dtype::F16, vec![2], &half).unwrap();
        let file = safetensors::serialize([("table", view)], None).unwrap();
        assert_eq!(read_safetensors(&file).unwrap()["table"].values(), [1.0, -2.0]);

        let view = TensorView::new(Dtype::I64, vec![1], &[0; 8]).unwrap();
        let file = safetensors::serialize([("count", view)], None).unwrap();
        assert!(matches!(read_safetensors(&file), Err(ModelError::Dtype { .. })));
    }

    #[test]
    fn a_note_is_read_back_and_changes_no_tensor() {
        let tensors = NamedTensors::from([("a".to_owned(), HostTensor::from_fn(vec![2], |i| i as f32))]);
        let file = write_safetensors_with_note(&tensors, "one-hot").unwrap();
        assert_eq!(note(&file).as_deref(), Some("one-hot"));
        assert_eq!(read_safetensors(&file).unwrap(), tensors);
        assert_eq!(note(&write_safetensors(&tensors).unwrap()), None);
        assert_eq!(note(b"not safetensors"), None);
    }

    #[test]
    fn a_file_written_piece_by_piece_reads_back_with_its_note() {
        let tensors = NamedTensors::from([
            ("a".to_owned(), HostTensor::from_fn(vec![PIECE + 3], |i| i as f32 + 0.5)),
            ("b".to_owned(), HostTensor::new(vec![0, 3], vec![]).unwrap()),
            ("c.weight".to_owned(), HostTensor::from_fn(vec![2, 2], |i| -(i as f32))),
        ]);
        let live: LiveTensors =
            tensors.iter().map(|(name, tensor)| (name.clone(), tensor.clone().into())).collect();
        let borrowed = live.iter().map(|(name, tensor)| (name.clone(), tensor)).collect();
        for said in [Some("{\"step\": 3}"), None] {
            let mut file = Vec::new();
            write_safetensors_to(&mut file, &borrowed, said).unwrap();
            assert_eq!(read_safetensors(&file).unwrap(), tensors);
            assert_eq!(note(&file).as_deref(), said);
            let piece_by_piece = read_safetensors_from(&mut file.as_slice(), file.len() as u64).unwrap();
            assert_eq!(piece_by_piece, (tensors.clone(), said.map(str::to_owned)));
            for length in [0, 7, 8, 90, file.len() - 1] {
                let short = read_safetensors_from(&mut &file[..length], length as u64);
                let kind = short.unwrap_err().kind();
                assert!(
                    matches!(kind, io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof),
                    "{length}"
                );
            }
        }
    }

    #[test]
    fn a_tensor_that_is_not_wanted_may_be_of_any_format() {
        let numbers = TensorView::new(Dtype::I64, vec![1], &[0; 8]).unwrap();
        let wanted = TensorView::new(Dtype::F32, vec![1], &[0; 4]).unwrap();
        let file = safetensors::serialize([("ids", numbers), ("weight", wanted)], None).unwrap();
        let read = read_safetensors_where(&file, |name| name == "weight").unwrap();
        assert_eq!(read.into_keys().collect::<Vec<_>>(), ["weight"]);
    }

    #[test]
    fn truncated_files_are_refused() {
        let tensors = NamedTensors::from([("a".to_owned(), HostTensor::from_fn(vec![4], |i| i as f32))]);
        let file = write_safetensors(&tensors).unwrap();
        for length in [0, 7, 8, file.len() - 1] {
            assert!(matches!(read_safetensors(&file[..length]), Err(ModelError::Safetensors(_))), "{length}");
        }
    }
}
