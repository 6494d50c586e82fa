//! Which images of a set belong together because they are nearly the same, so that a split does not put them on both sides.

use std::sync::Arc;

use super::duplicates::{self, Print};
use super::parallel;
use crate::decode::{DecodeOptions, decode};
use crate::source::Source;

/// What [`alike`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alike {
    /// For each image the number of the first image of its group: itself when nothing is like it.
    pub group: Vec<usize>,
    /// Images that cannot be read or decoded, each with the reason.
    pub unreadable: Vec<(usize, String)>,
}

/// Images decoded at a time for each thread.
const AHEAD: usize = 8;

/// Decodes every image and puts those together that are equal or nearly equal, as [`images`](super::images()) counts them:
/// difference hashes within [`NEAR_BITS`](super::NEAR_BITS) and cells within [`NEAR_GREY`](super::NEAR_GREY).
///
/// `progress` gets the number of images done; `None` when `stop` gave true before the end. The result does not depend on
/// `workers`.
pub fn alike(
    source: &Arc<dyn Source>,
    options: &DecodeOptions,
    workers: usize,
    mut progress: impl FnMut(usize),
    stop: impl Fn() -> bool,
) -> Option<Alike> {
    let mut prints = Vec::with_capacity(source.len());
    let mut unreadable = Vec::new();
    let indices: Vec<usize> = (0..source.len()).collect();
    for chunk in indices.chunks(AHEAD * workers.max(1)) {
        if stop() {
            return None;
        }
        let seen = parallel::map(chunk, workers, |&index| {
            let bytes = source.read(index).map_err(|error| error.to_string())?;
            let image = decode(&bytes, options).map_err(|error| error.to_string())?;
            Ok::<_, String>(Print::of(&bytes, (image.width as usize, image.height as usize), &image.data))
        });
        for (&index, outcome) in chunk.iter().zip(seen) {
            match outcome {
                Ok(Ok(print)) => prints.push(Some(print)),
                Ok(Err(why)) | Err(why) => {
                    unreadable.push((index, why));
                    prints.push(None);
                }
            }
        }
        progress(prints.len());
    }
    Some(Alike { group: duplicates::groups(&prints), unreadable })
}
