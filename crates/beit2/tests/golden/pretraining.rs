//! Suite B: masked image models – logits, attention, losses, gradients and five training steps.

use beit2::params;
use beit2::pretrain::{MimConfig, MimModel, PatchMask, masked_labels};
use beit2::tokenizer::{TokenizerConfig, VqKd};
use beit2::train::{AdamW, CosineSchedule, GroupRule, grad_norm};
use beit2::vit::DropPath;
use beit2_kernels::{AutodiffBackend, Precision};
use burn::tensor::{DType, Int, Tensor, TensorData};

use super::checks::check;
use super::folder::{Auto, Case, cases, cases_with, each_case, floats, ints};
use super::sizes;

pub fn config(case: &Case) -> MimConfig {
    MimConfig {
        vit: case.vit(),
        vocab_size: case.size("vocab"),
        patch_aggregation: case.flag("cls"),
        intermediate_layer: case.size("early"),
        head_layers: case.size("head"),
        shared_lm_head: case.flag("shared_head"),
    }
}

pub fn model<B: AutodiffBackend>(case: &Case, dtype: DType) -> MimModel<B> {
    let zeros = MimModel::zeros(&config(case), &Default::default()).unwrap();
    params::load_strict(zeros, case.below("weight"), dtype, |name| name.ends_with("relative_position_index"))
        .unwrap()
}

pub fn mask<B: AutodiffBackend>(case: &Case, step: usize) -> PatchMask<B> {
    let values = floats(&case.step_data("input/mask", step));
    let batch = case.raw("input/mask").shape[1];
    let patches = values.len() / batch;
    let counts: Vec<usize> =
        values.chunks(patches).map(|row| row.iter().filter(|v| **v != 0.0).count()).collect();
    assert!(
        counts.windows(2).all(|pair| pair[0] == pair[1]),
        "{}: masks of {counts:?} patches; ours have one size in a batch",
        case.name
    );
    let indices: Vec<u32> =
        values.iter().enumerate().filter(|(_, v)| **v != 0.0).map(|(at, _)| (at % patches) as u32).collect();
    PatchMask::new(&indices, batch, patches, &Default::default())
}

pub fn labels<B: AutodiffBackend>(case: &Case, step: usize, mask: &PatchMask<B>) -> Tensor<B, 1, Int> {
    let ids = case.step_ints("input/ids", step);
    let batch = case.raw("input/ids").shape[1];
    let patches = ids.dims()[0] / batch;
    masked_labels(ids.reshape([batch, patches]), mask)
}

#[test]
fn golden_b_forward_and_gradients() {
    each_case(|| cases("B"), |case| case.in_both_types(forward_and_gradients::<Auto>));
}

pub fn forward_and_gradients<B: AutodiffBackend>(case: &Case, dtype: DType) {
    let model = model::<B>(case, dtype);
    let x: Tensor<B, 4> = case.step("input/patch_view", 0, dtype);
    let mask = mask(case, 0);
    let labels = labels(case, 0, &mask);
    case.check_ids("input/labels0", &ints(&labels.to_data()), None);

    let suffixes: &[&str] = if case.flag("cls") { &["_1", "_2"] } else { &[""] };
    let masked = model.forward(x.clone(), &mask, &DropPath::none());
    let branches = std::iter::once(masked.last).chain(masked.patch_aggregation);
    for (suffix, logits) in suffixes.iter().zip(branches) {
        case.check(&format!("eval/logits_masked{suffix}"), &logits.to_data());
    }
    let tokens = model.patch_tokens(x.clone(), Some(&mask));
    for ((suffix, tokens), logits) in suffixes.iter().zip(&tokens).zip(model.logits_all(&tokens)) {
        case.check(&format!("eval/patch_tokens{suffix}"), &tokens.to_data());
        case.check(&format!("eval/logits_all{suffix}"), &logits.to_data());
    }
    for (suffix, tokens) in suffixes.iter().zip(model.patch_tokens(x.clone(), None)) {
        case.check(&format!("eval/patch_tokens_nomask{suffix}"), &tokens.to_data());
    }
    inside(case, &model, x.clone(), &mask, dtype);

    let rates = config(case).drop_path_rates();
    let drop = case.drop_path("droppath/uniform", &rates, &mut 0);
    let logits = model.forward(x.clone(), &mask, &drop);
    let branches = std::iter::once(&logits.last).chain(&logits.patch_aggregation);
    for (suffix, logits) in suffixes.iter().zip(branches) {
        case.check(&format!("train/logits{suffix}"), &logits.to_data());
    }
    let loss = model.forward_loss(x, &mask, labels, &drop);
    for (at, suffix) in suffixes.iter().enumerate() {
        if case.has(&format!("train/loss{suffix}")) {
            case.check(&format!("train/loss{suffix}"), &loss.branches[at].to_data());
        }
        case.check(&format!("train/mlm_acc{suffix}"), &loss.accuracy[at].to_data());
    }
    case.check("train/loss", &loss.total.to_data());
    let grads = loss.total.backward();
    case.check_gradients(beit2::train::gradients(&model, &grads));
}

