//! The same fault has one exit code and one sentence in every command, and a command that fails leaves nothing behind.

use std::fs;
use std::path::Path;
use std::process::Command;

use beit2::weights::{self, Tensors};
use burn::tensor::TensorData;

use crate::support::{Ended, World, classes, image};
use crate::tiny;

/// A world with weights of every kind, classes and a recipe of each stage.
fn world() -> World {
    let world = World::new();
    tiny::classifier(&world.path("model.safetensors"), &["a", "b"], 2);
    tiny::mim(&world.path("mim.safetensors"));
    tiny::tokenizer(&world.path("words.safetensors"));
    classes(&world.path("classes"), &["a", "b"]);
    let sizes = "image_size = 32\npatch_size = 8\nwidth = 16\ndepth = 2\nheads = 2\n";
    fs::write(world.path("ft.toml"), format!("stage = \"finetune\"\n[model.vit]\n{sizes}")).unwrap();
    world
}

/// Writes `to` as `from` with other tensors.
fn changed(world: &World, from: &str, to: &str, change: impl Fn(&mut Tensors)) {
    let mut file = weights::read(&world.path(from)).unwrap();
    change(&mut file.tensors);
    fs::write(world.path(to), weights::encode(&file.tensors, &file.metadata).unwrap()).unwrap();
}

/// Every command that reads a classifier as a whole.
fn of_classifier(file: &str) -> Vec<Vec<&str>> {
    vec![
        vec!["weights", "verify", file],
        vec!["weights", "convert", file, "--to", "timm", "-o", "never"],
        vec!["weights", "export", file, "--model", "classifier", "-o", "never.onnx"],
        vec!["predict", "--weights", file, "train"],
        vec!["eval", "--weights", file, "--data", "classes"],
    ]
}

/// Every command that needs the trunk of a model.
fn of_trunk(file: &str) -> Vec<Vec<&str>> {
    vec![
        vec!["embed", "--weights", file, "train", "-o", "never.npy"],
        vec!["knn", "--weights", file, "--data", "classes", "--val", "classes"],
        vec!["probe", "--weights", file, "--data", "classes", "--val", "classes"],
        vec!["finetune", "ft.toml", "--init", file, "--data", "classes", "--out", "never"],
    ]
}

fn of_tokenizer(file: &str) -> Vec<Vec<&str>> {
    vec![
        vec!["weights", "verify", file],
        vec!["pretrain", "mim.toml", "--tokenizer", file, "--out", "never"],
        vec!["tokenizer", "encode", "--tokenizer", file, "train", "-o", "never.npy"],
    ]
}

/// All of them fail alike and leave nothing.
#[track_caller]
fn all_fail(world: &World, commands: &[Vec<&str>], code: i32, parts: &[&str]) {
    for command in commands {
        println!("{command:?}");
        world.beit2(command).fails(code, parts);
        for name in ["never", "never.npy", "never.npy.partial", "never.csv"] {
            assert!(!world.path(name).exists(), "{command:?} left {name}");
        }
    }
}

#[test]
fn weights_that_are_not_whole() {
    let world = world();
    changed(&world, "model.safetensors", "missing.st", |tensors| {
        tensors.remove("blocks.1.mlp.fc1.weight").unwrap();
    });
    changed(&world, "words.safetensors", "words.st", |tensors| {
        tensors.remove("encoder.blocks.0.mlp.fc1.weight").unwrap();
    });
    let all = [of_classifier("missing.st"), of_trunk("missing.st")].concat();
    all_fail(&world, &all, 1, &["missing.st: tensor `blocks.1.mlp.fc1.weight` is missing"]);
    world.beit2(&["weights", "inspect", "missing.st"]).fails(1, &["`blocks.1.mlp.fc1.weight` is missing"]);
    let told = ["words.st: tensor `encoder.blocks.0.mlp.fc1.weight` is missing"];
    all_fail(&world, &of_tokenizer("words.st"), 1, &told);
}

#[test]
fn another_head() {
    let world = world();
    let short = |tensor: &TensorData, rows: usize| {
        let width = tensor.shape[1..].iter().product::<usize>();
        let values: Vec<f32> = tensor.iter::<f32>().take(rows * width).collect();
        TensorData::new(values, [&[rows], &tensor.shape[1..]].concat())
    };
    // Three classes in the head's weights and two in its bias.
    changed(&world, "model.safetensors", "head.st", |tensors| {
        let bias = short(&tensors["head.bias"], 1);
        tensors.insert("head.bias".into(), bias);
    });
    let told = ["head.st: tensor `head.bias` has shape [1], expected [2]", "2 classes"];
    all_fail(&world, &of_classifier("head.st"), 1, &told);
    changed(&world, "model.safetensors", "bias.st", |tensors| {
        tensors.remove("head.bias").unwrap();
    });
    all_fail(&world, &of_classifier("bias.st"), 1, &["bias.st: tensor `head.bias` is missing"]);
    // The whole head is of another model than the configuration beside it.
    changed(&world, "model.safetensors", "other.st", |tensors| {
        for name in ["head.weight", "head.bias"] {
            let one = short(&tensors[name], 1);
            tensors.insert(name.into(), one);
        }
    });
    let told = ["other.st: its head has 1 classes, but its configuration has 2"];
    all_fail(&world, &of_classifier("other.st"), 1, &told);
    let shown = world.beit2(&["weights", "inspect", "other.st"]);
    assert!(shown.works().out.contains("problem      its head has 1 classes"), "{}", shown.out);
}

