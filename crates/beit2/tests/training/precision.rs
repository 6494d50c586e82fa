//! A model's precision reaches every layer that has a matmul.

use beit2::pretrain::{MimConfig, MimModel};
use beit2::segment::{SegmenterConfig, UperNet};
use beit2::tokenizer::{TokenizerConfig, VqKd};
use beit2::vit::{Pooling, VisionTransformer, VitConfig};
use beit2_kernels::Precision;

use super::scene::Auto;

/// Layers in f32 and in bf16, as the model prints itself.
fn layers(model: &impl std::fmt::Debug) -> [usize; 2] {
    let text = format!("{model:?}");
    [Precision::F32, Precision::Bf16].map(|p| text.matches(&format!("precision: {p:?}")).count())
}

#[test]
fn bf16_reaches_every_matmul() {
    let device = Default::default();
    let vit =
        VitConfig { image_size: 8, patch_size: 4, width: 4, depth: 3, heads: 2, ..VitConfig::default() };

    // Patch embedding, four layers to a block, the head.
    let mut classifier = VisionTransformer::<Auto>::new(&vit, Pooling::Mean, 3, &device);
    assert_eq!(layers(&classifier), [1 + 3 * 4 + 1, 0]);
    classifier.set_precision(Precision::Bf16);
    assert_eq!(layers(&classifier), [0, 1 + 3 * 4 + 1]);

    let config = MimConfig {
        vit,
        vocab_size: 5,
        intermediate_layer: 2,
        shared_lm_head: false,
        ..MimConfig::default()
    };
    let mut model = MimModel::<Auto>::new(&config, 1, &device).unwrap();
    model.set_precision(Precision::Bf16);
    assert_eq!(layers(&model), [0, 1 + (3 + 2) * 4 + 2]);

    let config = TokenizerConfig {
        image_size: 8,
        patch_size: 4,
        width: 4,
        depth: 2,
        heads: 2,
        decoder_width: 4,
        decoder_depth: 1,
        decoder_heads: 2,
        codebook_size: 6,
        code_dim: 3,
        teacher_dim: 4,
        ..TokenizerConfig::default()
    };
    let mut model = VqKd::<Auto>::new(&config, 1, &device).unwrap();
    model.set_precision(Precision::Bf16);
    // The encoder's task layer stays in f32, as in the reference.
    assert_eq!(layers(&model), [2, 1 + 2 * 4 + 1 + 4 + 2]);

    let vit =
        VitConfig { image_size: 64, patch_size: 16, width: 4, depth: 4, heads: 2, ..VitConfig::default() };
    let config = SegmenterConfig {
        vit,
        out_indices: [0, 1, 2, 3],
        channels: 4,
        classes: Some(3),
        ..SegmenterConfig::default()
    };
    let mut model = UperNet::<Auto>::zeros(&config, &device).unwrap();
    let [all, none] = layers(&model);
    model.set_precision(Precision::Bf16);
    // The convolutions of heads and pyramid are in f32 on the CPU.
    assert_eq!((layers(&model), none), ([all - (1 + 4 * 4), 1 + 4 * 4], 0));
}
