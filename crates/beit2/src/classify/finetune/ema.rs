//! Moving averages of a model's parameters.

use std::collections::BTreeMap;

use beit2_kernels::Backend;
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
        let mut ema = Self { decay, averages: BTreeMap::new() };
        ema.visit(model, |_, value| value);
        ema
    }

    /// Takes in the parameters after a step.
    pub fn update<M: Module<B>>(&mut self, model: &M) {
        let decay = self.decay;
        self.visit(model, |average, value| match average {
            Some(average) => average.mul_scalar(decay) + value.mul_scalar(1.0 - decay),
            None => value,
        });
    }

    fn visit<M: Module<B>>(
        &mut self,
        model: &M,
        each: impl Fn(Option<Tensor<B, 1>>, Tensor<B, 1>) -> Tensor<B, 1>,
    ) {
        model.visit(&mut Visitor { path: Path::default(), averages: &mut self.averages, each });
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

struct Visitor<'a, B: Backend, F> {
    path: Path,
    averages: &'a mut BTreeMap<String, Tensor<B, 1>>,
    each: F,
}

impl<B: Backend, F> ModuleVisitor<B> for Visitor<'_, B, F>
where
    F: Fn(Option<Tensor<B, 1>>, Tensor<B, 1>) -> Tensor<B, 1>,
{
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.enter(name);
    }
    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.exit();
    }
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let value = param.val();
        let count = value.shape().num_elements();
        let name = self.path.name();
        let average = self.averages.remove(&name);
        self.averages.insert(name, (self.each)(average, value.reshape([count])));
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
