//! Images that are there twice: the same bytes, or nearly the same image.
//!
//! Two images count as nearly the same when
//! - their difference hashes differ in at most [`NEAR_BITS`] of 64 bits. Such a hash is computed from the grey image
//!   (luma of BT.601), averaged over the cells of a grid of 9 × 8: a bit says whether a cell is brighter than the one to
//!   its left;
//! - and the means of the absolute differences of their cells, each image's brightness taken off, are at most [`NEAR_GREY`] of 255.
//!
//! Pairs are found without comparing all: two hashes that differ in at most 5 bits agree in at least three of their eight
//! bytes, so only those that share one of the 56 triples are compared. In a group of more than [`CROWD`] images that share
//! a triple (nearly empty images), each is compared with the next [`CROWD`] in the order of the hashes only.

use std::collections::HashMap;

use serde::Serialize;

use super::NAMED;

/// Most differing bits of two hashes of nearly the same image.
pub const NEAR_BITS: u32 = 5;
/// Largest mean difference of the cells of nearly the same image, of 255.
pub const NEAR_GREY: f64 = 8.0;
/// Largest group in which everything is compared with everything.
const CROWD: usize = 512;

/// Columns and rows of the grid.
const GRID: (usize, usize) = (9, 8);

/// What identifies an image.
#[derive(Clone, Copy, Debug)]
pub(super) struct Print {
    /// Length and hash of the encoded bytes.
    pub(super) content: (u64, u64),
    /// The difference hash; `None` of a image without contrast, in which there is nothing to compare.
    hash: Option<u64>,
    /// The grid's grey values.
    cells: [u8; GRID.0 * GRID.1],
}

impl Print {
    /// Of encoded bytes and `[height, width, channels]` pixels; of channels beyond the third nothing is used.
    pub(super) fn of(bytes: &[u8], (width, height): (usize, usize), pixels: &[u8]) -> Self {
        let content = (bytes.len() as u64, crate::fingerprint::fnv1a(bytes));
        let cells = grid(width, height, pixels);
        let (darkest, brightest) = (cells.iter().min(), cells.iter().max());
        let flat = brightest.zip(darkest).is_none_or(|(bright, dark)| bright - dark < 8);
        let mut hash = 0u64;
        for row in 0..GRID.1 {
            for column in 0..GRID.0 - 1 {
                let at = row * GRID.0 + column;
                // A column is a byte: a plain sky at the top then differs in some bits of each byte, not in few bytes.
                hash |= u64::from(cells[at + 1] > cells[at]) << (column * 8 + row);
            }
        }
        Self { content, hash: (!flat).then_some(hash), cells }
    }

    fn is_near(&self, other: &Self) -> bool {
        let (Some(a), Some(b)) = (self.hash, other.hash) else { return false };
        if (a ^ b).count_ones() > NEAR_BITS {
            return false;
        }
        let mean = |cells: &[u8]| cells.iter().map(|&v| f64::from(v)).sum::<f64>() / cells.len() as f64;
        let (mean_a, mean_b) = (mean(&self.cells), mean(&other.cells));
        let difference: f64 = self
            .cells
            .iter()
            .zip(&other.cells)
            .map(|(&a, &b)| (f64::from(a) - mean_a - f64::from(b) + mean_b).abs())
            .sum();
        difference <= NEAR_GREY * self.cells.len() as f64
    }
}

/// Mean grey values of the cells of the grid. A cell has at least one pixel.
fn grid(width: usize, height: usize, pixels: &[u8]) -> [u8; GRID.0 * GRID.1] {
    let mut cells = [0; GRID.0 * GRID.1];
    let channels = pixels.len() / (width * height).max(1);
    if channels == 0 {
        return cells;
    }
    let grey = |x: usize, y: usize| {
        let pixel = &pixels[(y * width + x) * channels..][..channels];
        match pixel {
            [r, g, b, ..] => 299 * u64::from(*r) + 587 * u64::from(*g) + 114 * u64::from(*b),
            [v, ..] => 1000 * u64::from(*v),
            [] => 0,
        }
    };
    let range = |cell: usize, cells: usize, side: usize| {
        let (start, end) = (cell * side / cells, (cell + 1) * side / cells);
        start..end.max(start + 1).min(side.max(1))
    };
    for row in 0..GRID.1 {
        for column in 0..GRID.0 {
            let (xs, ys) = (range(column, GRID.0, width), range(row, GRID.1, height));
            let count = (xs.len() * ys.len()) as u64;
            let sum: u64 = ys.flat_map(|y| xs.clone().map(move |x| (x, y))).map(|(x, y)| grey(x, y)).sum();
            cells[row * GRID.0 + column] = ((sum + 500 * count) / (1000 * count.max(1))) as u8;
        }
    }
    cells
}

