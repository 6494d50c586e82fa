//! Fine-tuning a classifier: read top to bottom.

use beit2_data::{Batch, Key, MixParams, RngStream};
use beit2_kernels::AutodiffBackend;
use beit2_run::{StopFlag, thousands};
use beit2_weights::layout::Kind;
use beit2_weights::plan::{Plan as LoadPlan, PlanOptions};
use burn::module::AutodiffModule;
use burn::tensor::{DType, Tensor};

use super::batches::{Item, Labels, inputs, training_loader};
use super::{Ema, FinetuneRecipe, HeadMatch};
use crate::classify::{
    binary_cross_entropy, class_names, evaluate, evaluate_multi_label, soft_cross_entropy,
};
use crate::cost;
use crate::error::Error;
use crate::init::{InitRule, initialise};
use crate::params;
use crate::train::{
    AdamW, Assets, Env, EvaluationData, Event, Learned, Outcome, Plan, Saved, Session, StepReport,
    TrainingItem, average_gradients, check_precision, learn, mean_of,
};
use crate::vit::{
    DropPath, VisionTransformer, drop_path_rates, is_position_index, plan_weights, with_position_indices,
};
use crate::weights::{StateFile, checkpoint_metadata, to_tensors};

impl TrainingItem for Item {
    fn is_upscaled(&self) -> bool {
        self.upscaled
    }
}

