//! Long sums, cut into parts that are made side by side.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::Shape;

/// As many numbers as one thread may sum without being waited for.
const SHORT: usize = 64;

/// The sum of each row of `[rows, many]`: `[rows]`.
///
/// Each round writes a row as a square and sums its columns: neighbouring threads read neighbouring numbers. A row whose length
/// has no power of two in it is summed by one thread.
pub(super) fn of_rows<B: Backend>(mut x: FloatTensor<B>) -> FloatTensor<B> {
    let [rows, mut many] = x.shape().dims();
    while many > SHORT {
        let columns = 1 << many.trailing_zeros().min(many.ilog2().div_ceil(2));
        if columns == 1 {
            break;
        }
        let square = B::float_reshape(x, Shape::new([rows, many / columns, columns]));
        x = B::float_reshape(B::float_sum_dim(square, 1), Shape::new([rows, columns]));
        many = columns;
    }
    B::float_reshape(B::float_sum_dim(x, 1), Shape::new([rows]))
}

/// The sum of each channel of `[n, channel, …]`: `[channel]`.
pub(super) fn of_channels<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let shape = x.shape();
    let (n, channels) = (shape[0], shape[1]);
    let rows = Shape::new([n * channels, shape.num_elements() / (n * channels)]);
    let of_each = B::float_reshape(of_rows::<B>(B::float_reshape(x, rows)), Shape::new([n, channels]));
    B::float_reshape(B::float_sum_dim(of_each, 0), Shape::new([channels]))
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;
    use burn::tensor::TensorData;

    use super::*;

    #[test]
    fn long_rows_of_any_length_are_summed_whole() {
        for many in [1, 64, 65, 96, 1000, 4096, 10_007, 27 * 4096] {
            let value = |i: usize| (i * 7919 % 101) as f32 - 50.0;
            let values: Vec<f32> = (0..2 * many).map(value).collect();
            // Whole numbers this small add up without rounding.
            let expected: Vec<f32> = values.chunks(many).map(|row| row.iter().sum()).collect();
            let sums = of_rows::<Flex>(FloatTensor::<Flex>::from_data(TensorData::new(values, [2, many])));
            assert_eq!(sums.storage::<f32>(), expected, "{many}");
        }
    }
}
