//! What a graph's nodes read that no node computes: weights and constants. Their bytes are made one tensor at a time, when the
//! file is written, so that a model is in memory once.

use burn::tensor::{DType, TensorData};

use super::WeightType;
use super::proto::{self, Entry, data_type};
use crate::vit::relative_position_index;

/// Values of a tensor, before they have the type and order of the file.
pub(super) enum Values {
    /// As they are.
    Plain(Vec<f32>),
    /// A matrix of so many rows, to be written column by column.
    Transposed { values: Vec<f32>, rows: usize },
    /// A table `[rows, H]` of relative positions, to be written as `[H, T, T]` of a square grid.
    Spread { table: Vec<f32>, grid: usize, heads: usize },
    /// Integers, 64 bits each.
    Integers(Vec<i64>),
}

impl Values {
    /// Why a type cannot hold them, if it cannot.
    pub fn beyond(&self, store: WeightType) -> Option<&'static str> {
        let (Self::Plain(values) | Self::Transposed { values, .. } | Self::Spread { table: values, .. }) =
            self
        else {
            return None;
        };
        if values.iter().any(|value| value.is_nan()) {
            return Some("a value that is no number");
        }
        let largest = values.iter().fold(0f32, |largest, value| largest.max(value.abs()));
        let dtype = dtype(store);
        let rounded = TensorData::from([largest]).convert_dtype(dtype);
        (!rounded.iter::<f32>().all(f32::is_finite)).then_some("a value beyond its range")
    }

    /// In the order of the file, little-endian.
    fn to_bytes(&self, store: WeightType) -> Vec<u8> {
        let floats = match self {
            Self::Integers(values) => return values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Self::Plain(values) => values.clone(),
            Self::Transposed { values, rows } => {
                let columns = values.len() / (*rows).max(1);
                (0..values.len()).map(|at| values[at % rows * columns + at / rows]).collect()
            }
            Self::Spread { table, grid, heads } => {
                let index = relative_position_index(*grid, *grid);
                let of_head = |head: usize| index.iter().map(move |&row| table[row as usize * heads + head]);
                (0..*heads).flat_map(of_head).collect()
            }
        };
        if store == WeightType::F32 {
            return floats.iter().flat_map(|value| value.to_le_bytes()).collect();
        }
        // Every system that Burn runs on is little-endian, and so is the file.
        let count = floats.len();
        TensorData::new(floats, [count]).convert_dtype(dtype(store)).as_bytes().to_vec()
    }
}

fn dtype(store: WeightType) -> DType {
    match store {
        WeightType::F32 => DType::F32,
        WeightType::F16 => DType::F16,
        WeightType::Bf16 => DType::BF16,
    }
}

/// A named tensor.
pub(super) struct Initializer {
    name: String,
    shape: Vec<usize>,
    store: WeightType,
    values: Values,
}

impl Initializer {
    /// Of `values`, which `store` holds.
    pub fn new(name: &str, store: WeightType, shape: &[usize], values: Values) -> Self {
        Self { name: name.to_owned(), shape: shape.to_vec(), store, values }
    }

    /// Everything but the values.
    pub fn head(&self) -> proto::Tensor {
        let data_type = match (&self.values, self.store) {
            (Values::Integers(_), _) => data_type::INT64,
            (_, WeightType::F32) => data_type::FLOAT,
            (_, WeightType::F16) => data_type::FLOAT16,
            (_, WeightType::Bf16) => data_type::BFLOAT16,
        };
        let dims = self.shape.iter().map(|&size| size as i64).collect();
        proto::Tensor { dims, data_type, name: self.name.clone(), ..proto::Tensor::default() }
    }

    /// [`Initializer::head`] of values that are in another file.
    pub fn head_outside(&self, file: &str, offset: u64) -> proto::Tensor {
        let entry = |key: &str, value: String| Entry { key: key.to_owned(), value };
        let external_data = vec![
            entry("location", file.to_owned()),
            entry("offset", offset.to_string()),
            entry("length", self.byte_len().to_string()),
        ];
        proto::Tensor { external_data, data_location: Some(1), ..self.head() }
    }

    /// Bytes of the values.
    pub fn byte_len(&self) -> u64 {
        let size = match (&self.values, self.store) {
            (Values::Integers(_), _) => 8,
            (_, WeightType::F32) => 4,
            (_, WeightType::F16 | WeightType::Bf16) => 2,
        };
        self.shape.iter().product::<usize>() as u64 * size
    }

    /// The values, little-endian.
    pub fn bytes(&self) -> Vec<u8> {
        self.values.to_bytes(self.store)
    }
}
