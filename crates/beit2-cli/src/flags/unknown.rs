//! What someone meant by a flag or a command that is not there.
//!
//! clap compares spellings. People bring names from other programs (`--learning-rate`, `--bs`), recipe keys
//! (`--mask-ratio`) and commands (`train`), so these are translated first, and only to what the command at hand has.

use beit2::classify::finetune::FinetuneRecipe;
use beit2::pretrain::PretrainRecipe;
use beit2::segment::SegmentRecipe;
use beit2::tokenizer::TokenizerRecipe;
use beit2::tokenizer::teachers::DistillRecipe;
use beit2_run::{recipe, suggest};
use clap::Command;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::recipes;
use crate::stage::{Stage, command_of as command_of_stage};

/// Names from elsewhere, and what to use in their place: the first that the command has.
const ELSEWHERE: &[(&[&str], &[&str])] = &[
    (&["learning-rate", "base-lr", "max-lr", "peak-lr", "blr", "lr0"], &["--lr"]),
    (
        &["batch", "bs", "b", "batchsize", "train-batch-size", "batch-size-per-gpu", "images-per-batch"],
        &["--batch-size", "--batch", "--images-per-batch"],
    ),
    (&["batch-size"], &["--batch", "--images-per-batch"]),
    (
        &[
            "output",
            "output-dir",
            "out-dir",
            "outdir",
            "save-dir",
            "save-path",
            "save",
            "log-dir",
            "logdir",
            "work-dir",
            "dest",
        ],
        &["--out"],
    ),
    (&["num-workers", "n-workers", "nworkers", "j", "threads", "num-threads", "jobs"], &["--workers"]),
    (
        &[
            "checkpoint",
            "ckpt",
            "model",
            "model-path",
            "weights",
            "weight",
            "pretrained",
            "pretrained-weights",
            "load",
            "init",
        ],
        &["--weights", "--init", "--tokenizer", "--set teacher.weights=FILE"],
    ),
    (&["teacher", "teacher-weights", "teacher-model"], &["--set teacher.weights=FILE"]),
    (&["tokenizer-weights", "tokenizer-path", "tokenizer"], &["--tokenizer", "--weights"]),
    (
        &["gpu", "gpus", "cuda", "use-gpu", "use-cuda", "gpu-id", "device-id", "accelerator"],
        &["--device cuda"],
    ),
    (&["no-cuda", "no-gpu", "cpu", "use-cpu"], &["--device cpu"]),
    (&["distributed", "world-size", "nproc-per-node", "num-gpus", "n-gpus"], &["--device cuda:all"]),
    (
        &[
            "img-size",
            "imgsz",
            "img",
            "image-sz",
            "input-size",
            "resolution",
            "res",
            "crop-size",
            "imagesize",
        ],
        &["--image-size", "--size"],
    ),
    (
        &[
            "train",
            "train-data",
            "train-dir",
            "data-dir",
            "data-path",
            "datadir",
            "dataset",
            "data-root",
            "root",
            "input",
            "images",
            "image-dir",
        ],
        &["--data"],
    ),
    (
        &[
            "valid",
            "validation",
            "val-data",
            "val-dir",
            "valid-data",
            "test",
            "test-data",
            "test-dir",
            "eval-data",
            "eval-data-path",
        ],
        &["--val", "--data"],
    ),
    (&["epoch", "num-epochs", "n-epochs", "nepochs", "max-epochs", "e", "num-train-epochs"], &["--epochs"]),
    (
        &[
            "step",
            "num-steps",
            "n-steps",
            "max-steps",
            "total-steps",
            "iters",
            "iterations",
            "max-iters",
            "num-iters",
        ],
        &["--steps"],
    ),
    (&["epochs", "steps"], &["--minutes"]),
    (&["wd", "weight-decay"], &["--weight-decay", "--set optimizer.weight_decay=DECAY"]),
    (&["momentum", "beta"], &["--set optimizer.beta1=DECAY"]),
    (&["warmup", "warmup-epochs", "warm-up"], &["--set schedule.warmup_epochs=N"]),
    (&["warmup-iters"], &["--set schedule.warmup_steps=N"]),
    (
        &["fp16", "bf16", "amp", "half", "use-amp", "mixed-precision", "half-precision", "dtype"],
        &["--precision bf16"],
    ),
    (&["fp32", "f32", "no-amp"], &["--precision f32"]),
    (&["random-seed", "manual-seed", "rng-seed"], &["--seed"]),
    (&["continue", "resume-from", "auto-resume", "resume-training", "restore"], &["--resume"]),
    (&["overwrite", "force", "fresh", "no-resume", "from-scratch"], &["--restart", "--overwrite"]),
    (
        &["clip", "grad-clip", "clip-grad", "max-grad-norm", "gradient-clip-val"],
        &["--set optimizer.clip_grad=NORM"],
    ),
    (
        &["accum", "accum-iter", "accumulate", "grad-accum", "gradient-accumulation-steps", "update-freq"],
        &["--set schedule.grad_accum_steps=N"],
    ),
    (
        &["micro-batch", "micro-batch-size", "per-device-batch-size", "batch-size-per-gpu"],
        &["--set schedule.max_micro_batch=IMAGES"],
    ),
    (&["mask-ratio", "masking-ratio", "num-mask-patches", "mask-patches"], &["--set mask.patches=N"]),
    (&["codebook", "n-codes", "num-codes", "n-embed", "codebook-n-emd"], &["--set model.codebook_size=N"]),
    (&["vocab", "num-tokens"], &["--set model.vocab_size=N"]),
    (&["num-classes", "nb-classes", "n-classes"], &["--set model.classes=N"]),
    (&["smoothing"], &["--set label_smoothing=FRACTION"]),
    (&["arch", "model-size", "variant", "backbone", "model-name"], &["--size"]),
    (
        &["save-every", "save-freq", "save-ckpt-freq", "save-interval"],
        &["--set logging.checkpoint_every=STEPS"],
    ),
    (&["log-interval", "print-freq", "log-freq"], &["--set logging.log_every=STEPS"]),
    (&["eval-every", "eval-interval", "eval-freq"], &["--set logging.eval_every_epochs=N"]),
    (&["silent", "no-progress"], &["--quiet"]),
    (&["dryrun", "dry", "check"], &["--dry-run"]),
    (&["topk", "k", "num-neighbors", "nb-knn"], &["--top-k", "--k"]),
];

