//! Small models of every kind and option, with images and what the program computes of them.

use std::collections::BTreeMap;

use beit2::classify::{
    Classifier, ClassifierConfig, ClassifierOptions, Embedder, EmbedderOptions, FeatureKind,
};
use beit2::onnx::{OnnxKind, OnnxOptions, PixelInput, WeightType};
use beit2::pretrain::{self, MimConfig, MimModel, PatchMask};
use beit2::tokenizer::{ProcessType, Tokenizer, TokenizerConfig, TokenizerOptions, VqKd};
use beit2::vit::{Pooling, RelPosKind, VisionTransformer, VitConfig};
use beit2::weights::{Tensors, WeightFile};
use beit2::{params, pixels};
use beit2_weights::Normalization;
use burn::backend::Flex;
use burn::tensor::{DType, Tensor, TensorData};
use serde::Serialize;

/// Images of a batch.
pub const BATCH: usize = 3;

/// A model, what goes in and what must come out.
pub struct Case {
    pub name: String,
    pub file: WeightFile,
    pub options: OnnxOptions,
    pub inputs: BTreeMap<String, TensorData>,
    pub outputs: BTreeMap<String, TensorData>,
}

fn vit() -> VitConfig {
    VitConfig { image_size: 32, patch_size: 8, width: 16, depth: 2, heads: 2, ..VitConfig::default() }
}

/// Some values for every tensor, none of them special; norms near 1.
fn filled(tensors: Tensors) -> Tensors {
    let fill = |(seed, (name, data)): (usize, (String, TensorData))| {
        let base = if name.contains("norm") && name.ends_with("weight") { 1.0 } else { 0.0 };
        let value = |at: usize| base + 0.3 * (0.7 * at as f32 + 1.3 * seed as f32).sin();
        let shape = data.shape.clone();
        let mut values: Vec<f32> = (0..shape.num_elements()).map(value).collect();
        if name == "quantize.embedding.weight" {
            let width = shape[shape.num_dims() - 1];
            for code in values.chunks_mut(width) {
                let norm = code.iter().map(|value| value * value).sum::<f32>().sqrt();
                code.iter_mut().for_each(|value| *value /= norm);
            }
        }
        if name.ends_with("initted") {
            values.fill(1.0);
        }
        (name, TensorData::new(values, shape))
    };
    tensors.into_iter().enumerate().map(fill).collect()
}

fn file(stage: &str, config: &impl Serialize, tensors: Tensors) -> WeightFile {
    let metadata =
        [("beit2.stage", stage.to_owned()), ("beit2.config", serde_json::to_string(config).unwrap())];
    let metadata = metadata.map(|(key, value)| (key.to_owned(), value)).into();
    WeightFile { tensors: filled(tensors), metadata, ..WeightFile::default() }
}

fn bytes(channels: usize, side: usize) -> Vec<u8> {
    (0..BATCH * channels * side * side).map(|at| (at * 37 % 251) as u8).collect()
}

/// Images in [0, 1].
fn images(channels: usize, side: usize) -> Tensor<Flex, 4> {
    let values: Vec<f32> = bytes(channels, side).into_iter().map(|value| f32::from(value) / 255.0).collect();
    Tensor::from_data(TensorData::new(values, [BATCH, channels, side, side]), &Default::default())
}

/// What a graph takes for [`images`].
fn given(options: &OnnxOptions, channels: usize, side: usize, mean: &[f64], std: &[f64]) -> TensorData {
    let shape = [BATCH, channels, side, side];
    let scaled = |(at, value): (usize, u8)| {
        let channel = at / (side * side) % channels;
        let unit = f32::from(value) / 255.0;
        match options.pixels {
            PixelInput::Standardized => (unit - mean[channel] as f32) / std[channel] as f32,
            _ => unit,
        }
    };
    match options.pixels {
        PixelInput::Bytes => TensorData::new(bytes(channels, side), shape),
        _ => TensorData::new(bytes(channels, side).into_iter().enumerate().map(scaled).collect(), shape),
    }
}

const IMAGENET: ([f64; 3], [f64; 3]) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);

