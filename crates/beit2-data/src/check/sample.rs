//! A few images, decoded.

use super::{Findings, Set, parallel, spread};
use crate::decode::DecodeOptions;
use crate::encoded::EncodedImage;
use crate::error::advice_on_bad_images;
use crate::sample::{most_bad, percent};
use crate::source::Source;

/// Images that are decoded.
const SAMPLE: usize = 32;

/// Images that a message names.
const NAMED: usize = 3;

/// Decodes up to 32 images of a set, evenly spread: images of a single colour, and whether any can be read at all.
///
/// With `max_bad_fraction` more unreadable images than this fraction of the set are an error, as they would stop the run.
pub fn sample(
    set: Set<'_, dyn Source>,
    options: &DecodeOptions,
    workers: usize,
    max_bad_fraction: Option<f64>,
) -> Findings {
    let mut findings = Findings::default();
    let source = set.source.as_ref();
    let indices = spread(source.len(), SAMPLE);
    let looked = parallel::map(&indices, workers, |&index| {
        let bytes = source.read(index).map_err(|error| error.to_string())?;
        EncodedImage::of_sample(source, index, &bytes, options)
            .and_then(EncodedImage::into_whole)
            .map(|image| is_constant(&image))
            .map_err(|error| error.to_string())
    });
    let of = match indices.len() == source.len() {
        true => format!("{} images", indices.len()),
        false => format!("{} images of a sample", indices.len()),
    };
    let (mut constant, mut bad) = (Vec::new(), Vec::new());
    for (&index, outcome) in indices.iter().zip(looked) {
        match outcome {
            Ok(Ok(true)) => constant.push(source.name(index)),
            Ok(Ok(false)) => {}
            Ok(Err(why)) | Err(why) => bad.push((source.name(index), why)),
        }
    }
    let whys = bad.iter().map(|(name, why)| match why.contains(name.as_str()) {
        true => why.clone(),
        false => format!("{name}: {why}"),
    });
    let whys: Vec<String> = whys.take(NAMED).collect();
    let limit = max_bad_fraction.map(|fraction| (fraction, most_bad(fraction, source.len() as u64)));
    let too_many = limit.filter(|(_, limit)| bad.len() as u64 > *limit);
    let named = match bad.len().saturating_sub(whys.len()) {
        0 => whys.join("; "),
        more => format!("{}; and {more} more", whys.join("; ")),
    };
    if let (Some(first), true) = (whys.first(), bad.len() == indices.len()) {
        findings.errors.push(format!("{}: none of {of} can be used, first {first}", set.name));
    } else if let Some((fraction, limit)) = too_many {
        findings.errors.push(format!(
            "{}: {} of {of} cannot be used, more than the {limit} that data.max_bad_fraction allows ({} %): {named}; {}",
            set.name,
            bad.len(),
            percent(fraction),
            advice_on_bad_images(bad.len() as u64, indices.len() as u64, set.name)
        ));
    } else if let Some(first) = whys.first() {
        findings.warnings.push(format!("{}: {} of {of} cannot be used, first {first}", set.name, bad.len()));
    }
    let readable = indices.len() - bad.len();
    match constant.first() {
        Some(first) if constant.len() == readable && readable > 1 => findings.errors.push(format!(
            "{}: all {of} have a single colour (first {first}), so there is nothing to learn from them",
            set.name
        )),
        Some(first) => findings.warnings.push(format!(
            "{}: {} of {of} have a single colour (first {first})",
            set.name,
            constant.len()
        )),
        None => {}
    }
    findings
}

/// Whether all pixels are equal.
pub(super) fn is_constant(image: &crate::Image) -> bool {
    let pixels = image.width as usize * image.height as usize;
    let channels = image.data.len() / pixels.max(1);
    channels > 0 && image.data.chunks_exact(channels).all(|pixel| pixel == &image.data[..channels])
}
