//! Pixels to what models expect.

use std::path::Path;

use beit2_data::{DecodeOptions, EvalConfig, Image, batch_hwc};
use beit2_kernels::{self as kernels, Backend, Scaling};
use beit2_weights::Normalization;
use burn::tensor::{Tensor, TensorData};

use crate::error::{Error, config_error};

/// ImageNet's channel means, RGB in [0, 1].
pub const IMAGENET_MEAN: [f64; 3] = [0.485, 0.456, 0.406];
/// ImageNet's channel deviations.
pub const IMAGENET_STD: [f64; 3] = [0.229, 0.224, 0.225];
/// CLIP's channel means.
pub const CLIP_MEAN: [f64; 3] = [0.48145466, 0.4578275, 0.40821073];
/// CLIP's channel deviations.
pub const CLIP_STD: [f64; 3] = [0.26862954, 0.26130258, 0.27577711];

/// Reads an image file; the format is told from its content.
///
/// # Errors
/// A file that cannot be read or decoded.
pub fn read(path: impl AsRef<Path>) -> Result<Image, Error> {
    let path = path.as_ref();
    let wrong = |reason: String| Error::Image { path: path.to_owned(), reason };
    // Why the size first: an endless or huge file is refused instead of filling the memory.
    let size = std::fs::metadata(path).map_err(|error| wrong(error.to_string()))?.len();
    if size > DecodeOptions::default().max_file_bytes {
        return Err(wrong(format!("the file has {size} bytes, too many for one image")));
    }
    let bytes = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
    beit2_data::decode(&bytes, &DecodeOptions::default()).map_err(|error| wrong(error.to_string()))
}

/// Images of any size through the evaluation view, `[B, C, size, size]` in [0, 1].
///
/// # Errors
/// No images, a setting out of range, an image that is too long for its resized form.
pub fn views<B: Backend>(
    images: &[Image],
    view: &EvalConfig,
    device: &B::Device,
) -> Result<Tensor<B, 4>, Error> {
    view.validate()?;
    let views = images.iter().map(|image| view.apply(image)).collect::<Result<Vec<_>, _>>()?;
    stacked(&views, device)
}

/// Images of one size, `[B, C, H, W]` in [0, 1].
///
/// # Errors
/// No images, or images of different sizes.
pub fn stacked<B: Backend>(images: &[Image], device: &B::Device) -> Result<Tensor<B, 4>, Error> {
    let Some(first) = images.first() else {
        return config_error("a batch needs at least one image");
    };
    Ok(from_bytes(&batch_hwc(images)?, size(first), device))
}

/// `[H, W, C]` of an image.
pub(crate) fn size(image: &Image) -> [usize; 3] {
    [image.height as usize, image.width as usize, image.channels as usize]
}

/// B images of the host, each bytes `[H, W, C]` of size `size`, → `[B, C, H, W]` in [0, 1] on the device; one byte a value
/// crosses, the division happens there.
pub fn from_bytes<B: Backend>(images: &[&[u8]], size: [usize; 3], device: &B::Device) -> Tensor<B, 4> {
    kernels::images_from_bytes(images, size, device)
}

/// Checks that images have as many channels as a model takes.
///
/// # Errors
/// An image of another number.
pub fn check_channels(images: &[Image], channels: usize) -> Result<(), Error> {
    match images.iter().find(|image| image.channels as usize != channels) {
        None => Ok(()),
        Some(image) => config_error(format!(
            "an image has {} channels, and the model takes {channels}; decode it with DecodeOptions {{ channels: {channels}, .. }}",
            image.channels
        )),
    }
}

/// Chosen channels of `[B, C, H, W]`, counted from 1, as the red, green and blue of `[B, 3, H, W]`.
pub fn bands<B: Backend>(images: Tensor<B, 4>, bands: [u32; 3]) -> Tensor<B, 4> {
    let band = |band: u32| images.clone().narrow(1, band as usize - 1, 1);
    Tensor::cat(bands.map(band).to_vec(), 1)
}

