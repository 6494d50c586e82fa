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
use beit2::train::{AdamW, AdamWConfig, GroupRule, Prefetch, check_precision, patches_to_device, to_device};
use beit2::vit::{DropPath, Pixels, Pooling, VisionTransformer};
use beit2_data::transform::soft_targets;
use beit2_kernels::{self as kernels, AutodiffBackend, Backend, PatchSpec, Precision};
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
            images: Stream::new(setup.images.clone(), setup.batch, side)?,
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
        for _ in 0..count {
            // A thread that failed has put its error into `prepared`.
            let _ = ahead.requests.send(());
        }
        let (mut learner, mut last) = (self.take()?, None);
        for prepared in ahead.prepared.by_ref().take(count) {
            let (loss, quantized) = learner.loss(prepared?);
            last = Some(loss.clone().inner());
            learner = learner.learn(loss.backward(), quantized, &mut self.optimizer);
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

    /// Takes one step, its parts one after the other.
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
        let (loss, quantized) = learner.loss(prepared);
        let forward = watch.lap()?;
        let grads = loss.backward();
        let backward = watch.lap()?;
        self.learner = Some(learner.learn(grads, quantized, &mut self.optimizer));
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

    fn learn(self, grads: B::Gradients, quantized: Option<Quantized<B>>, optimizer: &mut AdamW<B>) -> Self {
        /// Small enough for every stage and size to stay finite.
        const RATE: f64 = 1e-5;
        match self {
            Self::Tokenizer(mut model) => {
                if let Some(quantized) = &quantized {
                    model.quantize = model.quantize.update(quantized);
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
