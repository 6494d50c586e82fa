//! AdamW over named parameters, with global-norm clipping.

use std::collections::BTreeMap;

use beit2_kernels::{self as kernels, AdamwStep, AutodiffBackend, Backend};
use burn::module::{AutodiffModule, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Tensor, TensorData};
use serde::{Deserialize, Serialize};

use super::GroupRule;
use crate::error::Error;
use crate::params::{ParamInfo, Path};

/// Constants of AdamW (Loshchilov & Hutter 2019).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdamWConfig {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8 }
    }
}

#[derive(Debug, Clone)]
struct Moments<I: Backend> {
    first: Tensor<I, 1>,
    second: Tensor<I, 1>,
    shape: Vec<usize>,
}

/// The optimiser's state: moments by parameter name, kept flat.
#[derive(Debug, Clone)]
pub struct AdamW<B: AutodiffBackend> {
    config: AdamWConfig,
    rule: GroupRule,
    steps: u64,
    moments: BTreeMap<String, Moments<B::InnerBackend>>,
}

impl<B: AutodiffBackend> AdamW<B> {
    /// No steps taken yet.
    pub fn new(config: AdamWConfig, rule: GroupRule) -> Self {
        Self { config, rule, steps: 0, moments: BTreeMap::new() }
    }

    /// Steps taken.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Sets the weight decay of the groups that decay, for schedules of it.
    pub fn set_weight_decay(&mut self, weight_decay: f64) {
        self.rule.weight_decay = weight_decay;
    }

    /// One step: the gradients are scaled down to a global L2 norm of `max_norm` when given, then every
    /// trained parameter moves; one without a gradient as with a gradient of 0. Returns the model and the norm before clipping
    /// (on the device, `[1]`).
    pub fn step<M: AutodiffModule<B>>(
        &mut self,
        model: M,
        mut grads: B::Gradients,
        lr: f64,
        max_norm: Option<f64>,
    ) -> (M, Tensor<B::InnerBackend, 1>) {
        let norm = grad_norm(&model, &grads);
        // PyTorch's clip_grad_norm_: never scales up, and adds 1e-6 to the norm.
        let clip = max_norm.map(|max| norm.clone().add_scalar(1e-6).recip().mul_scalar(max).clamp_max(1.0));
        self.steps += 1;
        let mut mapper = StepMapper { optimizer: self, grads: &mut grads, lr, clip, path: Path::default() };
        (model.map(&mut mapper), norm)
    }

    /// Moments for a checkpoint: `exp_avg/<name>` and `exp_avg_sq/<name>` in the parameters' shapes.
    pub fn export(&self) -> BTreeMap<String, TensorData> {
        let mut tensors = BTreeMap::new();
        for (name, moments) in &self.moments {
            for (kind, values) in [("exp_avg", &moments.first), ("exp_avg_sq", &moments.second)] {
                let mut data = values.to_data();
                data.shape = moments.shape.clone().into();
                tensors.insert(format!("{kind}/{name}"), data);
            }
        }
        tensors
    }

    /// Takes over the state of a checkpoint.
    ///
    /// # Errors
    /// Names that are not of the form [`AdamW::export`] writes, or a moment without its partner.
    pub fn import(
        &mut self,
        mut tensors: BTreeMap<String, TensorData>,
        steps: u64,
        device: &B::Device,
    ) -> Result<(), Error> {
        self.steps = steps;
        self.moments.clear();
        let names: Vec<String> =
            tensors.keys().filter_map(|k| k.strip_prefix("exp_avg/").map(str::to_owned)).collect();
        for name in names {
            let first = tensors.remove(&format!("exp_avg/{name}"));
            let second = tensors.remove(&format!("exp_avg_sq/{name}"));
            let (Some(first), Some(second)) = (first, second) else {
                return Err(Error::WeightNames {
                    missing: vec![format!("exp_avg_sq/{name}")],
                    unexpected: vec![],
                });
            };
            let shape = first.shape.to_vec();
            let count: usize = shape.iter().product();
            let flat = |mut data: TensorData| {
                let dtype = data.dtype;
                data.shape = [count].into();
                Tensor::from_data(data, (device, dtype))
            };
            self.moments.insert(name, Moments { first: flat(first), second: flat(second), shape });
        }
        match tensors.into_keys().next() {
            None => Ok(()),
            Some(name) => Err(Error::WeightNames { missing: vec![], unexpected: vec![name] }),
        }
    }
}

