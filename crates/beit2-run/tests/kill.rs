//! The promises about dying processes, kept against real ones: this test starts itself again as a child that
//! trains (counts), kills it at arbitrary moments, and looks at what is left.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use beit2_run::checkpoint::Keep;
use beit2_run::dir::{Existing, RunDir};
use beit2_run::metrics::{Cut, JsonlSink, Metrics, read_jsonl};
use beit2_run::stop::StopFlag;
use beit2_run::tensorboard::TensorBoardSink;

const DIR: &str = "BEIT2_RUN_TEST_DIR";

fn child(test: &str, dir: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--ignored", "--nocapture"]).env(DIR, dir).stdout(Stdio::piped());
    command
}

fn open(dir: &Path) -> RunDir {
    RunDir::open(dir, "seed = 1\n", &[], Existing::Continue).unwrap().run
}

/// Trains without end: one record and one checkpoint per step; says which steps are safe.
#[test]
#[ignore = "the child of the test below"]
fn train() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let run = open(dir.as_ref());
    let latest = run.latest_checkpoint().unwrap();
    assert!(latest.skipped.is_empty(), "{:?}", latest.skipped);
    let mut step = latest.checkpoint.map_or(0, |c| c.step);
    let cut = Cut { stage: "a".into(), step: Some(step) };
    let (jsonl, _) = JsonlSink::open(&run.metrics(), Some(&cut)).unwrap();
    let tensorboard = TensorBoardSink::open(run.path(), Some(&cut)).unwrap();
    let mut metrics = Metrics::new("a", vec![Box::new(jsonl), Box::new(tensorboard)], 1);
    loop {
        step += 1;
        metrics.observe("loss", step as f64, 1.0);
        metrics.log_step(0, step).unwrap();
        metrics.sync().unwrap();
        let mut writer = run.begin_checkpoint(step).unwrap();
        writer.add("model", |w| w.write_all(&vec![step as u8; 200_000])).unwrap();
        writer.add("optimizer", |w| w.write_all(&vec![step as u8; 100_000])).unwrap();
        writer.commit(&step, Keep { last: 2, best: step.is_multiple_of(5) }).unwrap();
        println!("\nsafe {step}");
        std::io::stdout().flush().unwrap();
    }
}

#[test]
fn kill_nine_loses_nothing_that_was_safe() {
    let dir = tempfile::tempdir().unwrap();
    let mut safe = 0;
    for round in 0..12u64 {
        let mut process = child("train", dir.path()).spawn().unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        let reader = std::thread::spawn(move || {
            let lines = output.lines().map_while(Result::ok);
            lines.filter_map(|line| line.strip_prefix("safe ")?.parse::<u64>().ok()).max()
        });
        // Odd times, so that the kill falls on different parts of a commit.
        std::thread::sleep(Duration::from_millis(60 + 37 * round % 101));
        process.kill().unwrap();
        process.wait().unwrap();
        safe = reader.join().unwrap().unwrap_or(safe).max(safe);

        let run = open(dir.path());
        let latest = run.latest_checkpoint().unwrap();
        assert!(latest.skipped.is_empty(), "round {round}: {:?}", latest.skipped);
        let step = latest.checkpoint.map_or(0, |c| c.step);
        assert!(step >= safe, "round {round}: step {safe} was safe, {step} is left");
        let cut = Cut { stage: "a".into(), step: Some(step) };
        JsonlSink::open(&run.metrics(), Some(&cut)).unwrap();
        let steps: Vec<u64> = read_jsonl(&run.metrics()).unwrap().records.iter().map(|r| r.step).collect();
        assert_eq!(steps, (1..=step).collect::<Vec<u64>>(), "round {round}");
    }
    assert!(safe > 12, "the child got nowhere: {safe} steps");
}

/// Sends itself the signals, so that no process id has to be guessed.
#[test]
#[ignore = "the child of the test below"]
fn interrupt() {
    if std::env::var_os(DIR).is_none() {
        return;
    }
    let stop = StopFlag::new();
    stop.install().unwrap();
    signal_hook::low_level::raise(signal_hook::consts::SIGTERM).unwrap();
    println!("\nset: {}", stop.is_set());
    std::io::stdout().flush().unwrap();
    signal_hook::low_level::raise(signal_hook::consts::SIGINT).unwrap();
    println!("\nstill here");
}

#[test]
fn the_first_signal_asks_and_the_second_ends() {
    let output = child("interrupt", Path::new("unused")).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("set: true") && !text.contains("still here"), "{text}");
    assert_eq!(output.status.code(), Some(130));
}
