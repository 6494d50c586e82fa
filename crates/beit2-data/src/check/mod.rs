//! A look at data before they are used: what can be told from names, labels, masks and a few images in no time
//! ([`labels()`], [`masks()`], [`sample()`], [`shared()`]), and what only decoding everything shows ([`images()`]).
//!
//! Nothing here prints. What is wrong comes back as sentences: an error would make a result that means nothing, a warning
//! may be meant.

mod alike;
mod duplicates;
mod images;
mod labels;
mod masks;
mod parallel;
mod sample;
mod shared;
mod sizes;

use serde::Serialize;

pub use self::alike::{Alike, alike};
pub use self::duplicates::{Duplicates, NEAR_BITS, NEAR_GREY, Pair};
pub use self::images::{ImageReport, ImagesConfig, Named, Spread, images};
pub use self::labels::{class_counts, labels};
pub use self::masks::{MaskClasses, masks, masks_to_measure};
pub use self::sample::sample;
pub use self::shared::shared;
pub use self::sizes::{crops_to_enlarge, sizes};

/// Most names that a list of names holds.
pub(crate) const NAMED: usize = 10;

/// A set of images and what messages call it.
#[derive(Debug)]
pub struct Set<'a, S: ?Sized> {
    /// As the user named it.
    pub name: &'a str,
    /// The images.
    pub source: &'a std::sync::Arc<S>,
}

impl<S: ?Sized> Clone for Set<'_, S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S: ?Sized> Copy for Set<'_, S> {}

/// What is wrong with data, one sentence each.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Findings {
    /// What may be meant.
    pub warnings: Vec<String>,
    /// What makes results that mean nothing.
    pub errors: Vec<String>,
}

impl Findings {
    /// Adds those of another look.
    pub fn extend(&mut self, other: Self) {
        self.warnings.extend(other.warnings);
        self.errors.extend(other.errors);
    }
}

/// At most `most` numbers below `len`, evenly spread and always the same.
fn spread(len: usize, most: usize) -> Vec<usize> {
    let count = len.min(most);
    (0..count).map(|at| (at as u128 * len as u128 / count as u128) as usize).collect()
}

/// `a, b, c and 5 more`, for lists of classes.
fn listed<S: AsRef<str>>(names: &[S]) -> String {
    let shown: Vec<&str> = names.iter().take(NAMED).map(AsRef::as_ref).collect();
    match names.len().saturating_sub(NAMED) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_spread_over_everything() {
        assert_eq!(spread(3, 5), [0, 1, 2]);
        assert_eq!(spread(10, 5), [0, 2, 4, 6, 8]);
        assert!(spread(0, 5).is_empty());
    }
}