struct StepMapper<'a, B: AutodiffBackend> {
    optimizer: &'a mut AdamW<B>,
    grads: &'a mut B::Gradients,
    lr: f64,
    clip: Option<Tensor<B::InnerBackend, 1>>,
    path: Path,
}

impl<B: AutodiffBackend> ModuleMapper<B> for StepMapper<'_, B> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.enter(name);
    }
    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.exit();
    }
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        if !param.is_require_grad() {
            return param;
        }
        let (id, value, mapper) = param.consume();
        // Why zeros: a branch that drop path dropped for the whole batch was not computed. Its parameters
        // have no gradient then, and move as they do with the gradient of a branch multiplied by 0.
        let grad = value.grad_remove(self.grads).unwrap_or_else(|| value.clone().inner().zeros_like());
        let shape = value.shape();
        let count = shape.num_elements();
        let info = ParamInfo { name: self.path.name(), shape: value.dims().to_vec(), trainable: true };
        let optimizer = &mut *self.optimizer;
        let step = AdamwStep {
            lr: self.lr * optimizer.rule.lr_scale_of(&info.name),
            beta1: optimizer.config.beta1,
            beta2: optimizer.config.beta2,
            eps: optimizer.config.eps,
            weight_decay: optimizer.rule.weight_decay_of(&info),
            step: optimizer.steps,
            grad_scale: 1.0,
        };
        let mut grad = grad.reshape([count]);
        if let Some(clip) = &self.clip {
            grad = grad * clip.clone();
        }
        let value = value.inner().reshape([count]);
        let state = optimizer.moments.remove(&info.name);
        let (first, second) = match state {
            Some(moments) => (moments.first, moments.second),
            None => (value.zeros_like(), value.zeros_like()),
        };
        let (value, first, second) = kernels::adamw(value, grad, first, second, step);
        optimizer.moments.insert(info.name, Moments { first, second, shape: info.shape });
        let value = Tensor::from_inner(value.reshape(shape)).require_grad();
        Param::from_mapped_value(id, value, mapper)
    }
}

struct NormVisitor<'a, B: AutodiffBackend> {
    grads: &'a B::Gradients,
    device: B::Device,
    squares: Vec<Tensor<B::InnerBackend, 1>>,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for NormVisitor<'_, B> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let value = param.val();
        self.device = value.device();
        if let Some(grad) = value.grad(self.grads) {
            self.squares.push(kernels::square_sum(grad));
        }
    }
}

/// Global L2 norm of all gradients, `[1]`, on the device.
pub fn grad_norm<B: AutodiffBackend, M: AutodiffModule<B>>(
    model: &M,
    grads: &B::Gradients,
) -> Tensor<B::InnerBackend, 1> {
    let mut visitor = NormVisitor { grads, device: Default::default(), squares: Vec::new() };
    model.visit(&mut visitor);
    if visitor.squares.is_empty() {
        return Tensor::zeros([1], &visitor.device);
    }
    Tensor::cat(visitor.squares, 0).sum().sqrt()
}

struct GradVisitor<'a, B: AutodiffBackend> {
    grads: &'a B::Gradients,
    path: Path,
    named: BTreeMap<String, TensorData>,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for GradVisitor<'_, B> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.enter(name);
    }
    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.exit();
    }
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if let Some(grad) = param.val().grad(self.grads) {
            self.named.insert(self.path.name(), grad.into_data());
        }
    }
}

/// Gradients by parameter name, on the host.
pub fn gradients<B: AutodiffBackend, M: AutodiffModule<B>>(
    model: &M,
    grads: &B::Gradients,
) -> BTreeMap<String, TensorData> {
    let mut visitor = GradVisitor { grads, path: Path::default(), named: BTreeMap::new() };
    model.visit(&mut visitor);
    visitor.named
}
