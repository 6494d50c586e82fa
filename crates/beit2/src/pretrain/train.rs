//! Masked image modeling: read top to bottom.

use std::path::Path;

use beit2_data::{Batch, Key, RngStream};
use beit2_kernels::{AutodiffBackend, Backend, PatchSpec, Scaling};
use beit2_run::thousands;
use burn::module::AutodiffModule;
use burn::tensor::{DType, Int, Tensor};

use super::evaluate::mask_of;
use super::token_cache::{CacheUse, TokenCache, identity};
use super::{MimLoss, MimModel, PretrainRecipe, evaluate, load_plan, masked_labels};
use crate::cost;
use crate::error::{Error, config_error};
use crate::monitor::{Monitor, Tokens};
use crate::params;
use crate::pixels;
use crate::tokenizer::TokenizerConfig;
use crate::train::{
    AdamW, Env, GroupRule, Item, Learned, Outcome, Plan, Saved, Session, StepReport, TrainingData,
    average_gradients, check_precision, learn, mean_of, patches_to_device,
};
use crate::vit::{DropPath, VitConfig, is_position_index, with_position_indices};
use crate::weights::{checkpoint_metadata, to_tensors};

/// Pretrains a model, or continues the run in `env.dir`.
///
/// # Errors
/// Settings, images or weights that do not fit; a run directory that cannot be used; a loss that is
/// not finite. The last checkpoint stays usable.
pub fn train<B: AutodiffBackend>(
    recipe: &PretrainRecipe,
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
    let (tokenizer_config, mut tokenizer) = recipe.tokenizer.open::<B::InnerBackend>(env.assets, device)?;
    check_tokenizer(recipe, &tokenizer_config)?;
    tokenizer.set_precision(recipe.precision);
    // Before it is frozen, which packs the weights that identify it.
    let cache = recipe.tokenizer.cache.as_ref();
    let identity = cache.map(|_| identity(&tokenizer_config, &tokenizer, recipe.precision, device));
    let tokenizer = tokenizer.freeze_encoder();
    let plan = Plan::new(&recipe.schedule, &recipe.optimizer, source.epoch_len())?.in_run(&env, recipe)?;
    let rank = env.rank.clone();
    let division = recipe.schedule.division(rank.world(), 1)?;
    let (per_rank, micro_batch) = (division.per_rank, division.micro_batch());
    let config = recipe.data.of_channels(recipe.model.vit.in_chans);
    let data = TrainingData {
        source,
        config: &config,
        batch_size: recipe.schedule.batch_size,
        views: recipe.views(tokenizer_config.image_size),
        mask: Some(recipe.block_mask()),
        seed: recipe.seed,
    };

    // ---- model, optimiser, run ----------------------------------------------------------------
    let vit = &recipe.model.vit;
    let mut model = MimModel::<B>::with_std(&recipe.model, recipe.init.std, recipe.seed, device)?;
    model.set_precision(recipe.precision);
    let rule = GroupRule::flat(recipe.optimizer.weight_decay);
    let mut optimizer = AdamW::<B>::new(recipe.optimizer.adamw(), rule);
    let parameters = thousands(params::count(&model) as u64);
    let sizes = format!("{parameters} trained parameters, {} blocks of width {}", vit.depth, vit.width);
    let masked = format!("{} of {} patches", recipe.mask.patches, vit.patches());
    let (px, codes) = (vit.image_size, tokenizer_config.codebook_size);
    let mut monitor = Monitor::open(&recipe.monitor, &config, env.assets, &plan, px, codes)?;
    let mut summary = vec![("model".into(), sizes), ("masked".into(), masked)];
    summary.extend(division.summary());
    summary.extend(recipe.train.summary());
    summary.extend(monitor.as_ref().map(Monitor::summary));
    if let Some(plan) = load_plan(recipe, &model, env.assets)? {
        summary.push(("init".into(), plan.summary()));
        (model, _) = params::load(model, to_tensors(plan.tensors), DType::F32)?;
    }
    let (mut session, resumed) =
        Session::open(env, "pretrain", recipe, recipe.logging.clone(), plan.clone(), summary)?;
    if let Some(resumed) = resumed {
        model = params::load_strict(model, resumed.model, DType::F32, is_position_index)?;
        optimizer.import(resumed.optimizer, resumed.state.step, device)?;
    }
    let metadata = checkpoint_metadata("pretrain", &recipe.model)?;
    let drop_path_rates = recipe.model.drop_path_rates();
    let saved = |model: &MimModel<B>, optimizer: &AdamW<B>| Saved {
        model: with_position_indices(params::export(model)),
        optimizer: optimizer.export(),
        averages: None,
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
        let started = model.valid().freeze_trunk();
        let px = tokenizer_config.image_size;
        // The tokenizer stays as it is, so what it makes of these images is measured once.
        let see = |images: Tensor<B::InnerBackend, 4>| {
            let of_tokenizer = pixels::resize(images.clone(), px, px);
            let ids = tokenizer.ids(tokenizer.preprocess(of_tokenizer));
            Tokens { ids: Some(ids), ..last_tokens(&started, vit, images) }
        };
        if !monitor.begin(&mut session, &see, device)? {
            return session.finish();
        }
    }
    let mut cache = match (&recipe.tokenizer.cache, identity) {
        (Some(folder), Some(identity)) => {
            Some(TokenCache::open(Path::new(folder), &identity, tokenizer_config.codebook_size, recipe.seed)?)
        }
        _ => None,
    };
    // The frozen half of a step, which runs one batch ahead on a thread of its own. It gives the inputs of each micro-batch.
    let batches = session.timed_batches(data.loader(session.state.data, &rank)?);
    let (frozen, patches, frozen_device) = (tokenizer.clone(), vit.patches(), device.clone());
    let (spec, normalization) = (model.trunk.patch_embed.spec(Scaling::Unit), vit.normalization.clone());
    session.expect(cost::pretrain_flops(&recipe.model, &tokenizer_config, recipe.mask.patches), recipe.train);
    let prefetch = session.prefetch(batches, move |batch: Batch<Item>| {
        let device = &frozen_device;
        let of_model = PatchSpec { scaling: pixels::scaling(normalization.as_ref()), ..spec };
        let (mut seen, mut tokenizer_seen) = (Vec::new(), Vec::new());
        for items in batch.items.chunks(micro_batch) {
            let specs = [of_model, frozen.patch_spec()];
            let [x, tokenizer_x] = patches_to_device::<B::InnerBackend>(items, specs, device)?;
            seen.push((x, mask_of(items, patches, device)));
            tokenizer_seen.push(tokenizer_x);
        }
        let masks = seen.iter().map(|(_, mask)| mask);
        let labels: Vec<_> = match &mut cache {
            // It holds the ids of all patches, so that a run with other masks finds them too.
            Some(cache) => {
                let make = || joined(tokenizer_seen.into_iter().map(|x| frozen.ids(x)).collect());
                let ids = parted(cache.ids(&batch, patches, device, make), micro_batch);
                ids.into_iter().zip(masks).map(|(ids, mask)| masked_labels(ids, mask)).collect()
            }
            None => tokenizer_seen
                .into_iter()
                .zip(masks)
                .map(|(x, mask)| frozen.ids_at(x, mask.masked_tokens()))
                .collect(),
        };
        let cache_use = cache.as_mut().map(TokenCache::used).unwrap_or_default();
        let inputs: Vec<_> = seen.into_iter().zip(labels).collect();
        Ok((batch, inputs, cache_use))
    });
    let exchanging = division.exchanging(&rank);
    let mut cache_use = CacheUse::default();
    for prepared in session.timed_inputs(prefetch) {
        let (batch, inputs, used) = prepared?;
        cache_use = used;
        if let Some(problem) = cache_use.problem.take() {
            session.warn(problem);
        }
        let step = session.state.step;
        let (lr, weight_decay) = (plan.lr.at(step), plan.weight_decay.at(step));

        // Drawn for the whole batch, so that the numbers of ranks and of micro-batches do not change it.
        let key =
            Key { seed: recipe.seed, epoch: batch.epoch, index: batch.step, stream: RngStream::DropPath };
        let drop = DropPath::sample(&drop_path_rates, per_rank * rank.world(), &mut key.rng(), device);
        let drop = drop.narrow(per_rank * rank.index(), per_rank);
        let before = model.clone();
        let learned = session.learn(exchanging.overlaps::<B::InnerBackend>(), || {
            learn(before, inputs, (&exchanging, recipe.train), |model, number, ((x, mask), labels)| {
                let (x, labels) = (x.record(), Tensor::from_inner(labels));
                let drop = drop.clone().narrow(number * micro_batch, micro_batch);
                let loss = model.forward_loss(x, &mask.record::<B>(), labels, &drop);
                Ok((loss.total.clone(), Metrics::of(loss)))
            })
        })?;
        let Some(Learned { model: learned, grads, results }) = learned else { break };
        model = learned;
        session.note_batch(&batch);
        let grads = average_gradients(&model, grads, &rank)?;
        optimizer.set_weight_decay(weight_decay);
        let grad_norm;
        (model, grad_norm) = optimizer.step(model, grads, lr, recipe.optimizer.clip_grad);

        let found = Metrics::mean(results);
        let mut scalars = vec![("loss", found.loss)];
        let names = branch_names(found.branches.len());
        for ((branch, accuracy), names) in found.branches.into_iter().zip(names) {
            scalars.extend([(names.loss, branch), (names.accuracy, accuracy)]);
        }
        scalars.push(("grad_norm", grad_norm));
        let known = vec![("lr", lr), ("weight_decay", weight_decay)];
        session.step_done(&batch, StepReport { scalars, known })?;

        // ---- epoch's end ----------------------------------------------------------------------
        let mut best = false;
        if batch.last_in_epoch || session.is_complete() {
            let mut extra = Vec::new();
            if let Some(val) = val.as_ref().filter(|_| session.should_evaluate(batch.epoch)) {
                session.evaluation_begins();
                let found = evaluate(&model.valid(), &tokenizer, val.clone(), recipe, device)?;
                found.replaced.iter().for_each(|sentence| session.warn(sentence));
                let total = found.loss.iter().sum();
                extra.push(("val_loss", total));
                let names = branch_names(found.loss.len());
                for ((loss, accuracy), names) in found.loss.into_iter().zip(found.accuracy).zip(names) {
                    extra.extend([(names.val_loss, loss), (names.val_accuracy, accuracy)]);
                }
            }
            if let Some(monitor) = &mut monitor {
                let trained = model.valid().freeze_trunk();
                let see = |images| last_tokens(&trained, vit, images);
                extra.extend(monitor.after_epoch(batch.epoch, &mut session, &see, device)?);
            }
            best = session.judge(&extra);
            session.epoch_done(batch.epoch, &extra)?;
        }
        if best || session.should_save(batch.last_in_epoch) {
            session.save(|| saved(&model, &optimizer), &metadata, best)?;
        }
        if session.should_stop() {
            break;
        }
    }
    session.close(|| saved(&model, &optimizer), &metadata)?;
    if let Some(folder) = recipe.tokenizer.cache.as_ref().filter(|_| cache_use.lookups > 0) {
        let CacheUse { hits, lookups, .. } = cache_use;
        session.note(format!("{hits} of {lookups} batches had their ids in {folder}"));
    }
    session.finish()
}

