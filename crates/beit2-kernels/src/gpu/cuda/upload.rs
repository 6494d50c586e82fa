//! Sending tensors ([`crate::UploadOps`]): one copy out of pinned memory for all that are sent together.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use burn::tensor::{DType, Shape, TensorData};
use burn_cubecl::BoolElement;
use burn_cubecl::fusion::FusionCubeRuntime;
use burn_fusion::stream::{Operation, OperationStreams};
use burn_fusion::{FusionRuntime, get_client};
use burn_ir::{CustomOpIr, HandleContainer, OperationIr, TensorIr};
use cubecl::Runtime as _;
use cubecl::cuda::{CudaDevice, CudaRuntime};
use cubecl::server::Handle;
use cubecl::stream_id::StreamId;

use super::super::{Gpu, Plain};
use super::engine::{self, allocate};
use super::pinned::Staged;
use super::{CudaTensor, Recorded, is_native};
use crate::UploadOps;
use crate::upload::{Uploaded, composed};

type Runtime = FusionCubeRuntime<CudaRuntime>;

/// Where tensors that are sent together begin, in bytes: multiples of what CubeCL gives its own tensors.
const ALIGNMENT: usize = 512;

/// One copy, and the tensors that lie in it.
struct Upload<BT> {
    staged: Arc<Staged>,
    device: CudaDevice,
    /// With distances from the start in bytes.
    tensors: Vec<(TensorIr, usize)>,
    bool: PhantomData<fn() -> BT>,
}

impl<BT> fmt::Debug for Upload<BT> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("upload")
    }
}

impl<BT: BoolElement> Operation<Runtime> for Upload<BT> {
    fn execute(&self, handles: &mut HandleContainer<<Runtime as FusionRuntime>::FusionHandle>) {
        let client = CudaRuntime::client(&self.device);
        let bytes = self.staged.bytes() as u64;
        let whole = Handle::new(StreamId::current(), bytes);
        for (tensor, from) in &self.tensors {
            let size = (tensor.shape.num_elements() * tensor.dtype.size()) as u64;
            let mut handle = whole.clone();
            if self.tensors.len() > 1 {
                handle = handle.offset_start(*from as u64).offset_end(bytes - *from as u64 - size);
            }
            let (client, device) = (client.clone(), self.device.clone());
            let found =
                CudaTensor::new_contiguous(client, device, tensor.shape.clone(), handle, tensor.dtype);
            handles.register_float_tensor::<Plain<CudaRuntime, BT>>(&tensor.id, found);
        }
        let staged = self.staged.clone();
        engine::submit(&self.device, "upload", move |server, engine, id| {
            allocate(server, id, &whole);
            let to = engine.address(server, id, whole.binding())?;
            let mut queue = engine.queue(server, id)?;
            queue.upload(&staged, to);
            queue.finish()
        });
    }
}

/// Records one copy of `parts`, values with their shape and type. Their bytes are copied before this returns.
///
/// # Panics
/// If an earlier operation of the device failed.
pub(super) fn send<BT: BoolElement>(
    parts: &[(Vec<&[u8]>, Shape, DType)],
    device: &CudaDevice,
) -> std::vec::IntoIter<Recorded> {
    engine::check(device);
    let client = get_client::<Plain<CudaRuntime, BT>>(device);
    let mut bytes = 0;
    let mut pieces = Vec::new();
    let mut tensors = Vec::with_capacity(parts.len());
    for (values, shape, dtype) in parts {
        tensors.push((TensorIr::uninit(client.create_empty_handle(), shape.clone(), *dtype), bytes));
        let mut at = bytes;
        for &values in values {
            pieces.push((at, values));
            at += values.len();
        }
        // A tensor without elements has memory too, so that it has an address.
        bytes = at.max(bytes + 1).next_multiple_of(ALIGNMENT);
    }
    let staged = Staged::new(device, bytes, pieces.into_iter(), || client.sync(|| ()));
    let outputs: Vec<TensorIr> = tensors.iter().map(|(tensor, _)| tensor.clone()).collect();
    let desc = OperationIr::Custom(CustomOpIr::new("upload", &[], &outputs));
    let upload = Upload::<BT> { staged, device: device.clone(), tensors, bool: PhantomData };
    client.register(OperationStreams::default(), desc, upload).into_iter()
}

