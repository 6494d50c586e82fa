//! Training steps, measured.

use std::sync::mpsc::{Sender, channel};
use std::time::Instant;

use beit2::Error;
use beit2::classify::soft_cross_entropy;
use beit2::init::{InitRule, initialise};
use beit2::params;
use beit2::pixels;
use beit2::pretrain::{MimModel, PatchMask};
use beit2::tokenizer::teachers::{Teacher, TeacherConfig, TeacherKind};
use beit2::tokenizer::{Quantized, VqKd};
use beit2::train::{
    AdamW, AdamWConfig, GradientSum, GroupRule, Prefetch, Rank, TrainConfig, check_precision,
    patches_to_device, to_device, trained_parameters,
};
use beit2::vit::{DropPath, Pixels, Pooling, VisionTransformer};
use beit2_data::transform::soft_targets;
use beit2_kernels::{self as kernels, AutodiffBackend, Backend, PatchSpec, Precision, Recomputing};
use burn::tensor::{DType, Int, Tensor, TensorData};

use crate::images::{HostBatch, Images, Stream};
use crate::size::CLASSES;
use crate::{Parts, Size, Stage, Watch, flops, settle};

/// What to measure.
#[derive(Clone)]
pub struct TrainSetup {
    /// What is trained.
    pub stage: Stage,
    /// Of which size.
    pub size: Size,
    /// Images in a step.
    pub batch: usize,
    /// Equal micro-batches that a step is taken in.
    pub micro_batches: usize,
    /// Whether blocks are computed again in the backward pass.
    pub train: TrainConfig,
    /// Operands of the matmuls.
    pub precision: Precision,
    /// Images.
    pub images: Images,
}

/// A model in training, with everything that its steps need.
pub struct TrainBench<B: AutodiffBackend> {
    setup: TrainSetup,
    /// `None` after a step that failed.
    learner: Option<Learner<B>>,
    optimizer: AdamW<B>,
    frozen: Frozen<B::InnerBackend>,
    images: Stream,
    ahead: Option<Preparer<B::InnerBackend>>,
    device: B::Device,
}

/// The thread that runs the frozen half, one batch ahead, for as many batches as were requested. It lives as long as the
/// measurement: a GPU keeps a queue with memory of its own for every thread that ever used it.
struct Preparer<I: Backend> {
    /// Dropped first, which ends the thread.
    requests: Sender<()>,
    prepared: Prefetch<Prepared<I>>,
}

/// The half of a step that learns.
#[allow(clippy::large_enum_variant)] // there is one
enum Learner<B: AutodiffBackend> {
    Tokenizer(VqKd<B>),
    Pretrain(MimModel<B>),
    Finetune(VisionTransformer<B>),
}

