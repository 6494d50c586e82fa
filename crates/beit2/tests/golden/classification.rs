//! Suite C: classifiers – features, losses, gradients, fine-tuning steps, averages and evaluation.

use beit2::classify::finetune::Ema;
use beit2::classify::{hard_cross_entropy, smooth_targets, soft_cross_entropy, top_k_hits};
use beit2::params;
use beit2::train::{AdamW, CosineSchedule, GradientSum, GroupRule, grad_norm};
use beit2::vit::{DropPath, Pooling, VisionTransformer, drop_path_rates};
use beit2_kernels::{AutodiffBackend, Backend};
use burn::module::AutodiffModule;
use burn::tensor::{DType, Int, Tensor};

use super::checks::{check, skip};
use super::folder::{Auto, Case, Inner, cases, cases_with, each_case, floats};

pub fn model<B: AutodiffBackend>(case: &Case, dtype: DType) -> VisionTransformer<B> {
    let pooling = if case.flag("mean_pool") { Pooling::Mean } else { Pooling::Cls };
    let zeros = VisionTransformer::new(&case.vit(), pooling, case.size("classes"), &Default::default());
    params::load_strict(zeros, case.below("weight"), dtype, |name| name.ends_with("relative_position_index"))
        .unwrap()
}

/// What the recording multiplies its logits with: the manifest's `logit_gain`, unless the head's recorded weights hold it
/// already. Recorded features and logits tell which.
fn logit_gain(case: &Case) -> f64 {
    let gain = case.number_or("logit_gain", 1.0);
    if gain == 1.0 {
        return 1.0;
    }
    let weight: Tensor<Inner, 2> = case.tensor("weight/head.weight", DType::F64);
    let bias: Tensor<Inner, 1> = case.tensor("weight/head.bias", DType::F64);
    let logits = case.tensor::<Inner, 2>("eval/features", DType::F64).matmul(weight.transpose());
    let logits = floats(&(logits + bias.unsqueeze()).to_data());
    let distance = |gain: f64| -> f64 {
        floats(case.raw("eval/logits")).iter().zip(&logits).map(|(a, b)| (a - b * gain).abs()).sum()
    };
    if distance(gain) < distance(1.0) { gain } else { 1.0 }
}

/// The model's logits as the recording has them.
pub fn forward<B: Backend>(
    case: &Case,
    model: &VisionTransformer<B>,
    x: Tensor<B, 4>,
    drop: &DropPath<B>,
) -> Tensor<B, 2> {
    let (logits, gain) = (model.forward(x, drop), logit_gain(case));
    if gain == 1.0 { logits } else { logits.mul_scalar(gain) }
}

fn labels(case: &Case, step: usize) -> Vec<u32> {
    floats(&case.step_data("input/targets", step)).iter().map(|&v| v as u32).collect()
}

/// Images and targets of a micro-batch, mixed where the case mixes.
pub fn inputs<B: AutodiffBackend>(case: &Case, step: usize, dtype: DType) -> (Tensor<B, 4>, Tensor<B, 2>) {
    if case.flag("use_mix") {
        return (case.step("mix/images", step, dtype), case.step("mix/targets", step, dtype));
    }
    let targets = smooth_targets(
        &labels(case, step),
        case.size("classes"),
        case.number("smoothing"),
        &Default::default(),
    );
    (case.step("input/images", step, dtype), targets.cast(dtype))
}

pub fn rates(case: &Case) -> Vec<f64> {
    drop_path_rates(case.number("drop_path"), case.size("depth"))
}

#[test]
fn golden_c_forward_losses_and_gradients() {
    each_case(|| cases("C"), |case| case.in_both_types(forward_losses_and_gradients::<Auto>));
}

