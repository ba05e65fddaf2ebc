//! The named-tensor door: reads and replaces the trainable tensors of a module by the reference's names.
//!
//! Everything that outlives a process (models, updates, optimiser states) is keyed by these names, never by burn's
//! parameter ids, which are new in each process. Ids are kept here all the same.

use std::collections::BTreeMap;

use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param},
    tensor::{Device, Tensor, TensorData},
};

use super::{
    error::ModelError,
    live::{LiveTensor, LiveTensors},
    tensors::{HostTensor, NamedTensors, TensorMismatch},
};

/// Where our module tree and the reference's differ: prefix of ours, prefix of theirs.
const REFERENCE_PREFIXES: [(&str, &str); 9] = [
    ("backbone.swin_vit.", "backbone.swinViT."),
    ("head.precls.norm.", "precls_conv.0."),
    ("head.precls.conv.", "precls_conv.2."),
    ("head.gap.norm.", "GAP.0."),
    ("head.gap.conv.", "GAP.3."),
    ("head.classes.projection.", "text_to_vision."),
    ("head.classes.weight", "organ_embedding.weight"),
    ("head.", ""),
    ("", ""),
];

/// The gradient of every trainable tensor, flat and on the device.
#[derive(Clone, Debug)]
pub struct Gradients(BTreeMap<String, FlatTensor>);

/// A trainable tensor or its gradient: its shape, and its values in C order.
#[derive(Clone, Debug)]
struct FlatTensor {
    shape: Vec<usize>,
    values: Tensor<1>,
}

impl FlatTensor {
    fn export(&self) -> HostTensor {
        let values =
            self.values.to_data_as::<f32>().try_to_vec().expect("invariant: the values were read as f32");
        HostTensor::new(self.shape.clone(), values).expect("invariant: flattening keeps the number of values")
    }
}

impl Gradients {
    /// Gradients of an objective with respect to the tensors of `module`; zero where the objective does not reach.
    pub fn of<M: Module>(module: &M, objective: &Tensor<1>) -> Self {
        Self::from_backward(module, &objective.backward())
    }

    /// As [`Self::of`], from a backward pass that was done already.
    pub fn from_backward<M: Module>(module: &M, backward: &burn::tensor::Gradients) -> Self {
        Self(collect(module, Some(backward)))
    }

    /// The gradient of one tensor, flat.
    pub fn flat(&self, name: &str) -> Option<&Tensor<1>> {
        self.0.get(name).map(|gradient| &gradient.values)
    }

    /// Gives the gradient of one tensor away, flat.
    pub fn take(&mut self, name: &str) -> Option<Tensor<1>> {
        self.0.remove(name).map(|gradient| gradient.values)
    }

    /// Adds to the gradient of one tensor, flat.
    pub fn add_flat(&mut self, name: &str, more: Tensor<1>) {
        if let Some(gradient) = self.0.get_mut(name) {
            gradient.values = gradient.values.clone() + more;
        }
    }

    /// Adds `weight` times the gradients of another micro-batch of the same model.
    pub fn add_scaled(&mut self, other: &Self, weight: f64) {
        for (name, gradient) in &mut self.0 {
            if let Some(more) = other.flat(name) {
                gradient.values = gradient.values.clone() + more.clone().mul_scalar(weight);
            }
        }
    }

    /// Multiplies every gradient by `factor`.
    pub fn scale(&mut self, factor: f64) {
        for gradient in self.0.values_mut() {
            gradient.values = gradient.values.clone().mul_scalar(factor);
        }
    }

    /// The gradients on the host, by name.
    pub fn export(&self) -> NamedTensors {
        self.0.iter().map(|(name, gradient)| (name.clone(), gradient.export())).collect()
    }

    /// Gradients that were computed elsewhere.
    pub fn from_host(tensors: &NamedTensors, device: &Device) -> Self {
        let flat = |tensor: &HostTensor| FlatTensor {
            shape: tensor.shape().to_vec(),
            values: Tensor::from_floats(tensor.values(), &device.clone().without_autodiff()),
        };
        Self(tensors.iter().map(|(name, tensor)| (name.clone(), flat(tensor))).collect())
    }
}

