//! A test for each defect that was fixed, named for it. Where a test needs another place, this list says which:
//!
//! | defect | test |
//! |---|---|
//! | gradients of later micro-batches were lost beside another rank's backward pass | `tests/regression_lost_gradients.rs`, a process of its own |
//! | a stopped run waited for ever when there was one thread | here; in `train/prefetch.rs` without a run |
//! | a rank that failed held up the others | `parallel::what_stops_one_device_stops_the_run_and_is_said` |
//! | two devices were said to differ from one when a code was equally near | `parallel::every_stage_on_two_devices_is_that_on_one` |
//! | the same comparison failed when rounding flipped a ReLU | the same, and here |
//! | a run that was continued ended with other bytes | `resume` |
//! | the token cache took all frozen tokenizers for the same one | `token_cache::a_second_run_takes_the_ids_of_the_first` |
//! | an epoch of warm-up had a codebook without codes in its record | here |
//! | weights of a teacher with the wrong number of dimensions ended the program | here |
//! | `process_type = "dall-e"` of published tokenizers was unknown | here |
//! | Burn 0.21: the gradient of `repeat_dim` is mixed up | here |
//! | Burn 0.21: GELU's gradient is that of the tanh approximation | here |
//! | Burn 0.21: `Tensor::pad` fails in f64, `div_scalar` rounds its gradient to f32 | `golden_g_losses_gradients_and_statistics`, in f64 |
//! | a golden folder without a manifest passed | `golden_a_folder_without_a_manifest_fails` |
//! | two writes of the same weights had different bytes | `writing` in `beit2-weights` |
//! | files of the official code could not be read, or were read wrongly (`burn-store`) | `golden_checkpoints`, `golden_hostile` in `beit2-weights` |
//! | a classifier of small images saw a crop of them in `predict` and the whole in `eval` | `predict` in `beit2-cli` |
//! | a report left out what is measured on held-out images only | `commands/report.rs` in `beit2-cli` |

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::time::Duration;

use beit2::segment::Deconv;
use beit2::tokenizer::teachers::{Teacher, TeacherConfig, TeacherKind};
use beit2::tokenizer::{self, ProcessType, TokenizerConfig, VqKd};
use beit2::train::{Env, Event, Files, Observer, Silent};
use beit2_run::{StopFlag, metrics};
use burn::backend::Flex;
use burn::tensor::{DType, Tensor, TensorData};

use super::parallel::{relative, relu_flipped};
use super::scene::{self, Auto};

fn floats<const D: usize, B: burn::tensor::backend::Backend>(x: Tensor<B, D>) -> Vec<f64> {
    x.into_data().convert::<f64>().into_vec().unwrap()
}

/// Asks to stop at the third step.
struct StopSoon(StopFlag);

impl Observer for StopSoon {
    fn event(&mut self, event: Event) {
        if matches!(event, Event::Step { step: 3, .. }) {
            self.0.request();
        }
    }
}

/// The thread that prepares the next batch was in the middle of an operation and waited for the only thread that
/// computes, which waited for it.
#[test]
fn a_run_that_stops_early_on_one_thread_ends() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().to_owned();
    scene::images(&dir.join("images"), 14);
    scene::teacher(&dir.join("teacher.safetensors"));
    let (done, outcome) = mpsc::channel();
    std::thread::spawn(move || {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let found = pool.install(|| {
            let stop = StopFlag::new();
            let (mut observer, assets) = (StopSoon(stop.clone()), Files::default());
            let env = Env { stop, ..Env::new(dir.join("run"), &mut observer, &assets) };
            tokenizer::train::<Auto>(&scene::tokenizer(&dir), env, &Default::default()).unwrap()
        });
        done.send(found).unwrap();
    });
    let outcome = outcome.recv_timeout(Duration::from_secs(120)).expect("the run ends within two minutes");
    assert_eq!((outcome.complete, outcome.step), (false, 3));
}

#[test]
fn an_epoch_of_warm_up_records_no_codebook() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    scene::images(&root.join("images"), 14);
    scene::teacher(&root.join("teacher.safetensors"));
    let mut recipe = scene::tokenizer(root);
    // Three steps to an epoch.
    recipe.codebook.kmeans_warmup_steps = 4;
    let (mut silent, assets) = (Silent, Files::default());
    let env = Env::new(root.join("run"), &mut silent, &assets);
    tokenizer::train::<Auto>(&recipe, env, &Default::default()).unwrap();
    let records = metrics::read_jsonl(&root.join("run/metrics.jsonl")).unwrap().records;
    let with_usage: Vec<u64> = records
        .iter()
        .filter(|record| record.values.iter().any(|(name, _)| name == "codebook_usage"))
        .map(|record| record.step)
        .collect();
    assert!(!with_usage.is_empty() && with_usage.iter().all(|step| *step > 4), "{with_usage:?}");
}

