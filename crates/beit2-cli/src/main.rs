//! The program `beit2`: flags become settings, settings go to the library, what happens comes back as text.
//!
//! Nothing here computes. Start at [`cli`] for the flags and at `commands/` for what each one does; exit codes
//! and messages are in [`errors`].

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod assets;
mod bundled;
mod cli;
mod commands;
mod device;
mod display;
mod download;
mod errors;
mod experiment;
mod export;
mod flags;
mod libraries;
mod output;
mod progress;
mod quickstart;
mod recipes;
mod signals;
mod stage;

use std::process::ExitCode;

fn main() -> ExitCode {
    beit2_kernels::join_threads();
    errors::guarded(|| {
        let cli = cli::parse()?;
        let signals = signals::Signals::install()?;
        let ending = commands::run(cli.command, &signals);
        Ok(errors::settled(ending, &signals))
    })
}
