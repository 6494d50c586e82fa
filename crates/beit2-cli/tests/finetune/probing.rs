//! `probe` and `knn` of raw pixels: how the learning rate is chosen, what is printed, and sets too small to split.

use std::fs;

use serde_json::Value;

use super::support::{Ended, World, classes};
use super::{finetune, json, world};

fn probe(world: &World, sides: [&str; 2], more: &[&str]) -> Ended {
    let line = ["probe", "--weights", "pixels", "--image-size", "8", "--data", sides[0], "--val", sides[1]];
    world.beit2(&[&line[..], more].concat())
}

fn found(ended: &Ended) -> Value {
    json(&ended.works().out)["probe"].clone()
}

fn bounds(value: &Value) -> [f64; 2] {
    [0, 1].map(|at| value[at].as_f64().unwrap())
}

#[test]
fn the_rate_is_chosen_without_a_look_at_validation_images() {
    let world = world();
    let both = ["classes", "classes"];
    let swept = found(&probe(&world, both, &["--json"]));
    let rates = swept["sweep"]["rates"].as_array().unwrap();
    assert_eq!((rates.len(), swept["sweep"]["held_out"].as_u64()), (7, Some(3)), "{swept}");
    assert!(rates.iter().any(|rate| rate["lr"] == swept["lr"]), "{swept}");
    assert!(rates.iter().all(|rate| rate["top1"].is_number()), "{swept}");
    assert_eq!(swept["train_top1"], swept["top1"], "the same images: {swept}");
    let [low, high] = bounds(&swept["top1_interval"]);
    assert!(low <= swept["top1"].as_f64().unwrap() && swept["top1"].as_f64().unwrap() <= high, "{swept}");

    // Validation images in the wrong classes change the score and nothing else.
    classes(&world.path("swapped"), &["dark", "gray", "light"]);
    for [from, to] in [["dark", "spare"], ["light", "dark"], ["spare", "light"]] {
        fs::rename(world.path("swapped").join(from), world.path("swapped").join(to)).unwrap();
    }
    let other = found(&probe(&world, ["classes", "swapped"], &["--json"]));
    for same in ["lr", "sweep", "train_top1", "losses"] {
        assert_eq!(other[same], swept[same], "{same}");
    }
    assert!(other["top1"].as_f64().unwrap() < swept["top1"].as_f64().unwrap(), "{other}");

    let told = probe(&world, both, &[]);
    for part in [
        "the best of 7 on 3 held-out training images",
        "linear probe top-1, training",
        " % (95 %: ",
        "learning rate  held-out top-1 after 100 epochs",
        "3e-4",
    ] {
        assert!(told.works().out.contains(part), "{part}: {}", told.out);
    }

    // The rates that are asked for; of one, there is nothing to choose.
    let two = found(&probe(&world, both, &["--json", "--lr", "1e-2,1e-7"]));
    assert_eq!(
        (two["lr"].as_f64(), two["sweep"]["rates"].as_array().unwrap().len()),
        (Some(1e-2), 2),
        "{two}"
    );
    let one = probe(&world, both, &["--json", "--lr", "1e-6"]);
    let (err, one) = (one.err.clone(), found(&one));
    assert_eq!((one["lr"].as_f64(), &one["sweep"]), (Some(1e-6), &Value::Null), "{one}");
    // So low a rate teaches nothing in 100 epochs of one step.
    assert_eq!(one["warnings"].as_array().unwrap().len(), 1, "{one}");
    assert!(err.contains("warning: ") && err.contains("the linear probe has not converged"), "{err}");
    let good = probe(&world, both, &["--lr", "0.3"]);
    assert!(good.works().out.contains("100.0 % (95 %: 100.0 to 100.0)"), "{}", good.out);
    assert!(!good.err.contains("converged"), "{}", good.err);
    for wrong in ["0", "nan", "1e-3,0"] {
        probe(&world, both, &["--lr", wrong]).fails(2, &["--lr", "above 0, such as 1e-3"]);
    }
}

#[test]
fn sets_too_small_to_split() {
    let world = world();
    for class in ["dark", "light"] {
        fs::create_dir_all(world.path("two").join(class)).unwrap();
        let image = |folder: &str| world.path(folder).join(class).join("0.ppm");
        fs::copy(image("classes"), image("two")).unwrap();
    }
    let told = probe(&world, ["two", "two"], &[]);
    let text = "1e-3, the default: no split is possible, because no class has two training images";
    assert!(told.works().out.contains(text) && told.out.contains("2 training, 2 validation"), "{}", told.out);
    let two = found(&probe(&world, ["two", "two"], &["--json"]));
    assert_eq!((two["lr"].as_f64(), &two["sweep"]), (Some(1e-3), &Value::Null), "{two}");
    let told = probe(&world, ["two", "two"], &["--lr", "0.1,0.2,0.5"]);
    assert!(told.works().out.contains("2e-1, the middle one: no split"), "{}", told.out);
    let line = ["knn", "--weights", "pixels", "--data", "two", "--val", "two"];
    let told = world.beit2(&line);
    assert!(told.works().out.contains("k-NN top-1, k = 2"), "{}", told.out);
}

#[test]
fn scores_have_intervals() {
    let world = world();
    let line = ["knn", "--weights", "pixels", "--data", "classes", "--val", "classes", "--k", "1,18"];
    let told = world.beit2(&line);
    assert!(told.works().out.contains("k-NN top-1, k = 1   100.0 % (95 %: 100.0 to 100.0)"), "{}", told.out);
    let knn = json(&world.beit2(&[&line[..], &["--json"]].concat()).works().out)["knn"].clone();
    assert_eq!((knn[0]["k"].as_u64(), bounds(&knn[0]["top1_interval"])), (Some(1), [1.0, 1.0]), "{knn}");
    let (value, [low, high]) = (knn[1]["top1"].as_f64().unwrap(), bounds(&knn[1]["top1_interval"]));
    assert!(low <= value && value <= high, "{knn}");

    let short = ["--init", "scratch", "--set", "epochs=1", "--quiet"];
    finetune(&world, "run", &short).works();
    let eval = ["eval", "--weights", "run", "--data", "classes"];
    let told = world.beit2(&eval);
    assert!(told.works().out.contains(" % (95 %: "), "{}", told.out);
    let result = json(&world.beit2(&[&eval[..], &["--json"]].concat()).works().out);
    let (value, [low, high]) = (result["top1"].as_f64().unwrap(), bounds(&result["top1_interval"]));
    assert!(low <= value && value <= high && (value == 0.0 || value == 1.0 || low < high), "{result}");
}
