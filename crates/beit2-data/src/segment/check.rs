//! A look at every image and every mask before training starts, so that a bad file is found now and
//! not after hours.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use crate::encoded::EncodedImage;
use crate::pool::{Pool, guarded};
use crate::segment::error::{MaskProblem, SegmentDataError};
use crate::segment::label_map::IGNORE;
use crate::segment::mask_png::RawPixels;
use crate::segment::source::SegmentSource;
use crate::source::Source;

/// Pairs queued for each worker.
const QUEUED_PER_WORKER: usize = 4;
/// Most names that a warning lists.
const NAMED: usize = 10;

/// Settings of [`check`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckConfig {
    /// Worker threads; 0 works in the caller's. Default 2.
    pub workers: usize,
    /// Most findings of one kind that are kept with their sentence; all are counted. Default 20.
    pub listed: usize,
}

impl Default for CheckConfig {
    fn default() -> Self {
        Self { workers: 2, listed: 20 }
    }
}

/// What kind of thing is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingKind {
    /// An image without a mask.
    MissingMask,
    /// A mask without an image.
    MissingImage,
    /// An image that cannot be read or decoded.
    UnreadableImage,
    /// A mask that cannot be read or decoded.
    UnreadableMask,
    /// A mask that is not a PNG, has 16 bits or an alpha channel.
    MaskFormat,
    /// A mask of another size than its image.
    Size,
    /// An id beyond the classes.
    IdOutside,
    /// A palette or colours that do not belong to the class list.
    Palette,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Its kind.
    pub kind: FindingKind,
    /// One sentence that begins with the file.
    pub sentence: String,
}

/// How often a class is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ClassShare {
    /// Its name.
    pub name: String,
    /// Pixels of the class.
    pub pixels: u64,
    /// Images in which it has a pixel.
    pub images: u64,
}

/// What [`check`] found. It becomes JSON as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DataReport {
    /// Pairs of image and mask.
    pub pairs: usize,
    /// Pairs that were looked at; fewer when it was stopped.
    pub checked: usize,
    /// How many things are wrong.
    pub problems: usize,
    /// The same by kind.
    pub by_kind: BTreeMap<FindingKind, usize>,
    /// The first of each kind, in the order of the files.
    pub findings: Vec<Finding>,
    /// What looks wrong but may be meant, one sentence each.
    pub warnings: Vec<String>,
    /// All classes, by class number. Only sound pairs count.
    pub classes: Vec<ClassShare>,
    /// Pixels without a label in sound pairs.
    pub ignored_pixels: u64,
}

impl DataReport {
    /// Whether everything was looked at and nothing is wrong.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.problems == 0 && self.checked == self.pairs
    }
}

/// Reads and decodes every pair: sizes, ids, colours, formats, missing partners, and how often each
/// class is there.
///
/// `progress` gets the number of pairs done, in order; when `stop` gives true, the report covers what was
/// done by then. The report does not depend on the number of workers.
///
/// # Errors
/// Only when the system gives no threads: everything else is a finding.
pub fn check(
    source: &Arc<SegmentSource>,
    config: &CheckConfig,
    mut progress: impl FnMut(usize),
    stop: impl Fn() -> bool,
) -> Result<DataReport, SegmentDataError> {
    let mut summary = Summary::new(source, config.listed);
    let pool = match config.workers {
        0 => None,
        workers => {
            let source = source.clone();
            let pool = Pool::start(workers, move |index| examine(&source, index));
            Some(pool.map_err(|error| SegmentDataError::Spawn(error.to_string()))?)
        }
    };
    let mut submitted = 0;
    for index in 0..source.len() {
        if stop() {
            break;
        }
        let outcome = match &pool {
            None => guarded(|| examine(source, index)),
            Some(pool) => {
                let end = source.len().min(index + config.workers.saturating_mul(QUEUED_PER_WORKER));
                pool.submit((submitted..end).map(|index| (index as u64, index)));
                submitted = submitted.max(end);
                pool.wait(index as u64)
            }
        };
        let crashed = |panic| {
            let sentence = format!("{}: checking it crashed ({panic})", source.name(index));
            Examined { findings: vec![Finding { kind: FindingKind::UnreadableImage, sentence }], sound: None }
        };
        summary.add(index, outcome.unwrap_or_else(crashed));
        progress(index + 1);
    }
    Ok(summary.finish())
}

