//! Suite A: the tokenizer's forward, losses, gradients, codebook updates and five training steps.

use beit2::params;
use beit2::tokenizer::teachers::{Activation, Teacher, TeacherConfig, TeacherKind};
use beit2::tokenizer::{ProcessType, TokenizerConfig, VqKd, kmeans};
use beit2::train::{AdamW, GroupRule, grad_norm};
use beit2_kernels::AutodiffBackend;
use burn::tensor::{DType, Tensor};

use super::case::TIE;
use super::checks::{equal, skip};
use super::folder::{Auto, Case, cases_with, each_case, floats, ints};

fn config(case: &Case) -> TokenizerConfig {
    TokenizerConfig {
        image_size: case.size("img"),
        patch_size: case.size("patch"),
        in_chans: 3,
        width: case.size("width"),
        depth: case.size("depth"),
        heads: case.size("heads"),
        decoder_width: case.size("dec_width"),
        decoder_depth: case.size("dec_depth"),
        decoder_heads: case.size("dec_heads"),
        codebook_size: case.size("n_code"),
        code_dim: case.size("code_dim"),
        teacher_dim: case.size("out_dim"),
        ema_decay: case.number("decay"),
        commitment_weight: case.number_or("beta", TokenizerConfig::default().commitment_weight),
        kmeans_init: case.flag("kmeans"),
        process_type: match case.config["process_type"].as_str().unwrap() {
            "default" => ProcessType::Default,
            "imagenet_norm" => ProcessType::ImagenetNorm,
            "dall-e" => ProcessType::DallE,
            other => panic!("{}: process_type {other}", case.name),
        },
    }
}

pub fn model<B: AutodiffBackend>(case: &Case, dtype: DType) -> VqKd<B> {
    let zeros = VqKd::zeros(&config(case), &Default::default()).unwrap();
    let other = |name: &str| name.starts_with("teacher_model.") || name.starts_with("scaling_layer.");
    params::load_strict(zeros, case.below("weight"), dtype, other).unwrap()
}

pub fn teacher<B: AutodiffBackend>(case: &Case, dtype: DType) -> Teacher<B> {
    let (kind, activation) = match case.config["teacher"].as_str().unwrap() {
        "clip" => (TeacherKind::Clip, Some(Activation::QuickGelu)),
        "dino" => (TeacherKind::Dino, None),
        other => panic!("{}: teacher {other}", case.name),
    };
    let weights = case.below("weight").into_iter();
    let weights =
        weights.filter_map(|(n, t)| Some((n.strip_prefix("teacher_model.")?.to_owned(), t))).collect();
    let (kind, heads) = (Some(kind), Some(case.size("t_heads")));
    let config = TeacherConfig { kind, heads, activation, ..TeacherConfig::default() };
    Teacher::from_tensors(&config, weights, dtype, &Default::default()).unwrap()
}

#[test]
fn golden_a_quantizer() {
    each_case(
        || cases_with("A", "call0/z"),
        |case| {
            case.in_both_types(|case, dtype| {
                let (codes, code_dim) = (case.size("n_code"), case.size("code_dim"));
                let options = TokenizerConfig {
                    codebook_size: codes,
                    code_dim,
                    ema_decay: case.number("decay"),
                    commitment_weight: case.number_or("beta", TokenizerConfig::default().commitment_weight),
                    kmeans_init: false,
                    ..TokenizerConfig::default()
                };
                let mut quantizer =
                    beit2::tokenizer::Quantizer::<Auto>::new(&options, 0, &Default::default());
                let start = case.tensor::<Auto, 2>("weight/embedding.weight", dtype);
                let zeros = Tensor::zeros([codes], (&Default::default(), dtype));
                quantizer.cluster_size =
                    burn::module::Param::from_tensor(zeros.clone()).set_require_grad(false);
                quantizer = quantizer.set_codes(start, zeros);
                for (call, mode) in case.config["modes"].as_array().unwrap().iter().enumerate() {
                    let name = |part: &str| format!("call{call}/{part}");
                    let z = case.tensor::<Auto, 4>(&name("z"), dtype).require_grad();
                    let [b, c, h, w] = z.dims();
                    let rows = z.clone().permute([0, 2, 3, 1]).reshape([b * h * w, c]);
                    let result = quantizer.forward(rows);
                    let image = result.codes.clone().reshape([b, h, w, c]).permute([0, 3, 1, 2]);
                    let weights = case.tensor::<Auto, 4>(&name("w"), dtype);
                    let grads = (result.commitment_loss.clone() + (image.clone() * weights).sum()).backward();
                    case.check_ids(&name("ids"), &ints(&result.ids.to_data()), None);
                    case.check(&name("z_q"), &image.to_data());
                    case.check(&name("loss"), &result.commitment_loss.to_data());
                    case.check(&name("grad_z"), &z.grad(&grads).unwrap().to_data());
                    quantizer = match mode.as_str().unwrap() {
                        "train" => quantizer.update(&result),
                        _ => {
                            let bins = quantizer.bins(&result.ids);
                            quantizer.count_usage(bins)
                        }
                    };
                    case.check(&name("codebook"), &quantizer.codebook().to_data());
                    case.check(&name("cluster_size"), &quantizer.cluster_size.val().to_data());
                }
            });
        },
    );
}

