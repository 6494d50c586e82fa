//! What the blocks of a teacher give to the operation that computes a run of them.
#![allow(clippy::unwrap_used)]

use beit2_kernels::blocks;
use burn::backend::Flex;
use burn::tensor::Tensor;

use super::*;

type B = Flex;

/// Values between −1 and 1 that follow no pattern.
fn values<const D: usize>(dims: [usize; D], seed: u64) -> Tensor<B, D> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    let values: Vec<f32> = (0..dims.iter().product::<usize>()).map(|_| next()).collect();
    Tensor::from_data(TensorData::new(values, dims), &Default::default())
}

/// A block with values in every parameter that it has.
fn block(sizes: BlockSizes) -> TeacherBlock<B> {
    let mut block = TeacherBlock::<B>::new(sizes, &Default::default());
    let mut seed = 0;
    let mut number = || {
        seed += 1;
        seed
    };
    let TeacherBlock { gamma_1, gamma_2, norm1, attn, norm2, mlp, .. } = &mut block;
    for gamma in [gamma_1, gamma_2].into_iter().flatten() {
        *gamma = Param::from_tensor(values([sizes.width], number()));
    }
    for norm in [norm1, norm2] {
        norm.weight = Param::from_tensor(values([sizes.width], number()) + 1.0);
        norm.bias = Param::from_tensor(values([sizes.width], number()));
    }
    for layer in [&mut attn.qkv, &mut attn.proj, &mut mlp.fc1, &mut mlp.fc2] {
        let dims = layer.weight.dims();
        layer.weight = Param::from_tensor(values(dims, number()) * 0.5);
        if let Some(bias) = &mut layer.bias {
            *bias = Param::from_tensor(values([dims[0]], number()));
        }
    }
    block
}

#[test]
fn a_run_of_blocks_is_the_blocks() {
    let sizes = BlockSizes {
        width: 16,
        heads: 2,
        mlp_hidden: 24,
        qkv_bias: true,
        proj_bias: true,
        mlp_bias: true,
        layer_scale: true,
        gated: false,
        activation: Activation::Gelu,
        norm_eps: 1e-5,
    };
    // With a bias of the keys, without any bias, and with each activation that a run has.
    let cases = [
        sizes,
        BlockSizes { activation: Activation::QuickGelu, layer_scale: false, ..sizes },
        BlockSizes { activation: Activation::GeluTanh, qkv_bias: false, proj_bias: false, ..sizes },
        BlockSizes { mlp_bias: false, ..sizes },
    ];
    for sizes in cases {
        let block = block(sizes);
        let x = values::<3>([2, 7, sizes.width], 100);
        let want = block.forward(x.clone(), None);
        let got = blocks(x, Vec::new(), vec![block.parameters()], None, None, block.spec().unwrap());
        let difference = (got - want).abs().max().into_scalar();
        assert!(difference < 2e-5, "{sizes:?}: {difference:e}");
    }
}

#[test]
fn other_blocks_are_no_run() {
    let sizes = BlockSizes {
        width: 8,
        heads: 2,
        mlp_hidden: 8,
        qkv_bias: true,
        proj_bias: true,
        mlp_bias: true,
        layer_scale: false,
        gated: true,
        activation: Activation::Silu,
        norm_eps: 1e-6,
    };
    assert!(block(sizes).spec().is_none());
    assert!(block(BlockSizes { gated: false, ..sizes }).spec().is_none());
    let plain = BlockSizes { gated: false, activation: Activation::Gelu, ..sizes };
    assert!(block(BlockSizes { gated: true, ..plain }).spec().is_none());
    assert!(block(plain).spec().is_some());
}
