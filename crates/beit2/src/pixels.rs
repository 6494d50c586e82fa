//! Pixels to what models expect.

use beit2_kernels::Backend;
use burn::tensor::{DType, Int, Tensor, TensorData};

/// ImageNet's channel means, RGB in [0, 1].
pub const IMAGENET_MEAN: [f64; 3] = [0.485, 0.456, 0.406];
/// ImageNet's channel deviations.
pub const IMAGENET_STD: [f64; 3] = [0.229, 0.224, 0.225];
/// CLIP's channel means.
pub const CLIP_MEAN: [f64; 3] = [0.48145466, 0.4578275, 0.40821073];
/// CLIP's channel deviations.
pub const CLIP_STD: [f64; 3] = [0.26862954, 0.26130258, 0.27577711];

/// Bytes `[B, H, W, 3]` on the host → `[B, 3, H, W]` in [0, 1] on the device; one byte a value
/// crosses, the division happens there.
pub fn from_bytes<B: Backend>(
    bytes: Vec<u8>,
    batch: usize,
    height: usize,
    width: usize,
    device: &B::Device,
) -> Tensor<B, 4> {
    let data = TensorData::new(bytes, [batch, height, width, 3]);
    Tensor::<B, 4, Int>::from_data(data, (device, DType::U8)).float().permute([0, 3, 1, 2]).div_scalar(255.0)
}

/// [0, 1] → [−1, 1].
pub fn to_signed<B: Backend>(images: Tensor<B, 4>) -> Tensor<B, 4> {
    images.mul_scalar(255.0).div_scalar(127.5).sub_scalar(1.0)
}

/// (x − mean)/std per channel of `[B, 3, H, W]`.
pub fn standardise<B: Backend>(images: Tensor<B, 4>, mean: [f64; 3], std: [f64; 3]) -> Tensor<B, 4> {
    let options = (&images.device(), images.dtype());
    let channels =
        |v: [f64; 3]| Tensor::<B, 4>::from_data(TensorData::new(v.to_vec(), [1, 3, 1, 1]), options);
    (images - channels(mean)) / channels(std)
}

/// [−1, 1] → a teacher's standardised input: back to bytes' range with clamping, then its statistics.
pub fn teacher_scaling<B: Backend>(x: Tensor<B, 4>, mean: [f64; 3], std: [f64; 3]) -> Tensor<B, 4> {
    let unit = x.add_scalar(1.0).mul_scalar(127.5).clamp(0.0, 255.0).div_scalar(255.0);
    standardise(unit, mean, std)
}
