//! A small teacher from a large one, for machines on which the large one is too slow.
//!
//! The student is a plain Vision Transformer whose linear head learns the large teacher's patch features by
//! cosine similarity, on unlabelled images. Not part of the paper: it exists for the bundled quickstart.

use std::collections::BTreeMap;

use beit2_data::{Batch, Loader, TwoViewConfig};
use beit2_kernels::{AutodiffBackend, Backend, Rank};
use burn::tensor::{DType, Tensor};
use serde::{Deserialize, Serialize};

use super::targets::Targets;
use super::{Teacher, TeacherConfig};
use crate::error::{Error, config_error};
use crate::init::{InitRule, initialise};
use crate::params;
use crate::pixels;
use crate::tokenizer::cosine_loss;
use crate::train::{
    AdamW, DataConfig, DataPosition, Env, GroupRule, Item, LoggingConfig, OptimizerConfig, Outcome, Plan,
    Saved, ScheduleConfig, Session, StepReport, average_gradients, per_rank_batch, to_device,
    training_loader,
};
use crate::vit::{DropPath, Pooling, RelPosKind, VisionTransformer, VitConfig};

/// Batches from which the target's statistics are taken.
const STATISTICS_BATCHES: usize = 16;

/// A distillation as data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DistillRecipe {
    /// Always `distill`.
    pub stage: String,
    /// Seed of everything random.
    pub seed: u64,
    /// The student's sizes.
    pub model: VitConfig,
    /// The large teacher.
    pub teacher: TeacherConfig,
    /// Unlabelled images.
    pub data: DataConfig,
    /// Bring every channel of the large teacher's features to mean 0 and deviation 1 first. A ViT's raw
    /// features share a large constant part, and cosine similarity would see little else.
    pub standardise: bool,
    /// Smallest crop, as a share of the image.
    pub min_crop_scale: f64,
    /// Epochs after which the same crops come again; absent: never. The large teacher then runs in the first of these
    /// epochs only; its features are kept in the run directory (`targets.f16`, 2 bytes per value).
    pub view_epochs: Option<u64>,
    /// Optimiser.
    pub optimizer: OptimizerConfig,
    /// Length.
    pub schedule: ScheduleConfig,
    /// Records and checkpoints.
    pub logging: LoggingConfig,
}

impl Default for DistillRecipe {
    fn default() -> Self {
        Self {
            stage: "distill".into(),
            seed: 0,
            model: VitConfig {
                image_size: 64,
                patch_size: 8,
                width: 192,
                depth: 6,
                heads: 3,
                layer_scale_init: 0.0,
                abs_pos_emb: true,
                rel_pos_bias: RelPosKind::None,
                ..VitConfig::default()
            },
            teacher: TeacherConfig::default(),
            data: DataConfig::default(),
            standardise: true,
            min_crop_scale: 0.3,
            view_epochs: None,
            optimizer: OptimizerConfig { lr: 1e-3, clip_grad: Some(3.0), ..OptimizerConfig::default() },
            schedule: ScheduleConfig {
                epochs: 10,
                warmup_epochs: 1.0,
                batch_size: 64,
                ..ScheduleConfig::default()
            },
            logging: LoggingConfig { checkpoint_every: Some(200), ..LoggingConfig::default() },
        }
    }
}

impl DistillRecipe {
    /// Checks the settings against each other.
    ///
    /// # Errors
    /// One sentence naming the first setting that cannot work.
    pub fn validate(&self) -> Result<(), Error> {
        if self.stage != "distill" {
            return config_error(format!(
                "this recipe's stage is `{}`; `teacher distill` needs `distill`",
                self.stage
            ));
        }
        self.model.validate()?;
        if self.model.rel_pos_bias != RelPosKind::None || !self.model.abs_pos_emb {
            return config_error(
                "a distilled teacher has absolute positions and no relative bias; set model.abs_pos_emb = true and \
                 model.rel_pos_bias = \"none\"",
            );
        }
        Ok(())
    }
}

