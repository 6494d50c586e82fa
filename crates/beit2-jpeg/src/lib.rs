//! JPEG to RGB with exactly the pixels of libjpeg-turbo – and so of Pillow – in Rust, whole or only a region.
//!
//! JPEG leaves the inverse transform, the enlarging of subsampled colour and the conversion to RGB to the decoder. What
//! networks are trained on comes from libjpeg-turbo nearly always: `islow` transform, triangle filter, 16-bit fixed-point
//! colours. This crate does the same integer arithmetic, with AVX2 where the CPU has it, and decodes only the blocks that a
//! region of the image needs.
//!
//! It refuses what is rare ([`Unusual`]): four channels, RGB inside, arithmetic coding, 12 bits, sampling other than 1 × 1,
//! 2 × 1, 1 × 2 and 2 × 2, incomplete progressive images, and every damaged stream. It never repairs: whoever wants the
//! pixels that libjpeg-turbo makes of such a file asks libjpeg-turbo.
//!
//! ```no_run
//! use beit2_jpeg::{Jpeg, Region};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let bytes = std::fs::read("photo.jpg")?;
//! let jpeg = Jpeg::open(&bytes)?;
//! let rgb = jpeg.decode(Region { left: 0, top: 0, width: jpeg.width(), height: jpeg.height() })?;
//! assert_eq!(rgb.len(), jpeg.width() as usize * jpeg.height() as usize * 3);
//! # Ok(())
//! # }
//! ```
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod bits;
mod blocks;
mod color;
mod frame;
mod huffman;
mod idct;
mod markers;
mod progressive;
mod rows;
mod scratch;
mod sequential;

use std::error::Error;
use std::fmt;

use crate::blocks::Planes;
use crate::frame::Frame;
use crate::markers::Segments;

/// Part of an image, in pixels; not empty, and inside the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First column.
    pub left: u32,
    /// First row.
    pub top: u32,
    /// Number of columns.
    pub width: u32,
    /// Number of rows.
    pub height: u32,
}

/// Why a file was refused: it is rare or damaged. Another decoder may still read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unusual(&'static str);

impl fmt::Display for Unusual {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "this JPEG needs another decoder: {}", self.0)
    }
}

impl Error for Unusual {}

/// A JPEG whose headers have been read.
#[derive(Clone, Debug)]
pub struct Jpeg<'a> {
    segments: Segments<'a>,
    frame: Frame,
}

impl<'a> Jpeg<'a> {
    /// Reads the headers up to the first scan; no pixel is decoded and nothing large is allocated.
    ///
    /// # Errors
    /// Files that this crate leaves to others ([`Unusual`]).
    pub fn open(bytes: &'a [u8]) -> Result<Self, Unusual> {
        let mut segments = Segments::new(bytes)?;
        let frame = segments.read_frame()?;
        Ok(Self { segments, frame })
    }

    /// Columns of the image.
    #[must_use]
    pub fn width(&self) -> u32 {
        self.frame.width
    }

    /// Rows of the image.
    #[must_use]
    pub fn height(&self) -> u32 {
        self.frame.height
    }

    /// The pixels of a region, `[height, width, 3]`, row-major RGB; grey is repeated. They are those of the whole image's
    /// decoding. A damaged stream behind the last row that is needed is not noticed.
    ///
    /// # Errors
    /// An empty region or one that is not inside the image, and damaged files ([`Unusual`]).
    pub fn decode(&self, region: Region) -> Result<Vec<u8>, Unusual> {
        let inside = |start: u32, length: u32, all: u32| {
            length > 0 && start.checked_add(length).is_some_and(|end| end <= all)
        };
        if !inside(region.left, region.width, self.width())
            || !inside(region.top, region.height, self.height())
        {
            return Err(Unusual("the region is empty or not inside the image"));
        }
        let mut frame = self.frame.clone();
        let mut segments = self.segments.clone();
        let mut planes = Planes::new(&frame, region);
        match frame.progressive {
            true => progressive::decode(&mut segments, &mut frame, &mut planes)?,
            false => sequential::decode(&mut segments, &mut frame, &mut planes)?,
        }
        Ok(rows::to_rgb(&frame, &planes, region))
    }
}
