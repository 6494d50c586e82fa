//! What the report of a fine-tuned run shows: the same as `beit2 eval` counts, rebuilt from the disk alone.

use std::collections::BTreeMap;
use std::fs;

use serde_json::Value;

use super::support::World;
use super::{finetune, finetune_on, json, world};

fn examples(world: &World, run: &str) -> Value {
    json(&fs::read_to_string(world.path(run).join("examples/examples.json")).unwrap())
}

fn page(world: &World, run: &str) -> String {
    fs::read_to_string(world.path(run).join("report.html")).unwrap()
}

/// Class, class that it was taken for, images.
type Pairs = BTreeMap<(u64, u64), u64>;

fn of_report(examples: &Value) -> Pairs {
    let pairs = examples["classified"]["confusion"].as_array().unwrap();
    let number = |pair: &Value, at: usize| pair[at].as_u64().unwrap();
    pairs.iter().map(|pair| ((number(pair, 0), number(pair, 1)), number(pair, 2))).collect()
}

fn of_eval(world: &World, run: &str, data: &str) -> Pairs {
    let out = format!("{run}-eval");
    world.beit2(&["eval", "--weights", run, "--data", data, "--out", &out, "--quiet"]).works();
    let table = fs::read_to_string(world.path(&out).join("confusion.csv")).unwrap();
    let row = |line: &str| {
        let cells: Vec<&str> = line.split(',').collect();
        let number = |at: usize| cells[at].parse::<u64>().unwrap();
        ((number(0), number(1)), number(4))
    };
    table.lines().skip(1).map(row).collect()
}

#[test]
fn the_confusion_matrix_is_that_of_eval() {
    let world = world();
    // One epoch, so that the model is wrong about some.
    let short = ["--init", "scratch", "--quiet", "--set", "epochs=1"];
    finetune(&world, "run", &short).works();
    let kept = examples(&world, "run");
    let pairs = of_report(&kept);
    assert_eq!(pairs, of_eval(&world, "run", "classes"));
    assert_eq!(pairs.values().sum::<u64>(), 18);
    assert_eq!(kept["seen"]["validation"], true);
    assert_eq!((kept["seen"]["images"].as_u64(), kept["step"].as_u64()), (Some(18), Some(3)));

    // The worst images by loss, the worst first; each with its class and the one that it was taken for.
    let worst = kept["classified"]["worst"].as_array().unwrap();
    assert_eq!(worst.len(), 12);
    let losses: Vec<f64> = worst.iter().map(|image| image["loss"].as_f64().unwrap()).collect();
    assert!(losses.windows(2).all(|pair| pair[0] >= pair[1]), "{losses:?}");
    for image in worst {
        let probability = image["probability"].as_f64().unwrap();
        assert!((image["loss"].as_f64().unwrap() + probability.ln()).abs() < 1e-6, "{image}");
        let name = image["name"].as_str().unwrap();
        let class = image["classes"][0].as_u64().unwrap() as usize;
        assert!(name.contains(&format!("classes/{}/", ["dark", "gray", "light"][class])), "{image}");
    }
    // What is predicted for the worst image is what `predict` says.
    let predicted =
        world.beit2(&["predict", worst[0]["name"].as_str().unwrap(), "--weights", "run", "--json"]);
    let predicted = &json(&predicted.works().out)["images"][0]["predictions"][0];
    assert_eq!(predicted["class"], worst[0]["predicted"][0]["class"]);
    let [own, other] = [&predicted["probability"], &worst[0]["predicted"][0]["probability"]];
    assert!((own.as_f64().unwrap() - other.as_f64().unwrap()).abs() < 1e-5, "{own} {other}");

    let html = page(&world, "run");
    for part in [
        "Confusion matrix",
        "Accuracy of each class",
        "Worst images",
        "18 validation images (classes)",
        "Best top-1 accuracy, validation",
        "Last top-1 accuracy, validation",
        "at epoch 1, step 3",
    ] {
        assert!(html.contains(part), "no `{part}`");
    }
}

