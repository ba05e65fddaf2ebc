//! The one place where a device is chosen, at run time.

use std::{fmt, str::FromStr};

use burn::tensor::Device;

use super::error::ModelError;

/// Where tensors live and kernels run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceKind {
    /// The processor, through burn's flex back end; threads by `RAYON_NUM_THREADS`.
    #[default]
    Cpu,
    /// A CUDA device by its index; only in binaries built with feature `cuda`.
    Cuda(usize),
}

/// Opens a device, without gradients; see [`training_device`].
///
/// # Errors
///
/// [`ModelError::DeviceNotBuilt`] if this binary lacks the device's back end.
pub fn device(kind: DeviceKind) -> Result<Device, ModelError> {
    match kind {
        DeviceKind::Cpu => Ok(Device::flex()),
        DeviceKind::Cuda(index) => cuda(index),
    }
}

/// Opens a device for training. With `recompute` it makes normalised activations, and what transposed convolutions make of
/// them, again in the backward pass, in the place of keeping them: the same bits in less memory.
///
/// # Errors
///
/// As [`device`].
pub fn training_device(kind: DeviceKind, recompute: bool) -> Result<Device, ModelError> {
    let device = device(kind)?.autodiff();
    Ok(if recompute { device.gradient_checkpointing() } else { device })
}

#[cfg(feature = "cuda")]
fn cuda(index: usize) -> Result<Device, ModelError> {
    Ok(Device::cuda(index))
}

#[cfg(not(feature = "cuda"))]
fn cuda(_index: usize) -> Result<Device, ModelError> {
    Err(ModelError::DeviceNotBuilt { feature: "cuda" })
}

impl FromStr for DeviceKind {
    type Err = ModelError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let unknown = || ModelError::UnknownDevice(name.to_owned());
        match name.split_once(':') {
            None if name == "cpu" => Ok(Self::Cpu),
            None if name == "cuda" => Ok(Self::Cuda(0)),
            Some(("cuda", index)) => index.parse().map(Self::Cuda).map_err(|_| unknown()),
            _ => Err(unknown()),
        }
    }
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_names_read_back_and_others_are_refused() {
        for (name, kind) in [("cpu", DeviceKind::Cpu), ("cuda:3", DeviceKind::Cuda(3))] {
            assert_eq!(name.parse::<DeviceKind>().unwrap(), kind);
            assert_eq!(kind.to_string(), name);
        }
        assert_eq!("cuda".parse::<DeviceKind>().unwrap(), DeviceKind::Cuda(0));
        for name in ["", "gpu", "cuda:", "cuda:x", "cpu:0"] {
            assert!(matches!(name.parse::<DeviceKind>(), Err(ModelError::UnknownDevice(_))), "{name}");
        }
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_device_that_was_not_built_is_refused_with_its_feature() {
        assert!(matches!(device(DeviceKind::Cuda(0)), Err(ModelError::DeviceNotBuilt { feature: "cuda" })));
    }
}
