//! What the report of a segmentation run shows: the IoU that `segment eval` counts, and colours that can be seen.

use std::fs;

use serde_json::Value;

use super::{json, train, world};

const SHORT: [&str; 6] = ["--init", "scratch", "--quiet", "--set", "schedule.steps=12", "--no-check"];

fn classes(world: &super::World, run: &str) -> Vec<Value> {
    let kept = json(&fs::read_to_string(world.path(run).join("examples/examples.json")).unwrap());
    kept["segmented"]["classes"].as_array().unwrap().clone()
}

/// IoU by class: of the report and of `segment eval`.
fn assert_iou_of_eval(world: &super::World, run: &str, data: &str) {
    let line = ["segment", "eval", "--weights", run, "--data", data, "--json", "--quiet"];
    let result = json(&world.beit2(&line).works().out);
    let found = classes(world, run);
    assert_eq!(found.len(), result["per_class"].as_array().unwrap().len());
    for (class, expected) in found.iter().zip(result["per_class"].as_array().unwrap()) {
        assert_eq!(class["name"], expected["name"]);
        for key in ["iou", "accuracy"] {
            let [found, expected] = [&class[key], &expected[key]].map(Value::as_f64);
            assert_eq!(found.map(|share| format!("{share:.9}")), expected.map(|share| format!("{share:.9}")));
        }
    }
}

#[test]
fn iou_of_each_class_is_that_of_eval() {
    let world = world();
    train(&world, "run", &SHORT).works();
    assert_iou_of_eval(&world, "run", "val_scenes");
    let html = fs::read_to_string(world.path("run/report.html")).unwrap();
    for part in ["IoU of each class", "5 validation images (val_scenes)", "Best mean IoU, validation", "box"]
    {
        assert!(html.contains(part), "no `{part}`");
    }
    assert_eq!(html.matches("alt=\"image, mask and prediction\"").count(), 5);

    // Without a validation set, of the training images.
    let line = ["segment", "train", "seg.toml", "--out", "alone", "--data", "train_scenes"];
    world.beit2(&[&line[..], &SHORT].concat()).works();
    assert_iou_of_eval(&world, "alone", "train_scenes");
    let html = fs::read_to_string(world.path("alone/report.html")).unwrap();
    assert!(html.contains("12 training images (train_scenes), because the run has no validation set"));
    assert_eq!(html.matches("alt=\"image, mask and prediction\"").count(), 6);
}

#[test]
fn without_colours_no_class_is_drawn_in_black() {
    let world = world();
    for folder in ["train_scenes", "val_scenes"] {
        let list = world.path(folder).join("classes.txt");
        assert!(list.is_file(), "{}", list.display());
        fs::write(list, "ground\nbox\n").unwrap();
    }
    train(&world, "run", &SHORT).works();
    let colours: Vec<Value> = classes(&world, "run").iter().map(|class| class["colour"].clone()).collect();
    for colour in &colours {
        assert!(colour.as_array().unwrap().iter().any(|c| c.as_u64().unwrap() >= 190), "{colours:?}");
    }
    assert_ne!(colours[0], colours[1]);
    let line =
        ["segment", "predict", "val_scenes/images/000.ppm", "--weights", "run", "--out", "out", "--quiet"];
    world.beit2(&line).works();
    let legend = fs::read_to_string(world.path("out/legend.csv")).unwrap();
    assert!(!legend.contains("#000000"), "{legend}");
}
