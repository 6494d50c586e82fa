//! Where samples go: a plane for each component that holds the blocks of a region, and the queue in front of the transform.

use crate::Region;
use crate::frame::{BLOCK, Component, Frame};
use crate::idct::{self, Block, Samples};
use crate::scratch::Scratch;

/// What vector code may read behind the last sample of a plane.
const SLACK: usize = 32;

/// Samples of the blocks of a component that a region needs.
#[derive(Debug)]
pub(crate) struct Plane {
    /// First and behind the last block, across and down.
    pub(crate) columns: (usize, usize),
    pub(crate) rows: (usize, usize),
    /// Samples of a row.
    stride: usize,
    /// Every block is written before a row is read; what lies behind them means nothing.
    samples: Scratch,
}

impl Plane {
    fn new(frame: &Frame, component: &Component, region: Region) -> Self {
        let blocks = |start: u32, length: u32, factor: usize, available: usize| {
            let (first, last) = (start as usize, (start + length - 1) as usize);
            // Enlarging looks at one neighbour on each side.
            let margin = usize::from(factor > 1);
            let first = (first / factor).saturating_sub(margin);
            let last = (last / factor + margin).min(available - 1);
            (first / 8, last / 8 + 1)
        };
        let columns = blocks(region.left, region.width, frame.max_h / component.h, component.width);
        let rows = blocks(region.top, region.height, frame.max_v / component.v, component.height);
        let stride = (columns.1 - columns.0) * 8;
        let samples = Scratch::new(stride * (rows.1 - rows.0) * 8 + SLACK);
        Self { columns, rows, stride, samples }
    }

    /// Whether the region needs a block.
    #[inline(always)]
    pub(crate) fn holds(&self, x: usize, y: usize) -> bool {
        (self.columns.0..self.columns.1).contains(&x) && (self.rows.0..self.rows.1).contains(&y)
    }

    /// Row `y` of the component from column `x` on, both of which the region needs; more samples than the row has may
    /// follow.
    pub(crate) fn row(&self, x: usize, y: usize) -> &[u8] {
        &self.samples[(y - self.rows.0 * 8) * self.stride + x - self.columns.0 * 8..]
    }

    #[inline(always)]
    fn store(&mut self, x: usize, y: usize, samples: &Samples) {
        let first = (y - self.rows.0) * 8 * self.stride + (x - self.columns.0) * 8;
        let rows = self.samples[first..].chunks_mut(self.stride);
        for (to, from) in rows.zip(samples) {
            to[..8].copy_from_slice(from);
        }
    }
}

/// The planes of all components.
#[derive(Debug)]
pub(crate) struct Planes(pub(crate) Vec<Plane>);

impl Planes {
    pub(crate) fn new(frame: &Frame, region: Region) -> Self {
        Self(frame.components.iter().map(|component| Plane::new(frame, component, region)).collect())
    }
}

/// A place for a block: component, column, row.
pub(crate) type Place = (usize, usize, usize);

/// Blocks that wait for a second one, since two are transformed at a time.
#[derive(Debug)]
pub(crate) struct Queue {
    blocks: [Block; 2],
    /// Of the block that waits, if one does.
    waiting: Option<Place>,
}

impl Queue {
    pub(crate) fn new() -> Self {
        Self { blocks: [Block([0; BLOCK]); 2], waiting: None }
    }

    /// A block of zeros, to be filled and given to [`Self::push`].
    #[inline(always)]
    pub(crate) fn next(&mut self) -> &mut Block {
        &mut self.blocks[usize::from(self.waiting.is_some())]
    }

    /// Takes the block that [`Self::next`] gave; `flat`: only its first coefficient may differ from zero.
    #[inline(always)]
    pub(crate) fn push(&mut self, planes: &mut Planes, place: Place, flat: bool) {
        let (component, x, y) = place;
        if flat {
            let first = std::mem::take(&mut self.next().0[0]);
            return planes.0[component].store(x, y, &[[idct::flat(first); 8]; 8]);
        }
        match self.waiting.take() {
            None => self.waiting = Some(place),
            Some(first) => self.transform(planes, &[first, place]),
        }
    }

    /// Transforms the block that still waits.
    pub(crate) fn finish(&mut self, planes: &mut Planes) {
        if let Some(place) = self.waiting.take() {
            self.transform(planes, &[place]);
        }
    }

    #[inline(always)]
    fn transform(&mut self, planes: &mut Planes, places: &[Place]) {
        let samples = idct::two_blocks(&self.blocks);
        self.blocks = [Block([0; BLOCK]); 2];
        for (&(component, x, y), samples) in places.iter().zip(&samples) {
            planes.0[component].store(x, y, samples);
        }
    }
}