fn one<const D: usize>(name: &str, tensor: Tensor<Flex, D>) -> (String, TensorData) {
    (name.to_owned(), tensor.into_data())
}

fn classifier(name: &str, config: ClassifierConfig, options: OnnxOptions) -> Case {
    let zeros = VisionTransformer::<Flex>::new(&config.vit, config.pooling, 5, &Default::default());
    classifier_of(name, file("finetune", &config, params::export(&zeros)), &config, options)
}

fn classifier_of(name: &str, file: WeightFile, config: &ClassifierConfig, options: OnnxOptions) -> Case {
    let opened = ClassifierOptions { image_size: options.image_size, ..ClassifierOptions::default() };
    let model = Classifier::<Flex>::from_file(file.clone(), name, &opened, &Default::default()).unwrap();
    let (channels, side) = (config.vit.in_chans, options.image_size.unwrap_or(config.vit.image_size));
    let (mean, std) = match &config.vit.normalization {
        Some(own) => (own.mean.clone(), own.std.clone()),
        None => (IMAGENET.0.to_vec(), IMAGENET.1.to_vec()),
    };
    let inputs = [("images".to_owned(), given(&options, channels, side, &mean, &std))].into();
    let outputs = [one("logits", model.logits(images(channels, side)))].into();
    Case { name: name.to_owned(), file, options, inputs, outputs }
}

fn classifiers() -> Vec<Case> {
    let config =
        |vit: VitConfig, pooling| ClassifierConfig { vit, pooling, classes: Some(5), ..Default::default() };
    let plain = OnnxOptions::default();
    let mut cases = Vec::new();
    for (bias, rel_pos_bias) in
        [("none", RelPosKind::None), ("shared", RelPosKind::Shared), ("own", RelPosKind::PerBlock)]
    {
        for (pool, pooling) in [("mean", Pooling::Mean), ("cls", Pooling::Cls)] {
            let vit = VitConfig { rel_pos_bias, abs_pos_emb: pool == "cls", ..vit() };
            cases.push(classifier(&format!("classifier_{bias}_{pool}"), config(vit, pooling), plain));
        }
    }
    let bare = VitConfig { layer_scale_init: 0.0, qkv_bias: false, abs_pos_emb: true, heads: 4, ..vit() };
    cases.push(classifier("classifier_bare", config(bare, Pooling::Mean), plain));
    for (pixels, name) in [(PixelInput::Unit, "unit"), (PixelInput::Bytes, "bytes")] {
        let options = OnnxOptions { pixels, ..plain };
        cases.push(classifier(&format!("classifier_{name}"), config(vit(), Pooling::Mean), options));
    }
    // One patch, one head, one block; another size than in training; five channels.
    let tiny = VitConfig { image_size: 4, patch_size: 4, width: 8, depth: 1, heads: 1, ..vit() };
    cases.push(classifier("classifier_tiny", config(tiny, Pooling::Cls), plain));
    for (name, rel_pos_bias) in [("own", RelPosKind::PerBlock), ("shared", RelPosKind::Shared)] {
        let larger = VitConfig { rel_pos_bias, abs_pos_emb: true, ..vit() };
        let options = OnnxOptions { image_size: Some(48), ..plain };
        cases.push(classifier(&format!("classifier_48px_{name}"), config(larger, Pooling::Mean), options));
    }
    let normalization =
        Normalization { mean: vec![0.1, 0.2, 0.3, 0.4, 0.5], std: vec![0.5, 0.4, 0.3, 0.2, 0.1] };
    let five = VitConfig { in_chans: 5, normalization: Some(normalization), ..vit() };
    for pixels in [PixelInput::Standardized, PixelInput::Bytes] {
        let name = format!("classifier_5_channels_{pixels}");
        cases.push(classifier(&name, config(five.clone(), Pooling::Mean), OnnxOptions { pixels, ..plain }));
    }
    // Weights that half precision holds, so that nothing but the type of the file changes.
    for (weights, dtype) in [(WeightType::F16, DType::F16), (WeightType::Bf16, DType::BF16)] {
        let own = config(
            VitConfig { abs_pos_emb: true, rel_pos_bias: RelPosKind::PerBlock, ..vit() },
            Pooling::Mean,
        );
        let mut case = classifier("rounded", own.clone(), plain);
        for data in case.file.tensors.values_mut() {
            *data = data.clone().convert_dtype(dtype).convert_dtype(DType::F32);
        }
        let options = OnnxOptions { weights, ..plain };
        cases.push(classifier_of(&format!("classifier_{weights}"), case.file, &own, options));
    }
    cases
}

