//! `beit2 bench` through the real binary, on the smallest model.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use serde_json::Value;
use support::World;

const SMALLEST: [&str; 6] = ["--size", "tiny", "--batch-size", "1", "--steps", "1"];

fn number(line: &Value, name: &str) -> f64 {
    line.pointer(name).and_then(Value::as_f64).unwrap_or_else(|| panic!("no {name} in {line}"))
}

#[test]
fn every_stage_gives_a_line_for_each_round() {
    let world = World::new();
    for stage in ["tokenizer", "pretrain", "finetune"] {
        let args = [&["bench", "train", "--stage", stage, "--rounds", "2", "--json"], &SMALLEST[..]].concat();
        let ended = world.beit2(&args);
        let lines: Vec<Value> =
            ended.works().out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 2, "{}", ended.out);
        for line in &lines {
            assert_eq!((line["stage"].as_str(), line["threads"].as_u64()), (Some(stage), Some(1)));
            for name in ["/images_per_second", "/ms/data", "/ms/forward", "/ms/backward", "/ms/optimizer"] {
                assert!(number(line, name) > 0.0, "{name}: {line}");
            }
            let parts: f64 =
                line["ms"].as_object().unwrap().values().map(|part| part.as_f64().unwrap()).sum();
            assert!((parts - 1e3 * number(line, "/seconds_per_step")).abs() < 1e-6, "parts add up: {line}");
            // A fraction that cannot be true is not told, but why it is not.
            match line["share_of_gemm_peak"].as_f64() {
                Some(share) => assert!((0.001..=1.0).contains(&share), "{line}"),
                None => assert_eq!(line["noisy"], true, "{line}"),
            }
            let reasons = line["reasons"].as_array().unwrap();
            assert_eq!(line["noisy"].as_bool(), Some(!reasons.is_empty()), "{line}");
            assert!(number(line, "/peak_memory_mib") > 10.0, "{line}");
        }
    }
}

#[test]
fn a_paced_program_waits_for_its_turn() {
    let world = World::new();
    let args = [&["bench", "infer", "--precision", "bf16", "--paced", "--json"], &SMALLEST[..]].concat();
    let mut child = world.command(&args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut lines = BufReader::new(output).lines();
    let mut next = || serde_json::from_str::<Value>(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(next()["ready"], true);
    for _ in 0..2 {
        writeln!(input).unwrap();
        assert_eq!(next()["kind"], "infer");
    }
    drop(input);
    assert!(child.wait().unwrap().success());
}

#[test]
fn real_images_and_a_table_for_people() {
    let world = World::new();
    let args =
        [&["bench", "train", "--data", "train", "--workers", "1", "--rounds", "1"], &SMALLEST[..]].concat();
    let ended = world.beit2(&args);
    for word in ["images/s", "tokenizer or teacher", "backward", "a large matmul", "peak memory"] {
        assert!(ended.works().out.contains(word), "no {word} in {}", ended.out);
    }
}

/// The number in front of `unit` in the row that starts with `name`.
fn row(table: &str, name: &str) -> Vec<f64> {
    let line = table.lines().find(|line| line.trim_start().starts_with(name));
    let line = line.unwrap_or_else(|| panic!("no {name} in {table}"));
    let words = line.split([' ', '(', ')', ';']);
    words.filter_map(|word| word.parse().ok()).collect()
}

#[test]
fn the_table_adds_up_and_the_median_of_two_is_their_mean() {
    let world = World::new();
    for command in ["train", "infer"] {
        let ended = world.beit2(&[&["bench", command, "--rounds", "2"], &SMALLEST[..]].concat());
        let table = &ended.works().out;
        let speeds = row(table, "images/s");
        assert_eq!(speeds.len(), 4, "median, of 2, least, most: {table}");
        assert!((speeds[0] - (speeds[2] + speeds[3]) / 2.0).abs() < 0.011, "{table}");
        let parts = ["data", "tokenizer or", "forward", "backward", "optimizer", "overlap", "other"];
        let there = parts.iter().filter(|part| table.contains(&format!("\n  {part}")));
        let sum: f64 = there.map(|part| row(table, part)[0]).sum();
        assert!((sum - row(table, "a step")[0]).abs() < 1e-6, "{sum}: {table}");
    }
}

#[test]
fn progress_goes_to_stderr_a_line_for_each_round() {
    let world = World::new();
    let args = [&["bench", "infer", "--rounds", "3", "--json"], &SMALLEST[..]].concat();
    let ended = world.beit2(&args);
    let lines: Vec<&str> = ended.works().err.lines().filter(|line| line.starts_with("round ")).collect();
    assert_eq!(lines.len(), 3, "{}", ended.err);
    assert!(lines[1].starts_with("round 2 of 3: ") && lines[1].contains(" images/s, "), "{}", lines[1]);
    assert!(ended.out.lines().all(|line| line.starts_with('{')), "{}", ended.out);
    let ended = world.beit2(&[&args[..], &["--quiet"]].concat());
    assert_eq!((ended.works().err.as_str(), ended.out.lines().count()), ("", 3));
}

/// Threads of this test keep every processor busy, so that the measurement cannot be worth anything.
#[test]
#[cfg(target_os = "linux")]
fn a_busy_machine_is_not_believed() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let world = World::new();
    let over = AtomicBool::new(false);
    let args = ["bench", "infer", "--size", "tiny", "--batch-size", "4", "--steps", "8", "--rounds", "2"];
    let [json, text] = std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().unwrap().get() {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let ended = [&["--json"][..], &[]].map(|more| world.beit2(&[&args[..], more].concat()));
        over.store(true, Ordering::Relaxed);
        ended
    });
    let last: Value = serde_json::from_str(json.works().out.lines().last().unwrap()).unwrap();
    assert_eq!(last["noisy"], true, "{last}");
    assert!(last["reasons"].to_string().contains("other programs kept"), "{last}");
    let noisy: Vec<&str> = text.works().out.lines().filter(|line| line.starts_with("noisy")).collect();
    assert!(
        noisy.len() == 1 && noisy[0].contains("do not trust these figures: other programs"),
        "{}",
        text.out
    );
}