/// Names that people give the recipe's flag.
const RECIPE: [&str; 5] = ["config", "cfg", "recipe", "config-file", "conf"];

/// Commands from elsewhere and ours.
const COMMANDS: &[(&[&str], &str)] = &[
    (&["train", "fit", "run-training"], "tokenizer train, pretrain, finetune or segment train"),
    (&["pre-train", "pretraining", "mim"], "pretrain"),
    (&["fine-tune", "finetuning", "ft"], "finetune"),
    (&["evaluate", "evaluation", "test", "validate", "val"], "eval"),
    (&["infer", "inference", "classify"], "predict"),
    (&["vqkd", "train-tokenizer"], "tokenizer train"),
    (&["linear-probe", "linear", "linprobe"], "probe"),
    (&["k-nn", "neighbors"], "knn"),
    (&["benchmark", "speed"], "bench"),
    (&["features", "extract", "embeddings"], "embed"),
    (&["segmentation", "seg"], "segment"),
    (&["download", "pull"], "weights fetch"),
    (&["list", "models", "configs", "recipe"], "recipes"),
    (&["demo", "start", "example"], "quickstart"),
    (&["version"], "--version"),
    (&["check", "env", "info"], "doctor"),
];

/// The sentence for an unknown flag, argument or command in `args`, without the program's name; `None` for other errors.
pub fn explain(error: &clap::Error, args: &[String], root: &Command) -> Option<String> {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        _ => None,
    };
    let (command, path) = command_of(args, root);
    match error.kind() {
        ErrorKind::UnknownArgument => {
            let typed = as_typed(context(ContextKind::InvalidArg)?, args);
            Some(if let Some((flag, value)) = negative(&typed, args) {
                format!("invalid value '{value}' for '{flag}': it must not be negative (see `{path} --help`)")
            } else if typed.starts_with('-') {
                flag(&typed, command, &path, root)
            } else {
                argument(&typed, &path)
            })
        }
        ErrorKind::InvalidSubcommand => {
            Some(subcommand(&context(ContextKind::InvalidSubcommand)?, command, &path, root))
        }
        _ => None,
    }
}