fn mim(name: &str, config: &MimConfig, options: OnnxOptions) -> Case {
    let zeros = MimModel::<Flex>::zeros(config, &Default::default()).unwrap();
    let file = file("pretrain", config, params::export(&zeros));
    if options.kind == Some(OnnxKind::Backbone) {
        return backbone(name, file, options, config.vit.image_size);
    }
    let (_, model) = pretrain::load::<Flex>(file.clone(), name, &Default::default()).unwrap();
    let (side, patches) = (config.vit.image_size, config.vit.patches());
    let masked = [[1usize, 4, 6], [0, 5, 15], [2, 3, 9]];
    let flat: Vec<u32> = masked.iter().flatten().map(|&at| at as u32).collect();
    let mask = PatchMask::<Flex>::new(&flat, BATCH, patches, &Default::default());
    let x = pixels::normalise(images(3, side), None);
    let logits = model.logits_all(&model.patch_tokens(x, Some(&mask)));
    let names = ["logits", "patch_aggregation_logits"];
    let shape = [BATCH, patches, config.vocab_size];
    let outputs = logits.into_iter().zip(names).map(|(logits, name)| {
        let data = logits.into_data();
        (name.to_owned(), TensorData::new(data.into_vec::<f32>().unwrap(), shape))
    });
    let mut dense = vec![false; BATCH * patches];
    masked
        .iter()
        .enumerate()
        .for_each(|(image, at)| at.iter().for_each(|at| dense[image * patches + at] = true));
    let inputs = [
        ("images".to_owned(), given(&options, 3, side, &IMAGENET.0, &IMAGENET.1)),
        ("mask".to_owned(), TensorData::new(dense, [BATCH, patches])),
    ];
    Case { name: name.to_owned(), file, options, inputs: inputs.into(), outputs: outputs.collect() }
}

fn mims() -> Vec<Case> {
    let config =
        |vit: VitConfig| MimConfig { vit, vocab_size: 16, intermediate_layer: 1, ..MimConfig::default() };
    let plain = OnnxOptions::default();
    let own =
        VitConfig { rel_pos_bias: RelPosKind::PerBlock, abs_pos_emb: true, layer_scale_init: 0.0, ..vit() };
    let bare = VitConfig { rel_pos_bias: RelPosKind::None, qkv_bias: false, abs_pos_emb: true, ..vit() };
    let backbone = OnnxOptions { kind: Some(OnnxKind::Backbone), ..plain };
    vec![
        mim("mim_shared_head", &config(vit()), plain),
        mim("mim_own_head", &MimConfig { shared_lm_head: false, ..config(own) }, plain),
        mim("mim_bare", &MimConfig { patch_aggregation: false, ..config(bare) }, plain),
        mim("mim_bytes", &config(vit()), OnnxOptions { pixels: PixelInput::Bytes, ..plain }),
        mim("backbone_mim", &config(vit()), backbone),
        mim("backbone_mim_layer", &config(vit()), OnnxOptions { layer: Some(1), ..backbone }),
        mim("backbone_mim_embedding", &config(vit()), OnnxOptions { layer: Some(0), ..backbone }),
        mim("backbone_mim_48px", &config(vit()), OnnxOptions { image_size: Some(48), ..backbone }),
    ]
}

