//! From bytes to patches ([`crate::ImageOps`]), one launch a step of the way.

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Shape};
use burn_cubecl::BoolElement;
use cubecl::cuda::{CudaDevice, CudaRuntime};

use super::upload::send;
use super::{Arg, Element, Gpu, Ptr, Queue, is_native, native, native_reusing, one};
use crate::images_from_bytes::{PatchSpec, Scaling, composed};
use crate::{ImageOps, Precision};

type Cuda<BT> = Gpu<CudaRuntime, BT>;

/// Most channels whose statistics are passed as arguments; `Channels` in `kernels/images.cu`.
const CHANNELS: usize = 32;
/// Images of one launch; `Contents` there.
const CONTENTS: usize = 256;

impl<BT: BoolElement> ImageOps for Cuda<BT> {
    fn images_from_bytes(images: &[&[u8]], size: [usize; 3], device: &CudaDevice) -> FloatTensor<Self> {
        let ([height, width, channels], batch) = (size, images.len());
        let count = batch * height * width * channels;
        if !is_native(device) || count == 0 {
            return composed::images_from_bytes::<Self>(images, size, device);
        }
        let bytes = one(send::<BT>(&[(images.to_vec(), Shape::new([count]), DType::U8)], device));
        let outputs = vec![(Shape::new([batch, channels, height, width]), DType::F32)];
        one(native::<BT>("images_from_bytes", vec![bytes], outputs, 0, move |queue, inputs, outputs, _| {
            let area = (height * width) as u32;
            let args = [Arg::Ptr(inputs[0]), Arg::Ptr(outputs[0]), Arg::U32(area), Arg::U32(channels as u32)];
            queue.launch("images_from_bytes", [area.div_ceil(256), batch as u32, 1], [256, 1, 1], 0, &args);
        }))
    }

    fn fused_standardise(x: FloatTensor<Self>, mean: &[f64], std: &[f64]) -> FloatTensor<Self> {
        let [batch, channels, height, width] = [0, 1, 2, 3].map(|axis| x.shape[axis]);
        let plain = x.dtype == DType::F32 && x.shape.num_elements() > 0 && channels <= CHANNELS;
        // The grid's second axis counts the planes.
        if !is_native(x.client.device()) || !plain || batch * channels > 65_535 {
            return composed::standardise::<Self>(x, mean, std);
        }
        let values = statistics(mean, std);
        let outputs = vec![(x.shape.clone(), DType::F32)];
        one(native::<BT>("standardise", vec![x], outputs, 0, move |queue, inputs, outputs, _| {
            let area = (height * width) as u32;
            let args = [
                Arg::Ptr(inputs[0]),
                Arg::Ptr(outputs[0]),
                Arg::U32(area),
                Arg::U32(channels as u32),
                Arg::Bytes(values.clone()),
            ];
            let grid = [area.div_ceil(1024), (batch * channels) as u32, 1];
            queue.launch("images_standardise", grid, [256, 1, 1], 0, &args);
        }))
    }

    fn fused_to_signed(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let channels = x.shape[1];
        if !is_native(x.client.device()) || channels > CHANNELS {
            return composed::to_signed::<Self>(x);
        }
        // The same up to the last bit, and no other kernel to compile.
        Self::fused_standardise(x, &[0.5; CHANNELS][..channels], &[0.5; CHANNELS][..channels])
    }

