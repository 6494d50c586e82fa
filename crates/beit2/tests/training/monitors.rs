//! What is measured of features while a model trains: it changes no weight, and it can end a run.

use std::path::Path;

use beit2::monitor::MonitorConfig;
use beit2::pretrain::PretrainRecipe;
use beit2::tokenizer::TokenizerRecipe;
use beit2::train::{Env, Event, Files, Observer, Outcome, on_devices};
use beit2_run::{Kind, Record, StopFlag, metrics};

use super::scene::{self, Auto};

/// Asks to stop after a step, and keeps what is told.
struct Told {
    /// 0: before the first step, while the model is measured.
    stop_at: u64,
    stop: StopFlag,
    lines: Vec<String>,
}

impl Observer for Told {
    fn event(&mut self, event: Event) {
        match event {
            Event::Step { step, .. } if step == self.stop_at => self.stop.request(),
            Event::Progress { what, .. } if self.stop_at == 0 && what.starts_with("monitors") => {
                self.stop.request()
            }
            // The images of these tests are small.
            Event::Warning(text) if text.contains("are enlarged") => {}
            Event::Warning(text) | Event::Note(text) => self.lines.push(text),
            _ => {}
        }
    }
}

fn run(dir: &Path, stop_at: u64, stage: &dyn Fn(Env<'_>) -> Outcome) -> (Outcome, Vec<String>) {
    let stop = StopFlag::new();
    let mut told = Told { stop_at, stop: stop.clone(), lines: Vec::new() };
    let outcome = stage(Env { stop, ..Env::new(dir, &mut told, &Files::default()) });
    (outcome, told.lines)
}

fn pretrain(recipe: &PretrainRecipe, devices: usize) -> impl Fn(Env<'_>) -> Outcome {
    let recipe = recipe.clone();
    move |env| {
        let devices = vec![Default::default(); devices];
        on_devices::<Auto>(&devices, env, |env, at| beit2::pretrain::train::<Auto>(&recipe, env, at)).unwrap()
    }
}

fn epochs(dir: &Path) -> Vec<Record> {
    let records = metrics::read_jsonl(&dir.join("metrics.jsonl")).unwrap().records;
    records.into_iter().filter(|record| record.kind == Kind::Epoch).collect()
}

fn weights(outcome: &Outcome) -> Vec<u8> {
    std::fs::read(outcome.checkpoint.join("model.safetensors")).unwrap()
}

/// Images, a teacher, and a tokenizer in `tokenizer`.
fn scene(root: &Path) {
    scene::images(&root.join("images"), 14);
    scene::classes(&root.join("classes"), 6);
    scene::classes(&root.join("before"), 8);
    scene::teacher(&root.join("teacher.safetensors"));
}

fn folder(root: &Path, name: &str) -> Option<String> {
    Some(root.join(name).to_string_lossy().into_owned())
}

#[test]
fn monitors_measure_and_change_nothing() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    scene(root);
    let monitor = MonitorConfig {
        folder: folder(root, "classes"),
        forgetting_folder: folder(root, "before"),
        every_epochs: Some(1),
        ..MonitorConfig::default()
    };
    let recipe = TokenizerRecipe { monitor: monitor.clone(), ..scene::tokenizer(root) };
    let train = |recipe: TokenizerRecipe| {
        move |env: Env<'_>| beit2::tokenizer::train::<Auto>(&recipe, env, &Default::default()).unwrap()
    };
    let (watched, lines) = run(&root.join("tokenizer"), u64::MAX, &train(recipe));
    assert!(watched.complete && lines.is_empty(), "{lines:?}");
    let (plain, _) = run(&root.join("plain-tokenizer"), u64::MAX, &train(scene::tokenizer(root)));
    assert!(weights(&watched) == weights(&plain));
    assert_eq!(
        epochs(&root.join("plain-tokenizer")).len(),
        4,
        "a run this short is not watched unless asked to"
    );
    let records = epochs(&root.join("tokenizer"));
    let usage: Vec<Option<f64>> = records.iter().map(|r| r.get("monitor_codebook_usage")).collect();
    assert_eq!(usage[0], None, "no codebook yet: {usage:?}");
    assert!(
        usage[1..].iter().all(|usage| usage.is_some_and(|usage| usage > 0.0 && usage <= 1.0)),
        "{usage:?}"
    );

    let tokenizer = root.join("tokenizer");
    let recipe = PretrainRecipe { monitor, ..scene::pretrain(root, &tokenizer) };
    let (whole, _) = run(&root.join("whole"), u64::MAX, &pretrain(&recipe, 1));
    let plain = scene::pretrain(root, &tokenizer);
    assert!(weights(&whole) == weights(&run(&root.join("plain"), u64::MAX, &pretrain(&plain, 1)).0));
    let records = epochs(&root.join("whole"));
    assert_eq!(records.iter().map(|record| record.step).collect::<Vec<_>>(), [0, 3, 6, 9]);
    for (at, record) in records.iter().enumerate() {
        let value = |name: &str| record.get(name).unwrap_or_else(|| panic!("{name} at {at}"));
        for side in ["monitor", "forgetting"] {
            for name in ["knn_top1", "cls_knn_top1"] {
                assert!((0.0..=1.0).contains(&value(&format!("{side}_{name}"))));
            }
            let (rank, uniformity) =
                (value(&format!("{side}_effective_rank")), value(&format!("{side}_uniformity")));
            assert!(
                (1.0..=24.0).contains(&rank) && (-4.0..=0.0).contains(&uniformity),
                "{rank} {uniformity}"
            );
            let drift = record.get(&format!("{side}_drift"));
            assert_eq!(drift.is_some(), at > 0);
            assert!(drift.is_none_or(|drift| drift > 0.0 && drift < 2.0), "{drift:?}");
        }
        let lost = records[0].get("forgetting_knn_top1").unwrap() - value("forgetting_knn_top1");
        assert!(at == 0 || value("forgetting_top1_lost") == lost);
        assert_eq!(record.get("monitor_codebook_perplexity").is_some(), at == 0);
        assert!(at > 0 || (record.get("val_loss").is_none() && record.get("loss").is_none()));
    }

    // Three brightnesses are told apart by any features.
    assert!(records[3].get("monitor_knn_top1").unwrap() > 0.9);

    // A run that is continued measures its drift from the same start, on two devices too.
    for (name, devices) in [("stopped", 1), ("stopped-two", 2)] {
        let dir = root.join(name);
        let (first, _) = run(&dir, 4, &pretrain(&recipe, devices));
        assert!(!first.complete);
        let (_, lines) = run(&dir, u64::MAX, &pretrain(&recipe, devices));
        assert!(lines.is_empty(), "{lines:?}");
        for (expected, found) in records.iter().zip(epochs(&dir)) {
            for (name, value) in
                expected.values.iter().filter(|(n, _)| n.contains("monitor") || n.contains("forget"))
            {
                let found = found.get(name).unwrap_or_else(|| panic!("{name} of {devices} devices"));
                assert!(
                    (found - value).abs() <= if devices == 1 { 0.0 } else { 1e-4 },
                    "{name}: {found} for {value}"
                );
            }
        }
    }

    // Stopped while the start is measured: nothing was begun, and the same command begins anew.
    let dir = root.join("early");
    let (first, _) = run(&dir, 0, &pretrain(&recipe, 1));
    assert!(!first.complete && first.step == 0 && !dir.join("monitor_start.safetensors").exists());
    run(&dir, u64::MAX, &pretrain(&recipe, 1));
    let found = epochs(&dir);
    assert_eq!(found.iter().map(|record| record.step).collect::<Vec<_>>(), [0, 3, 6, 9]);
    assert_eq!(found[3].get("monitor_drift"), records[3].get("monitor_drift"));

    // Without the features of the start it says so.
    let dir = root.join("lost");
    run(&dir, 4, &pretrain(&recipe, 1));
    std::fs::remove_file(dir.join("monitor_start.safetensors")).unwrap();
    let (done, lines) = run(&dir, u64::MAX, &pretrain(&recipe, 1));
    assert!(done.complete && lines.iter().any(|line| line.contains("drift is not measured")), "{lines:?}");
    let last = epochs(&dir).pop().unwrap();
    assert!(last.get("monitor_drift").is_none() && last.get("monitor_effective_rank").is_some());
}

