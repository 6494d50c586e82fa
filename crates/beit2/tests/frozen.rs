//! Frozen models compute what the models themselves compute, to the bit, at every instruction set. One test and one
//! process, because the limit of instruction sets is the process's.

#![allow(clippy::unwrap_used)]

use std::panic::{AssertUnwindSafe, catch_unwind};

use beit2::init::{InitRule, initialise};
use beit2::params;
use beit2::segment::{SegmenterConfig, UperNet};
use beit2::tokenizer::teachers::{Teacher, TeacherConfig, TeacherKind};
use beit2::tokenizer::{TokenizerConfig, VqKd};
use beit2::vit::{DropPath, Pooling, RelPosKind, TokenSubset, VisionTransformer, VitConfig};
use beit2_kernels::Precision;
use beit2_kernels::simd::{Level, level, limit};
use burn::backend::Flex;
use burn::module::Module;
use burn::tensor::{DType, Distribution, Tensor, TensorData};

const RULE: InitRule = InitRule::Finetune { head_scale: 1.0, gamma: 0.1 };

fn small(bias: RelPosKind) -> VitConfig {
    VitConfig {
        image_size: 48,
        patch_size: 8,
        width: 48,
        depth: 2,
        heads: 3,
        rel_pos_bias: bias,
        ..VitConfig::default()
    }
}

fn images(count: usize) -> Tensor<Flex, 4> {
    Tensor::random([count, 3, 48, 48], Distribution::Normal(0.0, 1.0), &Default::default())
}

/// A classifier whose biases are no zeros.
fn classifier(bias: RelPosKind) -> VisionTransformer<Flex> {
    let model = VisionTransformer::new(&small(bias), Pooling::Mean, 7, &Default::default());
    params::replace(initialise(model, RULE, 3), |info| {
        let count: usize = info.shape.iter().product();
        let values = (0..count).map(|at| (at * 37 % 101) as f32 / 101.0 - 0.5).collect::<Vec<_>>();
        info.name.contains("bias").then(|| (TensorData::new(values, info.shape), DType::F32))
    })
}

fn outputs(model: &VisionTransformer<Flex>, x: &Tensor<Flex, 4>) -> Vec<TensorData> {
    let tokens = model.tokens(x.clone(), &DropPath::none());
    let batch = tokens.dims()[0];
    let subset = TokenSubset::new(&vec![3; batch], 1, &Default::default());
    let (block, bias) = (&model.trunk.blocks[1], model.trunk.shared_bias());
    let drop = DropPath::none().block(0);
    vec![
        model.forward(x.clone(), &DropPath::none()).into_data(),
        block.forward_subset(tokens.clone(), &subset, bias.as_ref(), &drop).into_data(),
        block.attention_weights(tokens.clone(), bias.as_ref()).into_data(),
        tokens.into_data(),
    ]
}

fn refused(what: impl FnOnce()) -> String {
    let panic = catch_unwind(AssertUnwindSafe(what)).unwrap_err();
    panic.downcast_ref::<String>().cloned().unwrap_or_default()
}

#[test]
fn frozen_models_are_the_models() {
    let best = level();
    for wanted in [Level::Baseline, Level::Avx2, Level::Avx512, Level::Avx512Bf16] {
        limit(wanted);
        if level() != wanted {
            println!("skipped {wanted:?}: this machine has {best:?}");
            continue;
        }
        for precision in [Precision::F32, Precision::Bf16] {
            vision_transformers(precision);
            frozen_halves(precision);
            segmentation(precision);
        }
        nothing_gets_stale(wanted >= Level::Avx2);
    }
    limit(Level::Avx512Bf16);
}

fn vision_transformers(precision: Precision) {
    for bias in [RelPosKind::None, RelPosKind::Shared, RelPosKind::PerBlock] {
        let mut model = classifier(bias);
        model.set_precision(precision);
        let frozen = model.clone().freeze();
        // Again, and a copy of it: the same.
        let frozen = frozen.clone().freeze();
        for count in [1, 5] {
            let x = images(count);
            assert_eq!(outputs(&model, &x), outputs(&frozen, &x), "{precision} {bias:?}");
        }
    }
}

