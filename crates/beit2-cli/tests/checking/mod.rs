//! `data check`, the account of every command, and what stops a run before it begins.

use std::fs;
use std::path::Path;

use png::{BitDepth, ColorType};
use serde_json::Value;

use crate::scenes::{SIZE, png, scenes};
use crate::support::{World, classes};
use crate::{finetune, finetune_on, json, world};

fn names(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().filter_map(Value::as_str).collect()
}

/// Whether one of the sentences holds all parts.
#[track_caller]
fn says(sentences: &Value, parts: &[&str]) {
    let found = names(sentences);
    assert!(
        found.iter().any(|sentence| parts.iter().all(|part| sentence.contains(part))),
        "no {parts:?} in {found:#?}"
    );
}

fn check(world: &World, code: i32, args: &[&str]) -> Value {
    let ended = world.beit2(&[&["data", "check"], args, &["--json", "--quiet"]].concat());
    assert_eq!(ended.code, Some(code), "{}{}", ended.out, ended.err);
    json(&ended.out)
}

/// A grey PNG.
fn grey(path: &Path, data: &[u8]) {
    png(path, SIZE, ColorType::Grayscale, BitDepth::Eight, data);
}

#[test]
fn a_folder_is_accounted_for() {
    let world = world();
    fs::write(world.path("classes/dark/phone.heic"), b"\0\0\0\x18ftypheic").unwrap();
    fs::write(world.path("classes/dark/notes.txt"), "hello").unwrap();
    let found = check(&world, 0, &["classes"]);
    let counts: Vec<(&str, u64)> = found["classes"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, count)| (name.as_str(), count.as_u64().unwrap()))
        .collect();
    assert_eq!(counts, [("dark", 6), ("gray", 6), ("light", 6)]);
    assert_eq!(found["used"], 18);
    assert_eq!(found["skipped"][".heic"]["count"], 1);
    assert_eq!(
        found["skipped"][".txt"]["names"][0].as_str().map(|name| name.ends_with("notes.txt")),
        Some(true)
    );
    assert_eq!(found["errors"], Value::Array(vec![]));
    let text = world.beit2(&["data", "check", "classes"]);
    assert!(text.works().out.starts_with("classes: 18 used, 2 skipped: 1 .heic, 1 .txt\n"), "{}", text.out);

    // A class without images is an error, unless labels do not matter.
    fs::create_dir(world.path("classes/void")).unwrap();
    let found = check(&world, 1, &["classes"]);
    says(&found["errors"], &["void"]);
    says(&check(&world, 0, &["classes", "--no-labels"])["warnings"], &["void"]);
    // What cannot be opened is told in the same form.
    says(&check(&world, 1, &["nowhere"])["errors"], &["nowhere: no such file or folder"]);
    check(&world, 0, &["bundled:train", "--val", "bundled:val"]);
}

#[test]
fn a_pack_is_the_same_set() {
    let world = world();
    let counted = check(&world, 0, &["classes"]);
    for format in ["tar", "parquet"] {
        let out = format!("packed-{format}");
        let ended = world.beit2(&["data", "pack", "classes", "-o", &out, "--format", format, "--json"]);
        let packed = json(&ended.works().out);
        assert_eq!(
            (&packed["images"], &packed["copied"], &packed["shards"]),
            (&18.into(), &18.into(), &1.into())
        );
        let found = check(&world, 0, &[&out]);
        assert_eq!((&found["used"], &found["classes"]), (&counted["used"], &counted["classes"]));
        assert_eq!(found["skipped"], serde_json::json!({}));
        let ended = world.beit2(&["data", "pack", "classes", "-o", &out]);
        ended.fails(2, &[&out, "is not empty", "give another one"]);
    }
    let shrunk = ["data", "pack", "classes", "-o", "shrunk", "--max-side", "8", "--lossless"];
    let told = world.beit2(&shrunk);
    assert!(told.works().out.contains("18, shrunk"), "{}", told.out);
    let wrong = |flags: &[&str], parts: &[&str]| {
        world.beit2(&[&["data", "pack", "classes", "-o", "wrong"], flags].concat()).fails(2, parts);
    };
    wrong(&["--lossless"], &["--lossless is for images that are shrunk", "add --short-side or --max-side"]);
    wrong(&["--quality", "60", "--max-side", "8"], &["--quality 60 must be 90 to 100"]);
    wrong(&["--max-side", "0"], &["the side to shrink to: 0", "1 to 16384 pixels"]);
    assert!(!world.path("wrong").exists() && !world.path("wrong.partial").exists());
}

