//! Classes are matched by name: folders that number them in another way give the same results.

use std::collections::BTreeMap;
use std::fs;

use beit2::weights;
use serde_json::Value;

use super::support::{Ended, World, classes};
use super::{finetune_on, json, world};

/// A folder with the images of some of the three classes under other names.
fn renamed(world: &World, folder: &str, names: &[(&str, &str)]) {
    for (old, new) in names {
        let to = world.path(folder).join(new);
        fs::create_dir_all(&to).unwrap();
        for image in fs::read_dir(world.path("classes").join(old)).unwrap() {
            let image = image.unwrap();
            let unique = format!("{old}-{}", image.file_name().to_string_lossy());
            fs::copy(image.path(), to.join(unique)).unwrap();
        }
    }
}

/// A classifier that knows dark, gray and light, and the same without names.
fn trained() -> World {
    let world = world();
    finetune_on(&world, "run", ["classes", "classes"], &["--init", "scratch", "--quiet"]).works();
    let file = weights::open(world.path("run")).unwrap();
    let bare = weights::encode(&file.tensors, &BTreeMap::new()).unwrap();
    fs::write(world.path("bare.safetensors"), bare).unwrap();
    world
}

fn eval(world: &World, weights: &str, data: &str, more: &[&str]) -> Ended {
    world.beit2(&[&["eval", "--weights", weights, "--data", data, "--json"], more].concat())
}

fn top1(ended: &Ended) -> (f64, Value) {
    let result = json(&ended.works().out);
    (result["top1"].as_f64().unwrap(), result)
}

