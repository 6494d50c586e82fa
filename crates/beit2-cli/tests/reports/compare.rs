//! Runs side by side, and the reports of a folder of runs.

use std::fs;

use serde_json::Value;

use super::{World, image};

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Two runs that differ in learning rate and seed.
fn pair(more: &[&str]) -> World {
    let world = World::new();
    let line = ["--val", "train", "--quiet"];
    world.tokenizer("one", &[&line[..], &["--set", "optimizer.lr=1e-3"]].concat()).works();
    world
        .tokenizer("two", &[&line[..], &["--set", "optimizer.lr=2e-3", "--seed", "3"], more].concat())
        .works();
    world
}

fn last_loss(world: &World, run: &str) -> f64 {
    let text = fs::read_to_string(world.path(run).join("metrics.jsonl")).unwrap();
    let mut epochs = text.lines().map(json).filter(|record| record["kind"] == "epoch");
    epochs.next_back().unwrap()["val_loss"].as_f64().unwrap()
}

#[test]
fn settings_metrics_and_curves_side_by_side() {
    let world = pair(&[]);
    let found = json(&world.beit2(&["compare", "one", "two", "--json"]).works().out);
    assert_eq!(found["stage"], "tokenizer");
    let keys: Vec<&str> = found["settings"].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, ["seed", "optimizer.lr"], "only what differs: {found}");
    assert_eq!(found["settings"]["optimizer.lr"], serde_json::json!([0.001, 0.002]));
    let data = &found["same_data"];
    assert_eq!((&data["train"], &data["val"], &data["weights"]), (&true.into(), &true.into(), &true.into()));
    assert!(found["warnings"].as_array().unwrap().is_empty(), "{found}");
    let last = |at: usize| found["runs"][at]["last"]["value"].as_f64().unwrap();
    assert_eq!([last(0), last(1)], ["one", "two"].map(|run| last_loss(&world, run)));
    let best = |at: usize| found["runs"][at]["best"]["value"].as_f64().unwrap();
    let winner = if best(0) < best(1) { "one" } else { "two" };
    assert_eq!(found["best"], serde_json::json!([winner]));
    assert_eq!(found["runs"][0]["split"], "validation");

    let ended = world.beit2(&["compare", "one", "two", "-o", "compare.html"]);
    for part in [
        "Best loss, validation",
        "Last loss, validation",
        "Validation images (equal)",
        "Training time",
        "settings that differ",
        "optimizer.lr",
        " *",
        "page  compare.html",
    ] {
        assert!(ended.works().out.contains(part), "no `{part}` in: {}", ended.out);
    }
    assert!(
        !ended.out.contains("codebook_size") && !ended.err.contains("warning"),
        "{} {}",
        ended.out,
        ended.err
    );
    let page = fs::read_to_string(world.path("compare.html")).unwrap();
    for part in
        ["one and two", "<b>Loss, validation</b>", "class=\"best\"", "Settings that differ", "optimizer.lr"]
    {
        assert!(page.contains(part), "no `{part}`");
    }
    // A second time over the page, never over something else.
    world.beit2(&["compare", "two", "one", "-o", "compare.html"]).works();
    fs::write(world.path("notes.html"), "mine").unwrap();
    world.beit2(&["compare", "one", "two", "-o", "notes.html"]).fails(2, &["notes.html already exists"]);
    world.beit2(&["compare", "one", "two", "-o", "train"]).fails(2, &["train is a folder", "compare.html"]);
    assert_eq!(fs::read_to_string(world.path("notes.html")).unwrap(), "mine");
}

