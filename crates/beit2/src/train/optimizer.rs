//! AdamW over named parameters, with global-norm clipping.

use std::any::Any;
use std::collections::BTreeMap;

use beit2_kernels::{
    self as kernels, AdamwStep, AdamwTensors, AdamwUpdated, AnyRank, AutodiffBackend, Backend,
};
use burn::module::{AutodiffModule, ModuleMapper, ModuleVisitor, Param, ParamId, ParamMapper};
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
        self.steps += 1;
        let taken = Taken { tensors: Vec::new(), places: Vec::new() };
        let mut take = Take { optimizer: self, grads: &mut grads, lr, path: Path::default(), taken };
        let model = model.map(&mut take);
        let Taken { tensors, places } = take.taken;
        let updated = kernels::adamw_all(tensors, max_norm.map(|max| (norm.clone(), max)));
        let updated: Vec<_> = places.into_iter().zip(updated).collect();
        let model = model.map(&mut PutBack { optimizer: self, updated: updated.into_iter() });
        (model, norm)
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

/// What [`Take`] took out of a model, in the model's order.
struct Taken<B: AutodiffBackend> {
    tensors: Vec<AdamwTensors<B::InnerBackend>>,
    places: Vec<Place>,
}

/// Where an updated parameter goes back to.
struct Place {
    info: ParamInfo,
    id: ParamId,
    /// The `ParamMapper` of a tensor of the parameter's rank.
    mapper: Box<dyn Any>,
}

/// Takes trained parameters out of the model, each with its gradient and moments: all of them move in one operation, in
/// place, so nothing else may hold them meanwhile.
struct Take<'a, B: AutodiffBackend> {
    optimizer: &'a mut AdamW<B>,
    grads: &'a mut B::Gradients,
    lr: f64,
    path: Path,
    taken: Taken<B>,
}

impl<B: AutodiffBackend> ModuleMapper<B> for Take<'_, B> {
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
        // No gradient counts as zeros: a branch that drop path dropped for the whole batch was not computed. Its
        // parameters move as they do with the gradient of a branch multiplied by 0.
        let grad = value.grad_remove(self.grads).map(AnyRank::from);
        let (device, shape) = (value.device(), value.shape());
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
        let moments = optimizer.moments.remove(&info.name).map(|moments| [moments.first, moments.second]);
        self.taken.tensors.push(AdamwTensors { value: value.inner().into(), grad, moments, step });
        self.taken.places.push(Place { info, id, mapper: Box::new(mapper) });
        // Without a value until `PutBack` gives it the new one.
        let nothing = |device: &B::Device, _| Tensor::empty([0; D], device);
        Param::uninitialized(id, nothing, device, true, shape)
    }
}

/// Gives the parameters that [`Take`] took their new values.
struct PutBack<'a, B: AutodiffBackend> {
    optimizer: &'a mut AdamW<B>,
    updated: std::vec::IntoIter<(Place, AdamwUpdated<B::InnerBackend>)>,
}

impl<B: AutodiffBackend> ModuleMapper<B> for PutBack<'_, B> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        if param.is_initialized() {
            return param;
        }
        let Some((place, (value, [first, second]))) = self.updated.next() else {
            unreachable!("as many parameters are put back as were taken");
        };
        let Place { info, id, mapper } = place;
        let Ok(mapper) = mapper.downcast::<ParamMapper<Tensor<B, D>>>() else {
            unreachable!("parameters are put back in the order in which they were taken");
        };
        self.optimizer.moments.insert(info.name, Moments { first, second, shape: info.shape });
        let value = Tensor::from_inner(value.ranked::<D>()).require_grad();
        Param::from_mapped_value(id, value, *mapper)
    }
}

struct NormVisitor<'a, B: AutodiffBackend> {
    grads: &'a B::Gradients,
    device: B::Device,
    found: Vec<AnyRank<B::InnerBackend>>,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for NormVisitor<'_, B> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let value = param.val();
        self.device = value.device();
        self.found.extend(value.grad(self.grads).map(AnyRank::from));
    }
}

/// Global L2 norm of all gradients, `[1]`, on the device.
pub fn grad_norm<B: AutodiffBackend, M: AutodiffModule<B>>(
    model: &M,
    grads: &B::Gradients,
) -> Tensor<B::InnerBackend, 1> {
    let mut visitor = NormVisitor { grads, device: Default::default(), found: Vec::new() };
    model.visit(&mut visitor);
    if visitor.found.is_empty() {
        return Tensor::zeros([1], &visitor.device);
    }
    kernels::grad_norm(visitor.found)
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
