//! Moving averages of a model's parameters.

use std::collections::BTreeMap;

use beit2_kernels::{self as kernels, AnyRank, Backend};
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{DType, Tensor, TensorData};

use crate::error::Error;
use crate::params::Path;

/// The exponential moving average of every parameter: `ema ← decay · ema + (1 − decay) · parameter` after each
/// optimiser step, from a copy of the first parameters.
///
/// The reference keeps such an average but neither evaluates nor resumes it (docs/method.md §9, trap 26); here it is a
/// model like any other.
#[derive(Debug, Clone)]
pub struct Ema<B: Backend> {
    decay: f64,
    averages: BTreeMap<String, Tensor<B, 1>>,
}

impl<B: Backend> Ema<B> {
    /// Starts from a copy of the model.
    pub fn new<M: Module<B>>(model: &M, decay: f64) -> Self {
        let flat = |(name, value): (String, AnyRank<B>)| (name, value.flat());
        Self { decay, averages: values(model).into_iter().map(flat).collect() }
    }

    /// Takes in the parameters after a step.
    pub fn update<M: Module<B>>(&mut self, model: &M) {
        let (mut names, mut pairs) = (Vec::new(), Vec::new());
        for (name, value) in values(model) {
            if let Some(average) = self.averages.remove(&name) {
                names.push(name);
                pairs.push([average.into(), value]);
            }
        }
        let sums = kernels::weighted_sums(pairs, [self.decay, 1.0 - self.decay]);
        self.averages.extend(names.into_iter().zip(sums.into_iter().map(AnyRank::flat)));
    }

    /// The model with the averages in place of its parameters.
    pub fn model<M: Module<B>>(&self, model: M) -> M {
        model.map(&mut Mapper { path: Path::default(), averages: &self.averages })
    }

    /// The averages for a checkpoint, by name, flat.
    pub fn export(&self) -> BTreeMap<String, TensorData> {
        self.averages.iter().map(|(name, values)| (name.clone(), values.to_data())).collect()
    }

    /// Takes over the averages of a checkpoint, of any shape with the right number of values. Counters of batches are
    /// not averaged; those of a checkpoint are left out.
    ///
    /// # Errors
    /// Names or sizes that differ from the model's.
    pub fn import(&mut self, mut tensors: BTreeMap<String, TensorData>) -> Result<(), Error> {
        tensors.retain(|name, _| !name.ends_with(".num_batches_tracked"));
        for (name, average) in &mut self.averages {
            let Some(mut data) = tensors.remove(name) else {
                return Err(Error::WeightNames { missing: vec![name.clone()], unexpected: vec![] });
            };
            let expected = average.dims();
            let found: usize = data.shape.iter().product();
            if [found] != expected {
                return Err(Error::WeightShape {
                    name: name.clone(),
                    expected: expected.to_vec(),
                    found: data.shape.to_vec(),
                });
            }
            data.shape = [found].into();
            *average = Tensor::from_data(data, (&average.device(), DType::F32));
        }
        match tensors.into_keys().next() {
            Some(name) => Err(Error::WeightNames { missing: vec![], unexpected: vec![name] }),
            None => Ok(()),
        }
    }
}

/// All parameters by name.
fn values<B: Backend, M: Module<B>>(model: &M) -> Vec<(String, AnyRank<B>)> {
    let mut visitor = Visitor { path: Path::default(), found: Vec::new() };
    model.visit(&mut visitor);
    visitor.found
}

struct Visitor<B: Backend> {
    path: Path,
    found: Vec<(String, AnyRank<B>)>,
}

impl<B: Backend> ModuleVisitor<B> for Visitor<B> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.enter(name);
    }
    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.exit();
    }
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        self.found.push((self.path.name(), param.val().into()));
    }
}

struct Mapper<'a, B: Backend> {
    path: Path,
    averages: &'a BTreeMap<String, Tensor<B, 1>>,
}

impl<B: Backend> ModuleMapper<B> for Mapper<'_, B> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.enter(name);
    }
    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.exit();
    }
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let (id, value, mapper) = param.consume();
        let value = match self.averages.get(&self.path.name()) {
            Some(average) => average.clone().reshape(value.shape()),
            None => value,
        };
        Param::from_mapped_value(id, value, mapper)
    }
}
