//! A part of the images, for commands that many machines share.

use clap::Args;

use crate::shard::Shard;

/// Which part of the images.
#[derive(Debug, Clone, Copy, Args)]
pub struct ShardArgs {
    /// Do only part I of N (from 0) and write it into the folder --out [default, if --out is a folder: what Slurm's array,
    /// Kubernetes or torchrun say of this task]
    #[arg(long, value_name = "I/N")]
    pub shard: Option<Shard>,

    /// Only tell which parts are missing in the folder --out, as the numbers of a Slurm array; if none is, write its manifest.json
    #[arg(long, conflicts_with = "shard")]
    pub check: bool,
}
