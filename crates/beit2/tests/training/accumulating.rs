//! A step in micro-batches is the step that takes its images at once.

use std::path::Path;

use beit2::tokenizer::{self, teachers};
use beit2::train::{Env, Event, Files, Observer, Outcome, ScheduleConfig};
use beit2::{Error, pretrain};

use super::parallel::{Stage, assert_same, on};
use super::scene::{self, Auto};

/// How a step of four images is taken: devices, parts on each, and most images of a part.
const WAYS: [(&str, usize, usize, Option<usize>); 4] = [
    ("two", 1, 2, None),
    ("four", 1, 4, None),
    ("at-most-three", 1, 1, Some(3)),
    ("two-on-two-devices", 2, 2, None),
];

/// Training that gets a change of the schedule.
type Divided<'a> = &'a (dyn Fn(Env<'_>, &dyn Fn(&mut ScheduleConfig)) -> Result<Outcome, Error> + Sync);

/// Trains at once and in all [`WAYS`].
fn compare(root: &Path, train: Divided) {
    let whole = root.join("whole");
    let stage: Stage = &|env| train(env, &|_| {});
    let expected = on(1, &whole, stage);
    for (name, devices, parts, most) in WAYS {
        let dir = root.join(name);
        let divided = |schedule: &mut ScheduleConfig| {
            (schedule.grad_accum_steps, schedule.max_micro_batch) = (parts, most);
        };
        let stage: Stage = &|env| train(env, &divided);
        let found = on(devices, &dir, stage);
        assert_same((&whole, &expected), (&dir, &found));
    }
}

#[test]
fn micro_batches_train_what_the_whole_batch_does() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    scene::images(&root.join("images"), 14);
    scene::teacher(&root.join("teacher.safetensors"));
    let device = Default::default();
    // AdamW makes steps of full length from gradients that are nothing but rounding; with a large eps it does not.
    let eps = 1e-4;

    // Codes from k-means after two steps, moved by sums over each step and revived from its vectors; targets that are whitened.
    compare(&root.join("tokenizer"), &|env, divide| {
        let mut recipe = scene::tokenizer(root);
        recipe.optimizer.eps = eps;
        recipe.targets.whiten = true;
        divide(&mut recipe.schedule);
        tokenizer::train::<Auto>(&recipe, env, &device)
    });
    let tokens = root.join("tokenizer/whole");

    // With targets that are kept, and with statistics of the teacher's features.
    compare(&root.join("distill"), &|env, divide| {
        let mut recipe = scene::distill(root);
        recipe.optimizer.eps = eps;
        divide(&mut recipe.schedule);
        teachers::distill::<Auto>(&recipe, env, &device)
    });

    // Drop path is on.
    compare(&root.join("pretrain"), &|env, divide| {
        let mut recipe = scene::pretrain(root, &tokens);
        recipe.optimizer.eps = eps;
        divide(&mut recipe.schedule);
        pretrain::train::<Auto>(&recipe, env, &device)
    });

    // Ids that a cache has are those of whole batches, however they are divided.
    let cached = |name: &str, parts: usize| {
        let dir = root.join(name);
        let stage: Stage = &|env| {
            let mut recipe = scene::pretrain(root, &tokens);
            recipe.optimizer.eps = eps;
            recipe.schedule.grad_accum_steps = parts;
            recipe.tokenizer.cache = Some(root.join("ids").to_string_lossy().into_owned());
            pretrain::train::<Auto>(&recipe, env, &device)
        };
        std::fs::read(on(1, &dir, stage).checkpoint.join("model.safetensors")).unwrap()
    };
    let (made, found) = (cached("made", 2), cached("found", 2));
    let without = root.join("pretrain/two/checkpoints");
    let newest = std::fs::read_dir(without).unwrap().map(|entry| entry.unwrap().path()).max().unwrap();
    assert!(made == found && made == std::fs::read(newest.join("model.safetensors")).unwrap());
}

struct Started(Vec<(String, String)>);

impl Observer for Started {
    fn event(&mut self, event: Event) {
        if let Event::Started { summary, .. } = event {
            self.0 = summary;
        }
    }
}

#[test]
fn what_cannot_be_divided_is_refused_before_anything_is_written() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    scene::images(&root.join("images"), 14);
    scene::teacher(&root.join("teacher.safetensors"));
    let (device, files) = (Default::default(), Files::default());
    let mut recipe = scene::tokenizer(root);
    recipe.schedule.grad_accum_steps = 3;
    let mut started = Started(Vec::new());
    let error = tokenizer::train::<Auto>(&recipe, Env::new(root.join("run"), &mut started, &files), &device);
    let error = error.unwrap_err().to_string();
    assert!(error.contains("batch_size 4 cannot be divided into 3 equal micro-batches"), "{error}");
    assert!(!root.join("run").exists(), "nothing was begun");

    recipe.schedule.grad_accum_steps = 2;
    recipe.schedule.steps = Some(3);
    tokenizer::train::<Auto>(&recipe, Env::new(root.join("run"), &mut started, &files), &device).unwrap();
    let told = |wanted: &str| started.0.iter().find(|(name, _)| name == wanted).unwrap().1.clone();
    assert_eq!(told("memory"), "each step in 2 micro-batches of 2 images");
}
