//! The quantizer around its codebook: rows of unit length, codes in their place, the moving average that the codes are.
//!
//! Contract: [`unit_rows`] divides rows by their norm, [`quantize`] puts the nearest codes in the place of rows with a
//! straight-through gradient and the commitment loss, [`update_codes`] moves used codes towards the mean of what they stand for. NVIDIA's GPUs
//! do each in a launch or two, with sums in a fixed order; elsewhere they are Burn's primitives.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, unary};
use burn::backend::{Autodiff, Flex};
use burn::tensor::backend::{AutodiffBackend, Backend as BurnBackend};
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{Int, Tensor};

use crate::graph::record;
use crate::nearest_code::NearestCodeOps;
use crate::tensor::{unwrap, wrap};

/// Norms of rows below this are taken for it.
const SHORTEST: f64 = 1e-12;

/// What [`quantize`](crate::quantize) gives, on a backend's own tensors.
#[derive(Debug, Clone)]
pub struct QuantizedRows<B: BurnBackend> {
    /// `[n]`.
    pub ids: IntTensor<B>,
    /// `[n, C]`.
    pub codes: FloatTensor<B>,
    /// `[1]`.
    pub loss: FloatTensor<B>,
}

/// The quantizer on a backend's own tensors. Shapes are those of the functions of the same names.
pub trait QuantizeOps: NearestCodeOps {
    /// Whether these operations on these tensors are one computation each here, with backward passes of their own.
    fn fuses_quantize(_tensors: &[&FloatTensor<Self>]) -> bool {
        false
    }

    /// [`unit_rows`](crate::unit_rows).
    fn fused_unit_rows(x: FloatTensor<Self>) -> FloatTensor<Self> {
        composed::unit_rows::<Self>(x)
    }

    /// [`unit_rows`](crate::unit_rows) and the norms `[n]`; only where it is one computation.
    fn fused_unit_rows_train(_x: FloatTensor<Self>) -> (FloatTensor<Self>, FloatTensor<Self>) {
        unreachable!("{} composes unit_rows", std::any::type_name::<Self>())
    }

    /// The gradient of x from unit rows and norms; only where it is one computation.
    fn fused_unit_rows_backward(
        _y: FloatTensor<Self>,
        _norms: FloatTensor<Self>,
        _grad: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        unreachable!("{} composes unit_rows", std::any::type_name::<Self>())
    }

    /// [`quantize`](crate::quantize).
    fn fused_quantize(
        z: FloatTensor<Self>,
        codebook: FloatTensor<Self>,
        commitment: f64,
    ) -> QuantizedRows<Self> {
        composed::quantize::<Self>(z, codebook, commitment)
    }

    /// The gradient of z from that of the commitment loss, `upstream [1]`; only where it is one computation.
    fn fused_commitment_backward(
        _z: FloatTensor<Self>,
        _codebook: FloatTensor<Self>,
        _ids: IntTensor<Self>,
        _commitment: f64,
        _upstream: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        unreachable!("{} composes quantize", std::any::type_name::<Self>())
    }

    /// [`update_codes`](crate::update_codes).
    fn fused_update_codes(
        codes: FloatTensor<Self>,
        usage: FloatTensor<Self>,
        bins: FloatTensor<Self>,
        sums: FloatTensor<Self>,
        decay: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        composed::update_codes::<Self>(codes, usage, bins, sums, decay)
    }
}

/// Rows `x [n, C]` divided by max(‖row‖, 1e-12).
pub fn unit_rows<B: QuantizeOps>(x: Tensor<B, 2>) -> Tensor<B, 2> {
    wrap(B::fused_unit_rows(unwrap(x)))
}

/// For unit rows `z [n, C]`: the ids `[n]` of the nearest codes of the `codebook [K, C]` ([`nearest_code`](crate::nearest_code));
/// these codes `[n, C]`, with the gradient that they would have as z; and the commitment loss, `commitment` times the mean
/// of (codes − z)², `[1]`. The codebook gets no gradient.
///
/// # Panics
/// If the widths differ.
pub fn quantize<B: QuantizeOps>(
    z: Tensor<B, 2>,
    codebook: Tensor<B, 2>,
    commitment: f64,
) -> (Tensor<B, 1, Int>, Tensor<B, 2>, Tensor<B, 1>) {
    let (dims, codes) = (z.dims(), codebook.dims());
    assert!(dims[1] == codes[1], "quantize: rows {dims:?} and codes {codes:?} differ in width");
    let QuantizedRows { ids, codes, loss } =
        B::fused_quantize(unwrap(z), unwrap(codebook.detach()), commitment);
    (Tensor::from_primitive(ids), wrap(codes), wrap(loss))
}