/// The half that does not.
#[allow(clippy::large_enum_variant)] // as above
#[derive(Clone)]
enum Frozen<I: Backend> {
    Teacher(Teacher<I>),
    Tokenizer {
        tokenizer: VqKd<I>,
        /// How the model and the tokenizer read images.
        specs: [PatchSpec<'static>; 2],
        patches: usize,
    },
    Nothing,
}

/// A batch on the device.
enum Sent<I: Backend> {
    /// `[B, 3, S, S]` in [0, 1].
    Images(Tensor<I, 4>),
    /// What model and tokenizer see.
    Patches([Pixels<I>; 2]),
}

/// What the frozen half makes of a batch.
enum Prepared<I: Backend> {
    Features(Tensor<I, 4>, Tensor<I, 3>),
    Tokens(Pixels<I>, Tensor<I, 1, Int>, PatchMask<I>),
    Classes(Tensor<I, 4>, Tensor<I, 2>),
}

impl<B: AutodiffBackend> TrainBench<B> {
    /// Fresh models.
    ///
    /// # Errors
    /// A precision or a batch that the device or the source cannot give.
    pub fn new(setup: TrainSetup, device: &B::Device) -> Result<Self, Error> {
        check_precision::<B>(setup.precision, device)?;
        let (size, precision) = (setup.size, setup.precision);
        let (learner, frozen) = match setup.stage {
            Stage::Tokenizer => {
                let mut model = VqKd::new(&size.tokenizer(), 0, device)?;
                model.set_precision(precision);
                let teacher = teacher(size, precision, device)?;
                (Learner::Tokenizer(model), Frozen::Teacher(teacher))
            }
            Stage::Pretrain => {
                let config = size.student();
                let mut model = MimModel::new(&config, 0, device)?;
                model.set_precision(precision);
                let mut tokenizer = VqKd::<B::InnerBackend>::new(&size.tokenizer(), 0, device)?;
                tokenizer.set_precision(precision);
                let tokenizer = tokenizer.freeze_encoder();
                let specs = [model.trunk.patch_embed.spec(pixels::scaling(None)), tokenizer.patch_spec()];
                let frozen = Frozen::Tokenizer { tokenizer, specs, patches: config.vit.patches() };
                (Learner::Pretrain(model), frozen)
            }
            Stage::Finetune => {
                let vit = size.classifier();
                let rule = InitRule::Finetune { head_scale: 1.0, gamma: vit.layer_scale_init };
                let mut model =
                    initialise(VisionTransformer::new(&vit, Pooling::Mean, CLASSES, device), rule, 0);
                model.set_precision(precision);
                (Learner::Finetune(model), Frozen::Nothing)
            }
        };
        let side = size.classifier().image_size;
        Ok(Self {
            learner: Some(learner),
            frozen,
            optimizer: AdamW::new(AdamWConfig::default(), GroupRule::flat(0.05)),
            images: Stream::new(setup.images.clone(), setup.batch / setup.micro_batches, side)?,
            ahead: None,
            setup,
            device: device.clone(),
        })
    }

    /// Floating-point operations of the matmuls in a step.
    pub fn step_flops(&self) -> f64 {
        flops::training(self.setup.stage, self.setup.size) * self.setup.batch as f64
    }

    /// Takes `count` steps as training does, the frozen half prefetched one batch at a time on a thread of its own → seconds
    /// and the last step's loss. `go_on` is asked after each step.
    ///
    /// # Errors
    /// Images that cannot be read, a device that fails, [`Error::Interrupted`] where `go_on` says no.
    pub fn steps(&mut self, count: usize, mut go_on: impl FnMut() -> bool) -> Result<(f64, f64), Error> {
        settle::<B>(&self.device)?;
        let start = Instant::now();
        let mut ahead = self.ahead.take().unwrap_or_else(|| self.preparer());
        let parts = self.setup.micro_batches;
        for _ in 0..count * parts {
            // A thread that failed has put its error into `prepared`.
            let _ = ahead.requests.send(());
        }
        let (mut learner, mut last) = (self.take()?, None);
        for _ in 0..count {
            let (mut sum, mut quantized) = (GradientSum::default(), Vec::new());
            for prepared in ahead.prepared.by_ref().take(parts) {
                learner = learner.start(&mut sum);
                let recomputing = self.setup.train.recomputes_blocks().then(Recomputing::start);
                let (loss, of_part) = learner.loss(prepared?);
                last = Some(loss.clone().inner());
                let loss = if parts == 1 { loss } else { loss.div_scalar(parts as f64) };
                let grads = learner.backward(&loss)?;
                drop(recomputing);
                learner.add(&mut sum, grads);
                quantized.extend(of_part.map(|Quantized { ids, z, .. }| (ids, z)));
            }
            let grads = sum.finish().ok_or_else(|| Error::Training("the images came to an end".into()))?;
            learner = learner.learn(grads, quantized, &mut self.optimizer);
            if !go_on() {
                return Err(Error::Interrupted);
            }
        }
        self.ahead = Some(ahead);
        settle::<B>(&self.device)?;
        let seconds = start.elapsed().as_secs_f64();
        self.learner = Some(learner);
        let last = last.and_then(|loss| loss.into_data().iter::<f64>().next());
        Ok((seconds, last.unwrap_or(f64::NAN)))
    }

