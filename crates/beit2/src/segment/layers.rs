//! Convolutions and batch normalization in the checkpoints' layout, on channels-last maps.

use beit2_kernels::{self as kernels, Backend, ChannelAffine, Precision, Rank, RunningMoments};
use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor};

use crate::error::{Error, config_error};

/// Added to variances; PyTorch's default.
const EPS: f64 = 1e-5;
/// Share of a batch in the running statistics; PyTorch's default.
const MOMENTUM: f64 = 0.1;

/// A convolution with a kernel of 1×1 or 3×3 pixels, stride 1, padded so that the size is kept.
#[derive(Module, Debug)]
pub struct Conv<B: burn::tensor::backend::Backend> {
    /// `[out, in, k, k]`.
    pub weight: Param<Tensor<B, 4>>,
    /// `[out]`; only kernels of one pixel have it.
    pub bias: Option<Param<Tensor<B, 1>>>,
    /// Of the matmuls; f32 unless set otherwise.
    #[module(skip)]
    pub(super) precision: Precision,
}

impl<B: Backend> Conv<B> {
    /// A 1×1 convolution of zeros.
    pub fn pixel(inputs: usize, outputs: usize, bias: bool, device: &B::Device) -> Self {
        Self {
            weight: Param::from_tensor(Tensor::zeros([outputs, inputs, 1, 1], device)),
            bias: bias.then(|| Param::from_tensor(Tensor::zeros([outputs], device))),
            precision: Precision::F32,
        }
    }

    /// A 3×3 convolution of zeros, without bias.
    pub fn square(inputs: usize, outputs: usize, device: &B::Device) -> Self {
        let weight = Param::from_tensor(Tensor::zeros([outputs, inputs, 3, 3], device));
        Self { weight, bias: None, precision: Precision::F32 }
    }

    /// # Shapes
    /// `[B, H, W, in]` → `[B, H, W, out]`.
    pub fn forward(&self, x: Tensor<B, 4>) -> Tensor<B, 4> {
        let weight = self.weight.val();
        let [outputs, inputs, side, _] = weight.dims();
        match side {
            1 => {
                let bias = self.bias.as_ref().map(Param::val);
                kernels::linear(x, weight.reshape([outputs, inputs]), bias, self.precision)
            }
            _ => kernels::conv3x3(x, weight, self.precision),
        }
    }
}

/// A transposed convolution with a kernel and a stride of 2: every pixel becomes 2×2 pixels, by one matmul.
#[derive(Module, Debug)]
pub struct Deconv<B: burn::tensor::backend::Backend> {
    /// `[in, out, 2, 2]`.
    pub weight: Param<Tensor<B, 4>>,
    /// `[out]`.
    pub bias: Param<Tensor<B, 1>>,
    /// Of the matmul; f32 unless set otherwise.
    #[module(skip)]
    pub(super) precision: Precision,
}

impl<B: Backend> Deconv<B> {
    /// A layer of zeros.
    pub fn new(inputs: usize, outputs: usize, device: &B::Device) -> Self {
        Self {
            weight: Param::from_tensor(Tensor::zeros([inputs, outputs, 2, 2], device)),
            bias: Param::from_tensor(Tensor::zeros([outputs], device)),
            precision: Precision::F32,
        }
    }

    /// # Shapes
    /// `[B, H, W, in]` → `[B, 2H, 2W, out]`.
    pub fn forward(&self, x: Tensor<B, 4>) -> Tensor<B, 4> {
        kernels::deconv2x2(x, self.weight.val(), self.bias.val(), self.precision)
    }
}

/// What one batch says about the channels of one norm.
#[derive(Debug, Clone)]
pub struct Moments<B: Backend> {
    /// `[C]`.
    pub mean: Tensor<B, 1>,
    /// Variance of the values themselves (divided by their number), `[C]`.
    pub var: Tensor<B, 1>,
    /// Values per channel.
    pub count: usize,
}

impl<B: Backend> Moments<B> {
    fn of(x: &Tensor<B, 4>) -> Self {
        let [batch, height, width, _] = x.dims();
        let (mean, var) = kernels::channel_moments(x.clone());
        Self { mean, var, count: batch * height * width }
    }

    /// The moments of the values of all ranks from those of each, which has the same number of them. Gradients reach
    /// the values of every rank, as in PyTorch's synchronised batch norm.
    fn across(self, rank: &Rank) -> Self {
        if rank.world() == 1 {
            return self;
        }
        let mean = rank.mean(self.mean.clone());
        // Around the common mean: no difference of squares that cancels.
        let var = rank.mean(self.var + (self.mean - mean.clone()).powi_scalar(2));
        Self { mean, var, count: self.count * rank.world() }
    }
}

/// Where the norms of one pass take their statistics from.
#[derive(Debug)]
pub enum Pass<'a, B: Backend> {
    /// The running statistics: evaluation.
    Evaluate,
    /// The batch, on all ranks; what each norm saw is put here, in order of execution.
    Train(&'a mut Vec<Moments<B>>, &'a Rank),
}

