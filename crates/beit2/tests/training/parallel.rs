//! Two devices train what one does with the same batch.

use std::path::Path;
use std::sync::Arc;

use beit2::classify::finetune;
use beit2::tokenizer::{self, TokenizerRecipe, teachers};
use beit2::train::{Assets, Env, Event, Files, Observer, Outcome, SCRATCH, Silent, on_devices};
use beit2::weights::{self, Tensors, WeightFile};
use beit2::{Error, pretrain, segment};
use beit2_data::Source;
use beit2_data::segment::{SegmentDataOptions, SegmentSource};
use beit2_run::metrics;
use burn::tensor::TensorData;

use super::scene::{self, Auto};

pub type Stage<'a> = &'a (dyn Fn(Env<'_>) -> Result<Outcome, Error> + Sync);

/// `stage` on so many devices.
pub fn on(devices: usize, dir: &Path, stage: Stage) -> Outcome {
    let devices = vec![Default::default(); devices];
    let (files, mut silent) = (Files::default(), Silent);
    on_devices::<Auto>(&devices, Env::new(dir, &mut silent, &files), |env, _| stage(env)).unwrap()
}

/// How far a metric may move when rounding decides between two candidates that are nearly equal; 0 for a sum.
///
/// These metrics count decisions (which code is nearest, which class scores highest). On another instruction set
/// one or two near ties fall to the other side: of 24 codes one is used more or less, of the validation set's
/// tokens and images a few are.
fn discrete(metric: &str, value: f64) -> f64 {
    const CODES: f64 = 24.0;
    match metric.rsplit_once("codebook_") {
        Some((_, "usage")) => 2.0 / CODES,
        Some((_, "perplexity")) => 0.05 * value,
        _ => 0.0,
    }
}

fn floats(data: &TensorData) -> Vec<f64> {
    data.clone().convert::<f64>().into_vec().unwrap()
}

/// Whether rounding put an activation on the other side of a ReLU's 0. Then the bias of the norm in front of it has
/// another gradient in that channel, and in no other.
pub fn relu_flipped(a: &Tensors, b: &Tensors) -> bool {
    a.iter().filter(|(name, _)| name.starts_with("exp_avg/") && name.ends_with("bn.bias")).any(|(name, a)| {
        let (a, b) = (floats(a), floats(&b[name]));
        let size = a.iter().map(|x| x * x).sum::<f64>().sqrt();
        let channels = a.iter().zip(&b).filter(|(a, b)| (*a - *b).abs() > 1e-6 * size).count();
        (1..=a.len() / 8).contains(&channels)
    })
}

/// How much of a tensor's size rounding may change.
///
/// Sums of f32 in another order: 1e-5, some steps on. A ReLU that flips is a jump instead. It changes the gradients of
/// everything in front of it by one of 4 · 16 · 16 positions of one of 16 channels, typically 1/√16384 = 0.8 % of them in
/// the step in which it happens, and a tenth of that goes into the first moments: 8e-4. Only the convolutions that give
/// the logits have no ReLU behind them.
pub fn relative(name: &str, flipped: bool) -> f64 {
    if flipped && name.starts_with("exp_avg/") && !name.contains("conv_seg") { 1e-3 } else { 1e-5 }
}

/// `one` on one device and `group` on two: the same records and the same weights, up to rounding.
fn compare(root: &Path, one: Stage, group: Stage) {
    let (dir, two) = (root.join("one"), root.join("two"));
    let expected = on(1, &dir, one);
    let found = on(2, &two, group);
    assert_same((&dir, &expected), (&two, &found));
}

/// The same records and the same weights, up to rounding, of runs that are given with their directories.
pub fn assert_same((dir, expected): (&Path, &Outcome), (other, found): (&Path, &Outcome)) {
    assert_eq!((found.step, found.images), (expected.step, expected.images));

    let records = |dir: &Path| metrics::read_jsonl(&dir.join("metrics.jsonl")).unwrap().records;
    let (a, b) = (records(dir), records(other));
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().zip(&b) {
        for ((name, x), (other, y)) in a.values.iter().zip(&b.values) {
            assert_eq!(name, other);
            if !["images_per_second", "data_wait"].contains(&name.as_str()) {
                // Sums of f32 in another order, some steps on.
                let rounding = 1e-6 + 1e-5 * x.abs();
                assert!(
                    (x - y).abs() <= rounding.max(discrete(name, *x)),
                    "step {}: {name} {x} and {y}",
                    a.step
                );
            }
        }
    }
    for file in ["model.safetensors", "optimizer.safetensors", "model_ema.safetensors"] {
        let read = |outcome: &Outcome| weights::read(&outcome.checkpoint.join(file)).map(|file| file.tensors);
        let (Ok(a), Ok(b)) = (read(expected), read(found)) else { continue };
        assert!(a.keys().eq(b.keys()));
        let flipped = relu_flipped(&a, &b);
        for (name, a) in &a {
            let (a, b) = (floats(a), floats(&b[name]));
            let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
            let (size, difference) =
                (norm(&mut a.iter().copied()), norm(&mut a.iter().zip(&b).map(|(a, b)| a - b)));
            assert!(
                // The rest: tables of positions start at 0 and hardly move; a gradient's rounding of 1e-8 over this eps, ten
                // steps of 1e-3 long, is 1e-6.
                difference <= 1e-6 + relative(name, flipped) * size,
                "{file}: {name} differs by {difference:e} of {size:e}"
            );
        }
    }
}

#[test]
fn every_stage_on_two_devices_is_that_on_one() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    scene::of_every_stage(root);
    let device = Default::default();
    // AdamW makes steps of full length from gradients that are nothing but rounding; with a large eps it does not.
    let eps = 1e-4;

    let mut recipe = scene::tokenizer(root);
    recipe.optimizer.eps = eps;
    let stage: Stage = &|env| tokenizer::train::<Auto>(&recipe, env, &device);
    compare(&root.join("tokenizer"), stage, stage);
    let tokenizer = root.join("tokenizer/one");

    let mut recipe = scene::distill(root);
    recipe.optimizer.eps = eps;
    let stage: Stage = &|env| teachers::distill::<Auto>(&recipe, env, &device);
    compare(&root.join("distill"), stage, stage);

    let mut recipe = scene::pretrain(root, &tokenizer);
    recipe.optimizer.eps = eps;
    let stage: Stage = &|env| pretrain::train::<Auto>(&recipe, env, &device);
    compare(&root.join("pretrain"), stage, stage);

    // One device in two parts draws for each part what each of two devices draws.
    let mut one = scene::finetune(root, &root.join("pretrain/one").to_string_lossy());
    one.optimizer.eps = eps;
    let mut two = one.clone();
    (one.schedule.grad_accum_steps, two.schedule.grad_accum_steps) = (2, 1);
    let one: Stage = &|env| finetune::train::<Auto>(&one, env, &device);
    let two: Stage = &|env| finetune::train::<Auto>(&two, env, &device);
    compare(&root.join("finetune"), one, two);

    // Batch norms see the whole batch, so one device must have it in one part; what it drops would be other images'.
    let mut recipe = scene::segment(root, SCRATCH);
    (recipe.optimizer.eps, recipe.schedule.grad_accum_steps) = (eps, 1);
    (recipe.model.dropout, recipe.model.vit.drop_path) = (0.0, 0.0);
    let stage: Stage = &|env| segment::train::<Auto>(&recipe, env, &device);
    compare(&root.join("segment"), stage, stage);
}

/// A folder with images and a teacher, and the recipe of a tokenizer for them.
pub fn tokenizer_scene() -> (tempfile::TempDir, TokenizerRecipe) {
    let root = tempfile::tempdir().unwrap();
    scene::images(&root.path().join("images"), 14);
    scene::teacher(&root.path().join("teacher.safetensors"));
    let recipe = scene::tokenizer(root.path());
    (root, recipe)
}

#[test]
fn a_batch_that_cannot_be_shared_is_refused() {
    let (root, recipe) = tokenizer_scene();
    let root = root.path();
    let device = Default::default();
    let (files, mut silent) = (Files::default(), Silent);
    let run = Env::new(root.join("run"), &mut silent, &files);
    let train = |env: Env<'_>, _: &_| tokenizer::train::<Auto>(&recipe, env, &device);
    let error = on_devices::<Auto>(&[Default::default(); 3], run, train).unwrap_err().to_string();
    assert!(
        error.contains("batch_size 4") && error.contains("3 devices") && error.contains("multiple of 3"),
        "{error}"
    );
    assert!(!root.join("run").exists(), "nothing was begun");
}

/// Images that only the leader can open.
struct Unreadable(std::thread::ThreadId, Files);

impl Assets for Unreadable {
    fn source(&self, spec: &str) -> Result<Arc<dyn Source>, Error> {
        if std::thread::current().id() != self.0 {
            return Err(Error::Training("the second device's disk is gone".into()));
        }
        self.1.source(spec)
    }

    fn segment_source(&self, spec: &str, options: &SegmentDataOptions) -> Result<Arc<SegmentSource>, Error> {
        self.1.segment_source(spec, options)
    }

    fn weights(&self, spec: &str) -> Result<WeightFile, Error> {
        self.1.weights(spec)
    }
}

struct Events(Vec<String>);

impl Observer for Events {
    fn event(&mut self, event: Event) {
        self.0.push(format!("{event:?}"));
    }
}

#[test]
fn what_stops_one_device_stops_the_run_and_is_said() {
    let (root, recipe) = tokenizer_scene();
    let root = root.path();
    let (assets, device) = (Unreadable(std::thread::current().id(), Files::default()), Default::default());
    let mut silent = Silent;
    let run = Env::new(root.join("run"), &mut silent, &assets);
    let train = |env: Env<'_>, _: &_| tokenizer::train::<Auto>(&recipe, env, &device);
    let error = on_devices::<Auto>(&[Default::default(); 2], run, train).unwrap_err().to_string();
    assert_eq!(error, "the second device's disk is gone");

    // An image that only the second device meets.
    std::fs::write(root.join("images/005.ppm"), "P6 nonsense").unwrap();
    let mut tolerant = recipe.clone();
    tolerant.data.max_bad_fraction = 0.5;
    let mut events = Events(Vec::new());
    let files = Files::default();
    let run = Env::new(root.join("tolerant"), &mut events, &files);
    let train = |env: Env<'_>, _: &_| tokenizer::train::<Auto>(&tolerant, env, &device);
    on_devices::<Auto>(&[Default::default(); 2], run, train).unwrap();
    // Evaluations, which leave it out, say so too.
    let replaced = |event: &&String| {
        event.contains("005.ppm could not be used") && event.contains("another image took its place")
    };
    let told = events.0.iter().filter(replaced).count();
    // 11 steps of three to an epoch of 14 images: at least in the first three epochs, once each when it is met.
    assert!((1..=4).contains(&told), "{told}");
    let devices = events.0.iter().any(|event| event.contains("2, 2 images of each step on every one"));
    assert!(devices, "{:?}", events.0);
}
