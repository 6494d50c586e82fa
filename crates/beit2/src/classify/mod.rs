//! Images to classes and features; what frozen features are worth: k-nearest neighbours and a linear classifier.

mod cache;
mod classifier;
mod embedder;
mod evaluate;
mod features;
pub mod finetune;
mod knn;
mod linear_probe;
mod pretrained;

pub use cache::cached;
pub use classifier::{Classifier, ClassifierConfig, OpenOptions, Prediction};
pub use embedder::{EmbedOptions, Embedder};
pub use evaluate::{ClassResult, Evaluation, evaluate};
pub use features::{FeatureKind, Features, Featurizer, extract, pixel_features};
pub use knn::{KnnConfig, knn, predict};
pub use linear_probe::{LinearProbeConfig, linear_probe};
pub(crate) use pretrained::sizes as pretrained_sizes;

/// Share of equal entries.
pub fn accuracy(predicted: &[u32], labels: &[u32]) -> f64 {
    let right = predicted.iter().zip(labels).filter(|(p, l)| p == l).count();
    right as f64 / labels.len().max(1) as f64
}