/// Fine-tunes a classifier, or continues the run in `env.dir`.
///
/// # Errors
/// Settings, images, classes or weights that do not fit; a run directory that cannot be used; a loss that is not
/// finite. The last checkpoint stays usable.
pub fn train<B: AutodiffBackend>(
    recipe: &FinetuneRecipe,
    env: Env<'_>,
    device: &B::Device,
) -> Result<Outcome, Error> {
    // ---- inputs -------------------------------------------------------------------------------
    let mut recipe = recipe.clone();
    recipe.resolve(env.assets)?;
    recipe.validate()?;
    check_precision::<B>(recipe.precision, device)?;
    let recipe = &recipe;
    let source = env.assets.source(&recipe.data.train)?;
    let val = recipe.validation(env.assets)?;
    if env.rank.leads() {
        for warning in val.iter().flat_map(|val| &val.warnings) {
            env.observer.event(Event::Warning(warning.clone()));
        }
    }
    let val = val.map(|val| val.source);
    let plan = Plan::new(&recipe.schedule, &recipe.optimizer, source.epoch_len())?.in_run(&env, recipe)?;
    let rank = env.rank.clone();
    let division = recipe.division(rank.world())?;
    let (micro_batches, micro_batch) = (division.micro_batches, division.micro_batch());
    let mut config = recipe.model.clone();
    config.class_names = source.classes().to_vec();
    let multi_label = config.multi_label;

    // ---- model, optimiser, run ----------------------------------------------------------------
    let (vit, classes) = (&config.vit, config.class_count());
    let mut model = VisionTransformer::<B>::new(vit, config.pooling, classes, device);
    let rule = InitRule::Finetune { head_scale: recipe.init.head_scale, gamma: vit.layer_scale_init };
    model = initialise(model, rule, recipe.seed);
    model.set_precision(recipe.precision);
    let mut init = vec![("init".to_owned(), "from scratch".to_owned())];
    if !recipe.is_from_scratch() {
        let Loading { plan, head } = load_plan(recipe, source.classes(), env.assets)?;
        init = vec![("init".to_owned(), describe(&plan))];
        let mut tensors = to_tensors(plan.tensors);
        if let Some(head) = head {
            head.fill_fresh(&mut tensors, &model);
            init.push(("head".to_owned(), head.summary));
        }
        (model, _) = params::load(model, tensors, DType::F32)?;
    }
    let mut optimizer = AdamW::<B>::new(recipe.optimizer.adamw(), recipe.group_rule());
    let parameters = thousands(params::count(&model) as u64);
    let (depth, width) = (vit.depth, vit.width);
    let sizes =
        format!("{parameters} trained parameters, {depth} blocks of width {width}, {classes} classes");
    let mut summary = vec![("model".into(), sizes)];
    summary.extend(init);
    summary.extend(division.summary());
    summary.extend(recipe.train.summary());
    let (mut session, resumed) =
        Session::open(env, "finetune", recipe, recipe.logging.clone(), plan.clone(), summary)?;
    let mut ema = recipe.ema_decay.map(|decay| Ema::new(&model.valid(), decay));
    if let Some(resumed) = resumed {
        model = params::load_strict(model, resumed.model, DType::F32, is_position_index)?;
        optimizer.import(resumed.optimizer, resumed.state.step, device)?;
        if let Some(ema) = &mut ema {
            let mut averages = resumed.averages.unwrap_or_default();
            averages.retain(|name, _| !is_position_index(name));
            ema.import(averages)?;
        }
    }
    let metadata = checkpoint_metadata("finetune", &config)?;
    let drop_path_rates = drop_path_rates(vit.drop_path, vit.depth);
    let saved =
        |model: &VisionTransformer<B>, optimizer: &AdamW<B>, ema: &Option<Ema<B::InnerBackend>>| Saved {
            model: with_position_indices(params::export(model)),
            optimizer: optimizer.export(),
            averages: ema
                .as_ref()
                .map(|ema| with_position_indices(params::export(&ema.model(model.valid())))),
        };

    if let Some(val) = &val {
        let models = 1 + usize::from(ema.is_some());
        session.expect_evaluations(session.steps_between_evaluations(), val.len() * models);
    }

    // ---- steps --------------------------------------------------------------------------------
    if session.is_complete() {
        return session.finish();
    }
    // Micro-batches are numbered through the run and the ranks. Mixing and drop path depend on the number, so they are the
    // same on however many devices.
    let first = (micro_batches * rank.index()) as u64;
    let per_step = (micro_batches * rank.world()) as u64;
    let mut next = session.state.step * per_step + first;
    // Images and targets of a step, made one batch ahead on a thread of their own.
    let batches = session.timed_batches(training_loader(source.clone(), recipe, session.state.data, &rank)?);
    let (mix, seed, smoothing, side) =
        (recipe.mix, recipe.seed, recipe.label_smoothing, vit.image_size as u32);
    let (normalization, inputs_device) = (vit.normalization.clone(), device.clone());
    session.expect(cost::finetune_flops(vit, classes), recipe.train);
    let prefetch = session.prefetch(batches, move |batch: Batch<Item>| {
        let labels = Labels::of(&batch, source.as_ref())?;
        let mut inputs_of_step = Vec::new();
        let chunks = batch.items.chunks(micro_batch).zip((0..).step_by(micro_batch));
        for (number, (items, start)) in (next..).zip(chunks) {
            let mix = MixParams::draw(&mix, side, side, seed, number);
            let labels = (&labels, start..start + items.len());
            let (x, targets) = inputs::<B::InnerBackend>(
                items,
                labels,
                mix,
                (classes, smoothing),
                normalization.as_ref(),
                &inputs_device,
            )?;
            inputs_of_step.push((number, x, targets));
        }
        next += per_step;
        Ok((batch, inputs_of_step))
    });
    let exchanging = division.exchanging(&rank);
    for prepared in session.timed_inputs(prefetch) {
        let (batch, inputs_of_step) = prepared?;
        let lr = plan.lr.at(session.state.step);
        let before = model.clone();
        let learned = session.learn(exchanging.overlaps::<B::InnerBackend>(), || {
            learn(before, inputs_of_step, (&exchanging, recipe.train), |model, _, (number, x, targets)| {
                let (epoch, stream) = (batch.epoch, RngStream::DropPath);
                let key = Key { seed: recipe.seed, epoch, index: number, stream };
                let drop = DropPath::sample(&drop_path_rates, micro_batch, &mut key.rng(), device);
                let logits = model.forward(Tensor::from_inner(x), &drop);
                let right = (!recipe.mix.is_on() && !multi_label).then(|| {
                    let hit = logits.clone().inner().argmax(1).equal(targets.clone().argmax(1));
                    hit.float().mean()
                });
                let targets = Tensor::from_inner(targets);
                let loss = match multi_label {
                    true => binary_cross_entropy(logits, targets),
                    false => soft_cross_entropy(logits, targets),
                };
                Ok((loss.clone(), (loss.inner(), right)))
            })
        })?;
        let Some(Learned { model: learned, grads, results }) = learned else { break };
        let (losses, right): (Vec<_>, Vec<_>) = results.into_iter().unzip();
        model = learned;
        session.note_batch(&batch);
        let grads = average_gradients(&model, grads, &rank)?;
        let grad_norm;
        (model, grad_norm) = optimizer.step(model, grads, lr, recipe.optimizer.clip_grad);
        if let Some(ema) = &mut ema {
            ema.update(&model.valid());
        }
        let mut scalars = vec![("loss", mean_of(losses)), ("grad_norm", grad_norm)];
        if let Some(right) = right.into_iter().collect::<Option<Vec<_>>>() {
            scalars.push(("class_acc", mean_of(right)));
        }
        let known = vec![("lr", lr), ("weight_decay", recipe.optimizer.weight_decay)];
        session.step_done(&batch, StepReport { scalars, known })?;

        // ---- epoch's end ----------------------------------------------------------------------
        let mut best = false;
        if batch.last_in_epoch || session.is_complete() {
            let mut extra = Vec::new();
            if let Some(val) = val.as_ref().filter(|_| session.should_evaluate(batch.epoch)) {
                session.evaluation_begins();
                let view = recipe.eval.view(vit.image_size);
                let (source, batch_size) = (val.clone(), recipe.eval_batch(rank.world()));
                let config = recipe.data.of_channels(recipe.model.vit.in_chans);
                let data = EvaluationData { source, config: &config, view, batch_size };
                // It ends even when the run is about to stop: the epoch's record belongs to this step.
                let stop = StopFlag::default();
                let trained = model.valid();
                let statistics = vit.normalization.as_ref();
                let models =
                    [Some(("", trained.clone())), ema.as_ref().map(|ema| ("ema_", ema.model(trained)))];
                let mut score = f64::NEG_INFINITY;
                for (prefix, model) in models.into_iter().flatten() {
                    let mut add = |name: &str, value| extra.push((format!("{prefix}{name}"), value));
                    let observer = session.observer();
                    if multi_label {
                        let found = evaluate_multi_label(&model, statistics, &data, observer, &stop, device)?;
                        score = score.max(found.map);
                        add("val_loss", found.loss);
                        add("val_map", found.map);
                    } else {
                        let found = evaluate(&model, statistics, &data, observer, &stop, device)?;
                        score = score.max(found.top1);
                        add("val_loss", found.loss);
                        add("val_acc1", found.top1);
                        add("val_acc5", found.top5);
                    }
                }
                // Sessions keep the lowest value.
                best = session.update_best(-score);
            }
            let extra: Vec<(&str, f64)> = extra.iter().map(|(name, value)| (name.as_str(), *value)).collect();
            session.epoch_done(batch.epoch, &extra)?;
        }
        if best || session.should_save(batch.last_in_epoch) {
            session.save(|| saved(&model, &optimizer, &ema), &metadata, best)?;
        }
        if session.should_stop() {
            break;
        }
    }
    session.close(|| saved(&model, &optimizer, &ema), &metadata)?;
    session.finish()
}

