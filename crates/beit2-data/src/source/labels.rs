//! Labels as tables and JSON write them → class numbers.

use std::collections::BTreeSet;

use serde_json::Value as Json;

/// One value of a label.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Value {
    Number(u64),
    Name(String),
}

impl Value {
    /// Text that may be a number; empty text is no label.
    pub(super) fn of_text(text: &str) -> Option<Self> {
        let text = text.trim();
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        match digits.then(|| text.parse()) {
            Some(Ok(number)) => Some(Self::Number(number)),
            _ => (!text.is_empty()).then(|| Self::Name(text.to_owned())),
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Number(number) => number.to_string(),
            Self::Name(name) => name.clone(),
        }
    }
}

/// The labels of one sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RawLabel {
    /// Unknown.
    None,
    /// One class.
    One(Value),
    /// A set of classes, which may be empty.
    Many(Vec<Value>),
}

/// Class numbers of all samples.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Labels {
    /// Names of the classes; empty when no sample has a label.
    pub(super) classes: Vec<String>,
    /// Of each sample; empty when no sample has a label.
    of_sample: Vec<SampleLabel>,
    /// Whether a sample may have several.
    pub(super) multi: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum SampleLabel {
    None,
    One(u32),
    Many(Box<[u32]>),
}

impl Labels {
    /// Numbers the classes: by `names`, where numbers count and names are looked up; else the distinct values in
    /// numerical order if all are numbers, and sorted by their bytes if not.
    ///
    /// # Errors
    /// A sentence about the first sample, by number, whose label is not in `names`.
    pub(super) fn new(raw: &[RawLabel], names: Option<&[String]>) -> Result<Self, (usize, String)> {
        if raw.iter().all(|label| *label == RawLabel::None) {
            return Ok(Self::default());
        }
        let multi = raw.iter().any(|label| matches!(label, RawLabel::Many(_)));
        let values = raw.iter().flat_map(RawLabel::values);
        let (classes, sorted): (Vec<String>, Option<Vec<Value>>) = match names {
            Some(names) => (names.to_vec(), None),
            None => {
                let mut sorted: Vec<Value> = values.cloned().collect::<BTreeSet<_>>().into_iter().collect();
                if sorted.iter().any(|value| matches!(value, Value::Name(_))) {
                    sorted.sort_by_key(Value::name);
                }
                (sorted.iter().map(Value::name).collect(), Some(sorted))
            }
        };
        let by_name: std::collections::HashMap<&str, u32> =
            classes.iter().enumerate().map(|(number, name)| (name.as_str(), number as u32)).collect();
        let number_of = |value: &Value| -> Result<u32, String> {
            let found = match (value, &sorted) {
                (Value::Number(number), None) => {
                    u32::try_from(*number).ok().filter(|&number| (number as usize) < classes.len())
                }
                (value, _) => by_name.get(value.name().as_str()).copied(),
            };
            found.ok_or_else(|| {
                format!("its label '{}' is not one of the {} classes", value.name(), classes.len())
            })
        };
        let mut of_sample = Vec::with_capacity(raw.len());
        for (index, label) in raw.iter().enumerate() {
            let numbered = match label {
                RawLabel::None => Ok(SampleLabel::None),
                RawLabel::One(value) if !multi => number_of(value).map(SampleLabel::One),
                label => label
                    .values()
                    .map(number_of)
                    .collect::<Result<BTreeSet<u32>, _>>()
                    .map(|set| SampleLabel::Many(set.into_iter().collect())),
            };
            of_sample.push(numbered.map_err(|problem| (index, problem))?);
        }
        Ok(Self { classes, of_sample, multi })
    }

    /// The class of a sample that has exactly one.
    pub(super) fn one(&self, index: usize) -> Option<u32> {
        match self.of_sample.get(index)? {
            SampleLabel::One(class) => Some(*class),
            SampleLabel::None | SampleLabel::Many(_) => None,
        }
    }

    /// All classes of a sample, ascending; `None` where they are unknown.
    pub(super) fn all(&self, index: usize) -> Option<&[u32]> {
        match self.of_sample.get(index)? {
            SampleLabel::None => None,
            SampleLabel::One(class) => Some(std::slice::from_ref(class)),
            SampleLabel::Many(classes) => Some(classes),
        }
    }

    /// Samples without a label in a collection that has labels.
    pub(super) fn unlabelled(&self) -> usize {
        self.of_sample.iter().filter(|label| **label == SampleLabel::None).count()
    }
}

impl RawLabel {
    /// A number, a name, or a list of them; `null` and negative numbers are no label.
    pub(super) fn of_json(value: &Json) -> Result<Self, String> {
        let of_one = |value: &Json| match value {
            Json::Null => Ok(None),
            Json::Number(number) if number.as_u64().is_some() => Ok(number.as_u64().map(Value::Number)),
            Json::Number(number) if number.as_i64().is_some() => Ok(None),
            Json::String(text) => Ok((!text.trim().is_empty()).then(|| Value::Name(text.trim().to_owned()))),
            other => {
                Err(format!("{other} is not a label; a class number, a name or a list of them was expected"))
            }
        };
        match value {
            Json::Array(values) => {
                let values = values.iter().filter_map(|value| of_one(value).transpose());
                Ok(Self::Many(values.collect::<Result<_, _>>()?))
            }
            value => Ok(of_one(value)?.map_or(Self::None, Self::One)),
        }
    }

    fn values(&self) -> impl Iterator<Item = &Value> {
        match self {
            Self::None => [].iter(),
            Self::One(value) => std::slice::from_ref(value).iter(),
            Self::Many(values) => values.iter(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> RawLabel {
        Value::of_text(text).map_or(RawLabel::None, RawLabel::One)
    }

    #[test]
    fn distinct_values_become_classes() {
        let labels = Labels::new(&[one("10"), one("9"), one(""), one("10")], None).unwrap();
        assert_eq!(labels.classes, ["9", "10"], "in numerical order");
        assert_eq!(
            (labels.one(0), labels.one(1), labels.one(2), labels.unlabelled()),
            (Some(1), Some(0), None, 1)
        );
        let labels = Labels::new(&[one("b"), one("9"), one("10")], None).unwrap();
        assert_eq!(labels.classes, ["10", "9", "b"], "by their bytes");
        assert_eq!(labels.one(0), Some(2));
        assert_eq!(Labels::new(&[RawLabel::None], None).unwrap(), Labels::default());
    }

    #[test]
    fn names_give_the_order() {
        let names = ["dog".to_owned(), "cat".to_owned()];
        let labels = Labels::new(&[one("1"), one("dog")], Some(&names)).unwrap();
        assert_eq!((labels.one(0), labels.one(1)), (Some(1), Some(0)));
        let (index, problem) = Labels::new(&[one("1"), one("2")], Some(&names)).unwrap_err();
        assert_eq!((index, problem.as_str()), (1, "its label '2' is not one of the 2 classes"));
    }

    #[test]
    fn sets_of_classes() {
        let many = |texts: &[&str]| RawLabel::Many(texts.iter().filter_map(|t| Value::of_text(t)).collect());
        let labels =
            Labels::new(&[many(&["b", "a", "b"]), one("c"), many(&[]), RawLabel::None], None).unwrap();
        assert!(labels.multi);
        assert_eq!(labels.all(0), Some(&[0, 1][..]));
        assert_eq!(labels.all(1), Some(&[2][..]));
        assert_eq!((labels.all(2), labels.all(3), labels.one(1)), (Some(&[][..]), None, None));
    }
}
