//! What a classifier that training starts from gives to the head of the new one: rows by the names of their classes.

use std::collections::HashMap;

use beit2_data::classes::{IMAGENET_CLASSES, in_words, is_imagenet, some_of};
use beit2_kernels::Backend;
use beit2_weights::Tensor;
use beit2_weights::convert::StateDict;
use burn::tensor::{DType, TensorData};
use serde::{Deserialize, Serialize};

use crate::error::{Error, config_error};
use crate::vit::VisionTransformer;
use crate::weights::Tensors;

const HEAD: [&str; 2] = ["head.weight", "head.bias"];

/// Which row of a classifier's head belongs to which class of the data.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HeadRows {
    /// The one of the same name; classes that the classifier does not have start fresh.
    #[default]
    Name,
    /// Row k is for class k.
    Position,
}

/// What of a classifier's head is taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeadMatch {
    /// For each class of the data, the row of the file; `None`: it starts fresh.
    pub rows: Vec<Option<usize>>,
    /// The same in words.
    pub summary: String,
}

impl HeadMatch {
    /// Finds the rows for the classes of the data. `names` are those of the classifier's `count` classes, or empty;
    /// `origin` is its file.
    ///
    /// # Errors
    /// [`HeadRows::Position`] for another number of classes.
    pub fn new(
        origin: &str,
        (names, count): (&[String], usize),
        data: &[String],
        by: HeadRows,
    ) -> Result<Self, Error> {
        let classes = data.len();
        let fresh = |why: String| Self { rows: vec![None; classes], summary: format!("fresh: {why}") };
        let by_position = |why: &str| Self {
            rows: (0..classes).map(Some).collect(),
            summary: format!("{classes} classes by position{why}"),
        };
        let imagenet = is_imagenet(data) && count == IMAGENET_CLASSES;
        Ok(match by {
            HeadRows::Position if count != classes => {
                return config_error(format!(
                    "init.classes_by is `position`, but {origin} has {count} classes and the data have {classes}; by \
                     position both need the same number"
                ));
            }
            HeadRows::Position => by_position(", as init.classes_by says"),
            HeadRows::Name if imagenet && (names.is_empty() || in_words(names)) => {
                by_position(", which are ImageNet's WordNet ids in sorted order")
            }
            HeadRows::Name if names.is_empty() => {
                let way_out = match count == classes {
                    true => "; with --classes-by position, class k of the data takes its class k",
                    false => "",
                };
                fresh(format!("{origin} does not name its {count} classes, so none can be matched{way_out}"))
            }
            HeadRows::Name => {
                let rows = rows_by_name(names, data);
                let missing: Vec<String> = data
                    .iter()
                    .zip(&rows)
                    .filter(|(_, row)| row.is_none())
                    .map(|(name, _)| name.clone())
                    .collect();
                match classes - missing.len() {
                    0 => fresh(format!(
                        "{origin} has none of the {classes} classes; its own are {}",
                        some_of(names)
                    )),
                    found if found < classes => Self {
                        rows,
                        summary: format!(
                            "{found} of {classes} classes by name, {} fresh: {}",
                            missing.len(),
                            some_of(&missing)
                        ),
                    },
                    _ if count > classes => {
                        Self { rows, summary: format!("{classes} classes by name, of {count} in {origin}") }
                    }
                    _ => Self { rows, summary: format!("{classes} classes by name") },
                }
            }
        })
    }

    /// Brings the rows of the head in `tensors` into the order of the data's classes, with zeros for the fresh ones. A
    /// head that starts fresh altogether is taken out.
    pub(super) fn apply(&self, tensors: &mut StateDict) {
        if self.rows.iter().all(Option::is_none) {
            tensors.retain(|name, _| !HEAD.contains(&name.as_str()));
            return;
        }
        for name in HEAD {
            let Some(tensor) = tensors.get_mut(name) else { continue };
            let Some((&count, rest)) = tensor.shape().split_first() else { continue };
            let as_it_is =
                count == self.rows.len() && self.rows.iter().zip(0..).all(|(row, at)| *row == Some(at));
            if as_it_is {
                continue;
            }
            let values = tensor.to_f32();
            let width = values.len() / count.max(1);
            let mut picked = vec![0f32; self.rows.len() * width];
            for (out, row) in picked.chunks_mut(width.max(1)).zip(&self.rows) {
                if let Some(row) = row.and_then(|row| values.get(row * width..(row + 1) * width)) {
                    out.copy_from_slice(row);
                }
            }
            let shape = [&[self.rows.len()], rest].concat();
            if let Some(picked) = Tensor::from_f32(shape, &picked) {
                *tensor = picked;
            }
        }
    }

