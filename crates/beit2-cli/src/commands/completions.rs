//! `beit2 completions`: what a shell needs to complete commands and flags.

use clap_complete::Shell;

use crate::errors::Ending;
use crate::output;

/// Flags of `completions`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
    Examples:\n\
    \x20 beit2 completions bash > beit2.bash\n\
    \x20 beit2 completions zsh > _beit2\n\
    \n\
    The script goes to stdout. To install it for your account:\n\
    \n\
    bash:\n\
    \x20 mkdir -p ~/.local/share/bash-completion/completions\n\
    \x20 beit2 completions bash > ~/.local/share/bash-completion/completions/beit2\n\
    zsh (with `fpath+=~/.zfunc` before `compinit` in ~/.zshrc):\n\
    \x20 mkdir -p ~/.zfunc\n\
    \x20 beit2 completions zsh > ~/.zfunc/_beit2\n\
    fish:\n\
    \x20 mkdir -p ~/.config/fish/completions\n\
    \x20 beit2 completions fish > ~/.config/fish/completions/beit2.fish\n\
    PowerShell:\n\
    \x20 beit2 completions powershell >> $PROFILE\n\
    Elvish:\n\
    \x20 beit2 completions elvish >> ~/.config/elvish/rc.elv\n\
    \n\
    Then open a new shell. Repeat it when you update beit2.")]
pub struct Args {
    /// Shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

/// Prints the script.
pub fn run(args: &Args, mut program: clap::Command) -> anyhow::Result<Ending> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut program, "beit2", &mut script);
    output::result(&String::from_utf8_lossy(&script))?;
    Ok(Ending::Done)
}