#[test]
fn other_validation_images_are_said_loudly_and_nothing_is_best() {
    let world = World::new();
    fs::create_dir(world.path("other")).unwrap();
    (0..8).for_each(|at| fs::write(world.path(&format!("other/{at}.ppm")), image(at + 50, 96)).unwrap());
    for (run, val, seed) in [("a/run", "train", "0"), ("b/run", "other", "1")] {
        world.tokenizer(run, &["--quiet", "--val", val, "--seed", seed]).works();
    }
    let ended = world.beit2(&["compare", "a/run", "b/run", "-o", "page.html"]);
    ended.works();
    let warning = "the runs have different validation images (a/run: train; b/run: other)";
    assert!(ended.err.contains(&format!("warning: {warning}")), "{}", ended.err);
    assert!(!ended.out.contains('*') && ended.out.contains("Validation images (different)"), "{}", ended.out);
    let page = fs::read_to_string(world.path("page.html")).unwrap();
    assert!(page.contains(&warning[4..]) && !page.contains("class=\"best\""));
    let found = json(&world.beit2(&["compare", "a/run", "b/run", "--json"]).works().out);
    assert_eq!((&found["same_data"]["val"], &found["best"]), (&false.into(), &serde_json::json!([])));
    assert!(found["warnings"][0].as_str().unwrap().starts_with(warning));

    // With a validation set in one of them only, another metric counts.
    world.tokenizer("c", &["--quiet"]).works();
    let ended = world.beit2(&["compare", "a/run", "c"]);
    assert!(ended.works().err.contains("not the same metric counts in all runs"), "{}", ended.err);
    assert!(ended.out.contains("Validation images (different)"), "{}", ended.out);
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let world = pair(&[]);
    let compare = |runs: &[&str]| world.beit2(&[&["compare"], runs].concat());
    compare(&["one"]).fails(2, &["at least two runs", "only one is named"]);
    compare(&["one", "./one"]).fails(2, &["./one is named twice"]);
    compare(&["one", "train"]).fails(2, &["train is not a run directory: it has no run.toml"]);
    compare(&["one", "nowhere"]).fails(1, &["nowhere: no such folder; name a run directory"]);
    compare(&["one/best", "two"]).fails(2, &["one/best is a part of a run", "itself, one"]);
    compare(&[]).fails(2, &["RUN"]);
    world.beit2(&["pretrain", "mim.toml", "--out", "mim", "--tokenizer", "one", "--quiet"]).works();
    compare(&["one", "mim"]).fails(
        2,
        &["one is a run of the stage `tokenizer` and mim one of `pretrain`", "only runs of one stage"],
    );
    fs::write(world.path("two/run.toml"), "[").unwrap();
    compare(&["one", "two"]).fails(1, &["two/run.toml is damaged"]);
    // Other tokenizers give other targets.
    fs::remove_dir_all(world.path("two")).unwrap();
    world.tokenizer("two", &["--quiet", "--seed", "3"]).works();
    world.beit2(&["pretrain", "mim.toml", "--out", "mim2", "--tokenizer", "two", "--quiet"]).works();
    let ended = compare(&["mim", "mim2"]);
    assert!(ended.works().err.contains("warning: the runs have different tokenizers"), "{}", ended.err);
    assert!(ended.out.contains("Weights (different)") && !ended.out.contains('*'), "{}", ended.out);
}

#[test]
fn a_folder_of_runs_has_all_their_reports() {
    let world = World::new();
    world.tokenizer("quick/tokenizer", &["--quiet"]).works();
    let pretrain =
        ["pretrain", "mim.toml", "--out", "quick/pretrain", "--tokenizer", "quick/tokenizer", "--quiet"];
    world.beit2(&pretrain).works();
    for run in ["tokenizer", "pretrain"] {
        fs::remove_file(world.path("quick").join(run).join("report.html")).unwrap();
    }
    fs::write(world.path("quick/report.html"), "the quickstart's").unwrap();
    let ended = world.beit2(&["report", "quick"]);
    assert_eq!(ended.works().out, "quick/pretrain/report.html\nquick/tokenizer/report.html\n");
    for part in ["quick holds 2 runs, quick/pretrain and quick/tokenizer", "quick/report.html stays as it is"]
    {
        assert!(ended.err.contains(part), "no `{part}` in: {}", ended.err);
    }
    for run in ["tokenizer", "pretrain"] {
        assert!(world.path("quick").join(run).join("report.html").is_file(), "{run}");
    }
    assert_eq!(fs::read_to_string(world.path("quick/report.html")).unwrap(), "the quickstart's");
    let found = json(&world.beit2(&["report", "quick", "--json"]).works().out);
    assert_eq!(found["report"], "quick/report.html");
    assert_eq!(found["runs"][1]["run"], "quick/tokenizer");
    assert!(found["runs"][1]["metrics"]["loss"].is_number(), "{found}");
    // A damaged run keeps no other from its report.
    fs::write(world.path("quick/pretrain/run.toml"), "[").unwrap();
    let ended = world.beit2(&["report", "quick"]);
    ended.fails(1, &["1 of 2 reports", "quick/pretrain/run.toml is damaged"]);
    assert_eq!(ended.out, "quick/tokenizer/report.html\n");
    fs::remove_dir_all(world.path("quick/pretrain")).unwrap();
    // Also from above, and a single one is named too.
    assert!(world.beit2(&["report", "."]).works().out.contains("quick/tokenizer/report.html"));
    world.beit2(&["report", "quick/tokenizer/last"]).fails(2, &["is a part of a run", "quick/tokenizer"]);
}
