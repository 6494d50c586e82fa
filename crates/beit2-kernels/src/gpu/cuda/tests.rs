//! What operations rely on: inputs are contiguous, memory is used again only where nobody sees it, errors are told.

use std::panic::{AssertUnwindSafe, catch_unwind};

use burn::backend::Cuda;
use burn::backend::cuda::CudaDevice;
use burn::tensor::backend::Backend as _;
use burn::tensor::{DType, Distribution, Tensor};

use super::super::tests::on_cuda;
use super::casts::{self, Cast};
use super::{is_native, native, native_reusing};
use crate::tensor::{unwrap, wrap};
use crate::{Precision, linear, linear_packed, pack_weight};

type B = Cuda<f32, i32>;

fn native_cuda(test: impl FnOnce(&CudaDevice)) {
    on_cuda(|device| {
        if is_native(device) {
            test(device);
        } else {
            println!("skipped: the CUDA device here is not native");
        }
    });
}

fn values<const D: usize>(x: Tensor<B, D>) -> Vec<f32> {
    x.into_data().convert::<f32>().into_vec().unwrap()
}

#[test]
fn padded_and_transposed_inputs_arrive_contiguous_on_cuda() {
    native_cuda(|device| {
        // 197 numbers do not fill a row's pitch; 7 rows of 197 seen as columns do not lie in order.
        let x = Tensor::<B, 1, burn::tensor::Int>::arange(0..7 * 197, device).float().reshape([7, 197]) + 1.0;
        for x in [x.clone(), x.transpose()] {
            let (shape, count) = (x.shape(), 7 * 197);
            let input = unwrap(x.clone());
            let output = vec![(shape, DType::BF16)];
            let mut y = native::<u8>("cast", vec![input], output, 0, move |queue, from, to, _| {
                casts::many(queue, &[Cast::to_bf16(from[0], to[0], count)]);
            });
            let y = wrap::<B, 2>(y.next().unwrap());
            assert_eq!(values(y), values(x.cast(DType::BF16)));
        }
    });
}

#[test]
fn memory_is_used_again_only_where_nobody_else_sees_it_on_cuda() {
    native_cuda(|device| {
        let zeros = |x: Tensor<B, 1>| {
            let output = vec![(x.shape(), DType::F32)];
            let mut y =
                native_reusing::<u8>("zeros", vec![unwrap(x)], output, 0, &[(0, 0)], |queue, _, to, _| {
                    queue.zero(to[0], 4 * 1000);
                });
            wrap::<B, 1>(y.next().unwrap())
        };
        let x = Tensor::<B, 1>::ones([1000], device);
        let y = zeros(x.clone());
        assert_eq!(values(y), [0.0; 1000]);
        assert_eq!(values(x.clone()), [1.0; 1000], "somebody else holds it");
        assert_eq!(values(zeros(x)), [0.0; 1000]);
    });
}

#[test]
fn packed_weights_give_the_same_bits_on_cuda() {
    native_cuda(|device| {
        let random = |shape: [usize; 2]| Tensor::<B, 2>::random(shape, Distribution::Default, device);
        let (x, weight) = (random([33, 64]), random([24, 64]));
        let bias = Tensor::<B, 1>::ones([24], device);
        assert!(pack_weight(weight.clone(), Precision::F32).is_none());
        let packed = pack_weight(weight.clone(), Precision::Bf16).unwrap();
        assert_eq!(packed.dims(), [24, 64]);
        let want = linear(x.clone(), weight, Some(bias.clone()), Precision::Bf16);
        assert_eq!(values(linear_packed(x, &packed, Some(bias))), values(want));
    });
}

/// On a device that no other test uses, because its first error is all that it gives from then on.
#[test]
fn errors_are_told_on_cuda() {
    let others = catch_unwind(|| B::device_count(0)).unwrap_or(0);
    if others < 4 {
        println!("skipped: fewer than four CUDA devices here");
        return;
    }
    let device = CudaDevice::new(3);
    let x = Tensor::<B, 1>::ones([8], &device);
    assert!(is_native(&device));
    let output = vec![(x.shape(), DType::F32)];
    let mut y = native::<u8>("nothing", vec![unwrap(x.clone())], output, 0, |queue, _, _, _| {
        queue.launch("no_such_kernel", [1; 3], [32, 1, 1], 0, &[]);
    });
    let y = wrap::<B, 1>(y.next().unwrap());
    let read = catch_unwind(AssertUnwindSafe(|| values(y))).unwrap_err();
    let text = super::failure::message(&*read);
    assert!(text.contains("no_such_kernel") && text.contains("device 3: nothing"), "{text}");
    // Whoever goes on is told at once.
    let again = catch_unwind(AssertUnwindSafe(|| {
        native::<u8>("next", vec![unwrap(x)], vec![], 0, |_, _, _, _| ());
    }));
    assert!(super::failure::message(&*again.unwrap_err()).contains("no_such_kernel"));
}