#[test]
fn teacher_weights_with_wrong_dimensions_are_an_error() {
    let config = TeacherConfig { kind: Some(TeacherKind::Clip), ..TeacherConfig::default() };
    for (name, shape) in [("visual.class_embedding", vec![]), ("visual.positional_embedding", vec![3])] {
        let others = [("visual.conv1.weight", vec![4, 3, 2, 2]), ("visual.class_embedding", vec![4])];
        let zeros = |(name, shape): (&str, Vec<usize>)| (name.to_owned(), TensorData::zeros::<f32, _>(shape));
        let weights: BTreeMap<_, _> = others.into_iter().chain([(name, shape)]).map(zeros).collect();
        let built = Teacher::<Flex>::from_tensors(&config, weights, DType::F32, &Default::default());
        let text = built.unwrap_err().to_string();
        let embedding = name.rsplit('.').next().unwrap();
        assert!(text.contains(embedding) && text.contains("dimensions"), "{text}");
    }
}

#[test]
fn dall_e_leaves_pixels_as_they_are() {
    let config = TokenizerConfig {
        image_size: 16,
        patch_size: 8,
        width: 8,
        depth: 1,
        heads: 2,
        decoder_width: 8,
        decoder_depth: 1,
        decoder_heads: 2,
        codebook_size: 4,
        code_dim: 4,
        teacher_dim: 4,
        process_type: ProcessType::DallE,
        ..TokenizerConfig::default()
    };
    let named: ProcessType = serde_json::from_str("\"dall-e\"").unwrap();
    assert_eq!(named, config.process_type);
    let model = VqKd::<Flex>::zeros(&config, &Default::default()).unwrap();
    let pixels = Tensor::<Flex, 4>::full([1, 3, 16, 16], 0.3, &Default::default());
    assert_eq!(model.preprocess(pixels.clone()).into_data(), pixels.into_data());
}

/// The bias of a deconvolution stands in each of the four pixels that one makes. Repeating it with Burn's `repeat_dim`
/// gave one channel the gradient of another.
#[test]
fn a_deconvolutions_bias_has_the_gradient_of_its_own_channel() {
    let layer = Deconv::<Auto>::new(2, 3, &Default::default());
    let x = Tensor::<Auto, 4>::ones([2, 2, 2, 2], &Default::default());
    // Every output counts as much as its channel's number, and of 2 · 4 · 4 pixels each has one.
    let weights = Tensor::<Auto, 1>::from_data([1.0, 10.0, 100.0], &Default::default());
    let loss = (layer.forward(x) * weights.reshape([1, 1, 1, 3])).sum();
    let grads = loss.backward();
    let bias = layer.bias.val().grad(&grads).unwrap();
    assert_eq!(floats(bias), [32.0, 320.0, 3200.0]);
}

/// Φ(x) + x·φ(x), where Burn's is the derivative of the tanh approximation: 2e-4 away from it here.
#[test]
fn gelus_gradient_is_that_of_the_exact_function() {
    for x in [-2.0f64, -0.7, 0.0, 0.5, 2.0] {
        let input = Tensor::<Auto, 2>::from_data([[x]], (&Default::default(), DType::F64)).require_grad();
        let grads = beit2_kernels::gelu(input.clone()).sum().backward();
        let found = floats(input.grad(&grads).unwrap())[0];
        // By central differences of the exact function in f64.
        let gelu = |x: f64| 0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2));
        let expected = (gelu(x + 1e-5) - gelu(x - 1e-5)) / 2e-5;
        assert!((found - expected).abs() < 1e-8, "at {x}: {found}, expected {expected}");
    }
}

/// By its series, exact to rounding for such small arguments.
fn erf(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for n in 1..60 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * std::f64::consts::FRAC_2_SQRT_PI
}

/// The wide tolerance is for the jump alone: a difference in all channels does not get it, nor do the convolutions that
/// give the logits.
#[test]
fn a_flipped_relu_is_told_from_another_result() {
    let name = "exp_avg/head.bn.bias".to_owned();
    let moments = |values: Vec<f32>| BTreeMap::from([(name.clone(), TensorData::new(values, [16]))]);
    let plain: Vec<f32> = (0..16).map(|channel| channel as f32 - 7.5).collect();
    let (mut flipped, mut scaled) = (plain.clone(), plain.clone());
    flipped[11] += 0.01;
    scaled.iter_mut().for_each(|value| *value *= 1.001);
    assert!(!relu_flipped(&moments(plain.clone()), &moments(plain.clone())));
    assert!(relu_flipped(&moments(plain.clone()), &moments(flipped)));
    assert!(!relu_flipped(&moments(plain.clone()), &moments(scaled)));
    assert_eq!(relative("exp_avg/decode_head.conv_seg.weight", true), 1e-5);
    assert_eq!(relative("backbone.blocks.0.mlp.fc1.weight", true), 1e-5);
}
