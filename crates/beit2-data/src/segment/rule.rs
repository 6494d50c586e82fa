//! From the ids in mask files to class numbers.

use std::fmt;

use crate::segment::label_map::IGNORE;

/// Most classes that 8-bit masks can tell apart: one id is left for pixels without a label.
pub const MAX_CLASSES: usize = 255;

/// How the ids in mask files become class numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LabelRule {
    /// Number of classes, at most [`MAX_CLASSES`].
    pub classes: usize,
    /// Whether id 0 means "no label" and the classes count from 1, as in ADE20K (docs/method.md §5).
    pub reduce_zero_label: bool,
    /// A further id that means "no label".
    pub ignore: u8,
}

impl LabelRule {
    /// The class number of an id, [`IGNORE`] for "no label", or `None` for an id that has no meaning.
    ///
    /// With the zero label reduced, 0 and 255 are ignored and the others go down by one.
    #[must_use]
    pub fn class(&self, id: u8) -> Option<u8> {
        if id == self.ignore || (self.reduce_zero_label && matches!(id, 0 | IGNORE)) {
            return Some(IGNORE);
        }
        let class = if self.reduce_zero_label { id - 1 } else { id };
        (usize::from(class) < self.classes).then_some(class)
    }

    /// Id in a mask file of a class; the opposite of [`Self::class`].
    #[must_use]
    pub fn id(&self, class: u8) -> u8 {
        if self.reduce_zero_label { class.saturating_add(1) } else { class }
    }
}

impl fmt::Display for LabelRule {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { classes, reduce_zero_label, ignore } = *self;
        match (reduce_zero_label, ignore) {
            (false, _) => {
                write!(out, "{classes} classes have the ids 0 to {}, and {ignore} is ignored", classes - 1)
            }
            (true, 0 | IGNORE) => {
                write!(out, "{classes} classes have the ids 1 to {classes}, and 0 and 255 are ignored")
            }
            (true, _) => {
                write!(
                    out,
                    "{classes} classes have the ids 1 to {classes}, and 0, {ignore} and 255 are ignored"
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_label_as_in_the_reference() {
        let rule = LabelRule { classes: 150, reduce_zero_label: true, ignore: 255 };
        let classes = [0, 1, 150, 151, 254, 255].map(|id| rule.class(id));
        assert_eq!(classes, [Some(255), Some(0), Some(149), None, None, Some(255)]);
        assert_eq!((rule.id(0), rule.id(149)), (1, 150));
        assert_eq!(rule.to_string(), "150 classes have the ids 1 to 150, and 0 and 255 are ignored");
    }

    #[test]
    fn plain_ids_and_another_ignored_one() {
        let rule = LabelRule { classes: 3, reduce_zero_label: false, ignore: 9 };
        assert_eq!([0, 2, 3, 9, 255].map(|id| rule.class(id)), [Some(0), Some(2), None, Some(255), None]);
        assert_eq!(rule.to_string(), "3 classes have the ids 0 to 2, and 9 is ignored");
        let both = LabelRule { reduce_zero_label: true, ..rule };
        assert_eq!([0, 1, 9, 255].map(|id| both.class(id)), [Some(255), Some(0), Some(255), Some(255)]);
        let full = LabelRule { classes: 255, reduce_zero_label: false, ignore: 255 };
        assert_eq!((0..=255).filter(|&id| full.class(id).is_some()).count(), 256);
    }
}
