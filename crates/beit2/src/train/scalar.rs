//! Single numbers from the device.

use beit2_kernels::Backend;
use burn::tensor::Tensor;

/// The value of a tensor `[1]`; waits until the device has computed it.
pub(crate) fn scalar<I: Backend>(value: Tensor<I, 1>) -> f64 {
    value.into_data().iter::<f64>().next().unwrap_or(f64::NAN)
}
