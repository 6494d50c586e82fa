//! Segmentation models: what they start from, that they learn, and what opens again.

use std::collections::BTreeMap;
use std::path::Path;

use beit2::pretrain::{MimConfig, MimModel};
use beit2::segment::{
    HeadDropout, IGNORE, Segmenter, SegmenterConfig, SegmenterOptions, UperNet, label_tensor, load_backbone,
    pixel_losses,
};
use beit2::tokenizer::{TokenizerConfig, VqKd};
use beit2::train::{AdamW, AdamWConfig, GroupRule, PolySchedule, Rank};
use beit2::vit::{DropPath, RelPosKind, VitConfig};
use beit2::weights::{self, StateFile, Tensors};
use beit2::{Error, params};
use beit2_weights::plan::{Plan, Source};
use burn::backend::Flex;
use burn::module::AutodiffModule;
use burn::tensor::{Tensor, TensorData};
use rand::{RngExt, SeedableRng};

use super::scene::Auto;

fn config() -> SegmenterConfig {
    SegmenterConfig {
        vit: VitConfig {
            image_size: 64,
            width: 16,
            depth: 4,
            heads: 2,
            rel_pos_bias: RelPosKind::PerBlock,
            ..VitConfig::default()
        },
        out_indices: [0, 1, 2, 3],
        channels: 12,
        aux_channels: 8,
        dropout: 0.0,
        classes: Some(3),
        class_names: ["sky", "sea", "sand"].map(String::from).into(),
        palette: vec![[0, 0, 255], [0, 90, 200], [250, 240, 90]],
        ..SegmenterConfig::default()
    }
}

fn images<B: beit2_kernels::Backend>(side: usize) -> Tensor<B, 4> {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(side as u64);
    let values: Vec<f32> = (0..2 * 3 * side * side).map(|_| rng.random()).collect();
    Tensor::from_data(TensorData::new(values, [2, 3, side, side]), &Default::default())
}

fn write(path: &Path, tensors: &Tensors, metadata: &[(&str, String)]) -> String {
    let metadata: BTreeMap<String, String> =
        metadata.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
    std::fs::write(path, weights::encode(tensors, &metadata).unwrap()).unwrap();
    path.to_string_lossy().into_owned()
}

