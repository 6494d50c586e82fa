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
            assert!((0.001..2.0).contains(&number(line, "/share_of_gemm_peak")), "{line}");
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

#[test]
fn wrong_flags_are_one_sentence() {
    let world = World::new();
    world.beit2(&["bench", "train", "--batch-size", "0"]).fails(2, &["--batch-size is 0"]);
    world.beit2(&["bench", "train", "--size", "giant"]).fails(2, &["giant", "tiny, small, base, large"]);
    world.beit2(&["bench", "infer", "--data", "nowhere"]).fails(1, &["nowhere: no such file or folder"]);
}
