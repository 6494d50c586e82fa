//! Images with masks, as a source of images that also knows their class numbers.

use crate::classes::{ClassError, Target, by_name, positions};
use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::decode::DecodeOptions;
use crate::error::SourceError;
use crate::fingerprint::Fingerprint;
use crate::pool::guarded;
use crate::segment::classes::{ClassList, class_color};
use crate::segment::error::{MaskProblem, SegmentDataError};
use crate::segment::label_map::{IGNORE, LabelMap};
use crate::segment::mask_png::{RawMask, RawPixels, SIGNATURE, decode_mask};
use crate::segment::rule::{IdMap, LabelRule};
use crate::source::folder::{fingerprint_file, read_image};
use crate::source::name::{path_bytes, path_text};
use crate::source::{Account, Source};

/// An image and its mask, as paths below their folders.
#[derive(Clone, Debug)]
pub(super) struct Pair {
    pub(super) image: PathBuf,
    pub(super) mask: PathBuf,
}

/// Files without their partner, each with the path where that was looked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unpaired {
    /// Images without a mask, and the mask that was expected.
    pub images: Vec<(String, String)>,
    /// Masks without an image, and the image that was expected.
    pub masks: Vec<(String, String)>,
}

impl Unpaired {
    /// Whether every file has its partner.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.images.is_empty() && self.masks.is_empty()
    }

    /// A sentence for images without masks and one for masks without images, where there are some.
    #[must_use]
    pub fn summary(&self) -> Vec<String> {
        let sentence = |list: &[(String, String)], what: &str| {
            let (file, wanted) = list.first()?;
            Some(format!("{} {what}, first {file} ({wanted} was expected)", list.len()))
        };
        [sentence(&self.images, "images without a mask"), sentence(&self.masks, "masks without an image")]
            .into_iter()
            .flatten()
            .collect()
    }

    /// A sentence for each file.
    pub(super) fn sentences(&self) -> impl Iterator<Item = String> {
        let images = self.images.iter().map(|(file, wanted)| format!("{file} has no mask {wanted}"));
        let masks = self.masks.iter().map(|(file, wanted)| format!("{file} has no image {wanted}"));
        images.chain(masks)
    }
}

/// What a mask holds.
pub(crate) struct MaskLook {
    /// Values in the file; none of RGB masks.
    pub(crate) values: Box<[bool; 256]>,
    /// Pixels by class number, and at [`IGNORE`] those without a label.
    pub(crate) counts: Box<[u64; 256]>,
}

/// What a [`SegmentSource`] is made of.
#[derive(Clone)]
pub(super) struct Parts {
    pub(super) images: PathBuf,
    pub(super) masks: PathBuf,
    pub(super) ade20k: bool,
    pub(super) pairs: Vec<Pair>,
    pub(super) unpaired: Unpaired,
    /// What lies in the folders and is no image.
    pub(super) account: Account,
    pub(super) list: ClassList,
    pub(super) map: IdMap,
    pub(super) rule: LabelRule,
    pub(super) decode: DecodeOptions,
}

/// Pairs of image and mask, opened by [`open_segment`](crate::segment::open_segment).
///
/// As a [`Source`] it hands out the images, without labels; [`Source::classes`] are the names of the
/// classes of pixels. [`Self::mask`] gives the mask of the same number.
pub struct SegmentSource {
    parts: Parts,
    palette: Vec<[u8; 3]>,
    /// Class numbers of the class list's colours.
    by_color: HashMap<[u8; 3], u8>,
    fingerprint: OnceLock<String>,
    numbering: Option<Numbering>,
}

/// Class numbers of another list of classes.
#[derive(Clone)]
struct Numbering {
    names: Vec<String>,
    /// By the number in the own list; [`IGNORE`] stays.
    numbers: [u8; 256],
}