#[test]
fn the_loader_is_measured() {
    let world = world();
    let bench = ["bench", "data", "classes", "--image-size", "32", "--batch-size", "4", "--images", "8"];
    let of = |more: &[&str]| world.beit2(&[&bench[..], more].concat());
    let ended = of(&["--rounds", "2", "--workers", "1,2", "--transform", "finetune", "--json"]);
    let lines: Vec<Value> = ended.works().out.lines().map(json).collect();
    let workers: Vec<u64> = lines.iter().filter_map(|line| line["workers"].as_u64()).collect();
    assert_eq!(workers, [1, 2, 1, 2], "in turn");
    for line in &lines {
        assert!(line["images"].as_u64() >= Some(8) && line["us"]["decode"].as_f64() > Some(0.0), "{line}");
        assert!(line["scaling"].is_number() && line["overhead"].as_f64() < Some(1.0), "{line}");
    }
    let table = of(&["--rounds", "1"]);
    assert!(table.works().out.contains("images/s") && table.out.contains("overhead"), "{}", table.out);
    of(&["--rounds", "0"]).fails(2, &["--rounds is 0"]);
    of(&["--read-mib-per-s", "0"]).fails(2, &["--read-mib-per-s 0 must be above 0"]);
}

#[test]
fn every_command_begins_with_the_account() {
    let world = world();
    fs::write(world.path("classes/gray/a.heic"), b"\0\0\0\x18ftypheic").unwrap();
    let account = "classes: 18 used, 1 skipped: 1 .heic";
    let scratch = ["--init", "scratch", "--set", "epochs=1"];
    let told = |ended: &crate::support::Ended| {
        assert!(ended.works().err.contains(account), "{}", ended.err);
    };
    told(&finetune(&world, "dry", &[&scratch[..], &["--dry-run"]].concat()));
    let ended = finetune(&world, "run", &[&scratch[..], &["--json"]].concat());
    told(&ended);
    assert_eq!(json(&ended.out)["account"]["train"]["skipped"][".heic"]["count"], 1);
    told(&world.beit2(&["eval", "--weights", "run", "--data", "classes"]));
    told(&world.beit2(&["predict", "classes", "--weights", "run"]));
    told(&world.beit2(&["embed", "classes", "--weights", "run", "-o", "x.npy"]));
    told(&world.beit2(&["knn", "--weights", "pixels", "--data", "classes", "--val", "classes"]));
    told(&world.tokenizer("tok", &["--data", "classes", "--set", "epochs=1"]));
    told(&world.beit2(&["tokenizer", "encode", "classes", "--tokenizer", "tok", "-o", "ids.npy"]));
    let quiet = world.beit2(&["predict", "classes", "--weights", "run", "--quiet"]);
    assert!(!quiet.works().err.contains("18 used"), "{}", quiet.err);
}

