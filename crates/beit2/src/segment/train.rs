//! Training a segmentation model: read top to bottom.

use std::sync::Arc;

use beit2_data::classes::Target;
use beit2_data::segment::SegmentTrainView;
use beit2_data::{Batch, Key, RngStream, Source};
use beit2_kernels::AutodiffBackend;
use beit2_run::atomic::write_bytes_atomic;
use beit2_run::report::Examples;
use beit2_run::{StopFlag, thousands};
use beit2_weights::plan::Plan as LoadPlan;
use beit2_weights::resize::TableResize;
use burn::module::AutodiffModule;
use burn::tensor::{DType, Tensor};

use super::batches::{inputs, training_loader};
use super::{
    EXAMPLES, HeadDropout, Predictor, SegmentRecipe, UperNet, drawn, evaluate, load_backbone, pixel_losses,
    segmented,
};
use crate::cost;
use crate::error::Error;
use crate::params;
use crate::train::{
    AdamW, Env, Learned, Outcome, Plan, PolySchedule, Saved, Session, StepReport, average_gradients,
    check_precision, learn, mean_of,
};
use crate::vit::{DropPath, drop_path_rates, is_position_index, with_position_indices};
use crate::weights::{StateFile, checkpoint_metadata};

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
    let masks = recipe.masks.options(recipe.data.decode_options());
    let source = env.assets.segment_source(&recipe.data.train, &masks)?;
    let val = recipe.data.val.as_deref().map(|spec| env.assets.segment_source(spec, &masks)).transpose()?;
    let target =
        Target { owner: &recipe.data.train, count: source.class_names().len(), names: source.class_names() };
    let spec = recipe.data.val.as_deref().unwrap_or_default();
    let val = val
        .map(|val| val.numbered_by(spec, target).map(Arc::new))
        .transpose()
        .map_err(|error| Error::Config(error.to_string()))?;
    let plan = Plan::new(&recipe.schedule, &recipe.optimizer, source.len())?;
    let rank = env.rank.clone();
    let division = recipe.schedule.division(rank.world(), 1)?;
    let (micro_batches, micro_batch) = (division.micro_batches, division.micro_batch());
    let peak = recipe.optimizer.peak_lr(recipe.schedule.batch_size);
    let warmup = recipe.schedule.warmup_over(plan.steps_per_epoch);
    let lr_schedule = PolySchedule::new(peak, 0.0, 1.0, plan.total_steps, warmup, WARMUP_RATIO)?;
    let (config, vit, classes) = (&recipe.model, &recipe.model.vit, recipe.model.class_count());

    // ---- model, optimiser, run ----------------------------------------------------------------
    let mut model = UperNet::<B>::zeros(config, device)?.initialise(config, recipe.seed);
    let mut init = "from scratch".to_owned();
    if !recipe.is_from_scratch() {
        let spec = &recipe.init.weights;
        let state = StateFile::new(env.assets.weights(spec)?, spec)?;
        let plan;
        (model, plan) = load_backbone(model, config, state, TableResize::Spline)?;
        init = describe(&plan);
    }
    model.set_precision(recipe.precision);
    let mut optimizer = AdamW::<B>::new(recipe.optimizer.adamw(), recipe.group_rule());
    let parameters = thousands(params::count(&model) as u64);
    let (depth, width) = (vit.depth, vit.width);
    let sizes =
        format!("{parameters} trained parameters, {depth} blocks of width {width}, {classes} classes");
    let mut summary = vec![("model".into(), sizes), ("init".into(), init)];
    summary.extend(division.summary());
    summary.extend(recipe.train.summary());
    let (mut session, resumed) =
        Session::open(env, "segment", recipe, recipe.logging.clone(), plan, summary)?;
    if let Some(resumed) = resumed {
        model = params::load_strict(model, resumed.model, DType::F32, is_position_index)?;
        optimizer.import(resumed.optimizer, resumed.state.step, device)?;
    }
    let mut metadata = checkpoint_metadata("segment", config)?;
    metadata.insert("beit2.infer".into(), serde_json::to_string(&recipe.infer).unwrap_or_default());
    let drop_path_rates = drop_path_rates(vit.drop_path, vit.depth);
    let saved = |model: &UperNet<B>, optimizer: &AdamW<B>| Saved {
        model: with_position_indices(params::export(model)),
        optimizer: optimizer.export(),
        averages: None,
    };

    if let Some(val) = &val {
        session.expect_evaluations(recipe.eval.every, val.len());
    }

    // ---- steps --------------------------------------------------------------------------------
    if session.is_complete() {
        return session.finish();
    }
    // Micro-batches are numbered through the run and the ranks. What is dropped depends on the number, so it is the same on
    // however many devices.
    let first = (micro_batches * rank.index()) as u64;
    let per_step = (micro_batches * rank.world()) as u64;
    // Images and labels of a step, made one batch ahead on a thread of their own.
    let batches = session.timed_batches(training_loader(&source, recipe, session.state.data, &rank)?);
    let (normalization, inputs_device) = (vit.normalization.clone(), device.clone());
    session.expect(cost::segment(recipe).flops_per_image, recipe.train);
    let prefetch = session.prefetch(batches, move |batch: Batch<SegmentTrainView>| {
        let mut inputs_of_step = Vec::new();
        for items in batch.items.chunks(micro_batch) {
            let statistics = normalization.as_ref();
            inputs_of_step.push(inputs::<B::InnerBackend>(items, classes, statistics, &inputs_device)?);
        }
        Ok((batch, inputs_of_step))
    });
    let exchanging = division.exchanging(&rank);
    for prepared in session.timed_inputs(prefetch) {
        let (batch, inputs_of_step) = prepared?;
        let step = session.state.step;
        let lr = lr_schedule.at(step);
        let before = model.clone();
        let work = || {
            learn(before, inputs_of_step, (&exchanging, recipe.train), |model, number, (x, labels)| {
                let number = step * per_step + first + number as u64;
                let (seed, epoch) = (recipe.seed, batch.epoch);
                let key = Key { seed, epoch, index: number, stream: RngStream::DropPath };
                let drop = DropPath::sample(&drop_path_rates, micro_batch, &mut key.rng(), device);
                // The ranks' graphs must be alike: norms exchange gradients in the order in which a backward pass meets
                // them, and a branch that no rank computes would change it on one rank only.
                let drop = if rank.world() > 1 { drop.multiplied() } else { drop };
                let key = Key { seed, epoch, index: number, stream: RngStream::HeadDropout };
                let dropout = HeadDropout::sample(config, micro_batch, &mut key.rng(), device);
                let logits = model.forward_train(Tensor::from_inner(x), &drop, &dropout, &rank)?;
                let losses = pixel_losses(&logits, Tensor::from_inner(labels), config.aux_weight);
                let metrics =
                    (losses.total.clone().inner(), losses.decode.inner(), losses.decode_acc.inner());
                Ok((losses.total, (metrics, logits.statistics)))
            })
        };
        // Ranks exchange statistics inside a step, and one that is cut off would leave the others waiting.
        let learned = session.learn(rank.world() > 1, work)?;
        let Some(Learned { model: learned, grads, results }) = learned else { break };
        model = learned;
        let (mut totals, mut decoded, mut right) = (Vec::new(), Vec::new(), Vec::new());
        for ((total, decode, accuracy), statistics) in results {
            totals.push(total);
            decoded.push(decode);
            right.push(accuracy);
            model = model.record(&statistics)?;
        }
        session.note_batch(&batch);
        let grads = average_gradients(&model, grads, &rank)?;
        let grad_norm;
        (model, grad_norm) = optimizer.step(model, grads, lr, recipe.optimizer.clip_grad);
        let scalars = vec![
            ("loss", mean_of(totals)),
            ("decode_loss", mean_of(decoded)),
            ("pixel_acc", mean_of(right)),
            ("grad_norm", grad_norm),
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
                session.evaluation_begins();
                let trained = model.valid();
                let predictor = Predictor::new(&trained, config, &recipe.infer)?;
                // It ends even when the run is about to stop: the record belongs to this step.
                let (stop, workers) = (StopFlag::default(), recipe.data.workers);
                let found = evaluate(&predictor, val, workers, EXAMPLES, session.observer(), &stop)?;
                let scores = found.confusion.scores();
                let palette = config.colours();
                let images = found.examples.iter().map(|example| drawn(example, &palette)).collect();
                let examples = Examples {
                    step: done,
                    seen: recipe.data.seen(val.len() as u64, val.len()),
                    segmented: Some(segmented(config, &scores, images)),
                    ..Examples::default()
                };
                if !session.is_rehearsal() {
                    if let Err(error) = examples.save(session.dir()) {
                        session.warn(format!("the images for the report were not kept: {error}"));
                    }
                    let table = session.dir().join("per_class.csv");
                    write_bytes_atomic(&table, scores.csv(&config.class_names).as_bytes())?;
                }
                extra = vec![("val_miou", scores.miou), ("val_macc", scores.macc), ("val_aacc", scores.aacc)];
                // Sessions keep the lowest value.
                best = session.update_best(-scores.miou);
            }
            session.epoch_done(batch.epoch, &extra)?;
        } else if batch.last_in_epoch && recipe.eval.every.is_none() {
            session.epoch_done(batch.epoch, &[])?;
        }
        if best || session.should_save(batch.last_in_epoch) {
            session.save(|| saved(&model, &optimizer), &metadata, best)?;
        }
        if session.should_stop() {
            break;
        }
    }
    session.close(|| saved(&model, &optimizer), &metadata)?;
    session.finish()
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