    fn fused_clear_outside(x: FloatTensor<Self>, contents: &[[usize; 2]]) -> FloatTensor<Self> {
        let [channels, height, width] = [1, 2, 3].map(|axis| x.shape[axis]);
        let plain = x.dtype == DType::F32 && x.shape.num_elements() > 0 && height * width < 1 << 31;
        if !is_native(x.client.device()) || !plain {
            return composed::clear_outside::<Self>(x, contents);
        }
        let outputs = vec![(x.shape.clone(), DType::F32)];
        let contents: Vec<[u32; 2]> = contents.iter().map(|content| content.map(|n| n as u32)).collect();
        let run = move |queue: &mut Queue<'_>, inputs: &[Ptr], outputs: &[Ptr], _: Ptr| {
            for (part, contents) in contents.chunks(CONTENTS).enumerate() {
                let first = part * CONTENTS * channels * height * width;
                let mut table = Vec::with_capacity(CONTENTS * 8);
                for side in 0..2 {
                    table.extend(contents.iter().flat_map(|content| content[side].to_le_bytes()));
                    table.resize(4 * CONTENTS * (side + 1), 0);
                }
                let mut args =
                    [inputs[0], outputs[0]].map(|at| Arg::Ptr(at.offset(first, Element::F32))).to_vec();
                args.extend([channels, height, width].map(|n| Arg::U32(n as u32)));
                args.push(Arg::Bytes(table));
                let grid = [(height * width).div_ceil(256) as u32, contents.len() as u32, 1];
                queue.launch("images_clear", grid, [256, 1, 1], 0, &args);
            }
        };
        one(native_reusing::<BT>("clear_outside", vec![x], outputs, 0, &[(0, 0)], run))
    }

    fn fused_patches(x: FloatTensor<Self>, patch: usize) -> FloatTensor<Self> {
        let [batch, channels, height, width] = [0, 1, 2, 3].map(|axis| x.shape[axis]);
        let plain = x.dtype == DType::F32 && x.shape.num_elements() > 0 && batch <= 65_535;
        if !is_native(x.client.device()) || !plain {
            return composed::patches::<Self>(x, patch);
        }
        let count = (height / patch) * (width / patch);
        let outputs = vec![(Shape::new([batch, count, channels * patch * patch]), DType::F32)];
        one(native::<BT>("patches", vec![x], outputs, 0, move |queue, inputs, outputs, _| {
            let [channels, height, width, patch] =
                [channels, height, width, patch].map(|n| Arg::U32(n as u32));
            let args = [Arg::Ptr(inputs[0]), Arg::Ptr(outputs[0]), channels, height, width, patch];
            queue.launch("images_to_patches", [count as u32, batch as u32, 1], [256, 1, 1], 0, &args);
        }))
    }

    fn patches_from_bytes(
        images: &[&[u8]],
        size: [usize; 3],
        specs: &[PatchSpec<'_>],
        device: &CudaDevice,
    ) -> Vec<FloatTensor<Self>> {
        let ([height, width, channels], batch) = (size, images.len());
        let count = batch * height * width * channels;
        if !is_native(device) || count == 0 || channels > CHANNELS || batch > 65_535 {
            return composed::patches_from_bytes::<Self>(images, size, specs, device);
        }
        let bytes = one(send::<BT>(&[(images.to_vec(), Shape::new([count]), DType::U8)], device));
        let of = |spec: &PatchSpec<'_>| {
            let PatchSpec { patch, scaling, precision } = *spec;
            let values = match scaling {
                Scaling::Unit => statistics(&[0.0; CHANNELS], &[1.0; CHANNELS]),
                Scaling::Signed => statistics(&[0.5; CHANNELS], &[0.5; CHANNELS]),
                // A teacher's way over [−1, 1] only rounds once more.
                Scaling::Standardised { mean, std } | Scaling::Teacher { mean, std } => statistics(mean, std),
            };
            let (kernel, element) = match precision {
                Precision::F32 => ("bytes_to_patches_f32", DType::F32),
                Precision::Bf16 => ("bytes_to_patches_bf16", DType::BF16),
            };
            let patches = (height / patch) * (width / patch);
            let outputs = vec![(Shape::new([batch, patches, channels * patch * patch]), element)];
            let run = move |queue: &mut Queue<'_>, i: &[Ptr], o: &[Ptr], _| {
                let sizes = [channels, height, width, patch].map(|n| Arg::U32(n as u32));
                let args: Vec<Arg> = [i[0], o[0]]
                    .map(Arg::Ptr)
                    .into_iter()
                    .chain(sizes)
                    .chain([Arg::Bytes(values.clone())])
                    .collect();
                queue.launch(kernel, [patches as u32, batch as u32, 1], [256, 1, 1], 0, &args);
            };
            one(native::<BT>("patches_from_bytes", vec![bytes.clone()], outputs, 0, run))
        };
        specs.iter().map(of).collect()
    }
}