/// Two images by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pair {
    /// The earlier one; of training and validation, the training image.
    pub first: String,
    /// The other.
    pub second: String,
}

/// Images that are there more than once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Duplicates {
    /// Images that could go without loss: all of a group but one.
    pub extra: usize,
    /// Groups of equal images.
    pub groups: usize,
    /// Validation images that are like a training image.
    pub across: usize,
    /// The first few pairs, those across training and validation first.
    pub pairs: Vec<Pair>,
}

/// Groups by a union-find structure.
struct Groups(Vec<u32>);

impl Groups {
    fn new(len: usize) -> Self {
        Self((0..len as u32).collect())
    }

    fn root(&mut self, mut at: usize) -> usize {
        while self.0[at] as usize != at {
            self.0[at] = self.0[self.0[at] as usize];
            at = self.0[at] as usize;
        }
        at
    }

    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.root(a), self.root(b));
        // The earlier image stands for the group.
        self.0[a.max(b)] = a.min(b) as u32;
    }
}

/// Exact duplicates, and near-duplicates among the contents that differ. Of the images, the first `train` are training
/// images and the others validation images.
pub(super) fn find(
    prints: &[Option<Print>],
    train: usize,
    name: impl Fn(usize) -> String,
) -> (Duplicates, Duplicates) {
    let mut same = Groups::new(prints.len());
    let mut first: HashMap<(u64, u64), usize> = HashMap::new();
    let mut different = Vec::new();
    for (at, print) in prints.iter().enumerate() {
        let Some(print) = print else { continue };
        match first.get(&print.content) {
            Some(&earlier) => same.join(earlier, at),
            None => {
                first.insert(print.content, at);
                different.push((at, *print));
            }
        }
    }
    let mut near = Groups::new(prints.len());
    join_near(&different, &mut near);
    // A content that is on both sides would hide that its neighbours are, too; so all copies are with it.
    let exact = summary(&mut same, prints, train, &name, |_| true);
    let alone: Vec<bool> = (0..prints.len()).map(|at| same.root(at) == at).collect();
    let similar = summary(&mut near, prints, train, &name, |at| alone[at]);
    (exact, similar)
}

/// For each image the first one that it equals, or nearly equals, directly or by way of others; itself when it is alone.
pub(super) fn groups(prints: &[Option<Print>]) -> Vec<usize> {
    let mut groups = Groups::new(prints.len());
    let mut first: HashMap<(u64, u64), usize> = HashMap::new();
    let mut different = Vec::new();
    for (at, print) in prints.iter().enumerate() {
        let Some(print) = print else { continue };
        match first.get(&print.content) {
            Some(&earlier) => groups.join(earlier, at),
            None => {
                first.insert(print.content, at);
                different.push((at, *print));
            }
        }
    }
    join_near(&different, &mut groups);
    (0..prints.len()).map(|at| groups.root(at)).collect()
}

fn join_near(prints: &[(usize, Print)], groups: &mut Groups) {
    let hashed: Vec<(u64, usize)> =
        (0..prints.len()).filter_map(|at| Some((prints[at].1.hash?, at))).collect();
    let mut keyed: Vec<(u32, u64, usize)> = Vec::with_capacity(hashed.len());
    for a in 0..8u32 {
        for b in a + 1..8 {
            for c in b + 1..8 {
                let byte = |hash: u64, at: u32| ((hash >> (8 * at)) & 0xFF) as u32;
                keyed.clear();
                keyed.extend(
                    hashed.iter().map(|&(hash, at)| {
                        (byte(hash, a) << 16 | byte(hash, b) << 8 | byte(hash, c), hash, at)
                    }),
                );
                keyed.sort_unstable();
                for group in keyed.chunk_by(|one, other| one.0 == other.0) {
                    for (place, &(_, _, one)) in group.iter().enumerate() {
                        for &(_, _, other) in group[place + 1..].iter().take(CROWD) {
                            let ((at, print), (other_at, other_print)) = (&prints[one], &prints[other]);
                            if print.is_near(other_print) {
                                groups.join(*at, *other_at);
                            }
                        }
                    }
                }
            }
        }
    }
}

