//! Convolutions and batch normalization in the checkpoints' layout, on channels-last maps.

use beit2_kernels::{self as kernels, Backend, Precision, Rank};
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
}

impl<B: Backend> Conv<B> {
    /// A 1×1 convolution of zeros.
    pub fn pixel(inputs: usize, outputs: usize, bias: bool, device: &B::Device) -> Self {
        Self {
            weight: Param::from_tensor(Tensor::zeros([outputs, inputs, 1, 1], device)),
            bias: bias.then(|| Param::from_tensor(Tensor::zeros([outputs], device))),
        }
    }

    /// A 3×3 convolution of zeros, without bias.
    pub fn square(inputs: usize, outputs: usize, device: &B::Device) -> Self {
        Self { weight: Param::from_tensor(Tensor::zeros([outputs, inputs, 3, 3], device)), bias: None }
    }

    /// # Shapes
    /// `[B, H, W, in]` → `[B, H, W, out]`.
    pub fn forward(&self, x: Tensor<B, 4>) -> Tensor<B, 4> {
        let weight = self.weight.val();
        let [outputs, inputs, side, _] = weight.dims();
        match side {
            1 => {
                let bias = self.bias.as_ref().map(Param::val);
                kernels::linear(x, weight.reshape([outputs, inputs]), bias, Precision::F32)
            }
            _ => kernels::conv3x3(x, weight),
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
}

impl<B: Backend> Deconv<B> {
    /// A layer of zeros.
    pub fn new(inputs: usize, outputs: usize, device: &B::Device) -> Self {
        Self {
            weight: Param::from_tensor(Tensor::zeros([inputs, outputs, 2, 2], device)),
            bias: Param::from_tensor(Tensor::zeros([outputs], device)),
        }
    }

    /// # Shapes
    /// `[B, H, W, in]` → `[B, 2H, 2W, out]`.
    pub fn forward(&self, x: Tensor<B, 4>) -> Tensor<B, 4> {
        let [batch, height, width, _] = x.dims();
        let weight = self.weight.val();
        let [inputs, outputs, ..] = weight.dims();
        // Rows of the matmul's weight: (row of the four, column, output).
        let weight = weight.permute([2, 3, 1, 0]).reshape([4 * outputs, inputs]);
        // Burn 0.21's `repeat_dim` mixes up the gradient of an axis longer than one.
        let bias = self.bias.val().unsqueeze::<2>().expand([4, outputs]).reshape([4 * outputs]);
        let four: Tensor<B, 4> = kernels::linear(x, weight, Some(bias), Precision::F32);
        four.reshape([batch, height, width, 2, 2, outputs]).permute([0, 1, 3, 2, 4, 5]).reshape([
            batch,
            2 * height,
            2 * width,
            outputs,
        ])
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

    /// Takes a batch into the running statistics.
    pub fn record(&mut self, seen: &Moments<B>) {
        // The average is of the variance of the population that the values are a sample of.
        let unbiased = seen.count as f64 / (seen.count as f64 - 1.0);
        let average = |running: &Param<Tensor<B, 1>>, batch: Tensor<B, 1>| {
            let old = running.val();
            let batch = batch.cast(old.dtype());
            running.clone().map(|_| (old.mul_scalar(1.0 - MOMENTUM) + batch.mul_scalar(MOMENTUM)).detach())
        };
        self.running_mean = average(&self.running_mean, seen.mean.clone());
        self.running_var = average(&self.running_var, seen.var.clone().mul_scalar(unbiased));
        self.num_batches_tracked = self.num_batches_tracked.clone().map(|count| count.add_scalar(1));
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