pub fn forward_losses_and_gradients<B: AutodiffBackend>(case: &Case, dtype: DType) {
    let model = model::<B>(case, dtype);
    let x: Tensor<B, 4> = case.step("input/images", 0, dtype);
    let none = DropPath::none();
    case.check("eval/logits", &forward(case, &model, x.clone(), &none).to_data());
    let bias = model.trunk.shared_bias();
    let mut blocks: Vec<Tensor<B, 3>> = Vec::new();
    let embedded = model.trunk.embed(x.clone(), None);
    for block in 0..case.size("depth") {
        let x = blocks.last().unwrap_or(&embedded).clone();
        let tokens = model.trunk.run(x, block..block + 1, None, bias.as_ref(), &none);
        case.check(&format!("eval/block{block}_tokens"), &tokens.to_data());
        blocks.push(tokens);
    }
    let mut without_head = model.clone();
    without_head.head = None;
    case.check("eval/features", &without_head.forward(x.clone(), &none).to_data());
    let tokens = without_head.tokens(x, &none);
    let [_, count, _] = tokens.dims();
    case.check("eval/all_tokens", &tokens.clone().to_data());
    // The reference's intermediate layers pass `norm`, which mean pooling leaves out; `fc_norm` is not part of it.
    let normed = if case.flag("mean_pool") { blocks[case.size("depth") - 1].clone() } else { tokens.clone() };
    case.check("eval/last_tokens_normed", &normed.to_data());
    case.check("eval/patch_tokens", &tokens.narrow(1, 1, count - 1).to_data());

    losses::<B>(case, dtype);

    let (x, targets) = inputs(case, 0, dtype);
    let drop = case.drop_path("droppath/uniform", &rates(case), &mut 0);
    let logits = forward(case, &model, x, &drop);
    case.check("train/logits", &logits.to_data());
    let loss = soft_cross_entropy(logits, targets);
    case.check("train/loss", &loss.to_data());
    let grads = loss.backward();
    // Recorded without a gradient: the CLS token under mean pooling has one only through attention.
    case.check_gradients(beit2::train::gradients(&model, &grads));
}

fn losses<B: AutodiffBackend>(case: &Case, dtype: DType) {
    let device = Default::default();
    let (labels, classes) = (labels(case, 0), case.size("classes"));
    let targets = |smoothing| smooth_targets::<B>(&labels, classes, smoothing, &device).cast(dtype);
    let recorded = case.below("loss");
    for name in recorded.keys().filter(|name| !name.ends_with("_grad_logits")) {
        let targets = match name.strip_prefix("label_smoothing_") {
            Some(smoothing) => targets(smoothing.parse().unwrap()),
            None if name == "ce" => targets(0.0),
            None if name == "soft_target" => case.step("mix/targets", 0, dtype),
            None => {
                skip(format!("{}: no loss called {name} here", case.name));
                continue;
            }
        };
        let logits = case.tensor::<B, 2>("eval/logits", dtype).require_grad();
        let loss = soft_cross_entropy(logits.clone(), targets);
        case.check(&format!("loss/{name}"), &loss.to_data());
        let grad = logits.grad(&loss.backward()).unwrap();
        case.check(&format!("loss/{name}_grad_logits"), &grad.to_data());
    }
}

#[test]
fn golden_c_steps_averages_and_evaluation() {
    each_case(|| cases_with("C", "traj/micro_loss"), |case| case.in_both_types(steps));
}

