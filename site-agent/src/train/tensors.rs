//! Named tensors as updates and as artifacts: differences, and the bytes that travel.

use common::artifact::{ArtifactManifest, Dtype, LayoutError, TensorLayout, TensorSpec};

use crate::model::{HostTensor, LiveTensors, ModelError, NamedTensors, tensors::TensorMismatch};

/// Tensors that are no artifact, or bytes that are no tensors.
#[derive(Debug, thiserror::Error)]
pub enum TensorError {
    /// Names or shapes that an artifact cannot have.
    #[error("these tensors are no artifact: {0}")]
    Layout(#[from] LayoutError),
    /// An axis longer than the wire format can say.
    #[error("tensor `{name}` has an axis of {axis}, beyond 32 bits")]
    Axis {
        /// The tensor.
        name: String,
        /// Length of its axis.
        axis: usize,
    },
    /// Data that does not fill its layout.
    #[error("{got} bytes of tensors, the layout has {expected}")]
    Bytes {
        /// Bytes of the layout.
        expected: u64,
        /// Bytes given.
        got: u64,
    },
    /// Two sets of tensors of which one is not like the other.
    #[error(transparent)]
    Model(#[from] ModelError),
}

/// `local − global`, tensor by tensor.
///
/// # Errors
/// [`ModelError::Mismatch`] unless both have the same names and shapes.
pub fn delta(local: &NamedTensors, global: &NamedTensors) -> Result<NamedTensors, ModelError> {
    combine(local, global, |local, global| local - global)
}

/// [`delta`] in the place of `global`, from local tensors where they are: it takes a piece of memory, not two models.
///
/// # Errors
/// As [`delta`].
pub fn into_delta(local: &LiveTensors, mut global: NamedTensors) -> Result<NamedTensors, ModelError> {
    let shapes = local.iter().map(|(name, tensor)| (name.clone(), tensor.shape().to_vec())).collect();
    TensorMismatch::check(&shapes, &global)?;
    // Equal names in equal order, as in `combine`.
    for (local, global) in local.values().zip(global.values_mut()) {
        let mut rest = global.values_mut();
        for piece in local.pieces() {
            // Equal shapes: so many are left.
            let (here, after) = rest.split_at_mut(piece.len());
            here.iter_mut().zip(piece.iter()).for_each(|(global, &local)| *global = local - *global);
            rest = after;
        }
    }
    Ok(global)
}

/// The first tensor with a value that is NaN or infinite.
pub fn not_finite(tensors: &NamedTensors) -> Option<&str> {
    // Without a branch for each value: a model has tens of millions.
    let is_finite = |tensor: &HostTensor| tensor.values().iter().fold(true, |all, v| all & v.is_finite());
    tensors.iter().find(|(_, tensor)| !is_finite(tensor)).map(|(name, _)| name.as_str())
}

/// `global + delta`, tensor by tensor.
///
/// # Errors
/// As [`delta`].
pub fn apply(global: &NamedTensors, delta: &NamedTensors) -> Result<NamedTensors, ModelError> {
    combine(global, delta, |global, delta| global + delta)
}

/// `f32(f64(global) + rate · f64(delta))`: what a coordinator makes of the update of one site alone.
///
/// # Errors
/// As [`delta`].
pub fn advance(global: &NamedTensors, delta: &NamedTensors, rate: f64) -> Result<NamedTensors, ModelError> {
    combine(global, delta, |global, delta| (f64::from(global) + rate * f64::from(delta)) as f32)
}

fn combine(
    one: &NamedTensors,
    other: &NamedTensors,
    f: impl Fn(f32, f32) -> f32,
) -> Result<NamedTensors, ModelError> {
    let shapes = one.iter().map(|(name, tensor)| (name.clone(), tensor.shape().to_vec())).collect();
    TensorMismatch::check(&shapes, other)?;
    // Equal names in equal order: the two maps can be walked together.
    let pairs = one.iter().zip(other.values());
    let combined = pairs.map(|((name, one), other)| {
        let values = one.values().iter().zip(other.values()).map(|(&a, &b)| f(a, b)).collect();
        Ok((name.clone(), HostTensor::new(one.shape().to_vec(), values)?))
    });
    combined.collect()
}

/// The layout of these tensors as an artifact.
///
/// # Errors
/// [`TensorError`] for names or shapes that an artifact cannot have.
pub fn layout_of(tensors: &NamedTensors) -> Result<TensorLayout, TensorError> {
    let axis = |name: &str, axis: usize| {
        u32::try_from(axis).map_err(|_| TensorError::Axis { name: name.to_owned(), axis })
    };
    let spec = |(name, tensor): (&String, &HostTensor)| {
        let shape = tensor.shape().iter().map(|&length| axis(name, length)).collect::<Result<_, _>>()?;
        Ok(TensorSpec { name: name.clone(), dtype: Dtype::F32, shape })
    };
    Ok(TensorLayout::new(tensors.iter().map(spec).collect::<Result<_, TensorError>>()?)?)
}

/// Manifest and data of these tensors as an artifact.
///
/// # Errors
/// As [`layout_of`].
pub fn to_artifact(tensors: &NamedTensors) -> Result<(ArtifactManifest, Vec<u8>), TensorError> {
    let layout = layout_of(tensors)?;
    let data: Vec<u8> =
        tensors.values().flat_map(HostTensor::values).flat_map(|value| value.to_le_bytes()).collect();
    Ok((ArtifactManifest::of(layout, &data), data))
}

/// The tensors of an artifact's data.
///
/// # Errors
/// [`TensorError::Bytes`] unless `data` fills the layout exactly.
pub fn from_artifact(layout: &TensorLayout, data: &[u8]) -> Result<NamedTensors, TensorError> {
    let (expected, got) = (layout.bytes(), data.len() as u64);
    if expected != got {
        return Err(TensorError::Bytes { expected, got });
    }
    let mut rest = data;
    let tensor = |spec: &TensorSpec| {
        let shape: Vec<usize> = spec.shape.iter().map(|&axis| axis as usize).collect();
        let length = shape.iter().product::<usize>() * spec.dtype.bytes() as usize;
        // Never beyond the end: `data` fills the layout.
        let (bytes, after) = rest.split_at(length.min(rest.len()));
        rest = after;
        let mut values = Vec::new();
        spec.dtype.read(bytes, &mut values);
        Ok((spec.name.clone(), HostTensor::new(shape, values)?))
    };
    layout.tensors().iter().map(tensor).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensors(offset: f32) -> NamedTensors {
        let ramp = |shape: &[usize]| HostTensor::from_fn(shape.to_vec(), |i| i as f32 + offset);
        NamedTensors::from([("b.weight".to_owned(), ramp(&[2, 3])), ("a".to_owned(), ramp(&[300_000]))])
    }

    #[test]
    fn an_artifact_gives_back_its_tensors() {
        let (manifest, data) = to_artifact(&tensors(0.5)).unwrap();
        assert_eq!(manifest.layout().tensors()[0].name, "a");
        assert_eq!(from_artifact(manifest.layout(), &data).unwrap(), tensors(0.5));
        let short = from_artifact(manifest.layout(), &data[4..]);
        assert!(matches!(short, Err(TensorError::Bytes { .. })));
    }

    #[test]
    fn a_global_model_and_its_delta_give_the_local_model() {
        let difference = delta(&tensors(2.0), &tensors(0.5)).unwrap();
        assert!(difference.values().flat_map(|t| t.values()).all(|&v| v == 1.5));
        assert_eq!(apply(&tensors(0.5), &difference).unwrap(), tensors(2.0));
    }

    #[test]
    fn a_delta_in_the_place_of_the_global_model_is_the_same_to_the_bit() {
        // More than a piece, and numbers of which few are exact.
        let ramp = |scale: f32| HostTensor::from_fn(vec![3, 400_000], |i| scale / (i as f32 + 3.0));
        let model =
            |scale: f32| NamedTensors::from([("a".to_owned(), ramp(scale)), ("b".to_owned(), ramp(-scale))]);
        let (local, global) = (model(0.7), model(0.3));
        let live: LiveTensors = local.iter().map(|(name, t)| (name.clone(), t.clone().into())).collect();
        let expected = delta(&local, &global).unwrap();
        let in_place = into_delta(&live, global).unwrap();
        let bits = |tensors: &NamedTensors| -> Vec<u32> {
            tensors.values().flat_map(HostTensor::values).map(|value| value.to_bits()).collect()
        };
        assert!(bits(&in_place) == bits(&expected));
        assert!(matches!(into_delta(&live, tensors(0.0)), Err(ModelError::Mismatch(_))));
    }

    #[test]
    fn a_model_advances_by_a_share_of_the_delta() {
        let step = delta(&tensors(2.0), &tensors(0.5)).unwrap();
        assert_eq!(advance(&tensors(0.5), &step, 1.0).unwrap(), tensors(2.0));
        assert_eq!(advance(&tensors(0.5), &step, 0.5).unwrap(), tensors(1.25));
    }

    #[test]
    fn tensors_of_another_model_have_no_delta() {
        let mut other = tensors(0.0);
        other.remove("a");
        assert!(matches!(delta(&tensors(0.0), &other), Err(ModelError::Mismatch(_))));
    }
}
