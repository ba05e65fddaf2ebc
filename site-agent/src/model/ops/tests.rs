use crate::kernels::segmentor::PARAMETERS;
use crate::kernels::windows::OFFSETS;
use crate::model::layers::plain_layer_norm;
use burn::backend::TensorMetadata;
use burn::tensor::{
    activation::{self, leaky_relu},
    module::batch_norm_train,
    ops::{ConvOptions, ConvTransposeOptions},
};
use proptest::prelude::*;

use super::*;

fn device() -> Device {
    Device::flex().autodiff()
}

/// Values that no two positions share, in (−1, 1).
fn tensor<const D: usize>(shape: [usize; D], salt: usize) -> Tensor<D> {
    let value = |i: usize| ((i * 7919 + salt * 104_729) % 20_011) as f32 / 10_005.5 - 1.0;
    let values: Vec<f32> = (0..shape.iter().product()).map(value).collect();
    Tensor::<1>::from_floats(values.as_slice(), &device()).reshape(shape).require_grad()
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_to_vec().expect("f32 values")
}

fn assert_close(what: &str, ours: Vec<f32>, burns: Vec<f32>) {
    assert_eq!(ours.len(), burns.len(), "{what}");
    for (i, (a, b)) in ours.iter().zip(&burns).enumerate() {
        assert!((a - b).abs() <= 1e-4 * (1.0 + b.abs()), "{what}[{i}]: {a} against {b}");
    }
}

/// Output of `f` and gradients of a weighted sum of it with respect to `x`, `weight` and `bias`.
fn run<const W: usize>(
    f: impl Fn(Tensor<5>, Tensor<W>, Tensor<1>) -> Tensor<5>,
    x: &Tensor<5>,
    weight: &Tensor<W>,
    bias: &Tensor<1>,
) -> [Vec<f32>; 4] {
    let y = f(x.clone(), weight.clone(), bias.clone());
    let upstream = tensor(y.dims(), 9).detach();
    let gradients = (y.clone() * upstream).sum().backward();
    let gradient = |g: Option<Tensor<5>>| values(g.expect("every input has a gradient"));
    let weight = values(weight.grad(&gradients).expect("a gradient"));
    [values(y), gradient(x.grad(&gradients)), weight, values(bias.grad(&gradients).expect("a gradient"))]
}

/// The gradients of a layer that is linear in each of its three tensors, along one direction of each, are differences.
fn assert_differences<const W: usize>(
    f: impl Fn(Tensor<5>, Tensor<W>, Tensor<1>) -> Tensor<5>,
    x: &Tensor<5>,
    weight: &Tensor<W>,
    bias: &Tensor<1>,
) {
    let upstream = tensor(f(x.clone(), weight.clone(), bias.clone()).dims(), 9).detach();
    let weighted = |x, weight, bias| (f(x, weight, bias) * upstream.clone()).sum().into_scalar::<f32>();
    let [_, dx, dw, db] = run(&f, x, weight, bias);
    let (along_x, along_w) = (tensor(x.dims(), 5).detach(), tensor(weight.dims(), 6).detach());
    let along_b = tensor(bias.dims(), 7).detach();
    let compare = |what: &str, up: f32, down: f32, gradient: &[f32], along: &[f32]| {
        let terms = gradient.iter().zip(along).map(|(g, a)| f64::from(*g) * f64::from(*a));
        let (slope, size) = terms.fold((0.0, 1.0), |(sum, size), term| (sum + term, size + term.abs()));
        let difference = f64::from(up - down) / 2.0;
        assert!((difference - slope).abs() <= 1e-3 * size, "{what}: {slope} against {difference}");
    };
    let (x, w, b) = (x.clone().detach(), weight.clone().detach(), bias.clone().detach());
    let up = weighted(x.clone() + along_x.clone(), w.clone(), b.clone());
    let down = weighted(x.clone() - along_x.clone(), w.clone(), b.clone());
    compare("dx", up, down, &dx, &values(along_x));
    let up = weighted(x.clone(), w.clone() + along_w.clone(), b.clone());
    let down = weighted(x.clone(), w.clone() - along_w.clone(), b.clone());
    compare("dw", up, down, &dw, &values(along_w));
    let up = weighted(x.clone(), w.clone(), b.clone() + along_b.clone());
    compare("db", up, weighted(x, w, b - along_b.clone()), &db, &values(along_b));
}

