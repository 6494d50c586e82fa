//! From the ids in mask files to class numbers.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

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

/// Mask values that stand for other ids: `255=1` for masks of 0 and 255, `128=1, 255=2` for several. It is applied before
/// [`LabelRule`], so a value may also become the ignored id. Colours of RGB masks have no values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdMap(Vec<(u8, u8)>);

impl IdMap {
    /// Whether every value stands for itself.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The id that a value stands for.
    #[must_use]
    pub fn id(&self, value: u8) -> u8 {
        self.0.iter().find(|(from, _)| *from == value).map_or(value, |&(_, id)| id)
    }

    /// Turns the values of a mask into ids.
    pub(super) fn apply(&self, values: &mut [u8]) {
        if !self.0.is_empty() {
            let ids: [u8; 256] = std::array::from_fn(|value| self.id(value as u8));
            values.iter_mut().for_each(|value| *value = ids[usize::from(*value)]);
        }
    }

    /// Pairs of value and id, in order.
    pub(super) fn pairs(&self) -> &[(u8, u8)] {
        &self.0
    }
}

impl fmt::Display for IdMap {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (value, id)) in self.0.iter().enumerate() {
            write!(out, "{}{value}={id}", if at == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

impl FromStr for IdMap {
    type Err = String;

    /// Pairs `VALUE=ID` with commas between them.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut pairs = Vec::new();
        for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
            let parsed = pair
                .split_once('=')
                .and_then(|(value, id)| Some((value.trim().parse().ok()?, id.trim().parse().ok()?)));
            let Some((value, id)) = parsed else {
                return Err(format!("'{pair}' is no pair of mask value and id; write for example 255=1"));
            };
            if pairs.iter().any(|&(other, _)| other == value) {
                return Err(format!("the mask value {value} has two ids; give it one"));
            }
            pairs.push((value, id));
        }
        Ok(Self(pairs))
    }
}

impl Serialize for IdMap {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for IdMap {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
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
    fn values_stand_for_ids() {
        let map: IdMap = "255=1, 7 = 0".parse().unwrap();
        assert_eq!([255, 7, 3].map(|value| map.id(value)), [1, 0, 3]);
        assert_eq!((map.to_string().as_str(), map.is_empty()), ("255=1, 7=0", false));
        assert!("".parse::<IdMap>().unwrap().is_empty());
        let why = |text: &str| text.parse::<IdMap>().unwrap_err();
        assert!(
            why("256=1").contains("255=1") && why("1").contains("'1'") && why("1=2,1=3").contains("two ids")
        );
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
