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
    assert_eq!(
        json["images"]["training"].as_u64().or(json["train_images"].as_u64()).unwrap_or(16),
        16,
        "{json}"
    );
    assert!(json.to_string().contains("1.0"), "{json}");
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