impl SegmentSource {
    pub(super) fn new(parts: Parts) -> Self {
        let rule = parts.rule;
        let default = || (0..rule.classes).map(|class| class_color(class as u8)).collect();
        let palette: Vec<[u8; 3]> = parts.list.colors.clone().unwrap_or_else(default);
        let listed = parts.list.colors.iter().flatten().copied();
        let mut by_color: HashMap<[u8; 3], u8> = listed.zip(0..).collect();
        by_color.extend(parts.list.ignore_color.map(|color| (color, IGNORE)));
        Self { parts, palette, by_color, fingerprint: OnceLock::new(), numbering: None }
    }

    /// The same pairs with the class numbers of `target`, by the names of the classes; by position, for the same number of
    /// classes, where one of the lists only has numbers. [`Self::mask`] and [`Self::class_names`] then have the target's.
    ///
    /// # Errors
    /// A class that the target does not have, or another number of classes by position.
    pub fn numbered_by(&self, data: &str, target: Target<'_>) -> Result<Self, ClassError> {
        let own = &self.parts.list.names;
        let unnamed = |names: &[String]| {
            names.iter().all(|name| name.strip_prefix("class ").is_some_and(|at| at.parse::<u32>().is_ok()))
        };
        let by_position = unnamed(own) || unnamed(target.names);
        let found = match by_position {
            true => positions(data, own, target)?,
            false => by_name(data, own, own, target)?,
        };
        let mut new = Self::new(self.parts.clone());
        if !found.iter().zip(0..).all(|(&number, at)| number == at) || found.len() != target.count {
            let number = |class: usize| found.get(class).and_then(|&number| u8::try_from(number).ok());
            let numbers = std::array::from_fn(|class| number(class).unwrap_or(IGNORE));
            new.numbering = Some(Numbering { names: target.names.to_vec(), numbers });
        }
        Ok(new)
    }

    /// The first `count` pairs, with the same classes.
    #[must_use]
    pub fn first(&self, count: usize) -> Self {
        let mut parts = self.parts.clone();
        parts.pairs.truncate(count);
        let mut few = Self::new(parts);
        few.numbering.clone_from(&self.numbering);
        few
    }

    /// Names of the classes, by class number.
    #[must_use]
    pub fn class_names(&self) -> &[String] {
        match &self.numbering {
            Some(numbering) => &numbering.names,
            None => &self.parts.list.names,
        }
    }

    /// The folder that the images' paths start from.
    #[must_use]
    pub fn images_folder(&self) -> &Path {
        &self.parts.images
    }

    /// The class list as the text of a `classes.json`, which gives the same classes and colours.
    #[must_use]
    pub fn class_list_json(&self) -> String {
        super::list::class_list_json(&self.parts.list)
    }

    /// A colour for each class: of the class list, or else [`class_color`].
    #[must_use]
    pub fn palette(&self) -> &[[u8; 3]] {
        &self.palette
    }

    /// How the ids in the mask files become class numbers.
    #[must_use]
    pub fn rule(&self) -> LabelRule {
        self.parts.rule
    }

    /// Mask values that stand for other ids.
    #[must_use]
    pub fn id_map(&self) -> &IdMap {
        &self.parts.map
    }

    /// Whether the folders are arranged as ADE20K's.
    #[must_use]
    pub fn is_ade20k(&self) -> bool {
        self.parts.ade20k
    }

    /// DecodeOptions on decoding.
    #[must_use]
    pub fn decode_options(&self) -> &DecodeOptions {
        &self.parts.decode
    }

    /// What was left out because
    /// [`keep_unpaired`](crate::segment::SegmentDataOptions::keep_unpaired) was set.
    #[must_use]
    pub fn unpaired(&self) -> &Unpaired {
        &self.parts.unpaired
    }

    /// Path of a mask. Empty for an `index` past the end.
    #[must_use]
    pub fn mask_name(&self, index: usize) -> String {
        self.mask_path(index).map(|path| path_text(&path)).unwrap_or_default()
    }