#[test]
fn files_that_are_no_weights() {
    let world = world();
    fs::write(world.path("empty.st"), "").unwrap();
    fs::write(world.path("notes.st"), "these are my notes on weights").unwrap();
    let whole = fs::read(world.path("model.safetensors")).unwrap();
    fs::write(world.path("cut.st"), &whole[..whole.len() - 100]).unwrap();
    fs::create_dir(world.path("folder.st")).unwrap();
    let mut faults = vec![
        ("gone.st", "gone.st: No such file"),
        ("empty.st", "empty.st is empty"),
        ("notes.st", "notes.st is"),
        ("cut.st", "cut.st"),
        ("folder.st", "folder.st is a folder without model.safetensors"),
        ("train", "train is a folder without model.safetensors"),
    ];
    if cfg!(unix) {
        #[cfg(unix)]
        for (link, target) in [("dangling.st", "nowhere"), ("loop.st", "loop.st")] {
            std::os::unix::fs::symlink(target, world.path(link)).unwrap();
        }
        faults.extend([
            ("dangling.st", "dangling.st is a link to a file that does not exist"),
            ("loop.st", "loop.st"),
        ]);
    }
    for (file, told) in faults {
        all_fail(&world, &[of_classifier(file), of_trunk(file)].concat(), 1, &[told]);
        all_fail(&world, &of_tokenizer(file), 1, &[told]);
    }
}

#[test]
fn sound_weights_of_another_kind() {
    let world = world();
    let scores = |file: &'static str| vec![of_classifier(file)[2].clone(), of_classifier(file)[3].clone()];
    all_fail(&world, &scores("mim.safetensors"), 2, &["mim.safetensors", "no classes", "beit2 finetune"]);
    all_fail(&world, &scores("words.safetensors"), 2, &["words.safetensors", "no classes"]);
    let codes = |file: &'static str| of_tokenizer(file)[1..].to_vec();
    all_fail(&world, &codes("model.safetensors"), 2, &["model.safetensors", "not a tokenizer"]);
    all_fail(&world, &codes("mim.safetensors"), 2, &["mim.safetensors", "not a tokenizer"]);
    let segment = [vec!["segment", "predict", "--weights", "model.safetensors", "train", "--out", "never"]];
    all_fail(&world, &segment, 2, &["model.safetensors", "no pixel classes"]);
    let trunk = [of_trunk("teacher.safetensors"), scores("teacher.safetensors")].concat();
    all_fail(&world, &trunk, 2, &["teacher.safetensors", "attn.qkv.bias"]);
}

#[test]
fn images_that_are_not_there() {
    let world = world();
    fs::create_dir(world.path("void")).unwrap();
    fs::create_dir(world.path("texts")).unwrap();
    for at in 0..10 {
        fs::write(world.path(&format!("texts/{at}.jpg")), "no image").unwrap();
    }
    let readers = |data: &'static str| {
        vec![
            vec!["tokenizer", "train", "tiny.toml", "--data", data, "--out", "never"],
            vec![
                "pretrain",
                "mim.toml",
                "--tokenizer",
                "words.safetensors",
                "--data",
                data,
                "--out",
                "never",
            ],
            vec!["finetune", "ft.toml", "--init", "model.safetensors", "--data", data, "--out", "never"],
            vec!["knn", "--weights", "model.safetensors", "--data", data, "--val", "classes"],
            vec!["eval", "--weights", "model.safetensors", "--data", data],
            vec!["predict", "--weights", "model.safetensors", data, "--csv", "never.csv"],
            vec!["embed", "--weights", "model.safetensors", data, "-o", "never.npy"],
            vec!["tokenizer", "encode", "--tokenizer", "words.safetensors", data, "-o", "never.npy"],
            vec!["data", "check", data],
        ]
    };
    all_fail(&world, &readers("gone"), 1, &["gone: no such file or folder"]);
    all_fail(&world, &readers("void"), 1, &["void: no images in it; it is empty"]);
    all_fail(&world, &readers("*.jpg"), 1, &["pattern '*.jpg': it matches no file; the folder . holds"]);
    let unreadable = [readers("texts")[0].clone(), readers("texts")[1].clone(), readers("texts")[8].clone()];
    all_fail(&world, &unreadable, 1, &["texts: none of 10 images can be used", "0.jpg"]);
}

