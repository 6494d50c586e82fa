//! Weight files and whose names are in them.

use beit2_weights::layout::Family;
use beit2_weights::{Checkpoint, ReadOptions, read_with};
use clap::{Args, ValueEnum};

/// A weight file, and which entry of it.
#[derive(Debug, Args)]
pub struct WeightFileArgs {
    /// Weight file (.safetensors or .pth), run directory, checkpoint folder, or folder with model.safetensors
    #[arg(value_name = "FILE|RUN")]
    pub file: String,

    /// Entry of a .pth file to read, such as model_ema [default: `model`, `module`, `state_dict` or the whole file]
    #[arg(long, value_name = "NAME")]
    pub entry: Option<String>,
}

impl WeightFileArgs {
    /// Opens it.
    pub fn open(&self) -> anyhow::Result<Checkpoint> {
        let path = beit2::weights::locate(&self.file)?;
        Ok(read_with(&path, &ReadOptions { root: self.entry.as_deref(), ..Default::default() })?)
    }
}

/// `official`, `timm` or `hf` on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum NamesArg {
    /// The official BEiT v2 code
    Official,
    /// timm
    Timm,
    /// Hugging Face transformers
    Hf,
}

impl From<NamesArg> for Family {
    fn from(names: NamesArg) -> Self {
        match names {
            NamesArg::Official => Family::Official,
            NamesArg::Timm => Family::Timm,
            NamesArg::Hf => Family::HuggingFace,
        }
    }
}
