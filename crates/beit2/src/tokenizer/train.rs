//! Training the tokenizer: read top to bottom.

use std::collections::BTreeMap;

use beit2_data::{EvalConfig, Key, RngStream};
use beit2_kernels::{AutodiffBackend, Backend, Rank};
use burn::module::AutodiffModule;
use burn::tensor::{DType, Tensor, TensorData};
use rand::RngExt;

use super::teachers::Teacher;
use super::vqkd::preprocess;
use super::{CodeUsage, CodebookHealth, TokenizerRecipe, VqKd, draw_start, kmeans};
use crate::error::{Error, config_error};
use crate::params;
use crate::pixels;
use crate::train::{
    AdamW, DataPosition, Env, GroupRule, Outcome, Plan, Prefetch, Saved, Session, StepReport,
    average_gradients, check_precision, evaluation_loader, per_rank_batch, to_device, training_loader,
};
use crate::weights::Tensors;

/// Rounds of k-means, as the reference.
const KMEANS_ROUNDS: usize = 10;

/// Results of a pass over the validation set.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenizerEvaluation {
    /// Mean of 1 − cos to the teacher.
    pub rec_loss: f64,
    /// Mean commitment loss.
    pub commitment_loss: f64,
    /// Uses of the codes.
    pub usage: CodeUsage,
}

