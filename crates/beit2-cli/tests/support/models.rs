//! Classifiers made on the spot, in half precision: all sizes of a real one, values that differ.

#![allow(dead_code, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;

use beit2_weights::convert::{StateDict, convert};
use beit2_weights::layout::Family;
use beit2_weights::plan::Target;
use beit2_weights::{DType, Tensor, write_safetensors};

/// The published base model's sizes: 86.5 million parameters, 173 MB.
pub fn base_classifier(path: &Path) {
    write(path, &Target::base());
}

/// The same in small.
pub fn small_classifier(path: &Path) {
    let target = Target::base();
    write(path, &Target { grid: 4, width: 16, heads: 2, mlp_width: 64, depth: 2, classes: 5, ..target });
}

fn write(path: &Path, target: &Target) {
    let mut state = 1u32;
    let mut tensor = |shape: Vec<usize>| {
        let values = 0..shape.iter().product::<usize>();
        let bytes = values.flat_map(|_| {
            // Numerical Recipes' generator; only that values differ matters.
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // Without the top bit of the exponent no half is infinite.
            (((state >> 16) as u16) & 0xbfff).to_le_bytes()
        });
        Tensor::new(DType::F16, shape.clone(), bytes.collect()).unwrap()
    };
    let tensors: StateDict =
        target.tensors().into_iter().map(|(name, shape)| (name, tensor(shape))).collect();
    // As the official code saves it, with index buffers.
    let official = convert(tensors, None, Family::Official).unwrap().tensors;
    let official = official.iter().map(|(name, tensor)| (name.as_str(), tensor));
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    write_safetensors(path, official, &metadata).unwrap();
}
