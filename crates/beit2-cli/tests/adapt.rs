//! Training that goes on: from weights (`--init`), on images of another domain (`adapt`), and of a finished run that is made
//! longer. Through the real binary; nothing leaves the machine.

#![allow(clippy::unwrap_used)]

#[path = "adapt/extending.rs"]
mod extending;
mod support;
#[path = "support/tiny.rs"]
mod tiny;

use std::fs;

use support::{Ended, World, image};
use toml::{Table, Value};

/// A tokenizer (`tok`) and a student (`mim`) that were trained on `train`, and images of another domain in `own`.
fn world() -> World {
    let world = World::new();
    world.tokenizer("tok", &["--quiet"]).works();
    world.beit2(&["pretrain", "mim.toml", "--tokenizer", "tok", "--out", "mim", "--quiet"]).works();
    fs::create_dir(world.path("own")).unwrap();
    for at in 0..16 {
        fs::write(world.path(&format!("own/{at:02}.ppm")), image(100 + at, 64)).unwrap();
    }
    world
}

fn run_toml(world: &World, run: &str) -> Table {
    fs::read_to_string(world.path(run).join("run.toml")).unwrap().parse().unwrap()
}

fn value<'a>(table: &'a Table, key: &str) -> &'a Value {
    let (first, rest) = key.split_once('.').unwrap_or((key, ""));
    rest.split('.').filter(|part| !part.is_empty()).fold(&table[first], |at, part| &at[part])
}

fn contains(ended: &Ended, parts: &[&str]) {
    for part in parts {
        assert!(ended.err.contains(part), "no `{part}` in: {}", ended.err);
    }
}

#[test]
fn training_goes_on_from_weights_and_says_so() {
    let world = world();
    let student =
        ["pretrain", "mim.toml", "--tokenizer", "tok", "--init", "mim", "--data", "own", "--out", "on"];
    let ended = world.beit2(&student);
    contains(ended.works(), &["starts from", "tensors taken"]);
    let record = run_toml(&world, "on");
    assert_eq!(value(&record, "init.weights").as_str(), Some("mim"));
    let sha = value(&record, "fingerprint.init").as_str().unwrap().to_owned();
    assert_eq!(sha.len(), 32);
    assert_ne!(value(&record, "fingerprint.weights").as_str(), Some(&*sha), "the tokenizer has its own");
    // The rehearsal accounts for every tensor, one line each for what is not taken as it is.
    let ended = world.beit2(&[&student[..], &["--set", "model.vocab_size=16", "--dry-run"]].concat());
    contains(ended.works(), &["init: ", "tensors loaded, 0 fresh"]);

    // The same command finds the run complete; other weights at the same place are another run.
    contains(world.beit2(&student).works(), &["at step 4 of 4"]);
    world
        .beit2(&["pretrain", "mim.toml", "--tokenizer", "tok", "--seed", "9", "--out", "other", "-q"])
        .works();
    fs::rename(world.path("mim"), world.path("mim_before")).unwrap();
    fs::rename(world.path("other"), world.path("mim")).unwrap();
    world.beit2(&student).fails(2, &["belongs to another run", "fingerprint.init"]);

    // At another image size: the tokenizer first, then the student on its grid.
    let larger = ["--image-size", "48", "--data", "own"];
    let tok = ["tokenizer", "train", "tiny.toml", "--init", "tok", "--out", "tok48"];
    let ended = world.beit2(&[&tok[..], &larger].concat());
    contains(ended.works(), &["2 resized from 4×4 patches to 6×6"]);
    let mim = ["pretrain", "mim.toml", "--init", "mim_before", "--tokenizer", "tok48", "--out", "mim48"];
    let ended = world.beit2(&[&mim[..], &larger].concat());
    contains(ended.works(), &["1 resized from 4×4 patches to 6×6"]);
}

