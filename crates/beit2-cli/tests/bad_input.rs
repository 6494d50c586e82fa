//! Bad input through the real binary: one sentence that names the thing, the right exit code, nothing lost.

#![allow(clippy::unwrap_used)]

mod faults;
#[path = "support/scenes.rs"]
mod scenes;
mod support;
#[path = "support/tiny.rs"]
mod tiny;
#[path = "bad_input/training.rs"]
mod training;

use std::fs;

use support::{World, image};

#[test]
fn missing_folder() {
    let world = World::new();
    world
        .tokenizer("run", &["--data", "nowhere"])
        .fails(1, &["nowhere: no such file or folder", "give a folder"]);
    assert!(!world.path("run").exists(), "nothing is made before the input is known to be there");
}

#[test]
fn no_folder_named() {
    let world = World::new();
    world.tokenizer("run", &["--set", "data.train="]).fails(2, &["--data DIR"]);
}

#[test]
fn empty_folder_and_folder_without_images() {
    let world = World::new();
    fs::create_dir(world.path("void")).unwrap();
    world.tokenizer("run", &["--data", "void"]).fails(1, &["void: no images in it", "JPEG"]);
    fs::write(world.path("void/notes.txt"), "hello").unwrap();
    world.tokenizer("run", &["--data", "void"]).fails(1, &["void: no images in it"]);
}

/// Every command that needs labels names what is wrong with them before it starts; pretraining does not need them.
#[test]
fn labels_that_cannot_be_used() {
    let world = World::new();
    for class in ["cat", "dog"] {
        for at in 0..12 {
            fs::create_dir_all(world.path(&format!("all/train/{class}"))).unwrap();
            fs::write(world.path(&format!("all/train/{class}/{at}.ppm")), image(at, 32)).unwrap();
        }
    }
    fs::create_dir(world.path("all/train/eel")).unwrap();
    fs::write(world.path("all/train/stray.ppm"), image(0, 32)).unwrap();
    fs::write(world.path("ft.toml"), "stage = \"finetune\"\n").unwrap();
    let commands: [&[&str]; 4] = [
        &["knn", "--weights", "pixels", "--val", "all/train"],
        &["probe", "--weights", "pixels", "--val", "all/train"],
        &["eval", "--weights", "gone"],
        &["finetune", "ft.toml", "--init", "scratch", "--out", "never", "--dry-run"],
    ];
    for command in commands {
        world.beit2(&[command, &["--data", "all/train"]].concat()).fails(
            1,
            &[
                "all/train: 1 image (stray.ppm) lies beside the class folders cat and dog",
                "1 more problem with labels",
            ],
        );
    }
    fs::remove_file(world.path("all/train/stray.ppm")).unwrap();
    for command in commands {
        world.beit2(&[command, &["--data", "all/train"]].concat()).fails(
            1,
            &["all/train: the class folder eel is empty; put the images of its class into it, or remove it"],
        );
    }
    world.tokenizer("run", &["--data", "all/train", "--set", "epochs=1"]).works();
    fs::create_dir_all(world.path("all/val/cat")).unwrap();
    fs::write(world.path("all/val/cat/0.ppm"), image(0, 32)).unwrap();
    world
        .tokenizer("never", &["--data", "all"])
        .fails(1, &["all: its folders train and val are splits", "--data all/train --val all/val"]);
}

#[test]
fn too_few_images_for_a_batch() {
    let world = World::new();
    world.tokenizer("run", &["--set", "batch_size=100"]).fails(2, &["batch_size 100", "from 1 to 24"]);
}

#[test]
fn image_smaller_than_the_crop_warns_and_can_be_refused() {
    let world = World::new();
    for at in 0..support::IMAGES {
        fs::write(world.path(&format!("train/{at:02}.ppm")), image(at, 12)).unwrap();
    }
    let ended = world.tokenizer("run", &["--set", "epochs=1"]);
    assert!(ended.works().err.contains("warning: 100 % of the crops have fewer pixels"), "{}", ended.err);
    world
        .tokenizer("refused", &["--set", "min_side_px=32"])
        .fails(1, &["12 x 12", "other samples drawn in its place could not be used"]);
}

#[test]
fn a_broken_image_is_replaced_and_logged() {
    let world = World::new();
    let whole = fs::read(world.path("train/03.ppm")).unwrap();
    fs::write(world.path("train/03.ppm"), &whole[..whole.len() / 2]).unwrap();
    let ended = world.tokenizer("run", &["--set", "epochs=1", "--set", "max_bad_fraction=0.1"]);
    // The look before training names it first, then the run does.
    let warnings: Vec<&str> = ended.works().err.lines().filter(|line| line.starts_with("warning:")).collect();
    let told = |part: &str| warnings.iter().any(|line| line.contains("03.ppm") && line.contains(part));
    assert!(told("1 of 24 images cannot be used") && told("another image took its place"), "{warnings:#?}");
    assert!(fs::read_to_string(world.path("run/warnings.log")).unwrap().contains("03.ppm"));
}

