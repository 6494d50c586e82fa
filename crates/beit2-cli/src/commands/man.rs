//! `beit2 man`: manual pages, made of the same text as `--help`.

use std::fs;
use std::io;
use std::path::PathBuf;

use beit2_run::atomic::{FileError, write_bytes_atomic};
use clap::{Command, ValueHint};
use clap_mangen::Man;

use crate::errors::Ending;
use crate::machine::SOFTWARE;
use crate::output;

/// Flags of `man`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
    Examples:\n\
    \x20 beit2 man > beit2.1\n\
    \x20 beit2 man --out ~/.local/share/man/man1\n\
    \n\
    With --out there is a page for every command: `man beit2`, `man beit2-pretrain`,\n\
    `man beit2-weights-fetch`. Without it, the page of beit2 itself goes to stdout.\n\
    If `man` does not find the pages, add ~/.local/share/man to MANPATH.")]
pub struct Args {
    /// Folder for the pages of all commands, which is created if it is missing
    #[arg(long, short, value_name = "DIR", value_hint = ValueHint::DirPath)]
    out: Option<PathBuf>,
}

/// Prints one page or writes all.
pub fn run(args: &Args, program: Command) -> anyhow::Result<Ending> {
    let mut program = program.disable_help_subcommand(true);
    program.build();
    let Some(dir) = &args.out else {
        let (_, page) = page(&program)?;
        output::result(&String::from_utf8_lossy(&page))?;
        return Ok(Ending::Done);
    };
    fs::create_dir_all(dir).map_err(|e| FileError::new("create the folder", dir, e))?;
    let pages = pages(&program)?;
    for (name, page) in &pages {
        write_bytes_atomic(&dir.join(name), page)?;
    }
    output::result(&format!("{}: {} pages, begin with `man beit2`", dir.display(), pages.len()))?;
    Ok(Ending::Done)
}

/// File names and contents of a command's page and those of its sub-commands.
fn pages(command: &Command) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut all = vec![page(command)?];
    for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set()) {
        all.extend(pages(inner)?);
    }
    Ok(all)
}

/// File name and content of one page.
fn page(command: &Command) -> io::Result<(String, Vec<u8>)> {
    let man = Man::new(command.clone()).source(SOFTWARE).manual("BEiT v2");
    let mut out = Vec::new();
    man.render_title(&mut out)?;
    man.render_name_section(&mut out)?;
    man.render_synopsis_section(&mut out)?;
    man.render_description_section(&mut out)?;
    man.render_options_section(&mut out)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut out)?;
    }
    if let Some(text) = command.get_after_help() {
        out.extend(as_typed(&text.to_string()).bytes());
    }
    Ok((man.get_filename(), out))
}

/// The end of the help with its lines as they are: filled like prose, examples could not be pasted.
fn as_typed(text: &str) -> String {
    let escaped = text.replace('\\', "\\e").replace('-', "\\-").replace('\'', "\\(aq").replace('`', "\\(ga");
    let lines = escaped.lines().map(|line| match line.starts_with('.') {
        true => format!("\\&{line}\n"),
        false => format!("{line}\n"),
    });
    format!(".SH EXAMPLES\n.nf\n{}.fi\n", lines.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_keep_their_lines() {
        let text = as_typed("Examples:\n  beit2 knn --weights x \\\n      --k 'a'\n.x");
        assert_eq!(
            text,
            ".SH EXAMPLES\n.nf\nExamples:\n  beit2 knn \\-\\-weights x \\e\n      \\-\\-k \\(aqa\\(aq\n\\&.x\n.fi\n"
        );
    }
}
