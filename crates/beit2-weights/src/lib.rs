//! Weight *files* in and out: safetensors and the files `torch.save` writes (zip since torch 1.6, the older stream of
//! pickles before), found by their content and read tensor by tensor, so that a 1 GB checkpoint never costs 2 GB.
//!
//! On top of the files: what a BEiT state dict is ([`layout`], [`mod@inspect`]), the same in other names ([`mod@convert`]), at another
//! image size ([`resize`]), and what of it goes into a model that is fine-tuned ([`plan`]).
//!
//! This crate refuses to know any tensor library or model code, and it never executes what a file says: a pickle is
//! turned into inert data by a small interpreter with limits, of which only tensors and plain values are understood.
//! Start reading at [`read`]; the limits are constants at the top of `pickle`, `zip`, `header` and `torch`.
//!
//! ```no_run
//! let checkpoint = beit2_weights::read("beitv2_base_patch16_224_pt1k.pth".as_ref())?;
//! for (name, tensor) in &checkpoint.tensors {
//!     println!("{name} {:?} {:?}", tensor.dtype(), tensor.shape());
//! }
//! let table = checkpoint.tensor("rel_pos_bias.relative_position_bias_table")?.to_f32();
//! # Ok::<(), beit2_weights::WeightsError>(())
//! ```

mod checkpoint;
pub mod convert;
mod detect;
mod error;
mod hash;
mod header;
pub mod inspect;
pub mod layout;
mod locate;
mod pickle;
pub mod plan;
pub mod published;
pub mod resize;
pub mod sidecar;
mod source;
mod tensor;
mod torch;
pub mod verify;
mod view;
mod write;
mod zip;

use std::path::Path;

pub use checkpoint::{Checkpoint, Format, ReadOptions, Root};
pub use error::{HeaderProblem, PickleProblem, WeightsError, ZipProblem};
pub use hash::sha256;
pub use layout::wrapper::Wrapper;
pub use locate::{fingerprint, locate};
pub use sidecar::{Normalization, Sidecar};
pub use tensor::{DType, Tensor};
pub use view::TensorView;
pub use write::{TensorSource, safetensors_header, write_safetensors, write_safetensors_to};

/// Opens a weights file, a folder with one ([`locate`]) or the index of a sharded model with the default options: the first of
/// `model`, `module` and `state_dict` that is there, else the whole file or its entry `teacher`; wrappers such as `module.` are
/// taken off the names.
///
/// # Errors
/// As [`read_with`].
pub fn read(path: &Path) -> Result<Checkpoint, WeightsError> {
    read_with(path, &ReadOptions::default())
}

/// Opens a weights file, for example at another entry: `model_ema`, `teacher`, `optimizer`.
///
/// Everything that can be wrong with the chosen tensors (missing bytes, unknown types, shapes beyond their storage) is
/// found here; later only the disk can fail, or [`Checkpoint::load_all`] find values that are not finite.
///
/// # Errors
/// A file that cannot be opened or is none of the formats, an entry that is not there, damaged or hostile contents; a file
/// beside it that cannot be understood.
pub fn read_with(path: &Path, options: &ReadOptions<'_>) -> Result<Checkpoint, WeightsError> {
    let path = &locate(path)?;
    let mut checkpoint = match locate::is_index(path) {
        true => locate::read_sharded(path, options)?,
        false => read_file(path, options)?,
    };
    // What this software writes says everything itself.
    if !checkpoint.metadata.contains_key("beit2.config") {
        checkpoint.beside = Sidecar::beside(path)?;
    }
    Ok(checkpoint)
}

/// One file, by its content.
fn read_file(path: &Path, options: &ReadOptions<'_>) -> Result<Checkpoint, WeightsError> {
    let source = source::FileSource::open(path)?;
    match detect::format(&source)? {
        Format::Safetensors => header::read(&source, options),
        Format::TorchZip => torch::read_zip(&source, options),
        Format::TorchLegacy => torch::read_legacy(&source, options),
    }
}