/// What of the initial weights goes into the model.
#[derive(Debug, Clone)]
pub struct Loading {
    /// The tensors. Rows of the head that start fresh are zeros.
    pub plan: LoadPlan,
    /// What is taken of the head of a classifier; `None` of other weights.
    pub head: Option<HeadMatch>,
}

/// What of the initial weights goes into a model of these classes.
///
/// # Errors
/// Weights that cannot be read or do not fit.
pub fn load_plan(recipe: &FinetuneRecipe, classes: &[String], assets: &dyn Assets) -> Result<Loading, Error> {
    let spec = &recipe.init.weights;
    let mut state = StateFile::new(assets.weights(spec)?, spec)?;
    let head = match state.summary.classes.filter(|_| state.summary.layout.kind == Kind::Classifier) {
        Some(count) => {
            let names = class_names(&state, count)?;
            let head = HeadMatch::new(spec, (&names, count), classes, recipe.init.classes_by)?;
            head.apply(&mut state.tensors);
            Some(head)
        }
        None => None,
    };
    let options = PlanOptions {
        tokenizer_encoder: state.summary.layout.kind == Kind::Tokenizer,
        ..PlanOptions::default()
    };
    let plan = plan_weights(state, &recipe.model.vit, recipe.model.pooling, classes.len(), &options)?;
    Ok(Loading { plan, head })
}

fn describe(plan: &LoadPlan) -> String {
    let fresh = match plan.fresh.as_slice() {
        [] => "none fresh".to_owned(),
        [one] => format!("fresh: {one}"),
        [first, rest @ ..] => format!("fresh: {first} and {} more", rest.len()),
    };
    format!("{} tensors loaded, {fresh}, {} of the file not used", plan.used.len(), plan.unused.len())
}