/// What one pair showed.
struct Examined {
    findings: Vec<Finding>,
    sound: Option<Sound>,
}

/// Of a pair without findings.
struct Sound {
    /// Pixels by class number.
    counts: Box<[u64; 256]>,
    /// Class numbers that are present, with their colours in the mask's palette.
    palette: Vec<(u8, [u8; 3])>,
}

fn examine(source: &SegmentSource, index: usize) -> Examined {
    let mut findings = Vec::new();
    let mut found = |kind, sentence| findings.push(Finding { kind, sentence });
    let size = match image_size(source, index) {
        Ok(size) => Some(size),
        Err(sentence) => {
            found(FindingKind::UnreadableImage, sentence);
            None
        }
    };
    let sound = match look_at_mask(source, index, size) {
        Ok(sound) => Some(sound),
        Err(error) => {
            found(kind_of(&error), error.to_string());
            None
        }
    };
    Examined { sound: sound.filter(|_| findings.is_empty()), findings }
}

/// Width and height, after decoding all of it: a header says nothing about the rest.
fn image_size(source: &SegmentSource, index: usize) -> Result<(u32, u32), String> {
    let bytes = source.read(index).map_err(|error| error.to_string())?;
    let image =
        guarded(|| EncodedImage::of_sample(source, index, &bytes, source.decode_options())?.into_whole());
    let image = image.map_err(|panic| format!("the image decoder crashed on it ({panic})"));
    let image = image.and_then(|image| image.map_err(|error| error.to_string()));
    match image {
        Ok(image) => Ok((image.width, image.height)),
        Err(problem) => Err(format!("{}: {problem}", source.name(index))),
    }
}

fn look_at_mask(
    source: &SegmentSource,
    index: usize,
    size: Option<(u32, u32)>,
) -> Result<Sound, SegmentDataError> {
    let raw = source.raw_mask(index)?;
    if let Some((width, height)) = size.filter(|&size| size != (raw.width, raw.height)) {
        let (mask_w, mask_h, image) = (raw.width, raw.height, source.name(index));
        return Err(source.problem(index, MaskProblem::Size { mask_w, mask_h, image, width, height }));
    }
    let palette = match &raw.pixels {
        RawPixels::Ids { palette, .. } => palette.clone().unwrap_or_default(),
        RawPixels::Rgb(_) => Vec::new(),
    };
    let labels = source.labels(raw).map_err(|problem| source.problem(index, problem))?;
    let counts = Box::new(labels.histogram());
    let present = (0..IGNORE).filter(|&class| counts[usize::from(class)] > 0);
    let color = |class| palette.get(usize::from(source.rule().id(class))).map(|&color| (class, color));
    let palette = present.filter_map(color).collect();
    Ok(Sound { counts, palette })
}

fn kind_of(error: &SegmentDataError) -> FindingKind {
    let SegmentDataError::Mask { problem, .. } = error else {
        return FindingKind::UnreadableMask;
    };
    match problem {
        MaskProblem::Decode(_) | MaskProblem::Crashed(_) => FindingKind::UnreadableMask,
        MaskProblem::NotPng | MaskProblem::SixteenBit { .. } | MaskProblem::Alpha { .. } => {
            FindingKind::MaskFormat
        }
        MaskProblem::NoColors | MaskProblem::UnknownColor { .. } | MaskProblem::PaletteMismatch { .. } => {
            FindingKind::Palette
        }
        MaskProblem::IdOutside { .. } => FindingKind::IdOutside,
        MaskProblem::Size { .. } => FindingKind::Size,
    }
}