/// The command that `args` name, and its path from the program's name on.
fn command_of<'a>(args: &[String], root: &'a Command) -> (&'a Command, String) {
    let (mut command, mut path) = (root, root.get_name().to_owned());
    for arg in args.iter().filter(|arg| !arg.starts_with('-')) {
        let Some(inner) = command.find_subcommand(arg) else { break };
        command = inner;
        path = format!("{path} {}", inner.get_name());
    }
    (command, path)
}

/// The flag before a negative number that clap does not take for one, such as `-1e-3`, and the number.
fn negative<'a>(typed: &str, args: &'a [String]) -> Option<(&'a str, &'a str)> {
    let digit = typed.strip_prefix('-')?.starts_with(|c: char| c.is_ascii_digit() || c == '.');
    let at = args.iter().position(|arg| digit && arg.starts_with(typed))?;
    let flag = args.get(at.checked_sub(1)?)?;
    flag.starts_with("--").then_some((flag.as_str(), args[at].as_str()))
}

/// clap reads `-lr` as `-l -r`; the user meant a word.
fn as_typed(invalid: String, args: &[String]) -> String {
    let is_letter = invalid.len() == 2 && !invalid.starts_with("--");
    let word = args.iter().find(|arg| {
        is_letter
            && arg.starts_with(&invalid)
            && arg[1..].chars().take(2).filter(|c| c.is_alphabetic()).count() == 2
    });
    let whole = word.map_or(invalid.as_str(), String::as_str);
    match whole.starts_with('-') {
        true => whole.split('=').next().unwrap_or_default().to_owned(),
        false => invalid,
    }
}

fn flag(typed: &str, command: &Command, path: &str, root: &Command) -> String {
    let name = typed.trim_start_matches('-').replace('_', "-").to_lowercase();
    let has_none = format!("`{path}` has no '{typed}'");
    let help = format!("(see `{path} --help`)");
    if RECIPE.contains(&name.as_str()) && takes_a_recipe(command) {
        return format!("{has_none}; the recipe is given by itself: `{path} my.toml` {help}");
    }
    if let Some(right) = translated(&name, command, path) {
        return format!("{has_none}; use '{right}' {help}");
    }
    let flags: Vec<&str> = command.get_arguments().filter_map(|arg| arg.get_long()).collect();
    if let Some(near) = suggest(&name, flags.iter().copied()) {
        return format!("{has_none}; did you mean '--{near}'? {help}");
    }
    match elsewhere(&name, root).as_slice() {
        [] => format!("{has_none} {help}"),
        commands => format!("{has_none}; it is a flag of {} {help}", commands.join(", ")),
    }
}

/// The flag, or the setting of the recipe, that has this meaning here.
fn translated(name: &str, command: &Command, path: &str) -> Option<String> {
    let has = |flag: &str| {
        let long = flag.trim_start_matches("--").split(' ').next().unwrap_or_default();
        command.get_arguments().any(|arg| arg.get_long() == Some(long))
    };
    let keys = keys_of(path);
    let fits = |target: &str| match target.strip_prefix("--set ") {
        Some(setting) => keys.iter().any(|key| Some(key.as_str()) == setting.split('=').next()),
        None => has(target),
    };
    // The right name in another spelling: `--batch_size`, `-epochs`.
    if has(name) {
        return Some(format!("--{name}"));
    }
    let known = ELSEWHERE.iter().filter(|(names, _)| names.contains(&name)).flat_map(|(_, targets)| *targets);
    if let Some(target) = known.copied().find(|target| fits(target)) {
        return Some(target.to_owned());
    }
    let key = name.replace('-', "_");
    let found = keys.iter().find(|full| **full == key || full.ends_with(&format!(".{key}")));
    found.map(|full| format!("--set {full}=VALUE"))
}

