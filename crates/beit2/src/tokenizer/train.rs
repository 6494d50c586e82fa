//! Training the tokenizer: read top to bottom.

use beit2_data::{Batch, Key, RngStream};
use beit2_kernels::{AutodiffBackend, Backend, Rank};
use beit2_run::thousands;
use burn::module::AutodiffModule;
use burn::tensor::{DType, Int, Tensor};

use super::codebook::{health_of, initial_codes, revive_codes};
use super::inputs::Inputs;
use super::teachers::Teacher;
use super::{Quantized, TokenizerRecipe, VqKd, evaluate, load_plan};
use crate::cost;
use crate::error::{Error, config_error};
use crate::monitor::{Monitor, Tokens};
use crate::params;
use crate::train::{
    AdamW, DataPosition, Env, GroupRule, Item, Learned, Outcome, Plan, Saved, Session, StepReport,
    TrainingData, average_gradients, check_precision, learn, mean_of,
};
use crate::vit::DropPath;
use crate::weights::{Tensors, checkpoint_metadata, to_tensors};

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
    let mut recipe = recipe.clone();
    recipe.resolve(env.assets)?;
    let recipe = &recipe;
    recipe.validate()?;
    check_precision::<B>(recipe.precision, device)?;
    let source = env.assets.source(&recipe.data.train)?;
    let val = recipe.data.val.as_deref().map(|spec| env.assets.source(spec)).transpose()?;
    let teacher = load_teacher::<B::InnerBackend>(recipe, &env, device)?;
    let step_operations = cost::tokenizer_flops(&recipe.model, &teacher.cost(recipe.model.grid()));
    let plan = Plan::new(&recipe.schedule, &recipe.optimizer, source.epoch_len())?.in_run(&env, recipe)?;
    let rank = env.rank.clone();
    let division = recipe.schedule.division(rank.world(), 1)?;
    let micro_batch = division.micro_batch();
    recipe.check_steps(plan.total_steps)?;
    let warmup = recipe.codebook.kmeans_warmup_steps;
    let config = recipe.data.of_channels(recipe.model.in_chans);
    let data = TrainingData {
        source,
        config: &config,
        batch_size: recipe.schedule.batch_size,
        views: recipe.views(recipe.model.grid() * teacher.patch_size()),
        mask: None,
        seed: recipe.seed,
    };

    // ---- model, optimiser, run ----------------------------------------------------------------
    let mut model = VqKd::<B>::with_std(&recipe.model, recipe.init.std, recipe.seed, device)?;
    model.set_precision(recipe.precision);
    let rule = GroupRule::flat(recipe.optimizer.weight_decay);
    let mut optimizer = AdamW::<B>::new(recipe.optimizer.adamw(), rule);
    let (codes, code_dim) = (recipe.model.codebook_size, recipe.model.code_dim);
    let parameters = thousands(params::count(&model) as u64);
    let sizes = format!("VQ-KD, {parameters} trained parameters, {codes} codes of {code_dim} values");
    let mut monitor =
        Monitor::open(&recipe.monitor, &config, env.assets, &plan, recipe.model.image_size, codes)?;
    let mut summary = vec![("model".into(), sizes)];
    if recipe.targets.whiten {
        summary.push(("targets".into(), "the teacher's features, whitened".into()));
    }
    summary.extend(division.summary());
    summary.extend(recipe.train.summary());
    summary.extend(monitor.as_ref().map(Monitor::summary));
    if let Some(plan) = load_plan(recipe, &model, env.assets)? {
        summary.push(("init".into(), plan.summary()));
        (model, _) = params::load(model, to_tensors(plan.tensors), DType::F32)?;
    }
    let (mut session, resumed) =
        Session::open(env, "tokenizer", recipe, recipe.logging.clone(), plan.clone(), summary)?;
    let mut epoch_bins = Tensor::<B::InnerBackend, 1>::zeros([codes], device);
    if let Some(mut resumed) = resumed {
        if let Some(bins) = resumed.optimizer.remove("epoch_bins") {
            epoch_bins = Tensor::from_data(bins, device);
        }
        model = params::load_strict(model, resumed.model, DType::F32, |_| false)?;
        optimizer.import(resumed.optimizer, resumed.state.step, device)?;
    }
    let metadata = checkpoint_metadata("tokenizer", &recipe.model)?;
    let saved = |model: &VqKd<B>, optimizer: &AdamW<B>, epoch_bins: &Tensor<B::InnerBackend, 1>| {
        let mut optimizer: Tensors = optimizer.export();
        optimizer.insert("epoch_bins".into(), epoch_bins.to_data());
        Saved { model: params::export(model), optimizer, averages: None }
    };

    session.follow(recipe.monitor.followed()?);
    if let Some(val) = &val {
        session.expect_evaluations(session.steps_between_evaluations(), val.len());
    }

    // ---- steps --------------------------------------------------------------------------------
    if session.is_complete() {
        return session.finish();
    }
    if let Some(monitor) = &mut monitor {
        let started = model.valid().freeze_encoder();
        if !monitor.begin(&mut session, &|images| encoded(&started, images, false), device)? {
            return session.finish();
        }
    }
    let inputs = |teacher| Inputs::new(teacher, model.patch_spec(), recipe, device);
    let teacher = if recipe.targets.whiten {
        // On every rank the same.
        let first = data.loader(DataPosition::default(), &Rank::alone())?;
        let sizes = (plan.steps_per_epoch, data.batch_size / division.micro_batches);
        let see = inputs(teacher.clone().freeze());
        let Some(moments) = session.unless_stopped(|| see.moments(first, sizes))? else {
            return session.finish();
        };
        teacher.whitened(&moments)?
    } else {
        teacher
    };
    let teacher = teacher.freeze();
    let frozen = inputs(teacher.clone());
    session.expect(step_operations, recipe.train);
    // The frozen half of a step, which runs one batch ahead on a thread of its own. It gives the inputs of each micro-batch.
    let batches = session.timed_batches(data.loader(session.state.data, &rank)?);
    let prefetch = session.prefetch(batches, move |batch: Batch<Item>| {
        let inputs: Result<Vec<_>, Error> =
            batch.items.chunks(micro_batch).map(|items| frozen.of(items)).collect();
        Ok((batch, inputs?))
    });
    let exchanging = division.exchanging(&rank);
    for prepared in session.timed_inputs(prefetch) {
        let (batch, inputs) = prepared?;
        let step = session.state.step;
        let lr = plan.lr.at(step);
        let quantizes = step >= warmup;
        let (before, position) = (model.clone(), session.state.data);
        let work = || {
            let mut model = before;
            if batch.step == 0 {
                // The reference starts its usage statistics anew in every epoch.
                model.quantize = model.quantize.reset_usage();
            }
            if quantizes && step == warmup && !model.quantize.is_initialised() {
                // The leader alone, over whole batches. More than an epoch would only repeat the same images.
                let found = if rank.leads() {
                    let whole = data.loader(position, &Rank::alone())?;
                    let sizes = (plan.steps_per_epoch, data.batch_size / division.micro_batches);
                    Some(initial_codes(&model, recipe, whole, sizes, device)?)
                } else {
                    None
                };
                let (means, members) = rank.broadcast(found)?;
                let (means, members) = (Tensor::from_data(means, device), Tensor::from_data(members, device));
                model.quantize = model.quantize.set_codes(means, members);
            }
            // All micro-batches meet the same codes, which move after the last one.
            learn(model, inputs, (&exchanging, recipe.train), |model, _, (x, target)| {
                let (x, target) = (x.record(), Tensor::from_inner(target));
                let (loss, rec_loss, quantized) = if quantizes {
                    let loss = model.forward(x, target);
                    let Quantized { ids, z, commitment_loss, .. } = loss.quantized;
                    (loss.total, loss.rec, Some((ids, z, commitment_loss.inner())))
                } else {
                    let (loss, _) = model.forward_unquantized(x, target);
                    (loss.clone(), loss, None)
                };
                Ok((loss.clone(), ([loss.inner(), rec_loss.inner()], quantized)))
            })
        };
        // The other ranks wait for the leader's codes, and must not wait for ever.
        let waits_for_codes = rank.world() > 1 && step == warmup;
        let learned = session.learn(waits_for_codes || exchanging.overlaps::<B::InnerBackend>(), work)?;
        let Some(Learned { model: started, grads, results }) = learned else { break };
        model = started;
        session.note_batch(&batch);
        let (losses, quantized): (Vec<_>, Vec<_>) = results.into_iter().unzip();
        let (losses, rec_losses): (Vec<_>, Vec<_>) = losses.into_iter().map(<(_, _)>::from).unzip();
        let mut scalars = vec![("loss", mean_of(losses)), ("rec_loss", mean_of(rec_losses))];
        if let Some((ids, z, commitment_loss)) = joined(quantized) {
            scalars.push(("commitment_loss", commitment_loss));
            let (bins, sums) = model.quantize.statistics(ids, z.clone());
            let (bins, sums) = (rank.sum(bins), rank.sum(sums));
            epoch_bins = epoch_bins + bins.clone().inner();
            model.quantize = model.quantize.update_from(bins.clone(), sums);
            if let Some(limit) = recipe.codebook.revive_after_steps {
                let (seed, epoch, stream) = (recipe.seed, batch.epoch, RngStream::CodeRevival);
                let key = Key { seed, epoch, index: batch.step, stream };
                let unused_for = &mut session.state.unused_for;
                model = revive_codes(model, &z, bins, limit, unused_for, key, &rank);
            }
        }
        optimizer.set_weight_decay(plan.weight_decay.at(step));
        let grads = average_gradients(&model, grads, &rank)?;
        let grad_norm;
        (model, grad_norm) = optimizer.step(model, grads, lr, recipe.optimizer.clip_grad);
        scalars.push(("grad_norm", grad_norm));
        session.step_done(&batch, StepReport { scalars, known: vec![("lr", lr)] })?;

        // ---- epoch's end ----------------------------------------------------------------------
        let mut best = false;
        if batch.last_in_epoch || session.is_complete() {
            let health = health_of(epoch_bins);
            epoch_bins = Tensor::zeros([codes], device);
            let mut extra = Vec::new();
            // An epoch of the warm-up uses no codes.
            if health.tokens > 0 {
                extra.extend([
                    ("codebook_usage", health.usage()),
                    ("codebook_perplexity", health.perplexity),
                    ("codebook_dead", health.dead() as f64),
                ]);
            }
            if let Some(val) = val.as_ref().filter(|_| quantizes && session.should_evaluate(batch.epoch)) {
                session.evaluation_begins();
                let found = evaluate(&model.valid(), &teacher, val.clone(), recipe, device)?;
                found.left_out.iter().for_each(|sentence| session.warn(sentence));
                let health = found.usage.health();
                let total = found.rec_loss + found.commitment_loss;
                extra.extend([
                    ("val_loss", total),
                    ("val_rec_loss", found.rec_loss),
                    ("val_commitment_loss", found.commitment_loss),
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
            if let Some(monitor) = &mut monitor {
                let trained = model.valid().freeze_encoder();
                let see = |images| encoded(&trained, images, quantizes);
                extra.extend(monitor.after_epoch(batch.epoch, &mut session, &see, device)?);
            }
            best = session.judge(&extra);
            session.epoch_done(batch.epoch, &extra)?;
        }
        if best || session.should_save(batch.last_in_epoch) {
            session.save(|| saved(&model, &optimizer, &epoch_bins), &metadata, best)?;
        }
        if session.should_stop() {
            break;
        }
    }
    session.close(|| saved(&model, &optimizer, &epoch_bins), &metadata)?;
    session.finish()
}

/// What the codebook learns from in a step: ids `[n]` and normalised vectors `[n, C]` of all micro-batches, and the mean of their
/// commitment losses. `None` without a codebook.
#[allow(clippy::type_complexity)] // three tensors
fn joined<B: AutodiffBackend>(
    parts: Vec<Option<(Tensor<B, 1, Int>, Tensor<B, 2>, Tensor<B::InnerBackend, 1>)>>,
) -> Option<(Tensor<B, 1, Int>, Tensor<B, 2>, Tensor<B::InnerBackend, 1>)> {
    let parts: Vec<_> = parts.into_iter().collect::<Option<_>>()?;
    match <[_; 1]>::try_from(parts) {
        Ok([all]) => Some(all),
        Err(parts) => {
            let (mut ids, mut vectors, mut losses) = (Vec::new(), Vec::new(), Vec::new());
            for (of_part, z, loss) in parts {
                ids.push(of_part);
                vectors.push(z);
                losses.push(loss);
            }
            Some((Tensor::cat(ids, 0), Tensor::cat(vectors, 0), mean_of(losses)))
        }
    }
}

/// The encoder's tokens of images in [0, 1], and their codes once there is a codebook.
fn encoded<I: Backend>(model: &VqKd<I>, images: Tensor<I, 4>, quantizes: bool) -> Tokens<I> {
    let x = model.preprocess(images);
    let ids = quantizes.then(|| model.ids(x.clone()));
    Tokens { tokens: model.encoder.tokens(x, &DropPath::none()), ids }
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
    let dim = teacher.dim();
    if dim != recipe.model.teacher_dim {
        return config_error(format!(
            "model.teacher_dim is {}, but the features of the teacher {} have {dim} values; set model.teacher_dim={dim}",
            recipe.model.teacher_dim, recipe.teacher.weights,
        ));
    }
    Ok(teacher)
}