#[test]
fn wrong_flags_are_one_sentence() {
    let world = World::new();
    world.beit2(&["bench", "train", "--batch-size", "0"]).fails(2, &["--batch-size is 0"]);
    world.beit2(&["bench", "train", "--size", "giant"]).fails(2, &["giant", "tiny, small, base, large"]);
    world.beit2(&["bench", "infer", "--data", "nowhere"]).fails(1, &["nowhere: no such file or folder"]);
}

#[test]
fn steps_in_micro_batches_with_blocks_computed_again() {
    let world = World::new();
    let args =
        ["bench", "train", "--size", "tiny", "--batch-size", "2", "--steps", "1", "--rounds", "1", "--json"];
    for stage in ["tokenizer", "pretrain", "finetune"] {
        let ways = ["--stage", stage, "--grad-accum-steps", "2", "--activation-checkpointing", "blocks"];
        let ended = world.beit2(&[&args[..], &ways].concat());
        let line: Value = serde_json::from_str(&ended.works().out).unwrap();
        assert_eq!(
            (&line["grad_accum_steps"], &line["activation_checkpointing"]),
            (&2.into(), &"blocks".into())
        );
        assert!(number(&line, "/images_per_second") > 0.0, "{line}");
    }
    world
        .beit2(&[&args[..], &["--grad-accum-steps", "3"]].concat())
        .fails(2, &["2", "3 equal micro-batches"]);
}

/// Without images or weights, and without computing anything.
#[test]
fn what_a_recipe_needs_is_estimated() {
    let world = World::new();
    let memory = |args: &[&str]| world.beit2(&[&["recipes", "memory"], args].concat());
    let ended = memory(&["mim_base_1600e", "--json"]);
    let found: Value = serde_json::from_str(&ended.works().out).unwrap();
    assert_eq!((&found["batch_size"], &found["estimated"]), (&2048.into(), &true.into()));
    let devices = found["devices"].as_array().unwrap();
    let parts: Vec<[u64; 2]> = devices
        .iter()
        .map(|device| {
            let images = |name: &str| device[name].as_u64().unwrap();
            [images("max_micro_batch"), images("max_micro_batch_recomputing_blocks")]
        })
        .collect();
    assert!(parts.len() == 3 && parts.windows(2).all(|pair| pair[0][0] <= pair[1][0]), "{found}");
    assert!(parts.iter().all(|[kept, again]| kept < again && 2048 % kept == 0), "{found}");
    for recipe in ["vqkd_base_clip_100e", "finetune_base_1600e", "segment_base_ade20k"] {
        let ended = memory(&[recipe, "--device-memory", "2,80"]);
        for word in ["80 GB", "(at once)", "does not fit"] {
            assert!(ended.works().out.contains(word), "{recipe}: no {word} in {}", ended.out);
        }
    }
    memory(&["distill_tiny"]).fails(2, &["no recipe of a tokenizer"]);
    memory(&["mim_base_1600e", "--devices", "3"]).fails(2, &["cannot be shared equally by 3 devices"]);
}
