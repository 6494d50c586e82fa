//! The flags of training commands, and settings that follow others, through the real binary.

use std::fs;

use toml::Table;

use super::support::{Ended, World, classes, image};
use super::{scenes, tiny};

const FINETUNE: &str = r#"stage = "finetune"
[model.vit]
image_size = 64
patch_size = 16
width = 16
depth = 1
heads = 2
[optimizer]
lr = 1e-3
[schedule]
epochs = 20
warmup_epochs = 4.0
batch_size = 6
"#;

const SEGMENT: &str = r#"stage = "segment"
[model]
out_indices = [0, 1, 2, 3]
channels = 16
aux_channels = 8
[model.vit]
image_size = 64
patch_size = 8
width = 16
depth = 4
heads = 2
[augment]
base = [72, 66]
[optimizer]
lr = 3e-3
[schedule]
steps = 600
warmup_steps = 60
batch_size = 4
[infer]
resize = false
stride = 42
"#;

const DISTILL: &str = r#"stage = "distill"
[model]
image_size = 32
patch_size = 8
width = 16
depth = 1
heads = 2
[teacher]
kind = "dino"
weights = "teacher.safetensors"
heads = 2
[data]
train = "train"
[schedule]
epochs = 4
batch_size = 8
"#;

fn world() -> World {
    let world = World::new();
    for (name, text) in [("ft.toml", FINETUNE), ("seg.toml", SEGMENT), ("distill.toml", DISTILL)] {
        fs::write(world.path(name), text).unwrap();
    }
    classes(&world.path("classes"), &["dark", "gray", "light"]);
    scenes::scenes(&world.path("scenes"), 6);
    tiny::tokenizer(&world.path("tok.safetensors"));
    world
}

/// A training command that must stop before it trains.
fn dry(world: &World, command: &str, more: &[&str]) -> Ended {
    let line: Vec<&str> =
        command.split_whitespace().chain(more.iter().copied()).chain(["--dry-run"]).collect();
    world.beit2(&line)
}

const TOKENIZER: &str = "tokenizer train tiny.toml";
const PRETRAIN: &str = "pretrain mim.toml --tokenizer tok.safetensors";
const FINETUNED: &str = "finetune ft.toml --data classes --init scratch";
const SEGMENTED: &str = "segment train seg.toml --data scenes --init scratch";
const DISTILLED: &str = "teacher distill distill.toml";
const ALL: [&str; 5] = [TOKENIZER, PRETRAIN, FINETUNED, SEGMENTED, DISTILLED];

/// The value at a dotted key of the settings that a dry run prints.
#[track_caller]
fn value(ended: &Ended, key: &str) -> toml::Value {
    let table: Table = ended.works().out.parse().unwrap();
    let whole = toml::Value::Table(table);
    key.split('.').try_fold(&whole, |at, part| at.get(part)).unwrap_or_else(|| panic!("no {key}")).clone()
}

#[test]
fn every_training_command_has_the_usual_flags() {
    let world = world();
    for command in ALL {
        let flags = ["--steps", "150", "--batch-size", "4", "--lr", "2e-4", "--seed", "7"];
        let ended = dry(&world, command, &flags);
        assert_eq!(value(&ended, "schedule.steps").as_integer(), Some(150), "{command}");
        assert_eq!(value(&ended, "schedule.batch_size").as_integer(), Some(4), "{command}");
        assert_eq!(value(&ended, "optimizer.lr").as_float(), Some(2e-4), "{command}");
        assert_eq!(value(&ended, "seed").as_integer(), Some(7), "{command}");
        assert!(ended.err.contains("learning rate 2e-4") && ended.err.contains("as given"), "{}", ended.err);
        assert!(ended.err.contains("150 steps of 4 images"), "{}", ended.err);
        let ended = dry(&world, command, &["--epochs", "3"]);
        assert_eq!(value(&ended, "schedule.epochs").as_integer(), Some(3), "{command}");
        assert!(
            ended.out.lines().all(|line| !line.starts_with("steps = ") || line.ends_with("\"none\"")),
            "{command}: {}",
            ended.out
        );
    }
    for command in &ALL[..4] {
        let ended = dry(&world, command, &["--precision", "bf16"]);
        assert_eq!(value(&ended, "precision").as_str(), Some("bf16"), "{command}");
    }
    dry(&world, DISTILLED, &["--precision", "bf16"])
        .fails(2, &["--precision bf16", "always computes in f32"]);
}

