//! The commands by name. What a command takes is beside it in `commands/`, what several take is in [`crate::flags`].

use std::ffi::OsString;

use beit2::classify::finetune::FinetuneRecipe;
use beit2::pretrain::PretrainRecipe;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::commands::bench::Bench;
use crate::commands::data::Data;
use crate::commands::segment::Segment;
use crate::commands::teacher::Teacher;
use crate::commands::tokenizer::Tokenizer;
use crate::commands::weights::Weights;
use crate::commands::{
    bench, completions, data, doctor, embed, eval, finetune, init, man, predict, pretrain, probe, quickstart,
    recipes, report, run, segment, teacher, tokenizer, weights,
};
use crate::errors::{Ending, Flags};
use crate::flags::{exif_as_published, explain, several_devices, taking_negative_numbers};
use crate::signals::Signals;
use crate::stage::fitting_help;

/// BEiT v2: train a visual tokenizer, pretrain a Vision Transformer with it, fine-tune and evaluate it.
#[derive(Debug, Parser)]
#[command(
    name = "beit2",
    version,
    arg_required_else_help = true,
    subcommand_required = true,
    after_help = "\
        Start here:\n\
        \x20 beit2 quickstart\n\
        \x20 beit2 doctor\n\
        \x20 beit2 recipes\n\
        \n\
        quickstart runs the whole method on bundled images, in minutes on a CPU. doctor\n\
        shows what this machine and this build support. recipes lists the paper's\n\
        experiments, ready to run.\n\
        \n\
        Exit codes: 0 done, 1 failed, 2 wrong command or recipe, 130 or 143 stopped by\n\
        Ctrl-C or SIGTERM after saving (the same command continues the run)."
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the whole method on bundled images: tokenizer, pretraining, probes and a report
    #[command(mut_arg("device", several_devices))]
    Quickstart(quickstart::Args),
    /// Plan training on your own images: recipes for every stage, made for them and for this machine
    Init(init::Args),
    /// Run all stages of a folder that `init` wrote, or continue them
    Run(run::Args),
    /// Train a visual tokenizer (VQ-KD), or encode images with one
    #[command(
        subcommand,
        after_help = "\
        Examples:\n\
        \x20 beit2 tokenizer train quickstart_tokenizer --out runs/tokenizer\n\
        \x20 beit2 tokenizer encode images --tokenizer runs/tokenizer --out ids.npy"
    )]
    Tokenizer(Tokenizer),
    /// Pretrain a Vision Transformer by masked image modeling
    #[command(defer(fitting_help::<PretrainRecipe>))]
    Pretrain(pretrain::Args),
    /// Fine-tune pretrained weights as a classifier
    #[command(defer(fitting_help::<FinetuneRecipe>))]
    Finetune(finetune::Args),
    /// Distill a large teacher into a small one
    #[command(
        subcommand,
        after_help = "\
        Examples:\n\
        \x20 beit2 teacher distill distill_tiny --data images \\\n\
        \x20     --set teacher.weights=dinov2_vits14_pretrain.pth --out runs/teacher\n\
        \x20 beit2 teacher export runs/teacher --out teacher.safetensors"
    )]
    Teacher(Teacher),
    /// Evaluate a classifier on labelled images
    #[command(mut_arg("exif", exif_as_published))]
    Eval(eval::Args),
    /// Evaluate frozen features with a linear probe
    Probe(probe::ProbeArgs),
    /// Evaluate frozen features with k-nearest neighbours
    Knn(probe::KnnArgs),
    /// Predict the classes of images
    Predict(predict::Args),
    /// Train, evaluate and run segmentation models
    #[command(
        subcommand,
        after_help = "\
        Examples:\n\
        \x20 beit2 segment train segment_base_ade20k --data scenes/train --val scenes/val \\\n\
        \x20     --init runs/mim --out runs/segmenter\n\
        \x20 beit2 segment eval --weights runs/segmenter/best --data scenes/val\n\
        \x20 beit2 segment predict images --weights runs/segmenter/best --out marked"
    )]
    Segment(Segment),
    /// Write the features of many images to one file
    Embed(embed::Args),
    /// Check images, labels and masks before they are used
    #[command(
        subcommand,
        after_help = "\
        Example:\n\
        \x20 beit2 data check labelled/train --val labelled/val --decode"
    )]
    Data(Data),
    /// Inspect, verify, convert and download weight files
    #[command(
        subcommand,
        after_help = "\
        Examples:\n\
        \x20 beit2 weights fetch ViT-B-16.pt\n\
        \x20 beit2 weights inspect runs/mim\n\
        \x20 beit2 weights verify runs/mim\n\
        \x20 beit2 weights convert runs/classifier --to hf --out classifier_hf"
    )]
    Weights(Weights),
    /// Rebuild the report of a run
    Report(report::Args),
    /// List the built-in recipes, or print one
    Recipes(recipes::Args),
    /// Measure the speed of training and inference
    #[command(
        subcommand,
        after_help = "\
        Examples:\n\
        \x20 beit2 bench train --stage pretrain --size small\n\
        \x20 beit2 bench infer --size small"
    )]
    Bench(Bench),
    /// Show what this machine and this build support
    Doctor(doctor::Args),
    /// Print the script that lets a shell complete commands and flags
    Completions(completions::Args),
    /// Write manual pages
    Man(man::Args),
}