/// The tokenizer of pretraining and the teacher of tokenizer training.
fn frozen_halves(precision: Precision) {
    let device = Default::default();
    let config = TokenizerConfig {
        image_size: 48,
        patch_size: 8,
        width: 48,
        depth: 2,
        heads: 3,
        decoder_width: 32,
        decoder_depth: 1,
        decoder_heads: 2,
        codebook_size: 64,
        code_dim: 8,
        teacher_dim: 16,
        kmeans_init: false,
        ..TokenizerConfig::default()
    };
    let mut tokenizer = VqKd::<Flex>::new(&config, 1, &device).unwrap();
    tokenizer.set_precision(precision);
    let frozen = tokenizer.clone().freeze_encoder();
    let x = images(4);
    assert_eq!(tokenizer.encode(x.clone()).into_data(), frozen.encode(x.clone()).into_data());
    assert_eq!(tokenizer.ids(x.clone()).into_data(), frozen.ids(x.clone()).into_data());

    let vit = VitConfig { abs_pos_emb: true, layer_scale_init: 0.0, ..small(RelPosKind::None) };
    let weights = initialise(VisionTransformer::<Flex>::new(&vit, Pooling::Mean, 16, &device), RULE, 1);
    let options =
        TeacherConfig { kind: Some(TeacherKind::Distilled), heads: Some(3), ..TeacherConfig::default() };
    let mut teacher =
        Teacher::<Flex>::from_tensors(&options, params::export(&weights), DType::F32, &device).unwrap();
    teacher.set_precision(precision);
    let frozen = teacher.clone().freeze();
    assert_eq!((frozen.dim(), frozen.patch_size()), (teacher.dim(), teacher.patch_size()));
    assert_eq!(teacher.forward(x.clone()).into_data(), frozen.forward(x).into_data());
}

/// Position tables still fit other grids.
fn segmentation(precision: Precision) {
    let config = SegmenterConfig {
        vit: VitConfig { image_size: 64, patch_size: 16, depth: 4, ..small(RelPosKind::PerBlock) },
        out_indices: [0, 1, 2, 3],
        channels: 16,
        classes: Some(3),
        aux_weight: 0.0,
        ..SegmenterConfig::default()
    };
    let mut model = UperNet::<Flex>::zeros(&config, &Default::default()).unwrap().initialise(&config, 2);
    model.backbone.trunk.set_precision(precision);
    let frozen = model.clone().freeze();
    let x = Tensor::random([1, 3, 64, 96], Distribution::Normal(0.0, 1.0), &Default::default());
    let logits = |model: UperNet<Flex>| model.on_grid(4, 6).unwrap().forward(x.clone()).unwrap().into_data();
    assert_eq!(logits(model), logits(frozen));
}

/// What could make a packed weight differ from the model's is refused.
fn nothing_gets_stale(packs: bool) {
    let model = classifier(RelPosKind::PerBlock);
    let tensors = params::export(&model);
    let mut frozen = model.freeze();
    let loaded = params::load_strict(frozen.clone(), tensors.clone(), DType::F32, |_| false);
    if !packs {
        // Nothing is packed: still an ordinary model.
        assert_eq!(params::export(&frozen).len(), tensors.len());
        loaded.unwrap();
        return;
    }
    let error = loaded.unwrap_err().to_string();
    assert!(error.contains("weight") && error.contains("[0, 0]"), "{error}");
    let text = refused(|| drop(params::export(&frozen)));
    assert!(text.contains("before freezing"), "{text}");
    let text = refused(|| frozen.set_precision(Precision::Bf16));
    assert!(text.contains("frozen in f32"), "{text}");
    frozen.set_precision(Precision::F32);
    // Modules are mapped in many places; a map keeps what is packed.
    let x = images(2);
    let before = outputs(&frozen, &x);
    assert_eq!(outputs(&frozen.no_grad(), &x), before);
}
