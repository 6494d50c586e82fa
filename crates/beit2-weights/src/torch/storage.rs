//! References from the pickle to the storages behind it.

use crate::pickle::{Id, Pickle};
use crate::tensor::DType;

/// What the elements of a storage are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Element {
    /// A type we read.
    Known(DType),
    /// Bytes whose meaning the tensor tells (`UntypedStorage`).
    Raw,
    /// A type we do not read, of this size. Why keep it: in the legacy format the storages behind it must still be found.
    Other(u64),
}

impl Element {
    fn size(self) -> u64 {
        match self {
            Element::Known(dtype) => dtype.size() as u64,
            Element::Raw => 1,
            Element::Other(size) => size,
        }
    }
}

/// A reference to a storage.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Storage<'a> {
    pub(crate) key: &'a str,
    pub(crate) element: Element,
    /// The name of its class, such as `FloatStorage`.
    pub(crate) class: &'a str,
    /// How many elements it has.
    pub(crate) count: u64,
    /// In old files: the element at which a view of it starts.
    view_offset: u64,
}

impl Storage<'_> {
    pub(crate) fn byte_len(&self) -> Option<u64> {
        self.count.checked_mul(self.element.size())
    }

    /// The byte at which the view of it starts.
    pub(crate) fn view_start(&self) -> Option<u64> {
        self.view_offset.checked_mul(self.element.size())
    }
}

/// Reads `('storage', class, key, device, count[, view])`; `None` when it is anything else.
pub(crate) fn parse(pickle: &Pickle, id: Id) -> Option<Storage<'_>> {
    let (kind, class, key, count, view) = match *pickle.items(id)? {
        [kind, class, key, _, count] => (kind, class, key, count, None),
        [kind, class, key, _, count, view] => (kind, class, key, count, Some(view)),
        _ => return None,
    };
    if pickle.str(kind) != Some("storage") {
        return None;
    }
    let (module, class) = pickle.global(class)?;
    let view_offset = match view.and_then(|view| pickle.items(view)) {
        Some(&[_, offset, _]) => pickle.count(offset)?,
        _ => 0,
    };
    Some(Storage {
        key: pickle.str(key)?,
        element: element(module, class)?,
        class,
        count: pickle.count(count)?,
        view_offset,
    })
}

/// The elements of a storage class. Classes that are not listed make the tensor unreadable, never a guess.
fn element(module: &str, class: &str) -> Option<Element> {
    if !matches!(module, "torch" | "torch.cuda" | "torch.storage") {
        return None;
    }
    Some(match class {
        "DoubleStorage" => Element::Known(DType::F64),
        "FloatStorage" => Element::Known(DType::F32),
        "HalfStorage" => Element::Known(DType::F16),
        "BFloat16Storage" => Element::Known(DType::BF16),
        "LongStorage" => Element::Known(DType::I64),
        "IntStorage" => Element::Known(DType::I32),
        "ShortStorage" => Element::Known(DType::I16),
        "CharStorage" => Element::Known(DType::I8),
        "ByteStorage" => Element::Known(DType::U8),
        "BoolStorage" => Element::Known(DType::Bool),
        "UntypedStorage" => Element::Raw,
        "ComplexDoubleStorage" => Element::Other(16),
        "ComplexFloatStorage" => Element::Other(8),
        "QInt32Storage" => Element::Other(4),
        "QInt8Storage" | "QUInt8Storage" | "QUInt4x2Storage" | "QUInt2x4Storage" => Element::Other(1),
        _ => return None,
    })
}

/// The type that `torch.NAME` means.
pub(crate) fn dtype(name: &str) -> Option<DType> {
    Some(match name {
        "float64" | "double" => DType::F64,
        "float32" | "float" => DType::F32,
        "float16" | "half" => DType::F16,
        "bfloat16" => DType::BF16,
        "int64" | "long" => DType::I64,
        "int32" | "int" => DType::I32,
        "int16" | "short" => DType::I16,
        "int8" => DType::I8,
        "uint8" => DType::U8,
        "bool" => DType::Bool,
        _ => return None,
    })
}