/// Shape of each trainable tensor.
pub fn shapes<M: Module>(module: &M) -> BTreeMap<String, Vec<usize>> {
    collect(module, None).into_iter().map(|(name, tensor)| (name, tensor.shape)).collect()
}

/// The trainable tensors where they are, without a copy.
pub fn live<M: Module>(module: &M) -> LiveTensors {
    let live = |(name, FlatTensor { shape, values })| (name, LiveTensor::on_device(shape, values));
    collect(module, None).into_iter().map(live).collect()
}

/// The trainable tensors on the host.
pub fn export<M: Module>(module: &M) -> NamedTensors {
    collect(module, None).into_iter().map(|(name, tensor)| (name, tensor.export())).collect()
}

/// A module with other values: the same parameters, with their ids and their part in training.
///
/// # Errors
///
/// [`ModelError::Mismatch`] unless names and shapes are exactly the module's.
pub fn load<M: Module>(module: M, tensors: &NamedTensors) -> Result<M, ModelError> {
    TensorMismatch::check(&shapes(&module), tensors)?;
    Ok(update(module, |name, old| match tensors.get(name) {
        Some(new) => Tensor::from_data(TensorData::new(new.values().to_vec(), old.shape()), &old.device()),
        None => old,
    }))
}

/// A module whose trainable tensors went through `change`, each flat, without autodiff and with its name.
pub fn update<M: Module>(module: M, change: impl FnMut(&str, Tensor<1>) -> Tensor<1>) -> M {
    module.map(&mut Updater { path: Path::default(), change })
}

fn collect<M: Module>(
    module: &M,
    gradients: Option<&burn::tensor::Gradients>,
) -> BTreeMap<String, FlatTensor> {
    let mut collector = Collector { path: Path::default(), gradients, found: BTreeMap::new() };
    module.visit(&mut collector);
    collector.found
}

/// Where a traversal is in the module tree.
#[derive(Default)]
struct Path(Vec<String>);

impl Path {
    /// Variants of an enum are choices of ours, not levels of the reference's tree.
    fn enter(&mut self, name: &str, container: &str) {
        if !container.starts_with("Enum:") {
            self.0.push(name.to_owned());
        }
    }

    fn exit(&mut self, container: &str) {
        if !container.starts_with("Enum:") {
            self.0.pop();
        }
    }

    fn reference_name(&self) -> String {
        let path = self.0.join(".");
        // A head by itself has the names that it has inside a model.
        let in_model = if path.starts_with("backbone.") || path.starts_with("head.") {
            path
        } else {
            format!("head.{path}")
        };
        let renamed = REFERENCE_PREFIXES
            .iter()
            .find_map(|(ours, theirs)| Some(format!("{theirs}{}", in_model.strip_prefix(ours)?)));
        renamed.unwrap_or(in_model)
    }
}

struct Collector<'a> {
    path: Path,
    /// Collects these instead of the values.
    gradients: Option<&'a burn::tensor::Gradients>,
    found: BTreeMap<String, FlatTensor>,
}

impl ModuleVisitor for Collector<'_> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, container_type: &str) {
        self.path.exit(container_type);
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let value = param.val();
        let shape = value.dims();
        let tensor = match self.gradients {
            None => value.inner(),
            Some(gradients) => value
                .grad(gradients)
                .unwrap_or_else(|| Tensor::zeros(shape, &value.device().without_autodiff())),
        };
        let flat = FlatTensor { shape: shape.to_vec(), values: tensor.flatten(0, D - 1) };
        self.found.insert(self.path.reference_name(), flat);
    }
}

struct Updater<F> {
    path: Path,
    change: F,
}

impl<F: FnMut(&str, Tensor<1>) -> Tensor<1>> ModuleMapper for Updater<F> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, container_type: &str) {
        self.path.exit(container_type);
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let name = self.path.reference_name();
        param.map(|old| {
            let (shape, is_trained) = (old.shape(), old.is_require_grad());
            let recomputing = old.gradient_checkpointing_strategy();
            let new = (self.change)(&name, old.inner().flatten(0, D - 1)).reshape(shape);
            let new = match recomputing {
                Some(strategy) => new.autodiff().with_gradient_checkpointing_strategy(strategy),
                None => new,
            };
            new.set_require_grad(is_trained)
        })
    }
}
