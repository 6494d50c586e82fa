//! Operations of our own among those that Burn's fusion records and runs later.

use std::fmt;
use std::marker::PhantomData;

use burn::tensor::{DType, Shape};
use burn_cubecl::fusion::FusionCubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeRuntime};
use burn_fusion::stream::{Operation, OperationStreams};
use burn_fusion::{FusionRuntime, FusionTensor};
use burn_ir::{CustomOpIr, HandleContainer, OperationIr, TensorIr};

use super::Plain;

/// A tensor whose values may still be a list of operations.
pub(in super::super) type Recorded<R> = FusionTensor<FusionCubeRuntime<R>>;

struct Custom<R, BT, F> {
    desc: CustomOpIr,
    run: F,
    types: PhantomData<fn() -> (R, BT)>,
}

impl<R, BT, F> fmt::Debug for Custom<R, BT, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.desc.id)
    }
}

impl<R, BT, F> Operation<FusionCubeRuntime<R>> for Custom<R, BT, F>
where
    R: CubeRuntime,
    BT: BoolElement,
    F: Fn(Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> + Send + Sync,
{
    fn execute(&self, handles: &mut HandleContainer<<FusionCubeRuntime<R> as FusionRuntime>::FusionHandle>) {
        let inputs = self.desc.inputs.iter().map(|x| handles.get_float_tensor::<Plain<R, BT>>(x)).collect();
        let outputs = (self.run)(inputs);
        debug_assert_eq!(outputs.len(), self.desc.outputs.len());
        for (place, tensor) in self.desc.outputs.iter().zip(outputs) {
            handles.register_float_tensor::<Plain<R, BT>>(&place.id, tensor);
        }
    }
}

/// Records `run`, which gets the inputs' memory and gives tensors of the shapes and types of `outputs`.
///
/// # Panics
/// If there is no input.
pub(super) fn custom<R: CubeRuntime, BT: BoolElement>(
    name: &'static str,
    inputs: Vec<Recorded<R>>,
    outputs: Vec<(Shape, DType)>,
    run: impl Fn(Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> + Send + Sync + 'static,
) -> std::vec::IntoIter<Recorded<R>> {
    let client = inputs[0].client.clone();
    let streams = OperationStreams::with_inputs(&inputs);
    let inputs: Vec<TensorIr> = inputs.into_iter().map(FusionTensor::into_ir).collect();
    let outputs: Vec<TensorIr> = outputs
        .into_iter()
        .map(|(shape, dtype)| TensorIr::uninit(client.create_empty_handle(), shape, dtype))
        .collect();
    let desc = CustomOpIr::new(name, &inputs, &outputs);
    let operation = Custom::<R, BT, _> { desc: desc.clone(), run, types: PhantomData };
    client.register(streams, OperationIr::Custom(desc), operation).into_iter()
}
