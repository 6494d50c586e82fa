//! Tiny weight files of every kind, made with the library.

#![allow(dead_code)]
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;

use beit2::classify::ClassifierConfig;
use beit2::pretrain::{MimConfig, MimModel};
use beit2::segment::{SegmenterConfig, UperNet};
use beit2::tokenizer::{TokenizerConfig, VqKd};
use beit2::vit::{Pooling, RelPosKind, VisionTransformer, VitConfig};
use beit2::{params, weights};
use burn::backend::Flex;
use burn::tensor::TensorData;
use serde::Serialize;

/// 32 px in patches of 8: a grid of 4; width 16, 2 blocks.
pub fn vit(rel_pos_bias: RelPosKind) -> VitConfig {
    let (image_size, patch_size, width, depth, heads) = (32, 8, 16, 2, 2);
    VitConfig { image_size, patch_size, width, depth, heads, rel_pos_bias, ..VitConfig::default() }
}

/// Values that differ for every tensor and place, with norms near one.
fn filled(shapes: BTreeMap<String, TensorData>) -> weights::Tensors {
    let fill = |(seed, (name, data)): (usize, (String, TensorData))| {
        let one = if name.contains("norm") && name.ends_with("weight") { 1.0 } else { 0.0 };
        let shape = data.shape.clone();
        let value = |at: usize| one + 0.3 * (0.7 * at as f32 + 1.3 * seed as f32).sin();
        (name, TensorData::new((0..shape.num_elements()).map(value).collect::<Vec<f32>>(), shape))
    };
    shapes.into_iter().enumerate().map(fill).collect()
}

fn save(path: &Path, tensors: &weights::Tensors, config: Option<(&str, &dyn erased::Json)>) {
    let mut metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    if let Some((stage, config)) = config {
        metadata.insert("beit2.stage".into(), stage.into());
        metadata.insert("beit2.config".into(), config.json());
    }
    std::fs::write(path, weights::encode(tensors, &metadata).unwrap()).unwrap();
}

mod erased {
    /// Anything that serde can write.
    pub trait Json {
        fn json(&self) -> String;
    }
    impl<T: super::Serialize> Json for T {
        fn json(&self) -> String {
            serde_json::to_string(self).unwrap()
        }
    }
}

/// A classifier with or without names of its own.
pub fn classifier(path: &Path, names: &[&str], classes: usize) {
    let config = ClassifierConfig {
        vit: vit(RelPosKind::PerBlock),
        pooling: Pooling::Mean,
        classes: Some(classes),
        class_names: names.iter().map(|name| (*name).to_owned()).collect(),
        multi_label: false,
    };
    let model = VisionTransformer::<Flex>::new(&config.vit, Pooling::Mean, classes, &Default::default());
    save(path, &filled(params::export(&model)), Some(("finetune", &config)));
}

/// A bare trunk in official names, which says nothing about itself. Width 64, as heads are counted by that.
pub fn backbone(path: &Path) {
    let config = VitConfig { width: 64, heads: 1, ..vit(RelPosKind::PerBlock) };
    let model = VisionTransformer::<Flex>::new(&config, Pooling::Cls, 0, &Default::default());
    save(path, &filled(params::export(&model)), None);
}

/// A classifier in official names without bias tables, which do not show its heads.
pub fn headless_classifier(path: &Path, classes: usize) {
    let config = VitConfig { width: 64, heads: 4, abs_pos_emb: true, ..vit(RelPosKind::None) };
    let model = VisionTransformer::<Flex>::new(&config, Pooling::Mean, classes, &Default::default());
    save(path, &filled(params::export(&model)), None);
}

/// A classifier in official names that says nothing about itself.
pub fn bare_classifier(path: &Path, classes: usize) {
    let config = VitConfig { width: 64, heads: 1, ..vit(RelPosKind::PerBlock) };
    let model = VisionTransformer::<Flex>::new(&config, Pooling::Mean, classes, &Default::default());
    save(path, &filled(params::export(&model)), None);
}

/// A masked image model.
pub fn mim(path: &Path) {
    let vit = VitConfig { drop_path: 0.0, ..vit(RelPosKind::Shared) };
    let config =
        MimConfig { vit, vocab_size: 16, intermediate_layer: 1, head_layers: 1, ..MimConfig::default() };
    let model = MimModel::<Flex>::zeros(&config, &Default::default()).unwrap();
    save(path, &filled(params::export(&model)), Some(("pretrain", &config)));
}

/// A tokenizer of 16 codes.
pub fn tokenizer(path: &Path) {
    let config = TokenizerConfig {
        image_size: 32,
        patch_size: 8,
        width: 16,
        depth: 1,
        heads: 2,
        decoder_width: 16,
        decoder_depth: 1,
        decoder_heads: 2,
        codebook_size: 16,
        code_dim: 4,
        teacher_dim: 16,
        ..TokenizerConfig::default()
    };
    let model = VqKd::<Flex>::zeros(&config, &Default::default()).unwrap();
    let mut tensors = filled(params::export(&model));
    for (name, data) in &mut tensors {
        if name.ends_with("initted") {
            *data = TensorData::new(vec![1f32; data.shape.num_elements()], data.shape.clone());
        }
    }
    save(path, &tensors, Some(("tokenizer", &config)));
}

/// A segmentation model that looks at windows of 64 px.
pub fn segmenter(path: &Path, classes: usize) {
    let vit = VitConfig { image_size: 64, depth: 4, ..vit(RelPosKind::PerBlock) };
    let config = SegmenterConfig {
        vit,
        out_indices: [0, 1, 2, 3],
        channels: 16,
        aux_channels: 8,
        classes: Some(classes),
        ..SegmenterConfig::default()
    };
    let model = UperNet::<Flex>::zeros(&config, &Default::default()).unwrap().initialise(&config, 1);
    save(path, &params::export(&model), Some(("segment", &config)));
}
