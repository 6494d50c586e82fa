//! What can be wrong with the data of semantic segmentation, one sentence each.

use crate::error::{DecodeError, SourceError};
use crate::segment::classes::hex;
use crate::segment::rule::LabelRule;

/// Why images with masks could not be opened, or one of the masks cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SegmentDataError {
    /// A folder or file that cannot be listed or read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// Folders that are not arranged as they should be.
    #[error("{path}: {problem}")]
    Layout {
        /// The folder.
        path: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// A class list that cannot be understood.
    #[error("{path}{}: {problem}", line.map_or_else(String::new, |line| format!(", line {line}")))]
    ClassList {
        /// The file.
        path: String,
        /// Number of the line, from 1; `None` when it concerns the whole file.
        line: Option<usize>,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// The list has another number of classes than the settings say.
    #[error(
        "{path} lists {listed} classes, but the settings say {expected}; leave the number out or correct it"
    )]
    ClassCount {
        /// The class list.
        path: String,
        /// Classes in it.
        listed: usize,
        /// Classes that the settings say.
        expected: usize,
    },
    /// Images without masks, or masks without images.
    #[error(
        "images without a mask: {images}, masks without an image: {masks} ({}{})",
        first.join("; "),
        if images + masks > first.len() { "; ..." } else { "" }
    )]
    Unpaired {
        /// Images without a mask.
        images: usize,
        /// Masks without an image.
        masks: usize,
        /// The first few, one sentence each.
        first: Vec<String>,
    },
    /// A mask that cannot be used.
    #[error("{file}: {problem}")]
    Mask {
        /// The mask's path.
        file: String,
        /// Why.
        problem: MaskProblem,
    },
    /// Threads could not be started.
    #[error("cannot start a thread of the data check: {0}")]
    Spawn(String),
}

/// A hint for sides that have changed places.
const EXIF_HINT: &str = "; the sides are exchanged: turn the mask or the image";

/// Why a file is not a mask of this data set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MaskProblem {
    /// The bytes are no sound PNG, or more of it than the limits allow.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// Another format.
    #[error(
        "the mask is not a PNG file; save class ids as 8-bit gray or palette PNG (JPEG would change the ids)"
    )]
    NotPng,
    /// 16 bits per channel.
    #[error("the mask has 16-bit {kind} pixels; save class ids as 8-bit gray or palette PNG")]
    SixteenBit {
        /// `gray`, `RGB`, ….
        kind: &'static str,
    },
    /// An alpha channel.
    #[error("the mask has an alpha channel ({kind}); save it without one, as 8-bit gray, palette or RGB PNG")]
    Alpha {
        /// `RGBA` or `gray + alpha`.
        kind: &'static str,
    },
    /// RGB colours that nothing gives a meaning.
    #[error(
        "the mask has RGB colours, but the class list has none; give each class its \
         colour there (car, #00008e), or save class ids as 8-bit gray or palette PNG"
    )]
    NoColors,
    /// A colour that is in no class.
    #[error(
        "pixel ({x}, {y}) has the colour {}, which is no class's; the nearest is {} of '{class}'",
        hex(*color),
        hex(*nearest)
    )]
    UnknownColor {
        /// Column.
        x: u32,
        /// Row.
        y: u32,
        /// The colour found.
        color: [u8; 3],
        /// The nearest colour of the class list.
        nearest: [u8; 3],
        /// Its class.
        class: String,
    },
    /// An id that is neither a class nor ignored.
    #[error("pixel ({x}, {y}) has the id {id}; {rule}; masks.map = \"{id}=ID\" (--map) makes it another id")]
    IdOutside {
        /// Column.
        x: u32,
        /// Row.
        y: u32,
        /// The id found.
        id: u8,
        /// The ids that would be right.
        rule: LabelRule,
    },
    /// A palette that disagrees with the class list.
    #[error(
        "palette entry {id} is {}, but class '{class}' has {} in the class list; bring the palette into \
         the list's order, or save the mask as RGB, which is matched by colour",
        found.map_or_else(|| "missing".to_owned(), hex),
        hex(*expected)
    )]
    PaletteMismatch {
        /// The id, which is the number of the palette's entry.
        id: u8,
        /// Its colour in the mask's palette; `None` when the palette is too short.
        found: Option<[u8; 3]>,
        /// The class's name.
        class: String,
        /// Its colour in the class list.
        expected: [u8; 3],
    },
    /// Mask and image do not cover the same pixels.
    #[error(
        "the mask is {mask_w} x {mask_h} pixels, but its image {image} is {width} x {height}{}",
        if (mask_w, mask_h) == (height, width) { EXIF_HINT } else { "" }
    )]
    Size {
        /// Width of the mask.
        mask_w: u32,
        /// Height of the mask.
        mask_h: u32,
        /// The image's path.
        image: String,
        /// Width of the image.
        width: u32,
        /// Height of the image.
        height: u32,
    },
    /// The decoder failed in a way it should not.
    #[error("the PNG decoder crashed on the mask ({0})")]
    Crashed(String),
}
