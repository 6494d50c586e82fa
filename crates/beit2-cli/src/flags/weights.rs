//! Weight files and whose names are in them.

use beit2_weights::layout::Family;
use beit2_weights::{Checkpoint, Normalization, ReadOptions, read_with};
use clap::{Args, ValueEnum};

use crate::assets::Reading;
use crate::errors::usage;

/// A weight file, and which entry of it.
#[derive(Debug, Args)]
pub struct WeightFileArgs {
    /// Weight file (.safetensors or .pth), run directory, checkpoint folder, folder with model.safetensors or
    /// pytorch_model.bin, or the index of a sharded model
    #[arg(value_name = "FILE|RUN")]
    pub file: String,

    #[command(flatten)]
    pub entry: EntryArg,
}

/// Which of several models in a file.
#[derive(Debug, Clone, Default, Args)]
pub struct EntryArg {
    /// Entry of a .pth file or run to read, such as model_ema or teacher [default: `model`, `module`, `state_dict`, the
    /// whole file or `teacher`]
    #[arg(long, value_name = "NAME")]
    pub entry: Option<String>,
}

/// What a weight file may not say.
#[derive(Debug, Clone, Default, Args)]
pub struct UnsaidArgs {
    /// Number of attention heads, where neither the weights nor a config.json beside them show it
    #[arg(long, value_name = "N")]
    pub heads: Option<usize>,

    /// How images are standardised [default: as the weights or files beside them say]
    #[arg(long, value_name = "STATISTICS", conflicts_with_all = ["mean", "std"])]
    pub normalization: Option<NormalizationArg>,

    /// Mean of each channel, for values in [0, 1], such as 0.5,0.5,0.5
    #[arg(long, value_name = "R,G,B", value_delimiter = ',', requires = "std")]
    pub mean: Option<Vec<f64>>,

    /// Standard deviation of each channel
    #[arg(long, value_name = "R,G,B", value_delimiter = ',', requires = "mean")]
    pub std: Option<Vec<f64>>,
}

/// `--normalization`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum NormalizationArg {
    /// ImageNet's mean and standard deviation: BEiT v2
    Imagenet,
    /// 0.5 and 0.5: BEiT v1
    Half,
}

impl EntryArg {
    /// The same for what opens weights.
    pub fn reading(&self) -> Reading {
        Reading { entry: self.entry.clone(), ..Reading::default() }
    }
}

/// How weights are read.
#[derive(Debug, Clone, Default, Args)]
pub struct ReadArgs {
    #[command(flatten)]
    pub entry: EntryArg,

    #[command(flatten)]
    pub unsaid: UnsaidArgs,
}

impl ReadArgs {
    /// The same for what opens weights.
    pub fn reading(&self) -> anyhow::Result<Reading> {
        Ok(Reading { entry: self.entry.entry.clone(), ..self.unsaid.reading()? })
    }
}

impl UnsaidArgs {
    /// The same for what opens weights.
    pub fn reading(&self) -> anyhow::Result<Reading> {
        let normalization = match (self.normalization, &self.mean, &self.std) {
            (Some(NormalizationArg::Imagenet), ..) => Some(Normalization::imagenet()),
            (Some(NormalizationArg::Half), ..) => Some(Normalization::half()),
            (None, Some(mean), Some(std)) => {
                // One number stands for all channels.
                let all = |values: &[f64]| match values {
                    [one] => vec![*one; 3],
                    several => several.to_vec(),
                };
                Some(Normalization { mean: all(mean), std: all(std) })
            }
            _ => None,
        };
        if let Some(problem) = normalization.as_ref().and_then(Normalization::problem) {
            return usage(format!("--mean and --std: {problem}"));
        }
        Ok(Reading { heads: self.heads, normalization, ..Reading::default() })
    }

    /// The same for a command that reads several weights, of which these flags are about one.
    ///
    /// # Errors
    /// Flags without the weights that they are about, which `flag` names.
    pub fn reading_of(&self, weights: Option<&str>, flag: &str) -> anyhow::Result<Reading> {
        let reading = Reading { about: weights.map(str::to_owned), ..self.reading()? };
        if weights.is_none() && (reading.heads.is_some() || reading.normalization.is_some()) {
            return usage(format!(
                "--heads, --normalization, --mean and --std are about the weights of {flag}; name them"
            ));
        }
        Ok(reading)
    }
}

impl WeightFileArgs {
    /// Opens it.
    pub fn open(&self) -> anyhow::Result<Checkpoint> {
        let spec = self.entry.reading().spec(&self.file);
        let found = beit2::weights::locate(&spec)?;
        Ok(read_with(&found.path, &ReadOptions { root: found.entry.as_deref(), ..Default::default() })?)
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
