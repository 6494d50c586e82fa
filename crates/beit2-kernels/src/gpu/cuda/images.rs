//! From bytes to patches ([`crate::ImageOps`]), one launch a step of the way.

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Shape};
use burn_cubecl::BoolElement;
use cubecl::cuda::{CudaDevice, CudaRuntime};

use super::upload::send;
use super::{Arg, Gpu, is_native, native, one};
use crate::ImageOps;
use crate::images_from_bytes::composed;

type Cuda<BT> = Gpu<CudaRuntime, BT>;

/// Most channels whose statistics are passed as arguments; `Channels` in `kernels/images.cu`.
const CHANNELS: usize = 32;

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
        let mut values = [0f32; 2 * CHANNELS];
        for (at, (mean, std)) in mean.iter().zip(std).enumerate() {
            (values[at], values[CHANNELS + at]) = (*mean as f32, *std as f32);
        }
        let outputs = vec![(x.shape.clone(), DType::F32)];
        one(native::<BT>("standardise", vec![x], outputs, 0, move |queue, inputs, outputs, _| {
            let area = (height * width) as u32;
            let args = [
                Arg::Ptr(inputs[0]),
                Arg::Ptr(outputs[0]),
                Arg::U32(area),
                Arg::U32(channels as u32),
                Arg::Bytes(values.iter().flat_map(|value| value.to_ne_bytes()).collect()),
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
}

#[cfg(test)]
mod tests {
    use burn::backend::{Cuda, Flex};

    use crate::gpu::tests::on_cuda;
    use crate::{ImageOps, images_from_bytes, patches, standardise, to_signed};

    fn way<B: ImageOps>(dims: [usize; 4], patch: usize, device: &B::Device) -> Vec<f32> {
        let bytes: Vec<u8> = (0..dims.iter().product::<usize>()).map(|i| (i * 37 % 256) as u8).collect();
        let [_, height, width, channels] = dims;
        let images: Vec<&[u8]> = bytes.chunks(height * width * channels).collect();
        let images = images_from_bytes::<B>(&images, [height, width, channels], device);
        let (mean, std) = (&[0.485, 0.456, 0.406, 0.5][..dims[3]], &[0.229, 0.224, 0.225, 0.25][..dims[3]]);
        let mut all = images.to_data().into_vec::<f32>().unwrap();
        let images = standardise(images, mean, std);
        all.extend(images.to_data().into_vec::<f32>().unwrap());
        all.extend(to_signed(images.clone()).into_data().into_vec::<f32>().unwrap());
        all.extend(patches(images, patch).into_data().into_vec::<f32>().unwrap());
        all
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