fn backbone(name: &str, file: WeightFile, options: OnnxOptions, trained_px: usize) -> Case {
    let OnnxOptions { layer, image_size, .. } = options;
    let opened = EmbedderOptions { layer, image_size, ..EmbedderOptions::default() };
    let model = Embedder::<Flex>::from_file(file.clone(), name, &opened, &Default::default()).unwrap();
    let side = image_size.unwrap_or(trained_px);
    let of = |kind| model.net.features(images(3, side), kind);
    let outputs = [
        one("cls", of(FeatureKind::Cls)),
        one("mean", of(FeatureKind::Mean)),
        one("patches", model.net.patches(images(3, side))),
    ];
    let signed = file.metadata["beit2.stage"] == "tokenizer";
    let (mean, std) = if signed { ([0.5; 3], [0.5; 3]) } else { IMAGENET };
    let inputs = [("images".to_owned(), given(&options, 3, side, &mean, &std))].into();
    Case { name: name.to_owned(), file, options, inputs, outputs: outputs.into() }
}

fn tokenizer(name: &str, config: &TokenizerConfig, options: OnnxOptions) -> Case {
    let zeros = VqKd::<Flex>::zeros(config, &Default::default()).unwrap();
    let file = file("tokenizer", config, params::export(&zeros));
    if options.kind == Some(OnnxKind::Backbone) {
        return backbone(name, file, options, config.image_size);
    }
    let opened = TokenizerOptions::default();
    let model = Tokenizer::<Flex>::from_file(file.clone(), name, &opened, &Default::default()).unwrap();
    let ids = model.ids(images(3, config.image_size)).into_data();
    let ids = TensorData::new(ids.iter::<i64>().collect::<Vec<_>>(), ids.shape.clone());
    let (mean, std) = match config.process_type {
        ProcessType::Default => ([0.5; 3], [0.5; 3]),
        ProcessType::ImagenetNorm => IMAGENET,
        ProcessType::DallE => ([0.0; 3], [1.0; 3]),
    };
    let inputs = [("images".to_owned(), given(&options, 3, config.image_size, &mean, &std))].into();
    Case { name: name.to_owned(), file, options, inputs, outputs: [("ids".to_owned(), ids)].into() }
}

fn tokenizers() -> Vec<Case> {
    let config = TokenizerConfig {
        image_size: 32,
        patch_size: 8,
        width: 16,
        depth: 2,
        heads: 2,
        decoder_width: 16,
        decoder_depth: 1,
        decoder_heads: 2,
        codebook_size: 24,
        code_dim: 6,
        teacher_dim: 16,
        ..TokenizerConfig::default()
    };
    let imagenet = TokenizerConfig { process_type: ProcessType::ImagenetNorm, ..config.clone() };
    let dall_e = TokenizerConfig { process_type: ProcessType::DallE, ..config.clone() };
    let plain = OnnxOptions::default();
    let backbone = OnnxOptions { kind: Some(OnnxKind::Backbone), ..plain };
    vec![
        tokenizer("tokenizer", &config, plain),
        tokenizer("tokenizer_bytes", &config, OnnxOptions { pixels: PixelInput::Bytes, ..plain }),
        tokenizer("tokenizer_imagenet", &imagenet, plain),
        tokenizer("tokenizer_dall_e", &dall_e, plain),
        tokenizer("backbone_tokenizer", &config, backbone),
    ]
}

/// Features of classifiers: the norm before or behind the pooling.
fn backbones() -> Vec<Case> {
    let of = |name: &str, pooling, layer| {
        let vit = VitConfig { rel_pos_bias: RelPosKind::PerBlock, ..vit() };
        let config = ClassifierConfig { vit, pooling, classes: Some(5), ..Default::default() };
        let case = classifier(name, config, OnnxOptions::default());
        let options = OnnxOptions { kind: Some(OnnxKind::Backbone), layer, ..OnnxOptions::default() };
        backbone(name, case.file, options, 32)
    };
    vec![
        of("backbone_mean", Pooling::Mean, None),
        of("backbone_cls", Pooling::Cls, None),
        of("backbone_cls_layer", Pooling::Cls, Some(1)),
    ]
}

/// All of them.
pub fn all() -> Vec<Case> {
    [classifiers(), mims(), tokenizers(), backbones()].into_iter().flatten().collect()
}