/// Block outputs, attention, bias and projections of the unmasked image.
fn inside<B: AutodiffBackend>(
    case: &Case,
    model: &MimModel<B>,
    x: Tensor<B, 4>,
    mask: &PatchMask<B>,
    dtype: DType,
) {
    let trunk = &model.trunk;
    let bias = trunk.shared_bias();
    if let (Some(bias), true) = (&bias, case.has("eval/shared_bias")) {
        let [_, heads, tokens, _] = bias.dims();
        case.check("eval/shared_bias", &bias.clone().reshape([heads, tokens, tokens]).to_data());
    }
    let depth = trunk.blocks.len();
    let masked = trunk.embed(x.clone(), Some((mask.mask.clone().cast(dtype), model.mask_token.val())));
    let plain = trunk.embed(x, None);
    // The recording does not say in its names whether the mask was on; one of the two must agree.
    for (block, name) in (0..depth).map(|b| (b, format!("eval/block{b}_patches"))) {
        if !case.has(&name) {
            continue;
        }
        let run = |start: &Tensor<B, 3>| {
            let x = trunk.run(start.clone(), 0..block + 1, None, bias.as_ref(), &DropPath::none());
            let patches = x.dims()[1] - 1;
            x.narrow(1, 1, patches).to_data()
        };
        let expected = floats(case.raw(&name));
        let near = |data: &TensorData| {
            floats(data).iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-2 * b.abs().max(1.0))
        };
        let found = [run(&plain), run(&masked)].into_iter().find(|data| near(data));
        case.check(&name, &found.unwrap_or_else(|| run(&plain)));
    }
    let before_last = trunk.run(plain.clone(), 0..depth - 1, None, bias.as_ref(), &DropPath::none());
    case.check(
        "eval/last_attention",
        &trunk.blocks[depth - 1].attention_weights(before_last.clone(), bias.as_ref()).to_data(),
    );
    if case.has("eval/qkv_q") {
        let x = trunk.run(masked, 0..depth - 1, None, bias.as_ref(), &DropPath::none());
        let block = &trunk.blocks[depth - 1];
        for (name, part) in ["q", "k", "v"].into_iter().zip(block.attn.project(block.norm1.forward(x))) {
            let [batch, tokens, width] = part.dims();
            let heads = case.size("heads");
            let split = part.reshape([batch, tokens, heads, width / heads]).swap_dims(1, 2);
            case.check(&format!("eval/qkv_{name}"), &split.to_data());
        }
    }
}

#[test]
fn golden_b_tokenizer_gives_the_ids() {
    each_case(|| cases_with("B", "input/token_view"), tokenizer_gives_the_ids);
}

