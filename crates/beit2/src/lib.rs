//! BEiT v2 (Peng et al. 2022, arXiv 2208.06366): visual tokenizer, masked image modeling, evaluation.
//!
//! This crate is the method. It reads no flags or environment variables and prints nothing; the binary
//! `beit2` does.
//!
//! To use trained models, start with [`classify::Classifier`], [`classify::Embedder`], [`tokenizer::Tokenizer`] and
//! [`segment::Segmenter`]: each opens a path. To read the method, start with [`tokenizer::VqKd`] and
//! [`pretrain::MimModel`]; both are composed from [`vit`].

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod classify;
mod code_usage;
pub mod cost;
mod error;
mod infer_precision;
pub mod init;
pub mod monitor;
mod neighbours;
pub mod onnx;
pub mod params;
pub mod pixels;
pub mod pretrain;
pub mod segment;
pub mod tokenizer;
pub mod train;
pub mod visualize;
pub mod vit;
pub mod weights;

pub use beit2_data::Image;
pub use beit2_kernels::Precision;
pub use error::Error;
pub use infer_precision::InferPrecision;

/// Compiles the examples of that page.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/library.md")]
struct Library;
