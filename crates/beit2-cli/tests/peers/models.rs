//! Small models of every kind with values that differ, as this program would have trained them.

use std::collections::BTreeMap;
use std::path::Path;

use beit2::classify::ClassifierConfig;
use beit2::params;
use beit2::pretrain::{MimConfig, MimModel};
use beit2::segment::{SegmenterConfig, UperNet};
use beit2::vit::{Pooling, RelPosKind, VisionTransformer, VitConfig};
use beit2::weights;
use burn::backend::Flex;
use burn::module::Module;
use burn::tensor::{DType, TensorData};
use serde::Serialize;

/// A model with its configuration.
#[allow(clippy::large_enum_variant)] // a test has a handful
pub enum Model {
    Vit(VisionTransformer<Flex>, ClassifierConfig),
    Mim(MimModel<Flex>, MimConfig),
    UperNet(UperNet<Flex>, SegmenterConfig),
}

/// Sizes that no published model has.
pub fn vit() -> VitConfig {
    VitConfig {
        image_size: 48,
        patch_size: 16,
        width: 24,
        depth: 3,
        heads: 3,
        mlp_ratio: 2.5,
        ..VitConfig::default()
    }
}

/// A classifier; without classes a backbone.
pub fn classifier(vit: VitConfig, pooling: Pooling, classes: usize, names: &[&str]) -> Model {
    let model = VisionTransformer::new(&vit, pooling, classes, &Default::default());
    let class_names = names.iter().map(|name| (*name).to_owned()).collect();
    let mut config = ClassifierConfig { vit, pooling, classes: Some(classes), ..ClassifierConfig::default() };
    config.class_names = class_names;
    Model::Vit(filled(model), config)
}

/// A masked image model, with patch aggregation.
pub fn mim(vit: VitConfig) -> Model {
    let config =
        MimConfig { vit, vocab_size: 11, intermediate_layer: 2, head_layers: 1, ..MimConfig::default() };
    Model::Mim(filled(MimModel::zeros(&config, &Default::default()).unwrap()), config)
}

/// A segmentation model.
pub fn upernet(change: impl FnOnce(&mut SegmenterConfig)) -> Model {
    let vit = VitConfig { image_size: 64, depth: 5, rel_pos_bias: RelPosKind::PerBlock, ..vit() };
    let mut config = SegmenterConfig {
        out_indices: SegmenterConfig::taps(vit.depth),
        channels: vit.width,
        vit,
        aux_channels: 8,
        classes: Some(3),
        class_names: ["sky", "sea", "land"].map(str::to_owned).into(),
        ..SegmenterConfig::default()
    };
    change(&mut config);
    Model::UperNet(filled(UperNet::zeros(&config, &Default::default()).unwrap()), config)
}

/// Values of the size that trained models have, so that every layer matters.
fn filled<M: Module<Flex>>(model: M) -> M {
    let mut state = 7u32;
    let mut next = move || {
        // Numerical Recipes' generator; only that values differ matters.
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    params::replace(model, |info| {
        let name = info.name.as_str();
        if info.shape.is_empty() {
            return None; // a counter
        }
        let inputs: usize = info.shape[1..].iter().product();
        let (centre, spread) = match () {
            () if name.ends_with("running_var") => (1.0, 0.5),
            () if info.shape.len() == 1 && name.ends_with("weight") => (1.0, 0.3),
            () if name.contains("gamma_") => (0.6, 0.3),
            () if info.shape.len() == 1 => (0.0, 0.2),
            () if name.ends_with("token") || name.ends_with("table") || name.ends_with("pos_embed") => {
                (0.0, 1.0)
            }
            () => (0.0, (3.0 / inputs.max(1) as f32).sqrt()),
        };
        let values: Vec<f32> = (0..info.shape.iter().product()).map(|_| centre + spread * next()).collect();
        Some((TensorData::new(values, info.shape), DType::F32))
    })
}

impl Model {
    /// Its image side.
    pub fn side(&self) -> usize {
        self.vit().image_size
    }

    pub fn vit(&self) -> &VitConfig {
        match self {
            Model::Vit(_, config) => &config.vit,
            Model::Mim(_, config) => &config.vit,
            Model::UperNet(_, config) => &config.vit,
        }
    }

    /// Writes it as a checkpoint of this program.
    pub fn write(&self, path: &Path) {
        let (tensors, stage, config) = match self {
            Model::Vit(model, config) => (params::export(model), "finetune", text(config)),
            Model::Mim(model, config) => (params::export(model), "pretrain", text(config)),
            Model::UperNet(model, config) => (params::export(model), "segment", text(config)),
        };
        let metadata =
            [("format", "pt".to_owned()), ("beit2.stage", stage.to_owned()), ("beit2.config", config)];
        let metadata: BTreeMap<String, String> =
            metadata.into_iter().map(|(name, text)| (name.to_owned(), text)).collect();
        std::fs::write(path, weights::encode(&tensors, &metadata).unwrap()).unwrap();
    }
}

fn text(config: &impl Serialize) -> String {
    serde_json::to_string(config).unwrap()
}