#[test]
fn a_run_ends_when_its_metric_stops_improving() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    scene(root);
    let tokenizer = root.join("tokenizer");
    let train = |env: Env<'_>| {
        beit2::tokenizer::train::<Auto>(&scene::tokenizer(root), env, &Default::default()).unwrap()
    };
    run(&tokenizer, u64::MAX, &train);
    // Drift can only grow from its first value, so that the first one stays the best.
    let monitor = MonitorConfig {
        folder: folder(root, "classes"),
        every_epochs: Some(1),
        best: Some("monitor_drift".into()),
        patience: Some(2),
        ..MonitorConfig::default()
    };
    let mut recipe = PretrainRecipe { monitor, ..scene::pretrain(root, &tokenizer) };
    recipe.schedule.steps = Some(60);
    for devices in [1, 2] {
        let dir = root.join(format!("run-{devices}"));
        let (outcome, lines) = run(&dir, u64::MAX, &pretrain(&recipe, devices));
        assert!(outcome.complete && outcome.step < 60, "{}", outcome.step);
        assert!(
            lines.iter().any(|line| line.contains("monitor_drift has not improved 2 times in a row")),
            "{lines:?}"
        );
        let best = beit2_run::checkpoint::best(&dir).unwrap();
        let drifts: Vec<f64> = epochs(&dir).iter().filter_map(|record| record.get("monitor_drift")).collect();
        let least = drifts.iter().copied().fold(f64::INFINITY, f64::min);
        let at = epochs(&dir).into_iter().find(|record| record.get("monitor_drift") == Some(least)).unwrap();
        assert_eq!(best.step, at.step, "{drifts:?}");
        // It is complete, and stays so.
        let (again, _) = run(&dir, u64::MAX, &pretrain(&recipe, devices));
        assert!(again.complete && again.step == outcome.step);
    }
}

#[test]
fn folders_that_cannot_be_watched_are_refused_before_a_run_starts() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    scene(root);
    scene::classes(&root.join("single"), 1);
    let sentence = |monitor: MonitorConfig| {
        let recipe = TokenizerRecipe { monitor, ..scene::tokenizer(root) };
        let mut told = Told { stop_at: u64::MAX, stop: StopFlag::new(), lines: Vec::new() };
        let files = Files::default();
        let env = Env::new(root.join("never"), &mut told, &files);
        let error =
            beit2::tokenizer::train::<Auto>(&recipe, env, &Default::default()).unwrap_err().to_string();
        assert!(!root.join("never").exists());
        error
    };
    let single = MonitorConfig { folder: folder(root, "single"), ..MonitorConfig::default() };
    let found = sentence(single);
    assert!(found.contains("every class of monitor.folder has one image"), "{found}");
    let best = Some("monitor_knn_top1".to_owned());
    let found = sentence(MonitorConfig { best, ..MonitorConfig::default() });
    assert!(found.contains("no classes for k-NN") && found.contains("--monitor"), "{found}");
    let found = sentence(MonitorConfig { folder: folder(root, "nowhere"), ..MonitorConfig::default() });
    assert!(found.contains("nowhere"), "{found}");
}
