//! A run that is told to stop in the middle of a step gives the step up, and continues to the same bytes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use beit2::train::{Env, Event, Files, InStep, Observer, Outcome, on_devices};
use beit2_run::StopFlag;

use super::scene::{self, Auto};

/// Asks to stop as soon as a step has begun.
struct StopIn {
    /// Steps before it.
    after: u64,
    stop: StopFlag,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Observer for StopIn {
    fn event(&mut self, event: Event) {
        let Event::Steps(steps) = event else { return };
        let (after, stop, over) = (self.after, self.stop.clone(), self.over.clone());
        self.thread = Some(std::thread::spawn(move || watch(&steps, after, &stop, &over)));
    }
}

fn watch(steps: &InStep, after: u64, stop: &StopFlag, over: &AtomicBool) {
    while steps.begun() <= after {
        if over.load(Ordering::Relaxed) {
            return;
        }
        std::thread::yield_now();
    }
    stop.request();
}

/// What became of a run that was told to stop in the step after `after`.
fn cut(dir: &Path, after: u64, stage: &dyn Fn(Env<'_>) -> Outcome) -> Outcome {
    let (stop, over) = (StopFlag::new(), Arc::new(AtomicBool::new(false)));
    let mut observer = StopIn { after, stop: stop.clone(), over: over.clone(), thread: None };
    let files = Files::default();
    let outcome = stage(Env { stop, patience: Duration::ZERO, ..Env::new(dir, &mut observer, &files) });
    over.store(true, Ordering::Relaxed);
    observer.thread.into_iter().for_each(|thread| thread.join().unwrap());
    outcome
}

fn whole(dir: &Path, stage: &dyn Fn(Env<'_>) -> Outcome) -> Outcome {
    stage(Env::new(dir, &mut beit2::train::Silent, &Files::default()))
}

fn compare(root: &Path, cuts: &[u64], stage: &dyn Fn(Env<'_>) -> Outcome) -> PathBuf {
    let expected = whole(&root.join("whole"), stage);
    assert!(expected.complete);
    for &after in cuts {
        let dir = root.join(format!("cut-{after}"));
        // Such small steps last a millisecond: on a busy machine one is often over before the thread that watches it wakes up.
        let began = Instant::now();
        loop {
            let _ = std::fs::remove_dir_all(&dir);
            let outcome = cut(&dir, after, stage);
            assert!(!outcome.complete || outcome.step > after);
            if outcome.step == after {
                break;
            }
            let waited = began.elapsed() < Duration::from_secs(120);
            assert!(waited, "step {} of {} was never cut off", after + 1, root.display());
        }
        let saved = std::fs::read_dir(dir.join("checkpoints")).unwrap().count();
        assert_eq!(saved > 0, after > 0, "a checkpoint of half a step");
        let continued = whole(&dir, stage);
        assert!(continued.complete);
        for file in ["model.safetensors", "optimizer.safetensors"] {
            let read = |outcome: &Outcome| std::fs::read(outcome.checkpoint.join(file)).unwrap();
            assert!(read(&expected) == read(&continued), "{file} differs after a cut in step {}", after + 1);
        }
    }
    root.join("whole")
}

#[test]
fn no_cut_changes_a_run() {
    all_stages(1);
}

#[test]
fn no_cut_changes_a_run_on_two_devices() {
    all_stages(2);
}

fn all_stages(count: usize) {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    scene::images(&root.join("images"), 14);
    scene::teacher(&root.join("teacher.safetensors"));
    let devices = vec![Default::default(); count];

    // The codebook starts in one of these steps.
    let recipe = scene::tokenizer(root);
    let cuts: &[u64] = if count == 1 { &[0, 1, 2, 3, 4, 6] } else { &[0, 5] };
    let tokenizer = compare(&root.join("tokenizer"), cuts, &|env| {
        let train = beit2::tokenizer::train::<Auto>;
        on_devices::<Auto>(&devices, env, |env, at| train(&recipe, env, at)).unwrap()
    });

    let recipe = scene::distill(root);
    compare(&root.join("distill"), &[1, 5], &|env| {
        let train = beit2::tokenizer::teachers::distill::<Auto>;
        on_devices::<Auto>(&devices, env, |env, at| train(&recipe, env, at)).unwrap()
    });

    let recipe = scene::pretrain(root, &tokenizer);
    let pretrained = compare(&root.join("pretrain"), &[0, 4], &|env| {
        let train = beit2::pretrain::train::<Auto>;
        on_devices::<Auto>(&devices, env, |env, at| train(&recipe, env, at)).unwrap()
    });

    scene::classes(&root.join("classes"), 7);
    let mut recipe = scene::finetune(root, &pretrained.to_string_lossy());
    // Parts of one image cannot be mixed.
    recipe.schedule.grad_accum_steps /= count;
    compare(&root.join("finetune"), &[0, 3], &|env| {
        let train = beit2::classify::finetune::train::<Auto>;
        on_devices::<Auto>(&devices, env, |env, at| train(&recipe, env, at)).unwrap()
    });

    // On several devices its steps are not cut off.
    if count == 1 {
        scene::masks(&root.join("scenes"), 13);
        let recipe = scene::segment(root, "scratch");
        compare(&root.join("segment"), &[0, 3], &|env| {
            let train = beit2::segment::train::<Auto>;
            on_devices::<Auto>(&devices, env, |env, at| train(&recipe, env, at)).unwrap()
        });
    }
}