#[test]
fn heads_and_statistics_are_said_of_the_initial_weights_alone() {
    let world = world();
    // Weights of somebody else's: neither their tensors nor a file beside them show four heads.
    tiny::headless_classifier(&world.path("theirs.safetensors"), 2);
    let mut args =
        vec!["pretrain", "mim.toml", "--tokenizer", "tok", "--out", "on", "--init", "theirs.safetensors"];
    for setting in ["width=64", "heads=4", "abs_pos_emb=true", "rel_pos_bias=\"none\""] {
        args.extend(["--set", setting]);
    }
    let before = "theirs.safetensors does not tell its number of attention heads";
    world.beit2(&args).fails(2, &[before, "--heads N"]);
    world.beit2(&[&args[..], &["--heads", "2"]].concat()).fails(2, &["heads"]);
    let half = ["--heads", "4", "--normalization", "half"];
    let ended = world.beit2(&[&args[..], &half].concat());
    contains(ended.works(), &["tensors taken"]);
    assert!(!ended.err.contains("does not say how its images"), "{}", ended.err);
    let record = run_toml(&world, "on");
    assert_eq!(value(&record, "model.vit.normalization.mean").as_array().unwrap()[0], Value::Float(0.5));
    // Without --init they would be about nothing.
    let alone = ["pretrain", "mim.toml", "--tokenizer", "tok", "--heads", "2"];
    world.beit2(&alone).fails(2, &["are about the weights of --init; name them"]);
}

#[test]
fn weights_of_another_family_or_size_are_one_sentence() {
    let world = world();
    tiny::bare_classifier(&world.path("classifier.safetensors"), 3);
    tiny::segmenter(&world.path("segmenter.safetensors"), 3);
    let student = |init: &str, more: &[&str]| {
        let line = ["pretrain", "mim.toml", "--tokenizer", "tok", "--out", "never", "--init", init];
        let ended = world.beit2(&[&line[..], more].concat());
        assert!(!world.path("never").exists(), "{}", ended.err);
        ended
    };
    student("tok", &[]).fails(2, &["tok holds a tokenizer"]);
    student("segmenter.safetensors", &[]).fails(2, &["holds a segmentation model"]);
    student("classifier.safetensors", &["--set", "init.sizes_from_weights=true"])
        .fails(2, &["in every block", "rel_pos_bias = \"per_block\""]);
    student("mim", &["--set", "vit.depth=3"]).fails(2, &["depth 2 instead of 3", "init.sizes_from_weights"]);
    student("mim", &["--set", "vit.width=32"]).fails(2, &["width 16 instead of 32"]);
    student("nowhere", &[]).fails(1, &["nowhere"]);
    let tokenizer = ["--init", "mim"];
    world.tokenizer("never", &tokenizer).fails(2, &["a tokenizer goes on from a tokenizer"]);
    assert!(!world.path("never").exists());
    // Sizes are decided once.
    student("mim", &["--set", "init.sizes_from_weights=true", "--size", "tiny"])
        .fails(2, &["mim decides the sizes"]);
}

#[test]
fn an_own_student_is_adapted_in_one_command() {
    let world = world();
    let adapt = ["adapt", "--data", "own", "--student", "mim", "--out", "adapted"];
    let ended = world.beit2(&adapt);
    contains(ended.works(), &["adapt_student (settings of mim)", "starts from    mim", "54 tensors taken"]);
    for part in ["done", "weights", "adapted/report.html", "next"] {
        assert!(ended.out.contains(part), "no `{part}` in: {}", ended.out);
    }
    let (before, after) = (run_toml(&world, "mim"), run_toml(&world, "adapted"));
    let rate = |record: &Table| value(record, "optimizer.lr").as_float().unwrap();
    assert!((rate(&after) - rate(&before) / 3.0).abs() < 1e-9, "{} after {}", rate(&after), rate(&before));
    // A quarter of the 48 images that the student saw, in epochs of 16.
    assert_eq!(value(&after, "schedule.epochs").as_integer(), Some(1));
    for key in ["model.vit.width", "model.vocab_size", "mask.patches", "schedule.batch_size", "seed"] {
        assert_eq!(value(&after, key), value(&before, key), "{key}");
    }
    assert_eq!(value(&after, "tokenizer.weights").as_str(), Some("tok"), "the student's own");
    // The same command finds it complete; the result is a student like any other.
    contains(world.beit2(&adapt).works(), &["at step 2 of 2"]);
    world.beit2(&["embed", "own", "--weights", "adapted", "-o", "features.npy"]).works();
    let ended = world.beit2(&["adapt", "--data", "own", "--student", "mim/last", "--out", "x", "--dry-run"]);
    contains(ended.works(), &["nothing was started"]);
    assert!(!world.path("x").exists());
}

