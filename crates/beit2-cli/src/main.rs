//! The program `beit2`: flags become settings, settings go to the library, what happens comes back as text.
//!
//! Nothing here computes. Start at [`cli`] for the commands and at `commands/` for what each one does; flags that several
//! share are in [`flags`], exit codes and messages in [`errors`]. Imports run one way: this file, `cli`, `commands/`, and
//! then what the commands are made of.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod account;
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
mod recipes;
mod report;
mod session;
mod signals;
mod stage;

use std::process::ExitCode;

fn main() -> ExitCode {
    beit2_kernels::join_threads();
    errors::guarded(|| {
        let cli = cli::parse()?;
        errors::know_flags(cli::flags_of(std::env::args_os()));
        machine::limit_instruction_set(std::env::var_os("BEIT2_SIMD"))?;
        let signals = signals::Signals::install()?;
        let ending = cli::run(&cli.command, &signals);
        Ok(errors::settled(ending, &signals))
    })
}
