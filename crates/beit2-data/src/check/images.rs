//! What only decoding every image shows.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use super::duplicates::{self, Duplicates, Print};
use super::sample::is_constant;
use super::{Findings, NAMED, Set, parallel};
use crate::decode::{DecodeOptions, decode_with_facts};
use crate::source::Source;

/// Settings of [`images`].
#[derive(Clone, Debug, PartialEq)]
pub struct ImagesConfig {
    /// Threads. The report does not depend on it. Default 2.
    pub workers: usize,
    /// Side of the crops: an image with a shorter side is counted as small. Default 224.
    pub image_size: u32,
    /// How images are decoded.
    pub decode: DecodeOptions,
}

impl Default for ImagesConfig {
    fn default() -> Self {
        Self { workers: 2, image_size: 224, decode: DecodeOptions::default() }
    }
}

/// Images that have something in common.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Named {
    /// How many.
    pub count: usize,
    /// The first few; of unreadable ones, with the reason.
    pub names: Vec<String>,
}

impl Named {
    fn add(&mut self, name: impl FnOnce() -> String) {
        self.count += 1;
        if self.names.len() < NAMED {
            self.names.push(name());
        }
    }
}

/// Smallest, middle and largest value. The median of an even number of values is the lower one of the middle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Spread<T> {
    /// Smallest.
    pub min: T,
    /// In the middle.
    pub median: T,
    /// Largest.
    pub max: T,
}

impl<T: Copy + Default + PartialOrd> Spread<T> {
    fn of(mut values: Vec<T>) -> Self {
        values.sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
        let (first, last) = (values.first().copied(), values.last().copied());
        let middle = values.get(values.len().saturating_sub(1) / 2).copied();
        Self {
            min: first.unwrap_or_default(),
            median: middle.unwrap_or_default(),
            max: last.unwrap_or_default(),
        }
    }
}

/// What [`images`] found. It becomes JSON as it is.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ImageReport {
    /// Images that were looked at; fewer when it was stopped.
    pub checked: usize,
    /// Images that cannot be read or decoded.
    pub unreadable: Named,
    /// Widths in pixels, as a model sees the images.
    pub width: Spread<u32>,
    /// Heights in pixels.
    pub height: Spread<u32>,
    /// Width / height.
    pub aspect: Spread<f64>,
    /// Images by format.
    pub formats: BTreeMap<String, usize>,
    /// Images by number of channels in the file.
    pub channels: BTreeMap<usize, usize>,
    /// Images by bits of a sample.
    pub bits: BTreeMap<u32, usize>,
    /// Images whose EXIF orientation is not 1, by orientation.
    pub orientation: BTreeMap<u8, usize>,
    /// Images with several pages or frames, of which the first is used.
    pub several_pages: Named,
    /// Side of the crops that `small` refers to.
    pub image_size: u32,
    /// Images whose shorter side has fewer pixels than that.
    pub small: Named,
    /// Images of a single colour.
    pub constant: Named,
    /// Mean of each channel over all pixels, as decoded, in [0, 1].
    pub mean: Vec<f64>,
    /// Standard deviation of each channel over all pixels, in [0, 1].
    pub std: Vec<f64>,
    /// Images with the same bytes.
    pub duplicates: Duplicates,
    /// Images that look nearly the same.
    pub near_duplicates: Duplicates,
}

/// What one image showed.
struct Seen {
    size: (u32, u32),
    format: &'static str,
    channels: usize,
    bits: u32,
    orientation: u8,
    pages: usize,
    constant: bool,
    print: Print,
    /// For each channel, the sums of values and of squares.
    sums: Vec<(u64, u64)>,
    pixels: u64,
}

/// Images decoded at a time for each thread.
const AHEAD: usize = 32;