#[test]
fn sizes_of_every_stage() {
    let world = world();
    for (command, table) in
        [(TOKENIZER, "model"), (FINETUNED, "model.vit"), (SEGMENTED, "model.vit"), (DISTILLED, "model")]
    {
        let ended = dry(&world, command, &["--size", "tiny", "--image-size", "48", "--no-check"]);
        for (key, expected) in [("width", 192), ("depth", 12), ("heads", 3), ("image_size", 48)] {
            let found = value(&ended, &format!("{table}.{key}")).as_integer();
            assert_eq!(found, Some(expected), "{command}: {key}");
        }
    }
    let ended = dry(&world, SEGMENTED, &["--image-size", "96"]);
    assert_eq!(value(&ended, "infer.stride").as_integer(), Some(63));
    assert!(ended.err.contains("windows of 96 px lie 63 px apart"), "{}", ended.err);
    for command in [TOKENIZER, FINETUNED, SEGMENTED, DISTILLED] {
        dry(&world, command, &["--image-size", "70"])
            .fails(2, &["image_size 70 is not a multiple of patch_size", "the nearest that fit are 64 and"]);
    }
    let ended = dry(&world, PRETRAIN, &["--image-size", "30"]);
    ended.fails(2, &["image_size 30", "patch_size 8", "24 and 32"]);
    tiny::mim(&world.path("mim.safetensors"));
    let from = "finetune ft.toml --data classes --init mim.safetensors";
    dry(&world, from, &["--size", "small"])
        .fails(2, &["--size small", "mim.safetensors decides the sizes", "--init scratch"]);
}

#[test]
fn values_that_cannot_be() {
    let world = world();
    for command in ALL {
        let says = |flag: &str, value: &str, part: &str| {
            dry(&world, command, &[flag, value]).fails(2, &[value, flag, part]);
        };
        says("--seed", "-1", "a seed is a whole number from 0");
        says("--batch-size", "-4", "a whole number of at least 1");
        says("--epochs", "0", "a whole number of at least 1");
        says("--lr", "0", "a number above 0, such as 1e-3");
        says("--lr", "1e-3x", "a number above 0, such as 1e-3");
        says("--lr", "-1e-3", "must not be negative");
        says("--image-size", "224x224", "such as 224");
        says("--size", "huge", "tiny, small, base, large");
        dry(&world, command, &["--epochs", "2", "--set", "epochs=2"])
            .fails(2, &["--epochs 2", "--set epochs=2", "`schedule.epochs`", "give it once"]);
        dry(&world, command, &["--epochs", "2", "--set", "steps=9"])
            .fails(2, &["--epochs 2", "--set steps=9", "either epochs or steps"]);
        dry(&world, command, &["--epochs", "2", "--steps", "9"]).fails(2, &["--epochs", "--steps"]);
        dry(&world, command, &["--set", "batch_size=-4"]).fails(2, &["-4", "a whole number of 0 or more"]);
        dry(&world, command, &["--learning-rate", "1"]).fails(2, &["'--learning-rate'", "use '--lr'"]);
    }
    for (command, most) in [(TOKENIZER, 24), (FINETUNED, 18), (SEGMENTED, 6)] {
        dry(&world, command, &["--batch-size", "100"]).fails(
            2,
            &["batch_size 100", &format!("the {most} training images"), &format!("--batch-size {most}")],
        );
    }
}