    /// Puts the initial values of `model` into the fresh rows of loaded `tensors`.
    pub(super) fn fill_fresh<B: Backend>(&self, tensors: &mut Tensors, model: &VisionTransformer<B>) {
        let Some(head) = &model.head else { return };
        if self.rows.iter().all(Option::is_some) {
            return;
        }
        let weight = Some(head.weight.val().into_data());
        let bias = head.bias.as_ref().map(|bias| bias.val().into_data());
        for (name, initial) in HEAD.into_iter().zip([weight, bias]) {
            let (Some(initial), Some(loaded)) = (initial, tensors.get_mut(name)) else { continue };
            let floats =
                |data: TensorData| data.convert_dtype(DType::F32).into_vec::<f32>().unwrap_or_default();
            let (initial, shape) = (floats(initial), loaded.shape.clone());
            let mut values = floats(loaded.clone());
            let width = values.len() / self.rows.len().max(1);
            let rows = values.chunks_mut(width.max(1)).zip(initial.chunks(width.max(1)));
            for ((own, initial), _) in rows.zip(&self.rows).filter(|(_, row)| row.is_none()) {
                own.copy_from_slice(initial);
            }
            *loaded = TensorData::new(values, shape);
        }
    }
}

/// The row of each class of the data; `None` where no class of the file, or more than one, has its name.
fn rows_by_name(names: &[String], data: &[String]) -> Vec<Option<usize>> {
    let mut row: HashMap<&str, Option<usize>> = HashMap::with_capacity(names.len());
    for (at, name) in names.iter().enumerate() {
        row.entry(name).and_modify(|twice| *twice = None).or_insert(Some(at));
    }
    data.iter().map(|name| row.get(name.as_str()).copied().flatten()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn matched(names: &[&str], count: usize, data: &[&str], by: HeadRows) -> HeadMatch {
        HeadMatch::new("old", (&strings(names), count), &strings(data), by).unwrap()
    }

    #[test]
    fn rows_follow_the_names() {
        let found = matched(&["a", "b", "c"], 3, &["c", "x", "a"], HeadRows::Name);
        assert_eq!(found.rows, [Some(2), None, Some(0)]);
        assert_eq!(found.summary, "2 of 3 classes by name, 1 fresh: `x`");
        let found = matched(&["a", "b", "c"], 3, &["c", "b", "a"], HeadRows::Name);
        assert_eq!(
            (found.rows, found.summary.as_str()),
            (vec![Some(2), Some(1), Some(0)], "3 classes by name")
        );
        let found = matched(&["a", "b", "c"], 3, &["b", "c"], HeadRows::Name);
        assert_eq!(found.summary, "2 classes by name, of 3 in old");
        let found = matched(&["a", "b"], 2, &["x", "y"], HeadRows::Name);
        assert_eq!(found.rows, [None, None]);
        assert_eq!(found.summary, "fresh: old has none of the 2 classes; its own are `a`, `b`");
    }

    #[test]
    fn without_names_nothing_is_copied_unless_told() {
        let found = matched(&[], 2, &["a", "b"], HeadRows::Name);
        assert_eq!(found.rows, [None, None]);
        assert!(found.summary.starts_with("fresh: old does not name its 2 classes"), "{}", found.summary);
        assert!(found.summary.contains("--classes-by position"), "{}", found.summary);
        assert!(!matched(&[], 9, &["a", "b"], HeadRows::Name).summary.contains("position"));
        assert_eq!(matched(&[], 2, &["a", "b"], HeadRows::Position).rows, [Some(0), Some(1)]);
        assert!(HeadMatch::new("old", (&[], 3), &strings(&["a"]), HeadRows::Position).is_err());
    }

    #[test]
    fn the_published_classifiers_of_imagenet_have_the_order_of_its_wordnet_ids() {
        let synsets: Vec<String> = (0..1000).map(|at| format!("n{:08}", 1_440_764 + at * 7)).collect();
        let mut words: Vec<String> = (0..1000).map(|at| format!("word {at}")).collect();
        for names in [&[][..], &words] {
            let found = HeadMatch::new("old", (names, 1000), &synsets, HeadRows::Name).unwrap();
            assert_eq!(found.rows[7], names.is_empty().then_some(7), "{}", found.summary);
        }
        words[0] = "tench, Tinca tinca".into();
        let found = HeadMatch::new("old", (&words, 1000), &synsets, HeadRows::Name).unwrap();
        assert_eq!(found.rows[7], Some(7));
        assert_eq!(
            found.summary,
            "1000 classes by position, which are ImageNet's WordNet ids in sorted order"
        );
        let ten = HeadMatch::new("old", (&[], 1000), &synsets[..10], HeadRows::Name).unwrap();
        assert!(ten.rows.iter().all(Option::is_none));
    }

    #[test]
    fn heads_are_put_in_order_and_completed() {
        let mut tensors = StateDict::new();
        tensors
            .insert("head.weight".into(), Tensor::from_f32(vec![3, 2], &[0., 1., 2., 3., 4., 5.]).unwrap());
        tensors.insert("head.bias".into(), Tensor::from_f32(vec![3], &[10., 11., 12.]).unwrap());
        let found = matched(&["a", "b", "c"], 3, &["c", "x"], HeadRows::Name);
        found.apply(&mut tensors);
        assert_eq!(tensors["head.weight"].shape(), [2, 2]);
        assert_eq!(tensors["head.weight"].to_f32(), [4., 5., 0., 0.]);
        assert_eq!(tensors["head.bias"].to_f32(), [12., 0.]);
        matched(&[], 2, &["a", "b"], HeadRows::Name).apply(&mut tensors);
        assert!(tensors.is_empty());
    }
}
