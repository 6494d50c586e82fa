//! Segmentation through the real binary: training, evaluation, masks and overlays, large images, bad data.

#![allow(clippy::unwrap_used)]

#[path = "reports/segment.rs"]
mod report;
#[path = "support/scenes.rs"]
mod scenes;
mod support;
#[path = "support/tiny.rs"]
mod tiny;

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use png::{BitDepth, ColorType};
use scenes::{SIZE, png, scenes};
use serde_json::Value;
use support::{Ended, World};

const RECIPE: &str = r#"# A segmentation model that trains in seconds.
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
    fs::write(world.path("seg.toml"), RECIPE).unwrap();
    scenes(&world.path("train_scenes"), 12);
    scenes(&world.path("val_scenes"), 5);
    world
}

fn train(world: &World, out: &str, more: &[&str]) -> Ended {
    let line =
        ["segment", "train", "seg.toml", "--out", out, "--data", "train_scenes", "--val", "val_scenes"];
    world.beit2(&[&line[..], more].concat())
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Palette and pixels of an 8-bit PNG.
fn read_png(path: &Path) -> (Vec<u8>, Vec<u8>) {
    let mut decoder = png::Decoder::new(std::io::BufReader::new(File::open(path).unwrap()));
    decoder.set_transformations(png::Transformations::IDENTITY);
    let mut reader = decoder.read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    reader.next_frame(&mut pixels).unwrap();
    (reader.info().palette.as_deref().unwrap_or_default().to_vec(), pixels)
}

#[test]
fn a_model_is_trained_judged_and_used() {
    let world = world();
    let ended = train(&world, "run", &["--init", "scratch"]);
    for part in ["from scratch", "2 classes", "val mIoU", "pixel acc"] {
        assert!(ended.works().err.contains(part), "no `{part}` in: {}", ended.err);
    }
    for file in [
        "last/model.safetensors",
        "best/model.safetensors",
        "report.html",
        "per_class.csv",
        "examples/04.png",
    ] {
        assert!(world.path("run").join(file).exists(), "{file}");
    }

    let eval = ["segment", "eval", "--weights", "run", "--data", "val_scenes", "--out", "result"];
    let result = json(&world.beit2(&[&eval[..], &["--json", "--quiet"]].concat()).works().out);
    assert!(result["miou"].as_f64().unwrap() > 0.8, "{result}");
    assert_eq!(result, json(&fs::read_to_string(world.path("result/result.json")).unwrap()));
    let table = fs::read_to_string(world.path("result/per_class.csv")).unwrap();
    assert!(
        table.starts_with("class,name,iou,accuracy\n0,ground,0.") && table.contains("\n1,box,0."),
        "{table}"
    );
    let confusion = fs::read_to_string(world.path("result/confusion.csv")).unwrap();
    let pixels: usize = confusion
        .lines()
        .skip(1)
        .map(|line| line.rsplit(',').next().unwrap().parse::<usize>().unwrap())
        .sum();
    assert_eq!(pixels, 5 * SIZE.0 * SIZE.1);
    world.beit2(&eval).fails(2, &["result/result.json already exists", "--force"]);
    let ways = ["--force", "--flip", "--scales", "1,1.25", "--resize", "native", "--stride", "40"];
    let ended = world.beit2(&[&eval[..], &ways].concat());
    assert!(ended.works().out.contains("mIoU"), "{}", ended.out);
    world.beit2(&[&eval[..], &["--force", "--mode", "whole"]].concat()).works();
    let ways = ["--force", "--precision", "bf16", "--json", "--quiet"];
    let rounded = json(&world.beit2(&[&eval[..], &ways].concat()).works().out);
    assert_eq!((result["precision"].as_str(), rounded["precision"].as_str()), (Some("f32"), Some("bf16")));
    let [exact, rounded] = [&result, &rounded].map(|result| result["miou"].as_f64().unwrap());
    assert!((exact - rounded).abs() < 0.02, "{exact} {rounded}");

    let predict = ["segment", "predict", "val_scenes/images", "--weights", "run", "--out", "out"];
    let result = json(&world.beit2(&[&predict[..], &["--json", "--quiet"]].concat()).works().out);
    assert_eq!((result["images"].as_u64(), result["finished"].as_bool()), (Some(5), Some(true)));
    let (palette, ids) = read_png(&world.path("out/masks/000.png"));
    assert_eq!(palette, [0x20, 0x20, 0x20, 0xff, 0x80, 0]);
    assert_eq!(ids.len(), SIZE.0 * SIZE.1);
    let (_, right) = read_png(&world.path("val_scenes/masks/000.png"));
    let wrong = ids.iter().zip(&right).filter(|(a, b)| a != b).count();
    assert!(wrong < ids.len() / 10, "{wrong}");
    let shares = result["results"][0]["classes"].as_array().unwrap();
    let share = |id: u8| ids.iter().filter(|&&other| other == id).count() as f64 / ids.len() as f64;
    assert_eq!(shares[0]["name"], "ground");
    assert!((shares[0]["share"].as_f64().unwrap() - share(0)).abs() < 1e-12);
    let (_, overlay) = read_png(&world.path("out/overlays/000.png"));
    assert_eq!(overlay.len(), 3 * ids.len());
    let legend = fs::read_to_string(world.path("out/legend.csv")).unwrap();
    assert_eq!(legend, "class,name,colour\n0,ground,#202020\n1,box,#ff8000\n");
    assert!(fs::read_to_string(world.path("out/legend.svg")).unwrap().contains("1 box</text>"));

    // What is there is not replaced unasked.
    world.beit2(&predict).fails(2, &["out/masks/000.png already exists", "--keep", "--force"]);
    fs::remove_file(world.path("out/overlays/003.png")).unwrap();
    let again = json(&world.beit2(&[&predict[..], &["--keep", "--json", "--quiet"]].concat()).works().out);
    assert_eq!((again["images"].as_u64(), again["kept"].as_u64()), (Some(1), Some(4)));
    assert!(world.path("out/overlays/003.png").exists());
    fs::write(world.path("val_scenes/images/002.ppm"), "P6 4 4 255\nx").unwrap();
    let ended = world.beit2(&[&predict[..], &["--force"]].concat());
    ended.fails(1, &["1 of the images could not be read"]);
    assert!(ended.err.contains("002.ppm"), "{}", ended.err);
}

#[test]
fn a_model_is_trained_in_bf16() {
    let world = world();
    let more = ["--init", "scratch", "--set", "precision=bf16"];
    train(&world, "run", &more).works();
    let eval =
        ["segment", "eval", "--weights", "run", "--data", "val_scenes", "--precision", "bf16", "--json"];
    let result = json(&world.beit2(&eval).works().out);
    assert!(result["miou"].as_f64().unwrap() > 0.8, "{result}");
}

#[test]
fn an_interrupted_run_continues_to_the_same_bytes() {
    let world = world();
    let short =
        ["--init", "scratch", "--quiet", "--set", "schedule.steps=12", "--set", "logging.checkpoint_every=3"];
    train(&world, "whole", &short).works();
    let stopped =
        ["segment", "train", "seg.toml", "--out", "parts", "--data", "train_scenes", "--val", "val_scenes"];
    let mut child = world.command(&[&stopped[..], &short].concat()).spawn().unwrap();
    world.wait_for_checkpoint("parts");
    let _ = child.kill();
    child.wait().unwrap();
    train(&world, "parts", &short).works();
    assert!(world.weights("whole") == world.weights("parts"));
}

#[test]
fn a_large_image_is_segmented_in_strips() {
    let world = World::new();
    // All logits of this image would take 6.1 GB.
    let (width, height, classes) = (6000, 4000, 64);
    tiny::segmenter(&world.path("model.safetensors"), classes);
    let row: Vec<u8> = (0..width * 3).map(|at| (at / 40 % 256) as u8).collect();
    let path = world.path("large.png");
    png(&path, (width, height), ColorType::Rgb, BitDepth::Eight, &row.repeat(height));
    let args = [
        "segment",
        "predict",
        "large.png",
        "--weights",
        "model.safetensors",
        "--out",
        "out",
        "--resize",
        "native",
        "--stride",
        "64",
        "--batch-size",
        "16",
        "--quiet",
    ];
    let command = world.command(&args);
    // 1.5 GB of addresses, of which the program and its threads take a part without using it.
    let limited = Command::new("sh")
        .arg("-c")
        .arg("ulimit -v 1500000 && exec \"$0\" \"$@\"")
        .arg(command.get_program())
        .args(command.get_args())
        .current_dir(world.root())
        .env("RAYON_NUM_THREADS", "2")
        .output()
        .unwrap();
    Ended::from(limited).works();
    let (_, ids) = read_png(&world.path("out/masks/large.png"));
    assert_eq!(ids.len(), width * height);
    assert!(ids.iter().all(|&id| usize::from(id) < classes));
    assert!(world.path("out/overlays/large.png").exists());

    // Seen as a whole it would need more memory than any machine has, and that is said.
    let whole = ["segment", "predict", "large.png", "--weights", "model.safetensors", "-o", "whole"];
    let ended = world.beit2(&[&whole[..], &["--resize", "native", "--mode", "whole"]].concat());
    ended.fails(2, &["6000×4000 px has 375000 patches", "mode slide"]);
    assert!(!world.path("whole/masks/large.png").exists());
}

#[test]
fn bad_data_is_told_before_anything_starts() {
    let world = world();
    let check = |name: &str| {
        let line =
            ["segment", "train", "seg.toml", "--data", name, "--out", "never", "--check-data", "--quiet"];
        world.beit2(&line)
    };
    let sound = check("train_scenes");
    assert!(sound.works().out.contains("12 pairs, 12 checked") && sound.out.contains("box"), "{}", sound.out);

    let (width, height) = SIZE;
    scenes(&world.path("bad"), 9);
    let mask = |name: &str| world.path("bad/masks").join(name);
    png(
        &mask("000.png"),
        (width, height - 1),
        ColorType::Grayscale,
        BitDepth::Eight,
        &vec![0; width * (height - 1)],
    );
    png(&mask("001.png"), SIZE, ColorType::Grayscale, BitDepth::Eight, &vec![2; width * height]);
    png(&mask("002.png"), SIZE, ColorType::Grayscale, BitDepth::Sixteen, &vec![0; 2 * width * height]);
    png(&mask("003.png"), SIZE, ColorType::Rgba, BitDepth::Eight, &vec![0; 4 * width * height]);
    png(&mask("004.png"), SIZE, ColorType::Rgb, BitDepth::Eight, &vec![9; 3 * width * height]);
    fs::remove_file(mask("005.png")).unwrap();
    fs::remove_file(world.path("bad/images/006.ppm")).unwrap();
    fs::write(mask("007.png"), "no image").unwrap();
    fs::write(world.path("bad/images/008.ppm"), "P6 9 9 255\nx").unwrap();
    let ended = check("bad");
    ended.fails(1, &["the data have 9 problems; training was not started"]);
    for number in 0..9 {
        let name = format!("{number:03}.");
        let told = ended.out.lines().any(|line| line.starts_with("problem") && line.contains(&name));
        assert!(told, "nothing about {name} in: {}", ended.out);
    }
    for part in ["16", "alpha", "#090909", "72 x 65", "id 2"] {
        assert!(ended.out.contains(part), "no `{part}` in: {}", ended.out);
    }
    // Training itself refuses missing partners before it starts, too.
    world
        .beit2(&["segment", "train", "seg.toml", "--data", "bad", "--init", "scratch", "--out", "never"])
        .fails(1, &["005"]);
    assert!(!world.path("never").exists());

    train(&world, "never", &[]).fails(2, &["init.weights is empty", "--init RUN"]);
    train(&world, "never", &["--init", "scratch", "--set", "model.classes=9"])
        .fails(2, &["model.classes is 9"]);
    train(&world, "never", &["--init", "teacher.safetensors"]).fails(2, &["teacher.safetensors"]);
    let eval = ["segment", "eval", "--weights", "teacher.safetensors", "--data", "val_scenes"];
    world.beit2(&eval).fails(2, &["teacher.safetensors"]);
    tiny::segmenter(&world.path("other.safetensors"), 5);
    let eval = ["segment", "eval", "--weights", "other.safetensors", "--data", "val_scenes"];
    world.beit2(&eval).fails(2, &["val_scenes has 2 classes", "has 5"]);
    let predict = ["segment", "predict", "val_scenes/images", "--weights", "other.safetensors", "-o", "x"];
    world.beit2(&[&predict[..], &["--stride", "65"]].concat()).fails(2, &["stride 65", "64 px"]);
    world.beit2(&[&predict[..], &["--stride", "3"]].concat()).fails(2, &["stride 3", "at least 4"]);
    world.beit2(&[&predict[..], &["--resize", "12"]].concat()).fails(2, &["2048x512"]);
    assert!(!world.path("x/masks").exists() && !world.path("never").exists());
}
