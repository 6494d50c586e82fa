//! Training a segmentation model: read top to bottom.

use std::path::Path;

use beit2_data::segment::SegmentTrainView;
use beit2_data::{Batch, Key, RngStream, Source};
use beit2_kernels::AutodiffBackend;
use beit2_run::StopFlag;
use beit2_run::atomic::write_bytes_atomic;
use beit2_run::report::{RgbImage, png};
use beit2_weights::plan::Plan as LoadPlan;
use beit2_weights::resize::TableResize;
use burn::module::AutodiffModule;
use burn::tensor::{DType, Tensor};

use super::batches::{inputs, training_loader};
use super::{
    HeadDropout, Predictor, SegmentRecipe, UperNet, compared, evaluate, load_backbone, pixel_losses,
};
use crate::error::{Error, config_error};
use crate::params;
use crate::train::{
    AdamW, Env, GradientSum, Outcome, Plan, PolySchedule, Prefetch, Saved, Session, StepReport,
    average_gradients, check_precision, per_rank_batch,
};
use crate::vit::{DropPath, drop_path_rates, with_position_indices};
use crate::weights::{StateFile, checkpoint_metadata};

/// Folder of a run with validation images, their masks and the newest predictions, for the report.
pub const EXAMPLES: &str = "examples";

/// Images that it holds.
const SHOWN: usize = 6;

/// The learning rate of the first step, as a share of what it would be without warm-up.
const WARMUP_RATIO: f64 = 1e-6;

