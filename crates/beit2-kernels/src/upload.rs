//! What a program sends to a device: tensors from values of the host.
//!
//! Contract: as Burn's `from_data`, with the device's own types of floats and integers. Where a copy costs the device's thread
//! time or makes it wait, tensors that are sent together cross in one copy, from memory that the device reads by itself.

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::{Autodiff, Flex};
use burn::tensor::backend::{AutodiffBackend, Backend as BurnBackend};
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{DType, Int, Tensor, TensorData, TensorMetadata};

use crate::tensor::{unwrap, wrap};

/// A tensor that was sent, of a backend's own type.
#[derive(Debug)]
pub enum Uploaded<B: BurnBackend> {
    /// Of a floating-point type.
    Float(FloatTensor<B>),
    /// Of an integer type.
    Int(IntTensor<B>),
}

/// Sending tensors, on a backend's own tensors.
pub trait UploadOps: BurnBackend {
    /// [`upload_all`]: the tensors of `data` in its order.
    fn upload(data: Vec<TensorData>, device: &Self::Device) -> Vec<Uploaded<Self>> {
        composed::upload(data, device)
    }
}

/// Tensors that were sent together, to be taken in their order.
#[derive(Debug)]
pub struct Uploads<B: BurnBackend>(std::vec::IntoIter<Uploaded<B>>);

impl<B: BurnBackend> Uploads<B> {
    /// The next one.
    ///
    /// # Panics
    /// If it has no floats, another rank, or there is none left.
    pub fn float<const D: usize>(&mut self) -> Tensor<B, D> {
        match self.0.next() {
            Some(Uploaded::Float(x)) => {
                assert!(x.shape().num_dims() == D, "the tensor that was sent has the shape {:?}", x.shape());
                wrap(x)
            }
            Some(Uploaded::Int(_)) => panic!("the next tensor that was sent has integers"),
            None => panic!("all tensors that were sent have been taken"),
        }
    }

    /// The next one.
    ///
    /// # Panics
    /// If it has no integers, another rank, or there is none left.
    pub fn int<const D: usize>(&mut self) -> Tensor<B, D, Int> {
        match self.0.next() {
            Some(Uploaded::Int(x)) => {
                assert!(x.shape().num_dims() == D, "the tensor that was sent has the shape {:?}", x.shape());
                Tensor::from_primitive(x)
            }
            Some(Uploaded::Float(_)) => panic!("the next tensor that was sent has floats"),
            None => panic!("all tensors that were sent have been taken"),
        }
    }
}

/// Sends tensors together. Floats become the device's type of floats, bytes (`u8`) stay bytes, other integers become its type of
/// integers.
pub fn upload_all<B: UploadOps>(data: Vec<TensorData>, device: &B::Device) -> Uploads<B> {
    Uploads(B::upload(data, device).into_iter())
}

/// Sends floats ([`upload_all`]).
///
/// # Panics
/// If `data` has integers or another rank.
pub fn upload<B: UploadOps, const D: usize>(data: TensorData, device: &B::Device) -> Tensor<B, D> {
    upload_all::<B>(vec![data], device).float()
}

/// Sends integers ([`upload_all`]).
///
/// # Panics
/// If `data` has floats or another rank.
pub fn upload_ints<B: UploadOps, const D: usize>(data: TensorData, device: &B::Device) -> Tensor<B, D, Int> {
    upload_all::<B>(vec![data], device).int()
}

/// Burn's primitives on a backend's own tensors.
pub(crate) mod composed {
    use super::*;

    pub(crate) fn upload<B: BurnBackend>(data: Vec<TensorData>, device: &B::Device) -> Vec<Uploaded<B>> {
        data.into_iter().map(|data| one(data, device)).collect()
    }

    fn one<B: BurnBackend>(mut data: TensorData, device: &B::Device) -> Uploaded<B> {
        // In one axis, because a device may pad the rows of more, of short rows to many times their size.
        let count = data.shape.num_elements();
        let shape = std::mem::replace(&mut data.shape, [count].into());
        match data.dtype {
            dtype if dtype.is_float() => {
                let flat = unwrap(Tensor::<B, 1>::from_data(data, device));
                Uploaded::Float(if shape.num_dims() == 1 { flat } else { B::float_reshape(flat, shape) })
            }
            dtype => {
                let flat = match dtype {
                    DType::U8 => Tensor::<B, 1, Int>::from_data(data, (device, DType::U8)),
                    _ => Tensor::<B, 1, Int>::from_data(data, device),
                };
                let flat = flat.into_primitive();
                Uploaded::Int(if shape.num_dims() == 1 { flat } else { B::int_reshape(flat, shape) })
            }
        }
    }
}

impl<B: UploadOps, C: CheckpointStrategy> UploadOps for Autodiff<B, C> {
    fn upload(data: Vec<TensorData>, device: &Self::Device) -> Vec<Uploaded<Self>> {
        let sent = B::upload(data, device).into_iter();
        sent.map(|x| match x {
            Uploaded::Float(x) => Uploaded::Float(Self::from_inner(x)),
            Uploaded::Int(x) => Uploaded::Int(Self::int_from_inner(x)),
        })
        .collect()
    }
}

impl UploadOps for Flex {}

#[cfg(test)]
mod tests {
    use burn::backend::{Autodiff, Flex};
    use burn::tensor::{DType, Int, Tensor, TensorData};

    use super::{UploadOps, upload, upload_all, upload_ints};

    fn arrives<B: UploadOps>() {
        let device = Default::default();
        let floats = TensorData::new(vec![1.5f32, -2.0, 0.25, 4.0, 5.0, 6.0], [2, 3]);
        let ints = TensorData::new(vec![7i32, -1], [2]);
        let bytes = TensorData::new(vec![255u8, 0, 3], [1, 3, 1]);
        let none = TensorData::new(Vec::<f32>::new(), [0, 4]);
        let data = vec![floats.clone(), ints.clone(), bytes.clone(), none.clone()];
        let mut sent = upload_all::<B>(data, &device);
        let same = |x: TensorData, y: &TensorData| {
            assert_eq!(x.shape, y.shape);
            assert!(x.iter::<f64>().eq(y.iter::<f64>()), "{x:?}, not {y:?}");
        };
        same(sent.float::<2>().into_data(), &floats);
        same(sent.int::<1>().into_data(), &ints);
        let found = sent.int::<3>();
        assert_eq!(found.dtype(), DType::U8);
        same(found.into_data(), &bytes);
        same(sent.float::<2>().into_data(), &none);
        // Types are those of Burn's own function.
        let alone = upload::<B, 2>(floats.clone(), &device);
        assert_eq!(alone.dtype(), Tensor::<B, 2>::from_data(floats, &device).dtype());
        let alone = upload_ints::<B, 1>(ints.clone(), &device);
        assert_eq!(alone.dtype(), Tensor::<B, 1, Int>::from_data(ints, &device).dtype());
    }

    #[test]
    fn what_is_sent_arrives() {
        arrives::<Flex>();
        arrives::<Autodiff<Flex>>();
    }

    #[test]
    #[should_panic(expected = "has integers")]
    fn integers_are_not_taken_as_floats() {
        upload::<Flex, 1>(TensorData::new(vec![1i32], [1]), &Default::default());
    }
}