/// The moving averages of a codebook, without gradients: `codes [K, C]` move by 1 − `decay` towards the direction of `sums [K, C]`,
/// the sums of the rows that each stands for, and get unit length again; codes without rows (`bins [K]` counts them) keep their
/// direction. `usage [K]` moves towards `bins`. Gives codes and usage.
///
/// # Panics
/// If the shapes do not fit.
pub fn update_codes<B: QuantizeOps>(
    codes: Tensor<B, 2>,
    usage: Tensor<B, 1>,
    bins: Tensor<B, 1>,
    sums: Tensor<B, 2>,
    decay: f64,
) -> (Tensor<B, 2>, Tensor<B, 1>) {
    let dims = codes.dims();
    let found = (usage.dims(), bins.dims(), sums.dims());
    assert!(
        found == ([dims[0]], [dims[0]], dims),
        "update_codes: usage, bins and sums {found:?} do not fit codes {dims:?}"
    );
    let (codes, usage) =
        B::fused_update_codes(unwrap(codes), unwrap(usage), unwrap(bins), unwrap(sums), decay);
    (wrap(codes), wrap(usage))
}

/// [`unit_rows`](crate::unit_rows) composed from Burn's primitives.
pub fn reference_unit_rows<B: BurnBackend>(x: Tensor<B, 2>) -> Tensor<B, 2> {
    let norm = x.clone().powi_scalar(2).sum_dim(1).sqrt().clamp_min(SHORTEST);
    x / norm
}

/// Codes and loss of [`quantize`](crate::quantize) composed from Burn's primitives.
pub fn reference<B: BurnBackend>(
    z: Tensor<B, 2>,
    codebook: Tensor<B, 2>,
    ids: Tensor<B, 1, Int>,
    commitment: f64,
) -> (Tensor<B, 2>, Tensor<B, 1>) {
    let codes = codebook.select(0, ids);
    let loss = (codes.clone() - z.clone()).powi_scalar(2).mean().mul_scalar(commitment);
    // Forward value: the code. Gradient: as if it were z.
    (z.clone() + (codes - z.detach()), loss)
}

/// [`update_codes`](crate::update_codes) composed from Burn's primitives.
pub fn reference_update<B: BurnBackend>(
    codes: Tensor<B, 2>,
    usage: Tensor<B, 1>,
    bins: Tensor<B, 1>,
    sums: Tensor<B, 2>,
    decay: f64,
) -> (Tensor<B, 2>, Tensor<B, 1>) {
    let usage = usage.mul_scalar(decay) + bins.clone().mul_scalar(1.0 - decay);
    let unused = bins.clone().equal_elem(0.0).unsqueeze_dim::<2>(1); // [K, 1]
    let divisor = bins.mask_fill(unused.clone().squeeze_dim::<1>(1), 1.0).unsqueeze_dim::<2>(1);
    let means = reference_unit_rows(sums / divisor);
    let means = means.mask_where(unused.expand(codes.dims()), codes.clone());
    (reference_unit_rows(codes.mul_scalar(decay) + means.mul_scalar(1.0 - decay)), usage)
}

/// The references on a backend's own tensors.
pub(crate) mod composed {
    use super::*;

    pub(crate) fn unit_rows<B: BurnBackend>(x: FloatTensor<B>) -> FloatTensor<B> {
        unwrap(super::reference_unit_rows::<B>(wrap(x)))
    }

    pub(crate) fn quantize<B: NearestCodeOps>(
        z: FloatTensor<B>,
        codebook: FloatTensor<B>,
        commitment: f64,
    ) -> QuantizedRows<B> {
        let z: Tensor<B, 2> = wrap(z);
        let ids = B::fused_nearest_code(unwrap(z.clone().detach()), codebook.clone());
        let of_rows = Tensor::from_primitive(ids.clone());
        let (codes, loss) = super::reference::<B>(z, wrap(codebook), of_rows, commitment);
        QuantizedRows { ids, codes: unwrap(codes), loss: unwrap(loss) }
    }

    pub(crate) fn update_codes<B: BurnBackend>(
        codes: FloatTensor<B>,
        usage: FloatTensor<B>,
        bins: FloatTensor<B>,
        sums: FloatTensor<B>,
        decay: f64,
    ) -> (FloatTensor<B>, FloatTensor<B>) {
        let (codes, usage) =
            super::reference_update::<B>(wrap(codes), wrap(usage), wrap(bins), wrap(sums), decay);
        (unwrap(codes), unwrap(usage))
    }
}

#[derive(Debug)]
struct UnitRowsBackward;

impl<B: QuantizeOps> Backward<B, 1> for UnitRowsBackward {
    /// Unit rows and norms.
    type State = [FloatTensor<B>; 2];

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [y, norms] = ops.state;
        unary::<B, _>(ops.parents, ops.node, grads, |grad| B::fused_unit_rows_backward(y, norms, grad));
    }
}