/// What is told of a micro-batch or a step.
struct Metrics<I: Backend> {
    loss: Tensor<I, 1>,
    /// Loss and accuracy of each branch.
    branches: Vec<(Tensor<I, 1>, Tensor<I, 1>)>,
}

impl<I: Backend> Metrics<I> {
    fn of<B: AutodiffBackend<InnerBackend = I>>(loss: MimLoss<B>) -> Self {
        let branches = loss.branches.into_iter().zip(loss.accuracy);
        let branches = branches.map(|(loss, accuracy)| (loss.inner(), accuracy.inner())).collect();
        Self { loss: loss.total.inner(), branches }
    }

    /// Of a step with these micro-batches, of which there is one at least.
    fn mean(of: Vec<Self>) -> Self {
        let branches = (0..of[0].branches.len()).map(|at| {
            let (losses, accuracies): (Vec<_>, Vec<_>) =
                of.iter().map(|part| part.branches[at].clone()).unzip();
            (mean_of(losses), mean_of(accuracies))
        });
        let branches = branches.collect();
        Self { loss: mean_of(of.into_iter().map(|part| part.loss)), branches }
    }
}

/// Ids of micro-batches as those of their batch, `[B, N]`.
fn joined<I: Backend>(parts: Vec<Tensor<I, 2, Int>>) -> Tensor<I, 2, Int> {
    match <[_; 1]>::try_from(parts) {
        Ok([all]) => all,
        Err(parts) => Tensor::cat(parts, 0),
    }
}

