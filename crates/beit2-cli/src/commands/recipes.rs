//! `beit2 recipes`: the built-in recipes, to read and to start from.

use clap::Subcommand;
use serde_json::json;

use super::recipe_memory;
use crate::errors::Ending;
use crate::flags::JsonArgs;
use crate::{output, recipes};

/// Flags of `recipes`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
    Examples:\n\
    \x20 beit2 recipes\n\
    \x20 beit2 recipes show mim_base_300e > mim.toml")]
pub struct Args {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List the name, command and purpose of every recipe (as `beit2 recipes` alone does)
    #[command(after_help = "Example:\n  beit2 recipes list --json")]
    List(JsonArgs),
    /// Estimate the memory that a recipe needs, and the micro-batches that devices of several sizes take
    #[command(after_help = "\
        Examples:\n\
        \x20 beit2 recipes memory mim_base_1600e\n\
        \x20 beit2 recipes memory mim_large_1600e --device-memory 16,24 --devices 8")]
    Memory(recipe_memory::Args),
    /// Print a recipe, to read it or to start your own from it
    #[command(after_help = "\
        Example:\n\
        \x20 beit2 recipes show vqkd_base_clip_100e > tokenizer.toml")]
    Show {
        /// Name from the list, or a .toml file
        name: String,
    },
}

/// Lists or shows.
pub fn run(args: &Args) -> anyhow::Result<Ending> {
    match &args.action {
        Some(Action::Memory(args)) => return recipe_memory::run(args),
        Some(Action::Show { name }) => output::result(&recipes::find(name)?.text)?,
        Some(Action::List(JsonArgs { json: true })) => {
            let all = recipes::all().map(
                |recipe| json!({ "name": recipe.name, "stage": recipe.stage(), "title": recipe.title() }),
            );
            output::json(&json!({ "recipes": all.collect::<Vec<_>>() }))?;
        }
        Some(Action::List(JsonArgs { json: false })) | None => {
            let rows: Vec<Vec<String>> = recipes::all()
                .map(|recipe| {
                    let stage = recipe.stage().unwrap_or_default();
                    let command = crate::stage::command_of(&stage).unwrap_or_default();
                    vec![recipe.name.clone(), command.to_owned(), recipe.title()]
                })
                .collect();
            let widths = [0, 1].map(|at| rows.iter().map(|row| row[at].len()).max().unwrap_or(0));
            for row in rows {
                let line = format!("{:a$}  {:b$}  {}", row[0], row[1], row[2], a = widths[0], b = widths[1]);
                output::result(line.trim_end())?;
            }
        }
    }
    Ok(Ending::Done)
}