#[test]
fn decoding_everything_shows_more() {
    let world = World::new();
    let root = world.path("photos");
    fs::create_dir(&root).unwrap();
    let ppm = |name: &str, (width, height): (usize, usize), value: &dyn Fn(usize) -> [u8; 3]| {
        let mut bytes = format!("P6 {width} {height} 255\n").into_bytes();
        (0..width * height).for_each(|at| bytes.extend(value(at)));
        fs::write(root.join(name), bytes).unwrap();
    };
    // Means and deviations by hand: half of the pixels 0, half 200 in red; green 50; blue 100.
    ppm("a.ppm", (40, 20), &|at| [if at % 40 < 20 { 0 } else { 200 }, 50, 100]);
    ppm("b.ppm", (20, 60), &|at| [if at % 20 < 10 { 0 } else { 200 }, 50, 100]);
    let found = check(&world, 0, &["photos", "--decode", "--image-size", "32"]);
    let decoded = &found["decoded"];
    assert_eq!((decoded["checked"].as_u64(), decoded["small"]["count"].as_u64()), (Some(2), Some(2)));
    let spread = |name: &str, of: &str| decoded[name][of].as_f64().unwrap();
    assert_eq!(
        (spread("width", "min"), spread("width", "max"), spread("height", "median")),
        (20.0, 40.0, 20.0)
    );
    assert_eq!((spread("aspect", "min"), spread("aspect", "max")), (20.0 / 60.0, 2.0));
    for (channel, (mean, std)) in [(100.0, 100.0), (50.0, 0.0), (100.0, 0.0)].into_iter().enumerate() {
        let near =
            |name: &str, value: f64| (decoded[name][channel].as_f64().unwrap() - value / 255.0).abs() < 1e-12;
        assert!(near("mean", mean) && near("std", std), "{decoded}");
    }
    assert_eq!((decoded["channels"]["3"].as_u64(), decoded["bits"]["8"].as_u64()), (Some(2), Some(2)));

    // Unreadable, equal, of one colour; a validation image that is a training image, and one that nearly is.
    fs::write(root.join("c.jpg"), b"\xff\xd8\xff\xe0 cut").unwrap();
    // Smooth, because the hash looks at a small copy.
    let smooth = |at: usize| [(at % 96 * 2) as u8, (at / 96 * 2) as u8, (at % 96 * (at / 96) / 40) as u8];
    ppm("d.ppm", (96, 96), &smooth);
    ppm("e.ppm", (96, 96), &smooth);
    ppm("f.ppm", (30, 30), &|_| [7, 7, 7]);
    fs::create_dir(world.path("held")).unwrap();
    fs::copy(root.join("d.ppm"), world.path("held/x.ppm")).unwrap();
    let mut near = fs::read(root.join("d.ppm")).unwrap();
    near.iter_mut().skip(20).step_by(11).for_each(|value| *value = value.saturating_add(2));
    fs::write(world.path("held/y.ppm"), near).unwrap();
    let one = check(&world, 1, &["photos", "--val", "held", "--decode", "--workers", "1"]);
    says(&one["errors"], &["1 of 8 images cannot be read", "c.jpg"]);
    says(&one["warnings"], &["1 images of photos have a single colour", "f.ppm"]);
    says(&one["warnings"], &["1 images of held have the same bytes as images of photos", "x.ppm"]);
    let decoded = &one["decoded"];
    assert_eq!(
        (decoded["duplicates"]["extra"].as_u64(), decoded["duplicates"]["across"].as_u64()),
        (Some(2), Some(1))
    );
    assert_eq!(decoded["near_duplicates"]["across"].as_u64(), Some(1), "{decoded}");
    let pair = &decoded["near_duplicates"]["pairs"][0];
    assert!(
        pair["first"].as_str().unwrap().ends_with("d.ppm")
            && pair["second"].as_str().unwrap().ends_with("y.ppm")
    );
    assert_eq!(one, check(&world, 1, &["photos", "--val", "held", "--decode", "--workers", "5"]));
    let text = world.beit2(&["data", "check", "photos", "--decode", "--quiet"]);
    for part in ["near-duplicates", "unreadable", "std"] {
        assert!(text.out.contains(part), "{}", text.out);
    }
}