/// A channel or a group of one sample is normalised as a channel of a batch of one would be: burn has a batch normalisation
/// with a gradient of its own.
fn norm_relu_by_burn(x: Tensor<5>, weight: Tensor<1>, bias: Tensor<1>, how: Normalisation) -> Tensor<5> {
    let (epsilon, slope) = (f64::from(how.epsilon), f64::from(how.slope));
    let rectify = |x: Tensor<5>| if slope == 0.0 { relu(x) } else { leaky_relu(x, slope) };
    let Together::Groups(groups) = how.together else {
        return rectify(batch_norm_train(x, weight, bias, epsilon).output);
    };
    let shape = x.dims();
    let [n, channels, sx, sy, sz] = shape;
    if groups == channels {
        let [weight, bias] = [weight, bias].map(|values| values.repeat_dim(0, n));
        let apart = x.reshape([1, n * channels, sx, sy, sz]);
        return rectify(batch_norm_train(apart, weight, bias, epsilon).output.reshape(shape));
    }
    let sets = n * groups;
    let size = shape.iter().product::<usize>() / sets;
    let (ones, zeros) = (Tensor::ones([sets], &x.device()), Tensor::zeros([sets], &x.device()));
    let normalised = batch_norm_train(x.reshape([1, sets, size]), ones, zeros, epsilon).output.reshape(shape);
    let per_channel = [1, channels, 1, 1, 1];
    rectify(normalised * weight.reshape(per_channel) + bias.reshape(per_channel))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn gradients_of_our_convolutions_are_differences(n in 1usize..3, ins in 2usize..20, outs in 1usize..36, sides in [1usize..7, 1usize..7, 1usize..7]) {
        let volume = |channels| tensor([n, channels, sides[0], sides[1], sides[2]], 1);
        let (x, bias) = (volume(ins), tensor([outs], 3));
        assert_differences(conv3d, &x, &tensor([outs, ins, 3, 3, 3], 2), &bias);
        assert_differences(pointwise, &x, &tensor([outs, ins, 1, 1, 1], 2), &bias);
        assert_differences(conv_transpose3d, &x, &tensor([ins, outs, 2, 2, 2], 2), &bias);
        let pair = |x: Tensor<5>, w, b| conv3d_pair(x.clone().narrow(1, 0, 1), x.narrow(1, 1, ins - 1), w, b);
        assert_differences(pair, &x, &tensor([outs, ins, 3, 3, 3], 2), &bias);
        let pair = |x: Tensor<5>, w, b| pointwise_pair(x.clone().narrow(1, 0, 1), x.narrow(1, 1, ins - 1), w, b);
        assert_differences(pair, &x, &tensor([outs, ins, 1, 1, 1], 2), &bias);
    }

    #[test]
    fn our_convolution_is_burns(n in 1usize..3, ins in 1usize..20, outs in 1usize..36, sides in [1usize..9, 1usize..9, 1usize..9]) {
        let (x, weight, bias) = (tensor([n, ins, sides[0], sides[1], sides[2]], 1), tensor([outs, ins, 3, 3, 3], 2), tensor([outs], 3));
        let burns = |x, w, b| module::conv3d(x, w, Some(b), ConvOptions::new([1; 3], [1; 3], [1; 3], 1));
        let names = ["y", "dx", "dw", "db"];
        let pairs = run(conv3d, &x, &weight, &bias).into_iter().zip(run(burns, &x, &weight, &bias));
        for (name, (ours, burns)) in names.into_iter().zip(pairs) {
            assert_close(name, ours, burns);
        }
    }

    #[test]
    fn our_convolution_is_made_of_products_where_there_is_no_kernel(n in 1usize..3, ins in 1usize..20, outs in 1usize..36, sides in [1usize..9, 1usize..9, 1usize..9]) {
        let (x, weight, bias) = (tensor([n, ins, sides[0], sides[1], sides[2]], 1), tensor([outs, ins, 3, 3, 3], 2), tensor([outs], 3));
        let products = |x, w, b| on_dispatch(Dispatch::conv3_by_products, x, w, b);
        let names = ["y", "dx", "dw", "db"];
        let pairs = run(conv3d, &x, &weight, &bias).into_iter().zip(run(products, &x, &weight, &bias));
        for (name, (ours, products)) in names.into_iter().zip(pairs) {
            assert_close(name, ours, products);
        }
    }

    #[test]
    fn our_pointwise_convolution_is_a_product(n in 1usize..3, ins in 1usize..20, outs in 1usize..20, sides in [1usize..14, 1usize..14, 1usize..14]) {
        let (x, weight, bias) = (tensor([n, ins, sides[0], sides[1], sides[2]], 1), tensor([outs, ins, 1, 1, 1], 2), tensor([outs], 3));
        let names = ["y", "dx", "dw", "db"];
        let pairs = run(pointwise, &x, &weight, &bias).into_iter().zip(run(pointwise_by_product, &x, &weight, &bias));
        for (name, (ours, products)) in names.into_iter().zip(pairs) {
            assert_close(name, ours, products);
        }
    }

    #[test]
    fn our_convolution_of_a_pair_is_that_of_the_joined(n in 1usize..3, first in 1usize..20, second in 1usize..20, outs in 1usize..20, sides in [1usize..6, 1usize..6, 1usize..6]) {
        let volumes = |channels| [n, channels, sides[0], sides[1], sides[2]];
        let (x, bias) = (tensor(volumes(first + second), 1), tensor([outs], 3));
        let weight = tensor([outs, first + second, 3, 3, 3], 2);
        let pair = |x: Tensor<5>, w, b| {
            conv3d_pair(x.clone().narrow(1, 0, first), x.narrow(1, first, second), w, b)
        };
        let burns = |x, w, b| module::conv3d(x, w, Some(b), ConvOptions::new([1; 3], [1; 3], [1; 3], 1));
        let pairs = run(pair, &x, &weight, &bias).into_iter().zip(run(burns, &x, &weight, &bias));
        let weight = tensor([outs, first + second, 1, 1, 1], 2);
        let pair = |x: Tensor<5>, w, b| {
            pointwise_pair(x.clone().narrow(1, 0, first), x.narrow(1, first, second), w, b)
        };
        let products = run(pointwise_by_product, &x, &weight, &bias);
        let pointwise = run(pair, &x, &weight, &bias).into_iter().zip(products);
        let names = ["y", "dx", "dw", "db"];
        for (name, (ours, burns)) in names.into_iter().zip(pairs).chain(names.into_iter().zip(pointwise)) {
            assert_close(name, ours, burns);
        }
    }

    #[test]
    fn our_transposed_convolution_is_burns(n in 1usize..3, ins in 1usize..36, outs in 1usize..20, sides in [1usize..6, 1usize..6, 1usize..6]) {
        let (x, weight, bias) = (tensor([n, ins, sides[0], sides[1], sides[2]], 1), tensor([ins, outs, 2, 2, 2], 2), tensor([outs], 3));
        let options = ConvTransposeOptions::new([2; 3], [0; 3], [0; 3], [1; 3], 1);
        let burns = |x, w, b| module::conv_transpose3d(x, w, Some(b), options.clone());
        let names = ["y", "dx", "dw", "db"];
        let burns = run(burns, &x, &weight, &bias);
        for ours in [run(conv_transpose3d, &x, &weight, &bias), run(transposed_by_product, &x, &weight, &bias)] {
            for (name, (ours, burns)) in names.into_iter().zip(ours.into_iter().zip(burns.clone())) {
                assert_close(name, ours, burns);
            }
        }
    }

    #[test]
    fn a_linear_map_of_rows_in_parts_is_burns(n in 1usize..3, rows in 1usize..40, ins in 1usize..20, outs in 1usize..20) {
        let (x, weight, bias) = (tensor([n, rows, 1, 1, ins], 1), tensor([outs, ins], 2), tensor([outs], 3));
        let burns = |x, w: Tensor<2>, b| module::linear(x, w.transpose(), Some(b));
        let parts = |x, w, b| linear_by_parts(x, w, Some(b));
        let names = ["y", "dx", "dw", "db"];
        for (name, (parts, burns)) in names.into_iter().zip(run(parts, &x, &weight, &bias).into_iter().zip(run(burns, &x, &weight, &bias))) {
            assert_close(name, parts, burns);
        }
    }

    #[test]
    fn our_max_pool_is_burns_by_planes(n in 1usize..3, channels in 1usize..20, blocks in [1usize..6, 1usize..6, 1usize..6]) {
        let x = tensor([n, channels, 2 * blocks[0], 2 * blocks[1], 2 * blocks[2]], 1);
        let upstream = tensor([n, channels, blocks[0], blocks[1], blocks[2]], 9).detach();
        let of = |y: Tensor<5>| {
            let gradients = (y.clone() * upstream.clone()).sum().backward();
            [values(y), values(x.grad(&gradients).expect("a gradient"))]
        };
        let planes = of(max_pool_by_planes(x.clone()));
        // Neither computes: the same numbers, not close ones.
        prop_assert_eq!(of(max_pool(x.clone())), planes);
    }

    #[test]
    fn our_segmentor_is_that_of_products(n in 1usize..3, classes in 1usize..5, sides in [1usize..6, 1usize..9, 1usize..9]) {
        let x = tensor([n, HIDDEN, sides[0], sides[1], sides[2]], 1);
        let (parameters, bias) = (tensor([n, classes, PARAMETERS], 2), tensor([1], 3));
        // A bias to be differentiated too, for the sake of `run`.
        let ours = |x, p, b: Tensor<1>| segment(x, p) + b.reshape([1; 5]);
        let products = |x, p, b: Tensor<1>| segment_by_products(x, p) + b.reshape([1; 5]);
        let names = ["y", "dx", "dp", "db"];
        let pairs = run(ours, &x, &parameters, &bias).into_iter().zip(run(products, &x, &parameters, &bias));
        for (name, (ours, products)) in names.into_iter().zip(pairs) {
            assert_close(name, ours, products);
        }
    }

    #[test]
    fn our_normalisation_is_burns(n in 1usize..3, channels in 1usize..9, groups in 0usize..4, slope in 0usize..3, sides in [1usize..9, 2usize..9, 2usize..9]) {
        let together = if groups == 0 { Together::Channel } else { Together::Groups(groups) };
        let how = Normalisation { together, epsilon: 1e-5, slope: [0.0, 0.01, 1.0][slope] };
        let channels = channels * groups.max(1);
        let (x, weight, bias) = (tensor([n, channels, sides[0], sides[1], sides[2]], 1), tensor([channels], 2), tensor([channels], 3));
        let names = ["y", "dx", "dw", "db"];
        let burns = run(|x, w, b| norm_relu_by_burn(x, w, b, how), &x, &weight, &bias);
        let sums = |x, w, b| on_dispatch(|x, w, b| Dispatch::norm_relu_by_sums(x, w, b, how), x, w, b);
        for ours in [run(|x, w, b| norm_relu(x, w, b, how), &x, &weight, &bias), run(sums, &x, &weight, &bias)] {
            for (name, (ours, burns)) in names.into_iter().zip(ours.into_iter().zip(burns.clone())) {
                assert_close(name, ours, burns);
            }
        }
    }

    #[test]
    fn our_row_normalisation_and_activation_are_burns(n in 1usize..3, rows in 1usize..400, width in 2usize..70) {
        let (x, weight, bias) = (tensor([n, rows, width], 1), tensor([width], 2), tensor([width], 3));
        let upstream = tensor([n, rows, width], 9).detach();
        let of = |y: Tensor<3>| {
            let gradients = (y.clone() * upstream.clone()).sum().backward();
            let parameters = [&weight, &bias].map(|tensor| tensor.grad(&gradients).map(values).unwrap_or_default());
            (values(y), values(x.grad(&gradients).expect("a gradient")), parameters)
        };
        let ours = of(gelu(layer_norm(x.clone(), weight.clone(), bias.clone(), 1e-5)));
        let normalised = || module::layer_norm(x.clone(), weight.clone(), Some(bias.clone()), 1e-5);
        let burns = of(activation::gelu(normalised()));
        let off_the_cpu = of(gelu_by_error_function(normalised()));
        for (y, dx, parameters) in [burns, off_the_cpu] {
            assert_close("y", ours.0.clone(), y);
            assert_close("dx", ours.1.clone(), dx);
            for (name, (ours, other)) in ["dw", "db"].into_iter().zip(ours.2.clone().into_iter().zip(parameters)) {
                assert_close(name, ours, other);
            }
        }
    }

    #[test]
    fn our_window_attention_is_that_of_products(n in 1usize..3, heads in 1usize..4, depth in 1usize..20, shifted: bool, sides in [1usize..10, 1usize..10, 1usize..10]) {
        let windows = Arc::new(Windows::new(sides, shifted));
        let (voxels, width) = (sides.iter().product(), heads * depth);
        let qkv = tensor([n, voxels, 3 * width], 1);
        let (padding, table) = (tensor([3 * width], 2), tensor([OFFSETS, heads], 3));
        let upstream = tensor([n, voxels, width], 9).detach();
        let of = |y: Tensor<3>| {
            let gradients = (y.clone() * upstream.clone()).sum().backward();
            let of_padding = padding.grad(&gradients).map(values);
            let of_table = values(table.grad(&gradients).expect("a gradient"));
            [values(y), values(qkv.grad(&gradients).expect("a gradient")), of_padding.expect("a gradient"), of_table]
        };
        let ours = of(window_attention(qkv.clone(), padding.clone(), table.clone(), &windows));
        let products = of(window_attention_by_products(qkv.clone(), padding.clone(), table.clone(), &windows));
        for (name, (ours, products)) in ["y", "dqkv", "dpadding", "dtable"].into_iter().zip(ours.into_iter().zip(products)) {
            assert_close(name, ours, products);
        }
    }
}