/// The settings of the recipes that a command trains.
fn keys_of(path: &str) -> Vec<String> {
    let keys = match path.split_once(' ').map_or("", |(_, command)| command) {
        TokenizerRecipe::COMMAND => recipe::known_keys::<TokenizerRecipe>(),
        PretrainRecipe::COMMAND => recipe::known_keys::<PretrainRecipe>(),
        FinetuneRecipe::COMMAND => recipe::known_keys::<FinetuneRecipe>(),
        SegmentRecipe::COMMAND => recipe::known_keys::<SegmentRecipe>(),
        DistillRecipe::COMMAND => recipe::known_keys::<DistillRecipe>(),
        _ => return Vec::new(),
    };
    keys.unwrap_or_default()
}

fn takes_a_recipe(command: &Command) -> bool {
    command.get_positionals().any(|arg| arg.get_id() == "recipe")
}

/// Commands that have this flag.
fn elsewhere(name: &str, root: &Command) -> Vec<String> {
    fn walk(command: &Command, path: &str, name: &str, found: &mut Vec<String>) {
        if command.get_arguments().any(|arg| arg.get_long() == Some(name)) {
            found.push(format!("`{path}`"));
        }
        for inner in command.get_subcommands() {
            walk(inner, &format!("{path} {}", inner.get_name()), name, found);
        }
    }
    let mut found = Vec::new();
    walk(root, root.get_name(), name, &mut found);
    found.truncate(3);
    found
}

fn argument(typed: &str, path: &str) -> String {
    let hint = match typed.split_once('=') {
        Some(_) if !keys_of(path).is_empty() => {
            format!("to change a setting of the recipe, write '--set {typed}'")
        }
        _ => "a value stands behind its flag, and a name with spaces or * in quotes".to_owned(),
    };
    format!("`{path}` does not expect '{typed}' here; {hint} (see `{path} --help`)")
}