#[test]
fn labels_that_teach_nothing_stop_the_run() {
    let world = world();
    fs::write(world.path("same.csv"), "path,label\ntrain/00.ppm,a\ntrain/01.ppm,a\n").unwrap();
    let scratch = ["--init", "scratch", "--set", "batch_size=2", "--set", "epochs=1"];
    let ended = finetune_on(&world, "never", ["same.csv", "same.csv"], &scratch);
    assert!(ended.code != Some(0) && ended.err.contains("at least 2"), "{}", ended.err);
    let found = check(&world, 1, &["same.csv"]);
    says(&found["errors"], &["same.csv has one class in all, `a`"]);
    classes(&world.path("one"), &["dark"]);
    world
        .beit2(&["knn", "--weights", "pixels", "--data", "one", "--val", "one"])
        .fails(2, &["one has one class in all, `dark`"]);

    // A validation set without a class, and one that shares its images.
    classes(&world.path("two"), &["dark", "gray"]);
    let found = check(&world, 0, &["classes", "--val", "two"]);
    says(&found["warnings"], &["two has no image of 1 of the 3 classes of classes: light"]);
    says(&found["warnings"], &["12 of 12 images of two are images of classes too"]);
    let ended = finetune(&world, "dry", &["--init", "scratch", "--dry-run"]);
    assert!(
        ended.works().err.contains("18 of 18 images of classes are images of classes too"),
        "{}",
        ended.err
    );
    // The dry run finds what the run finds.
    classes(&world.path("other"), &["dark", "gray", "white"]);
    let ended = finetune_on(&world, "dry", ["classes", "other"], &["--init", "scratch", "--dry-run"]);
    ended.fails(2, &["white"]);
}

#[test]
fn images_of_one_colour_are_told() {
    let world = World::new();
    let flat = |name: &str| {
        let mut ppm = b"P6 40 40 255\n".to_vec();
        ppm.extend([255; 40 * 40 * 3]);
        fs::write(world.path(name), ppm).unwrap();
    };
    flat("train/00.ppm");
    let ended = world.tokenizer("dry", &["--dry-run"]);
    assert!(
        ended.works().err.contains("1 of 24 images have a single colour (first train/00.ppm)"),
        "{}",
        ended.err
    );
    (0..24).for_each(|at| flat(&format!("train/{at:02}.ppm")));
    world.tokenizer("never", &[]).fails(1, &["all 24 images have a single colour", "--no-check"]);
    assert!(!world.path("never").exists());
    world.tokenizer("run", &["--no-check", "--set", "epochs=1", "--quiet"]).works();
}

#[test]
fn masks_that_teach_nothing_stop_the_run() {
    let world = World::new();
    fs::write(world.path("seg.toml"), crate::SEGMENT).unwrap();
    let mut pixels = Vec::new();
    let mut set = |name: &str, mask: &dyn Fn(usize) -> u8| {
        scenes(&world.path(name), 6);
        fs::write(world.path(name).join("classes.txt"), "background\nobject\n").unwrap();
        for number in 0..6 {
            pixels = (0..SIZE.0 * SIZE.1).map(mask).collect::<Vec<u8>>();
            grey(&world.path(name).join(format!("masks/{number:03}.png")), &pixels);
        }
    };
    let left = |at: usize| at % SIZE.0 < 30;
    set("binary", &|at| if left(at) { 255 } else { 0 });
    set("nothing", &|_| 255);
    set("right", &|at| u8::from(left(at)));
    set("ground", &|_| 0);
    let train = |data: &str, val: &str, more: &[&str]| {
        let line = [
            "segment", "train", "seg.toml", "--init", "scratch", "--out", "run", "--data", data, "--val", val,
        ];
        world.beit2(&[&line[..], more].concat())
    };
    let ended = train("binary", "binary", &[]);
    ended.fails(
        1,
        &[
            "binary: `background` is the only class in 6 masks (their values are 0 and 255, and 255 means \"no label\")",
            "any model scores 100 %",
            "need masks.map = \"255=1\", or values 0 and 1",
        ],
    );
    train("nothing", "nothing", &[]).fails(1, &["nothing: no pixel in 6 masks has a label", "255"]);
    train("ground", "right", &[]).fails(1, &["`background` is the only class in 6 masks", "--no-check"]);
    assert!(!world.path("run").exists());
    train("right", "ground", &["--dry-run"]).works();
    let ended = train("right", "ground", &["--dry-run"]);
    assert!(ended.err.contains("ground: `background` is the only class in 6 masks"), "{}", ended.err);

    // With the map both classes are there, and the model learns to tell them apart.
    let map = ["--set", "masks.map=255=1", "--set", "schedule.steps=4", "--set", "schedule.warmup_steps=1"];
    train("binary", "binary", &[&map[..], &["--quiet"]].concat()).works();
    let eval = |data: &str, more: &[&str]| {
        world.beit2(
            &[&["segment", "eval", "--weights", "run", "--data", data, "--json", "--quiet"], more].concat(),
        )
    };
    let mapped = json(&eval("binary", &["--map", "255=1"]).works().out);
    let plain = json(&eval("right", &[]).works().out);
    assert_eq!(mapped["per_class"], plain["per_class"], "255 read as 1 is what masks of 0 and 1 give");
    eval("binary", &[]).fails(1, &["binary: `background` is the only class", "--no-check evaluates"]);

    let found = check(&world, 1, &["binary"]);
    says(&found["errors"], &["`background` is the only class", "--map 255=1"]);
    let found = check(&world, 0, &["binary", "--map", "255=1"]);
    assert_eq!(
        (found["classes"]["background"].as_u64(), found["classes"]["object"].as_u64()),
        (Some(6), Some(6))
    );
    fs::remove_file(world.path("right/masks/002.png")).unwrap();
    says(&check(&world, 1, &["right"])["errors"], &["1 images without a mask", "002"]);
    let found = check(&world, 1, &["right", "--decode"]);
    says(&found["errors"], &["002"]);
    assert_eq!(found["masks"]["checked"], 5);
}

