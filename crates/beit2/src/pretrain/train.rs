//! Masked image modeling: read top to bottom.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use beit2_data::{Batch, Key, RngStream, Source};
use beit2_kernels::{AutodiffBackend, Backend, Rank};
use burn::module::AutodiffModule;
use burn::tensor::{DType, Int, Tensor};

use super::token_cache::{CacheUse, TokenCache, identity};
use super::{MimModel, PatchMask, PretrainRecipe, masked_labels};
use crate::error::{Error, config_error};
use crate::params;
use crate::pixels;
use crate::tokenizer::VqKd;
use crate::train::{
    AdamW, DataConfig, Env, GroupRule, Item, Outcome, Plan, Prefetch, Saved, ScheduleConfig, Session,
    StepReport, average_gradients, check_precision, per_rank_batch, to_device, training_loader,
};
use crate::vit::{DropPath, with_position_indices};

/// Results of a pass over the validation set.
#[derive(Debug, Clone, PartialEq)]
pub struct MimEvaluation {
    /// Cross entropy of each branch.
    pub loss: Vec<f64>,
    /// Share of masked patches predicted, of each branch.
    pub accuracy: Vec<f64>,
}

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
    recipe.validate()?;
    check_precision::<B>(recipe.precision, device)?;
    let source = env.assets.source(&recipe.data.train)?;
    let val = recipe.data.val.as_deref().map(|spec| env.assets.source(spec)).transpose()?;
    let (tokenizer_config, mut tokenizer) = recipe.tokenizer.open::<B::InnerBackend>(env.assets, device)?;
    tokenizer.set_precision(recipe.precision);
    // Of the weights, which a frozen tokenizer does not have any more.
    let identity = recipe
        .tokenizer
        .cache
        .is_some()
        .then(|| identity(&tokenizer_config, &tokenizer, recipe.precision, device));
    let tokenizer = tokenizer.freeze_encoder();
    let (codes, grid) = (tokenizer_config.codebook_size, tokenizer_config.grid());
    if codes != recipe.model.vocab_size {
        return config_error(format!(
            "model.vocab_size is {}, but the tokenizer has {codes} codes",
            recipe.model.vocab_size
        ));
    }
    if grid != recipe.model.vit.grid() {
        return config_error(format!(
            "the tokenizer gives {grid}×{grid} tokens, the model has {0}×{0} patches; both grids must agree",
            recipe.model.vit.grid()
        ));
    }
    let plan = Plan::new(&recipe.schedule, &recipe.optimizer, source.len())?;
    let rank = env.rank.clone();
    let per_rank = per_rank_batch(recipe.schedule.batch_size, 1, &rank)?;

    // ---- model, optimiser, run ----------------------------------------------------------------
    let mut model = MimModel::<B>::new(&recipe.model, recipe.seed, device)?;
    model.set_precision(recipe.precision);
    let mut optimizer =
        AdamW::<B>::new(recipe.optimizer.adamw(), GroupRule::flat(recipe.optimizer.weight_decay));
    let rates = recipe.model.drop_path_rates();
    let drops = recipe.model.vit.drop_path > 0.0;
    let summary = vec![
        (
            "model".into(),
            format!(
                "{} trained parameters, {} blocks of width {}",
                params::count(&model),
                recipe.model.vit.depth,
                recipe.model.vit.width
            ),
        ),
        ("masked".into(), format!("{} of {} patches", recipe.mask.patches, recipe.model.vit.patches())),
        ("images".into(), source.len().to_string()),
        ("schedule".into(), format!("{} steps of {} images", plan.total_steps, recipe.schedule.batch_size)),
    ];
    let (mut session, resumed) =
        Session::open(env, "pretrain", recipe, recipe.logging.clone(), plan.clone(), summary)?;
    if let Some(resumed) = resumed {
        let derived = |name: &str| name.ends_with("relative_position_index");
        model = params::load_strict(model, resumed.model, DType::F32, derived)?;
        optimizer.import(resumed.optimizer, resumed.state.step, device)?;
    }
    let metadata = BTreeMap::from([
        ("format".to_owned(), "pt".to_owned()),
        ("beit2.stage".to_owned(), "pretrain".to_owned()),
        ("beit2.config".to_owned(), serde_json::to_string(&recipe.model).unwrap_or_default()),
    ]);

    // ---- steps --------------------------------------------------------------------------------
    if session.is_complete() {
        return session.finish();
    }
    let mut cache = match (&recipe.tokenizer.cache, identity) {
        (Some(folder), Some(identity)) => {
            Some(TokenCache::open(Path::new(folder), &identity, codes, recipe.seed)?)
        }
        _ => None,
    };
    let loader = training_loader(
        source,
        &recipe.data,
        &recipe.schedule,
        recipe.views(tokenizer_config.image_size),
        Some(recipe.block_mask()),
        recipe.seed,
        session.state.data,
        &rank,
    )?;
    let (frozen, patches, at) = (tokenizer.clone(), recipe.model.vit.patches(), device.clone());
    let prepared = Prefetch::new(session.timed_batches(loader), move |batch: Batch<Item>| {
        let views = to_device::<B::InnerBackend>(&batch.items, &at)?;
        let inputs = targets(views, &batch.items, patches, |images, mask| {
            let x = frozen.preprocess(images);
            match &mut cache {
                // Kept for masks to come as well.
                Some(cache) => masked_labels(cache.ids(&batch, patches, &at, || frozen.ids(x)), mask),
                None => frozen.ids_at(x, mask.masked_tokens()),
            }
        });
        Ok((inputs, batch, cache.as_mut().map(TokenCache::used).unwrap_or_default()))
    });
    let mut cached = CacheUse::default();
    for prepared in session.timed_inputs(prepared) {
        let ((x, labels, mask), batch, used) = prepared?;
        cached = used;
        if let Some(problem) = cached.problem.take() {
            session.warn(problem);
        }
        session.note_batch(&batch);
        let step = session.state.step;
        let lr = plan.lr.at(step);
        let drop = if drops {
            let key =
                Key { seed: recipe.seed, epoch: batch.epoch, index: batch.step, stream: RngStream::DropPath };
            let whole = DropPath::sample(&rates, per_rank * rank.world(), &mut key.rng(), device);
            whole.narrow(per_rank * rank.index(), per_rank)
        } else {
            DropPath::none()
        };
        let mask = mask.record::<B>();
        let logits = model.forward(Tensor::from_inner(x), &mask, &drop);
        let loss = MimModel::loss(logits, Tensor::from_inner(labels));
        let grads = average_gradients(&model, loss.total.backward(), &rank);
        optimizer.set_weight_decay(plan.weight_decay.at(step));
        let norm;
        (model, norm) = optimizer.step(model, grads, lr, recipe.optimizer.clip_grad);
        let mut scalars = vec![("loss", loss.total.inner())];
        // The plain model has one branch and the reference's shorter names.
        let names: [(&str, &str); 2] = match loss.branches.len() {
            1 => [("mim_loss", "mim_acc"), ("", "")],
            _ => [("loss_1", "mim_acc_1"), ("loss_2", "mim_acc_2")],
        };
        for ((branch, accuracy), (loss_name, acc_name)) in
            loss.branches.into_iter().zip(loss.accuracy).zip(names)
        {
            scalars.push((loss_name, branch.inner()));
            scalars.push((acc_name, accuracy.inner()));
        }
        scalars.push(("grad_norm", norm));
        let known = vec![("lr", lr), ("weight_decay", plan.weight_decay.at(step))];
        session.step_done(&batch, StepReport { scalars, known })?;

        let mut best = false;

        // ---- epoch's end ----------------------------------------------------------------------
        if batch.last_in_epoch || session.is_complete() {
            let mut extra = Vec::new();
            if let Some(val) = val.as_ref().filter(|_| session.should_evaluate(batch.epoch)) {
                let result = evaluate(&model.valid(), &tokenizer, val.clone(), recipe, device)?;
                let total = result.loss.iter().sum();
                best = session.update_best(total);
                extra.push(("val_loss", total));
                let names: [(&str, &str); 2] = match result.loss.len() {
                    1 => [("val_mim_loss", "val_mim_acc"), ("", "")],
                    _ => [("val_loss_1", "val_mim_acc_1"), ("val_loss_2", "val_mim_acc_2")],
                };
                for ((loss, accuracy), (loss_name, acc_name)) in
                    result.loss.iter().zip(&result.accuracy).zip(names)
                {
                    extra.extend([(loss_name, *loss), (acc_name, *accuracy)]);
                }
            }
            session.epoch_done(batch.epoch, &extra)?;
        }
        if best || session.should_save(batch.last_in_epoch) {
            let state = || Saved {
                model: with_position_indices(params::export(&model)),
                optimizer: optimizer.export(),
                averages: None,
            };
            session.save(state, &metadata, best)?;
        }
        if session.should_stop() {
            break;
        }
    }
    if let Some(folder) = recipe.tokenizer.cache.as_ref().filter(|_| cached.lookups > 0) {
        let (hits, lookups) = (cached.hits, cached.lookups);
        session.note(format!("{hits} of {lookups} batches had their ids in {folder}"));
    }
    session.finish()
}