#[test]
fn the_tokenizer_is_adapted_too() {
    let world = world();
    let adapt = [
        "adapt",
        "--data",
        "own",
        "--student",
        "mim",
        "--tokenizer",
        "tok",
        "--adapt-tokenizer",
        "--out",
        "two",
    ];
    let ended = world.beit2(&[&adapt[..], &["--epochs", "2", "--image-size", "48"]].concat());
    contains(ended.works(), &["first the tokenizer:", "resized from 4×4 patches to 6×6"]);
    assert_eq!(ended.out.matches("next").count(), 1, "{}", ended.out);
    let (tokenizer, student) = (run_toml(&world, "two_tokenizer"), run_toml(&world, "two"));
    assert_eq!(value(&tokenizer, "init.weights").as_str(), Some("tok"));
    assert_eq!(value(&tokenizer, "teacher.weights").as_str(), Some("teacher.safetensors"));
    assert_eq!(value(&tokenizer, "schedule.epochs").as_integer(), Some(1), "a third");
    assert_eq!(value(&student, "tokenizer.weights").as_str(), Some("two_tokenizer"));
    assert_eq!(value(&student, "model.vit.image_size").as_integer(), Some(48));
    // The codes are those of the tokenizer that it began with, moved on.
    let codes = |run: &str| {
        let file = beit2::weights::open(world.path(run)).unwrap().tensors;
        file["quantize.embedding.weight"].clone().convert::<f32>().into_vec::<f32>().unwrap()
    };
    let (before, after) = (codes("tok"), codes("two_tokenizer"));
    let cosine = before.iter().zip(&after).map(|(a, b)| a * b).sum::<f32>() / 16.0;
    assert!(before != after && cosine > 0.9, "{cosine}");

    // A rehearsal of both leaves nothing.
    let rehearsal: Vec<&str> =
        adapt.iter().map(|word| if *word == "two" { "third" } else { *word }).collect();
    let ended = world.beit2(&[&rehearsal[..], &["--dry-run"]].concat());
    assert_eq!(ended.works().err.matches("ready: ").count(), 2, "{}", ended.err);
    assert!(!world.path("third").exists() && !world.path("third_tokenizer").exists());
}

#[test]
fn what_adapt_cannot_do_is_one_sentence() {
    let world = world();
    let adapt = |more: &[&str]| {
        let line: Vec<&str> = ["adapt"].iter().chain(more).copied().collect();
        let mut command = world.command(&line);
        // No published file is here, and none comes from outside.
        command.env("XDG_CACHE_HOME", world.path("cache")).env("HTTPS_PROXY", "http://127.0.0.1:1");
        let ended: Ended = command.output().unwrap().into();
        ended
    };
    adapt(&[]).fails(2, &["no training images are named", "--data DIR"]);
    adapt(&["--data", "nowhere"]).fails(1, &["nowhere"]);
    let rehearsal = adapt(&["--data", "own", "--dry-run"]);
    rehearsal.fails(
        2,
        &[
            "--student beitv2_base_patch16_224_pt1k is not here yet",
            "beit2 weights fetch beitv2_base_patch16_224_pt1k",
        ],
    );
    let download = adapt(&["--data", "own"]);
    download.fails(1, &["cannot download beitv2_base_patch16_224_pt1k.pth", "save it as"]);
    adapt(&["--data", "own", "--student", "tok", "--tokenizer", "tok"]).fails(2, &["holds a tokenizer"]);
    adapt(&["--data", "own", "--student", "mim", "--tokenizer", "mim"]).fails(2, &["not a tokenizer"]);
    adapt(&["--data", "own", "--student", "mim", "--teacher", "t.pth"]).fails(2, &["--adapt-tokenizer"]);
    // The student's own tokenizer is gone.
    fs::rename(world.path("tok"), world.path("moved")).unwrap();
    adapt(&["--data", "own", "--student", "mim"]).fails(2, &["which is not there any more", "--tokenizer"]);
    assert!(!world.path("runs").exists());
}
