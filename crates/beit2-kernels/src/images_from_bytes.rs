//! From bytes to patches: what an image goes through before the first matmul.
//!
//! Contract: bytes are divided, channels standardised and patches cut as Burn's primitives would, to the bit; on the CPU
//! each step is one pass on all threads, where Burn walks permuted tensors element by element.

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::{Autodiff, Flex};
use burn::tensor::backend::{AutodiffBackend, Backend as BurnBackend};
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Int, Tensor, TensorData};

use crate::flex::is_f32;
use crate::precision::Precision;
use crate::tensor::{unwrap, wrap};

/// What a model wants of values in [0, 1].
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scaling<'a> {
    /// As they are.
    Unit,
    /// In [−1, 1].
    Signed,
    /// `(x − mean)/std` of each channel.
    Standardised {
        /// Of each channel.
        mean: &'a [f64],
        /// Of each channel.
        std: &'a [f64],
    },
    /// As a teacher gets them from the tokenizer: in [−1, 1], [back](crate::from_signed), then `(x − mean)/std`. That is
    /// [`Scaling::Standardised`] up to rounding.
    Teacher {
        /// Of each channel.
        mean: &'a [f64],
        /// Of each channel.
        std: &'a [f64],
    },
}

/// How a model takes images: scaled, and cut into patches.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PatchSpec<'a> {
    /// Side of a patch.
    pub patch: usize,
    /// What happens to values.
    pub scaling: Scaling<'a>,
    /// Of the matmul that reads the patches: in bf16, a backend may give them in bf16.
    pub precision: Precision,
}

/// The way of an image to patches on a backend's own tensors. Shapes are those of the functions of the same names.
pub trait ImageOps: BurnBackend {
    /// [`images_from_bytes`](crate::images_from_bytes).
    fn images_from_bytes(images: &[&[u8]], size: [usize; 3], device: &Self::Device) -> FloatTensor<Self> {
        composed::images_from_bytes::<Self>(images, size, device)
    }

    /// [`standardise`](crate::standardise).
    fn fused_standardise(x: FloatTensor<Self>, mean: &[f64], std: &[f64]) -> FloatTensor<Self> {
        composed::standardise::<Self>(x, mean, std)
    }

    /// [`to_signed`](crate::to_signed).
    fn fused_to_signed(x: FloatTensor<Self>) -> FloatTensor<Self> {
        composed::to_signed::<Self>(x)
    }

    /// [`clear_outside`](crate::clear_outside).
    fn fused_clear_outside(x: FloatTensor<Self>, contents: &[[usize; 2]]) -> FloatTensor<Self> {
        composed::clear_outside::<Self>(x, contents)
    }

    /// [`patches`](crate::patches).
    fn fused_patches(x: FloatTensor<Self>, patch: usize) -> FloatTensor<Self> {
        composed::patches::<Self>(x, patch)
    }