fn subcommand(typed: &str, command: &Command, path: &str, root: &Command) -> String {
    let has_none = format!("`{path}` has no command '{typed}'");
    let name = typed.to_lowercase().replace('_', "-");
    let own: Vec<&str> = command.get_subcommands().map(Command::get_name).collect();
    let mut right = own.iter().find(|own| **own == name).map(|own| (*own).to_owned());
    if command.get_name() == root.get_name() {
        let known = COMMANDS.iter().find(|(names, _)| names.contains(&name.as_str()));
        right = right.or_else(|| known.map(|(_, ours)| (*ours).to_owned()));
        // `convert` for `weights convert`.
        let groups = root
            .get_subcommands()
            .flat_map(|group| group.get_subcommands().map(move |inner| (group.get_name(), inner.get_name())));
        let mut inner = groups.filter(|(_, inner)| *inner == name);
        right = right.or_else(|| inner.next().map(|(group, inner)| format!("{group} {inner}")));
    }
    // A recipe where its command is missing.
    if let Some(ours) = recipes::find(typed).ok().and_then(|found| command_of_stage(&found.stage()?)) {
        return format!("{has_none}; to train this recipe: `{path} {ours} {typed}`");
    }
    let right = right.or_else(|| suggest(&name, own.iter().copied()).map(str::to_owned));
    match right {
        Some(right) => format!("{has_none}; did you mean '{right}'? (see `{path} --help`)"),
        None => format!("{has_none}; it has {} (see `{path} --help`)", own.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use crate::cli::sentence_of;

    #[track_caller]
    fn says(line: &str, parts: &[&str]) {
        let text = sentence_of(line);
        for part in parts {
            assert!(text.contains(part), "no `{part}` in: {text}");
        }
        assert!(!text.contains("as a value") && !text.contains("-- -") && !text.contains('\n'), "{text}");
    }

    #[test]
    fn names_from_elsewhere_are_translated() {
        for (line, right) in [
            ("pretrain --learning-rate 1e-3", "use '--lr'"),
            ("finetune --bs 8", "use '--batch-size'"),
            ("tokenizer train --output-dir x", "use '--out'"),
            ("finetune --num-workers 3", "use '--workers'"),
            ("predict --checkpoint x y", "use '--weights'"),
            ("finetune --pretrained x", "use '--init'"),
            ("pretrain --weights x", "use '--init'"),
            ("tokenizer train --teacher x", "use '--set teacher.weights=FILE'"),
            ("pretrain --gpu 0", "use '--device cuda'"),
            ("pretrain --no-cuda", "use '--device cpu'"),
            ("teacher distill --img-size 64", "use '--image-size'"),
            ("segment train --train x", "use '--data'"),
            ("pretrain --config my.toml", "`beit2 pretrain my.toml`"),
            ("pretrain --wd 0.1", "use '--set optimizer.weight_decay=DECAY'"),
            ("probe --wd 0.1", "use '--weight-decay'"),
            ("pretrain --fp16", "use '--precision bf16'"),
            ("pretrain --mask-ratio 0.4", "use '--set mask.patches=N'"),
            ("pretrain --num-epochs 3", "use '--epochs'"),
            ("pretrain --max-iters 3", "use '--steps'"),
            ("pretrain --batch_size 3", "use '--batch-size'"),
            ("pretrain -lr 3", "use '--lr'"),
            ("pretrain -epochs=3", "use '--epochs'"),
            ("finetune --warmup-epochs=3", "use '--set schedule.warmup_epochs=N'"),
            ("finetune --drop-path 0.1", "use '--set model.vit.drop_path=VALUE'"),
            ("finetune --min-lr 0.1", "use '--set optimizer.min_lr=VALUE'"),
            ("pretrain --optimizer.beta2 0.9", "use '--set optimizer.beta2=VALUE'"),
        ] {
            says(line, &["has no '-", right, "--help"]);
        }
    }

    #[test]
    fn a_command_is_only_told_what_it_has() {
        says("tokenizer train --mask-ratio 0.4", &["`beit2 tokenizer train` has no '--mask-ratio'"]);
        assert!(!sentence_of("tokenizer train --mask-ratio 0.4").contains("mask.patches"));
        assert!(!sentence_of("doctor --gpu").contains("--device"));
        says("pretrain --epochz 3", &["did you mean '--epochs'?"]);
        says("quickstart --epochs 3", &["use '--minutes'"]);
        says("knn --minutes 3", &["'--minutes'", "it is a flag of `beit2 quickstart`"]);
        says("--frobnicate", &["`beit2` has no '--frobnicate'"]);
    }

    #[test]
    fn stray_arguments_and_commands() {
        says("pretrain a.toml lr=1e-3", &["'lr=1e-3'", "write '--set lr=1e-3'"]);
        says("pretrain a.toml b", &["does not expect 'b' here"]);
        for (line, right) in [
            ("train", "tokenizer train, pretrain, finetune or segment train"),
            ("fine-tune", "'finetune'"),
            ("Pretrain", "'pretrain'"),
            ("convert x", "'weights convert'"),
            ("distill", "'teacher distill'"),
            ("tokenizr", "'tokenizer'"),
            ("weights inspct x", "'inspect'"),
            ("weights zzz", "it has inspect"),
            ("mim_base_300e", "to train this recipe: `beit2 pretrain mim_base_300e`"),
        ] {
            says(line, &["has no command", right]);
        }
    }

    #[test]
    fn negative_numbers_are_values() {
        says("quickstart --seed -1", &["'-1' for '--seed <N>'", "a whole number of 0 or more"]);
        says("pretrain --workers -2", &["'-2' for '--workers <N>'", "a whole number of 0 or more"]);
        says("pretrain --seed -1", &["'-1' for '--seed <N>'", "a seed is a whole number from 0"]);
        says("pretrain --batch-size -4", &["'-4' for '--batch-size <N>'", "at least 1"]);
        says("quickstart --minutes x", &["'x' for '--minutes <N>'", "a number is wanted"]);
        says("pretrain --epochs 3 --steps 4", &["'--epochs <N>' cannot be used with '--steps <N>'"]);
        says("pretrain --resume --restart", &["cannot be used with"]);
    }
}