#[test]
fn max_pool_takes_the_maximum_of_each_block_and_routes_its_gradient_there() {
    for pool in [max_pool, max_pool_by_planes] {
        let x = tensor([2, 3, 4, 6, 2], 1);
        let pooled = pool(x.clone());
        assert_eq!(pooled.dims(), [2, 3, 2, 3, 1]);
        let gradient = values(x.grad(&pooled.clone().sum().backward()).expect("a gradient"));
        let (inputs, pooled) = (values(x), values(pooled));

        let mut expected = vec![f32::MIN; pooled.len()];
        for (i, &v) in inputs.iter().enumerate() {
            let (y, x, channel) = (i / 2 % 6, i / 12 % 4, i / 48);
            let block = (channel * 2 + x / 2) * 3 + y / 2;
            expected[block] = expected[block].max(v);
        }
        assert_eq!(pooled, expected);
        for (v, g) in inputs.iter().zip(gradient) {
            assert_eq!(g, if expected.contains(v) { 1.0 } else { 0.0 });
        }
    }
}

/// The values of a tensor on another device.
fn on<const D: usize>(device: &Device, tensor: Tensor<D>) -> Tensor<D> {
    Tensor::from_data(tensor.into_data(), device)
}

/// Whether somebody else holds these values too: the graph, for its backward pass.
fn is_kept<const D: usize>(tensor: Tensor<D>) -> bool {
    !tensor.into_dispatch().can_mut()
}