/// Trains a tokenizer, or continues the run in `env.dir`.
///
/// # Errors
/// Settings, images or weights that do not fit; a run directory that cannot be used; a loss that is
/// not finite. The last checkpoint stays usable.
pub fn train<B: AutodiffBackend>(
    recipe: &TokenizerRecipe,
    env: Env<'_>,
    device: &B::Device,
) -> Result<Outcome, Error> {
    // ---- inputs -------------------------------------------------------------------------------
    recipe.validate()?;
    check_precision::<B>(recipe.precision, device)?;
    let source = env.assets.source(&recipe.data.train)?;
    let val = recipe.data.val.as_deref().map(|spec| env.assets.source(spec)).transpose()?;
    let teacher = load_teacher::<B::InnerBackend>(recipe, &env, device)?;
    let teacher_px = recipe.model.grid() * teacher.patch_size();
    let plan = Plan::new(&recipe.schedule, &recipe.optimizer, source.len())?;
    let rank = env.rank.clone();
    per_rank_batch(recipe.schedule.batch_size, 1, &rank)?;
    let warmup = recipe.codebook.kmeans_warmup_steps;
    if warmup >= plan.total_steps {
        return config_error(format!(
            "codebook.kmeans_warmup_steps {warmup} leaves no steps with a codebook in a run of {}",
            plan.total_steps
        ));
    }

    // ---- model, optimiser, run ----------------------------------------------------------------
    let mut model = VqKd::<B>::new(&recipe.model, recipe.seed, device)?;
    model.set_precision(recipe.precision);
    let mut optimizer =
        AdamW::<B>::new(recipe.optimizer.adamw(), GroupRule::flat(recipe.optimizer.weight_decay));
    let summary = vec![
        (
            "model".into(),
            format!(
                "VQ-KD, {} trained parameters, {} codes of {} values",
                params::count(&model),
                recipe.model.codebook_size,
                recipe.model.code_dim
            ),
        ),
        ("images".into(), source.len().to_string()),
        ("schedule".into(), format!("{} steps of {} images", plan.total_steps, recipe.schedule.batch_size)),
    ];
    let (mut session, resumed) =
        Session::open(env, "tokenizer", recipe, recipe.logging.clone(), plan.clone(), summary)?;
    let mut epoch_bins = Tensor::<B::InnerBackend, 1>::zeros([recipe.model.codebook_size], device);
    if let Some(mut resumed) = resumed {
        if let Some(bins) = resumed.optimizer.remove("epoch_bins") {
            epoch_bins = Tensor::from_data(bins, device);
        }
        model = params::load_strict(model, resumed.model, DType::F32, |_| false)?;
        optimizer.import(resumed.optimizer, resumed.state.step, device)?;
    }
    let metadata = BTreeMap::from([
        ("format".to_owned(), "pt".to_owned()),
        ("beit2.stage".to_owned(), "tokenizer".to_owned()),
        ("beit2.config".to_owned(), serde_json::to_string(&recipe.model).unwrap_or_default()),
    ]);
    let views = recipe.views(teacher_px);
    let loader_at = |start: DataPosition, rank: &Rank| {
        let (data, schedule) = (&recipe.data, &recipe.schedule);
        training_loader(source.clone(), data, schedule, views, None, recipe.seed, start, rank)
    };

    // ---- steps --------------------------------------------------------------------------------
    if session.is_complete() {
        return session.finish();
    }
    let (frozen, at) = (teacher.clone(), device.clone());
    let process_type = recipe.model.process_type;
    let prepared =
        Prefetch::new(session.timed_batches(loader_at(session.state.data, &rank)?), move |batch| {
            let (images, second) = to_device::<B::InnerBackend>(&batch.items, &at)?;
            let x = preprocess(images, process_type);
            let target = frozen.forward(second.map_or_else(|| x.clone(), pixels::to_signed));
            Ok((x, target, batch))
        });
    for prepared in session.timed_inputs(prepared) {
        let (x, target, batch) = prepared?;
        let (x, target) = (Tensor::from_inner(x), Tensor::from_inner(target));
        session.note_batch(&batch);
        let step = session.state.step;
        let lr = plan.lr.at(step);
        if batch.step == 0 {
            // The reference starts its usage statistics anew in every epoch.
            model.quantize = model.quantize.reset_usage();
        }

        let quantizes = step >= warmup;
        if quantizes && step == warmup && !model.quantize.is_initialised() {
            // Once, by the leader, over whole batches.
            let found = match rank.leads() {
                true => {
                    let whole = loader_at(session.state.data, &Rank::alone())?;
                    Some(start_codebook(&model, recipe, whole, plan.steps_per_epoch, device)?)
                }
                false => None,
            };
            let (means, members) = rank.broadcast(found)?;
            let (means, members) = (Tensor::from_data(means, device), Tensor::from_data(members, device));
            model.quantize = model.quantize.set_codes(means, members);
        }
        let (loss, rec, quantized) = if quantizes {
            let loss = model.forward(x, target);
            (loss.total, loss.rec, Some(loss.quantized))
        } else {
            let (loss, _) = model.forward_unquantized(x, target);
            (loss.clone(), loss, None)
        };
        let grads = loss.backward();
        let mut scalars = vec![("loss", loss.inner()), ("rec_loss", rec.inner())];
        if let Some(quantized) = &quantized {
            scalars.push(("commitment_loss", quantized.commitment_loss.clone().inner()));
            let (bins, sums) = model.quantize.statistics(quantized);
            let (bins, sums) = (rank.sum(bins), rank.sum(sums));
            epoch_bins = epoch_bins + bins.clone().inner();
            model.quantize = model.quantize.update_from(bins.clone(), sums);
            if let Some(limit) = recipe.codebook.revive_after_steps {
                let key = Key {
                    seed: recipe.seed,
                    epoch: batch.epoch,
                    index: batch.step,
                    stream: RngStream::CodeRevival,
                };
                model = revive(model, quantized, bins, limit, &mut session.state.unused_for, key, &rank);
            }
        }
        optimizer.set_weight_decay(plan.weight_decay.at(step));
        let grads = average_gradients(&model, grads, &rank);
        let norm;
        (model, norm) = optimizer.step(model, grads, lr, recipe.optimizer.clip_grad);
        scalars.push(("grad_norm", norm));
        session.step_done(&batch, StepReport { scalars, known: vec![("lr", lr)] })?;

        let mut best = false;

        // ---- epoch's end ----------------------------------------------------------------------
        if batch.last_in_epoch || session.is_complete() {
            let health = health_of(epoch_bins);
            epoch_bins = Tensor::zeros([recipe.model.codebook_size], device);
            let mut extra = Vec::new();
            // An epoch of the warm-up has no codes to judge.
            if health.tokens > 0 {
                extra.extend([
                    ("codebook_usage", health.usage()),
                    ("codebook_perplexity", health.perplexity),
                    ("codebook_dead", health.dead() as f64),
                ]);
            }
            if let Some(val) = val.as_ref().filter(|_| quantizes && session.should_evaluate(batch.epoch)) {
                let result = evaluate(&model.valid(), &teacher, val.clone(), recipe, device)?;
                let health = result.usage.health();
                let total = result.rec_loss + result.commitment_loss;
                best = session.update_best(total);
                extra.extend([
                    ("val_loss", total),
                    ("val_rec_loss", result.rec_loss),
                    ("val_commitment_loss", result.commitment_loss),
                    ("val_codebook_usage", health.usage()),
                    ("val_codebook_perplexity", health.perplexity),
                ]);
            }
            if quantizes
                && session.leads()
                && let Some(warning) = health.warning()
            {
                session.warn(warning);
            }
            session.epoch_done(batch.epoch, &extra)?;
        }
        if best || session.should_save(batch.last_in_epoch) {
            let state = || {
                let mut optimizer: Tensors = optimizer.export();
                optimizer.insert("epoch_bins".into(), epoch_bins.to_data());
                Saved { model: params::export(&model), optimizer, averages: None }
            };
            session.save(state, &metadata, best)?;
        }
        if session.should_stop() {
            break;
        }
    }
    session.finish()
}

