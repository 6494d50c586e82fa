//! `beit2 init` and `beit2 run`: from a folder of images to results, and what they say when that cannot work.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::scenes::{SIZE, png, scenes};
use crate::support::{Ended, World, image};

/// Images in two classes; of the first class one is there twice, once a little darker.
fn photos(dir: &Path, each: usize) {
    for (class, name) in ["birds", "boats"].into_iter().enumerate() {
        fs::create_dir_all(dir.join(name)).unwrap();
        for at in 0..each {
            fs::write(dir.join(name).join(format!("{at:02}.ppm")), image(class * each + at, 64)).unwrap();
        }
    }
    let mut copy = image(3, 64);
    let header = copy.len() - 64 * 64 * 3;
    copy[header..].iter_mut().for_each(|value| *value = value.saturating_sub(2));
    fs::write(dir.join("birds/copy.ppm"), copy).unwrap();
}

/// Names of the files in a table, and the whole rows.
fn rows(path: &Path) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn files(rows: &[serde_json::Value]) -> BTreeSet<String> {
    rows.iter().map(|row| row["file_name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_folder_of_photographs_becomes_a_classifier() {
    let world = World::new();
    photos(&world.path("photos"), 15);
    let init = ["init", "--data", "photos", "--goal", "finetune", "--minutes", "0.2", "--device", "cpu"];
    let planned = world.beit2(&init);
    planned.works();
    for part in
        ["photos-beit2", "mini, width 128", "codebook_size", "images/s", "next", "beit2 run photos-beit2"]
    {
        assert!(planned.out.contains(part) || part == "next", "no `{part}` in: {}", planned.out);
    }
    let project = world.path("photos-beit2");
    let (train, val) = (rows(&project.join("train.jsonl")), rows(&project.join("val.jsonl")));
    assert_eq!(train.len() + val.len(), 31);
    assert!(files(&train).is_disjoint(&files(&val)) && val.len() >= 4, "{val:?}");
    let side = |name: &str| files(&val).iter().any(|file| file.ends_with(name));
    assert_eq!(side("birds/03.ppm"), side("birds/copy.ppm"), "near-duplicates are on one side");
    for name in ["birds", "boats"] {
        assert!(val.iter().any(|row| row["label"] == name), "{name} is not validated");
    }

    // Nothing is written over, and each recipe works alone, from elsewhere.
    world.beit2(&init).fails(2, &["photos-beit2 exists already", "--out", "--force"]);
    fs::create_dir(world.path("elsewhere")).unwrap();
    let recipe = project.join("tokenizer.toml").display().to_string();
    let alone = world
        .command(&["tokenizer", "train", &recipe, "--dry-run"])
        .current_dir(world.path("elsewhere"))
        .output()
        .unwrap();
    let alone = Ended::from(alone);
    alone.works();
    assert!(!alone.err.contains("warning"), "{}", alone.err);

    let dry = world.beit2(&["run", "photos-beit2", "--dry-run"]);
    dry.works();
    assert!(dry.out.contains("tokenizer  would run 100 steps"), "{}", dry.out);

    let ran = world.beit2(&["run", "photos-beit2"]);
    ran.works();
    for part in [
        "k-NN top-1",
        "validation top-1 accuracy",
        "beit2 predict IMAGE --weights photos-beit2/runs/finetune/best",
    ] {
        assert!(ran.out.contains(part), "no `{part}` in: {}", ran.out);
    }
    for stage in ["tokenizer", "pretrain", "finetune"] {
        assert!(project.join("runs").join(stage).join("report.html").exists(), "{stage}");
    }
    assert!(project.join("results.json").exists());
    let predicted =
        world.beit2(&["predict", "photos/birds/00.ppm", "--weights", "photos-beit2/runs/finetune/best"]);
    predicted.works();
    assert!(predicted.out.contains("birds") && predicted.out.contains("boats"), "{}", predicted.out);

    // Complete stages are not trained again.
    let before = fs::read(project.join("runs/finetune/metrics.jsonl")).unwrap();
    let again = world.beit2(&["run", "photos-beit2", "--quiet", "--json"]);
    again.works();
    let found: serde_json::Value = serde_json::from_str(&again.out).unwrap();
    assert_eq!(found["stages"].as_array().unwrap().len(), 3);
    assert_eq!(found["stages"][2]["metric"], "val_acc1");
    assert!(found["knn"]["top1"].as_f64().unwrap() <= 1.0);
    assert_eq!(before, fs::read(project.join("runs/finetune/metrics.jsonl")).unwrap());

    // A changed recipe is said in the words of a project.
    let path = project.join("finetune.toml");
    let changed =
        fs::read_to_string(&path).unwrap().replace("label_smoothing = 0.1", "label_smoothing = 0.2");
    fs::write(&path, changed).unwrap();
    let parts = ["finetune.toml differs", "label_smoothing", "0.1 → 0.2", "--restart finetune"];
    world.beit2(&["run", "photos-beit2"]).fails(2, &parts);
    world.beit2(&["run", "photos-beit2", "--restart", "finetune"]).works();
    assert!(project.join("runs/finetune.old-1/run.toml").exists());
    assert!(!project.join("runs/pretrain.old-1").exists());
    world
        .beit2(&["run", "photos-beit2", "--restart", "segment"])
        .fails(2, &["no such stage", "tokenizer, pretrain, finetune"]);
}

#[test]
fn images_with_masks_become_pairs() {
    let world = World::new();
    scenes(&world.path("scenes"), 24);
    world.beit2(&["init", "--data", "scenes"]).fails(2, &["images/ and masks", "--goal segment"]);
    let planned =
        world.beit2(&["init", "--data", "scenes", "--goal", "segment", "--minutes", "0.2", "--json"]);
    planned.works();
    let found: serde_json::Value = serde_json::from_str(&planned.out).unwrap();
    assert_eq!(
        (&found["goal"], found["images"].as_u64().unwrap() + found["val_images"].as_u64().unwrap()),
        (&"segment".into(), 24)
    );
    let project = world.path("scenes-beit2");
    let pairs = rows(&project.join("train.jsonl"));
    assert!(pairs.iter().all(|row| row["mask"].as_str().unwrap().ends_with(".png")));
    // The table gives the masks with their classes and colours, and the images alone.
    let check =
        world.beit2(&["segment", "train", "scenes-beit2/segment.toml", "--init", "scratch", "--dry-run"]);
    check.works();
    assert!(check.out.contains("scenes-beit2/train.jsonl"), "{}", check.out);
    let tokenizer = world.beit2(&["tokenizer", "train", "scenes-beit2/tokenizer.toml", "--dry-run"]);
    tokenizer.works();
    assert!(!tokenizer.err.contains("warning"), "{}", tokenizer.err);
}

#[test]
fn masks_without_a_class_list_are_understood() {
    let world = World::new();
    scenes(&world.path("scenes"), 24);
    fs::remove_file(world.path("scenes/classes.txt")).unwrap();
    let init = |out: &str| {
        let ended =
            world.beit2(&["init", "--data", "scenes", "--goal", "segment", "--minutes", "0.2", "--out", out]);
        ended.works();
        ended
    };
    let planned = init("ids");
    assert!(planned.out.contains("2 classes") && planned.out.contains("ids up to 1"), "{}", planned.out);
    // The same masks with 255 in the place of 1.
    for entry in fs::read_dir(world.path("scenes/masks")).unwrap().flatten() {
        let file = fs::File::open(entry.path()).unwrap();
        let mut reader = png::Decoder::new(std::io::BufReader::new(file)).read_info().unwrap();
        let mut ids = vec![0; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut ids).unwrap();
        ids.iter_mut().for_each(|id| *id *= 255);
        png(&entry.path(), SIZE, png::ColorType::Grayscale, png::BitDepth::Eight, &ids);
    }
    let planned = init("binary");
    assert!(planned.out.contains("taken for background and object"), "{}", planned.out);
    let recipe = fs::read_to_string(world.path("binary/segment.toml")).unwrap();
    assert!(recipe.contains("map = \"255=1\""), "{recipe}");
    let checked = world.beit2(&["segment", "train", "binary/segment.toml", "--init", "scratch", "--dry-run"]);
    checked.works();
}

#[test]
fn what_cannot_work_is_said_before_work_starts() {
    let world = World::new();
    let init = |args: &[&str]| world.beit2(&[&["init", "--minutes", "1"], args].concat());
    fs::create_dir(world.path("empty")).unwrap();
    init(&["--data", "empty"]).fails(1, &["empty", "no images in it"]);
    photos(&world.path("few"), 5);
    init(&["--data", "few"]).fails(2, &["few: 11 training images are too few", "at least 20"]);
    photos(&world.path("one"), 30);
    fs::remove_dir_all(world.path("one/boats")).unwrap();
    init(&["--data", "one", "--goal", "finetune"]).fails(2, &["one class in all", "one sub-folder each"]);
    init(&["--data", "train", "--goal", "finetune"]).fails(2, &["no classes", "sort them into folders"]);
    init(&["--data", "train", "--size", "huge"]).fails(2, &["huge", "mini"]);
    world.beit2(&["init", "--data", "train", "--minutes", "0"]).fails(2, &["--minutes 0 must be above 0"]);
    world.beit2(&["init", "--data", "train", "--minutes", "1", "--hours", "1"]).fails(2, &["--hours"]);
    init(&["--data", "train", "--teacher", "mim.toml"]).fails(1, &["mim.toml"]);
    // Nothing is left behind.
    let left: Vec<_> = fs::read_dir(world.root()).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert!(
        !left.iter().any(
            |name| name.to_string_lossy().contains("partial") || name.to_string_lossy().contains("beit2")
        ),
        "{left:?}"
    );

    init(&["--data", "train", "--out", "train/project"])
        .fails(2, &["inside the images' folder train", "--out"]);
    photos(&world.path("labelled"), 12);
    photos(&world.path("other"), 12);
    fs::rename(world.path("other/boats"), world.path("other/cars")).unwrap();
    init(&["--data", "labelled", "--val", "other", "--goal", "finetune"]).fails(2, &["cars"]);
    world.beit2(&["run", "train"]).fails(2, &["train is not a project", "beit2 init"]);
    world.beit2(&["run", "nowhere"]).fails(1, &["nowhere: no such folder"]);
}

#[test]
fn the_bundled_images_have_one_plan_everywhere() {
    let world = World::new();
    let planned =
        world.beit2(&["init", "--data", "bundled:train", "--val", "bundled:val", "--out", "plan", "--json"]);
    planned.works();
    let found: serde_json::Value = serde_json::from_str(&planned.out).unwrap();
    let stages = found["stages"].as_array().unwrap();
    let steps: Vec<u64> = stages.iter().map(|stage| stage["steps"].as_u64().unwrap()).collect();
    assert_eq!(steps, [800, 2000]);
    let settings = |recipe: &str, more: &[&str]| {
        let command = if recipe.contains("pretrain") { vec!["pretrain"] } else { vec!["tokenizer", "train"] };
        let ended =
            world.beit2(&[&command[..], &[recipe, "--dry-run", "--set", "data.workers=2"], more].concat());
        ended.out.lines().filter(|line| !line.starts_with("weights")).map(str::to_owned).collect::<Vec<_>>()
    };
    let own = settings("plan/tokenizer.toml", &[]);
    assert!(own.len() > 30);
    let others = [
        "init.std=0.02",
        "targets.whiten=false",
        "model.image_size=64",
        "model.code_dim=16",
        "codebook.kmeans_warmup_steps=160",
        "schedule.steps=800",
        "schedule.warmup_steps=80",
        "logging.checkpoint_every=400",
    ];
    let others: Vec<&str> = others.into_iter().flat_map(|other| ["--set", other]).collect();
    assert_eq!(own, settings("quickstart_tokenizer", &others));
}
