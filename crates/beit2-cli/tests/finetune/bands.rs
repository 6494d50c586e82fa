//! Images of five bands through every stage, with a teacher that sees three of them.

use std::fs;

use super::support::World;

/// `train/CLASS/N.npy` and `val/…`: 5 × 40 × 40, each class of another brightness in bands 4 and 5 only.
fn banded(world: &World, set: &str) {
    for (class, name) in ["field", "forest"].iter().enumerate() {
        fs::create_dir_all(world.path(&format!("{set}/{name}"))).unwrap();
        for number in 0..8usize {
            let text = "{'descr': '|u1', 'fortran_order': False, 'shape': (5, 40, 40), }\n";
            let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
            bytes.extend((text.len() as u16).to_le_bytes());
            bytes.extend(text.as_bytes());
            for band in 0..5 {
                let base = if band >= 3 { 40 + 120 * class } else { 60 };
                let shift = if set == "val" { 5 } else { 0 };
                bytes.extend((0..1600).map(|at| (base + shift + (at * (number + 3)) % 50) as u8));
            }
            fs::write(world.path(&format!("{set}/{name}/{number}.npy")), bytes).unwrap();
        }
    }
}

#[test]
fn five_bands_go_through_every_stage() {
    let world = super::world();
    banded(&world, "bands");
    banded(&world, "val");
    let bands = ["--set", "data.train=bands", "--set", "model.in_chans=5"];
    world
        .tokenizer("tok", &bands)
        .fails(2, &["the teacher sees RGB, and model.in_chans is 5", "data.teacher_bands = [3, 2, 1]"]);
    world
        .tokenizer("tok", &[&bands[..], &["--set", "data.teacher_bands=[3, 2, 6]"]].concat())
        .fails(2, &["names band 6"]);
    let tokenizer =
        [&bands[..], &["--set", "data.teacher_bands=[3, 2, 1]", "--set", "schedule.epochs=2"]].concat();
    world.tokenizer("tok", &tokenizer).works();

    let pretrain = |out: &str, more: &[&str]| {
        let args = ["pretrain", "mim.toml", "--out", out, "--tokenizer", "tok", "--set", "data.train=bands"];
        world.beit2(&[&args, more].concat())
    };
    pretrain("mim", &[]).fails(1, &["the image has 5 channels, but 3 were expected"]);
    pretrain("mim", &["--set", "model.vit.in_chans=5"]).works();
    let settings: toml::Table = fs::read_to_string(world.path("mim/run.toml")).unwrap().parse().unwrap();
    let mean = settings["model"]["vit"]["normalization"]["mean"].as_array().unwrap();
    assert_eq!(mean.len(), 5, "measured and kept");
    let brightness = |band: usize| mean[band].as_float().unwrap() * 255.0;
    assert!((brightness(0) - 84.5).abs() < 2.0 && (brightness(3) - 124.5).abs() < 2.0, "{mean:?}");

    let checked = world.beit2(&[
        "data",
        "check",
        "bands",
        "--decode",
        "--channels",
        "5",
        "--image-size",
        "32",
        "--json",
    ]);
    let checked: serde_json::Value = serde_json::from_str(&checked.works().out).unwrap();
    let found = checked["decoded"]["mean"].as_array().unwrap();
    for (band, value) in found.iter().enumerate() {
        assert!((value.as_f64().unwrap() * 255.0 - brightness(band)).abs() < 0.01, "{checked}");
    }

    // Only bands 4 and 5 tell the classes apart.
    let found =
        world.beit2(&["knn", "--weights", "mim", "--data", "bands", "--val", "val", "--k", "1", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&found.works().out).unwrap();
    assert_eq!(json["train"], 16);
    assert_eq!(json["knn"][0]["top1"], 1.0, "{json}");
    world
        .beit2(&["knn", "--weights", "mim", "--data", "classes", "--val", "classes"])
        .fails(1, &["3 channels, but 5"]);
    world.beit2(&["tokenizer", "encode", "bands", "--tokenizer", "tok", "-o", "ids.npy"]).works();
    world.beit2(&["embed", "bands", "--weights", "mim", "-o", "features.npy"]).works();

    let finetune = [
        "finetune",
        "ft.toml",
        "--init",
        "mim",
        "--data",
        "bands",
        "--val",
        "val",
        "--out",
        "cls",
        "--set",
        "schedule.epochs=2",
        "--set",
        "schedule.batch_size=4",
        "--set",
        "init.sizes_from_weights=true",
        "--set",
        "augment.use_rand_augment=true",
        "--set",
        "augment.erase.prob=0.5",
    ];
    world.beit2(&finetune).works();
    world.beit2(&["eval", "--weights", "cls", "--data", "val"]).works();
    world.beit2(&["predict", "val", "--weights", "cls"]).works();
}

/// A 16-bit image whose values are 257 times those of an 8-bit image is that image.
#[test]
fn a_sixteen_bit_set_measures_like_its_twin() {
    let world = super::world();
    for (set, shift) in [("train", 0usize), ("val", 3)] {
        for (class, name) in ["a", "b", "c"].iter().enumerate() {
            for folder in ["eight", "sixteen"] {
                fs::create_dir_all(world.path(&format!("{folder}_{set}/{name}"))).unwrap();
            }
            for number in 0..5usize {
                // Classes overlap, so that not every neighbour is of the right one.
                let value = |at: usize| ((at * (number + 3 + shift)) % 90 + class * 8) as u8;
                let mut eight = b"P5 40 40 255\n".to_vec();
                eight.extend((0..1600).map(value));
                let mut sixteen = b"P5 40 40 65535\n".to_vec();
                sixteen.extend((0..1600).flat_map(|at| (u16::from(value(at)) * 257).to_be_bytes()));
                fs::write(world.path(&format!("eight_{set}/{name}/{number}.pgm")), eight).unwrap();
                fs::write(world.path(&format!("sixteen_{set}/{name}/{number}.pgm")), sixteen).unwrap();
            }
        }
    }
    let knn = |depth: &str, more: &[&str]| {
        let (train, val) = (format!("{depth}_train"), format!("{depth}_val"));
        let args = ["knn", "--weights", "pixels", "--data", &train, "--val", &val, "--k", "1", "--json"];
        world.beit2(&[&args, more].concat())
    };
    let top1 =
        |json: &str| serde_json::from_str::<serde_json::Value>(json).unwrap()["knn"][0]["top1"].clone();
    knn("sixteen", &[]).fails(1, &["16-bit values", "data.range"]);
    let (eight, sixteen) = (knn("eight", &[]), knn("sixteen", &["--range", "full"]));
    assert_eq!(top1(&eight.works().out), top1(&sixteen.works().out));
    // Neither all nor none, so that the values matter.
    assert_eq!(top1(&eight.out), 0.6);
}
