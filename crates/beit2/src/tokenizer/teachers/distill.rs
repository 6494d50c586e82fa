//! A small teacher from a large one, for machines on which the large one is too slow.
//!
//! The student is a plain Vision Transformer whose linear head learns the large teacher's patch features by
//! cosine similarity, on unlabelled images. Not part of the paper: it exists for the bundled quickstart.

use beit2_data::{Batch, Loader, TwoViewConfig};
use beit2_kernels::{AutodiffBackend, Backend, Rank};
use burn::tensor::{DType, Tensor};

use super::targets::Targets;
use super::{DistillRecipe, Teacher};
use crate::cost;
use crate::error::{Error, config_error};
use crate::init::{InitRule, initialise};
use crate::params;
use crate::pixels;
use crate::tokenizer::cosine_loss;
use crate::train::{
    AdamW, DataPosition, Env, GroupRule, Item, Learned, Outcome, Plan, Saved, Session, StepReport,
    TrainingData, average_gradients, learn, mean_of, to_device,
};
use crate::vit::{DropPath, Pooling, VisionTransformer};
use crate::weights::checkpoint_metadata;

/// Batches from which the target's statistics are taken.
const STATISTICS_BATCHES: usize = 16;

/// Trains a student, or continues the run in `env.dir`. The result is a `distilled` teacher's weight file.
///
/// # Errors
/// Settings, images or weights that do not fit; a run directory that cannot be used.
pub fn distill<B: AutodiffBackend>(
    recipe: &DistillRecipe,
    env: Env<'_>,
    device: &B::Device,
) -> Result<Outcome, Error> {
    // ---- inputs -------------------------------------------------------------------------------
    recipe.validate()?;
    let source = env.assets.source(&recipe.data.train)?;
    let file = env.assets.weights(&recipe.teacher.weights)?;
    // No gradient flows through the teacher: it lives on the inner backend.
    let teacher = Teacher::<B::InnerBackend>::from_file(&recipe.teacher, file, DType::F32, device)?;
    let step_operations =
        cost::distill(recipe, &teacher.cost(recipe.model.grid()), teacher.dim()).flops_per_image;
    let teacher = teacher.freeze();
    let plan = Plan::new(&recipe.schedule, &recipe.optimizer, source.epoch_len())?.in_run(&env, recipe)?;
    let rank = env.rank.clone();
    let division = recipe.schedule.division(rank.world(), 1)?;
    let (per_rank, micro_batch) = (division.per_rank, division.micro_batch());
    let data = TrainingData {
        source,
        config: &recipe.data,
        batch_size: recipe.schedule.batch_size,
        views: TwoViewConfig {
            input_size: recipe.model.image_size as u32,
            second_size: (recipe.model.grid() * teacher.patch_size()) as u32,
            min_crop_scale: recipe.min_crop_scale,
            color_jitter: 0.0,
            ..TwoViewConfig::default()
        },
        mask: None,
        seed: recipe.seed,
    };

    // ---- model, optimiser, run ----------------------------------------------------------------
    let mut student = VisionTransformer::<B>::new(&recipe.model, Pooling::Cls, teacher.dim(), device);
    let rule = InitRule::Finetune { head_scale: 1.0, gamma: recipe.model.layer_scale_init };
    student = initialise(student, rule, recipe.seed);
    let rule = GroupRule::flat(recipe.optimizer.weight_decay);
    let mut optimizer = AdamW::<B>::new(recipe.optimizer.adamw(), rule);
    let mut summary = vec![(
        "model".into(),
        format!("{} trained parameters", beit2_run::thousands(params::count(&student) as u64)),
    )];
    summary.extend(division.summary());
    summary.extend(recipe.train.summary());
    // Each rank's own: of another number of devices the file would hold other images.
    let targets_path = env.dir.join(match rank.world() {
        1 => "targets.f16".to_owned(),
        world => format!("targets-{}-of-{world}.f16", rank.index() + 1),
    });
    let (mut session, resumed) =
        Session::open(env, "distill", recipe, recipe.logging.clone(), plan.clone(), summary)?;
    if let Some(resumed) = resumed {
        student = params::load_strict(student, resumed.model, DType::F32, |_| false)?;
        optimizer.import(resumed.optimizer, resumed.state.step, device)?;
    }
    let metadata = checkpoint_metadata("distill", &recipe.model)?;
    let saved = |student: &VisionTransformer<B>, optimizer: &AdamW<B>| Saved {
        model: params::export(student),
        optimizer: optimizer.export(),
        averages: None,
    };

    // ---- steps --------------------------------------------------------------------------------
    if session.is_complete() {
        return session.finish();
    }
    let statistics = match recipe.standardise {
        true => {
            let first = data.loader(DataPosition::default(), &Rank::alone())?;
            let at_once = data.batch_size / division.micro_batches;
            let found =
                session.unless_stopped(|| statistics::<B::InnerBackend>(&teacher, first, at_once, device))?;
            if found.is_none() {
                return session.finish();
            }
            found
        }
        false => None,
    };
    let mut kept = match recipe.view_epochs {
        Some(_) => {
            let shape = [per_rank, recipe.model.grid().pow(2), teacher.dim()];
            Some(match rank.is_process() && !rank.leads() {
                true => Targets::of_process(shape)?,
                false => Targets::open(&targets_path, shape)?,
            })
        }
        None => None,
    };
    let batches = Rounds::new(&data, &rank, recipe.view_epochs, session.state.data)?;
    session.expect(step_operations, recipe.train);
    let exchanging = division.exchanging(&rank);
    for batch in session.timed_batches(batches) {
        let batch = batch?;
        let step = session.state.step;
        let lr = plan.lr.at(step);

        let mut inputs = Vec::new();
        for items in batch.items.chunks(micro_batch) {
            let (images, second) = to_device::<B::InnerBackend>(items, device)?;
            let x = pixels::to_signed(images);
            let teacher_x = second.map_or_else(|| x.clone(), pixels::to_signed);
            inputs.push((x, teacher_x));
        }
        let before = student.clone();
        let learned = session.learn(exchanging.overlaps::<B::InnerBackend>(), || {
            let make = |teacher_x| standardised(teacher.forward(teacher_x), &statistics);
            // The file has the targets of whole batches, however they are divided.
            let whole = match (&mut kept, recipe.view_epochs) {
                (Some(kept), Some(epochs)) => {
                    let record = batch.epoch % epochs * plan.steps_per_epoch + batch.step;
                    let found = match kept.read(record, device)? {
                        Some(targets) => targets,
                        None => {
                            let made = inputs.iter().map(|(_, teacher_x)| make(teacher_x.clone()));
                            kept.write(record, joined(made.collect()))?
                        }
                    };
                    Some(found)
                }
                _ => None,
            };
            learn(before, inputs, (&exchanging, recipe.train), |student, number, (x, teacher_x)| {
                let target = match &whole {
                    Some(targets) if targets.dims()[0] == micro_batch => targets.clone(),
                    Some(targets) => targets.clone().narrow(0, number * micro_batch, micro_batch),
                    None => make(teacher_x),
                };
                // The student gets the standardisation that it will have as a teacher.
                let x = pixels::teacher_scaling(x, pixels::IMAGENET_MEAN, pixels::IMAGENET_STD);
                let predicted = student.patch_tokens(Tensor::from_inner(x), &DropPath::none());
                let loss = cosine_loss(predicted, Tensor::from_inner(target));
                Ok((loss.clone(), loss.inner()))
            })
        })?;
        let Some(Learned { model: learned, grads, results }) = learned else { break };
        student = learned;
        session.note_batch(&batch);
        let grads = average_gradients(&student, grads, &rank)?;
        let grad_norm;
        (student, grad_norm) = optimizer.step(student, grads, lr, recipe.optimizer.clip_grad);
        let scalars = vec![("loss", mean_of(results)), ("grad_norm", grad_norm)];
        session.step_done(&batch, StepReport { scalars, known: vec![("lr", lr)] })?;

        // ---- epoch's end ----------------------------------------------------------------------
        if batch.last_in_epoch || session.is_complete() {
            session.epoch_done(batch.epoch, &[])?;
        }
        if session.should_save(batch.last_in_epoch) {
            session.save(|| saved(&student, &optimizer), &metadata, false)?;
        }
        if session.should_stop() {
            break;
        }
    }
    session.close(|| saved(&student, &optimizer), &metadata)?;
    session.finish()
}

