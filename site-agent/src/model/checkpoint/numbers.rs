//! The number formats of PyTorch's storages, and how they are read.

/// A number format. Little-endian, as the file says elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Number {
    F64,
    F32,
    F16,
    Bf16,
    I64,
    I32,
    I16,
    I8,
    U8,
    Bool,
}

/// Values as they are used here: floating point becomes f32, whole numbers i64.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    /// Weights.
    Floats(Vec<f32>),
    /// Counters and indices.
    Integers(Vec<i64>),
}

impl Number {
    /// The format of a storage class in module `torch`.
    pub(super) fn of_storage(class: &str) -> Option<Self> {
        Some(match class {
            "DoubleStorage" => Self::F64,
            "FloatStorage" => Self::F32,
            "HalfStorage" => Self::F16,
            "BFloat16Storage" => Self::Bf16,
            "LongStorage" => Self::I64,
            "IntStorage" => Self::I32,
            "ShortStorage" => Self::I16,
            "CharStorage" => Self::I8,
            "ByteStorage" => Self::U8,
            "BoolStorage" => Self::Bool,
            _ => return None,
        })
    }

    /// Bytes of one number.
    pub(super) fn size(self) -> u64 {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::Bf16 | Self::I16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }

    /// The numbers at these positions; each must lie inside `bytes`.
    pub(super) fn decode(self, bytes: &[u8], positions: impl Iterator<Item = usize>) -> Values {
        use burn::tensor::{bf16, f16};
        match self {
            Self::F64 => Values::Floats(pick(bytes, positions, |b| f64::from_le_bytes(b) as f32)),
            Self::F32 => Values::Floats(pick(bytes, positions, f32::from_le_bytes)),
            Self::F16 => Values::Floats(pick(bytes, positions, |b| f16::from_le_bytes(b).to_f32())),
            Self::Bf16 => Values::Floats(pick(bytes, positions, |b| bf16::from_le_bytes(b).to_f32())),
            Self::I64 => Values::Integers(pick(bytes, positions, i64::from_le_bytes)),
            Self::I32 => Values::Integers(pick(bytes, positions, |b| i32::from_le_bytes(b).into())),
            Self::I16 => Values::Integers(pick(bytes, positions, |b| i16::from_le_bytes(b).into())),
            Self::I8 => Values::Integers(pick(bytes, positions, |b| i8::from_le_bytes(b).into())),
            Self::U8 | Self::Bool => Values::Integers(pick(bytes, positions, |[b]: [u8; 1]| i64::from(b))),
        }
    }
}

fn pick<const N: usize, T>(
    bytes: &[u8],
    positions: impl Iterator<Item = usize>,
    value: impl Fn([u8; N]) -> T,
) -> Vec<T> {
    let (numbers, _) = bytes.as_chunks::<N>();
    positions.map(|position| value(numbers[position])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_is_read_at_any_position() {
        let read = |number: Number, bytes: &[u8]| number.decode(bytes, [1, 0].into_iter());
        let floats = Values::Floats(vec![-2.0, 1.0]);
        assert_eq!(read(Number::F64, &[1f64.to_le_bytes(), (-2f64).to_le_bytes()].concat()), floats);
        assert_eq!(read(Number::F32, &[1f32.to_le_bytes(), (-2f32).to_le_bytes()].concat()), floats);
        assert_eq!(read(Number::F16, &[0x00, 0x3c, 0x00, 0xc0]), floats);
        assert_eq!(read(Number::Bf16, &[0x80, 0x3f, 0x00, 0xc0]), floats);
        let integers = Values::Integers(vec![-2, 1]);
        assert_eq!(read(Number::I64, &[1i64.to_le_bytes(), (-2i64).to_le_bytes()].concat()), integers);
        assert_eq!(read(Number::I32, &[1, 0, 0, 0, 0xfe, 0xff, 0xff, 0xff]), integers);
        assert_eq!(read(Number::I16, &[1, 0, 0xfe, 0xff]), integers);
        assert_eq!(read(Number::I8, &[1, 0xfe]), integers);
        assert_eq!(read(Number::U8, &[1, 0xfe]), Values::Integers(vec![254, 1]));
    }
}