/// Trains a student, or continues the run in `env.dir`. The result is a `distilled` teacher's weight file.
///
/// # Errors
/// Settings, images or weights that do not fit; a run directory that cannot be used.
pub fn distill<B: AutodiffBackend>(
    recipe: &DistillRecipe,
    env: Env<'_>,
    device: &B::Device,
) -> Result<Outcome, Error> {
    recipe.validate()?;
    let source = env.assets.source(&recipe.data.train)?;
    let file = env.assets.weights(&recipe.teacher.weights)?;
    // No gradient flows through the teacher: it lives on the inner backend.
    let teacher = Teacher::<B::InnerBackend>::from_file(&recipe.teacher, file, DType::F32, device)?.freeze();
    let views = TwoViewConfig {
        input_size: recipe.model.image_size as u32,
        second_size: (recipe.model.grid() * teacher.patch_size()) as u32,
        min_crop_scale: recipe.min_crop_scale,
        color_jitter: 0.0,
        ..TwoViewConfig::default()
    };
    let plan = Plan::new(&recipe.schedule, &recipe.optimizer, source.len())?;
    let rank = env.rank.clone();
    let shape =
        [per_rank_batch(recipe.schedule.batch_size, 1, &rank)?, recipe.model.grid().pow(2), teacher.dim()];
    // A rank's own: of another number of devices the file would hold other images.
    let targets_path = env.dir.join(match rank.world() {
        1 => "targets.f16".to_owned(),
        world => format!("targets-{}-of-{world}.f16", rank.index() + 1),
    });
    let mut student = VisionTransformer::<B>::new(&recipe.model, Pooling::Cls, teacher.dim(), device);
    let gamma = recipe.model.layer_scale_init;
    student = initialise(student, InitRule::Finetune { head_scale: 1.0, gamma }, recipe.seed);
    let mut optimizer =
        AdamW::<B>::new(recipe.optimizer.adamw(), GroupRule::flat(recipe.optimizer.weight_decay));
    let summary = vec![("student".into(), format!("{} trained parameters", params::count(&student)))];
    let (mut session, resumed) =
        Session::open(env, "distill", recipe, recipe.logging.clone(), plan.clone(), summary)?;
    if let Some(resumed) = resumed {
        student = params::load_strict(student, resumed.model, DType::F32, |_| false)?;
        optimizer.import(resumed.optimizer, resumed.state.step, device)?;
    }
    let metadata = BTreeMap::from([
        ("beit2.stage".to_owned(), "distill".to_owned()),
        ("beit2.config".to_owned(), serde_json::to_string(&recipe.model).unwrap_or_default()),
    ]);
    if session.is_complete() {
        return session.finish();
    }
    let statistics = match recipe.standardise {
        true => {
            let first = training_loader(
                source.clone(),
                &recipe.data,
                &recipe.schedule,
                views,
                None,
                recipe.seed,
                Default::default(),
                &Rank::alone(),
            )?;
            Some(statistics::<B::InnerBackend>(&teacher, first, device)?)
        }
        false => None,
    };
    let mut targets = match recipe.view_epochs {
        Some(_) => Some(Targets::open(&targets_path, shape)?),
        None => None,
    };
    let start = session.state.data;
    let loader = |start| {
        let (data, schedule) = (&recipe.data, &recipe.schedule);
        training_loader(source.clone(), data, schedule, views, None, recipe.seed, start, &rank)
    };
    for batch in session.timed_batches(Rounds::new(loader, recipe.view_epochs, start)?) {
        let batch = batch?;
        session.note_batch(&batch);
        let step = session.state.step;
        let (images, second) = to_device::<B::InnerBackend>(&batch.items, device)?;
        let x = pixels::to_signed(images);
        let ask = || {
            let features = teacher.forward(second.map_or_else(|| x.clone(), pixels::to_signed));
            match &statistics {
                Some((mean, deviation)) => (features - mean.clone()) / deviation.clone(),
                None => features,
            }
        };
        let target = match (&mut targets, recipe.view_epochs) {
            (Some(targets), Some(epochs)) => {
                let record = batch.epoch % epochs * plan.steps_per_epoch + batch.step;
                targets.get(record, device, ask)?
            }
            _ => ask(),
        };
        // The student gets the standardisation that it will have as a teacher.
        let x = pixels::teacher_scaling(x, pixels::IMAGENET_MEAN, pixels::IMAGENET_STD);
        let x = Tensor::<B, 4>::from_inner(x);
        let guess = student.patch_tokens(x, &DropPath::none());
        let loss = cosine_loss(guess, Tensor::from_inner(target));
        let grads = average_gradients(&student, loss.backward(), &rank);
        let lr = plan.lr.at(step);
        let norm;
        (student, norm) = optimizer.step(student, grads, lr, recipe.optimizer.clip_grad);
        let scalars = vec![("loss", loss.inner()), ("grad_norm", norm)];
        session.step_done(&batch, StepReport { scalars, known: vec![("lr", lr)] })?;
        if batch.last_in_epoch || session.is_complete() {
            session.epoch_done(batch.epoch, &[])?;
        }
        if session.should_save(batch.last_in_epoch) {
            let state =
                || Saved { model: params::export(&student), optimizer: optimizer.export(), averages: None };
            session.save(state, &metadata, false)?;
        }
        if session.should_stop() {
            break;
        }
    }
    session.finish()
}

