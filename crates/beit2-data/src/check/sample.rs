//! A few images, decoded.

use super::{Findings, Set, parallel, spread};
use crate::decode::DecodeOptions;
use crate::sample::decode_for;
use crate::source::Source;

/// Images that are decoded.
const SAMPLE: usize = 32;

/// Decodes up to 32 images of a set, evenly spread: images of a single colour, and whether any can be read at all.
pub fn sample(set: Set<'_, dyn Source>, options: &DecodeOptions, workers: usize) -> Findings {
    let mut findings = Findings::default();
    let source = set.source.as_ref();
    let indices = spread(source.len(), SAMPLE);
    let looked = parallel::map(&indices, workers, |&index| {
        let bytes = source.read(index).map_err(|error| error.to_string())?;
        decode_for(source, index, &bytes, options)
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
    if let (Some((name, why)), true) = (bad.first(), bad.len() == indices.len()) {
        let why = if why.contains(name.as_str()) { why.clone() } else { format!("{name}: {why}") };
        findings.errors.push(format!("{}: none of {of} can be used, first {why}", set.name));
    }
    if let (Some((name, why)), true) = (bad.first(), bad.len() < indices.len()) {
        let why = if why.contains(name.as_str()) { why.clone() } else { format!("{name}: {why}") };
        findings.warnings.push(format!("{}: {} of {of} cannot be used, first {why}", set.name, bad.len()));
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
