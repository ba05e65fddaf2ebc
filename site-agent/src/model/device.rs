//! The one place where a device is chosen, at run time.

use std::{fmt, str::FromStr};

#[cfg(feature = "vulkan")]
use burn::backend::{CubeDevice, WgpuBackend, WgpuDevice, WgpuDeviceKind};
use burn::tensor::Device;
#[cfg(feature = "cuda")]
use burn::tensor::DeviceType;

use super::error::ModelError;

/// Where tensors live and kernels run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceKind {
    /// The processor, through burn's flex back end; threads by `RAYON_NUM_THREADS`.
    #[default]
    Cpu,
    /// A CUDA device by its index; only in binaries built with feature `cuda`.
    Cuda(usize),
    /// A Vulkan device by its index, graphics cards first; only in binaries built with feature `vulkan`.
    Vulkan(usize),
}

/// Opens a device, without gradients; see [`training_device`].
///
/// # Errors
///
/// [`ModelError::DeviceNotBuilt`] if this binary lacks the device's back end, [`ModelError::DeviceAbsent`] if this machine
/// does not have it.
pub fn device(kind: DeviceKind) -> Result<Device, ModelError> {
    match kind {
        DeviceKind::Cpu => Ok(Device::flex()),
        #[cfg(feature = "cuda")]
        DeviceKind::Cuda(index) => {
            among(Device::enumerate(DeviceType::Cuda).into_iter().collect(), index, kind)
        }
        #[cfg(not(feature = "cuda"))]
        DeviceKind::Cuda(_) => Err(ModelError::DeviceNotBuilt { feature: "cuda" }),
        #[cfg(feature = "vulkan")]
        DeviceKind::Vulkan(index) => among(vulkan_devices(), index, kind),
        #[cfg(not(feature = "vulkan"))]
        DeviceKind::Vulkan(_) => Err(ModelError::DeviceNotBuilt { feature: "vulkan" }),
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

/// burn panics on the first use of a device that is not there, so those that are there are asked for first.
#[cfg(any(feature = "cuda", feature = "vulkan"))]
fn among(mut found: Vec<Device>, index: usize, kind: DeviceKind) -> Result<Device, ModelError> {
    if index >= found.len() {
        return Err(ModelError::DeviceAbsent { device: kind, found: found.len() });
    }
    Ok(found.swap_remove(index))
}

/// The devices that Vulkan reaches, graphics cards first. burn lists them itself only together with cubecl's SPIR-V compiler,
/// whose kernels some drivers cannot read: docs/decisions/0017.
#[cfg(feature = "vulkan")]
fn vulkan_devices() -> Vec<Device> {
    let mut devices = Vec::new();
    for kind in [
        WgpuDeviceKind::DiscreteGpu(0),
        WgpuDeviceKind::IntegratedGpu(0),
        WgpuDeviceKind::VirtualGpu(0),
        WgpuDeviceKind::Other(0),
        WgpuDeviceKind::Cpu,
    ] {
        // Enumeration gives every device of this kind and graphics API.
        let first = CubeDevice::Wgpu(WgpuDevice::new(kind).on(WgpuBackend::Vulkan));
        let found = CubeDevice::enumerate(first.to_id());
        devices.extend(found.into_iter().map(|id| Device::from(CubeDevice::from_id(id))));
    }
    // Software drivers have no index of their own.
    devices.dedup();
    devices
}

impl FromStr for DeviceKind {
    type Err = ModelError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let unknown = || ModelError::UnknownDevice(name.to_owned());
        let (lane, index) = name.split_once(':').map_or((name, None), |(lane, index)| (lane, Some(index)));
        let index = index.map(str::parse).transpose().map_err(|_| unknown())?;
        match (lane, index) {
            ("cpu", None) => Ok(Self::Cpu),
            ("cuda", index) => Ok(Self::Cuda(index.unwrap_or(0))),
            ("vulkan", index) => Ok(Self::Vulkan(index.unwrap_or(0))),
            _ => Err(unknown()),
        }
    }
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
            Self::Vulkan(index) => write!(f, "vulkan:{index}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_names_read_back_and_others_are_refused() {
        let named =
            [("cpu", DeviceKind::Cpu), ("cuda:3", DeviceKind::Cuda(3)), ("vulkan:0", DeviceKind::Vulkan(0))];
        for (name, kind) in named {
            assert_eq!(name.parse::<DeviceKind>().unwrap(), kind);
            assert_eq!(kind.to_string(), name);
        }
        assert_eq!("cuda".parse::<DeviceKind>().unwrap(), DeviceKind::Cuda(0));
        assert_eq!("vulkan".parse::<DeviceKind>().unwrap(), DeviceKind::Vulkan(0));
        for name in ["", "gpu", "cuda:", "cuda:x", "cpu:0", "vulkan:-1"] {
            assert!(matches!(name.parse::<DeviceKind>(), Err(ModelError::UnknownDevice(_))), "{name}");
        }
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_device_that_was_not_built_is_refused_with_its_feature() {
        assert!(matches!(device(DeviceKind::Cuda(0)), Err(ModelError::DeviceNotBuilt { feature: "cuda" })));
    }

    #[cfg(feature = "vulkan")]
    #[test]
    fn a_device_that_is_not_there_is_refused_before_it_is_used() {
        let error = device(DeviceKind::Vulkan(99)).unwrap_err();
        assert!(matches!(error, ModelError::DeviceAbsent { device: DeviceKind::Vulkan(99), .. }), "{error}");
    }
}
