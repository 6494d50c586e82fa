//! What a training command tells: a quiet start, lines that come neither too often nor too seldom, an end that can be used.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::support::{Ended, World, classes, image};

/// Runs a printed command as a shell would.
fn pasted(world: &World, command: &str, more: &str) -> Ended {
    let program = Path::new(env!("CARGO_BIN_EXE_beit2")).parent().unwrap();
    let path = format!("{}:{}", program.display(), std::env::var("PATH").unwrap_or_default());
    let line = format!("{command} {more}");
    let mut shell = Command::new("sh");
    shell.args(["-c", &line]).current_dir(world.root()).env("PATH", path).env("RAYON_NUM_THREADS", "1");
    Ended::from(shell.output().unwrap())
}

/// The value of a row such as `best     validation loss …`.
#[track_caller]
fn row<'a>(text: &'a str, name: &str) -> &'a str {
    let found = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix("  "));
    found.unwrap_or_else(|| panic!("no `{name}` in: {text}")).trim()
}

fn json(ended: &Ended) -> Value {
    serde_json::from_str(&ended.works().out).unwrap_or_else(|_| panic!("{}", ended.out))
}

#[test]
fn the_start_is_quiet() {
    let world = World::new();
    let ended = world.tokenizer("run", &["--val", "train", "--set", "lr=1e-3"]);
    let err = &ended.works().err;
    for (name, value) in [
        ("run", "run (all settings: run.toml in it)"),
        ("recipe", "tiny.toml, 2 settings changed"),
        ("data", "train: 24 used"),
        ("validation", "train: 24 used"),
        ("teacher", "teacher.safetensors"),
        ("schedule", "12 steps of 8 images = 96 images (4 epochs)"),
        ("learning rate", "1e-3 after 3 steps of warm-up, then down to 0"),
    ] {
        assert_eq!(row(err, name), value);
    }
    assert!(row(err, "model").contains(" trained parameters, 16 codes of 4 values"), "{err}");
    let lines = err
        .lines()
        .take_while(|line| !line.starts_with("step "))
        .filter(|line| !line.starts_with("warning:"));
    assert!(lines.count() <= 12, "{err}");
    assert!(!err.contains("codebook_size") && !err.contains("keep_checkpoints"), "no settings: {err}");
    let quiet = world.tokenizer("quiet", &["--quiet", "--set", "lr=1e-3"]);
    assert_eq!(quiet.works().err, "");
}

#[test]
fn fast_steps_do_not_flood_and_the_last_one_is_told() {
    let world = World::new();
    let began = std::time::Instant::now();
    let ended = world.tokenizer("run", &["--set", "epochs=60"]);
    let seconds = began.elapsed().as_secs() as usize;
    let count = |start: &str| ended.works().err.lines().filter(|line| line.starts_with(start)).count();
    // The first step, the last one, and at most one a second in between.
    assert!((2..=seconds + 3).contains(&count("step ")), "{}", ended.err);
    assert!((1..=seconds + 3).contains(&count("epoch ")), "{}", ended.err);
    assert!(
        ended.err.contains("step 1/180  epoch 1/60  loss ") && ended.err.contains("step 180/180"),
        "{}",
        ended.err
    );
    assert!(ended.err.contains("epoch 60/60 done  loss "), "the last epoch is told: {}", ended.err);
    // All of them are in the file.
    let metrics = fs::read_to_string(world.path("run/metrics.jsonl")).unwrap();
    assert_eq!(metrics.lines().count(), 180 + 60);
}

#[test]
fn the_best_is_that_of_the_checkpoint_and_the_next_command_works() {
    let world = World::new();
    let ended = world.tokenizer("run", &["--val", "train", "--json"]);
    let end = json(&ended);
    let best = &end["best"];
    assert_eq!(best["checkpoint"], "run/best");
    assert_eq!(best["metric"], "val_loss");
    let state: Value = serde_json::from_slice(&fs::read(world.path("run/best/state.json")).unwrap()).unwrap();
    assert_eq!(best["step"], state["step"], "{best}");
    let [told, kept] = [&best["value"], &state["state"]["best"]].map(|value| value.as_f64().unwrap());
    assert!((told - kept).abs() < 1e-9, "{told}: {kept}");
    assert_eq!((&end["last"]["metric"], &end["last"]["epoch"]), (&"val_loss".into(), &4.into()));
    assert_eq!(end["continue"], Value::Null);
    // What was told before the first step belongs to the run too.
    assert_eq!(end["warnings"]["count"], 1);
    assert!(end["warnings"]["first"][0]["text"].as_str().unwrap().contains("24 of 24 images"), "{end}");
    // Its images and the recipe beside its own.
    assert_eq!(end["next"], "beit2 pretrain mim.toml --val train --tokenizer run --out mim");

    // The same as text.
    let again = world.tokenizer("run", &["--val", "train"]);
    let value = best["value"].as_f64().unwrap();
    let shown = row(&again.works().out, "best");
    assert!(shown.starts_with("validation loss ") && shown.ends_with("): run/best"), "{shown}");
    let printed: f64 = shown.split(' ').nth(2).unwrap().parse().unwrap();
    assert!((printed - value).abs() < 1e-3 * value, "{shown}: {value}");
    assert!(row(&again.out, "last").starts_with("validation loss "), "{}", again.out);
    assert_eq!(row(&again.out, "report"), "run/report.html");

    // The next command, as it is; its images have no classes, so that features come next.
    let pretrained = pasted(&world, row(&again.out, "next"), "");
    assert_eq!(
        row(&pretrained.works().out, "next"),
        "beit2 embed train --weights mim --out mim/features.npy"
    );
    assert!(row(&pretrained.out, "best").ends_with(": mim/best"), "{}", pretrained.out);
    pasted(&world, row(&pretrained.out, "next"), "").works();
    assert!(world.path("mim/features.npy").is_file());
}