/// Collects what the pairs showed, in order.
struct Summary<'a> {
    source: &'a SegmentSource,
    listed: usize,
    report: DataReport,
    /// For each class number, the first palette colour seen and the pair it was seen in.
    colors: [Option<([u8; 3], usize)>; 256],
    /// Palettes that disagree with an earlier one: how many, and the first as a sentence.
    odd_palettes: (usize, String),
    /// Pairs without any label: how many, and the first.
    unlabelled: (usize, Option<usize>),
}

impl<'a> Summary<'a> {
    fn new(source: &'a SegmentSource, listed: usize) -> Self {
        let share = |name: &String| ClassShare { name: name.clone(), pixels: 0, images: 0 };
        let report = DataReport {
            pairs: source.len(),
            checked: 0,
            problems: 0,
            by_kind: BTreeMap::new(),
            findings: Vec::new(),
            warnings: Vec::new(),
            classes: source.class_names().iter().map(share).collect(),
            ignored_pixels: 0,
        };
        let colors = [None; 256];
        let mut summary =
            Self { source, listed, report, colors, odd_palettes: (0, String::new()), unlabelled: (0, None) };
        let without_mask = source.unpaired().images.len();
        for (at, sentence) in source.unpaired().sentences().enumerate() {
            let kind = if at < without_mask { FindingKind::MissingMask } else { FindingKind::MissingImage };
            summary.found(Finding { kind, sentence });
        }
        summary
    }

    fn found(&mut self, finding: Finding) {
        self.report.problems += 1;
        let of_kind = self.report.by_kind.entry(finding.kind).or_default();
        *of_kind += 1;
        if *of_kind <= self.listed {
            self.report.findings.push(finding);
        }
    }

    fn add(&mut self, index: usize, examined: Examined) {
        self.report.checked += 1;
        examined.findings.into_iter().for_each(|finding| self.found(finding));
        let Some(Sound { counts, palette }) = examined.sound else {
            return;
        };
        self.report.ignored_pixels += counts[usize::from(IGNORE)];
        for (share, &pixels) in self.report.classes.iter_mut().zip(counts.iter()) {
            share.pixels += pixels;
            share.images += u64::from(pixels > 0);
        }
        if counts[..usize::from(IGNORE)].iter().all(|&pixels| pixels == 0) {
            self.unlabelled.0 += 1;
            self.unlabelled.1.get_or_insert(index);
        }
        self.compare_palette(index, &palette);
    }

    /// Whether masks mean the same by the same palette entry. Without colours in the class list
    /// nothing says which of them is right, so this is a warning.
    fn compare_palette(&mut self, index: usize, palette: &[(u8, [u8; 3])]) {
        let mut odd = false;
        for &(class, color) in palette {
            let (first, seen_in) = *self.colors[usize::from(class)].get_or_insert((color, index));
            if first != color && !odd {
                odd = true;
                if self.odd_palettes.0 == 0 {
                    let [one, other] = [seen_in, index].map(|index| self.source.mask_name(index));
                    let id = self.source.rule().id(class);
                    self.odd_palettes.1 = format!("entry {id} is another colour in {other} than in {one}");
                }
            }
        }
        self.odd_palettes.0 += usize::from(odd);
    }

    fn finish(mut self) -> DataReport {
        let report = &mut self.report;
        if report.checked == report.pairs {
            let absent: Vec<&str> = report
                .classes
                .iter()
                .filter(|share| share.pixels == 0)
                .map(|share| share.name.as_str())
                .collect();
            if !absent.is_empty() {
                let more = if absent.len() > NAMED { ", ..." } else { "" };
                report.warnings.push(format!(
                    "{} of {} classes have no pixel: {}{more}",
                    absent.len(),
                    report.classes.len(),
                    absent[..absent.len().min(NAMED)].join(", ")
                ));
            }
        }
        if let (count, Some(first)) = self.unlabelled {
            let name = self.source.mask_name(first);
            report.warnings.push(format!("masks without a single labelled pixel: {count}, first {name}"));
        }
        if let (count @ 1.., sentence) = &self.odd_palettes {
            report.warnings.push(format!(
                "{count} masks have another palette than earlier ones: {sentence}; entries are taken as ids by \
                 their numbers, so make sure that these mean the same in every file"
            ));
        }
        self.report
    }
}