#[derive(Debug)]
struct StraightThrough;

impl<B: QuantizeOps> Backward<B, 1> for StraightThrough {
    type State = ();

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        unary::<B, _>(ops.parents, ops.node, grads, |grad| grad);
    }
}

#[derive(Debug)]
struct CommitmentBackward;

impl<B: QuantizeOps> Backward<B, 1> for CommitmentBackward {
    /// z and codebook, ids, the loss's factor.
    type State = ([FloatTensor<B>; 2], IntTensor<B>, f64);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let ([z, codebook], ids, commitment) = ops.state;
        unary::<B, _>(ops.parents, ops.node, grads, |upstream| {
            B::fused_commitment_backward(z, codebook, ids, commitment, upstream)
        });
    }
}

impl<B: QuantizeOps, C: CheckpointStrategy> QuantizeOps for Autodiff<B, C> {
    fn fused_unit_rows(x: FloatTensor<Self>) -> FloatTensor<Self> {
        if !B::fuses_quantize(&[&x.primitive]) {
            return composed::unit_rows::<Self>(x);
        }
        record!(B, C, UnitRowsBackward, [x],
            tracked {
                let (y, norms) = B::fused_unit_rows_train(x.primitive);
                (y.clone(), [y, norms])
            },
            untracked { B::fused_unit_rows(x.primitive) })
    }

    fn fused_quantize(
        z: FloatTensor<Self>,
        codebook: FloatTensor<Self>,
        commitment: f64,
    ) -> QuantizedRows<Self> {
        if !B::fuses_quantize(&[&z.primitive, &codebook.primitive]) {
            return composed::quantize::<Self>(z, codebook, commitment);
        }
        let inputs = [z.primitive.clone(), codebook.primitive];
        let [rows, book] = inputs.clone();
        let QuantizedRows { ids, codes, loss } = B::fused_quantize(rows, book, commitment);
        let codes = record!(B, C, StraightThrough, [z], tracked { (codes, ()) }, untracked { codes });
        let loss = record!(B, C, CommitmentBackward, [z],
            tracked { (loss, (inputs, ids.clone(), commitment)) },
            untracked { loss });
        QuantizedRows { ids, codes, loss }
    }

    fn fused_update_codes(
        codes: FloatTensor<Self>,
        usage: FloatTensor<Self>,
        bins: FloatTensor<Self>,
        sums: FloatTensor<Self>,
        decay: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let [codes, usage, bins, sums] = [codes, usage, bins, sums].map(|x| x.primitive);
        let (codes, usage) = B::fused_update_codes(codes, usage, bins, sums, decay);
        (Self::from_inner(codes), Self::from_inner(usage))
    }
}

impl QuantizeOps for Flex {}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;
    use burn::tensor::Tensor;

    #[test]
    fn codes_move_towards_their_rows() {
        let device = Default::default();
        let codes = Tensor::<Flex, 2>::from_floats([[1.0, 0.0], [0.0, 1.0]], &device);
        let usage = Tensor::<Flex, 1>::from_floats([4.0, 2.0], &device);
        let bins = Tensor::<Flex, 1>::from_floats([2.0, 0.0], &device);
        let sums = Tensor::<Flex, 2>::from_floats([[0.0, 6.0], [0.0, 0.0]], &device);
        let (codes, usage) = super::update_codes(codes, usage, bins, sums, 0.75);
        let length = 0.625f32.sqrt(); // of (0.75, 0.25)
        let codes = codes.into_data().to_vec::<f32>().unwrap();
        for (found, wanted) in codes.iter().zip([0.75 / length, 0.25 / length, 0.0, 1.0]) {
            assert!((found - wanted).abs() < 1e-6, "{codes:?}");
        }
        assert_eq!(usage.into_data().to_vec::<f32>().unwrap(), [3.5, 1.5]);
    }

    #[test]
    fn codes_stand_in_for_rows() {
        let device = Default::default();
        let z = Tensor::<Flex, 2>::from_floats([[1.0, 0.0], [0.0, -1.0]], &device);
        let book = Tensor::<Flex, 2>::from_floats([[0.5, -0.5], [0.0, 1.0], [1.0, 0.0]], &device);
        let (ids, codes, loss) = super::quantize(z, book, 0.5);
        assert_eq!(ids.into_data().to_vec::<i32>().unwrap(), [2, 0]);
        assert_eq!(codes.into_data().to_vec::<f32>().unwrap(), [1.0, 0.0, 0.5, -0.5]);
        assert_eq!(loss.into_data().to_vec::<f32>().unwrap(), [0.5 * 0.5 / 4.0]);
    }
}
