//! The few functions of torch whose recorded calls mean a tensor.

use crate::pickle::{Id, Node, Pickle};
use crate::tensor::DType;
use crate::torch::storage::{self, Element, Storage};

/// How many functions may be wrapped around each other: a Parameter around a subclass around a tensor is three.
const MAX_WRAPPERS: usize = 8;
/// The most dimensions of a tensor; torch itself stops at 64.
const MAX_DIMENSIONS: usize = 64;

/// A tensor as the pickle describes it; its storage is not yet looked for.
#[derive(Debug, Clone)]
pub(crate) struct Spec<'a> {
    pub(crate) storage: Storage<'a>,
    /// The element of the storage (or of the view of it) at which the tensor starts.
    pub(crate) offset: u64,
    pub(crate) shape: Vec<usize>,
    pub(crate) strides: Vec<usize>,
    /// The name of its type where the call gives one.
    dtype: Option<&'a str>,
}

impl Spec<'_> {
    /// The element type, or why it cannot be read.
    pub(crate) fn dtype(&self) -> Result<DType, String> {
        match (self.dtype, self.storage.element) {
            (None, Element::Known(dtype)) => Ok(dtype),
            (Some(name), Element::Known(_) | Element::Raw) => storage::dtype(name)
                .ok_or_else(|| format!("has type torch.{name}; known are {}", DType::NAMES)),
            _ => Err(format!(
                "lies in a {}, which is not supported; known types are {}",
                self.storage.class,
                DType::NAMES
            )),
        }
    }
}

/// The tensor that a value is; `None` when it is none, an error when it is one that cannot be read.
pub(crate) fn tensor(pickle: &Pickle, id: Id) -> Option<Result<Spec<'_>, String>> {
    let Node::Made { callable, args, .. } = pickle.node(id) else {
        return None;
    };
    call(pickle, *callable, *args, MAX_WRAPPERS)
}

fn call(pickle: &Pickle, callable: Id, args: Id, wrappers: usize) -> Option<Result<Spec<'_>, String>> {
    let (module, name) = pickle.global(callable)?;
    let unsupported = || {
        Some(Err(format!(
            "was saved by `{module}.{name}` in a way that is not supported; save a plain dense tensor"
        )))
    };
    let args = pickle.items(args).unwrap_or(&[]);
    match (module, name, args) {
        (
            "torch._utils",
            "_rebuild_tensor" | "_rebuild_tensor_v2",
            &[storage, offset, shape, strides, ..],
        ) => dense(pickle, [storage, offset, shape, strides], None).map(Ok).or_else(unsupported),
        ("torch._utils", "_rebuild_tensor_v3", &[storage, offset, shape, strides, _, _, dtype, ..]) => {
            let dtype = pickle.global(dtype).filter(|(module, _)| *module == "torch").map(|(_, name)| name);
            let spec = dtype.and_then(|dtype| dense(pickle, [storage, offset, shape, strides], Some(dtype)));
            spec.map(Ok).or_else(unsupported)
        }
        ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state", &[data, ..])
            if wrappers > 0 =>
        {
            let Node::Made { callable, args, .. } = pickle.node(data) else {
                return unsupported();
            };
            call(pickle, *callable, *args, wrappers - 1).or_else(unsupported)
        }
        ("torch._tensor", "_rebuild_from_type_v2", &[function, _, args, ..]) if wrappers > 0 => {
            call(pickle, function, args, wrappers - 1).or_else(unsupported)
        }
        // Sparse, quantized, nested, on other devices …: leaving such a weight out silently would be worse than an error.
        ("torch._utils" | "torch._tensor", name, _) if name.starts_with("_rebuild") => unsupported(),
        _ => None,
    }
}

fn dense<'a>(
    pickle: &'a Pickle,
    [storage, offset, shape, strides]: [Id; 4],
    dtype: Option<&'a str>,
) -> Option<Spec<'a>> {
    let Node::Persistent(storage) = pickle.node(storage) else {
        return None;
    };
    let numbers = |id| -> Option<Vec<usize>> {
        let items = pickle.items(id).filter(|items| items.len() <= MAX_DIMENSIONS)?;
        items.iter().map(|&item| usize::try_from(pickle.count(item)?).ok()).collect()
    };
    let (shape, strides) = (numbers(shape)?, numbers(strides)?);
    (shape.len() == strides.len()).then_some(())?;
    Some(Spec {
        storage: storage::parse(pickle, *storage)?,
        offset: pickle.count(offset)?,
        shape,
        strides,
        dtype,
    })
}
