//! A tensor in memory: a type, a shape and little-endian bytes.

use half::{bf16, f16};

/// The element types of checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DType {
    /// 64-bit float.
    F64,
    /// 32-bit float.
    F32,
    /// 16-bit IEEE float.
    F16,
    /// 16-bit brain float.
    BF16,
    /// Signed 64-bit integer.
    I64,
    /// Signed 32-bit integer.
    I32,
    /// Signed 16-bit integer.
    I16,
    /// Signed 8-bit integer.
    I8,
    /// Unsigned 8-bit integer.
    U8,
    /// One byte, 0 or 1.
    Bool,
}

impl DType {
    /// All types, in the order in which safetensors files store them: wide ones first, so that every tensor is aligned.
    pub(crate) const STORE_ORDER: [DType; 10] = [
        DType::I64,
        DType::F64,
        DType::F32,
        DType::I32,
        DType::BF16,
        DType::F16,
        DType::I16,
        DType::I8,
        DType::U8,
        DType::Bool,
    ];

    /// The names of all types, for error messages.
    pub(crate) const NAMES: &'static str = "F64, F32, F16, BF16, I64, I32, I16, I8, U8, BOOL";

    /// Bytes per element.
    pub fn size(self) -> usize {
        match self {
            DType::F64 | DType::I64 => 8,
            DType::F32 | DType::I32 => 4,
            DType::F16 | DType::BF16 | DType::I16 => 2,
            DType::I8 | DType::U8 | DType::Bool => 1,
        }
    }

    /// Whether values of this type can be fractions, infinite or not a number.
    pub fn is_float(self) -> bool {
        matches!(self, DType::F64 | DType::F32 | DType::F16 | DType::BF16)
    }

    /// The name used in safetensors headers.
    pub fn name(self) -> &'static str {
        match self {
            DType::F64 => "F64",
            DType::F32 => "F32",
            DType::F16 => "F16",
            DType::BF16 => "BF16",
            DType::I64 => "I64",
            DType::I32 => "I32",
            DType::I16 => "I16",
            DType::I8 => "I8",
            DType::U8 => "U8",
            DType::Bool => "BOOL",
        }
    }

    /// The type of that name in a safetensors header.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::STORE_ORDER.into_iter().find(|dtype| dtype.name() == name)
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Bytes of `shape` elements of `dtype`, unless that overflows.
pub(crate) fn byte_len(dtype: DType, shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(dtype.size(), |bytes, &dim| bytes.checked_mul(dim))
}