fn summary(
    groups: &mut Groups,
    prints: &[Option<Print>],
    train: usize,
    name: &impl Fn(usize) -> String,
    counts: impl Fn(usize) -> bool,
) -> Duplicates {
    let mut members: HashMap<usize, Vec<usize>> = HashMap::new();
    for at in (0..prints.len()).filter(|&at| prints[at].is_some() && counts(at)) {
        members.entry(groups.root(at)).or_default().push(at);
    }
    let mut found: Vec<Vec<usize>> = members.into_values().filter(|group| group.len() > 1).collect();
    found.sort_unstable();
    let crosses = |group: &Vec<usize>| group[0] < train && group[group.len() - 1] >= train;
    let across = found
        .iter()
        .filter(|group| crosses(group))
        .map(|group| group.iter().filter(|&&at| at >= train).count());
    let across = across.sum();
    let pair = |group: &Vec<usize>| {
        let second = match crosses(group) {
            true => group.iter().copied().find(|&at| at >= train),
            false => group.get(1).copied(),
        };
        Pair { first: name(group[0]), second: second.map(name).unwrap_or_default() }
    };
    let (over, inside): (Vec<&Vec<usize>>, Vec<&Vec<usize>>) = found.iter().partition(|group| crosses(group));
    Duplicates {
        extra: found.iter().map(|group| group.len() - 1).sum(),
        groups: found.len(),
        across,
        pairs: over.into_iter().chain(inside).take(NAMED).map(pair).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A image of soft spots that differ for every seed.
    fn image(seed: u64, side: usize, noise: u8) -> Print {
        let spot = |k: u64| {
            let mix = (seed * 31 + k).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 20;
            ((mix % 100) as f64 / 100.0, (mix / 100 % 100) as f64 / 100.0, (mix / 10_000 % 200) as f64)
        };
        let mut pixels = Vec::new();
        for at in 0..side * side {
            let (x, y) = ((at % side) as f64 / side as f64, (at / side) as f64 / side as f64);
            let light: f64 = (0..8)
                .map(|k| {
                    let (cx, cy, strength) = spot(k);
                    strength * (-40.0 * ((x - cx).powi(2) + (y - cy).powi(2))).exp()
                })
                .sum();
            let grain = if noise > 0 { (at * 7919 % usize::from(noise)) as f64 } else { 0.0 };
            pixels.extend([(light + grain).min(255.0) as u8; 3]);
        }
        Print::of(&pixels, (side, side), &pixels)
    }

    #[test]
    fn cells_are_means_of_grey() {
        let pixels: Vec<u8> = (0..9 * 8).flat_map(|at| [at as u8; 3]).collect();
        let cells = grid(9, 8, &pixels);
        assert!(cells.iter().enumerate().all(|(at, &cell)| usize::from(cell) == at));
        assert_eq!(grid(1, 1, &[10, 20, 30])[0], ((299 * 10 + 587 * 20 + 114 * 30 + 500) / 1000) as u8);
    }

    #[test]
    fn copies_and_near_copies_within_and_across() {
        let mut prints: Vec<Option<Print>> = (0..40).map(|seed| Some(image(seed, 64, 0))).collect();
        prints[5] = prints[3]; // the same bytes
        prints[7] = None; // unreadable
        prints.push(Some(image(11, 64, 4))); // with noise, in validation
        prints.push(Some(image(12, 48, 0))); // smaller, in validation
        prints.push(prints[20]); // the same bytes, in validation
        let (exact, near) = find(&prints, 40, |at| at.to_string());
        assert_eq!((exact.extra, exact.groups, exact.across), (2, 2, 1), "{exact:?}");
        let pair = |first: &str, second: &str| Pair { first: first.into(), second: second.into() };
        assert_eq!(exact.pairs, [pair("20", "42"), pair("3", "5")]);
        assert_eq!((near.extra, near.groups, near.across), (2, 2, 2), "{near:?}");
        assert_eq!(near.pairs, [pair("11", "40"), pair("12", "41")]);
    }

    #[test]
    fn copies_and_near_copies_are_one_group() {
        let mut prints: Vec<Option<Print>> = (0..6).map(|seed| Some(image(seed, 64, 0))).collect();
        prints[4] = prints[1]; // the same bytes
        prints[5] = Some(image(1, 48, 0)); // smaller
        prints[3] = None;
        assert_eq!(groups(&prints), [0, 1, 2, 3, 1, 1]);
    }

    #[test]
    fn pictures_without_contrast_are_not_compared() {
        let flat = |value: u8| Some(Print::of(&[value], (4, 4), &[value; 48]));
        let (exact, near) = find(&[flat(1), flat(2), flat(3)], 3, |at| at.to_string());
        assert_eq!((exact, near), (Duplicates::default(), Duplicates::default()));
    }

    #[test]
    fn a_hundred_thousand_do_not_take_long() {
        // Random hashes: comparing all would take five thousand million steps.
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state ^ state >> 29
        };
        let prints: Vec<Option<Print>> = (0..100_000u64)
            .map(|at| Some(Print { content: (at, at), hash: Some(next()), cells: [0; 72] }))
            .collect();
        let mut all = prints.clone();
        all.push(Some(Print {
            hash: prints[77].unwrap().hash.map(|hash| hash ^ 0x8000_0100_0000_0011),
            content: (9, 0),
            cells: [0; 72],
        }));
        let (_, near) = find(&all, 100_000, |at| at.to_string());
        assert_eq!(near.across, 1, "{near:?}");
    }
}