/// Batches whose crops come again after some epochs.
struct Rounds<'a> {
    data: &'a TrainingData<'a>,
    rank: &'a Rank,
    loader: Loader<Item>,
    /// Epochs of a round; `None`: the only one has no end.
    epochs: Option<u64>,
    /// Epochs of the rounds before this one.
    before: u64,
}

impl<'a> Rounds<'a> {
    /// Begins at `start`.
    fn new(
        data: &'a TrainingData<'a>,
        rank: &'a Rank,
        epochs: Option<u64>,
        mut start: DataPosition,
    ) -> Result<Self, Error> {
        let before = epochs.map_or(0, |epochs| start.at.epoch - start.at.epoch % epochs);
        start.at.epoch -= before;
        Ok(Self { data, rank, loader: data.loader(start, rank)?, epochs, before })
    }

    fn advance(&mut self) -> Result<Option<Batch<Item>>, Error> {
        let Some(batch) = self.loader.next() else { return Ok(None) };
        let mut batch = batch?;
        let round = self.epochs.filter(|epochs| batch.last_in_epoch && batch.epoch + 1 == *epochs);
        batch.epoch += self.before;
        if let Some(epochs) = round {
            self.loader = self.data.loader(DataPosition::default(), self.rank)?;
            self.before += epochs;
        }
        Ok(Some(batch))
    }
}