/// Batches whose crops come again after some epochs.
struct Rounds<F> {
    make: F,
    loader: Loader<Item>,
    epochs: Option<u64>,
    before: u64,
}

impl<F: Fn(DataPosition) -> Result<Loader<Item>, Error>> Rounds<F> {
    /// Begins at `start`; `epochs` is the length of a round; `None`: it has no end.
    fn new(make: F, epochs: Option<u64>, mut start: DataPosition) -> Result<Self, Error> {
        let before = epochs.map_or(0, |epochs| start.at.epoch - start.at.epoch % epochs);
        start.at.epoch -= before;
        Ok(Self { loader: make(start)?, make, epochs, before })
    }

    fn advance(&mut self) -> Result<Option<Batch<Item>>, Error> {
        let Some(batch) = self.loader.next() else { return Ok(None) };
        let mut batch = batch?;
        let round = self.epochs.filter(|epochs| batch.last_in_epoch && batch.epoch + 1 == *epochs);
        batch.epoch += self.before;
        if let Some(epochs) = round {
            self.loader = (self.make)(DataPosition::default())?;
            self.before += epochs;
        }
        Ok(Some(batch))
    }
}

impl<F: Fn(DataPosition) -> Result<Loader<Item>, Error>> Iterator for Rounds<F> {
    type Item = Result<Batch<Item>, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        self.advance().transpose()
    }
}

/// Mean and deviation of every channel of the teacher's features, `[1, 1, dim]` each, over the run's first
/// batches. They are the same whenever the run is continued.
#[allow(clippy::type_complexity)] // two tensors of one kind
fn statistics<I: Backend>(
    teacher: &Teacher<I>,
    loader: Loader<Item>,
    device: &I::Device,
) -> Result<(Tensor<I, 3>, Tensor<I, 3>), Error> {
    let (mut sum, mut squares, mut count) = (None, None, 0.0);
    for batch in loader.take(STATISTICS_BATCHES) {
        let (images, second) = to_device::<I>(&batch?.items, device)?;
        let features = teacher.forward(pixels::to_signed(second.unwrap_or(images)));
        let [size, patches, dim] = features.dims();
        let rows = features.reshape([size * patches, dim]);
        count += (size * patches) as f64;
        let add = |total: &mut Option<Tensor<I, 2>>, more: Tensor<I, 2>| {
            *total = Some(match total.take() {
                Some(total) => total + more,
                None => more,
            });
        };
        add(&mut sum, rows.clone().sum_dim(0));
        add(&mut squares, rows.powi_scalar(2).sum_dim(0));
    }
    let (Some(sum), Some(squares)) = (sum, squares) else {
        return config_error("there are no images to take the teacher's statistics from");
    };
    let mean = sum.div_scalar(count);
    let variance = squares.div_scalar(count) - mean.clone().powi_scalar(2);
    let deviation = variance.clamp_min(0.0).sqrt().add_scalar(1e-6);
    Ok((mean.unsqueeze(), deviation.unsqueeze()))
}