/// Batch normalization over all axes but the last, with running statistics (PyTorch's, synchronised or not).
#[derive(Module, Debug)]
pub struct BatchNorm<B: burn::tensor::backend::Backend> {
    /// Scale `[C]`.
    pub weight: Param<Tensor<B, 1>>,
    /// Shift `[C]`.
    pub bias: Param<Tensor<B, 1>>,
    /// Average of the batches' means, `[C]`; not trained.
    pub running_mean: Param<Tensor<B, 1>>,
    /// Average of the batches' variances, `[C]`; not trained.
    pub running_var: Param<Tensor<B, 1>>,
    /// Batches seen, `[1]`.
    pub num_batches_tracked: Param<Tensor<B, 1, Int>>,
}

fn frozen<B: Backend>(values: Tensor<B, 1>) -> Param<Tensor<B, 1>> {
    Param::from_tensor(values).set_require_grad(false)
}

impl<B: Backend> BatchNorm<B> {
    /// The identity, before any batch.
    pub fn new(channels: usize, device: &B::Device) -> Self {
        Self {
            weight: Param::from_tensor(Tensor::ones([channels], device)),
            bias: Param::from_tensor(Tensor::zeros([channels], device)),
            running_mean: frozen(Tensor::zeros([channels], device)),
            running_var: frozen(Tensor::ones([channels], device)),
            num_batches_tracked: Param::initialized(burn::module::ParamId::new(), Tensor::zeros([1], device)),
        }
    }

    /// Shape is kept; a ReLU follows if `relu`.
    pub fn forward(&self, x: Tensor<B, 4>, relu: bool, pass: &mut Pass<'_, B>) -> Tensor<B, 4> {
        let (mean, var) = match pass {
            Pass::Train(seen, rank) if rank.world() == 1 && kernels::fuses_batch_norm(&x) => {
                let [batch, height, width, _] = x.dims();
                let (weight, bias) = (self.weight.val(), self.bias.val());
                let (y, [mean, var]) = kernels::batch_norm(x, ChannelAffine { weight, bias, eps: EPS, relu });
                seen.push(Moments { mean, var, count: batch * height * width });
                return y;
            }
            Pass::Evaluate => (self.running_mean.val(), self.running_var.val()),
            Pass::Train(seen, rank) => {
                let Moments { mean, var, count } = Moments::of(&x).across(rank);
                seen.push(Moments { mean: mean.clone().detach(), var: var.clone().detach(), count });
                (mean, var)
            }
        };
        let scale = self.weight.val() * var.add_scalar(EPS).sqrt().recip();
        kernels::channel_norm(x, mean, scale, self.bias.val(), relu)
    }

    /// Takes batches into the running statistics of norms, one into each.
    pub fn record(norms: Vec<&mut Self>, seen: &[Moments<B>]) {
        let running = norms.iter().zip(seen).map(|(norm, seen)| RunningMoments {
            running: [norm.running_mean.val(), norm.running_var.val()],
            batches: norm.num_batches_tracked.val(),
            seen: [seen.mean.clone(), seen.var.clone()],
            // The average is of the variance of the population that the values are a sample of.
            unbiased: seen.count as f64 / (seen.count as f64 - 1.0),
        });
        let recorded = kernels::record_moments(running.collect(), MOMENTUM);
        for (norm, ([mean, var], batches)) in norms.into_iter().zip(recorded) {
            norm.running_mean = norm.running_mean.clone().map(|_| mean);
            norm.running_var = norm.running_var.clone().map(|_| var);
            norm.num_batches_tracked = norm.num_batches_tracked.clone().map(|_| batches);
        }
    }
}

/// Convolution without bias, batch norm, ReLU (mmcv's `ConvModule`).
#[derive(Module, Debug)]
pub struct ConvBnRelu<B: burn::tensor::backend::Backend> {
    /// The convolution.
    pub conv: Conv<B>,
    /// The norm.
    pub bn: BatchNorm<B>,
}

impl<B: Backend> ConvBnRelu<B> {
    /// With a kernel of one pixel.
    pub fn pixel(inputs: usize, outputs: usize, device: &B::Device) -> Self {
        Self { conv: Conv::pixel(inputs, outputs, false, device), bn: BatchNorm::new(outputs, device) }
    }

    /// With a kernel of 3×3 pixels.
    pub fn square(inputs: usize, outputs: usize, device: &B::Device) -> Self {
        Self { conv: Conv::square(inputs, outputs, device), bn: BatchNorm::new(outputs, device) }
    }

    /// # Shapes
    /// `[B, H, W, in]` → `[B, H, W, out]`.
    pub fn forward(&self, x: Tensor<B, 4>, pass: &mut Pass<'_, B>) -> Tensor<B, 4> {
        self.bn.forward(self.conv.forward(x), true, pass)
    }
}

/// Whether a batch has more than one value for every channel of every norm: else there is no variance.
pub(super) fn check_batch(batch: usize, smallest_map: usize) -> Result<(), Error> {
    match batch * smallest_map > 1 {
        true => Ok(()),
        false => config_error(
            "a batch of one image cannot be trained on: averaged to one pixel it has no variance for batch norm; \
             use a batch_size of at least 2",
        ),
    }
}
