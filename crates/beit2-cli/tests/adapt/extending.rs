//! A finished run that is made longer.

use std::fs;
use std::path::Path;

use beit2_run::metrics::read_jsonl;
use toml::Value;

use super::support::World;
use super::{contains, run_toml, value};

/// The learning rate of every step: the recipe logs each.
fn rates(run: &Path) -> Vec<f64> {
    let records = read_jsonl(&run.join("metrics.jsonl")).unwrap().records;
    let mut rates: Vec<(u64, f64)> = records
        .iter()
        .filter_map(|record| {
            let (_, rate) = record.values.iter().find(|(name, _)| name == "lr")?;
            Some((record.step, *rate))
        })
        .collect();
    rates.dedup_by_key(|(step, _)| *step);
    rates.into_iter().map(|(_, rate)| rate).collect()
}

#[test]
fn a_finished_run_is_made_longer() {
    let world = World::new();
    world.tokenizer("run", &["--quiet"]).works();
    world.tokenizer("whole", &["--quiet", "--epochs", "8", "--set", "warmup_epochs=1.0"]).works();
    let (before, whole) = (rates(&world.path("run")), rates(&world.path("whole")));
    assert_eq!((before.len(), whole.len()), (12, 24));
    let finished = fs::read(world.path("run/checkpoints/step-0000012/model.safetensors")).unwrap();

    // A rehearsal says it and changes nothing.
    let ended = world.tokenizer("run", &["--epochs", "8", "--dry-run"]);
    contains(ended.works(), &["extended: from 12 to 24 steps (4 to 8 epochs)", "continues at step 12"]);
    assert_eq!(value(&run_toml(&world, "run"), "schedule.epochs").as_integer(), Some(4));

    let ended = world.tokenizer("run", &["--epochs", "8"]);
    contains(ended.works(), &["extended", "rises again from", "step 24/24"]);
    let record = run_toml(&world, "run");
    assert_eq!(value(&record, "extension.at").as_array().unwrap(), &[Value::Integer(12)]);
    assert_eq!(value(&record, "schedule.warmup_epochs").as_float(), Some(1.0), "the warm-up is over");
    let old: toml::Table =
        fs::read_to_string(world.path("run/run-until-step-0000012.toml")).unwrap().parse().unwrap();
    assert_eq!(value(&old, "schedule.epochs").as_integer(), Some(4));

    // The first half is that of the short run, the rest that of the longer one, but for one step of 5 %.
    let after = rates(&world.path("run"));
    assert_eq!(after.len(), 24);
    assert_eq!(after[..12], before[..]);
    assert_eq!(after[12], 0.0, "from the end of the finished schedule");
    assert_eq!(after[13..], whole[13..]);

    // It is complete now, can be made longer again, and not shorter.
    contains(world.tokenizer("run", &["--epochs", "8"]).works(), &["at step 24 of 24"]);
    world.tokenizer("run", &["--epochs", "9"]).works();
    let at = [12, 24].map(Value::Integer);
    assert_eq!(value(&run_toml(&world, "run"), "extension.at").as_array().unwrap(), &at);
    world.tokenizer("run", &[]).fails(2, &["belongs to another run", "`schedule.epochs` (9 → 4)"]);
    assert_ne!(fs::read(world.path("run/last/model.safetensors")).unwrap(), finished);
}

#[test]
fn an_interrupted_extension_loses_nothing_and_goes_on() {
    let world = World::new();
    let saves = ["--quiet", "--val", "train", "--set", "checkpoint_every=1"];
    for run in ["run", "other"] {
        world.tokenizer(run, &saves).works();
    }
    let finished = world.path("run/checkpoints/step-0000012");
    let longer = [&saves[..], &["--epochs", "60"]].concat();
    world.tokenizer("other", &longer).works();
    // Killed in the middle of the extension, whenever that is.
    let mut child = world.spawn_tokenizer("run", &longer);
    let later = world.path("run/checkpoints/step-0000020");
    let since = std::time::Instant::now();
    while !later.exists() && !world.path("run/checkpoints/step-0000021").exists() {
        assert!(since.elapsed().as_secs() < 120, "no step 20 after two minutes");
        std::thread::sleep(std::time::Duration::from_millis(2));
        if child.try_wait().unwrap().is_some() {
            break;
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(finished.join("model.safetensors").is_file(), "the finished run's checkpoint is there");
    let ended = world.tokenizer("run", &longer[1..]);
    contains(ended.works(), &["from 12 to 180 steps"]);
    assert_eq!(world.weights("run"), world.weights("other"), "an interruption changed the extension");
    assert_eq!(rates(&world.path("run")), rates(&world.path("other")));
}

#[test]
fn other_changes_and_unfinished_runs_are_refused() {
    let world = World::new();
    world.tokenizer("run", &["--quiet"]).works();
    let record = fs::read(world.path("run/run.toml")).unwrap();
    for (more, part) in [
        (&["--lr", "1e-3"][..], "`optimizer.lr`"),
        (&["--batch-size", "4"], "`schedule.batch_size` (8 → 4)"),
        (&["--set", "warmup_epochs=2"], "`schedule.warmup_epochs` (1.0 → 2.0)"),
        (&["--seed", "3"], "`seed` (0 → 3)"),
    ] {
        let ended = world.tokenizer("run", &[&["--epochs", "8"], more].concat());
        ended.fails(2, &["run can be made longer only with its other settings as they are", part]);
        assert_eq!(fs::read(world.path("run/run.toml")).unwrap(), record);
    }
    // A run that was stopped is finished first.
    let mut child = world.spawn_tokenizer("stopped", &["--epochs", "200", "--set", "checkpoint_every=2"]);
    world.wait_for_checkpoint("stopped");
    child.kill().unwrap();
    child.wait().unwrap();
    let ended = world.tokenizer("stopped", &["--epochs", "400", "--set", "checkpoint_every=2"]);
    ended.fails(2, &["only a finished run can be made longer", "of 600"]);
}
