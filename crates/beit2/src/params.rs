//! Parameters by their official names.
//!
//! Field names of the modules are the names in the published checkpoints, so the path that Burn
//! reports while it walks a module *is* the state-dict key. The few places where Rust and the
//! checkpoints cannot agree (grouping fields, digits as names) are listed in `Path::enter`.

use std::collections::BTreeMap;

use beit2_kernels::Backend;
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{DType, Int, Shape, Tensor, TensorData};

use crate::error::Error;

/// What batch norms keep beside their parameters.
const STATISTICS: [&str; 3] = ["running_mean", "running_var", "num_batches_tracked"];

/// The dotted name of the parameter that a walk is at.
#[derive(Debug, Default)]
pub(crate) struct Path {
    segments: Vec<Option<String>>,
}

impl Path {
    pub(crate) fn enter(&mut self, name: &str) {
        self.segments.push(match name {
            // Grouping fields that the checkpoints do not have.
            "trunk" | "rel_pos" => None,
            // `nn.Sequential`: positions are names there.
            "layer0" => Some("0".into()),
            "layer1" => Some("1".into()),
            "layer2" => Some("2".into()),
            "layer3" => Some("3".into()),
            name => Some(name.into()),
        });
    }

    pub(crate) fn exit(&mut self) {
        self.segments.pop();
    }

    /// Whether gradients move the parameter: everything but the codebook's state, which its own
    /// averages move, and the running statistics of batch norms. Taken from the name because only
    /// recording backends know it of a tensor.
    pub(crate) fn is_trained(&self) -> bool {
        let mut segments = self.segments.iter().flatten();
        !segments.any(|segment| segment == "quantize" || STATISTICS.contains(&segment.as_str()))
    }

    pub(crate) fn name(&self) -> String {
        let parts: Vec<&str> = self.segments.iter().flatten().map(String::as_str).collect();
        parts.join(".")
    }
}

/// What a checkpoint's key list says of one tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParamInfo {
    /// Official state-dict key.
    pub name: String,
    /// Shape as stored (linear weights are `[out, in]`; a counter is a scalar, `[]`).
    pub shape: Vec<usize>,
    /// False for state that no gradient reaches (the codebook, for example).
    pub trainable: bool,
}

struct ReadVisitor<F> {
    path: Path,
    each: F,
}

impl<B: Backend, F: FnMut(ParamInfo, &dyn Fn() -> TensorData)> ModuleVisitor<B> for ReadVisitor<F> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.enter(name);
    }
    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.exit();
    }
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let value = param.val();
        let name = self.path.name();
        // Loudly, because a file without them would look like a model.
        assert!(
            value.dims() != [0; D],
            "{name} of a frozen model is gone; save the model before freezing it"
        );
        let info = ParamInfo { name, shape: value.dims().to_vec(), trainable: self.path.is_trained() };
        (self.each)(info, &|| value.to_data());
    }
    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<B, D, Int>>) {
        let value = param.val();
        let info = ParamInfo { name: self.path.name(), shape: Vec::new(), trainable: false };
        (self.each)(info, &|| {
            let mut data = value.to_data().convert_dtype(DType::I64);
            data.shape = Shape::from(Vec::<usize>::new());
            data
        });
    }
}

/// Calls `each` with every parameter's description and a function that fetches its values.
pub fn visit<B: Backend, M: Module<B>>(module: &M, each: impl FnMut(ParamInfo, &dyn Fn() -> TensorData)) {
    module.visit(&mut ReadVisitor { path: Path::default(), each });
}

/// Every parameter's name, shape and whether it is trained, in the order of the model.
pub fn list<B: Backend, M: Module<B>>(module: &M) -> Vec<ParamInfo> {
    let mut infos = Vec::new();
    visit(module, |info, _| infos.push(info));
    infos
}

/// Number of trained values.
pub fn count<B: Backend, M: Module<B>>(module: &M) -> usize {
    let size = |info: &ParamInfo| info.shape.iter().product::<usize>();
    list(module).iter().filter(|info| info.trainable).map(size).sum()
}

/// Fetches every parameter to the host.
pub fn export<B: Backend, M: Module<B>>(module: &M) -> BTreeMap<String, TensorData> {
    let mut tensors = BTreeMap::new();
    visit(module, |info, fetch| {
        tensors.insert(info.name, fetch());
    });
    tensors
}

struct DrainMapper {
    path: Path,
    tensors: BTreeMap<String, TensorData>,
}