/// Trains a segmentation model, or continues the run in `env.dir`.
///
/// # Errors
/// Settings, images, masks or weights that do not fit; a run directory that cannot be used; a loss that is not
/// finite. The last checkpoint stays usable.
pub fn train<B: AutodiffBackend>(
    recipe: &SegmentRecipe,
    env: Env<'_>,
    device: &B::Device,
) -> Result<Outcome, Error> {
    // ---- inputs -------------------------------------------------------------------------------
    let mut recipe = recipe.clone();
    recipe.resolve(env.assets)?;
    recipe.validate()?;
    check_precision::<B>(recipe.precision, device)?;
    let recipe = &recipe;
    let masks = recipe.masks.options();
    let source = env.assets.segment_source(&recipe.data.train, &masks)?;
    let val = recipe.data.val.as_deref().map(|spec| env.assets.segment_source(spec, &masks)).transpose()?;
    if let Some(val) = &val
        && val.class_names() != source.class_names()
    {
        return config_error(format!(
            "{} and {} have different lists of classes; both need the same in the same order",
            recipe.data.train,
            recipe.data.val.as_deref().unwrap_or_default()
        ));
    }
    let plan = Plan::new(&recipe.schedule, &recipe.optimizer, source.len())?;
    let rank = env.rank.clone();
    let micro_batches = recipe.grad_accum_steps;
    let per_rank = per_rank_batch(recipe.schedule.batch_size, micro_batches, &rank)?;
    let peak = recipe.optimizer.peak_lr(recipe.schedule.batch_size);
    let warmup = recipe.schedule.warmup_over(plan.steps_per_epoch);
    let lr = PolySchedule::new(peak, 0.0, 1.0, plan.total_steps, warmup, WARMUP_RATIO)?;
    let config = &recipe.model;

    // ---- model, optimiser, run ----------------------------------------------------------------
    let mut model = UperNet::<B>::zeros(config, device)?.initialise(config, recipe.seed);
    let mut loaded = None;
    if !recipe.is_from_scratch() {
        let spec = &recipe.init.weights;
        let state = StateFile::new(env.assets.weights(spec)?, spec)?;
        let plan;
        (model, plan) = load_backbone(model, config, state, TableResize::Spline)?;
        loaded = Some(describe(&plan));
    }
    model.set_precision(recipe.precision);
    let mut optimizer = AdamW::<B>::new(recipe.optimizer.adamw(), recipe.group_rule());
    let rates = drop_path_rates(config.vit.drop_path, config.vit.depth);
    let mut summary = vec![
        (
            "model".into(),
            format!(
                "{} trained parameters, {} blocks of width {}, {} classes",
                params::count(&model),
                config.vit.depth,
                config.vit.width,
                config.class_count()
            ),
        ),
        ("start".into(), loaded.unwrap_or_else(|| "from scratch".into())),
    ];
    if recipe.grad_accum_steps > 1 {
        summary.push(("memory".into(), format!("each step in {} micro-batches", recipe.grad_accum_steps)));
    }
    let (mut session, resumed) =
        Session::open(env, "segment", recipe, recipe.logging.clone(), plan, summary)?;
    if let Some(resumed) = resumed {
        model = params::load_strict(model, resumed.model, DType::F32, |name| {
            name.ends_with("relative_position_index")
        })?;
        optimizer.import(resumed.optimizer, resumed.state.step, device)?;
    }
    let mut metadata = checkpoint_metadata("segment", config)?;
    metadata.insert("beit2.infer".into(), serde_json::to_string(&recipe.infer).unwrap_or_default());

    // ---- steps --------------------------------------------------------------------------------
    if session.is_complete() {
        return session.finish();
    }
    // A micro-batch of the whole batch has the same number, and the same random numbers, on however many devices.
    let micro_batch = per_rank / micro_batches;
    let first = (micro_batches * rank.index()) as u64;
    let all = (micro_batches * rank.world()) as u64;
    let loader = session.timed_batches(training_loader(&source, recipe, session.state.data, &rank)?);
    let (classes, at) = (config.class_count(), device.clone());
    let prepared = Prefetch::new(loader, move |batch: Batch<SegmentTrainView>| {
        let parts =
            batch.items.chunks(micro_batch).map(|items| inputs::<B::InnerBackend>(items, classes, &at));
        Ok((parts.collect::<Result<Vec<_>, _>>()?, batch))
    });
    for prepared in session.timed_inputs(prepared) {
        let (made, batch) = prepared?;
        session.note_batch(&batch);
        let step = session.state.step;
        let lr = lr.at(step);
        let mut sum = GradientSum::<B>::default();
        let (mut totals, mut decoded, mut right) = (Vec::new(), Vec::new(), Vec::new());
        for ((x, labels), at) in made.into_iter().zip(step * all + first..) {
            let key = |stream| Key { seed: recipe.seed, epoch: batch.epoch, index: at, stream };
            let drop = match config.vit.drop_path > 0.0 {
                true => DropPath::sample(&rates, micro_batch, &mut key(RngStream::DropPath).rng(), device),
                false => DropPath::none(),
            };
            // The ranks' graphs must be alike: norms exchange gradients in the order in which a backward pass meets
            // them, and a branch that no rank computes would change it on one rank only.
            let drop = if rank.world() > 1 { drop.multiplied() } else { drop };
            let dropout =
                HeadDropout::sample(config, micro_batch, &mut key(RngStream::HeadDropout).rng(), device);
            model = sum.start(model);
            let logits = model.forward_train(Tensor::from_inner(x), &drop, &dropout, &rank)?;
            let losses = pixel_losses(&logits, Tensor::from_inner(labels), config.aux_weight);
            totals.push(losses.total.clone().inner());
            decoded.push(losses.decode.inner());
            right.push(losses.decode_acc.inner());
            sum.add(&model, losses.total.div_scalar(micro_batches as f64).backward());
            model = model.record(&logits.statistics)?;
        }
        let Some(grads) = sum.finish() else { continue };
        let grads = average_gradients(&model, grads, &rank);
        let norm;
        (model, norm) = optimizer.step(model, grads, lr, recipe.optimizer.clip_grad);
        let mean = |values: Vec<_>| Tensor::cat(values, 0).mean();
        let scalars = vec![
            ("loss", mean(totals)),
            ("decode_loss", mean(decoded)),
            ("pixel_acc", mean(right)),
            ("grad_norm", norm),
        ];
        let known = vec![("lr", lr), ("weight_decay", recipe.optimizer.weight_decay)];
        session.step_done(&batch, StepReport { scalars, known })?;

        // ---- evaluation -----------------------------------------------------------------------
        let done = session.state.step;
        let due = recipe.eval.every.is_some_and(|every| done.is_multiple_of(every));
        let mut best = false;
        if due || session.is_complete() {
            let mut extra = Vec::new();
            if let Some(val) = val.as_ref().filter(|_| session.leads()) {
                let valid = model.valid();
                let predictor = Predictor::new(&valid, config, &recipe.infer)?;
                // It ends even when the run is about to stop: the record belongs to this step.
                let stop = StopFlag::default();
                let workers = recipe.data.workers;
                let examples = session.dir().join(EXAMPLES);
                let palette = config.colours();
                let confusion = evaluate(
                    &predictor,
                    val,
                    workers,
                    session.observer(),
                    &stop,
                    |at, image, mask, found| {
                        if at < SHOWN {
                            let image = compared(image, mask, found, &palette);
                            save_example(&examples, at, &image)?;
                        }
                        Ok(())
                    },
                )?;
                let scores = confusion.scores();
                let table = session.dir().join("per_class.csv");
                write_bytes_atomic(&table, scores.csv(&config.class_names).as_bytes())?;
                extra = vec![("val_miou", scores.miou), ("val_macc", scores.macc), ("val_aacc", scores.aacc)];
                // Sessions keep the lowest value.
                best = session.update_best(-scores.miou);
            }
            session.epoch_done(batch.epoch, &extra)?;
        } else if batch.last_in_epoch && recipe.eval.every.is_none() {
            session.epoch_done(batch.epoch, &[])?;
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
    session.finish()
}

fn save_example(dir: &Path, at: usize, image: &RgbImage) -> Result<(), Error> {
    let Some(png) = png(image) else { return Ok(()) };
    std::fs::create_dir_all(dir).map_err(|source| Error::Io { path: dir.to_owned(), source })?;
    Ok(write_bytes_atomic(&dir.join(format!("{at:02}.png")), &png)?)
}

fn describe(plan: &LoadPlan) -> String {
    let heads = plan.used.keys().any(|name| name.starts_with("decode_head."));
    format!(
        "{} tensors loaded into {}, {} fresh, {} of the file not used",
        plan.used.len(),
        if heads { "backbone and heads" } else { "the backbone" },
        plan.fresh.len(),
        plan.unused.len()
    )
}
