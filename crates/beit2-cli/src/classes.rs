//! Classes of labelled images and of models.

use crate::errors::usage;

/// Classes of ImageNet-1k.
pub const IMAGENET_CLASSES: usize = 1000;

/// The classes that a model was trained with.
pub struct Trained<'a> {
    /// The model, for messages.
    pub weights: &'a str,
    /// How many there are.
    pub count: usize,
    /// Their names, if the model has them.
    pub names: &'a [String],
}

/// The data's classes must be the model's, in number and, where both have them, in names.
pub fn check_classes(data: &str, found: &[String], model: Trained<'_>) -> anyhow::Result<()> {
    let Trained { weights, count, names } = model;
    if found.len() != count {
        return usage(format!(
            "{data} has {} classes, but the model in {weights} has {count}; both need the same classes in the same order",
            found.len()
        ));
    }
    match found.iter().zip(names).position(|(a, b)| a != b) {
        Some(at) => usage(format!(
            "class {at} is `{}` in {data}, but the model in {weights} was trained with `{}` there; both need the same \
             classes in the same order",
            found[at], names[at]
        )),
        None => Ok(()),
    }
}