#[test]
fn too_many_broken_images_stop_the_run() {
    let world = World::new();
    // Claim 40,000 × 40,000 pixels in 20 bytes.
    for name in ["train/03.ppm", "train/04.ppm"] {
        fs::write(world.path(name), b"P6 40000 40000 255\n\0").unwrap();
    }
    world.tokenizer("run", &[]).fails(
        1,
        &[
            "2 of 24 images",
            "more than the 1 that data.max_bad_fraction allows (1 %)",
            "03.ppm",
            "40000 x 40000",
        ],
    );
}

#[test]
fn recipe_typo() {
    let world = World::new();
    let text = fs::read_to_string(world.path("tiny.toml")).unwrap().replace("batch_size", "batchsize");
    fs::write(world.path("typo.toml"), text).unwrap();
    world.beit2(&["tokenizer", "train", "typo.toml"]).fails(
        2,
        &["unknown key `schedule.batchsize` in typo.toml line", "did you mean `schedule.batch_size`?"],
    );
    world.tokenizer("run", &["--set", "optimiser.lr=1"]).fails(2, &["did you mean `optimizer.lr`?"]);
    world.tokenizer("run", &["--set", "depth"]).fails(2, &["KEY=VALUE"]);
    world.tokenizer("run", &["--set", "epochs=many"]).fails(2, &["schedule.epochs", "many"]);
    world.tokenizer("run", &["--seed", "1", "--set", "seed=2"]).fails(2, &["`seed`", "give it once"]);
    world.beit2(&["tokenizer", "train", "nowhere.toml"]).fails(1, &["nowhere.toml", "No such file"]);
    world.beit2(&["tokenizer", "train", "mim_base_300e"]).fails(2, &["use `beit2 pretrain`"]);
    world.beit2(&["pretrain", "mim_bas_300e"]).fails(2, &["did you mean `mim_base_300e`?"]);
}

#[test]
fn contradictions() {
    let world = World::new();
    world
        .tokenizer("run", &["--set", "model.heads=3"])
        .fails(2, &["width 16", "heads 3", "could be 1, 2, 4"]);
    world.tokenizer("run", &["--set", "patch_size=7"]).fails(2, &["image_size 32", "patch_size 7", "28"]);
    world.tokenizer("run", &["--set", "warmup_steps=99"]).fails(2, &["warm"]);
    let mim = |more: &[&str]| {
        world.beit2(&[&["pretrain", "mim.toml", "--tokenizer", "teacher.safetensors"], more].concat())
    };
    mim(&["--set", "mask.patches=17"]).fails(2, &["17 masked patches", "use at most 16"]);
    mim(&["--set", "vit.heads=3"]).fails(2, &["width 16 is not divisible by heads 3"]);
    mim(&["--set", "intermediate_layer=3"]).fails(2, &["intermediate_layer 3", "depth 2"]);
    world.beit2(&["pretrain", "mim.toml"]).fails(2, &["tokenizer.weights", "--tokenizer RUN"]);
}

#[test]
fn weights_that_do_not_fit() {
    let world = World::new();
    let dim = ["--set", "model.teacher_dim=24"];
    world.tokenizer("run", &dim).fails(2, &["model.teacher_dim is 24", "have 16 values"]);
    world
        .tokenizer("run", &["--set", "teacher.kind=clip"])
        .fails(2, &["teacher.kind is `clip`", "a plain Vision Transformer"]);
    world.tokenizer("run", &["--set", "teacher.weights=tiny.toml"]).fails(1, &["tiny.toml"]);
    world
        .tokenizer("run", &["--set", "teacher.weights=gone.pth"])
        .fails(1, &["teacher.weights", "gone.pth", "No such file"]);
    let whole = fs::read(world.path("teacher.safetensors")).unwrap();
    fs::write(world.path("short.safetensors"), &whole[..whole.len() / 2]).unwrap();
    world.tokenizer("run", &["--set", "teacher.weights=short.safetensors"]).fails(1, &["short.safetensors"]);
    let teacher = ["pretrain", "mim.toml", "--tokenizer", "teacher.safetensors"];
    world.beit2(&teacher).fails(2, &["teacher.safetensors", "attn.qkv.bias"]);

    world.tokenizer("tokenizer", &["--set", "epochs=1", "--quiet"]).works();
    let grid = [
        "pretrain",
        "mim.toml",
        "--tokenizer",
        "tokenizer",
        "--set",
        "patch_size=16",
        "--set",
        "mask.patches=2",
    ];
    world.beit2(&grid).fails(2, &["4×4 tokens", "2×2 patches"]);
    let vocabulary = ["pretrain", "mim.toml", "--tokenizer", "tokenizer", "--set", "vocab_size=99"];
    world.beit2(&vocabulary).fails(2, &["model.vocab_size is 99", "16 codes"]);
}