    /// Takes one step, its parts one after the other; of several micro-batches only one, whose times count for all.
    ///
    /// # Errors
    /// As [`TrainBench::steps`].
    pub fn parts(&mut self) -> Result<Parts, Error> {
        let device = self.device.clone();
        let mut watch = Watch::<B>::start(&device)?;
        let Some(batch) = self.images.next() else {
            return Err(Error::Training("the images came to an end".into()));
        };
        let batch = batch?;
        let sent = self.frozen.send(&batch, &device)?;
        let data = watch.lap()?;
        let prepared = self.frozen.prepare(sent, &batch, &device)?;
        let tokenizer = watch.lap()?;
        let learner = self.take()?;
        let recomputing = self.setup.train.recomputes_blocks().then(Recomputing::start);
        let (loss, quantized) = learner.loss(prepared);
        let forward = watch.lap()?;
        let grads = learner.backward(&loss)?;
        drop(recomputing);
        let backward = watch.lap()?;
        let quantized = quantized.into_iter().map(|Quantized { ids, z, .. }| (ids, z)).collect();
        self.learner = Some(learner.learn(grads, quantized, &mut self.optimizer));
        // Of all micro-batches of a step.
        let [data, tokenizer, forward, backward] =
            [data, tokenizer, forward, backward].map(|seconds| self.setup.micro_batches as f64 * seconds);
        Ok(Parts { data, tokenizer, forward, backward, optimizer: watch.lap()? })
    }

    fn preparer(&self) -> Preparer<B::InnerBackend> {
        let (requests, requested) = channel();
        let (mut images, frozen, device) = (self.images.clone(), self.frozen.clone(), self.device.clone());
        let batches = requested.into_iter().map_while(move |()| images.next());
        let prepared = Prefetch::new(batches, move |batch| {
            frozen.prepare(frozen.send(&batch, &device)?, &batch, &device)
        });
        Preparer { requests, prepared }
    }

    fn take(&mut self) -> Result<Learner<B>, Error> {
        let lost = || Error::Training("an earlier step failed; start the measurement again".into());
        self.learner.take().ok_or_else(lost)
    }
}

impl<B: AutodiffBackend> Learner<B> {
    fn loss(&self, prepared: Prepared<B::InnerBackend>) -> (Tensor<B, 1>, Option<Quantized<B>>) {
        match (self, prepared) {
            (Self::Tokenizer(model), Prepared::Features(x, target)) => {
                let loss = model.forward(Tensor::from_inner(x), Tensor::from_inner(target));
                (loss.total, Some(loss.quantized))
            }
            (Self::Pretrain(model), Prepared::Tokens(x, labels, mask)) => {
                let (x, labels) = (x.record(), Tensor::from_inner(labels));
                (model.forward_loss(x, &mask.record::<B>(), labels, &DropPath::none()).total, None)
            }
            (Self::Finetune(model), Prepared::Classes(x, targets)) => {
                let logits = model.forward(Tensor::from_inner(x), &DropPath::none());
                (soft_cross_entropy(logits, Tensor::from_inner(targets)), None)
            }
            _ => unreachable!("made together in `new`"),
        }
    }

    /// Before a micro-batch.
    fn start(self, sum: &mut GradientSum<B>) -> Self {
        match self {
            Self::Tokenizer(model) => Self::Tokenizer(sum.start(model)),
            Self::Pretrain(model) => Self::Pretrain(sum.start(model)),
            Self::Finetune(model) => Self::Finetune(sum.start(model)),
        }
    }

    fn backward(&self, loss: &Tensor<B, 1>) -> Result<B::Gradients, Error> {
        let trained = || match self {
            Self::Tokenizer(model) => trained_parameters(model),
            Self::Pretrain(model) => trained_parameters(model),
            Self::Finetune(model) => trained_parameters(model),
        };
        Ok(kernels::backward_recomputing(loss, &Rank::alone(), trained)?.0)
    }

    fn add(&self, sum: &mut GradientSum<B>, grads: B::Gradients) {
        match self {
            Self::Tokenizer(model) => sum.add(model, grads),
            Self::Pretrain(model) => sum.add(model, grads),
            Self::Finetune(model) => sum.add(model, grads),
        }
    }

