//! Fine-tuning and evaluation through the real binary.

#![allow(clippy::unwrap_used)]

#[path = "finetune/bands.rs"]
mod bands;
#[path = "finetune/by_name.rs"]
mod by_name;
mod checking;
#[path = "finetune/multi_label.rs"]
mod multi_label;
#[path = "finetune/probing.rs"]
mod probing;
#[path = "reports/finetune.rs"]
mod report;
#[path = "support/scenes.rs"]
mod scenes;
mod support;

use std::fs;

use serde_json::Value;
use support::{Ended, World, classes};

const RECIPE: &str = r#"# A classifier that trains in a second.
stage = "finetune"
[model.vit]
image_size = 32
patch_size = 8
width = 16
depth = 1
heads = 2
[augment]
use_rand_augment = false
color_jitter = 0.0
[augment.erase]
prob = 0.0
[mix]
mixup = 0.0
cutmix = 0.0
[init]
head_scale = 1.0
[optimizer]
lr = 5e-3
[groups]
layer_decay = 1.0
[schedule]
epochs = 20
warmup_epochs = 1.0
batch_size = 6
[logging]
eval_every_epochs = 10
"#;

/// Of the checks of masks.
const SEGMENT: &str = r#"# A segmentation model that trains in seconds.
stage = "segment"
[model]
out_indices = [0, 1, 2, 3]
channels = 16
aux_channels = 8
dropout = 0.0
[model.vit]
image_size = 64
patch_size = 8
width = 16
depth = 4
heads = 2
drop_path = 0.0
[augment]
base = [72, 66]
[optimizer]
lr = 3e-3
[groups]
layer_decay = 1.0
[schedule]
steps = 60
warmup_steps = 5
batch_size = 4
[eval]
every = 30
[infer]
resize = false
[logging]
log_every = 10
checkpoint_every = 30
"#;

fn world() -> World {
    let world = World::new();
    fs::write(world.path("ft.toml"), RECIPE).unwrap();
    classes(&world.path("classes"), &["dark", "gray", "light"]);
    world
}

fn finetune(world: &World, out: &str, more: &[&str]) -> Ended {
    finetune_on(world, out, ["classes", "classes"], more)
}