#[test]
fn a_chain_of_next_commands_ends_in_predictions() {
    let world = World::new();
    classes(&world.path("labelled"), &["dark", "gray", "light one"]);
    let data = ["--data", "labelled", "--set", "epochs=2"];
    let ended = world.tokenizer("my run", &data);
    // Without validation images there is no best checkpoint, and the end says so.
    assert!(!ended.works().out.contains("best"), "{}", ended.out);
    assert!(row(&ended.out, "last").ends_with("(there are no validation images)"), "{}", ended.out);
    let next = row(&ended.out, "next");
    assert_eq!(next, "beit2 pretrain mim.toml --data labelled --tokenizer 'my run' --out mim");

    let pretrained = pasted(&world, next, "--set epochs=2 --val labelled");
    let next = row(&pretrained.works().out, "next");
    assert!(
        next.starts_with("beit2 finetune fashion_finetune --data labelled --val labelled --init mim "),
        "{next}"
    );
    let tuned = pasted(&world, next, "--set steps=3 --set warmup_steps=1");
    let shown = row(&tuned.works().out, "best");
    assert!(shown.starts_with("validation top-1 accuracy ") && shown.contains(" % in epoch "), "{shown}");
    let next = row(&tuned.out, "next");
    assert_eq!(next, "beit2 predict labelled/dark/0.ppm --weights fashion_finetune/best");
    assert!(pasted(&world, next, "").works().out.contains(" % light one"));
}

#[test]
fn a_distilled_teacher_is_followed_by_a_tokenizer() {
    let world = World::new();
    let recipe = "stage = \"distill\"\n[model]\nimage_size = 32\npatch_size = 8\nwidth = 16\ndepth = 1\nheads = 2\n\
                  [teacher]\nkind = \"dino\"\nweights = \"teacher.safetensors\"\nheads = 2\n[data]\ntrain = \"train\"\n\
                  [optimizer]\nmin_lr = 0.0\n[schedule]\nepochs = 2\nbatch_size = 8\nwarmup_epochs = 1.0\n";
    fs::write(world.path("small.toml"), recipe).unwrap();
    let ended = world.beit2(&["teacher", "distill", "small.toml", "--out", "student"]);
    let next = row(&ended.works().out, "next");
    let wanted = "beit2 tokenizer train tiny.toml --set teacher.kind=distilled --set teacher.weights=student";
    assert!(next.starts_with(wanted), "{next}");
    pasted(&world, next, "--set epochs=1").works();
}

#[test]
fn warnings_come_once_and_again_at_the_end() {
    let world = World::new();
    for at in 0..crate::support::IMAGES {
        fs::write(world.path(&format!("train/{at:02}.ppm")), image(at, 12)).unwrap();
    }
    let ended = world.tokenizer("run", &["--set", "epochs=1"]);
    let err = &ended.works().err;
    let sentence = "and are enlarged; use larger images";
    let shown = err.lines().filter(|line| line.starts_with("warning:") && line.contains(sentence)).count();
    assert_eq!(shown, 1, "{err}");
    let lines: Vec<&str> = err.lines().collect();
    let list =
        lines.iter().position(|line| line.ends_with(" warning:") || line.ends_with(" warnings:")).unwrap();
    let epoch = lines.iter().position(|line| line.starts_with("epoch 1/1 done")).unwrap();
    assert!(
        epoch < list && lines[list..].iter().any(|line| line.starts_with("  - ") && line.contains(sentence)),
        "{err}"
    );
    let end = json(&world.tokenizer("again", &["--set", "epochs=1", "--json", "--quiet"]));
    assert_eq!(end["warnings"]["log"], "again/warnings.log");
    let first = end["warnings"]["first"].as_array().unwrap();
    assert!(first.iter().any(|w| w["text"].as_str().unwrap().contains(sentence) && w["times"] == 1), "{end}");
}

/// On a terminal there is one line that moves, and it fits; `script` emulates one.
#[cfg(target_os = "linux")]
#[test]
fn a_terminal_has_one_line_that_fits() {
    let world = World::new();
    let shell = |colour: &str| {
        let inner = format!(
            "stty rows 24 cols 60; {colour} {} tokenizer train tiny.toml --out run --restart --set epochs=20",
            env!("CARGO_BIN_EXE_beit2")
        );
        let mut script = Command::new("script");
        script.args(["-qec", &inner, "/dev/null"]).current_dir(world.root()).env("RAYON_NUM_THREADS", "1");
        script.env("TERM", "xterm-256color").env_remove("NO_COLOR").stdin(std::process::Stdio::null());
        script.output().map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    // Not every machine has it.
    let (Ok(coloured), Ok(plain)) = (shell(""), shell("NO_COLOR=1")) else { return };
    assert!(coloured.contains("\u{1b}[36m━") && coloured.contains("\u{1b}[1mtokenizer"), "{coloured}");
    assert!(!plain.contains("\u{1b}[36m"), "{plain}");
    let bars = plain.split(['\r', '\n']).map(without_escapes).filter(|line| line.contains("/60  "));
    let bars: Vec<String> = bars.collect();
    assert!(bars.iter().any(|line| line.starts_with("tokenizer ") && line.contains("loss ")), "{plain}");
    assert!(bars.iter().all(|line| line.trim_end().chars().count() <= 60), "{bars:#?}");
}

/// A line without ANSI escape sequences.
fn without_escapes(line: &str) -> String {
    let mut text = String::new();
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            '\u{1b}' => drop(chars.by_ref().find(char::is_ascii_alphabetic)),
            c => text.push(c),
        }
    }
    text
}