fn load_teacher<B: Backend>(
    recipe: &TokenizerRecipe,
    env: &Env<'_>,
    device: &B::Device,
) -> Result<Teacher<B>, Error> {
    if recipe.teacher.weights.is_empty() {
        return config_error("teacher.weights is empty; name the teacher's safetensors or .pth file");
    }
    let file = env.assets.weights(&recipe.teacher.weights)?;
    let mut teacher = Teacher::from_file(&recipe.teacher, file, DType::F32, device)?;
    teacher.set_precision(recipe.precision);
    if teacher.dim() != recipe.model.teacher_dim {
        return config_error(format!(
            "model.teacher_dim is {}, but the teacher's features have {} values",
            recipe.model.teacher_dim,
            teacher.dim()
        ));
    }
    Ok(teacher.freeze())
}

/// k-means over the encoder's vectors of as many batches as it needs: the codes and their members. The batches are read by a loader
/// of their own from the run's position, so the run itself is not moved and can be repeated exactly.
fn start_codebook<B: AutodiffBackend>(
    model: &VqKd<B>,
    recipe: &TokenizerRecipe,
    loader: beit2_data::Loader<crate::train::Item>,
    steps_per_epoch: u64,
    device: &B::Device,
) -> Result<(TensorData, TensorData), Error> {
    let encoder = model.valid();
    let wanted = recipe.model.codebook_size * recipe.codebook.kmeans_rows_per_code.max(1);
    let mut rows = Vec::new();
    let mut count = 0;
    // More than an epoch would only repeat the same images.
    for batch in loader.take(steps_per_epoch as usize) {
        let (images, _) = to_device::<B::InnerBackend>(&batch?.items, device)?;
        let z = encoder.encode(encoder.preprocess(images));
        let [size, patches, width] = z.dims();
        count += size * patches;
        rows.push(super::quantizer::normalise(z.reshape([size * patches, width])));
        if count >= wanted {
            break;
        }
    }
    let mut rng = crate::init::generator(recipe.seed, "k-means");
    let start = draw_start(count, recipe.model.codebook_size, &mut rng);
    let found = kmeans(Tensor::cat(rows, 0), &start, KMEANS_ROUNDS);
    Ok((found.means.into_data(), found.members.into_data()))
}

