//! Images to run a model on, and one row for each of them in a file.

use std::path::PathBuf;

use beit2::train::Assets;
use clap::{Args, ValueHint};

use super::{DecodeArgs, ShardArgs};
use crate::assets::AssetStore;
use crate::errors::Ending;
use crate::export::Format;
use crate::shard::{self, Expected};

/// The images of a command that writes one file.
#[derive(Debug, Args)]
pub struct SourceArg {
    /// Images: a folder, tar shards, a single image, or bundled:train
    #[arg(value_name = "DIR|TAR", value_hint = ValueHint::AnyPath)]
    pub source: String,
}

/// Images from several places.
#[derive(Debug, Args)]
pub struct SourcesArg {
    /// Images, folders of images, or tar shards
    #[arg(value_name = "IMAGE|DIR|TAR", required = true, value_hint = ValueHint::AnyPath)]
    pub sources: Vec<String>,
}

/// Flags of every command that writes a row for each image.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Output file; its extension chooses the format. `-`: an Arrow stream on standard output. A folder: parts (--shard)
    #[arg(long, short, value_name = "FILE|DIR", value_hint = ValueHint::AnyPath)]
    pub out: PathBuf,

    /// Form of the parts in a folder [default: parquet]
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<Format>,

    #[command(flatten)]
    pub shard: ShardArgs,

    /// Replace --out if it exists, and start over if rows were begun with other settings
    #[arg(long)]
    pub force: bool,

    /// Skip images that cannot be read and list them at the end, instead of stopping
    #[arg(long)]
    pub skip_unreadable: bool,

    /// Fraction of the resized image that the model sees [default: 0.875, or 1 up to 32 px and from 384 px on]
    #[arg(long, value_name = "FRACTION")]
    pub crop_pct: Option<f64>,

    /// Images per batch
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub batch_size: u32,

    #[command(flatten)]
    pub decode: DecodeArgs,

    /// Threads that decode images
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub workers: usize,
}

impl ExportArgs {
    /// `--check`: what is missing in the folder --out.
    pub fn check(
        &self,
        command: &str,
        assets: &AssetStore,
        images: &str,
        weights: &str,
        as_json: bool,
    ) -> anyhow::Result<Ending> {
        let known = [
            ("images", assets.source(images)?.fingerprint()),
            ("weights", assets.weights_fingerprint(weights)?),
        ];
        shard::check(&self.out, &Expected { command, made_with: &known }, as_json)
    }
}
