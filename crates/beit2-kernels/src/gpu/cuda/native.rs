//! A native operation among those that Burn's fusion records and runs later.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use burn::tensor::{DType, Shape};
use burn_cubecl::BoolElement;
use burn_cubecl::fusion::FusionCubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_fusion::stream::{Operation, OperationStreams};
use burn_fusion::{FusionRuntime, FusionTensor};
use burn_ir::{CustomOpIr, HandleContainer, OperationIr, TensorIr};
use cubecl::Runtime as _;
use cubecl::cuda::CudaRuntime;
use cubecl::server::{Binding, Handle};
use cubecl::stream_id::StreamId;

use super::super::Plain;
use super::blas::Ptr;
use super::engine::{self, allocate};
use super::launch::Queue;
use super::{CudaTensor, Recorded};

/// Bytes of the smallest tensor.
const SMALLEST: usize = 16;

type Runtime = FusionCubeRuntime<CudaRuntime>;

/// What an operation does on the device's thread, from the addresses of its inputs, outputs and scratch memory.
type Run = dyn Fn(&mut Queue<'_>, &[Ptr], &[Ptr], Ptr) + Send + Sync;

struct Native<BT> {
    name: &'static str,
    desc: CustomOpIr,
    options: Options,
    run: Arc<Run>,
    bool: PhantomData<fn() -> BT>,
}

/// What else an operation needs.
#[derive(Debug, Clone, Default)]
pub(crate) struct Options {
    /// Bytes that are there during the call.
    pub scratch: usize,
    /// Output `o` takes the memory of input `i` for each `(o, i)`, where nobody else holds it. Then both have one address,
    /// and `run` must not read the input after it wrote the output.
    pub reuse: Vec<(usize, usize)>,
    /// Whether other devices wait for it: the device's thread begins with it at once.
    pub prompt: bool,
}

impl<BT> fmt::Debug for Native<BT> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl<BT: BoolElement> Operation<Runtime> for Native<BT> {
    fn execute(&self, handles: &mut HandleContainer<<Runtime as FusionRuntime>::FusionHandle>) {
        // The same function for every kind of tensor: they are all memory of some type here.
        let inputs = self.desc.inputs.iter();
        let inputs: Vec<CudaTensor> =
            inputs.map(|x| in_order(handles.get_float_tensor::<Plain<CudaRuntime, BT>>(x))).collect();
        let (client, device) = (inputs[0].client.clone(), inputs[0].device.clone());
        let id = StreamId::current();
        let mut fresh = Vec::new();
        let mut outputs = Vec::with_capacity(self.desc.outputs.len());
        for (o, place) in self.desc.outputs.iter().enumerate() {
            // A tensor without elements has memory too, so that it has an address.
            let bytes = (place.shape.num_elements() * place.dtype.size()).max(SMALLEST) as u64;
            let handle = self.reusable(o, bytes, &inputs).unwrap_or_else(|| {
                let handle = Handle::new(id, bytes);
                fresh.push(handle.clone());
                handle
            });
            let shape = place.shape.clone();
            let (client, device) = (client.clone(), device.clone());
            let tensor = CudaTensor::new_contiguous(client, device, shape, handle.clone(), place.dtype);
            handles.register_float_tensor::<Plain<CudaRuntime, BT>>(&place.id, tensor);
            outputs.push(handle.binding());
        }
        // Bindings keep memory as handles do, but a later operation may still be the only one that holds a handle.
        let inputs: Vec<(Binding, Option<Rows>)> = inputs
            .into_iter()
            .map(|x| {
                let rows = Rows::of(&x);
                (x.handle.binding(), rows)
            })
            .collect();
        let (run, scratch) = (self.run.clone(), self.options.scratch);
        engine::submit(&device, self.name, move |server, engine, id| {
            for handle in fresh {
                allocate(server, id, &handle);
            }
            let mut from = Vec::with_capacity(inputs.len());
            let mut joined = Vec::new();
            for (binding, rows) in &inputs {
                let at = engine.address(server, id, binding.clone())?;
                let Some(rows) = rows else {
                    from.push(at);
                    continue;
                };
                let handle = Handle::new(id, (rows.count * rows.width) as u64);
                allocate(server, id, &handle);
                from.push(engine.address(server, id, handle.clone().binding())?);
                joined.push((handle, at, *rows, from[from.len() - 1]));
            }
            let to: Result<Vec<Ptr>, String> =
                outputs.iter().map(|binding| engine.address(server, id, binding.clone())).collect();
            let to = to?;
            let scratch = engine.scratch(server, id, scratch)?;
            let mut queue = engine.queue(server, id)?;
            for (_, padded, rows, at) in &joined {
                queue.join_rows(*padded, rows.pitch, *at, rows.width, rows.count);
            }
            run(&mut queue, &from, &to, scratch);
            queue.finish()
            // The bindings go here: later operations of the stream may use the memory again.
        });
        if self.options.prompt {
            engine::flush(&device);
        }
    }
}

/// Rows with a gap after each: how CubeCL stores tensors whose last axis does not fill whole lines of memory. In bytes.
#[derive(Debug, Clone, Copy)]
struct Rows {
    count: usize,
    width: usize,
    pitch: usize,
}

impl Rows {
    /// `None` for a tensor without gaps.
    fn of(x: &CudaTensor) -> Option<Self> {
        let (shape, strides) = (x.meta.shape(), x.meta.strides());
        let rank = shape.num_dims();
        if rank < 2 || x.is_contiguous() {
            return None;
        }
        let width = shape[rank - 1];
        let bytes = x.dtype.size();
        let count = shape.num_elements() / width.max(1);
        (count > 0).then(|| Self { count, width: width * bytes, pitch: strides[rank - 2] * bytes })
    }
}

/// The tensor with its elements in the order of its axes; there may be gaps after rows.
fn in_order(x: CudaTensor) -> CudaTensor {
    if CudaRuntime::can_read_tensor(x.meta.shape(), x.meta.strides()) { x } else { into_contiguous(x) }
}

impl<BT> Native<BT> {
    /// The memory of an input for output `o`, if the caller allows it and nobody else holds it.
    fn reusable(&self, o: usize, bytes: u64, inputs: &[CudaTensor]) -> Option<Handle> {
        let (_, i) = self.options.reuse.iter().find(|(output, _)| *output == o)?;
        let input = &inputs[*i];
        (input.can_mut() && input.is_contiguous() && input.handle.size_in_used() >= bytes)
            .then(|| input.handle.clone())
    }
}

/// Records `run` as an operation. Inputs arrive contiguous, whatever their type; outputs are contiguous too and hold no values yet.
/// `scratch` bytes are there during the call. All addresses are multiples of 16 bytes at least.
///
/// # Panics
/// If there is no input, or an earlier operation of the device failed.
pub(crate) fn native<BT: BoolElement>(
    name: &'static str,
    inputs: Vec<Recorded>,
    outputs: Vec<(Shape, DType)>,
    scratch: usize,
    run: impl Fn(&mut Queue<'_>, &[Ptr], &[Ptr], Ptr) + Send + Sync + 'static,
) -> std::vec::IntoIter<Recorded> {
    native_with::<BT>(name, inputs, outputs, Options { scratch, ..Options::default() }, run)
}

/// As [`native`]; output `o` takes the memory of input `i` for each `(o, i)` of `reuse` ([`Options::reuse`]).
///
/// # Panics
/// As [`native`].
pub(crate) fn native_reusing<BT: BoolElement>(
    name: &'static str,
    inputs: Vec<Recorded>,
    outputs: Vec<(Shape, DType)>,
    scratch: usize,
    reuse: &[(usize, usize)],
    run: impl Fn(&mut Queue<'_>, &[Ptr], &[Ptr], Ptr) + Send + Sync + 'static,
) -> std::vec::IntoIter<Recorded> {
    let options = Options { scratch, reuse: reuse.to_vec(), prompt: false };
    native_with::<BT>(name, inputs, outputs, options, run)
}

/// As [`native`], with options.
///
/// # Panics
/// As [`native`].
pub(crate) fn native_with<BT: BoolElement>(
    name: &'static str,
    inputs: Vec<Recorded>,
    outputs: Vec<(Shape, DType)>,
    options: Options,
    run: impl Fn(&mut Queue<'_>, &[Ptr], &[Ptr], Ptr) + Send + Sync + 'static,
) -> std::vec::IntoIter<Recorded> {
    let client = inputs[0].client.clone();
    engine::check(client.device());
    let streams = OperationStreams::with_inputs(&inputs);
    let inputs: Vec<TensorIr> = inputs.into_iter().map(FusionTensor::into_ir).collect();
    let outputs: Vec<TensorIr> = outputs
        .into_iter()
        .map(|(shape, dtype)| TensorIr::uninit(client.create_empty_handle(), shape, dtype))
        .collect();
    let desc = CustomOpIr::new(name, &inputs, &outputs);
    let operation = Native::<BT> { name, desc: desc.clone(), options, run: Arc::new(run), bool: PhantomData };
    client.register(streams, OperationIr::Custom(desc), operation).into_iter()
}