impl<BT: BoolElement> UploadOps for Gpu<CudaRuntime, BT> {
    fn upload(data: Vec<TensorData>, device: &CudaDevice) -> Vec<Uploaded<Self>> {
        let known = |data: &TensorData| matches!(data.dtype, DType::F32 | DType::I32 | DType::U8);
        if !is_native(device) || !data.iter().all(known) {
            return composed::upload(data, device);
        }
        let parts: Vec<_> =
            data.iter().map(|data| (vec![&data.bytes[..]], data.shape.clone(), data.dtype)).collect();
        let sent = data.iter().zip(send::<BT>(&parts, device));
        sent.map(|(data, tensor)| match data.dtype.is_float() {
            true => Uploaded::Float(tensor),
            false => Uploaded::Int(tensor),
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use burn::backend::Cuda;
    use burn::tensor::backend::Backend as _;
    use burn::tensor::{Int, Tensor};

    use super::*;
    use crate::gpu::tests::on_cuda;
    use crate::{upload, upload_all, upload_ints};

    type B = Cuda<f32, i32>;

    /// Values that belong to number `seed` alone.
    fn floats(seed: usize, count: usize) -> Vec<f32> {
        (0..count).map(|at| (seed * 7919 + at) as f32).collect()
    }

    fn values<const D: usize>(x: Tensor<B, D>) -> Vec<f32> {
        x.into_data().into_vec().unwrap()
    }

    fn bytes(x: Tensor<B, 1, Int>) -> Vec<u8> {
        x.into_data().iter::<u8>().collect()
    }

    #[test]
    fn tensors_that_are_sent_together_arrive_on_cuda() {
        on_cuda(|device| {
            for count in [0, 1, 3, 127, 129, 1000, 70_001] {
                let ints: Vec<i32> = (0..count as i32).map(|at| at - 5).collect();
                let u8s: Vec<u8> = (0..count).map(|at| (at * 31 % 256) as u8).collect();
                let data = vec![
                    TensorData::new(u8s.clone(), [count]),
                    TensorData::new(floats(count, 2 * count), [2, count, 1]),
                    TensorData::new(ints.clone(), [1, count]),
                    TensorData::new(floats(1, 5), [5]),
                ];
                let mut sent = upload_all::<B>(data, device);
                let (found, rows, columns, last) =
                    (sent.int::<1>(), sent.float::<3>(), sent.int::<2>(), sent.float::<1>());
                assert_eq!(found.dtype(), DType::U8);
                assert_eq!((rows.dims(), columns.dims()), ([2, count, 1], [1, count]));
                assert_eq!(values(last), floats(1, 5), "{count}");
                // The framework asks for an empty launch to read a tensor without elements.
                if count == 0 {
                    continue;
                }
                assert_eq!(bytes(found), u8s, "{count}");
                // Burn's own operations read them where they lie.
                let next = values(rows.clone() + 1.0);
                assert_eq!(next, floats(count, 2 * count).iter().map(|x| x + 1.0).collect::<Vec<_>>());
                let sums: Vec<i32> = (columns.clone() + columns.clone()).into_data().into_vec().unwrap();
                assert_eq!(sums, ints.iter().map(|x| 2 * x).collect::<Vec<_>>(), "{count}");
                assert_eq!(values(rows), floats(count, 2 * count), "{count}");
                assert_eq!(columns.into_data().into_vec::<i32>().unwrap(), ints, "{count}");
            }
        });
    }

    /// More than there are pieces, small and large, all under way before the first is read.
    #[test]
    fn what_is_sent_often_arrives_on_cuda() {
        on_cuda(|device| {
            for (count, elements) in [(100, 2000), (11, 600_001)] {
                let send = |seed| upload::<B, 1>(TensorData::new(floats(seed, elements), [elements]), device);
                let sent: Vec<_> = (0..count).map(send).collect();
                for (seed, x) in sent.into_iter().enumerate() {
                    assert_eq!(values(x), floats(seed, elements), "{seed} of {count}");
                }
            }
        });
    }

    /// Threads send at once, each also to the second device where there is one.
    #[test]
    fn threads_and_devices_do_not_meet_on_cuda() {
        on_cuda(|device| {
            let mut devices = vec![device.clone()];
            if catch_unwind(|| B::device_count(0)).unwrap_or(0) > 1 {
                devices.push(CudaDevice::new(1));
            }
            let devices = &devices;
            std::thread::scope(|scope| {
                for thread in 0..3 {
                    scope.spawn(move || {
                        for round in 0..20 {
                            let seed = |at: usize| 1000 * thread + 10 * round + at;
                            let send = |(at, device)| {
                                upload_ints::<B, 1>(
                                    TensorData::new(vec![seed(at) as i32; 999], [999]),
                                    device,
                                )
                            };
                            let sent: Vec<_> = devices.iter().enumerate().map(send).collect();
                            for (at, x) in sent.into_iter().enumerate() {
                                let found: Vec<i32> = x.into_data().into_vec().unwrap();
                                assert!(
                                    found == [seed(at) as i32; 999],
                                    "{:?}, not {}",
                                    &found[..3],
                                    seed(at)
                                );
                            }
                        }
                    });
                }
            });
        });
    }

    #[test]
    fn without_a_free_piece_other_memory_is_taken_on_cuda() {
        on_cuda(|device| {
            if !is_native(device) {
                return;
            }
            let asked = std::cell::Cell::new(0);
            // A size that no other test takes.
            let bytes = 7 << 20;
            let part = [5u8; 3];
            let stage = || {
                let parts = [(bytes - 3, &part[..])].into_iter();
                Staged::new(device, bytes, parts, || asked.set(asked.get() + 1))
            };
            let mut held: Vec<_> = (0..4).map(|_| stage()).collect();
            assert!(held.iter().all(|staged| staged.is_pinned()) && asked.get() == 0);
            assert!(!stage().is_pinned() && asked.get() == 1, "what is recorded is asked to run once");
            held.pop();
            assert!(stage().is_pinned() && asked.get() == 1);
        });
    }
}