#[test]
fn a_report_is_rebuilt_without_model_and_images() {
    let world = world();
    let line = ["--init", "scratch", "--quiet", "--set", "epochs=1"];
    finetune(&world, "run", &line).works();
    let before = page(&world, "run");
    // Complete and kept: nothing is looked at again.
    let written = || fs::metadata(world.path("run/examples/examples.json")).unwrap().modified().unwrap();
    let first = written();
    finetune(&world, "run", &line).works();
    assert_eq!(written(), first);
    // What is missing is made.
    fs::remove_dir_all(world.path("run/examples")).unwrap();
    world.beit2(&["report", "run"]).works();
    assert!(page(&world, "run").contains("There are no images yet"));
    finetune(&world, "run", &line).works();
    assert!(page(&world, "run").contains("Confusion matrix"));

    fs::remove_dir_all(world.path("run/checkpoints")).unwrap();
    fs::rename(world.path("classes"), world.path("gone")).unwrap();
    world.beit2(&["report", "run"]).works();
    let sections = |html: &str| html.split("<section").skip(1).map(str::len).sum::<usize>();
    let after = page(&world, "run");
    assert!(after.contains("Worst images") && sections(&before) > 0);
    assert_eq!(before.matches("data:image/png").count(), after.matches("data:image/png").count());

    // A damaged file is a warning on the page.
    fs::write(world.path("run/examples/examples.json"), "{\"step\": 1").unwrap();
    world.beit2(&["report", "run"]).works();
    assert!(page(&world, "run").contains("examples.json is damaged"));
}

#[test]
fn without_a_validation_set_training_images_are_shown_and_it_is_said() {
    let world = world();
    let line = ["finetune", "ft.toml", "--out", "run", "--data", "classes", "--init", "scratch", "--quiet"];
    world.beit2(&[&line[..], &["--set", "epochs=1"]].concat()).works();
    let kept = examples(&world, "run");
    assert_eq!(kept["seen"]["validation"], false);
    assert_eq!(of_report(&kept), of_eval(&world, "run", "classes"));
    let html = page(&world, "run");
    for part in ["18 training images (classes), because the run has no validation set", "Best loss, training"]
    {
        assert!(html.contains(part), "no `{part}`");
    }
}

#[test]
fn a_finished_run_is_not_lost_by_its_images() {
    let world = world();
    let line = ["--init", "scratch", "--quiet", "--set", "epochs=1"];
    // A file where the folder should be.
    finetune(&world, "run", &line).works();
    fs::remove_dir_all(world.path("run/examples")).unwrap();
    fs::write(world.path("run/examples"), "").unwrap();
    let ended = finetune(&world, "run", &line);
    assert!(ended.works().err.contains("warning: the report has no images, because"), "{}", ended.err);
    assert!(ended.out.contains("done"), "{}", ended.out);
}

#[test]
fn images_with_several_classes_have_average_precisions() {
    let world = world();
    let data =
        super::multi_label::table(&world, "sets.csv", [("dark", "0,0"), ("gray", "0,1"), ("light", "1,1")]);
    finetune_on(&world, "run", [&*data, &*data], &["--init", "scratch", "--quiet", "--set", "epochs=2"])
        .works();
    let kept = examples(&world, "run");
    world.beit2(&["eval", "--weights", "run", "--data", &data, "--out", "eval", "--quiet"]).works();
    let table = fs::read_to_string(world.path("eval/per_class.csv")).unwrap();
    let labels = kept["classified"]["labels"].as_array().unwrap();
    assert_eq!(labels.len(), 2);
    for (label, line) in labels.iter().zip(table.lines().skip(1)) {
        let cells: Vec<&str> = line.split(',').collect();
        assert_eq!(label["positives"].to_string(), cells[2]);
        let share: f64 = cells[3].parse().unwrap();
        assert!((label["average_precision"].as_f64().unwrap() - share).abs() < 1e-6, "{label} {line}");
    }
    let html = page(&world, "run");
    assert!(html.contains("Average precision of each class") && !html.contains("Confusion matrix"));
    assert!(html.contains("Best mAP, validation"));
}
