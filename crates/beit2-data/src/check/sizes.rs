//! The sizes of some images, and what crops make of them.

use std::io::Cursor;

use super::{parallel, spread};
use crate::decode::{DecodeOptions, decode};
use crate::rng::{Key, RngStream};
use crate::source::Source;
use crate::transform::CropConfig;

/// Images whose sizes are looked at.
const SAMPLE: usize = 64;

/// Crops that are drawn for each size.
const DRAWS: u64 = 16;

/// Width and height of up to 64 images of a set, evenly spread, by their headers where these say it; those that cannot be
/// read are left out.
pub fn sizes(source: &dyn Source, options: &DecodeOptions, workers: usize) -> Vec<(u32, u32)> {
    let indices = spread(source.len(), SAMPLE);
    let size = |&index: &usize| {
        source.image_size(index).or_else(|| {
            let bytes = source.read(index).ok()?;
            of_header(&bytes)
                .or_else(|| decode(&bytes, options).ok().map(|image| (image.width, image.height)))
        })
    };
    parallel::map(&indices, workers, size).into_iter().filter_map(|size| size.ok().flatten()).collect()
}

fn of_header(bytes: &[u8]) -> Option<(u32, u32)> {
    image::ImageReader::new(Cursor::new(bytes)).with_guessed_format().ok()?.into_dimensions().ok()
}

/// The share of random crops from `min_scale` of an image's area upwards that are narrower or lower than `input` pixels,
/// of images of these sizes; always the same for the same sizes.
pub fn crops_to_enlarge(sizes: &[(u32, u32)], input: u32, min_scale: f64) -> f64 {
    let config = CropConfig { min_scale, ..CropConfig::default() };
    let mut small = 0;
    for (at, &(width, height)) in sizes.iter().enumerate() {
        let key = Key { seed: 0, epoch: 0, index: at as u64, stream: RngStream::Augment };
        let mut rng = key.rng();
        small += (0..DRAWS).filter(|_| config.sample(&mut rng, width, height).smaller_than(input)).count();
    }
    small as f64 / (sizes.len() as u64 * DRAWS).max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crops_of_large_images_are_not_enlarged() {
        assert_eq!(crops_to_enlarge(&[(1000, 1000); 8], 64, 0.2), 0.0);
        assert_eq!(crops_to_enlarge(&[(50, 50); 8], 64, 0.2), 1.0);
        // Half of the areas from 0 to 1 are below a half, and of those above some are too narrow.
        let half = crops_to_enlarge(&[(90, 90); 64], 64, 1e-9);
        assert!((0.5..0.65).contains(&half), "{half}");
        assert_eq!(crops_to_enlarge(&[], 64, 0.2), 0.0);
    }
}
