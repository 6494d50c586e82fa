//! The reference's own outputs against ours: `cargo test --release golden`.
//!
//! The folder is `BEIT2_GOLDEN` when set, else `tests/golden/` of the workspace; any folder of the
//! same layout must pass: options come from its manifests, and what those do not say from the shapes of its tensors. Every
//! comparison prints the worst absolute and relative error of its tensor; a test lists all that failed, at its end.

#![allow(clippy::unwrap_used)]

mod bf16;
mod case;
#[path = "../../../../tests/checks.rs"]
mod checks;
mod classification;
mod conversion;
#[cfg(any(feature = "vulkan", feature = "cuda"))]
mod devices;
mod factories;
mod folder;
mod peers;
mod pretraining;
mod results;
mod schedules;
mod segmentation;
mod sizes;
mod slide;
mod teachers;
mod tokenizer;
mod torchscript;