    /// [`patches_from_bytes`](crate::patches_from_bytes).
    fn patches_from_bytes(
        images: &[&[u8]],
        size: [usize; 3],
        specs: &[PatchSpec<'_>],
        device: &Self::Device,
    ) -> Vec<FloatTensor<Self>> {
        composed::patches_from_bytes::<Self>(images, size, specs, device)
    }
}

/// B images of the host, each bytes `[H, W, C]`, → `[B, C, H, W]` in [0, 1], f32, on the device. `size` is `[H, W, C]`.
///
/// # Panics
/// If an image has not H·W·C bytes.
pub fn images_from_bytes<B: ImageOps>(
    images: &[&[u8]],
    size: [usize; 3],
    device: &B::Device,
) -> Tensor<B, 4> {
    check("images_from_bytes", images, size);
    wrap(B::images_from_bytes(images, size, device))
}

fn check(name: &str, images: &[&[u8]], size: [usize; 3]) {
    let bytes: usize = size.iter().product();
    for (at, image) in images.iter().enumerate() {
        let count = image.len();
        assert!(count == bytes, "{name}: {count} bytes of image {at} are not {size:?}");
    }
}

/// B images of the host, each bytes `[H, W, C]`, as each of several models takes them: [`patches`](crate::patches)
/// `[B, N, C·p·p]` of the scaled images. The bytes are sent once.
///
/// # Panics
/// If an image has not H·W·C bytes, a side is not a multiple of a patch, or there are not C means and deviations.
pub fn patches_from_bytes<B: ImageOps>(
    images: &[&[u8]],
    size @ [height, width, channels]: [usize; 3],
    specs: &[PatchSpec<'_>],
    device: &B::Device,
) -> Vec<Tensor<B, 3>> {
    check("patches_from_bytes", images, size);
    for PatchSpec { patch, scaling, .. } in specs {
        assert!(
            *patch > 0 && height.is_multiple_of(*patch) && width.is_multiple_of(*patch),
            "patches_from_bytes: {size:?} cannot be cut into patches of {patch}"
        );
        if let Scaling::Standardised { mean, std } | Scaling::Teacher { mean, std } = scaling {
            assert!(
                [mean.len(), std.len()] == [channels; 2],
                "patches_from_bytes: {} means and {} deviations for {channels} channels",
                mean.len(),
                std.len()
            );
        }
    }
    B::patches_from_bytes(images, size, specs, device).into_iter().map(wrap).collect()
}

/// [`images_from_bytes`](crate::images_from_bytes) composed from Burn's primitives.
pub fn reference<B: BurnBackend>(images: &[&[u8]], size: [usize; 3], device: &B::Device) -> Tensor<B, 4> {
    let [height, width, channels] = size;
    let data = TensorData::new(images.concat(), [images.len(), height, width, channels]);
    Tensor::<B, 4, Int>::from_data(data, (device, DType::U8)).float().permute([0, 3, 1, 2]).div_scalar(255.0)
}

/// `(x − mean)/std` of each channel: `x [B, C, H, W]`.
///
/// # Panics
/// If there are not C means and deviations.
pub fn standardise<B: ImageOps>(x: Tensor<B, 4>, mean: &[f64], std: &[f64]) -> Tensor<B, 4> {
    let channels = x.dims()[1];
    assert!(
        mean.len() == channels && std.len() == channels,
        "standardise: {} means and {} deviations for {channels} channels",
        mean.len(),
        std.len()
    );
    wrap(B::fused_standardise(unwrap(x), mean, std))
}

/// `x [B, C, H, W]` with 0 outside of each image's content: its first columns and rows.
///
/// # Panics
/// If there are not B contents `[columns, rows]`, or one is larger than the images.
pub fn clear_outside<B: ImageOps>(x: Tensor<B, 4>, contents: &[[usize; 2]]) -> Tensor<B, 4> {
    let dims @ [batch, _, height, width] = x.dims();
    assert!(
        contents.len() == batch
            && contents.iter().all(|[columns, rows]| *columns <= width && *rows <= height),
        "clear_outside: contents {contents:?} do not fit {dims:?}"
    );
    match contents.iter().all(|content| *content == [width, height]) {
        true => x,
        false => wrap(B::fused_clear_outside(unwrap(x), contents)),
    }
}

/// [`standardise`](crate::standardise) composed from Burn's primitives.
pub fn reference_standardise<B: BurnBackend>(x: Tensor<B, 4>, mean: &[f64], std: &[f64]) -> Tensor<B, 4> {
    let options = (&x.device(), x.dtype());
    let channels =
        |v: &[f64]| Tensor::<B, 4>::from_data(TensorData::new(v.to_vec(), [1, v.len(), 1, 1]), options);
    (x.clone() - channels(mean)) / channels(std)
}

/// Values in [0, 1] as a model wants them: `x [B, C, H, W]`.
///
/// # Panics
/// As [`standardise`](crate::standardise).
pub fn scale<B: ImageOps>(x: Tensor<B, 4>, scaling: Scaling<'_>) -> Tensor<B, 4> {
    match scaling {
        Scaling::Unit => x,
        Scaling::Signed => to_signed(x),
        Scaling::Standardised { mean, std } => standardise(x, mean, std),
        Scaling::Teacher { mean, std } => standardise(from_signed(to_signed(x)), mean, std),
    }
}

/// [−1, 1] → [0, 1], by way of bytes' range, where values are clamped.
pub fn from_signed<B: BurnBackend>(x: Tensor<B, 4>) -> Tensor<B, 4> {
    x.add_scalar(1.0).mul_scalar(127.5).clamp(0.0, 255.0).div_scalar(255.0)
}

/// [0, 1] → [−1, 1].
pub fn to_signed<B: ImageOps>(x: Tensor<B, 4>) -> Tensor<B, 4> {
    wrap(B::fused_to_signed(unwrap(x)))
}

/// Square patches side by side: `x [B, C, H, W]` → `[B, H/p·W/p, C·p·p]`, row by row.
///
/// # Panics
/// If a side is not a multiple of `patch`.
pub fn patches<B: ImageOps>(x: Tensor<B, 4>, patch: usize) -> Tensor<B, 3> {
    let dims = x.dims();
    assert!(
        patch > 0 && dims[2].is_multiple_of(patch) && dims[3].is_multiple_of(patch),
        "patches: {dims:?} cannot be cut into patches of {patch}"
    );
    wrap(B::fused_patches(unwrap(x), patch))
}

/// [`patches`](crate::patches) composed from Burn's primitives.
pub fn reference_patches<B: BurnBackend>(x: Tensor<B, 4>, patch: usize) -> Tensor<B, 3> {
    let [batch, channels, height, width] = x.dims();
    let (rows, cols) = (height / patch, width / patch);
    x.reshape([batch, channels, rows, patch, cols, patch])
        .permute([0, 2, 4, 1, 3, 5]) // [B, gh, gw, C, p, p]
        .reshape([batch, rows * cols, channels * patch * patch])
}

/// The references on a backend's own tensors.
pub(crate) mod composed {
    use super::*;

    pub(crate) fn images_from_bytes<B: BurnBackend>(
        images: &[&[u8]],
        size: [usize; 3],
        device: &B::Device,
    ) -> FloatTensor<B> {
        unwrap(super::reference::<B>(images, size, device))
    }

    pub(crate) fn standardise<B: BurnBackend>(
        x: FloatTensor<B>,
        mean: &[f64],
        std: &[f64],
    ) -> FloatTensor<B> {
        unwrap(super::reference_standardise::<B>(wrap(x), mean, std))
    }

    pub(crate) fn to_signed<B: BurnBackend>(x: FloatTensor<B>) -> FloatTensor<B> {
        unwrap(wrap::<B, 4>(x).mul_scalar(255.0).div_scalar(127.5).sub_scalar(1.0))
    }

    pub(crate) fn clear_outside<B: BurnBackend>(
        x: FloatTensor<B>,
        contents: &[[usize; 2]],
    ) -> FloatTensor<B> {
        let mut x: Tensor<B, 4> = wrap(x);
        let [_, channels, height, width] = x.dims();
        for (at, &[columns, rows]) in contents.iter().enumerate() {
            for [rows, columns] in [[0..rows, columns..width], [rows..height, 0..width]] {
                if !rows.is_empty() && !columns.is_empty() {
                    let options = (&x.device(), x.dtype());
                    let zeros = Tensor::zeros([1, channels, rows.len(), columns.len()], options);
                    x = x.slice_assign([at..at + 1, 0..channels, rows, columns], zeros);
                }
            }
        }
        unwrap(x)
    }

    pub(crate) fn patches<B: BurnBackend>(x: FloatTensor<B>, patch: usize) -> FloatTensor<B> {
        unwrap(super::reference_patches::<B>(wrap(x), patch))
    }

    /// From the backend's other operations.
    pub(crate) fn patches_from_bytes<B: ImageOps>(
        images: &[&[u8]],
        size: [usize; 3],
        specs: &[PatchSpec<'_>],
        device: &B::Device,
    ) -> Vec<FloatTensor<B>> {
        let images: Tensor<B, 4> = wrap(B::images_from_bytes(images, size, device));
        let of =
            |spec: &PatchSpec<'_>| unwrap(super::patches(scale(images.clone(), spec.scaling), spec.patch));
        specs.iter().map(of).collect()
    }
}

impl<B: ImageOps, C: CheckpointStrategy> ImageOps for Autodiff<B, C> {
    fn images_from_bytes(images: &[&[u8]], size: [usize; 3], device: &Self::Device) -> FloatTensor<Self> {
        Self::from_inner(B::images_from_bytes(images, size, device))
    }

    fn fused_patches(x: FloatTensor<Self>, patch: usize) -> FloatTensor<Self> {
        match x.is_tracked() {
            // A graph goes through Burn's operations; images are constants nearly always.
            true => composed::patches::<Self>(x, patch),
            false => Self::from_inner(B::fused_patches(x.primitive, patch)),
        }
    }

    fn patches_from_bytes(
        images: &[&[u8]],
        size: [usize; 3],
        specs: &[PatchSpec<'_>],
        device: &Self::Device,
    ) -> Vec<FloatTensor<Self>> {
        B::patches_from_bytes(images, size, specs, device).into_iter().map(Self::from_inner).collect()
    }
}

impl ImageOps for Flex {
    fn images_from_bytes(images: &[&[u8]], size: [usize; 3], _: &Self::Device) -> FloatTensor<Self> {
        fast::images_from_bytes(images, size)
    }

    fn fused_standardise(x: FloatTensor<Self>, mean: &[f64], std: &[f64]) -> FloatTensor<Self> {
        match is_f32(&[&x]) {
            true => fast::standardise(x, mean, std),
            false => composed::standardise::<Self>(x, mean, std),
        }
    }

    fn fused_patches(x: FloatTensor<Self>, patch: usize) -> FloatTensor<Self> {
        match is_f32(&[&x]) {
            true => fast::patches(x, patch),
            false => composed::patches::<Self>(x, patch),
        }
    }
}

pub(crate) mod fast {
    use burn_flex::FlexTensor;
    use rayon::prelude::*;

    use crate::flex::{owned, tensor, values, view};
    use crate::memory::Buffer;
    use crate::simd::dispatch;

    pub(crate) fn images_from_bytes(images: &[&[u8]], [height, width, channels]: [usize; 3]) -> FlexTensor {
        let area = height * width;
        let mut y = Buffer::any(images.len() * area * channels);
        y.par_chunks_mut(area.max(1)).enumerate().for_each(|(plane, y)| {
            let (bytes, channel) = (images[plane / channels], plane % channels);
            // A constant distance, so that the loop becomes vector code.
            match channels {
                3 => spread(bytes.as_chunks::<3>().0.iter().map(|pixel| pixel[channel]), y),
                _ => spread(bytes.iter().skip(channel).step_by(channels).copied(), y),
            }
        });
        tensor(y, [images.len(), channels, height, width])
    }

    #[inline(always)]
    fn spread(bytes: impl Iterator<Item = u8>, y: &mut [f32]) {
        for (y, byte) in y.iter_mut().zip(bytes) {
            *y = f32::from(byte) / 255.0;
        }
    }

    pub(crate) fn standardise(x: FlexTensor, mean: &[f64], std: &[f64]) -> FlexTensor {
        let mut x = owned(x);
        let shape = x.layout().shape();
        let (channels, area) = (shape[1], shape[2] * shape[3]);
        values(&mut x).par_chunks_mut(area.max(1)).enumerate().for_each(|(plane, x)| {
            let channel = plane % channels;
            shift(x, mean[channel] as f32, std[channel] as f32);
        });
        x
    }

    dispatch!(fn shift(x: &mut [f32], mean: f32, std: f32) => shift_body);

    #[inline(always)]
    fn shift_body<const FMA: bool>(x: &mut [f32], mean: f32, std: f32) {
        for x in x {
            *x = (*x - mean) / std;
        }
    }

    pub(crate) fn patches(x: FlexTensor, patch: usize) -> FlexTensor {
        let x = owned(x);
        let shape = x.layout().shape();
        let (batch, channels, height, width) = (shape[0], shape[1], shape[2], shape[3]);
        let (rows, cols, pixels) = (height / patch, width / patch, channels * patch * patch);
        let from = view(&x);
        let mut y = Buffer::any(from.len());
        // A row of patches each.
        y.par_chunks_mut((cols * pixels).max(1)).enumerate().for_each(|(at, y)| {
            let (image, row) = (at / rows, at % rows);
            for (col, y) in y.chunks_exact_mut(pixels).enumerate() {
                for (line, y) in y.chunks_exact_mut(patch).enumerate() {
                    let (channel, line) = (line / patch, line % patch);
                    let start =
                        ((image * channels + channel) * height + row * patch + line) * width + col * patch;
                    y.copy_from_slice(&from[start..start + patch]);
                }
            }
        });
        tensor(y, [batch, rows * cols, pixels])
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;
    use burn::tensor::{Distribution, Tensor};

    use super::{PatchSpec, Precision, Scaling};
    use crate::testing::{check, random};

    #[test]
    fn bytes_are_divided_and_standardised_as_burn_does() {
        let device = Default::default();
        for dims in [[1, 1, 1, 3], [2, 5, 7, 3], [3, 4, 2, 1], [1, 16, 31, 4]] {
            let bytes: Vec<u8> = (0..dims.iter().product::<usize>()).map(|i| (i * 37 % 256) as u8).collect();
            let size = [dims[1], dims[2], dims[3]];
            let images: Vec<&[u8]> = bytes.chunks(size.iter().product()).collect();
            let fast = super::images_from_bytes::<Flex>(&images, size, &device);
            let slow = super::reference::<Flex>(&images, size, &device);
            fast.clone().into_data().assert_eq(&slow.clone().into_data(), true);
            let (mean, std) =
                (&[0.485, 0.456, 0.406, 0.5][..dims[3]], &[0.229, 0.224, 0.225, 0.25][..dims[3]]);
            let fast = super::standardise(fast, mean, std);
            fast.into_data().assert_eq(&super::reference_standardise(slow, mean, std).into_data(), true);
        }
    }

    #[test]
    fn patches_of_bytes_are_those_of_scaled_images() {
        let device = Default::default();
        let (size, patch) = ([6, 9, 3], 3);
        let bytes: Vec<u8> = (0..2 * 6 * 9 * 3).map(|i| (i * 37 % 256) as u8).collect();
        let images: Vec<&[u8]> = bytes.chunks(6 * 9 * 3).collect();
        let standardised = Scaling::Standardised { mean: &[0.1, 0.2, 0.3], std: &[0.5, 1.0, 2.0] };
        let teacher = Scaling::Teacher { mean: &[0.4, 0.5, 0.6], std: &[0.2, 0.3, 0.25] };
        let scalings = [Scaling::Unit, Scaling::Signed, standardised, teacher];
        let specs = scalings.map(|scaling| PatchSpec { patch, scaling, precision: Precision::F32 });
        let found = super::patches_from_bytes::<Flex>(&images, size, &specs, &device);
        for (found, scaling) in found.into_iter().zip(scalings) {
            let images = super::images_from_bytes::<Flex>(&images, size, &device);
            let want = super::patches(super::scale(images, scaling), patch);
            found.into_data().assert_eq(&want.into_data(), true);
        }
    }

    #[test]
    #[should_panic(expected = "patches_from_bytes: [6, 9, 3] cannot be cut into patches of 4")]
    fn names_images_that_patches_do_not_fit() {
        let spec = PatchSpec { patch: 4, scaling: Scaling::Unit, precision: Precision::F32 };
        super::patches_from_bytes::<Flex>(&[&[0; 162]], [6, 9, 3], &[spec], &Default::default());
    }

    #[test]
    fn permuted_images_are_standardised_too() {
        let x = Tensor::<Flex, 4>::random([2, 6, 4, 3], Distribution::Default, &Default::default());
        let x = x.permute([0, 3, 1, 2]);
        let (mean, std) = ([0.1, 0.2, 0.3], [0.5, 1.0, 2.0]);
        let slow = super::reference_standardise(x.clone(), &mean, &std);
        super::standardise(x, &mean, &std).into_data().assert_eq(&slow.into_data(), true);
    }

    #[test]
    fn patches_match_reference_and_differences() {
        for (dims, patch) in [([1, 1, 1, 1], 1), ([2, 3, 4, 6], 2), ([1, 5, 14, 7], 7), ([3, 3, 32, 32], 16)]
        {
            let n = dims.iter().product();
            check(
                "patches",
                &[random(n, 1, 1.0)],
                |x| super::patches(x[0].clone().reshape(dims), patch).reshape([n]),
                |x| super::reference_patches(x[0].clone().reshape(dims), patch).reshape([n]),
                0.0,
            );
        }
    }
}