/// Decodes every image of the training set and, if there is one, the validation set. Statistics of images are of the training
/// set; duplicates are looked for inside and across both; unreadable images of both are counted.
///
/// `progress` gets the number of images done; when `stop` gives true, the report covers what was done by then.
pub fn images(
    train: Set<'_, dyn Source>,
    val: Option<Set<'_, dyn Source>>,
    config: &ImagesConfig,
    mut progress: impl FnMut(usize),
    stop: impl Fn() -> bool,
) -> (ImageReport, Findings) {
    let sources: Vec<&Arc<dyn Source>> =
        std::iter::once(train.source).chain(val.map(|val| val.source)).collect();
    let items: Vec<(usize, usize)> = sources
        .iter()
        .enumerate()
        .flat_map(|(set, source)| (0..source.len()).map(move |at| (set, at)))
        .collect();
    let mut report = ImageReport { image_size: config.image_size, ..ImageReport::default() };
    let mut sums: Vec<(u128, u128)> = Vec::new();
    let (mut pixels, mut mixed) = (0u64, false);
    let (mut widths, mut heights, mut aspects) = (Vec::new(), Vec::new(), Vec::new());
    let mut prints: Vec<Option<Print>> = Vec::with_capacity(items.len());
    let name = |(set, at): (usize, usize)| sources[set].name(at);
    for chunk in items.chunks(AHEAD * config.workers.max(1)) {
        if stop() {
            break;
        }
        let seen = parallel::map(chunk, config.workers, |&(set, at)| {
            look(sources[set].as_ref(), at, &config.decode)
        });
        for (&item, outcome) in chunk.iter().zip(seen) {
            report.checked += 1;
            let seen = match outcome {
                Ok(Ok(seen)) => seen,
                Ok(Err(why)) | Err(why) => {
                    report.unreadable.add(|| {
                        if why.contains(&name(item)) { why } else { format!("{}: {why}", name(item)) }
                    });
                    prints.push(None);
                    continue;
                }
            };
            prints.push(Some(seen.print));
            if item.0 > 0 {
                continue;
            }
            let (width, height) = seen.size;
            widths.push(width);
            heights.push(height);
            aspects.push(f64::from(width) / f64::from(height));
            *report.formats.entry(seen.format.to_owned()).or_default() += 1;
            *report.channels.entry(seen.channels).or_default() += 1;
            *report.bits.entry(seen.bits).or_default() += 1;
            if seen.orientation != 1 {
                *report.orientation.entry(seen.orientation).or_default() += 1;
            }
            if seen.pages > 1 {
                report.several_pages.add(|| name(item));
            }
            if width.min(height) < config.image_size {
                report.small.add(|| name(item));
            }
            if seen.constant {
                report.constant.add(|| name(item));
            }
            if sums.is_empty() {
                sums = vec![(0, 0); seen.sums.len()];
            }
            mixed |= sums.len() != seen.sums.len();
            for (sum, one) in sums.iter_mut().zip(&seen.sums) {
                *sum = (sum.0 + u128::from(one.0), sum.1 + u128::from(one.1));
            }
            pixels += seen.pixels;
        }
        progress(report.checked);
    }
    (report.width, report.height, report.aspect) =
        (Spread::of(widths), Spread::of(heights), Spread::of(aspects));
    if pixels > 0 && !mixed {
        let count = pixels as f64;
        report.mean = sums.iter().map(|&(sum, _)| sum as f64 / count / 255.0).collect();
        // Exact up to here: (n Σx² − (Σx)²) / n² in integers.
        let variance = |&(sum, squares): &(u128, u128)| {
            (u128::from(pixels) * squares - sum * sum) as f64 / (count * count)
        };
        report.std = sums.iter().map(|sums| variance(sums).sqrt() / 255.0).collect();
    }
    let name_at = |at: usize| items.get(at).map(|&item| name(item)).unwrap_or_default();
    (report.duplicates, report.near_duplicates) = duplicates::find(&prints, train.source.len(), name_at);
    let findings = findings(&report, train, val);
    (report, findings)
}

fn look(source: &dyn Source, index: usize, options: &DecodeOptions) -> Result<Seen, String> {
    let bytes = source.read(index).map_err(|error| error.to_string())?;
    let (image, facts) = decode_with_facts(&bytes, options).map_err(|error| error.to_string())?;
    let (width, height) = (image.width as usize, image.height as usize);
    let pixels = (width * height) as u64;
    let channels = image.data.len() / (width * height).max(1);
    let mut sums = vec![(0u64, 0u64); channels];
    for pixel in image.data.chunks_exact(channels.max(1)) {
        for (sum, &value) in sums.iter_mut().zip(pixel) {
            let value = u64::from(value);
            *sum = (sum.0 + value, sum.1 + value * value);
        }
    }
    Ok(Seen {
        size: (image.width, image.height),
        format: facts.format,
        channels: facts.channels,
        bits: facts.bits,
        orientation: facts.orientation,
        pages: facts.pages,
        constant: is_constant(&image),
        print: Print::of(&bytes, (width, height), &image.data),
        sums,
        pixels,
    })
}

fn findings(report: &ImageReport, train: Set<'_, dyn Source>, val: Option<Set<'_, dyn Source>>) -> Findings {
    let mut findings = Findings::default();
    let checked = report.checked;
    if let Named { count: count @ 1.., names } = &report.unreadable {
        findings.errors.push(format!("{count} of {checked} images cannot be read: {}", some(names, *count)));
    }
    let mut warn = |sentence: String| findings.warnings.push(sentence);
    if let Named { count: count @ 1.., names } = &report.constant {
        warn(format!("{count} images of {} have a single colour: {}", train.name, some(names, *count)));
    }
    if let Named { count: count @ 1.., names } = &report.small {
        warn(format!(
            "{count} images of {} have fewer than {} pixels on their shorter side and are enlarged: {}",
            train.name,
            report.image_size,
            some(names, *count)
        ));
    }
    if let Named { count: count @ 1.., names } = &report.several_pages {
        warn(format!(
            "{count} images of {} have several pages or frames, of which the first is used: {}",
            train.name,
            some(names, *count)
        ));
    }
    if let turned @ 1.. = report.orientation.values().sum::<usize>() {
        warn(format!("{turned} images of {} have an EXIF orientation other than 1", train.name));
    }
    for (what, found) in
        [("the same bytes as", &report.duplicates), ("nearly the same image as", &report.near_duplicates)]
    {
        let example =
            found.pairs.first().map(|pair| format!("{} and {}", pair.first, pair.second)).unwrap_or_default();
        if let (count @ 1.., Some(val)) = (found.across, val) {
            warn(format!(
                "{count} images of {} have {what} images of {} (first {example}), so the result is better than on new images",
                val.name, train.name
            ));
        } else if found.extra > 0 {
            warn(format!("{} images have {what} another one (first {example})", found.extra));
        }
    }
    findings
}

fn some(names: &[String], count: usize) -> String {
    const SHOWN: usize = 3;
    let shown = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join("; ");
    match count.saturating_sub(names.len().min(SHOWN)) {
        0 => shown,
        more => format!("{shown}; and {more} more"),
    }
}