#[test]
fn resume_is_the_default() {
    let world = world();
    let short = ["--epochs", "1", "--resume"];
    let ended = world.tokenizer("run", &short);
    assert!(ended.works().err.contains("--resume finds no run in run"), "{}", ended.err);
    let ended = world.tokenizer("run", &short);
    assert!(
        ended.works().err.contains("--resume is the default: the run in run is continued"),
        "{}",
        ended.err
    );
    assert!(!world.path("run.old-1").exists());
    world.tokenizer("run", &["--resume", "--restart"]).fails(2, &["--resume", "--restart"]);
    world.beit2(&["tokenizer", "train", "run"]).fails(2, &["run is a run, not a recipe", "--out run"]);
    world.beit2(&["tokenizer", "train", "runs/none"]).fails(2, &["runs/none", "--out"]);
}

#[test]
fn the_learning_rate_of_a_run_follows_its_batch() {
    let world = world();
    let ended = dry(&world, FINETUNED, &["--batch-size", "12"]);
    assert_eq!(value(&ended, "optimizer.base_batch_size").as_integer(), Some(6));
    assert!(ended.err.contains("learning rate 2e-3, falling to 2e-6: 1e-3 × 12 / 6"), "{}", ended.err);
    let ended = dry(&world, FINETUNED, &["--epochs", "10"]);
    assert_eq!(value(&ended, "schedule.warmup_epochs").as_float(), Some(2.0));
    assert!(ended.err.contains("warm-up 2 epochs instead of 4 epochs"), "{}", ended.err);
    let ended = dry(&world, FINETUNED, &["--quiet", "--epochs", "10"]);
    assert!(!ended.works().err.contains("warm-up"), "{}", ended.err);
    let long = dry(&world, FINETUNED, &["--set", "warmup_epochs=15"]);
    assert!(long.works().err.contains("warning: the warm-up takes 75 % of the run"), "{}", long.err);
    dry(&world, FINETUNED, &["--set", "warmup_epochs=25"]).fails(2, &["warm"]);
    let odd = dry(&world, PRETRAIN, &["--set", "mask.patches=2"]);
    assert!(odd.works().err.contains("masks hide 12 % of the patches (2 of 16)"), "{}", odd.err);
    assert!(odd.err.contains("mask.patches=6"), "{}", odd.err);
}

#[test]
fn short_runs_and_small_images_are_told_before_they_train() {
    let world = world();
    let ended = dry(&world, TOKENIZER, &["--epochs", "5"]);
    assert!(ended.works().err.contains("the run has only 15 steps, 3 for each of 5 epochs"), "{}", ended.err);
    let kmeans = ["--steps", "9", "--set", "kmeans_warmup_steps=9"];
    dry(&world, TOKENIZER, &kmeans).fails(2, &["kmeans_warmup_steps 9", "fewer than 9"]);
    dry(&world, TOKENIZER, &["--set", "init.std=0"]).fails(2, &["init.std is 0", "above 0"]);
    fs::create_dir(world.path("small")).unwrap();
    for at in 0..24 {
        fs::write(world.path(&format!("small/{at}.ppm")), image(at, 34)).unwrap();
    }
    let ended = dry(&world, TOKENIZER, &["--data", "small", "--set", "data.train=none"]);
    ended.fails(2, &["--data small", "--set data.train=none"]);
    let ended = dry(&world, TOKENIZER, &["--data", "small"]);
    let told = "of the crops have fewer pixels than the model's input of 32 × 32 and are enlarged";
    for part in [told, "34 × 34 pixels", "--image-size 16"] {
        assert!(ended.works().err.contains(part), "no `{part}` in: {}", ended.err);
    }
    let ended = world.tokenizer("run", &["--data", "small", "--epochs", "1"]);
    let log = fs::read_to_string(world.path("run/warnings.log")).unwrap();
    assert!(ended.works().err.contains(told) && log.contains(told), "{log}");
}