#[test]
fn commands_and_settings_that_must_change() {
    let world = world();
    let train = |more: &[&'static str]| {
        let data = ["--data", "classes", "--out", "never"];
        let commands = [
            vec!["tokenizer", "train", "tiny.toml"],
            vec!["pretrain", "mim.toml", "--tokenizer", "words.safetensors"],
            vec!["finetune", "ft.toml", "--init", "model.safetensors"],
        ];
        commands.map(|command| [&command[..], &data, more].concat()).to_vec()
    };
    all_fail(&world, &train(&["--set", "data.wrokers=1"]), 2, &["data.wrokers", "did you mean"]);
    all_fail(&world, &train(&["--set", "data.workers=many"]), 2, &["data.workers", "many"]);
    all_fail(&world, &train(&["--device", "tpu"]), 2, &["tpu", "cpu, cuda"]);
    for command in ["tokenizer train", "pretrain", "finetune", "segment train", "teacher distill"] {
        let words: Vec<&str> = command.split(' ').chain(["no_such_recipe", "--out", "never"]).collect();
        all_fail(&world, &[words], 2, &["no recipe is called `no_such_recipe`"]);
        let words: Vec<&str> = command.split(' ').chain(["gone.toml", "--out", "never"]).collect();
        all_fail(&world, &[words], 1, &["gone.toml", "No such file"]);
    }
    all_fail(&world, &[vec!["report", "gone"], vec!["run", "gone"]], 1, &["gone: no such folder"]);
    all_fail(&world, &[vec!["report", "train"], vec!["run", "train"]], 2, &["train is not a "]);
    // What is there already stays.
    let world = self::world();
    for name in ["there.npy", "there.csv", "there.safetensors", "there.onnx"] {
        fs::write(world.path(name), "mine").unwrap();
    }
    let writers: [&[&str]; 5] = [
        &["embed", "--weights", "model.safetensors", "train", "-o", "there.npy"],
        &["tokenizer", "encode", "--tokenizer", "words.safetensors", "train", "-o", "there.npy"],
        &["predict", "--weights", "model.safetensors", "train", "--csv", "there.csv"],
        &["weights", "convert", "model.safetensors", "--to", "timm", "-o", "there.safetensors"],
        &["weights", "export", "model.safetensors", "-o", "there.onnx"],
    ];
    for command in writers {
        world.beit2(command).fails(2, &["there.", "already exists", "--force"]);
    }
    // A folder that is not there, and one in the place of a file.
    fs::create_dir_all(world.path("folder.npy")).unwrap();
    fs::create_dir_all(world.path("folder.csv")).unwrap();
    fs::create_dir_all(world.path("folder.safetensors")).unwrap();
    fs::create_dir_all(world.path("folder.onnx")).unwrap();
    for command in writers {
        let Some((out, rest)) = command.split_last() else { continue };
        let other = |place: &str| out.replace("there", place);
        let (lost, folder) = (other("lost/x"), other("folder"));
        world.beit2(&[rest, &[&lost]].concat()).fails(2, &[&lost, "the folder lost does not exist"]);
        world
            .beit2(&[rest, &[&folder]].concat())
            .fails(2, &[&folder, "is a folder; give the path of a file"]);
    }
    for name in ["there.npy", "there.csv", "there.safetensors", "there.onnx"] {
        assert_eq!(fs::read_to_string(world.path(name)).unwrap(), "mine");
    }
}

/// Runs the program where no file may be larger than `kib`: like a disk that becomes full.
#[cfg(unix)]
fn with_little_room(world: &World, kib: usize, args: &[&str]) -> Ended {
    let limit = format!("trap '' XFSZ; ulimit -f {}; exec \"$0\" \"$@\"", 2 * kib);
    let program = world.command(&[]).get_program().to_owned();
    let mut command = Command::new("sh");
    command.arg("-c").arg(limit).arg(program).args(args).current_dir(world.root());
    command.env("RAYON_NUM_THREADS", "1").output().unwrap().into()
}