/// A tensor in memory: contiguous, row-major, little-endian whatever the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    dtype: DType,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Tensor {
    /// A tensor from its parts; `None` when `bytes` is not as long as `shape` and `dtype` say.
    pub fn new(dtype: DType, shape: Vec<usize>, bytes: Vec<u8>) -> Option<Self> {
        (byte_len(dtype, &shape) == Some(bytes.len())).then_some(Self { dtype, shape, bytes })
    }

    /// An `F32` tensor; `None` when there are not as many values as `shape` says.
    pub fn from_f32(shape: Vec<usize>, values: &[f32]) -> Option<Self> {
        Self::new(DType::F32, shape, values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    /// An `I64` tensor; `None` when there are not as many values as `shape` says.
    pub fn from_i64(shape: Vec<usize>, values: &[i64]) -> Option<Self> {
        Self::new(DType::I64, shape, values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The shape; empty for a scalar.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The elements, row-major, little-endian.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The elements, given away.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Every element as `f32`: 16-bit floats exactly, `F64` and 32/64-bit integers rounded, `Bool` as 0 or 1.
    pub fn to_f32(&self) -> Vec<f32> {
        match self.dtype {
            DType::F64 => self.map(|b| f64::from_le_bytes(b) as f32),
            DType::F32 => self.map(f32::from_le_bytes),
            DType::F16 => self.map(|b| f16::from_le_bytes(b).to_f32()),
            DType::BF16 => self.map(|b| bf16::from_le_bytes(b).to_f32()),
            DType::I64 => self.map(|b| i64::from_le_bytes(b) as f32),
            DType::I32 => self.map(|b| i32::from_le_bytes(b) as f32),
            DType::I16 => self.map(|b| i16::from_le_bytes(b).into()),
            DType::I8 => self.map(|b| i8::from_le_bytes(b).into()),
            DType::U8 => self.map(|[b]| b.into()),
            DType::Bool => self.map(|[b]| f32::from(u8::from(b != 0))),
        }
    }

    /// The elements of an `F64` tensor, `None` for any other type: for calculations that must not lose its digits.
    pub(crate) fn to_f64_if_double(&self) -> Option<Vec<f64>> {
        (self.dtype == DType::F64).then(|| self.map(f64::from_le_bytes))
    }

    /// Every element as `i64`, or `None` for a float type: an index that became a float is a mistake in the file, and
    /// rounding it would hide that.
    pub fn to_i64(&self) -> Option<Vec<i64>> {
        Some(match self.dtype {
            DType::F64 | DType::F32 | DType::F16 | DType::BF16 => return None,
            DType::I64 => self.map(i64::from_le_bytes),
            DType::I32 => self.map(|b| i32::from_le_bytes(b).into()),
            DType::I16 => self.map(|b| i16::from_le_bytes(b).into()),
            DType::I8 => self.map(|b| i8::from_le_bytes(b).into()),
            DType::U8 => self.map(|[b]| b.into()),
            DType::Bool => self.map(|[b]| i64::from(b != 0)),
        })
    }

    /// Whether no element is NaN or infinite: the exponent bits are not all set. True for integers.
    ///
    /// By bits, so that it is one simple loop for every type: a gigabyte takes a fraction of a second.
    pub fn is_finite(&self) -> bool {
        fn any<const N: usize>(bytes: &[u8], is_bad: impl Fn([u8; N]) -> bool) -> bool {
            // Pieces without an early exit inside, which compilers turn into wide instructions.
            let (elements, _) = bytes.as_chunks::<N>();
            elements.chunks(4096).any(|piece| piece.iter().fold(false, |bad, element| bad | is_bad(*element)))
        }
        const F64: u64 = 0x7ff << 52;
        !match self.dtype {
            DType::F64 => any(&self.bytes, |b| u64::from_le_bytes(b) & F64 == F64),
            DType::F32 => any(&self.bytes, |b| u32::from_le_bytes(b) & 0x7f80_0000 == 0x7f80_0000),
            DType::F16 => any(&self.bytes, |b| u16::from_le_bytes(b) & 0x7c00 == 0x7c00),
            DType::BF16 => any(&self.bytes, |b| u16::from_le_bytes(b) & 0x7f80 == 0x7f80),
            _ => false,
        }
    }

    /// How many elements are NaN or infinite; 0 for integers.
    pub fn count_non_finite(&self) -> usize {
        let count = |bad: Vec<bool>| bad.into_iter().filter(|&bad| bad).count();
        match self.dtype {
            // Why not through `to_f32`: a large finite f64 would overflow there.
            DType::F64 => count(self.map(|b| !f64::from_le_bytes(b).is_finite())),
            dtype if dtype.is_float() => self.to_f32().iter().filter(|value| !value.is_finite()).count(),
            _ => 0,
        }
    }

    fn map<const N: usize, T>(&self, convert: impl Fn([u8; N]) -> T) -> Vec<T> {
        let (elements, _) = self.bytes.as_chunks::<N>();
        elements.iter().map(|element| convert(*element)).collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn conversions_keep_values() {
        let tensor = |dtype, bytes: &[u8]| {
            Tensor::new(dtype, vec![bytes.len() / dtype.size()], bytes.to_vec()).unwrap()
        };
        assert_eq!(tensor(DType::F16, &[0x00, 0x3c, 0x00, 0xc0]).to_f32(), [1.0, -2.0]);
        assert_eq!(tensor(DType::BF16, &[0x80, 0x3f, 0x40, 0x40]).to_f32(), [1.0, 3.0]);
        assert_eq!(tensor(DType::I16, &[0xff, 0xff]).to_i64(), Some(vec![-1]));
        assert_eq!(tensor(DType::I8, &[0x80]).to_f32(), [-128.0]);
        assert_eq!(tensor(DType::Bool, &[0, 1, 7]).to_i64(), Some(vec![0, 1, 1]));
        assert_eq!(tensor(DType::F32, &1f32.to_le_bytes()).to_i64(), None);
        let huge = Tensor::new(
            DType::F64,
            vec![2],
            [1e300f64, f64::NAN].iter().flat_map(|v| v.to_le_bytes()).collect(),
        );
        let huge = huge.unwrap();
        assert_eq!((huge.count_non_finite(), huge.is_finite()), (1, false));
        // 1, −2, the largest number, the smallest; then ∞, −∞, NaN.
        for (dtype, finite, bad) in [
            (DType::F16, [0x3c00u16, 0xc000, 0x7bff, 0x0001], [0x7c00u16, 0xfc00, 0x7e01]),
            (DType::BF16, [0x3f80, 0xc000, 0x7f7f, 0x0001], [0x7f80, 0xff80, 0x7fc1]),
        ] {
            let bytes = |values: &[u16]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
            assert!(tensor(dtype, &bytes(&finite)).is_finite());
            for one in bad {
                assert!(
                    !tensor(dtype, &bytes(&[&finite[..], &[one]].concat())).is_finite(),
                    "{dtype} {one:x}"
                );
            }
        }
        let f32s = |values: &[f32]| Tensor::from_f32(vec![values.len()], values).unwrap();
        assert!(f32s(&[f32::MAX, f32::MIN_POSITIVE, -0.0]).is_finite());
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(!f32s(&[vec![1.0; 5000], vec![bad]].concat()).is_finite());
        }
        assert!(tensor(DType::I64, &[0xff; 8]).is_finite());
    }

    #[test]
    fn lengths_must_agree() {
        assert!(Tensor::new(DType::F32, vec![2], vec![0; 7]).is_none());
        assert!(Tensor::new(DType::F32, vec![usize::MAX, 2], vec![]).is_none());
        assert!(Tensor::new(DType::F32, vec![0, 3], vec![]).is_some());
        assert!(Tensor::new(DType::F32, vec![], vec![0; 4]).is_some());
        assert_eq!(DType::STORE_ORDER.map(DType::name).map(DType::from_name), DType::STORE_ORDER.map(Some));
    }
}