#[test]
fn unreadable_images_never_change_a_figure_in_silence() {
    let world = world();
    finetune(&world, "run", &["--init", "scratch", "--set", "epochs=2", "--quiet"]).works();
    let whole = fs::read(world.path("classes/gray/3.ppm")).unwrap();
    fs::write(world.path("classes/gray/3.ppm"), &whole[..100]).unwrap();

    // Training goes on with one bad file among 18; two are too many, and the setting is named.
    let ended = finetune(&world, "again", &["--init", "scratch", "--set", "epochs=2"]);
    assert!(ended.works().err.contains("gray/3.ppm could not be used"), "{}", ended.err);

    // Measurements leave it out and count it.
    for command in ["knn", "probe"] {
        let line = [command, "--weights", "run", "--data", "classes", "--val", "classes", "--json"];
        let ended = world.beit2(&line);
        let found = json(&ended.works().out);
        assert_eq!(
            (found["train"].as_u64(), found["left_out"]["val"].as_u64()),
            (Some(17), Some(1)),
            "{found}"
        );
        // The second time the features come from disk, and the count is the same.
        assert_eq!(json(&world.beit2(&line).works().out)["left_out"]["train"], 1);
    }
    let eval = ["eval", "--weights", "run", "--data", "classes", "--json", "--quiet"];
    world.beit2(&eval).fails(1, &["gray/3.ppm", "--skip-unreadable"]);
    let found = json(&world.beit2(&[&eval[..], &["--skip-unreadable"]].concat()).works().out);
    assert_eq!((found["images"].as_u64(), found["left_out"].as_u64()), (Some(17), Some(1)));

    fs::write(world.path("classes/dark/1.ppm"), b"P6 40 40 255\nxx").unwrap();
    let more = ["--init", "scratch", "--set", "epochs=1"];
    finetune(&world, "third", &more).fails(1, &["more than the 1 that data.max_bad_fraction allows"]);
    let knn = ["knn", "--weights", "pixels", "--data", "classes", "--val", "classes", "--json"];
    world.beit2(&knn).fails(1, &["max_bad_fraction"]);
    let found = json(&world.beit2(&[&knn[..], &["--max-bad-fraction", "0.2"]].concat()).works().out);
    assert_eq!(found["left_out"]["train"], 2);
    world.beit2(&[&knn[..], &["--k", "19"]].concat()).fails(2, &["--k 19", "there are 18", "1 to 18"]);
}
