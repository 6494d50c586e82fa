//! Mean and standard deviation of the channels of a set of images.

use beit2_data::{DecodeOptions, Source, decode};
use beit2_weights::Normalization;

use super::{Assets, DataConfig};
use crate::error::{Error, config_error};
use crate::vit::VitConfig;

/// Images that are looked at, evenly spread over the set.
const LOOKED_AT: usize = 512;

/// Channel statistics of images in [0, 1], of up to 512 of them, evenly spread. Images that cannot be decoded are left out.
///
/// # Errors
/// No image that can be decoded: the reason of the first one.
pub fn measure_normalization(source: &dyn Source, options: &DecodeOptions) -> Result<Normalization, Error> {
    let channels = options.channels as usize;
    let (mut sums, mut squares, mut pixels) = (vec![0u64; channels], vec![0u64; channels], 0u64);
    let mut refused = None;
    for index in (0..source.len()).step_by(source.len().div_ceil(LOOKED_AT).max(1)) {
        let image = source.read(index).map_err(|error| error.to_string());
        let image = image.and_then(|bytes| decode(&bytes, options).map_err(|error| error.to_string()));
        let image = match image {
            Ok(image) => image,
            Err(error) => {
                refused.get_or_insert_with(|| format!("{}: {error}", source.name(index)));
                continue;
            }
        };
        pixels += u64::from(image.width) * u64::from(image.height);
        for pixel in image.data.chunks_exact(channels) {
            for (channel, &value) in pixel.iter().enumerate() {
                sums[channel] += u64::from(value);
                squares[channel] += u64::from(value) * u64::from(value);
            }
        }
    }
    if pixels == 0 {
        return config_error(refused.unwrap_or_else(|| "there are no images to measure".into()));
    }
    let mean = |sum: u64| sum as f64 / pixels as f64;
    let of_channel = |(&sum, &squares): (&u64, &u64)| {
        let spread = (mean(squares) - mean(sum) * mean(sum)).max(0.0).sqrt();
        // Six digits: what is printed is what is used.
        let short = |value: f64| (value / 255.0 * 1e6).round() / 1e6;
        (short(mean(sum)), short(spread))
    };
    let (mean, std) = sums.iter().zip(&squares).map(of_channel).unzip();
    Ok(Normalization { mean, std })
}

/// Gives a model of other than RGB images the statistics of its training images, unless it has some.
///
/// # Errors
/// As [`measure_normalization`]; images that cannot be opened.
pub(crate) fn fill_normalization(
    vit: &mut VitConfig,
    data: &DataConfig,
    assets: &dyn Assets,
) -> Result<(), Error> {
    if vit.in_chans != 3 && vit.normalization.is_none() && !data.train.is_empty() {
        let source = assets.source(&data.train)?;
        let options = data.of_channels(vit.in_chans).decode_options();
        vit.normalization = Some(measure_normalization(source.as_ref(), &options)?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use beit2_data::source::FilesSource;

    #[test]
    fn statistics_are_those_of_all_pixels() {
        let dir = tempfile::tempdir().unwrap();
        let files: Vec<_> = [[0u8, 10], [255, 10]]
            .iter()
            .enumerate()
            .map(|(at, pixel)| {
                let path = dir.path().join(format!("{at}.npy"));
                let text = "{'descr': '|u1', 'fortran_order': False, 'shape': (1, 1, 2), }\n";
                let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
                bytes.extend((text.len() as u16).to_le_bytes());
                bytes.extend(text.as_bytes());
                bytes.extend(pixel);
                std::fs::write(&path, bytes).unwrap();
                path
            })
            .collect();
        let options = DecodeOptions::default().of_channels(2);
        let found = measure_normalization(&FilesSource::new(files), &options).unwrap();
        assert_eq!(found.mean, [0.5, 0.039216]);
        assert_eq!(found.std, [0.5, 0.0]);
        let error = measure_normalization(&FilesSource::new(vec!["no.png".into()]), &options).unwrap_err();
        assert!(error.to_string().contains("no.png"), "{error}");
    }
}