fn ours(config: &SegmenterConfig) -> [(&'static str, String); 2] {
    [("beit2.stage", "segment".to_owned()), ("beit2.config", serde_json::to_string(config).unwrap())]
}

fn open(spec: &str, image_size: Option<usize>) -> Result<Segmenter<Flex>, Error> {
    let options = SegmenterOptions { image_size, ..SegmenterOptions::default() };
    Segmenter::open_with(spec, &options, &Default::default())
}

/// A hundred steps on one batch; the class of a pixel is the brightest of its three channels.
#[test]
fn it_learns_and_opens_again() {
    let (config, device) = (config(), Default::default());
    let mut model = UperNet::<Auto>::zeros(&config, &device).unwrap().initialise(&config, 1);
    let rule = GroupRule { layer_decay: Some((0.75, 4)), ..GroupRule::flat(0.05) };
    let mut optimizer = AdamW::<Auto>::new(AdamWConfig::default(), rule);
    let coarse = images::<Auto>(4);
    let x = beit2_kernels::bilinear(coarse.permute([0, 2, 3, 1]), 64, 64);
    let ids = x.clone().argmax(3).into_data().convert::<u8>().into_vec::<u8>().unwrap();
    let ids: Vec<u8> =
        ids.into_iter().enumerate().map(|(at, id)| if at % 9 == 0 { IGNORE } else { id }).collect();
    let labels = label_tensor::<Auto>(ids, [2, 64, 64], 3, &device).unwrap();
    let x = x.permute([0, 3, 1, 2]).sub_scalar(0.5).mul_scalar(4.0);
    let (mut first, mut last, mut right) = (None, 0.0, 0.0);
    let schedule = PolySchedule::new(5e-3, 0.0, 1.0, 100, 10, 0.1).unwrap();
    for step in 0..schedule.len() {
        let logits =
            model.forward_train(x.clone(), &DropPath::none(), &HeadDropout::none(), &Rank::alone()).unwrap();
        let losses = pixel_losses(&logits, labels.clone(), config.aux_weight);
        last = losses.total.clone().into_scalar();
        right = losses.decode_acc.into_scalar();
        first.get_or_insert(last);
        model = model.record(&logits.statistics).unwrap();
        (model, _) = optimizer.step(model, losses.total.backward(), schedule.at(step), None);
    }
    // 8/9 of the pixels have a class.
    println!("{first:?} → {last}, {right}");
    assert!(last < 0.5 * first.unwrap() && right > 0.8, "{first:?} → {last}, {right}");
    // What no gradient moves has no optimiser state.
    assert!(
        optimizer.export().keys().all(|name| !name.contains("running_") && !name.contains("num_batches"))
    );

    let root = tempfile::tempdir().unwrap();
    let tensors = params::export(&model);
    let counter = &tensors["decode_head.bottleneck.bn.num_batches_tracked"];
    assert_eq!((counter.shape.to_vec(), counter.clone().into_vec::<i64>().unwrap()), (vec![], vec![100]));
    let spec = write(&root.path().join("ours.safetensors"), &tensors, &ours(&config));
    let again = open(&spec, None).unwrap();
    assert_eq!(again.config, config);
    let x = images::<Flex>(64);
    let standardised =
        beit2::pixels::standardise(x.clone(), beit2::pixels::IMAGENET_MEAN, beit2::pixels::IMAGENET_STD);
    let expected = model.valid().forward(standardised).unwrap();
    assert_eq!(again.logits(x).unwrap().into_data(), expected.into_data());
}

/// A file as mmsegmentation writes it: official names with index buffers, classes and palette in `meta`.
#[test]
fn a_published_file_tells_its_sizes() {
    let (config, device) = (config(), Default::default());
    let model = UperNet::<Flex>::zeros(&config, &device).unwrap().initialise(&config, 1);
    let tensors = beit2::vit::with_position_indices(params::export(&model));
    assert!(tensors.contains_key("backbone.blocks.3.attn.relative_position_index"));
    let root = tempfile::tempdir().unwrap();
    let meta = [
        ("meta.CLASSES", "('sky', 'sea', 'sand')".to_owned()),
        ("meta.PALETTE", "[[0, 0, 255], [0, 90, 200], [250, 240, 90]]".to_owned()),
    ];
    let path = root.path().join("published.safetensors");
    let opened = open(&write(&path, &tensors, &meta), None).unwrap();
    let drop_path = opened.config.vit.drop_path;
    let known = SegmenterConfig {
        dropout: 0.1,
        vit: VitConfig { drop_path, ..config.vit.clone() },
        ..config.clone()
    };
    assert_eq!(opened.config, known);
    let x = images::<Flex>(64);
    let logits = opened.model.forward(x.clone()).unwrap();
    assert_eq!(logits.into_data(), model.forward(x).unwrap().into_data());

    // Without `meta`, and without the head that only trains.
    let mut bare = tensors.clone();
    bare.retain(|name, _| !name.starts_with("auxiliary_head."));
    let opened = open(&write(&path, &bare, &[]), None).unwrap();
    assert!(opened.config.class_names.is_empty() && opened.config.palette.is_empty());
    assert!(opened.model.auxiliary_head.is_none());

    // Another window resizes the tables; images of the old size are then refused.
    let larger = open(&write(&path, &tensors, &meta), Some(96)).unwrap();
    assert_eq!(larger.logits(images(96)).unwrap().dims(), [2, 24, 24, 3]);
    let error = larger.logits(images(64)).unwrap_err().to_string();
    assert!(
        error.starts_with("images of 64×64 px do not fit relative position tables for 96×96 px"),
        "{error}"
    );
}

fn start(spec: &str, config: &SegmenterConfig) -> Result<(UperNet<Flex>, Plan), Error> {
    let model = UperNet::<Flex>::zeros(config, &Default::default()).unwrap().initialise(config, 1);
    let state = StateFile::new(weights::read(Path::new(spec))?, spec)?;
    load_backbone(model, config, state, Default::default())
}

#[test]
fn a_pretrained_trunk_is_the_start() {
    let root = tempfile::tempdir().unwrap();
    let vit = VitConfig { image_size: 48, rel_pos_bias: RelPosKind::Shared, ..config().vit };
    let mim = MimConfig { vit, vocab_size: 7, intermediate_layer: 2, head_layers: 1, ..MimConfig::default() };
    let pretrained = MimModel::<Flex>::new(&mim, 5, &Default::default()).unwrap();
    let pretrained = params::replace(pretrained, |info| {
        // Tables start at 0, which would not show that they were copied.
        info.name.ends_with("table").then(|| {
            let count: usize = info.shape.iter().product();
            let values: Vec<f32> = (0..count).map(|at| (at as f32 * 0.37).sin()).collect();
            (TensorData::new(values, info.shape), burn::tensor::DType::F32)
        })
    });
    let metadata =
        [("beit2.stage", "pretrain".to_owned()), ("beit2.config", serde_json::to_string(&mim).unwrap())];
    let spec = write(&root.path().join("mim.safetensors"), &params::export(&pretrained), &metadata);
    let (model, plan) = start(&spec, &config()).unwrap();
    let (loaded, source) = (params::export(&model), params::export(&pretrained));
    for block in 0..4 {
        let table = format!("backbone.blocks.{block}.attn.relative_position_bias_table");
        assert_eq!(plan.used[&table], Source::Resized { from: 3, to: 4, shared: true });
        assert_eq!(loaded[&table], loaded["backbone.blocks.0.attn.relative_position_bias_table"]);
        let weight = format!("blocks.{block}.attn.qkv.weight");
        assert_eq!(loaded[&format!("backbone.{weight}")], source[&weight]);
    }
    // The last three rows, those of CLS, stay.
    let rows =
        |table: &TensorData| table.clone().into_vec::<f32>().unwrap().split_off(table.shape[0] * 2 - 6);
    let own = &loaded["backbone.blocks.2.attn.relative_position_bias_table"];
    assert_eq!(rows(own), rows(&source["rel_pos_bias.relative_position_bias_table"]));
    assert!(plan.fresh.contains(&"backbone.fpn1.0.weight".to_owned()));
    assert!(plan.fresh.contains(&"decode_head.conv_seg.bias".to_owned()));
    let fresh_trunk = plan.fresh.iter().any(|name| name.starts_with("backbone.blocks"));
    assert!(!fresh_trunk, "{:?}", plan.fresh);
    let unused: Vec<&str> = plan.unused.iter().map(|(name, _)| name.as_str()).collect();
    assert!(unused.contains(&"mask_token") && unused.contains(&"lm_head.weight"));

    // A segmentation model of another size of window and other classes: heads are taken where they fit.
    let mut other = config();
    (other.vit.image_size, other.classes) = (96, Some(5));
    (other.class_names, other.palette) = (Vec::new(), Vec::new());
    let trained = UperNet::<Flex>::zeros(&other, &Default::default()).unwrap().initialise(&other, 9);
    let spec = write(&root.path().join("other.safetensors"), &params::export(&trained), &ours(&other));
    let (model, plan) = start(&spec, &config()).unwrap();
    let (loaded, source) = (params::export(&model), params::export(&trained));
    for name in ["decode_head.bottleneck.conv.weight", "backbone.fpn1.3.weight", "backbone.cls_token"] {
        assert_eq!(loaded[name], source[name], "{name}");
    }
    let fresh = ["decode_head", "auxiliary_head"]
        .map(|head| ["weight", "bias"].map(|leaf| format!("{head}.conv_seg.{leaf}")));
    assert_eq!(
        plan.fresh.iter().collect::<std::collections::BTreeSet<_>>(),
        fresh.iter().flatten().collect()
    );
}

/// Encoders have absolute positions and neither layer scale nor tables: those start fresh.
#[test]
fn a_tokenizers_encoder_is_a_start() {
    let root = tempfile::tempdir().unwrap();
    let tokenizer = TokenizerConfig {
        image_size: 48,
        width: 16,
        depth: 4,
        heads: 2,
        decoder_width: 8,
        decoder_depth: 1,
        decoder_heads: 1,
        codebook_size: 9,
        code_dim: 4,
        teacher_dim: 6,
        ..TokenizerConfig::default()
    };
    let trained = VqKd::<Flex>::new(&tokenizer, 5, &Default::default()).unwrap();
    let metadata = [
        ("beit2.stage", "tokenizer".to_owned()),
        ("beit2.config", serde_json::to_string(&tokenizer).unwrap()),
    ];
    let spec = write(&root.path().join("tokenizer.safetensors"), &params::export(&trained), &metadata);
    let mut config = config();
    config.vit.abs_pos_emb = true;
    let (model, plan) = start(&spec, &config).unwrap();
    let (loaded, source) = (params::export(&model), params::export(&trained));
    assert_eq!(loaded["backbone.blocks.3.mlp.fc1.weight"], source["encoder.blocks.3.mlp.fc1.weight"]);
    assert_eq!(plan.used["backbone.pos_embed"], Source::Resized { from: 3, to: 4, shared: false });
    for name in ["backbone.blocks.0.gamma_1", "backbone.blocks.3.attn.relative_position_bias_table"] {
        assert!(plan.fresh.contains(&name.to_owned()), "{name}");
    }
    let reason = |wanted: &str| plan.unused.iter().find(|(name, _)| name == wanted).unwrap().1.to_string();
    assert_eq!(reason("fc_norm.weight"), "this model ends with its last block, without a norm");
    assert_eq!(reason("quantize.embedding.weight"), "it is not part of the tokenizer's encoder");
    // Another width cannot be converted.
    config.vit.width = 32;
    assert!(start(&spec, &config).unwrap_err().to_string().contains("`cls_token` has shape [1, 1, 16]"));
}

#[test]
fn what_cannot_be_seen_or_opened_is_one_sentence() {
    let (config, device) = (config(), Default::default());
    let model = UperNet::<Flex>::zeros(&config, &device).unwrap();
    let sentence = |height, width| {
        let x = Tensor::zeros([1, 3, height, width], &device);
        model.forward(x).unwrap_err().to_string()
    };
    assert_eq!(sentence(64, 72), "images of 72×64 px are no multiple of the patch of 16 px");
    assert!(sentence(16, 64).starts_with("images of 64×16 px are too small"));
    assert!(sentence(64, 96).contains("do not fit relative position tables for 64×64 px"));
    let one = Tensor::zeros([1, 3, 64, 64], &device);
    let error = model
        .forward_train(one, &DropPath::none(), &HeadDropout::none(), &Rank::alone())
        .unwrap_err()
        .to_string();
    assert!(error.contains("a batch of one image"), "{error}");
    let error = model.clone().record(&[]).unwrap_err().to_string();
    assert_eq!(error, "statistics of 0 batch norms for a model that has 14");
    let error = label_tensor::<Flex>(vec![0, 3], [1, 1, 2], 3, &device).unwrap_err().to_string();
    assert_eq!(error, "a mask holds class 3, which is not one of 3 classes");
    let error = label_tensor::<Flex>(vec![0], [1, 1, 2], 3, &device).unwrap_err().to_string();
    assert_eq!(error, "1 labels for 1 masks of 2×1 px, expected 2");

    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("model.safetensors");
    let refused = |tensors: &Tensors, metadata: &[(&str, String)]| {
        open(&write(&path, tensors, metadata), None).unwrap_err().to_string()
    };
    let whole = params::export(&model);
    let mut fewer = whole.clone();
    fewer.retain(|name, _| !name.starts_with("decode_head.psp_modules.3."));
    assert!(refused(&fewer, &[]).contains("the number of decode_head.psp_modules is not 4"));
    assert!(
        refused(&fewer, &ours(&config)).contains("missing `decode_head.psp_modules.3.1.conv.weight` and")
    );
    let mut trunk = Tensors::new();
    for (name, tensor) in &whole {
        if let Some(name) = name.strip_prefix("backbone.").filter(|name| !name.starts_with("fpn")) {
            trunk.insert(name.to_owned(), tensor.clone());
        }
    }
    assert!(refused(&trunk, &[]).contains("has no pixel classes"));
    let other = SegmenterConfig { channels: 13, ..config.clone() };
    assert!(refused(&whole, &ours(&other)).contains("has shape"));
}

/// Without tables any multiple of the patch can be seen; absolute positions are resized on the fly.
#[test]
fn models_without_tables_see_any_size() {
    let mut config = config();
    (config.vit.rel_pos_bias, config.vit.abs_pos_emb) = (RelPosKind::None, true);
    let model = UperNet::<Flex>::zeros(&config, &Default::default()).unwrap().initialise(&config, 1);
    let x = Tensor::ones([1, 3, 64, 112], &Default::default());
    assert_eq!(model.forward(x).unwrap().dims(), [1, 16, 28, 3]);
}