    /// Reads a mask: class numbers, [`IGNORE`] where there is no label. Every number is below the number
    /// of classes.
    ///
    /// Whether it has the size of its image is not looked at here, but by
    /// [`check`](crate::segment::check) and
    /// [`SegmentTrainParams::apply`](crate::segment::SegmentTrainParams::apply).
    ///
    /// # Errors
    /// A mask that cannot be read or decoded, or that holds a number which is no class.
    pub fn mask(&self, index: usize) -> Result<LabelMap, SegmentDataError> {
        let raw = self.raw_mask(index)?;
        let mut mask = self.labels(raw).map_err(|problem| self.problem(index, problem))?;
        if let Some(Numbering { numbers, .. }) = &self.numbering {
            mask.data.iter_mut().for_each(|class| *class = numbers[usize::from(*class)]);
        }
        Ok(mask)
    }

    /// Reads a mask and counts what is in it.
    pub(crate) fn look(&self, index: usize) -> Result<MaskLook, SegmentDataError> {
        let raw = self.raw_mask(index)?;
        let mut values = Box::new([false; 256]);
        if let RawPixels::Ids { ids, .. } = &raw.pixels {
            ids.iter().for_each(|&value| values[usize::from(value)] = true);
        }
        let labels = self.labels(raw).map_err(|problem| self.problem(index, problem))?;
        Ok(MaskLook { values, counts: Box::new(labels.histogram()) })
    }

    /// Reads a mask as it is stored.
    pub(super) fn raw_mask(&self, index: usize) -> Result<RawMask, SegmentDataError> {
        let path = self.mask_path(index).ok_or(SourceError::Index { index, len: self.len() })?;
        let bytes = read_image(&path)?;
        // Why guarded: as in `sample.rs`, a decoder's bug must not end a run.
        let decoded = guarded(|| decode_mask(&bytes, &self.parts.decode));
        let raw = decoded.unwrap_or_else(|panic| Err(MaskProblem::Crashed(panic)));
        raw.map_err(|problem| self.problem(index, problem))
    }

    /// Class numbers of a stored mask.
    pub(super) fn labels(&self, raw: RawMask) -> Result<LabelMap, MaskProblem> {
        let RawMask { width, height, pixels } = raw;
        let data = match pixels {
            RawPixels::Ids { mut ids, palette } => {
                self.parts.map.apply(&mut ids);
                if let (Some(palette), Some(colors)) = (&palette, &self.parts.list.colors) {
                    self.compare_palette(&ids, palette, colors)?;
                }
                let rule = self.parts.rule;
                let classes: [Option<u8>; 256] = std::array::from_fn(|id| rule.class(id as u8));
                if let Some(at) = ids.iter().position(|&id| classes[usize::from(id)].is_none()) {
                    let (x, y) = place(at, width);
                    return Err(MaskProblem::IdOutside { x, y, id: ids[at], rule });
                }
                let classes = classes.map(|class| class.unwrap_or(IGNORE));
                ids.iter_mut().for_each(|id| *id = classes[usize::from(*id)]);
                ids
            }
            RawPixels::Rgb(colors) => self.by_colors(colors.as_chunks::<3>().0, width)?,
        };
        Ok(LabelMap { width, height, data })
    }

    pub(super) fn problem(&self, index: usize, problem: MaskProblem) -> SegmentDataError {
        SegmentDataError::Mask { file: self.mask_name(index), problem }
    }

    fn mask_path(&self, index: usize) -> Option<PathBuf> {
        self.parts.pairs.get(index).map(|pair| self.parts.masks.join(&pair.mask))
    }

    fn image_path(&self, index: usize) -> Option<PathBuf> {
        self.parts.pairs.get(index).map(|pair| self.parts.images.join(&pair.image))
    }

    /// Class numbers of colours.
    fn by_colors(&self, colors: &[[u8; 3]], width: u32) -> Result<Vec<u8>, MaskProblem> {
        if self.by_color.is_empty() {
            return Err(MaskProblem::NoColors);
        }
        let mut classes = Vec::with_capacity(colors.len());
        // Why the last one is kept: neighbours mostly have the same colour, and a look-up is slow.
        let mut last = None;
        for (at, &color) in colors.iter().enumerate() {
            let class = match last {
                Some((same, class)) if same == color => class,
                _ => *self.by_color.get(&color).ok_or_else(|| self.unknown_color(color, place(at, width)))?,
            };
            last = Some((color, class));
            classes.push(class);
        }
        Ok(classes)
    }