/// What a step learns from, nothing of which takes gradients.
pub type Inputs<I> = (Tensor<I, 4>, Tensor<I, 1, Int>, PatchMask<I>);

/// Standardised images, target token ids and masks of a batch for a model of `patches` patches.
///
/// # Errors
/// Images of different sizes.
pub fn inputs<I: Backend>(
    tokenizer: &VqKd<I>,
    items: &[Item],
    patches: usize,
    device: &I::Device,
) -> Result<Inputs<I>, Error> {
    let views = to_device::<I>(items, device)?;
    Ok(targets(views, items, patches, |images, mask| {
        tokenizer.ids_at(tokenizer.preprocess(images), mask.masked_tokens())
    }))
}

/// [`inputs`] of views `[B, 3, H, W]` in [0, 1] (the tokenizer's second, if it has its own) with the ids `[B·M]` that
/// `labels` gives for the tokenizer's.
pub fn targets<I: Backend>(
    (images, token): (Tensor<I, 4>, Option<Tensor<I, 4>>),
    items: &[Item],
    patches: usize,
    labels: impl FnOnce(Tensor<I, 4>, &PatchMask<I>) -> Tensor<I, 1, Int>,
) -> Inputs<I> {
    let indices: Vec<u32> = items.iter().flat_map(|item| item.masked.iter().copied()).collect();
    let mask = PatchMask::new(&indices, items.len(), patches, &images.device());
    let labels = labels(token.unwrap_or_else(|| images.clone()), &mask);
    (pixels::standardise(images, pixels::IMAGENET_MEAN, pixels::IMAGENET_STD), labels, mask)
}