pub fn image_step<B: AutodiffBackend>(case: &Case, step: usize, dtype: DType) -> Tensor<B, 4> {
    match case.raw("input/images").shape.len() {
        4 => case.tensor("input/images", dtype),
        _ => case.step("input/images", step, dtype),
    }
}

#[test]
fn golden_a_forward_and_gradients() {
    each_case(|| cases_with("A", "eval/z"), |case| case.in_both_types(forward_and_gradients::<Auto>));
}

pub fn forward_and_gradients<B: AutodiffBackend>(case: &Case, dtype: DType) {
    let mut model = model::<B>(case, dtype);
    let teacher = teacher(case, dtype);
    let x = model.preprocess(image_step(case, 0, dtype));
    if case.has("kmeans/rows") {
        let rows = case.tensor::<B, 2>("kmeans/rows", dtype);
        let start: Vec<i32> = ints(case.raw("kmeans/draw")).iter().map(|&i| i as i32).collect();
        let start = start[..case.size("n_code")].to_vec();
        // The reference's own number of rounds, which it offers no option for.
        let rounds = case.number_or("kmeans_iters", 10.0) as usize;
        let found = kmeans(rows, &start, rounds);
        case.check("kmeans/codebook", &found.means.to_data());
        case.check("kmeans/cluster_size", &found.members.to_data());
        model.quantize = model.quantize.set_codes(found.means, found.members);
        assert!(model.quantize.is_initialised());
    }
    let margins = case.has("eval/id_margin").then(|| floats(case.raw("eval/id_margin")));
    let exact_ids = margins.as_ref().is_none_or(|margins| margins.iter().all(|&margin| margin >= TIE));
    if !exact_ids {
        skip(format!("{}: ids that are ties, and counts of them", case.name));
    }
    case.check("eval/preprocessed", &x.to_data());
    case.check("eval/teacher_scaled", &teacher.scale(x.clone()).to_data());
    let target = teacher.forward(x.clone());
    case.check("eval/teacher_target", &target.to_data());
    case.check(
        "eval/encoder_tokens",
        &model.encoder.patch_tokens(x.clone(), &beit2::vit::DropPath::none()).to_data(),
    );
    let z = model.encode(x.clone());
    case.check("eval/z", &z.to_data());
    let loss = model.forward(x.clone(), target.clone());
    let ids = ints(&model.ids(x.clone()).to_data());
    case.check_ids("eval/ids", &ids, margins.as_deref());
    let [batch, patches, dim] = z.dims();
    let side = patches.isqrt();
    let image = loss.quantized.codes.clone().reshape([batch, side, side, dim]).permute([0, 3, 1, 2]);
    case.check("eval/z_q", &image.to_data());
    case.check("eval/quant_loss", &loss.quantized.commitment_loss.to_data());
    case.check("eval/rec", &loss.decoded.to_data());
    case.check("eval/loss", &loss.total.to_data());
    if case.has("eval/encoder_pos_embed_resized") {
        let pos = model.encoder.trunk.pos_embed.as_ref().unwrap().val();
        let resized = beit2::vit::resize_pos_embed(pos, side, side, beit2::vit::PosResize::ByPaddedScale);
        case.check("eval/encoder_pos_embed_resized", &resized.to_data());
    }
    if !case.has("train/loss") {
        return;
    }
    case.check("eval/log_rec_loss", &loss.rec.to_data());
    if exact_ids {
        let bins = model.quantize.bins(&loss.quantized.ids);
        model.quantize = model.quantize.count_usage(bins.clone());
        case.check("eval/cluster_size_after_encode", &model.quantize.cluster_size.val().to_data());
        // The recording zeroed the counter before its forward call.
        model.quantize = model.quantize.reset_usage().count_usage(bins);
        case.check("eval/cluster_size_after_forward", &model.quantize.cluster_size.val().to_data());
    }
    let loss = model.forward(x, target);
    case.check("train/loss", &loss.total.to_data());
    let grads = loss.total.backward();
    case.check_gradients(beit2::train::gradients(&model, &grads));
    if exact_ids {
        model.quantize = model.quantize.reset_usage().update(&loss.quantized);
        case.check("train/codebook_after", &model.quantize.codebook().to_data());
        case.check("train/cluster_size_after", &model.quantize.cluster_size.val().to_data());
    }
}