fn steps(case: &Case, dtype: DType) {
    let mut model = model::<Auto>(case, dtype);
    let decay = case.number("layer_decay");
    let rule = GroupRule {
        weight_decay: case.weight_decay(),
        layer_decay: (decay < 1.0).then(|| (decay, case.size("depth"))),
        exempt_tables: case.flag("no_wd_rel_pos"),
    };
    let mut optimizer = AdamW::<Auto>::new(case.adamw(), rule);
    let mut ema = Ema::<Inner>::new(&model.valid(), case.number("ema_decay"));
    let (steps, micro) = (case.size("steps"), case.size("update_freq"));
    let per_epoch = steps as u64;
    let lr = CosineSchedule::new(
        case.number("lr"),
        case.number("min_lr"),
        case.size("epochs") as u64 * per_epoch,
        case.size("warmup_epochs") as u64 * per_epoch,
        0.0,
    )
    .unwrap();
    let (mut call, mut right, mut seen, mut total) = (0, 0, 0, 0.0);
    for step in 0..steps {
        let mut sum = GradientSum::default();
        for at in step * micro..(step + 1) * micro {
            let (x, targets) = inputs(case, at, dtype);
            model = sum.start(model);
            let drop = case.drop_path("traj/droppath_uniform", &rates(case), &mut call);
            let logits = forward(case, &model, x, &drop);
            let labels = labels(case, at);
            let host = logits.to_data().convert::<f32>().into_vec::<f32>().unwrap();
            right += top_k_hits(&host, case.size("classes"), &labels, 1);
            seen += labels.len();
            let loss = soft_cross_entropy(logits, targets).div_scalar(micro as f64);
            case.check_step("traj/micro_loss", at, &loss.to_data());
            total += floats(&loss.to_data())[0];
            sum.add(&model, loss.backward());
        }
        let grads = sum.finish().unwrap();
        case.check_step("traj/grad_norm", step, &grad_norm(&model, &grads).to_data());
        let rate = lr.at(case.size("start_epoch") as u64 * per_epoch + step as u64);
        let clip = case.config["clip_grad"].as_f64();
        (model, _) = optimizer.step(model, grads, rate, clip);
        ema.update(&model.valid());
        case.check_params(step + 1, &model);
    }
    let averages = ema.export();
    for (name, _) in case.below("ema") {
        case.check(&format!("ema/{name}"), &averages[&name]);
    }
    let stats = &case.meta["engine_stats"];
    if let Some(accuracy) = stats["class_acc"].as_f64() {
        case.near("engine class_acc", accuracy, right as f64 / seen as f64, 1e-9);
    }
    let mean = total * micro as f64 / (steps * micro) as f64;
    let recorded = stats["loss"].as_f64().unwrap();
    // The engine reports the loss before or after the division by update_freq; both are the same mean.
    let near = |mean: f64| (mean - recorded).abs() < 1e-4 * recorded.abs();
    check(near(mean) || near(mean / micro as f64), || {
        format!("{}: engine loss {mean}, expected {recorded}", case.name)
    });
    evaluation(case, &model.valid(), dtype);
}

/// Three full batches and one of a single image: the loss is a mean over batches, accuracies over images.
fn evaluation(case: &Case, model: &VisionTransformer<Inner>, dtype: DType) {
    let stats = &case.meta["evaluate_stats_batches_plus_one_short_batch"];
    let classes = case.size("classes");
    let (mut loss, mut hits, mut seen, mut batches) = (0.0, [0, 0], 0, 0.0);
    let count = case.raw("input/images").shape[0];
    for at in 0..=count {
        let (mut x, mut y) =
            (case.step::<Inner, 4>("input/images", at % count, dtype), labels(case, at % count));
        if at == count {
            (x, y) = (x.narrow(0, 0, 1), y[..1].to_vec());
        }
        let logits = forward(case, model, x, &DropPath::none());
        let host = logits.to_data().convert::<f32>().into_vec::<f32>().unwrap();
        for (hit, k) in hits.iter_mut().zip([1, 5]) {
            *hit += top_k_hits(&host, classes, &y, k);
        }
        let ints: Vec<i64> = y.iter().map(|&v| i64::from(v)).collect();
        let labels = Tensor::<Inner, 1, Int>::from_data(&ints[..], &Default::default());
        loss += floats(&hard_cross_entropy(logits, labels).to_data())[0];
        batches += 1.0;
        seen += y.len();
    }
    let near = |name: &str, found: f64, tolerance: f64| {
        case.near(&format!("evaluate {name}"), stats[name].as_f64().unwrap(), found, tolerance);
    };
    near("loss", loss / batches, 1e-4);
    near("acc1", 100.0 * hits[0] as f64 / seen as f64, 1e-9);
    near("acc5", 100.0 * hits[1] as f64 / seen as f64, 1e-9);
}