impl<B: Backend> ModuleMapper<B> for DrainMapper {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.enter(name);
    }
    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.exit();
    }
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let (id, value, mapper) = param.consume();
        let empty = Tensor::zeros([0; D], &value.device());
        self.tensors.insert(self.path.name(), value.into_data());
        Param::from_mapped_value(id, empty, mapper)
    }
    fn map_int<const D: usize>(&mut self, param: Param<Tensor<B, D, Int>>) -> Param<Tensor<B, D, Int>> {
        let (id, value, mapper) = param.consume();
        let mut data = value.to_data().convert_dtype(DType::I64);
        data.shape = Shape::from(Vec::<usize>::new());
        self.tensors.insert(self.path.name(), data);
        Param::from_mapped_value(id, value, mapper)
    }
}

/// [`export`] of a model that is not needed any more: on the CPU its memory becomes that of the tensors.
pub fn into_tensors<B: Backend, M: Module<B>>(module: M) -> BTreeMap<String, TensorData> {
    let mut mapper = DrainMapper { path: Path::default(), tensors: BTreeMap::new() };
    module.map(&mut mapper);
    mapper.tensors
}

struct WriteMapper<F> {
    path: Path,
    each: F,
}

impl<B: Backend, F: FnMut(ParamInfo) -> Option<(TensorData, DType)>> ModuleMapper<B> for WriteMapper<F> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.enter(name);
    }
    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.exit();
    }
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let trainable = self.path.is_trained();
        let (id, old, mapper) = param.consume();
        let info = ParamInfo { name: self.path.name(), shape: old.dims().to_vec(), trainable };
        let value = match (self.each)(info) {
            Some((data, dtype)) => Tensor::from_data(data, (&old.device(), dtype)),
            None => old,
        };
        Param::from_mapped_value(id, value.set_require_grad(trainable), mapper)
    }
    fn map_int<const D: usize>(&mut self, param: Param<Tensor<B, D, Int>>) -> Param<Tensor<B, D, Int>> {
        let (id, old, mapper) = param.consume();
        let info = ParamInfo { name: self.path.name(), shape: Vec::new(), trainable: false };
        let value = match (self.each)(info) {
            Some((mut data, _)) => {
                data.shape = old.shape();
                Tensor::from_data(data, (&old.device(), old.dtype()))
            }
            None => old,
        };
        Param::from_mapped_value(id, value, mapper)
    }
}

/// Replaces parameters: `each` returns the new values (of the same shape) with the type to keep them
/// in, or `None` to leave a parameter as it is. Counters stay integers whatever the type.
pub fn replace<B: Backend, M: Module<B>>(
    module: M,
    each: impl FnMut(ParamInfo) -> Option<(TensorData, DType)>,
) -> M {
    module.map(&mut WriteMapper { path: Path::default(), each })
}

/// What [`load`] did not use or did not find.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct LoadReport {
    /// Parameters of the model that the tensors do not hold.
    pub missing: Vec<String>,
    /// Tensors that the model has no parameter for.
    pub unused: Vec<String>,
}

/// Loads `tensors` by name into the model as `dtype`.
///
/// # Errors
/// A tensor whose shape differs from its parameter's: the first such name with both shapes. Names
/// that do not match are not errors here; the caller decides from the [`LoadReport`].
pub fn load<B: Backend, M: Module<B>>(
    module: M,
    mut tensors: BTreeMap<String, TensorData>,
    dtype: DType,
) -> Result<(M, LoadReport), Error> {
    let mut report = LoadReport::default();
    let mut wrong = None;
    let module = replace(module, |info| {
        let Some(data) = tensors.remove(&info.name) else {
            report.missing.push(info.name);
            return None;
        };
        if data.shape.as_slice() != info.shape.as_slice() {
            wrong.get_or_insert(Error::WeightShape {
                name: info.name,
                expected: info.shape,
                found: data.shape.to_vec(),
            });
            return None;
        }
        Some((data, dtype))
    });
    report.unused = tensors.into_keys().collect();
    match wrong {
        Some(error) => Err(error),
        None => Ok((module, report)),
    }
}

/// [`load`] in which every parameter and every tensor must find its partner; `ignore` names tensors
/// that may stay unused (derived buffers, for example).
///
/// # Errors
/// The first names that are missing or not expected.
pub fn load_strict<B: Backend, M: Module<B>>(
    module: M,
    tensors: BTreeMap<String, TensorData>,
    dtype: DType,
    ignore: impl Fn(&str) -> bool,
) -> Result<M, Error> {
    let (module, mut report) = load(module, tensors, dtype)?;
    report.unused.retain(|name| !ignore(name));
    if report.missing.is_empty() && report.unused.is_empty() {
        Ok(module)
    } else {
        Err(Error::WeightNames { missing: report.missing, unexpected: report.unused })
    }
}