    fn unknown_color(&self, color: [u8; 3], (x, y): (u32, u32)) -> MaskProblem {
        let distance = |other: &[u8; 3]| -> u32 {
            color.iter().zip(other).map(|(a, b)| u32::from(a.abs_diff(*b)).pow(2)).sum()
        };
        let nearest =
            (0..self.palette.len()).min_by_key(|&class| distance(&self.palette[class])).unwrap_or(0);
        let class = self.parts.list.names[nearest].clone();
        MaskProblem::UnknownColor { x, y, color, nearest: self.palette[nearest], class }
    }

    /// The palette's entries that are in use against the colours of the class list.
    fn compare_palette(
        &self,
        ids: &[u8],
        palette: &[[u8; 3]],
        colors: &[[u8; 3]],
    ) -> Result<(), MaskProblem> {
        let mut used = [false; 256];
        ids.iter().for_each(|&id| used[usize::from(id)] = true);
        for id in (0..=255).filter(|&id| used[usize::from(id)]) {
            let Some(class) = self.parts.rule.class(id).filter(|&class| class != IGNORE).map(usize::from)
            else {
                continue;
            };
            let (found, expected) = (palette.get(usize::from(id)).copied(), colors[class]);
            if found != Some(expected) {
                let class = self.parts.list.names[class].clone();
                return Err(MaskProblem::PaletteMismatch { id, found, class, expected });
            }
        }
        Ok(())
    }
}

/// Column and row of a pixel.
fn place(at: usize, width: u32) -> (u32, u32) {
    ((at % width as usize) as u32, (at / width as usize) as u32)
}

impl Source for SegmentSource {
    fn len(&self) -> usize {
        self.parts.pairs.len()
    }

    fn read(&self, index: usize) -> Result<Vec<u8>, SourceError> {
        read_image(&self.image_path(index).ok_or(SourceError::Index { index, len: self.len() })?)
    }

    fn name(&self, index: usize) -> String {
        self.image_path(index).map(|path| path_text(&path)).unwrap_or_default()
    }

    fn name_bytes(&self, index: usize) -> Option<Vec<u8>> {
        path_bytes(&self.image_path(index)?)
    }

    fn label(&self, _: usize) -> Option<u32> {
        None
    }

    /// Of the mask, from its header.
    fn image_size(&self, index: usize) -> Option<(u32, u32)> {
        let mut header = [0; 24];
        std::fs::File::open(self.mask_path(index)?).ok()?.read_exact(&mut header).ok()?;
        let side =
            |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        header.starts_with(&SIGNATURE).then(|| (side(16), side(20)))
    }

    fn classes(&self) -> &[String] {
        self.class_names()
    }

    fn account(&self) -> Account {
        Account { used: self.len(), ..self.parts.account.clone() }
    }

    /// Covers images and masks by names and sizes, the classes and their colours, and the rule for
    /// ids.
    fn fingerprint(&self) -> String {
        let compute = || {
            let Parts { images, masks, pairs, list, rule, .. } = &self.parts;
            let mut hash = Fingerprint::new();
            let add =
                |hash: &mut Fingerprint, root: &Path, file: &Path| fingerprint_file(hash, root, file, None);
            for Pair { image, mask } in pairs {
                add(&mut hash, images, image);
                add(&mut hash, masks, mask);
            }
            for (number, name) in list.names.iter().enumerate() {
                hash.sample(name, number as u64, None);
            }
            list.colors.iter().flatten().chain(&list.ignore_color).for_each(|color| hash.bytes(color));
            hash.bytes(&[u8::from(rule.reduce_zero_label), rule.ignore]);
            if let Some(Numbering { numbers, .. }) = &self.numbering {
                hash.bytes(numbers);
            }
            self.parts.map.pairs().iter().for_each(|&(value, id)| hash.bytes(&[value, id]));
            hash.finish()
        };
        self.fingerprint.get_or_init(compute).clone()
    }
}