/// Replaces codes that were not used for `limit` steps, this one with its uses `bins` included, by random vectors of the
/// batch.
fn revive<B: AutodiffBackend>(
    mut model: VqKd<B>,
    quantized: &super::Quantized<B>,
    bins: Tensor<B, 1>,
    limit: u32,
    unused_for: &mut Vec<u32>,
    key: Key,
    rank: &Rank,
) -> VqKd<B> {
    let bins = bins.into_data().convert::<f32>();
    let bins = bins.into_vec::<f32>().unwrap_or_default();
    unused_for.resize(bins.len(), 0);
    for (unused, bin) in unused_for.iter_mut().zip(&bins) {
        *unused = if *bin > 0.0 { 0 } else { *unused + 1 };
    }
    let dead: Vec<u32> =
        (0..).zip(unused_for.iter()).filter(|(_, n)| **n >= limit).map(|(code, _)| code).collect();
    if dead.is_empty() {
        return model;
    }
    let own = quantized.z.dims()[0] as i32;
    let first = own * rank.index() as i32;
    let mut rng = key.rng();
    // Rows of the whole batch; each rank gives those that it has, and 0 for the others.
    let picks = dead.iter().map(|_| rng.random_range(0..own * rank.world() as i32) - first);
    let (picks, has): (Vec<i32>, Vec<f32>) =
        picks.map(|pick| if (0..own).contains(&pick) { (pick, 1.0) } else { (0, 0.0) }).unzip();
    let device = quantized.z.device();
    let picks = Tensor::from_data(TensorData::new(picks, [dead.len()]), &device);
    let has = Tensor::<B, 2>::from_data(TensorData::new(has, [dead.len(), 1]), &device);
    dead.iter().for_each(|&code| unused_for[code as usize] = 0);
    let rows = rank.sum(quantized.z.clone().select(0, picks) * has);
    model.quantize = model.quantize.replace_codes(&dead, rows);
    model
}

fn health_of<I: Backend>(bins: Tensor<I, 1>) -> CodebookHealth {
    let bins = bins.into_data().convert::<f32>().into_vec::<f32>().unwrap_or_default();
    let mut usage = CodeUsage::new(bins.len());
    usage.add_counts(bins.iter().map(|&count| count as u64));
    usage.health()
}

/// Losses and code uses over the validation set (resize and centre crop, each image once).
///
/// # Errors
/// Images that cannot be read.
pub fn evaluate<I: Backend>(
    model: &VqKd<I>,
    teacher: &Teacher<I>,
    source: std::sync::Arc<dyn beit2_data::Source>,
    recipe: &TokenizerRecipe,
    device: &I::Device,
) -> Result<TokenizerEvaluation, Error> {
    let size = recipe.model.image_size.max(recipe.model.grid() * teacher.patch_size());
    let mut usage = CodeUsage::new(recipe.model.codebook_size);
    let (mut rec, mut commitment, mut seen) = (0.0, 0.0, 0.0);
    for batch in
        evaluation_loader(source, &recipe.data, recipe.schedule.batch_size, EvalConfig::of_size(size as u32))?
    {
        let (images, _) = to_device::<I>(&batch?.items, device)?;
        let weight = images.dims()[0] as f64;
        let resized = |px: usize| crate::pixels::resize(images.clone(), px, px);
        let x = model.preprocess(resized(recipe.model.image_size));
        let target = match recipe.model.grid() * teacher.patch_size() {
            px if px == recipe.model.image_size => teacher.forward(x.clone()),
            px => teacher.forward(pixels::to_signed(resized(px))),
        };
        let loss = model.forward(x, target);
        let number =
            |t: Tensor<I, 1>| t.into_data().convert::<f64>().into_vec::<f64>().unwrap_or_default()[0];
        rec += weight * number(loss.rec);
        commitment += weight * number(loss.quantized.commitment_loss);
        seen += weight;
        let ids = loss.quantized.ids.into_data().convert::<i64>().into_vec::<i64>().unwrap_or_default();
        usage.add(ids.into_iter().map(|id| id as usize));
    }
    Ok(TokenizerEvaluation { rec_loss: rec / seen, commitment_loss: commitment / seen, usage })
}
