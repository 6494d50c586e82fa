//! A run that is stopped and continued ends with the same bytes as one that was not.

use std::path::{Path, PathBuf};

use beit2::classify::finetune::FinetuneRecipe;
use beit2::pretrain::PretrainRecipe;
use beit2::tokenizer::TokenizerRecipe;
use beit2::train::{Env, Event, Files, Observer, Outcome, on_devices};
use beit2_kernels::Precision;
use beit2_run::{StopFlag, metrics};

use super::scene::{self, Auto};

/// Asks to stop when a number of steps are done.
struct StopAt(u64, StopFlag);

impl Observer for StopAt {
    fn event(&mut self, event: Event) {
        if matches!(event, Event::Step { step, .. } if step == self.0) {
            self.1.request();
        }
    }
}

fn run(dir: &Path, stop_at: u64, stage: &dyn Fn(Env<'_>) -> Outcome) -> Outcome {
    let stop = StopFlag::new();
    let mut observer = StopAt(stop_at, stop.clone());
    stage(Env { stop, ..Env::new(dir, &mut observer, &Files::default()) })
}

fn bytes(outcome: &Outcome, file: &str) -> Vec<u8> {
    std::fs::read(outcome.checkpoint.join(file)).unwrap()
}

/// Everything recorded but the speed.
fn records(dir: &Path) -> Vec<(u64, Vec<(String, f64)>)> {
    let read = metrics::read_jsonl(&dir.join("metrics.jsonl")).unwrap();
    let values = |v: Vec<(String, f64)>| {
        v.into_iter().filter(|(n, _)| !["images_per_second", "data_wait"].contains(&n.as_str())).collect()
    };
    read.records.into_iter().map(|r| (r.step, values(r.values))).collect()
}

fn compare(root: &Path, stops: &[u64], steps: u64, stage: &dyn Fn(Env<'_>) -> Outcome) -> PathBuf {
    let whole = run(&root.join("whole"), u64::MAX, stage);
    assert!(whole.complete && whole.step == steps);
    let again = run(&root.join("again"), u64::MAX, stage);
    assert!(
        bytes(&whole, "model.safetensors") == bytes(&again, "model.safetensors"),
        "two equal runs differ: {}",
        root.display()
    );
    for &stop in stops {
        let dir = root.join(format!("stopped-{stop}"));
        let first = run(&dir, stop, stage);
        assert_eq!((first.complete, first.step), (false, stop));
        let second = run(&dir, u64::MAX, stage);
        assert!(second.complete);
        let averages = whole.checkpoint.join("model_ema.safetensors").is_file();
        for file in ["model.safetensors", "optimizer.safetensors", "model_ema.safetensors"] {
            if file == "model_ema.safetensors" && !averages {
                continue;
            }
            assert!(
                bytes(&whole, file) == bytes(&second, file),
                "{file} differs after a stop at step {stop}"
            );
        }
        let (expected, found) = (records(&root.join("whole")), records(&dir));
        let last = |r: &[(u64, Vec<(String, f64)>)]| r.last().cloned();
        assert_eq!(last(&expected), last(&found), "the last record differs after a stop at step {stop}");
    }
    root.join("whole")
}

#[test]
fn no_interruption_changes_a_run() {
    all_stages(Precision::F32, 1, 1);
}

#[test]
fn no_interruption_changes_a_run_in_bf16() {
    all_stages(Precision::Bf16, 1, 1);
}

#[test]
fn no_interruption_changes_a_run_on_two_devices() {
    all_stages(Precision::F32, 2, 1);
}

#[test]
fn no_interruption_changes_a_run_in_micro_batches() {
    all_stages(Precision::F32, 1, 2);
}

/// Tokenizer, distillation and pretraining take their steps in `parts`; fine-tuning and segmentation do so anyway.
fn all_stages(precision: Precision, devices: usize, parts: usize) {
    let root = tempfile::tempdir().unwrap();
    scene::images(&root.path().join("images"), 14);
    scene::teacher(&root.path().join("teacher.safetensors"));
    let devices = vec![Default::default(); devices];

    let mut recipe = TokenizerRecipe { precision, ..scene::tokenizer(root.path()) };
    recipe.schedule.grad_accum_steps = parts;
    recipe.targets.whiten = true;
    let tokenizer = compare(&root.path().join("tokenizer"), &[1, 2, 3, 7, 10], 11, &|env| {
        let train = beit2::tokenizer::train::<Auto>;
        on_devices::<Auto>(&devices, env, |env, at| train(&recipe, env, at)).unwrap()
    });

    if precision == Precision::F32 {
        // Crops that come again: stops in the first round, at its end and in the third.
        let mut recipe = scene::distill(root.path());
        recipe.schedule.grad_accum_steps = parts;
        compare(&root.path().join("distill"), &[2, 3, 7], 9, &|env| {
            let train = beit2::tokenizer::teachers::distill::<Auto>;
            on_devices::<Auto>(&devices, env, |env, at| train(&recipe, env, at)).unwrap()
        });
    }

    let mut recipe = PretrainRecipe { precision, ..scene::pretrain(root.path(), &tokenizer) };
    recipe.schedule.grad_accum_steps = parts;
    let pretrained = compare(&root.path().join("pretrain"), &[1, 3, 8], 9, &|env| {
        let train = beit2::pretrain::train::<Auto>;
        on_devices::<Auto>(&devices, env, |env, at| train(&recipe, env, at)).unwrap()
    });

    scene::classes(&root.path().join("classes"), 7);
    let init = pretrained.to_string_lossy();
    let mut recipe = FinetuneRecipe { precision, ..scene::finetune(root.path(), &init) };
    // Parts of one image cannot be mixed.
    recipe.schedule.grad_accum_steps /= devices.len();
    compare(&root.path().join("finetune"), &[1, 5, 9], 10, &|env| {
        let train = beit2::classify::finetune::train::<Auto>;
        on_devices::<Auto>(&devices, env, |env, at| train(&recipe, env, at)).unwrap()
    });

    scene::masks(&root.path().join("scenes"), 13);
    let recipe = scene::segment(root.path(), "scratch");
    compare(&root.path().join("segment"), &[1, 4, 9], 10, &|env| {
        let train = beit2::segment::train::<Auto>;
        on_devices::<Auto>(&devices, env, |env, at| train(&recipe, env, at)).unwrap()
    });
}