/// Checks that a model of `channels` channels knows how to standardise them.
///
/// # Errors
/// Another number of means than channels, or none for images that are not RGB; a deviation of 0.
pub fn check_normalization(channels: usize, normalization: Option<&Normalization>) -> Result<(), Error> {
    match normalization {
        None if channels == 3 => Ok(()),
        None => config_error(format!(
            "a model of {channels} channels needs their means and standard deviations: model.vit.normalization = {{ mean = \
             [...], std = [...] }} (`beit2 data check --decode` measures them)"
        )),
        Some(Normalization { mean, std }) if mean.len() != channels || std.len() != channels => {
            config_error(format!(
                "model.vit.normalization has {} means and {} deviations for a model of {channels} channels",
                mean.len(),
                std.len()
            ))
        }
        Some(Normalization { std, .. }) => {
            match std.iter().position(|std| !(*std > 0.0 && std.is_finite())) {
                None => Ok(()),
                Some(at) => config_error(format!(
                    "the standard deviation of channel {} is {}; a channel that is the same everywhere teaches nothing: leave it \
                 out of the images",
                    at + 1,
                    std[at]
                )),
            }
        }
    }
}

/// [0, 1] → [−1, 1].
pub fn to_signed<B: Backend>(images: Tensor<B, 4>) -> Tensor<B, 4> {
    kernels::to_signed(images)
}

/// (x − mean)/std per channel of `[B, 3, H, W]`.
pub fn standardise<B: Backend>(images: Tensor<B, 4>, mean: [f64; 3], std: [f64; 3]) -> Tensor<B, 4> {
    kernels::standardise(images, &mean, &std)
}

/// Standardises by a model's own statistics; `None`: ImageNet's.
pub fn normalise<B: Backend>(images: Tensor<B, 4>, normalization: Option<&Normalization>) -> Tensor<B, 4> {
    kernels::scale(images, scaling(normalization))
}

/// What [`normalise`] does.
pub fn scaling(normalization: Option<&Normalization>) -> Scaling<'_> {
    match normalization {
        Some(Normalization { mean, std }) => Scaling::Standardised { mean, std },
        None => Scaling::Standardised { mean: &IMAGENET_MEAN, std: &IMAGENET_STD },
    }
}

/// [−1, 1] → a teacher's standardised input: back to bytes' range with clamping, then its statistics.
pub fn teacher_scaling<B: Backend>(x: Tensor<B, 4>, mean: [f64; 3], std: [f64; 3]) -> Tensor<B, 4> {
    standardise(kernels::from_signed(x), mean, std)
}

/// Bilinear resize of `[B, C, H, W]`, half-pixel centres, averaged over the covered pixels when it
/// shrinks. Unchanged sizes pass through.
pub fn resize<B: Backend>(images: Tensor<B, 4>, height: usize, width: usize) -> Tensor<B, 4> {
    let [batch, channels, old_height, old_width] = images.dims();
    if (old_height, old_width) == (height, width) {
        return images;
    }
    let options = (&images.device(), images.dtype());
    let matrix = |from: usize, to: usize| {
        Tensor::<B, 2>::from_data(TensorData::new(triangle_matrix(from, to), [to, from]), options)
    };
    let rows = images
        .reshape([batch * channels * old_height, old_width])
        .matmul(matrix(old_width, width).transpose());
    let rows = rows.reshape([batch * channels, old_height, width]);
    let columns = matrix(old_height, height).unsqueeze::<3>().matmul(rows);
    columns.reshape([batch, channels, height, width])
}

/// `[to, from]` weights of a triangle filter whose support grows with the shrinking factor.
fn triangle_matrix(from: usize, to: usize) -> Vec<f64> {
    let scale = from as f64 / to as f64;
    let support = scale.max(1.0);
    let mut weights = vec![0.0; to * from];
    for (t, row) in weights.chunks_mut(from).enumerate() {
        let center = (t as f64 + 0.5) * scale;
        for (s, weight) in row.iter_mut().enumerate() {
            *weight = (1.0 - (s as f64 + 0.5 - center).abs() / support).max(0.0);
        }
        let sum: f64 = row.iter().sum();
        row.iter_mut().for_each(|weight| *weight /= sum);
    }
    weights
}