/// Ids of a batch `[B, N]` as those of its micro-batches.
fn parted<I: Backend>(ids: Tensor<I, 2, Int>, micro_batch: usize) -> Vec<Tensor<I, 2, Int>> {
    let batch = ids.dims()[0];
    if batch == micro_batch {
        return vec![ids];
    }
    (0..batch).step_by(micro_batch).map(|start| ids.clone().narrow(0, start, micro_batch)).collect()
}

/// The tokens of unmasked images in [0, 1] after the last block, of which `beit2 knn` takes its features.
fn last_tokens<I: Backend>(model: &MimModel<I>, vit: &VitConfig, images: Tensor<I, 4>) -> Tokens<I> {
    let x = pixels::normalise(images, vit.normalization.as_ref());
    Tokens { tokens: model.trunk.tokens_after(x, vit.depth), ids: None }
}

/// The tokenizer must have the codes and the grid that the model predicts.
fn check_tokenizer(recipe: &PretrainRecipe, tokenizer: &TokenizerConfig) -> Result<(), Error> {
    let (codes, vocab_size) = (tokenizer.codebook_size, recipe.model.vocab_size);
    if codes != vocab_size {
        return config_error(format!(
            "model.vocab_size is {vocab_size}, but the tokenizer has {codes} codes"
        ));
    }
    let (found, channels) = (tokenizer.in_chans, recipe.model.vit.in_chans);
    if found != channels {
        return config_error(format!(
            "the tokenizer takes images of {found} channels, and model.vit.in_chans is {channels}; both see the same images"
        ));
    }
    let (found, grid) = (tokenizer.grid(), recipe.model.vit.grid());
    let patch = recipe.model.vit.patch_size;
    if found != grid {
        return config_error(format!(
            "the tokenizer gives {found}×{found} tokens, the model has {grid}×{grid} patches; both grids must agree, so with \
             patches of {patch} px the image size is {}",
            found * patch
        ));
    }
    Ok(())
}

/// Names of a branch's metrics.
struct BranchNames {
    loss: &'static str,
    accuracy: &'static str,
    val_loss: &'static str,
    val_accuracy: &'static str,
}

/// The plain model has one branch and the reference's shorter names.
fn branch_names(branches: usize) -> &'static [BranchNames] {
    const fn names(all: [&'static str; 4]) -> BranchNames {
        let [loss, accuracy, val_loss, val_accuracy] = all;
        BranchNames { loss, accuracy, val_loss, val_accuracy }
    }
    const PLAIN: [BranchNames; 1] = [names(["mim_loss", "mim_acc", "val_mim_loss", "val_mim_acc"])];
    const BOTH: [BranchNames; 2] = [
        names(["loss_1", "mim_acc_1", "val_loss_1", "val_mim_acc_1"]),
        names(["loss_2", "mim_acc_2", "val_loss_2", "val_mim_acc_2"]),
    ];
    if branches == 1 { &PLAIN } else { &BOTH }
}