impl Iterator for Rounds<'_> {
    type Item = Result<Batch<Item>, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        self.advance().transpose()
    }
}

/// Mean and deviation of every channel of the teacher's features, `[1, 1, D]` each.
struct Statistics<I: Backend> {
    mean: Tensor<I, 3>,
    deviation: Tensor<I, 3>,
}

/// The teacher's features `[B, N, D]`, with every channel standardised if the recipe asks for it.
fn standardised<I: Backend>(features: Tensor<I, 3>, statistics: &Option<Statistics<I>>) -> Tensor<I, 3> {
    match statistics {
        Some(Statistics { mean, deviation }) => (features - mean.clone()) / deviation.clone(),
        None => features,
    }
}

/// Targets of micro-batches as those of their batch, `[B, N, D]`.
fn joined<I: Backend>(parts: Vec<Tensor<I, 3>>) -> Tensor<I, 3> {
    match <[_; 1]>::try_from(parts) {
        Ok([all]) => all,
        Err(parts) => Tensor::cat(parts, 0),
    }
}

/// The statistics over the run's first batches, of which the teacher sees `at_once` images at a time. They are the same whenever
/// the run is continued.
fn statistics<I: Backend>(
    teacher: &Teacher<I>,
    batches: Loader<Item>,
    at_once: usize,
    device: &I::Device,
) -> Result<Statistics<I>, Error> {
    let mut sums: Option<[Tensor<I, 2>; 2]> = None;
    let mut count = 0.0;
    for batch in batches.take(STATISTICS_BATCHES) {
        let mut parts = Vec::new();
        for items in batch?.items.chunks(at_once) {
            let (images, second) = to_device::<I>(items, device)?;
            parts.push(teacher.forward(pixels::to_signed(second.unwrap_or(images))));
        }
        // Sums over whole batches, so that the division changes no target.
        let features = joined(parts);
        let [size, patches, dim] = features.dims();
        let features = features.reshape([size * patches, dim]);
        count += (size * patches) as f64;
        let (sum, squares) = (features.clone().sum_dim(0), features.powi_scalar(2).sum_dim(0));
        sums = Some(match sums {
            Some([sums, all_squares]) => [sums + sum, all_squares + squares],
            None => [sum, squares],
        });
    }
    let Some([sum, squares]) = sums else {
        return config_error("there are no images to take the teacher's statistics from");
    };
    let mean = sum.div_scalar(count);
    let variance = squares.div_scalar(count) - mean.clone().powi_scalar(2);
    let deviation = variance.clamp_min(0.0).sqrt().add_scalar(1e-6);
    Ok(Statistics { mean: mean.unsqueeze(), deviation: deviation.unsqueeze() })
}
