//! What a JPEG's headers say of the image: sizes, components, sampling.

use std::sync::Arc;

use crate::Unusual;
use crate::huffman::Huffman;

/// Values of a block.
pub(crate) const BLOCK: usize = 64;

/// Position in a block, row by row, of the coefficients in the order in which they are stored. ITU-T T.81, figure A.6.
pub(crate) const ZIGZAG: [u8; BLOCK] = zigzag();

const fn zigzag() -> [u8; BLOCK] {
    let mut order = [0; BLOCK];
    let (mut x, mut y, mut at) = (0, 0, 0);
    while at < BLOCK {
        order[at] = y * 8 + x;
        // Even diagonals run up and to the right, odd ones down and to the left.
        if (x + y) % 2 == 0 {
            if x == 7 {
                y += 1;
            } else if y == 0 {
                x += 1;
            } else {
                x += 1;
                y -= 1;
            }
        } else if y == 7 {
            x += 1;
        } else if x == 0 {
            y += 1;
        } else {
            x -= 1;
            y += 1;
        }
        at += 1;
    }
    order
}

/// Quantisation steps in the order in which coefficients are stored. 16-bit steps wrap, as in libjpeg-turbo.
pub(crate) type Quantization = [i16; BLOCK];

/// One colour component.
#[derive(Clone, Debug)]
pub(crate) struct Component {
    pub(crate) id: u8,
    /// Sampling factors, across and down: blocks of an MCU.
    pub(crate) h: usize,
    pub(crate) v: usize,
    /// Samples that the image has, without padding.
    pub(crate) width: usize,
    pub(crate) height: usize,
    /// Which quantisation table the header names.
    pub(crate) table: usize,
    /// The table's contents when the component's first scan began.
    pub(crate) quantization: Option<Box<Quantization>>,
}

impl Component {
    /// Blocks across and down that have samples of the image.
    pub(crate) fn blocks(&self) -> (usize, usize) {
        (self.width.div_ceil(8), self.height.div_ceil(8))
    }
}

/// The image's header.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) progressive: bool,
    pub(crate) components: Vec<Component>,
    /// Largest sampling factors.
    pub(crate) max_h: usize,
    pub(crate) max_v: usize,
}

impl Frame {
    /// MCUs across and down in a scan of several components.
    pub(crate) fn mcus(&self) -> (usize, usize) {
        let count = |length: u32, factor: usize| (length as usize).div_ceil(8 * factor);
        (count(self.width, self.max_h), count(self.height, self.max_v))
    }

    /// Whether the sampling is one that this crate enlarges as libjpeg-turbo does.
    pub(crate) fn check_sampling(&self) -> Result<(), Unusual> {
        let [first, rest @ ..] = &self.components[..] else {
            return Err(Unusual("it has no components"));
        };
        if rest.is_empty() {
            return Ok(());
        }
        let usual = rest.iter().all(|component| (component.h, component.v) == (1, 1));
        if !usual || first.h > 2 || first.v > 2 {
            return Err(Unusual("its colours are sampled in a rare way"));
        }
        // libjpeg-turbo repeats the samples of so narrow an image instead of interpolating.
        if first.h == 2 && rest.iter().any(|component| component.width <= 2) {
            return Err(Unusual("it is at most four pixels wide"));
        }
        Ok(())
    }
}

/// A component's part of a scan.
#[derive(Clone, Debug)]
pub(crate) struct ScanPart {
    /// Number of the component in the frame.
    pub(crate) component: usize,
    pub(crate) dc: Option<Arc<Huffman>>,
    pub(crate) ac: Option<Arc<Huffman>>,
}

/// The header of a scan.
#[derive(Clone, Debug)]
pub(crate) struct Scan {
    pub(crate) parts: Vec<ScanPart>,
    /// Of a progressive scan: first and last coefficient, and the bits known before and after.
    pub(crate) spectral: (usize, usize),
    pub(crate) approximation: (u8, u8),
    /// MCUs between restart markers; 0: there are none.
    pub(crate) restart_interval: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_zigzag_visits_every_place_once() {
        let mut sorted = ZIGZAG;
        sorted.sort_unstable();
        assert!(sorted.iter().enumerate().all(|(at, &place)| at == usize::from(place)));
        assert_eq!(ZIGZAG[..10], [0, 1, 8, 16, 9, 2, 3, 10, 17, 24]);
        assert_eq!(ZIGZAG[60..], [47, 55, 62, 63]);
    }
}