fn finetune_on(world: &World, out: &str, [data, val]: [&str; 2], more: &[&str]) -> Ended {
    world.beit2(&[&["finetune", "ft.toml", "--out", out, "--data", data, "--val", val], more].concat())
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn a_classifier_is_trained_and_judged() {
    let world = world();
    let ended = finetune(&world, "run", &["--init", "scratch", "--set", "ema_decay=0.8"]);
    for part in ["from scratch", "3 classes", "val top-1", "average's top-1"] {
        assert!(ended.works().err.contains(part), "no `{part}` in: {}", ended.err);
    }
    for file in
        ["last/model.safetensors", "last/model_ema.safetensors", "best/model.safetensors", "report.html"]
    {
        assert!(world.path("run").join(file).exists(), "{file}");
    }

    let eval = ["eval", "--weights", "run", "--data", "classes", "--out", "result"];
    let ended = world.beit2(&[&eval[..], &["--json", "--quiet"]].concat());
    let result = json(&ended.works().out);
    assert_eq!((result["images"].as_u64(), result["top1"].as_f64()), (Some(18), Some(1.0)), "{result}");
    assert_eq!(result, json(&fs::read_to_string(world.path("result/result.json")).unwrap()));
    let table = fs::read_to_string(world.path("result/per_class.csv")).unwrap();
    assert!(table.contains("\n1,gray,6,6,6,1.000000,1.000000\n"), "{table}");
    let confusion = fs::read_to_string(world.path("result/confusion.csv")).unwrap();
    assert!(confusion.ends_with("\n2,2,light,light,6\n"), "{confusion}");
    world.beit2(&eval).fails(2, &["result/result.json already exists", "--force"]);
    let ended = world.beit2(&[&eval[..], &["--force", "--image-size", "48", "--crop-pct", "1"]].concat());
    assert!(ended.works().out.contains("top-1"), "{}", ended.out);
    let average = world.beit2(&["eval", "--weights", "run/last/model_ema.safetensors", "--data", "classes"]);
    average.works();
}

#[test]
fn a_tokenizer_and_a_pretrained_model_are_starts_too() {
    let world = world();
    world.tokenizer("tok", &["--quiet"]).works();
    let pretrain = ["pretrain", "mim.toml", "--out", "mim", "--tokenizer", "tok", "--quiet"];
    world.beit2(&pretrain).works();
    for init in ["tok", "mim", "mim/last/model.safetensors"] {
        let out = format!("from-{}", init.replace('/', "-"));
        let ended = finetune(&world, &out, &["--init", init, "--set", "epochs=2"]);
        assert!(ended.works().err.contains("tensors loaded"), "{}", ended.err);
    }
    // The sizes come from the weights, and run.toml says so.
    let saved = fs::read_to_string(world.path("from-mim/run.toml")).unwrap();
    assert!(saved.contains("classes = 3") && saved.contains("rel_pos_bias = \"per_block\""), "{saved}");
    // Every block in turn, and each is what --layer gives.
    let sides = ["--data", "classes", "--val", "classes", "--json", "--quiet"];
    let all = world.beit2(&[&["knn", "--weights", "mim", "--all-layers"], &sides[..]].concat());
    let all = json(&all.works().out);
    let layers = all["layers"].as_array().unwrap();
    assert!(!layers.is_empty() && all["layer"].as_u64().is_some(), "{all}");
    for layer in layers {
        let number = layer["layer"].to_string();
        let one = world.beit2(&[&["knn", "--weights", "mim", "--layer", &number], &sides[..]].concat());
        assert_eq!(json(&one.works().out)["knn"], layer["knn"]);
    }
    let text = ["probe", "--weights", "from-mim", "--data", "classes", "--val", "classes", "--all-layers"];
    let ended = world.beit2(&text);
    assert!(ended.works().out.contains("best block"), "{}", ended.out);
    world
        .beit2(&[&["knn", "--weights", "tok", "--all-layers"], &sides[..]].concat())
        .fails(2, &["--all-layers"]);
    world
        .beit2(&[&["knn", "--weights", "pixels", "--all-layers"], &sides[..]].concat())
        .fails(2, &["pixels"]);

    // A pretrained model has no classes, and says what would be right.
    world
        .beit2(&["eval", "--weights", "mim", "--data", "classes"])
        .fails(2, &["mim holds a pretraining model, which has no classes", "beit2 finetune"]);
}

#[test]
fn mistakes_cost_nothing() {
    let world = world();
    classes(&world.path("two"), &["dark", "gray"]);
    classes(&world.path("other"), &["dark", "gray", "white"]);
    finetune(&world, "never", &[]).fails(2, &["init.weights is empty", "--init RUN", "--init scratch"]);
    let scratch = ["--init", "scratch"];
    let with = |more: &[&str]| finetune(&world, "never", &[&scratch[..], more].concat());
    finetune_on(&world, "never", ["classes", "other"], &scratch)
        .fails(2, &["other has the class `white`, which classes does not have", "`dark`, `gray`, `light`"]);
    finetune_on(&world, "never", ["train", "classes"], &scratch)
        .fails(2, &["train has 0 classes", "at least 2"]);
    with(&["--set", "model.classes=7"]).fails(2, &["model.classes is 7", "3 classes"]);
    with(&["--set", "grad_accum_steps=4"]).fails(2, &["4 equal micro-batches"]);
    with(&["--set", "mixup=1", "--set", "grad_accum_steps=2"]).fails(2, &["3 is odd"]);
    with(&["--set", "label_smoothing=1"]).fails(2, &["label_smoothing 1 must lie in [0, 1)"]);
    with(&["--set", "layer_decy=1"]).fails(2, &["layer_decy", "layer_decay"]);
    finetune(&world, "never", &["--init", "teacher.safetensors"]).fails(2, &["teacher.safetensors"]);
    finetune(&world, "never", &["--init", "nowhere"]).fails(1, &["nowhere"]);
    assert!(!world.path("never").exists());

    finetune(&world, "run", &[&scratch[..], &["--quiet", "--set", "epochs=1"]].concat()).works();
    let eval = |more: &[&str]| world.beit2(&[&["eval", "--weights", "run", "--data"], more].concat());
    eval(&["two", "--classes-by", "position"]).fails(2, &["two has 2 classes, but the model in run has 3"]);
    eval(&["other"]).fails(
        2,
        &["other has the class `white`, which the model in run does not have", "--class-map", "--classes-by"],
    );
    eval(&["train"]).fails(2, &["train has no classes"]);
    eval(&["classes", "--variant", "imagenet-r"]).fails(2, &["run has 3 classes", "ImageNet-1k"]);
    eval(&["classes", "--crop-pct", "0"]).fails(2, &["--crop-pct must be above 0"]);
    fs::write(world.path("classes/gray/3.ppm"), b"P6 40 40 255\nxx").unwrap();
    eval(&["classes"]).fails(1, &["gray/3.ppm"]);
}