fn tokenizer_gives_the_ids(case: &Case) {
    let weights = case.below("tokenizer");
    let shapes = sizes::shapes(&weights);
    let shape = |name: &str, axis: usize| shapes[name][axis];
    let width = shape("encoder.cls_token", 2);
    let config = TokenizerConfig {
        image_size: case.size("img2"),
        patch_size: shape("encoder.patch_embed.proj.weight", 2),
        width,
        depth: sizes::blocks(&shapes, "encoder.blocks"),
        decoder_width: shape("decoder.cls_token", 2),
        decoder_depth: sizes::blocks(&shapes, "decoder.blocks"),
        codebook_size: shape("quantize.embedding.weight", 0),
        code_dim: shape("quantize.embedding.weight", 1),
        teacher_dim: shape("decode_task_layer.2.weight", 0),
        // Ids do not depend on it.
        decoder_heads: 1,
        ..TokenizerConfig::default()
    };
    let wrong = |heads: usize| -> usize {
        let config = TokenizerConfig { heads, ..config.clone() };
        let zeros = VqKd::<Auto>::zeros(&config, &Default::default()).unwrap();
        let other = |name: &str| name.starts_with("teacher_model.") || name.starts_with("scaling_layer.");
        let tokenizer = params::load_strict(zeros, weights.clone(), DType::F32, other).unwrap();
        let wrong = |step: usize| {
            let images: Tensor<Auto, 4> = case.step("input/token_view", step, DType::F32);
            let ids = ints(&tokenizer.ids(tokenizer.preprocess(images)).to_data());
            ids.iter().zip(case.step_ids("input/ids", step)).filter(|(found, id)| *found != id).count()
        };
        (0..case.raw("input/ids").shape[0]).map(wrong).sum()
    };
    // No shape shows the number of heads. Where the manifest does not say it, some divisor of the width must give every
    // id of every image, which no wrong one does by chance.
    let recorded = case.config["tok_heads"].as_u64().map(|heads| heads as usize);
    let candidates = recorded.map_or_else(
        || (1..=width).filter(|heads| width.is_multiple_of(*heads)).collect(),
        |heads| vec![heads],
    );
    if recorded.is_none() {
        println!("{}: the manifest has no tok_heads; tried: {candidates:?}", case.name);
    }
    let (wrong, heads) = candidates.into_iter().map(|heads| (wrong(heads), heads)).min().unwrap();
    println!("{}: {wrong} ids differ with {heads} heads", case.name);
    check(wrong == 0, || format!("{}: {wrong} of the tokenizer's ids differ with {heads} heads", case.name));
}

#[test]
fn golden_b_five_steps() {
    each_case(|| cases_with("B", "traj/loss"), |case| case.in_both_types(five_steps::<Auto>));
}

pub fn five_steps<B: AutodiffBackend>(case: &Case, dtype: DType) {
    let optimizer = train::<B>(case, dtype, Precision::F32, |step, [loss, norm], model| {
        case.check_step("traj/loss", step, loss);
        case.check_step("traj/grad_norm", step, norm);
        case.check_params(step + 1, model);
    });
    let moments = optimizer.export();
    for (name, _) in case.below("adam") {
        case.check(&format!("adam/{name}"), &moments[&name]);
    }
}

/// The recorded steps; `each` sees the loss and the gradient's norm of a step, and the model after it.
pub fn train<B: AutodiffBackend>(
    case: &Case,
    dtype: DType,
    precision: Precision,
    each: impl Fn(usize, [&TensorData; 2], &MimModel<B>),
) -> AdamW<B> {
    let mut model = model::<B>(case, dtype);
    model.set_precision(precision);
    let mut optimizer = AdamW::<B>::new(case.adamw(), GroupRule::flat(case.weight_decay()));
    let (epochs, steps) = (case.size("epochs") as u64, case.size("steps") as u64);
    let decay =
        CosineSchedule::new(case.number("wd"), case.number("wd_end"), epochs * steps, 0, 0.0).unwrap();
    let lr = CosineSchedule::new(
        case.number("lr"),
        case.number("min_lr"),
        epochs * steps,
        case.size("warmup_epochs") as u64 * steps,
        0.0,
    )
    .unwrap();
    let (mut call, rates) = (0, config(case).drop_path_rates());
    for step in 0..steps as usize {
        let at = case.size("start_epoch") as u64 * steps + step as u64;
        let x: Tensor<B, 4> = case.step("input/patch_view", step, dtype);
        let mask = mask(case, step);
        let drop = case.drop_path("traj/droppath_uniform", &rates, &mut call);
        let loss = model.forward_loss(x, &mask, labels(case, step, &mask), &drop);
        let grads = loss.total.backward();
        let norm = grad_norm(&model, &grads).to_data();
        case.check_number("traj/lr", floats(case.raw("traj/lr"))[step], lr.at(at));
        optimizer.set_weight_decay(decay.at(at));
        (model, _) = optimizer.step(model, grads, lr.at(at), case.config["clip_grad"].as_f64());
        each(step, [&loss.total.to_data(), &norm], &model);
    }
    optimizer
}