/// Images of a batch in an evaluation.
const EVALUATION_BATCH: usize = 256;

/// Loss and accuracy over the validation set under masks that do not depend on the run, through the training
/// transform without colours and flips, so that metrics compare between runs and epochs. Each image
/// once, but for the few that equal batches leave over.
///
/// # Errors
/// Images that cannot be read.
pub fn evaluate<I: Backend>(
    model: &MimModel<I>,
    tokenizer: &VqKd<I>,
    source: Arc<dyn Source>,
    recipe: &PretrainRecipe,
    device: &I::Device,
) -> Result<MimEvaluation, Error> {
    let images = source.len();
    let batches = images.div_ceil(EVALUATION_BATCH.min(recipe.schedule.batch_size)).max(1);
    let schedule = ScheduleConfig { batch_size: images / batches, ..recipe.schedule.clone() };
    let data = DataConfig { min_side_px: 0, ..recipe.data.clone() };
    let token_px = tokenizer_px(tokenizer, recipe);
    let mut views = recipe.views(token_px);
    (views.color_jitter, views.hflip, views.min_crop_scale) = (0.0, 0.0, 0.8);
    let (mask, start) = (Some(recipe.block_mask()), Default::default());
    let loader = training_loader(source, &data, &schedule, views, mask, 0, start, &Rank::alone())?;
    let (mut losses, mut accuracies, mut count) = (Vec::new(), Vec::new(), 0.0);
    for batch in loader.take(batches) {
        let (x, labels, mask) = inputs(tokenizer, &batch?.items, recipe.model.vit.patches(), device)?;
        let loss = MimModel::loss(model.forward(x, &mask, &DropPath::none()), labels);
        losses.resize(loss.branches.len(), 0.0);
        accuracies.resize(loss.branches.len(), 0.0);
        let number =
            |t: Tensor<I, 1>| t.into_data().convert::<f64>().into_vec::<f64>().unwrap_or_default()[0];
        losses.iter_mut().zip(loss.branches).for_each(|(sum, value)| *sum += number(value));
        accuracies.iter_mut().zip(loss.accuracy).for_each(|(sum, value)| *sum += number(value));
        count += 1.0;
    }
    losses.iter_mut().chain(&mut accuracies).for_each(|sum| *sum /= count);
    Ok(MimEvaluation { loss: losses, accuracy: accuracies })
}

fn tokenizer_px<I: Backend>(tokenizer: &VqKd<I>, recipe: &PretrainRecipe) -> usize {
    tokenizer.encoder.trunk.patch_embed.proj.weight.dims()[2] * recipe.model.vit.grid()
}