/// Runs a command.
pub fn run(command: &Command, signals: &Signals) -> anyhow::Result<Ending> {
    match command {
        Command::Quickstart(args) => quickstart::run(args, signals),
        Command::Init(args) => init::run(args, signals),
        Command::Run(args) => run::run(args, signals),
        Command::Tokenizer(command) => tokenizer::run(command, signals),
        Command::Pretrain(args) => pretrain::run(args, signals),
        Command::Finetune(args) => finetune::run(args, signals),
        Command::Teacher(command) => teacher::run(command, signals),
        Command::Eval(args) => eval::run(args, signals),
        Command::Probe(args) => probe::run_probe(args, signals),
        Command::Knn(args) => probe::run_knn(args, signals),
        Command::Predict(args) => predict::run(args, signals),
        Command::Segment(command) => segment::run(command, signals),
        Command::Embed(args) => embed::run(args, signals),
        Command::Data(command) => data::run(command, signals),
        Command::Weights(command) => weights::run(command, signals),
        Command::Report(args) => report::run(args),
        Command::Recipes(args) => recipes::run(args),
        Command::Bench(command) => bench::run(command, signals),
        Command::Doctor(args) => doctor::run(args),
        Command::Completions(args) => completions::run(args, Cli::command()),
        Command::Man(args) => man::run(args, Cli::command()),
    }
}

/// The command line of this process.
pub fn parse() -> anyhow::Result<Cli> {
    parse_from(std::env::args_os())
}

/// Any command line.
fn parse_from<T: Into<OsString> + Clone>(args: impl IntoIterator<Item = T>) -> anyhow::Result<Cli> {
    let args: Vec<OsString> = args.into_iter().map(Into::into).collect();
    let command = taking_negative_numbers(Cli::command());
    let parsed = command.clone().try_get_matches_from(&args).and_then(|found| Cli::from_arg_matches(&found));
    Ok(parsed.map_err(|error| {
        let args: Vec<String> = args.iter().skip(1).map(|arg| arg.to_string_lossy().into_owned()).collect();
        let sentence = explain(&error, &args, &command);
        Flags(error, sentence)
    })?)
}

