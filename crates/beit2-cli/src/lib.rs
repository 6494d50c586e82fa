//! The program `beit2` as a function, and what other programs share with it: the Python package `beit2` runs models on the same
//! devices, reads weights and images the same way and says the same sentences.
//!
//! Nothing here computes. Start at `cli.rs` for the commands and at `commands/` for what each one does; flags that several
//! share are in `flags/`, exit codes and messages in `errors.rs`. Imports run one way: this file, `cli`, `commands/`, and
//! then what the commands are made of.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod account;
mod arguments;
mod assets;
mod backend;
mod bundled;
mod classes;
mod cli;
mod commands;
mod device;
mod display;
mod download;
mod errors;
mod experiment;
mod export;
mod fit;
mod flags;
mod libraries;
mod machine;
mod output;
mod progress;
mod ranks;
mod recipes;
mod report;
mod session;
mod shard;
mod signals;
mod stage;
mod training_images;

use std::ffi::OsString;

pub use assets::{AssetStore, Reading};
pub use backend::{GroupJob, run as run_on};
pub use device::{DeviceSpec, Kind};
pub use errors::{Refusal, caught, refusal};
pub use flags::decoding_of_run;
pub use machine::limit_instruction_set;
pub use training_images::{OpenedImages, TrainingImages};

/// Runs the program with a command line, its name first, and gives the exit code. To be called once in a process, by its main
/// thread: it listens for signals and lets the thread compute.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    beit2_kernels::join_threads();
    arguments::set(arguments.into_iter().collect());
    errors::guarded(|| {
        let cli = cli::parse()?;
        errors::know_flags(cli::flags_of(arguments::all()));
        machine::limit_instruction_set(std::env::var_os("BEIT2_SIMD"))?;
        let signals = signals::Signals::install()?;
        let ending = cli::run(&cli.command, &signals);
        Ok(errors::settled(ending, &signals))
    })
}