    /// One step of the optimiser. `quantized` are the ids and vectors of each micro-batch.
    fn learn(
        self,
        grads: B::Gradients,
        quantized: Vec<(Tensor<B, 1, Int>, Tensor<B, 2>)>,
        optimizer: &mut AdamW<B>,
    ) -> Self {
        /// Small enough for every stage and size to stay finite.
        const RATE: f64 = 1e-5;
        match self {
            Self::Tokenizer(mut model) => {
                if !quantized.is_empty() {
                    let (ids, z) = quantized.into_iter().unzip::<_, _, Vec<_>, Vec<_>>();
                    let (bins, sums) = model.quantize.statistics(joined(ids), joined(z));
                    model.quantize = model.quantize.update_from(bins, sums);
                }
                Self::Tokenizer(optimizer.step(model, grads, RATE, None).0)
            }
            Self::Pretrain(model) => Self::Pretrain(optimizer.step(model, grads, RATE, Some(3.0)).0),
            Self::Finetune(model) => Self::Finetune(optimizer.step(model, grads, RATE, None).0),
        }
    }
}

impl<I: Backend> Frozen<I> {
    fn send(&self, batch: &HostBatch, device: &I::Device) -> Result<Sent<I>, Error> {
        Ok(match self {
            Self::Tokenizer { specs, .. } => Sent::Patches(patches_to_device(batch, *specs, device)?),
            Self::Teacher(_) | Self::Nothing => Sent::Images(to_device(batch, device)?.0),
        })
    }

    fn prepare(&self, sent: Sent<I>, batch: &HostBatch, device: &I::Device) -> Result<Prepared<I>, Error> {
        Ok(match (self, sent) {
            (Self::Teacher(teacher), Sent::Images(images)) => {
                let x = pixels::to_signed(images);
                Prepared::Features(x.clone(), teacher.forward(x))
            }
            (Self::Tokenizer { tokenizer, patches, .. }, Sent::Patches([x, tokenizer_x])) => {
                let masked: Vec<u32> = batch.iter().flat_map(|item| item.masked.iter().copied()).collect();
                let mask = PatchMask::new(&masked, batch.len(), *patches, device);
                let labels = tokenizer.ids_at(tokenizer_x, mask.masked_tokens());
                Prepared::Tokens(x, labels, mask)
            }
            (Self::Nothing, Sent::Images(images)) => {
                let count = batch.len();
                let labels: Vec<u32> = (0..count as u32).map(|at| at * 37 % CLASSES as u32).collect();
                let targets = soft_targets(&labels, CLASSES, 0.1, 1.0)?;
                let targets = kernels::upload(TensorData::new(targets, [count, CLASSES]), device);
                Prepared::Classes(pixels::normalise(images, None), targets)
            }
            _ => unreachable!("`send` gives what `prepare` takes"),
        })
    }
}

/// Of several micro-batches as of one.
fn joined<B: burn::tensor::backend::Backend, K: burn::tensor::BasicOps<B>, const D: usize>(
    parts: Vec<Tensor<B, D, K>>,
) -> Tensor<B, D, K> {
    match <[_; 1]>::try_from(parts) {
        Ok([all]) => all,
        Err(parts) => Tensor::cat(parts, 0),
    }
}

/// A teacher of random weights.
fn teacher<I: Backend>(size: Size, precision: Precision, device: &I::Device) -> Result<Teacher<I>, Error> {
    let (vit, outputs) = (size.teacher(), size.tokenizer().teacher_dim);
    let rule = InitRule::Finetune { head_scale: 1.0, gamma: 0.0 };
    let model = initialise(VisionTransformer::<I>::new(&vit, Pooling::Mean, outputs, device), rule, 1);
    let config = TeacherConfig {
        kind: Some(TeacherKind::Distilled),
        heads: Some(vit.heads),
        ..TeacherConfig::default()
    };
    let mut teacher = Teacher::from_tensors(&config, params::export(&model), DType::F32, device)?;
    teacher.set_precision(precision);
    Ok(teacher.freeze())
}