#[test]
fn what_is_made_again_is_not_kept_and_changes_no_bit() {
    let run = |device: Device| {
        let leaf = |shape: [usize; 5], salt| on(&device, tensor(shape, salt)).require_grad();
        // Constants, as those of a layer without them.
        let bias = |outs: usize| Tensor::<1>::zeros([outs], &device);
        let (x, skip) = (leaf([2, 4, 3, 2, 5], 1), leaf([2, 3, 6, 4, 10], 2));
        let (first, doubling) = (leaf([4, 4, 3, 3, 3], 3), leaf([4, 2, 2, 2, 2], 4));
        let (joining, beside) = (leaf([5, 5, 3, 3, 3], 5), leaf([5, 5, 1, 1, 1], 6));
        let trained = on(&device, tensor([2], 7)).require_grad();
        let normed = instance_norm(conv3d(x.clone(), first.clone(), bias(4)), 0.01);
        let doubled = conv_transpose3d(normed.clone(), doubling.clone(), bias(2));
        let biased = conv_transpose3d(normed.clone(), doubling.clone(), trained.clone());
        let joined = conv3d_pair(doubled.clone(), skip.clone(), joining.clone(), bias(5));
        let shortcut = pointwise_pair(doubled.clone(), skip.clone(), beside.clone(), bias(5));
        let other = conv3d_pair(biased.clone(), skip.clone(), joining.clone(), bias(5));
        let sum = instance_norm(joined, 1.0) + instance_norm(shortcut, 1.0) + instance_norm(other, 1.0);
        let rows = plain_layer_norm(sum.reshape([2, 5, 240]).swap_dims(1, 2));
        let loss = (gelu(rows.clone()) * on(&device, tensor([2, 240, 5], 9))).sum();
        let kept = [is_kept(normed), is_kept(doubled), is_kept(biased), is_kept(rows)];
        let gradients = loss.backward();
        let gradient = |leaf: &Tensor<5>| values(leaf.grad(&gradients).expect("a gradient"));
        let of_trained = values(trained.grad(&gradients).expect("a gradient"));
        (kept, [&x, &skip, &first, &doubling, &joining, &beside].map(gradient), of_trained)
    };
    let (kept, expected, of_trained) = run(Device::flex().autodiff());
    let (kept_by_again, same, of_trained_again) = run(Device::flex().autodiff().gradient_checkpointing());
    assert_eq!((kept, kept_by_again), ([true; 4], [false; 4]));
    assert!((expected, of_trained) == (same, of_trained_again));
}
