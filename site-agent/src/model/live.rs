//! Tensors where they are, on a device or on the host: their values are read a piece at a time, so that a whole model goes
//! to a disk or is compared with another while no second one is in memory.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;

use burn::tensor::Tensor;

use super::tensors::HostTensor;

/// Live tensors by name, in ascending order of name.
pub type LiveTensors = BTreeMap<String, LiveTensor>;

/// Values of a piece: 1 MiB.
pub(super) const PIECE: usize = 1 << 18;

/// One f32 tensor in C order, where it is. On a device it costs nothing; but while there is one, training cannot write the
/// next values in its place, so hold it no longer than it takes to read.
#[derive(Clone, Debug)]
pub struct LiveTensor {
    shape: Vec<usize>,
    values: Values,
}

#[derive(Clone, Debug)]
enum Values {
    Device(Box<Tensor<1>>),
    Host(Vec<f32>),
}

impl LiveTensor {
    /// A tensor of this shape with values on a device, flat and without autodiff; as many as the shape has.
    pub(crate) fn on_device(shape: Vec<usize>, values: Tensor<1>) -> Self {
        Self { shape, values: Values::Device(Box::new(values)) }
    }

    /// Length of each axis, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// How many values it has.
    pub fn elements(&self) -> usize {
        match &self.values {
            Values::Device(values) => values.dims()[0],
            Values::Host(values) => values.len(),
        }
    }

    /// The values in C order, a piece at a time.
    pub fn pieces(&self) -> impl Iterator<Item = Cow<'_, [f32]>> {
        let end = self.elements();
        (0..end).step_by(PIECE).map(move |start| self.piece(start..end.min(start + PIECE)))
    }

    fn piece(&self, values: Range<usize>) -> Cow<'_, [f32]> {
        match &self.values {
            Values::Device(all) => {
                let piece = Tensor::clone(all).slice([values]).to_data_as::<f32>();
                Cow::Owned(piece.try_to_vec::<f32>().expect("invariant: the values were read as f32"))
            }
            Values::Host(all) => Cow::Borrowed(&all[values]),
        }
    }

    /// A copy on the host.
    pub fn to_host(&self) -> HostTensor {
        let mut values = Vec::with_capacity(self.elements());
        for piece in self.pieces() {
            values.extend_from_slice(&piece);
        }
        HostTensor::new(self.shape.clone(), values)
            .expect("invariant: a live tensor has as many values as its shape")
    }
}

impl From<HostTensor> for LiveTensor {
    fn from(tensor: HostTensor) -> Self {
        let (shape, values) = tensor.into_parts();
        Self { shape, values: Values::Host(values) }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};

    use super::*;

    #[test]
    fn pieces_are_the_values_wherever_they_are() {
        let host = HostTensor::from_fn(vec![2, PIECE / 2 + 3], |i| 1.0 / (i as f32 + 3.0));
        let data = TensorData::new(host.values().to_vec(), [host.values().len()]);
        let on_device =
            LiveTensor::on_device(host.shape().to_vec(), Tensor::from_data(data, &Device::flex()));
        for live in [on_device, LiveTensor::from(host.clone())] {
            assert_eq!(live.pieces().map(|piece| piece.len()).collect::<Vec<_>>(), [PIECE, 6]);
            assert_eq!(live.to_host(), host);
        }
        let none = LiveTensor::from(HostTensor::from_fn(vec![0, 3], |_| 0.0));
        assert_eq!((none.pieces().count(), none.to_host().shape()), (0, [0, 3].as_slice()));
    }
}
