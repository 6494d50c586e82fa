//! What the reports of a tokenizer and of a masked image model show.

use std::fs;

use serde_json::Value;

use super::{LONG, World, signal};

fn examples(world: &World, run: &str) -> Value {
    let text = fs::read_to_string(world.path(run).join("examples/examples.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn page(world: &World, run: &str) -> String {
    fs::read_to_string(world.path(run).join("report.html")).unwrap()
}

fn numbers(list: &Value) -> Vec<u64> {
    list.as_array().unwrap().iter().map(|number| number.as_u64().unwrap()).collect()
}

#[test]
fn codes_masks_and_predictions_are_shown() {
    let world = World::new();
    world.tokenizer("tok", &["--val", "train", "--quiet"]).works();
    let kept = examples(&world, "tok");
    let counts = numbers(&kept["gallery"]["counts"]);
    let encode = ["tokenizer", "encode", "train", "--tokenizer", "tok", "--out", "ids.jsonl", "--quiet"];
    world.beit2(&encode).works();
    let mut expected = vec![0; counts.len()];
    for line in fs::read_to_string(world.path("ids.jsonl")).unwrap().lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        let ids = row.as_object().unwrap().values().find(|value| value.is_array()).unwrap();
        ids.as_array()
            .unwrap()
            .iter()
            .flat_map(|id| id.as_array().map_or_else(|| vec![id.clone()], Clone::clone))
            .for_each(|id| expected[id.as_u64().unwrap() as usize] += 1);
    }
    assert_eq!(counts, expected, "as `tokenizer encode` counts");
    let shown = kept["gallery"]["codes"].as_array().unwrap();
    let uses: Vec<u64> = shown.iter().map(|code| code["count"].as_u64().unwrap()).collect();
    assert!(uses.windows(2).all(|pair| pair[0] >= pair[1]), "{uses:?}");
    let html = page(&world, "tok");
    for part in ["Code gallery", "codes are used", "24 validation images (train)", "Best loss, validation"] {
        assert!(html.contains(part), "no `{part}`");
    }

    let pretrain = ["pretrain", "mim.toml", "--out", "mim", "--tokenizer", "tok", "--quiet"];
    world.beit2(&pretrain).works();
    let kept = examples(&world, "mim");
    let samples = kept["mim_samples"].as_array().unwrap();
    assert_eq!(samples.len(), 6);
    for sample in samples {
        let [masked, tokens, predicted] =
            ["masked_patches", "tokens", "predicted"].map(|key| numbers(&sample[key]));
        assert!(!masked.is_empty() && masked.len() == tokens.len() && tokens.len() == predicted.len());
        assert!(tokens.iter().chain(&predicted).all(|&id| id < counts.len() as u64), "{sample}");
    }
    let html = page(&world, "mim");
    assert!(html.contains("visual tokens of the masked patches"));
    assert!(
        html.contains("6 of the 24 training images (train), because the run has no validation set"),
        "{html}"
    );
    assert_eq!(html.matches("alt=\"predicted visual tokens\"").count(), 6);
}

#[test]
fn a_stopped_run_says_that_its_images_come_later() {
    let world = World::new();
    let child = world.spawn_tokenizer("run", &LONG);
    world.wait_for_checkpoint("run");
    signal(&child, "TERM");
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(143));
    assert!(page(&world, "run").contains("There are no images yet. They are made when training is complete"));
    assert!(!world.path("run/examples").exists());
}