#[test]
fn golden_a_five_steps() {
    each_case(|| cases_with("A", "traj/loss"), |case| case.in_both_types(five_steps::<Auto>));
}

pub fn five_steps<B: AutodiffBackend>(case: &Case, dtype: DType) {
    let mut model = model::<B>(case, dtype);
    if case.has("kmeans/codebook") {
        let codes = case.tensor("kmeans/codebook", dtype);
        let members = case.tensor("kmeans/cluster_size", dtype);
        model.quantize = model.quantize.set_codes(codes, members);
    }
    model.quantize = model.quantize.reset_usage();
    let teacher = teacher(case, dtype);
    let mut optimizer = AdamW::<B>::new(case.adamw(), GroupRule::flat(case.weight_decay()));
    let clip = case.config["clip_grad"].as_f64();
    for step in 0..case.size("steps") {
        let x = model.preprocess(case.step("input/images", step, dtype));
        let target = teacher.forward(x.clone());
        let loss = model.forward(x.clone(), target);
        case.check_step("traj/loss", step, &loss.total.to_data());
        case.check_step("traj/rec_loss", step, &loss.rec.to_data());
        case.check_step("traj/quant_loss", step, &loss.quantized.commitment_loss.to_data());
        let (expected, found) = (case.step_ids("traj/ids", step), ints(&loss.quantized.ids.to_data()));
        let margins = margins(&model, x);
        if !case.compare_ids("traj/ids", &expected, &found, Some(&margins)) {
            return skip(format!("{}: what follows a different id, from step {step} on", case.name));
        }
        let grads = loss.total.backward();
        case.check_step("traj/grad_norm", step, &grad_norm(&model, &grads).to_data());
        let lr = floats(case.raw("traj/lr"))[step];
        model.quantize = model.quantize.update(&loss.quantized);
        (model, _) = optimizer.step(model, grads, lr, clip);
        case.check_step("traj/codebook", step, &model.quantize.codebook().to_data());
        case.check_step("traj/cluster_size", step, &model.quantize.cluster_size.val().to_data());
        case.check_params(step + 1, &model);
    }
    evaluate(case, model, &teacher, dtype);
}

/// By how much the nearest code of each row of an image is nearer than the second.
fn margins<B: AutodiffBackend>(model: &VqKd<B>, x: Tensor<B, 4>) -> Vec<f64> {
    let z = model.encode(x);
    let [batch, patches, dim] = z.dims();
    let z = z.reshape([batch * patches, dim]);
    let lengths = z.clone().powi_scalar(2).sum_dim(1).sqrt();
    let similarities = (z / lengths).matmul(model.quantize.codebook().transpose());
    let (best, _) = similarities.topk_with_indices(2, 1);
    floats(&best.to_data()).chunks(2).map(|best| best[0] - best[1]).collect()
}

/// The reference's evaluation after training: usage counted from zero over all batches.
fn evaluate<B: AutodiffBackend>(case: &Case, mut model: VqKd<B>, teacher: &Teacher<B>, dtype: DType) {
    model.quantize = model.quantize.reset_usage();
    let steps = case.size("steps");
    let mut sums = [0.0; 3];
    let mut usage = beit2::tokenizer::CodeUsage::new(case.size("n_code"));
    for step in 0..steps {
        let x = model.preprocess(case.step("input/images", step, dtype));
        let loss = model.forward(x.clone(), teacher.forward(x.clone()));
        for (sum, value) in sums.iter_mut().zip([&loss.total, &loss.rec, &loss.quantized.commitment_loss]) {
            *sum += floats(&value.to_data())[0] / steps as f64;
        }
        let ids = ints(&loss.quantized.ids.to_data());
        let all = floats(case.raw("usage/tokens"));
        let expected: Vec<i64> =
            all[step * ids.len()..(step + 1) * ids.len()].iter().map(|&v| v as i64).collect();
        if !case.compare_ids("usage/tokens", &expected, &ids, Some(&margins(&model, x))) {
            return skip(format!("{}: counts and losses of different ids", case.name));
        }
        usage.add(ids.iter().map(|&id| id as usize));
        let bins = model.quantize.bins(&loss.quantized.ids);
        model.quantize = model.quantize.count_usage(bins);
    }
    for (name, found) in ["total_loss", "rec_loss", "quant_loss"].into_iter().zip(sums) {
        case.check_number(name, case.meta["evaluate_stats"][name].as_f64().unwrap(), found);
    }
    case.check("evaluate/cluster_size", &model.quantize.cluster_size.val().to_data());
    let counts: Vec<i64> = usage.counts().iter().map(|&c| c as i64).collect();
    case.check_ids("usage/counts", &counts, None);
    let dead = usage.health().dead() as u64;
    equal(
        &format!("{}: codes never used", case.name),
        &dead,
        &case.meta["usage_never_used"].as_u64().unwrap(),
    );
}