#[cfg(unix)]
fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<String> = entries.map(|name| name.to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
#[cfg(unix)]
fn no_room_for_the_output() {
    let world = world();
    let before = names(world.root());
    let embed = ["embed", "--weights", "model.safetensors", "train", "-o", "out.npy", "--batch-size", "64"];
    let commands: [(&[&str], usize, &str); 7] = [
        (&["weights", "export", "model.safetensors", "-o", "one.onnx"], 8, "one.onnx"),
        (
            &["weights", "export", "model.safetensors", "-o", "one.onnx", "--external-data"],
            8,
            "one.onnx.data",
        ),
        (
            &["weights", "convert", "model.safetensors", "--to", "hf", "-o", "a/hf"],
            8,
            "a/hf/model.safetensors",
        ),
        (
            &["weights", "convert", "model.safetensors", "--to", "timm", "-o", "one.safetensors"],
            8,
            "one.safetensors",
        ),
        (&["weights", "convert", "model.safetensors", "--to", "timm", "-o", "timm"], 0, "timm/config.json"),
        (&embed, 1, "out.npy"),
        (&["predict", "--weights", "model.safetensors", "train", "--csv", "out.csv"], 0, "out.csv"),
    ];
    for (command, kib, file) in commands {
        let ended = with_little_room(&world, kib, command);
        ended.fails(1, &[&format!("cannot write {file}: "), "choose a folder on another disk"]);
        assert!(!ended.err.contains("partial"), "a temporary name: {}", ended.err);
        assert_eq!(names(world.root()), before, "{command:?} left something");
    }
    // What was there before is there again.
    let convert = ["weights", "convert", "model.safetensors", "--to", "timm", "-o", "timm"];
    world.beit2(&convert).works();
    let files = ["README.md", "config.json", "model.safetensors"];
    let contents = || files.map(|name| fs::read(world.path("timm").join(name)).unwrap());
    let whole = contents();
    let hf = ["weights", "convert", "model.safetensors", "--to", "hf", "-o", "timm", "--force"];
    with_little_room(&world, 8, &hf).fails(1, &["cannot write timm/model.safetensors: "]);
    assert!(contents() == whole && names(&world.path("timm")) == files);
}

#[test]
#[cfg(unix)]
fn no_room_for_a_pack() {
    let world = world();
    let pack = ["data", "pack", "train", "-o", "packed/small"];
    let ended = with_little_room(&world, 2, &pack);
    ended.fails(1, &["cannot write packed/small/shard-00000.tar: ", "choose a folder on another disk"]);
    assert!(!ended.err.contains("partial"), "a temporary name: {}", ended.err);
    assert!(!world.path("packed/small").exists());
    world.beit2(&pack).works();
    assert_eq!(names(&world.path("packed")), ["small"]);
    assert_eq!(names(&world.path("packed/small")), ["shard-00000.tar", "shards.index"]);
}

#[test]
fn three_broken_files_of_33() {
    let world = World::new();
    fs::create_dir(world.path("photos")).unwrap();
    for at in 0..33 {
        let whole = image(at, 40);
        let keep = if [3, 11, 20].contains(&at) { 1000 } else { whole.len() };
        fs::write(world.path(&format!("photos/{at:02}.ppm")), &whole[..keep]).unwrap();
    }
    let told = [
        "3 of 32 images of a sample cannot be used, more than the 1 that data.max_bad_fraction allows (1 %)",
        "photos/03.ppm: the PNM image is truncated",
        "photos/11.ppm",
        "photos/20.ppm",
        "`beit2 data check photos --decode`",
        "--set data.max_bad_fraction=0.2",
    ];
    world.tokenizer("run", &["--data", "photos"]).fails(1, &told);
    assert!(!world.path("run").exists());
    // Where the look does not find them, the run says the same.
    let ended = world.tokenizer("run", &["--data", "photos", "--no-check"]);
    let told =
        ["of 32 images could not be used", "data.max_bad_fraction allows", "--decode`", "--set data.max_bad"];
    ended.fails(1, &told);
    let ended =
        world.tokenizer("run", &["--data", "photos", "--restart", "--set", "data.max_bad_fraction=0.2"]);
    ended.works();
}

#[test]
fn patterns_of_images_work_in_every_command() {
    let world = world();
    let known = ["knn", "--weights", "model.safetensors", "--json", "--quiet"];
    let by = |data: [&str; 4]| {
        let ended = world.beit2(&[&known[..], &data].concat());
        let mut found: serde_json::Value = serde_json::from_str(&ended.works().out).unwrap();
        found["account"].take();
        found
    };
    let folder = by(["--data", "classes", "--val", "classes"]);
    assert_eq!(by(["--data", "classes/*/*.ppm", "--val", "classes/[ab]/*"]), folder);
    assert_eq!(by(["--data", "classes/*", "--val", "classes/{a,b}"]), folder);
    let ended = world.tokenizer("run", &["--data", "train/*.ppm", "--set", "epochs=1"]);
    assert!(ended.works().err.contains("train/*.ppm: 24 used"), "{}", ended.err);
    world.beit2(&["predict", "--weights", "model.safetensors", "train/0*.ppm", "--csv", "ten.csv"]).works();
    assert_eq!(
        fs::read_to_string(world.path("ten.csv")).unwrap().lines().count(),
        11,
        "a header and ten images"
    );
}