/// What is said of a wrong command line, for tests.
#[cfg(test)]
pub(crate) fn sentence_of(line: &str) -> String {
    parse_from(std::iter::once("beit2").chain(line.split_whitespace())).unwrap_err().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_wrong_flag_is_one_line_with_a_suggestion() {
        let text = parse_from(["beit2", "knn", "--wieghts", "x"]).unwrap_err().to_string();
        assert!(
            !text.contains('\n') && text.contains("'--wieghts'") && text.contains("'--weights'"),
            "{text}"
        );
    }

    /// Every command with its help: `beit2`, the groups, and the commands in them.
    fn helps() -> Vec<(String, String)> {
        fn walk(command: &mut clap::Command, path: &str, found: &mut Vec<(String, String)>) {
            found.push((
                path.to_owned(),
                command.get_after_help().map(ToString::to_string).unwrap_or_default(),
            ));
            for inner in command.get_subcommands_mut().filter(|inner| inner.get_name() != "help") {
                let path = format!("{path} {}", inner.get_name());
                walk(inner, &path, found);
            }
        }
        let mut command = Cli::command();
        command.build();
        let mut found = Vec::new();
        walk(&mut command, "beit2", &mut found);
        found
    }

    /// The commands among the lines of a help, each with the lines that a `\` adds to it.
    fn examples(help: &str) -> Vec<String> {
        let mut found: Vec<String> = Vec::new();
        let mut continued = false;
        for line in help.lines() {
            match found.last_mut() {
                Some(last) if continued => *last += &format!("\n{line}"),
                _ if line.trim_start().starts_with("beit2 ") => found.push(line.to_owned()),
                _ => continue,
            }
            continued = line.ends_with('\\');
        }
        found
    }

    /// The words of every call of beit2 in a command, as a shell splits them.
    #[cfg(unix)]
    fn words(example: &str, dir: &std::path::Path) -> Vec<Vec<String>> {
        let calls = dir.join("calls");
        let script =
            format!("beit2() {{ printf '%s\\0' \"$@\" >> calls; printf '\\n' >> calls; }}\n{example}\n");
        let home = [("HOME", dir), ("PROFILE", std::path::Path::new("profile"))];
        let mut shell = std::process::Command::new("sh");
        shell.args(["-euc", &script]).current_dir(dir).envs(home);
        assert!(shell.status().unwrap().success(), "{example}");
        let text = std::fs::read_to_string(&calls).unwrap();
        std::fs::remove_file(calls).unwrap();
        text.lines().map(|call| call.split_terminator('\0').map(str::to_owned).collect::<Vec<_>>()).collect()
    }

    /// Pasted into a shell, every example is a command that this program takes. A wider line would be wrapped by the
    /// help, without a `\`.
    #[cfg(unix)]
    #[test]
    fn every_example_of_every_help_can_be_pasted() {
        let dir = tempfile::tempdir().unwrap();
        for folder in [
            ".local/share/bash-completion/completions",
            ".zfunc",
            ".config/fish/completions",
            ".config/elvish",
        ] {
            std::fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        for (path, help) in helps() {
            let found = examples(&help);
            let own = |example: &&String| example.trim_start().starts_with(&path);
            assert!(found.iter().any(|example| own(&example)), "{path} has no example: {help}");
            for line in help.lines() {
                assert!(line.chars().count() <= 80, "{path}: wider than a terminal: {line}");
            }
            for example in found {
                assert!(
                    !example.contains('…') && !example.contains('<'),
                    "{path}: a placeholder in {example}"
                );
                let calls = words(&example, dir.path());
                assert!(!calls.is_empty(), "{path}: no command in {example}");
                for call in calls {
                    let line = std::iter::once("beit2".to_owned()).chain(call);
                    if let Err(why) = parse_from(line) {
                        panic!("{path}: {example}: {why:#}");
                    }
                }
            }
        }
    }

    /// The recipe of an example exists, belongs to the command and has the keys of --set.
    #[test]
    fn examples_name_recipes_and_settings_that_exist() {
        let named: Vec<String> = crate::recipes::all().map(|recipe| recipe.name.clone()).collect();
        let mut seen = 0;
        for (path, help) in helps() {
            for example in examples(&help) {
                let words: Vec<&str> = example.split_whitespace().filter(|&word| word != "\\").collect();
                for word in &words {
                    let Some(recipe) =
                        named.contains(&(*word).to_owned()).then(|| crate::recipes::find(word).unwrap())
                    else {
                        continue;
                    };
                    let command = crate::stage::command_of(&recipe.stage().unwrap()).unwrap();
                    let shows = words[1..].join(" ").starts_with("recipes show");
                    assert!(
                        shows || words[1..].join(" ").starts_with(command),
                        "{path}: {word} is a recipe of `beit2 {command}`, not of {example}"
                    );
                    seen += 1;
                }
            }
        }
        assert!(seen > 10, "{seen} recipes in all examples");
    }

    /// What a command says of itself and its flags, built as for `--help`.
    fn texts() -> Vec<(String, String, Vec<String>)> {
        fn walk(command: &clap::Command, path: &str, found: &mut Vec<(String, String, Vec<String>)>) {
            let of = |arg: &clap::Arg| arg.get_long_help().or(arg.get_help()).map(ToString::to_string);
            let text: String = command.get_arguments().filter_map(of).map(|help| help + "\n").collect();
            let flags =
                command.get_arguments().filter_map(|arg| arg.get_long().map(|long| format!("--{long}")));
            found.push((path.to_owned(), text, flags.collect()));
            for inner in command.get_subcommands().filter(|inner| inner.get_name() != "help") {
                walk(inner, &format!("{path} {}", inner.get_name()), found);
            }
        }
        let mut command = Cli::command();
        command.build();
        let mut found = Vec::new();
        walk(&command, "beit2", &mut found);
        found
    }

    #[test]
    fn help_names_no_flag_that_the_command_lacks() {
        for (path, text, flags) in texts() {
            for word in text.split(|c: char| !(c.is_ascii_lowercase() || c == '-')) {
                let is_flag = word.len() > 3 && word.starts_with("--");
                assert!(!is_flag || flags.iter().any(|flag| flag == word), "{path} has no {word}: {text}");
            }
        }
    }

    #[test]
    fn shared_flags_say_what_they_mean_in_each_command() {
        let texts = texts();
        let of = |path: &str| &texts.iter().find(|(at, ..)| at == path).unwrap().1;
        for (path, says, not) in [
            ("beit2 teacher distill", "there is no default", "default: the paper's"),
            ("beit2 tokenizer train", "[default: vqkd_base_clip_100e]", "the paper's"),
            ("beit2 segment train", "images/, masks/ and classes.txt", "bundled:train"),
            ("beit2 finetune", "one sub-folder per class", "the paper's"),
            ("beit2 finetune", "Several devices", "bundled:val"),
            ("beit2 predict", "`beit2 doctor` shows what", "everal devices"),
            ("beit2 bench infer", "Forward passes per round", "frozen model"),
            ("beit2 weights fetch", "timm's safetensors", "Hugging Face"),
            ("beit2 eval", "else ignore, as in the published", "`eval`"),
            ("beit2 data check", "[default: apply]", "in the run"),
        ] {
            let text = of(path);
            assert!(text.contains(says) && !text.contains(not), "{path}: {says} / {not}: {text}");
        }
    }
}
