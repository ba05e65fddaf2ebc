//! Tensors on the host, by the reference's names: what models, gradients and optimiser states look like outside burn.

use std::{collections::BTreeMap, fmt};

use super::error::ModelError;

/// Host tensors by name, in ascending order of name.
pub type NamedTensors = BTreeMap<String, HostTensor>;

/// One f32 tensor in C order.
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor {
    shape: Vec<usize>,
    values: Vec<f32>,
}

impl HostTensor {
    /// A tensor of this shape.
    ///
    /// # Errors
    ///
    /// [`ModelError::Length`] if the number of values is not the product of the axes, or such a product overflows.
    pub fn new(shape: Vec<usize>, values: Vec<f32>) -> Result<Self, ModelError> {
        let expected = value_count(&shape).unwrap_or(usize::MAX);
        if values.len() != expected {
            return Err(ModelError::Length { shape, expected, got: values.len() });
        }
        Ok(Self { shape, values })
    }

    /// A tensor whose values are drawn one by one, in C order.
    pub fn from_fn(shape: Vec<usize>, mut value: impl FnMut(usize) -> f32) -> Self {
        let values = (0..shape.iter().product()).map(&mut value).collect();
        Self { shape, values }
    }

    /// Length of each axis, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The values in C order.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// The values, to be changed in place.
    pub fn values_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }

    /// Shape and values.
    pub fn into_parts(self) -> (Vec<usize>, Vec<f32>) {
        (self.shape, self.values)
    }
}

/// How many values a shape has. None where the product of some of its axes overflows, though another axis were 0: whoever
/// multiplies axes of a shape that was let in may do so without looking.
pub(super) fn value_count(shape: &[usize]) -> Option<usize> {
    let product = shape.iter().try_fold(1usize, |n, &axis| n.checked_mul(axis.max(1)))?;
    Some(if shape.contains(&0) { 0 } else { product })
}

/// How a set of tensors differs from the set that was expected: every difference, not only the first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TensorMismatch {
    /// Expected and absent.
    pub missing: Vec<String>,
    /// Present and not expected.
    pub extra: Vec<String>,
    /// Present in another shape.
    pub wrong_shape: Vec<WrongShape>,
}

/// A tensor of the right name and the wrong shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrongShape {
    /// The tensor's name.
    pub name: String,
    /// Shape in this model.
    pub expected: Vec<usize>,
    /// Shape given.
    pub got: Vec<usize>,
}

impl TensorMismatch {
    /// Compares what is given with what is expected.
    ///
    /// # Errors
    ///
    /// [`ModelError::Mismatch`] unless names and shapes are exactly the expected ones.
    pub fn check(expected: &BTreeMap<String, Vec<usize>>, given: &NamedTensors) -> Result<(), ModelError> {
        let given = given.iter().map(|(name, tensor)| (name.clone(), tensor.shape().to_vec())).collect();
        Self::check_shapes(expected, &given)
    }

    /// As [`Self::check`], from shapes alone.
    ///
    /// # Errors
    ///
    /// As [`Self::check`].
    pub fn check_shapes(
        expected: &BTreeMap<String, Vec<usize>>,
        given: &BTreeMap<String, Vec<usize>>,
    ) -> Result<(), ModelError> {
        let wrong_shape = |(name, shape): (&String, &Vec<usize>)| {
            let got = given.get(name)?;
            (got != shape).then(|| WrongShape {
                name: name.clone(),
                expected: shape.clone(),
                got: got.clone(),
            })
        };
        let mismatch = Self {
            missing: expected.keys().filter(|name| !given.contains_key(*name)).cloned().collect(),
            extra: given.keys().filter(|name| !expected.contains_key(*name)).cloned().collect(),
            wrong_shape: expected.iter().filter_map(wrong_shape).collect(),
        };
        if mismatch == Self::default() { Ok(()) } else { Err(ModelError::Mismatch(mismatch)) }
    }
}

impl fmt::Display for TensorMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} missing, {} unknown, {} of another shape",
            self.missing.len(),
            self.extra.len(),
            self.wrong_shape.len()
        )?;
        for name in &self.missing {
            write!(f, "\n  missing      {name}")?;
        }
        for name in &self.extra {
            write!(f, "\n  unknown      {name}")?;
        }
        for WrongShape { name, expected, got } in &self.wrong_shape {
            write!(f, "\n  wrong shape  {name}: {got:?}, expected {expected:?}")?;
            if has_one_class_less(expected, got) {
                write!(f, " (31 channels, not 32: from before the kidney cyst became a class)")?;
            }
        }
        Ok(())
    }
}

/// The reference had 31 classes before it had the 32nd, and its older checkpoints still do.
fn has_one_class_less(expected: &[usize], got: &[usize]) -> bool {
    let different = || expected.iter().zip(got).filter(|(expected, got)| expected != got);
    expected.len() == got.len()
        && different().count() > 0
        && different().all(|(&expected, &got)| (expected, got) == (32, 31))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_difference_is_listed_at_once() {
        let expected =
            BTreeMap::from([("a".to_owned(), vec![2]), ("b".to_owned(), vec![3]), ("c".to_owned(), vec![1])]);
        let tensor = |n| HostTensor::new(vec![n], vec![0.0; n]).unwrap();
        let given = NamedTensors::from([
            ("a".to_owned(), tensor(2)),
            ("b".to_owned(), tensor(4)),
            ("z".to_owned(), tensor(1)),
        ]);
        let Err(ModelError::Mismatch(mismatch)) = TensorMismatch::check(&expected, &given) else {
            panic!("a mismatch was accepted");
        };
        assert_eq!(mismatch.missing, ["c"]);
        assert_eq!(mismatch.extra, ["z"]);
        assert_eq!(
            mismatch.wrong_shape,
            [WrongShape { name: "b".to_owned(), expected: vec![3], got: vec![4] }]
        );
    }

    #[test]
    fn a_checkpoint_of_31_classes_is_named_as_such() {
        let shapes = |rows| BTreeMap::from([("organ_embedding.weight".to_owned(), vec![rows, 256])]);
        let words = |rows| TensorMismatch::check_shapes(&shapes(32), &shapes(rows)).unwrap_err().to_string();
        assert!(words(31).contains("[31, 256], expected [32, 256] (31 channels, not 32"), "{}", words(31));
        assert!(!words(30).contains("channels"), "{}", words(30));
    }

    #[test]
    fn a_tensor_with_too_few_values_is_refused() {
        assert!(matches!(
            HostTensor::new(vec![2, 3], vec![0.0; 5]),
            Err(ModelError::Length { expected: 6, got: 5, .. })
        ));
        assert!(HostTensor::new(vec![usize::MAX, 3], vec![]).is_err());
    }

    #[test]
    fn no_axis_of_zero_hides_a_shape_that_overflows() {
        assert_eq!(
            [value_count(&[]), value_count(&[2, 3]), value_count(&[0, 5])],
            [Some(1), Some(6), Some(0)]
        );
        for shape in [vec![0, usize::MAX, 3], vec![usize::MAX, 3, 0], vec![usize::MAX, 0, 2]] {
            assert_eq!(value_count(&shape), None, "{shape:?}");
            assert!(HostTensor::new(shape, vec![]).is_err());
        }
    }
}