#[test]
fn evaluation_matches_classes_by_name() {
    let world = trained();
    let (whole, result) = top1(&eval(&world, "run", "classes", &[]));
    assert_eq!((whole, result["classes_by"].as_str()), (1.0, Some("name")), "{result}");

    // The numbers 0 and 1 of this folder are the model's 1 and 2.
    renamed(&world, "two", &[("gray", "gray"), ("light", "light")]);
    let ended = eval(&world, "run", "two", &[]);
    let (found, result) = top1(&ended);
    assert_eq!((found, &result["missing_classes"][0]), (1.0, &Value::from("dark")), "{result}");
    assert!(
        ended.err.contains("two has no image of 1 of the 3 classes of the model in run: `dark`"),
        "{}",
        ended.err
    );

    renamed(&world, "more", &[("gray", "gray"), ("light", "white")]);
    let unknown = ["more has the class `white`, which the model in run does not have", "--class-map FILE"];
    eval(&world, "run", "more", &[]).fails(2, &unknown);

    // Other names in an order of their own; two of them are one class of the model.
    let names = [("light", "blanc"), ("dark", "noir"), ("gray", "gris"), ("light", "neige")];
    renamed(&world, "french", &names);
    fs::write(world.path("map.csv"), "folder,class\nblanc,light\nneige,light\nnoir,dark\ngris,gray\n")
        .unwrap();
    let (found, result) = top1(&eval(&world, "run", "french", &["--class-map", "map.csv"]));
    assert_eq!(
        (found, result["classes_by"].as_str(), result["images"].as_u64()),
        (1.0, Some("class_map"), Some(24))
    );
    fs::write(world.path("map.json"), r#"{"blanc": "lihgt"}"#).unwrap();
    eval(&world, "run", "french", &["--class-map", "map.json"]).fails(
        2,
        &[
            "map.json maps the class `lihgt`, which is not a class of the model in run",
            "`dark`, `gray`, `light`",
        ],
    );
    fs::write(world.path("map.json"), r#"{"blank": "light"}"#).unwrap();
    eval(&world, "run", "french", &["--class-map", "map.json"])
        .fails(2, &["`blank`, which is not a class of french"]);

    // By position, as it is asked for.
    renamed(&world, "abc", &[("dark", "a"), ("gray", "b"), ("light", "c")]);
    let by_position = eval(&world, "run", "abc", &["--classes-by", "position"]);
    assert_eq!(top1(&by_position).0, 1.0);
    assert!(
        by_position.err.contains("class 0 is `a` in abc and `dark` in the model in run"),
        "{}",
        by_position.err
    );
    eval(&world, "run", "abc", &[]).fails(2, &["`a`, `b`, `c`", "--classes-by position"]);
}

#[test]
fn a_model_without_names_needs_them_or_says_what_it_does() {
    let world = trained();
    let bare = "bare.safetensors";
    let ended = eval(&world, bare, "classes", &[]);
    assert_eq!(top1(&ended).1["classes_by"].as_str(), Some("position"));
    assert!(ended.err.contains("does not name its classes, so class k of classes"), "{}", ended.err);
    eval(&world, bare, "classes", &["--classes-by", "name"])
        .fails(2, &["does not name them", "--names FILE"]);

    renamed(&world, "two", &[("gray", "gray"), ("light", "light")]);
    eval(&world, bare, "two", &[])
        .fails(2, &["two has 2 classes", "has 3 and does not name them", "--names FILE", "--class-map"]);
    fs::write(world.path("names.json"), r#"{"0": "dark", "1": "gray", "2": "light"}"#).unwrap();
    assert_eq!(top1(&eval(&world, bare, "two", &["--names", "names.json"])).0, 1.0);
    fs::write(world.path("map.csv"), "gray,1\nlight,2\n").unwrap();
    assert_eq!(top1(&eval(&world, bare, "two", &["--class-map", "map.csv"])).0, 1.0);
    // Names that are numbers are the model's numbers.
    renamed(&world, "numbers", &[("gray", "1"), ("light", "2")]);
    let (found, result) = top1(&eval(&world, bare, "numbers", &[]));
    assert_eq!((found, result["classes_by"].as_str()), (1.0, Some("number")));

    // A list in the order of another program contradicts the file, which knows better.
    fs::write(world.path("names.txt"), "light\ngray\ndark\n").unwrap();
    let ended = eval(&world, "run", "two", &["--names", "names.txt"]);
    assert_eq!(top1(&ended).0, 1.0);
    assert!(ended.err.contains("names.txt lists the model's own names in another order"), "{}", ended.err);
    let predict = |more: &[&str]| {
        world.beit2(&[&["predict", "classes/dark/0.ppm", "--weights", "run", "--top", "1"], more].concat())
    };
    let ended = predict(&["--names", "names.txt"]);
    assert!(ended.works().out.contains(" % dark") && ended.err.contains("another order"), "{}", ended.err);
    let ended = predict(&["--names", "names.txt", "--classes-by", "position"]);
    assert!(ended.works().out.contains(" % light"), "{}", ended.out);
    fs::write(world.path("map.csv"), "noir,dark\ngris,gray\n").unwrap();
    assert!(predict(&["--class-map", "map.csv"]).works().out.contains(" % noir"));
}

#[test]
fn a_classifier_goes_on_with_classes_by_name() {
    let world = trained();
    // `abyss` comes first, so that every old class has another number.
    renamed(&world, "four", &[("dark", "dark"), ("gray", "gray"), ("light", "light")]);
    classes(&world.path("four"), &["abyss"]);
    let still =
        ["--set", "lr=1e-9", "--set", "min_lr=0", "--set", "epochs=1", "--set", "head_scale=0.001", "--json"];
    let go_on = |out: &str, data: [&str; 2], init: &[&str]| {
        let ended =
            finetune_on(&world, out, data, &[&still[..], &["--set", "eval_every_epochs=1"], init].concat());
        let result = json(&ended.works().out);
        (result["metrics"]["val_acc1"].as_f64().unwrap(), ended)
    };
    let (found, ended) = go_on("more", ["four", "classes"], &["--init", "run"]);
    assert_eq!(found, 1.0, "{}", ended.err);
    assert!(ended.err.contains("3 of 4 classes by name, 1 fresh: `abyss`"), "{}", ended.err);
    assert!(
        ended.err.contains("classes has no image of 1 of the 4 classes of four: `abyss`"),
        "{}",
        ended.err
    );

    // Without names nothing is copied, unless it is asked for.
    let (_, ended) = go_on("fresh", ["classes", "classes"], &["--init", "bare.safetensors"]);
    assert!(ended.err.contains("fresh: bare.safetensors does not name its 3 classes"), "{}", ended.err);
    let bare = ["--init", "bare.safetensors", "--classes-by", "position"];
    let (found, ended) = go_on("position", ["classes", "classes"], &bare);
    assert_eq!(found, 1.0, "{}", ended.err);
    assert!(ended.err.contains("3 classes by position"), "{}", ended.err);
    finetune_on(&world, "never", ["four", "classes"], &bare).fails(2, &["has 3 classes and the data have 4"]);
    // It is said before a run starts, too.
    let dry = ["--init", "run", "--dry-run"];
    let ended = finetune_on(&world, "never", ["four", "classes"], &dry);
    for part in ["warning: classes has no image of 1 of the 4", "head: 3 of 4 classes by name"] {
        assert!(ended.works().err.contains(part), "no `{part}` in: {}", ended.err);
    }
}

#[test]
fn validation_classes_are_matched_by_name() {
    let world = trained();
    renamed(&world, "light", &[("light", "light")]);
    let sides = ["--data", "classes", "--val", "light", "--json"];
    let ended = world.beit2(&[&["knn", "--weights", "pixels", "--k", "1"], &sides[..]].concat());
    let result = json(&ended.works().out);
    assert_eq!(result["knn"][0]["top1"].as_f64(), Some(1.0), "{result}");
    assert!(
        ended.err.contains("light has no image of 2 of the 3 classes of classes: `dark`, `gray`"),
        "{}",
        ended.err
    );
    renamed(&world, "bright", &[("light", "bright")]);
    let sides = ["--data", "classes", "--val", "bright"];
    world
        .beit2(&[&["probe", "--weights", "run"], &sides[..]].concat())
        .fails(2, &["bright has the class `bright`, which classes does not have"]);
}