#[test]
fn flags() {
    let world = World::new();
    world.tokenizer("run", &["--device", "gpu"]).fails(2, &["'gpu'", "--device", "cuda:0"]);
    world.tokenizer("run", &["--outt", "x"]).fails(2, &["'--outt'", "'--out'"]);
    world.beit2(&["tokenizr"]).fails(2, &["'tokenizr'", "'tokenizer'"]);
    if !cfg!(feature = "cuda") {
        world.tokenizer("run", &["--device", "cuda"]).fails(2, &["built without cuda", "--features cuda"]);
    }
    let alone = world.beit2(&[]);
    assert!(alone.code == Some(2) && alone.err.contains("quickstart"), "{}", alone.err);
}

#[test]
fn output_folder_that_cannot_be() {
    let world = World::new();
    fs::write(world.path("file"), "mine").unwrap();
    world.tokenizer("file", &[]).fails(1, &["file", "is a file, not a folder"]);
    world.tokenizer("file/run", &[]).fails(1, &["is a file, not a folder"]);
    assert_eq!(fs::read_to_string(world.path("file")).unwrap(), "mine");
    fs::create_dir(world.path("mine")).unwrap();
    fs::write(world.path("mine/thesis.txt"), "").unwrap();
    world.tokenizer("mine", &[]).fails(2, &["is not a run directory", "--out"]);
    // The superuser writes everywhere but in the kernel's own folders.
    if cfg!(target_os = "linux") {
        world.tokenizer("/proc/run", &[]).fails(1, &["/proc/run"]);
    }
}

#[cfg(unix)]
#[test]
fn read_only_output_folder() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::new();
    fs::create_dir(world.path("locked")).unwrap();
    fs::set_permissions(world.path("locked"), fs::Permissions::from_mode(0o555)).unwrap();
    if fs::write(world.path("locked/probe"), "").is_ok() {
        eprintln!("skipped: this user may write into read-only folders");
        return;
    }
    world.tokenizer("locked/run", &[]).fails(1, &["locked/run", "permission denied", "choose a folder"]);
}

/// A file system of 200 KiB: the second checkpoint does not fit, the first stays.
#[cfg(target_os = "linux")]
#[test]
fn full_disk() {
    use std::process::Command;
    let world = World::new();
    let disk = world.path("disk");
    fs::create_dir(&disk).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=200k", "tmpfs"]).arg(&disk).output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: this user may not mount a small file system");
        return;
    }
    let ended = world.tokenizer("disk/run", &["--set", "keep_checkpoints=9"]);
    let kept = world.path("disk/run/last/model.safetensors").is_file();
    // Room again: a larger file system would be the user's way, ours is to remount.
    let larger = Command::new("mount").args(["-o", "remount,size=20m"]).arg(&disk).status();
    let again = world.tokenizer("disk/run", &["--set", "keep_checkpoints=9"]);
    let same = kept && {
        world.tokenizer("elsewhere", &[]).works();
        world.weights("disk/run") == world.weights("elsewhere")
    };
    let _ = Command::new("umount").arg(&disk).status();
    ended.fails(1, &["disk/run", "the disk is full", "free some space"]);
    assert!(kept, "the checkpoint before is intact");
    assert!(larger.unwrap().success());
    again.works();
    assert!(same, "the run is as if the disk had never been full");
}

#[test]
fn run_directory_of_another_recipe() {
    let world = World::new();
    world.tokenizer("run", &["--set", "epochs=1", "--quiet"]).works();
    let before = world.weights("run");
    world
        .tokenizer("run", &["--set", "epochs=1", "--set", "optimizer.lr=1e-3"])
        .fails(2, &["run belongs to another run", "`optimizer.lr`", "--out", "--restart"]);
    fs::write(world.path("train/99.ppm"), image(99, 40)).unwrap();
    world.tokenizer("run", &["--set", "epochs=1"]).fails(2, &["`fingerprint.train`"]);
    assert_eq!(world.weights("run"), before);
    world.tokenizer("run", &["--set", "epochs=1", "--restart", "--quiet"]).works();
    assert!(world.path("run.old-1/run.toml").is_file());
}

#[test]
fn report_of_something_else() {
    let world = World::new();
    world.beit2(&["report", "train"]).fails(2, &["train is not a run directory"]);
}