/// `struct Channels` of `kernels/images.cu`.
fn statistics(mean: &[f64], std: &[f64]) -> Vec<u8> {
    let mut values = [0f32; 2 * CHANNELS];
    for (at, (mean, std)) in mean.iter().zip(std).enumerate() {
        (values[at], values[CHANNELS + at]) = (*mean as f32, *std as f32);
    }
    values.iter().flat_map(|value| value.to_ne_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use burn::backend::{Autodiff, Cuda, Flex};
    use burn::tensor::{DType, Distribution, Tensor};

    use crate::gpu::tests::on_cuda;
    use crate::{
        ImageOps, PatchSpec, Precision, Scaling, clear_outside, images_from_bytes, linear, patches,
        patches_from_bytes, standardise, to_signed,
    };

    fn way<B: ImageOps>(dims: [usize; 4], patch: usize, device: &B::Device) -> Vec<f32> {
        let bytes: Vec<u8> = (0..dims.iter().product::<usize>()).map(|i| (i * 37 % 256) as u8).collect();
        let [_, height, width, channels] = dims;
        let images: Vec<&[u8]> = bytes.chunks(height * width * channels).collect();
        let images = images_from_bytes::<B>(&images, [height, width, channels], device);
        let (mean, std) = (&[0.485, 0.456, 0.406, 0.5][..dims[3]], &[0.229, 0.224, 0.225, 0.25][..dims[3]]);
        let mut all = images.to_data().into_vec::<f32>().unwrap();
        let images = standardise(images, mean, std);
        all.extend(images.to_data().into_vec::<f32>().unwrap());
        let contents: Vec<_> = (0..dims[0]).map(|at| [width - at % width, height - at / 2]).collect();
        all.extend(clear_outside(images.clone(), &contents).into_data().into_vec::<f32>().unwrap());
        all.extend(to_signed(images.clone()).into_data().into_vec::<f32>().unwrap());
        all.extend(patches(images, patch).into_data().into_vec::<f32>().unwrap());
        let images: Vec<&[u8]> = bytes.chunks(height * width * channels).collect();
        let scalings = [
            Scaling::Standardised { mean, std },
            Scaling::Teacher { mean, std },
            Scaling::Signed,
            Scaling::Unit,
        ];
        let specs = scalings.map(|scaling| PatchSpec { patch, scaling, precision: Precision::F32 });
        for found in patches_from_bytes::<B>(&images, [height, width, channels], &specs, device) {
            all.extend(found.into_data().into_vec::<f32>().unwrap());
        }
        all
    }

    /// Patches in bf16 are what a matmul in bf16 makes of those in f32, and their gradients are the same bits.
    #[test]
    fn patches_in_bf16_on_cuda() {
        on_cuda(|device| {
            if !super::is_native(device) {
                println!("skipped: this device takes the portable path");
                return;
            }
            let bytes: Vec<u8> = (0..2 * 32 * 48 * 3).map(|i| (i * 37 % 256) as u8).collect();
            let images: Vec<&[u8]> = bytes.chunks(32 * 48 * 3).collect();
            let specs = [Precision::Bf16, Precision::F32].map(|precision| PatchSpec {
                patch: 16,
                scaling: Scaling::Signed,
                precision,
            });
            let weight = Tensor::<Cuda, 2>::random([24, 768], Distribution::Default, device);
            let found = patches_from_bytes::<Cuda>(&images, [32, 48, 3], &specs, device);
            assert_eq!([found[0].dtype(), found[1].dtype()], [DType::BF16, DType::F32]);
            let results = found.into_iter().map(|patches| {
                let weight = Tensor::<Autodiff<Cuda>, 2>::from_inner(weight.clone()).require_grad();
                let y = linear(Tensor::from_inner(patches), weight.clone(), None, Precision::Bf16);
                let grads = y.clone().powi_scalar(2).sum().backward();
                let values = y.into_data().into_vec::<f32>().unwrap();
                (values, weight.grad(&grads).unwrap().into_data().into_vec::<f32>().unwrap())
            });
            let [narrow, wide] = results.collect::<Vec<_>>().try_into().unwrap();
            assert!(narrow.0.iter().any(|&value| value != 0.0));
            assert_eq!(narrow, wide);
        });
    }

    #[test]
    fn bytes_to_patches_on_cuda() {
        on_cuda(|device| {
            for (dims, patch) in
                [([1, 1, 1, 3], 1), ([2, 6, 9, 3], 3), ([3, 32, 48, 4], 16), ([1, 64, 64, 1], 8)]
            {
                let expected = way::<Flex>(dims, patch, &Default::default());
                for (at, (found, expected)) in
                    way::<Cuda>(dims, patch, device).iter().zip(&expected).enumerate()
                {
                    // The emulated card divides as the CPU does; NVRTC may round a division once more.
                    assert!(
                        (found - expected).abs() <= 3e-7 * expected.abs().max(1.0),
                        "{dims:?} {at}: {found}, not {expected}"
                    );
                }
            }
        });
    }
}
