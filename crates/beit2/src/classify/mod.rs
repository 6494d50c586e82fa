//! Images to classes and features.
//!
//! [`Classifier`] and [`Embedder`] are trained models from files; [`finetune`] trains classifiers; [`knn()`] and
//! [`linear_probe()`] measure frozen features.

pub mod bootstrap;
mod cache;
mod classifier;
mod config;
mod embedder;
mod evaluate;
mod features;
pub mod finetune;
mod knn;
mod linear_probe;
mod loss;
mod multi_label;
mod pretrained;

pub use cache::cached;
pub(crate) use classifier::class_names;
pub use classifier::{Classifier, ClassifierOptions, Prediction};
pub use config::ClassifierConfig;
pub(crate) use embedder::open_vit;
pub use embedder::{Embedder, EmbedderOptions, TeacherOptions};
pub(crate) use evaluate::argmax;
pub use evaluate::{ClassResult, EvalTable, Evaluation, evaluate};
pub use features::{FeatureKind, Features, FeaturesOf, Featurizer, extract, extract_all, pixel_features};
pub use knn::{KnnConfig, knn, predict};
pub use linear_probe::{LinearProbe, LinearProbeConfig, RateChoice, linear_probe};
pub use loss::{hard_cross_entropy, smooth_targets, soft_cross_entropy, top_k_hits};
pub(crate) use multi_label::row_loss;
pub use multi_label::{MultiLabelEvaluation, average_precision, binary_cross_entropy, evaluate_multi_label};
pub(crate) use pretrained::sizes as pretrained_sizes;
