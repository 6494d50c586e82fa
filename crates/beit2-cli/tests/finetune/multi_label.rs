//! Images with several classes or none: training, evaluation, prediction, probe, and what is refused.

use std::fs;

use super::{finetune, finetune_on, json, world};

/// Dark images have neither class, gray ones `mid`, light ones both.
pub(super) fn table(world: &super::support::World, name: &str, rows: [(&str, &str); 3]) -> String {
    let mut text = "file_name,bright,mid\n".to_owned();
    for (folder, cells) in rows {
        (0..6).for_each(|number| text += &format!("classes/{folder}/{number}.ppm,{cells}\n"));
    }
    fs::write(world.path(name), text).unwrap();
    format!("{name}:label=bright+mid")
}

#[test]
fn several_classes_of_one_image() {
    let world = world();
    let data = table(&world, "sets.csv", [("dark", "0,0"), ("gray", "0,1"), ("light", "1,1")]);
    let sides = [&*data, &*data];
    let mixed = [
        "--init",
        "scratch",
        "--json",
        "--set",
        "ema_decay=0.5",
        "--set",
        "mixup=0.2",
        "--set",
        "mix.prob=0.3",
    ];
    let ended = finetune_on(&world, "run", sides, &mixed);
    let metrics = &json(&ended.works().out)["metrics"];
    let trained = metrics["val_map"].as_f64().unwrap();
    assert!(
        trained > 0.95 && metrics["ema_val_map"].is_number() && metrics["val_acc1"].is_null(),
        "{metrics}"
    );
    let saved = fs::read_to_string(world.path("run/run.toml")).unwrap();
    assert!(saved.contains("multi_label = true") && saved.contains("classes = 2"), "{saved}");

    let eval = |data: &str, more: &[&str]| {
        let line = ["eval", "--weights", "run/last/model.safetensors", "--data", data, "--json"];
        world.beit2(&[&line[..], more].concat())
    };
    let result = json(&eval(&data, &["--out", "result"]).works().out);
    assert!((result["map"].as_f64().unwrap() - trained).abs() < 1e-9, "{result}");
    assert!(result["top1"].is_null() && result["loss"].as_f64().unwrap() < 0.6, "{result}");
    let labels = fs::read_to_string(world.path("result/per_class.csv")).unwrap();
    assert!(labels.starts_with("class,name,positives,average_precision\n0,bright,6,"), "{labels}");
    assert!(!world.path("result/confusion.csv").exists());
    // A class without positives has no average precision, and is named.
    let without = table(&world, "none.csv", [("dark", "0,0"), ("gray", "0,1"), ("light", "0,1")]);
    let ended = eval(&without, &[]);
    assert_eq!(json(&ended.works().out)["classes_without_positives"][0].as_str(), Some("bright"));
    assert!(ended.err.contains("has no image of 1 of the 2 classes"), "{}", ended.err);

    let predict = |image: &str, more: &[&str]| {
        let line = ["predict", image, "--weights", "run/last/model.safetensors"];
        world.beit2(&[&line[..], more].concat())
    };
    let light = predict("classes/light/0.ppm", &[]);
    assert!(light.works().out.contains(" % bright") && light.out.contains(" % mid"), "{}", light.out);
    let dark = predict("classes/dark/0.ppm", &[]);
    assert_eq!(dark.works().out, "classes/dark/0.ppm: no class\n");
    let all = json(&predict("classes/dark/0.ppm", &["--threshold", "0", "--json"]).works().out);
    assert_eq!(all["images"][0]["predictions"].as_array().unwrap().len(), 2, "{all}");
    predict("classes/dark", &["--csv", "out.csv"]).works();
    let rows = fs::read_to_string(world.path("out.csv")).unwrap();
    assert!(rows.contains("classes/dark/0.ppm,,,,,,\n"), "{rows}");
    predict("classes/dark", &["--threshold", "2"]).fails(2, &["--threshold must lie in [0, 1]"]);

    // The same labels with their columns in another order.
    let swapped = table(&world, "swapped.csv", [("dark", "0,0"), ("gray", "1,0"), ("light", "1,1")]);
    let text = fs::read_to_string(world.path("swapped.csv")).unwrap().replace("bright,mid", "mid,bright");
    fs::write(world.path("swapped.csv"), text).unwrap();
    let result = json(&eval(&swapped.replace("bright+mid", "mid+bright"), &[]).works().out);
    assert!((result["map"].as_f64().unwrap() - trained).abs() < 1e-9, "{result}");

    let sides = ["--data", &data, "--val", &data, "--json"];
    let probe = world.beit2(&[&["probe", "--weights", "run", "--lr", "0.05"], &sides[..]].concat());
    let probe = json(&probe.works().out);
    let map = probe["probe"]["map"].as_f64().unwrap();
    let interval = [0, 1].map(|at| probe["probe"]["map_interval"][at].as_f64().unwrap());
    assert!(map > 0.95 && interval[0] <= map && map <= interval[1], "{probe}");
    assert!(probe["probe"]["train_map"].as_f64().unwrap() > 0.95, "{probe}");
    world
        .beit2(&[&["knn", "--weights", "run"], &sides[..]].concat())
        .fails(2, &["k-NN votes for one class", "linear probe"]);

    // What is for one class an image.
    finetune(&world, "single", &["--init", "scratch", "--set", "epochs=1", "--quiet"]).works();
    let line = ["eval", "--weights", "single", "--data", &data];
    world.beit2(&line).fails(2, &["images of sets.csv", "have several classes", "one class an image"]);
    world
        .beit2(&["predict", "classes", "--weights", "single", "--threshold", "0.3"])
        .fails(2, &["--threshold is for multi-label classifiers"]);
    finetune_on(&world, "never", ["classes", &data], &["--init", "scratch"])
        .fails(2, &["images of sets.csv", "have several classes, but those of classes have one each"]);
}
