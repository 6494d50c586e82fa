//! The program `beit2`: flags become settings, settings go to the library, what happens comes back as text. All of it is in the
//! library of this crate.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(beit2_cli::run(std::env::args_os()))
}
