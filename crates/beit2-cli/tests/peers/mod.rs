//! Folders written by `beit2 weights convert`, opened by transformers and timm themselves: what they compute is what this
//! program computes.
//!
//! Needs the Python environment that `scripts/python_env.sh` makes. It is looked for in `target/python-env`; without it the
//! tests say so and pass. `BEIT2_PYTHON_ENV` names another place, where it must be.

#![allow(clippy::unwrap_used)]

mod models;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use beit2::classify::Classifier;
use beit2::pretrain::PatchMask;
use beit2::segment::Segmenter;
use beit2::vit::{DropPath, Pooling, RelPosKind, Trunk, VitConfig};
use beit2::weights;
use beit2_data::EvalConfig;
use burn::backend::Flex;
use burn::tensor::{Tensor, TensorData};
use models::Model;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::weights as command;

/// Largest difference of two f32 results, as a share of the largest value: a few roundings in every layer.
const ROUNDING: f64 = 1e-5;

const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const STD: [f32; 3] = [0.229, 0.224, 0.225];

/// The interpreter; `None` with a printed line when there is no environment.
fn python() -> Option<PathBuf> {
    let named = std::env::var_os("BEIT2_PYTHON_ENV").map(PathBuf::from);
    let place = named
        .clone()
        .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/python-env"));
    let python = place.join("bin/python");
    if named.is_some() {
        assert!(python.is_file(), "BEIT2_PYTHON_ENV names {}, which has no bin/python", place.display());
        return Some(python);
    }
    // The mark of a finished installation.
    if python.is_file() && place.join("installed.txt").is_file() {
        return Some(python);
    }
    println!("skipped: there is no Python environment in target/python-env (scripts/python_env.sh makes it)");
    None
}

/// A model, what it was converted to and what the other library made of that.
struct Case {
    name: String,
    model: Model,
    /// The file before conversion.
    source: PathBuf,
    /// The written folder.
    folder: PathBuf,
    images: Tensor<Flex, 4>,
    mask: Vec<u8>,
    found: weights::Tensors,
    said: Value,
}

/// Converts each model to `library` and lets the library work, once for all.
fn cases(work: &TempDir, python: &Path, library: &str, models: Vec<(&str, Model)>) -> Vec<Case> {
    let root = work.path();
    photo(&root.join("photo.png"));
    let mut cases = Vec::new();
    for (name, model) in models {
        let source = root.join(format!("{name}.safetensors"));
        model.write(&source);
        let folder = root.join(format!("{library}_{name}"));
        let told = command(root, &["convert", &file(&source), "--to", library, "-o", &file(&folder)]);
        told.works();
        let (side, batch) = (model.side(), 2);
        let patches = (side / model.vit().patch_size).pow(2);
        let values: Vec<f32> =
            (0..batch * 3 * side * side).map(|at| ((at * 37 % 101) as f32) / 40.0 - 1.2).collect();
        let data = TensorData::new(values, [batch, 3, side, side]);
        // Four of each image, others in each.
        let mask: Vec<u8> =
            (0..batch * patches).map(|at| u8::from((at % patches + at / patches) % patches < 4)).collect();
        let inputs = weights::Tensors::from([
            ("images".to_owned(), data.clone()),
            ("mask".to_owned(), TensorData::new(mask.clone(), [batch, patches])),
        ]);
        let bytes = weights::encode(&inputs, &BTreeMap::new()).unwrap();
        fs::write(root.join(format!("{name}.inputs")), bytes).unwrap();
        let images = Tensor::from_data(data, &Default::default());
        let (found, said) = (weights::Tensors::new(), Value::Null);
        cases.push(Case { name: name.to_owned(), model, source, folder, images, mask, found, said });
    }
    let list: Vec<Value> = cases
        .iter()
        .map(|case| {
            json!({
                "library": library,
                "folder": case.folder,
                "images": root.join(format!("{}.inputs", case.name)),
                "photo": root.join("photo.png"),
                "out": root.join(format!("{}_{library}_found", case.name)),
            })
        })
        .collect();
    fs::write(root.join("cases.json"), json!(list).to_string()).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/peers.py");
    let ended = Command::new(python).arg(&script).arg(root).env("HF_HUB_OFFLINE", "1").output().unwrap();
    let told = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{told}");
    for case in &mut cases {
        let out = root.join(format!("{}_{library}_found", case.name));
        case.found = weights::read(&out.with_extension("safetensors")).unwrap().tensors;
        case.said = serde_json::from_slice(&fs::read(out.with_extension("json")).unwrap()).unwrap();
        assert_eq!(case.said["error"], Value::Null, "{}: {told}", case.name);
    }
    cases
}

fn file(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// An image file that is not square, with edges and gradients; its sides lead to no half pixel when its centre is cut out.
fn photo(path: &Path) {
    let (width, height) = (93usize, 62usize);
    let pixel = |at: usize| {
        let (x, y) = (at % width, at / width);
        let check = if (x / 7 + y / 5) % 2 == 0 { 90 } else { 0 };
        [(x * 160 / width + check) as u8, (y * 160 / height + check) as u8, ((x * y) % 251) as u8]
    };
    let file = fs::File::create(path).unwrap();
    let mut encoder = png::Encoder::new(file, width as u32, height as u32);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let pixels: Vec<u8> = (0..width * height).flat_map(pixel).collect();
    encoder.write_header().unwrap().write_image_data(&pixels).unwrap();
}

impl Case {
    /// What the library found agrees with ours within the rounding of f32.
    #[track_caller]
    fn agrees<const D: usize>(&self, name: &str, ours: Tensor<Flex, D>) {
        let ours = ours.into_data();
        let Some(found) = self.found.get(name) else {
            panic!("{}: no {name} among {:?}", self.name, self.found.keys())
        };
        assert_eq!(found.shape.as_slice(), ours.shape.as_slice(), "{}: {name}", self.name);
        let [found, ours] =
            [found, &ours].map(|data| data.clone().convert::<f32>().into_vec::<f32>().unwrap());
        let largest = ours.iter().fold(0f32, |largest, value| largest.max(value.abs()));
        let worst = ours.iter().zip(&found).fold(0f32, |worst, (a, b)| worst.max((a - b).abs()));
        println!("{}: {name}: {worst:e} of {largest}", self.name);
        assert!(largest > 1e-3 && f64::from(worst) <= ROUNDING * f64::from(largest), "{}: {name}", self.name);
    }

    /// The photo as the library sees it, in steps of 8-bit pixels, against our evaluation view.
    #[track_caller]
    fn sees_the_photo(&self, name: &str, steps: f32) {
        let image = beit2::pixels::read(self.folder.with_file_name("photo.png")).unwrap();
        let side = self.model.side();
        let view = EvalConfig::of_size(side as u32).apply(&image).unwrap();
        let found = &self.found[name];
        assert_eq!(found.shape.as_slice(), [1, 3, side, side]);
        let found = found.clone().into_vec::<f32>().unwrap();
        let mut worst = 0f32;
        for (at, value) in found.iter().enumerate() {
            let (channel, pixel) = (at / (side * side), at % (side * side));
            let theirs = (value * STD[channel] + MEAN[channel]) * 255.0;
            worst = worst.max((theirs - f32::from(view.data[pixel * 3 + channel])).abs());
        }
        println!("{}: {name} differ by at most {worst} steps", self.name);
        assert!(worst <= steps, "{}: {worst}", self.name);
    }

    /// With Pillow the pixels are the same; torchvision, the default, rounds after each of its two passes.
    #[track_caller]
    fn transformers_sees_the_photo(&self) {
        self.sees_the_photo("pixels_pil", 1e-3);
        self.sees_the_photo("pixels", 2.001);
    }

    /// Embedded tokens and each block's output.
    fn hidden(&self, trunk: &Trunk<Flex>, masked: bool) -> Vec<Tensor<Flex, 3>> {
        let Model::Mim(model, _) = &self.model else {
            return hidden(trunk, trunk.embed(self.images.clone(), None));
        };
        let [batch, ..] = self.images.dims();
        let shape = [batch, self.mask.len() / batch, 1];
        let values: Vec<f32> = self.mask.iter().map(|bit| f32::from(*bit)).collect();
        let mask = Tensor::<Flex, 3>::from_data(TensorData::new(values, shape), &Default::default());
        let mask = masked.then(|| (mask, model.mask_token.val()));
        hidden(trunk, trunk.embed(self.images.clone(), mask))
    }
}

fn hidden(trunk: &Trunk<Flex>, embedded: Tensor<Flex, 3>) -> Vec<Tensor<Flex, 3>> {
    let (bias, mut found) = (trunk.shared_bias(), vec![embedded]);
    for block in 0..trunk.blocks.len() {
        let x = found[block].clone();
        found.push(trunk.run(x, block..block + 1, None, bias.as_ref(), &DropPath::none()));
    }
    found
}

/// Classifiers and backbones with every combination of positions, pooling and parts that matters.
fn classifiers() -> Vec<(&'static str, Model)> {
    use models::{classifier, vit};
    let per_block = VitConfig { rel_pos_bias: RelPosKind::PerBlock, ..vit() };
    let absolute = VitConfig {
        rel_pos_bias: RelPosKind::None,
        abs_pos_emb: true,
        layer_scale_init: 0.0,
        // Taken whole, and no relative bias shows the heads.
        image_size: 32,
        patch_size: 8,
        ..vit()
    };
    vec![
        ("mean", classifier(per_block.clone(), Pooling::Mean, 4, &["cat", "dog", "a \"bird\"", "fish"])),
        ("cls", classifier(VitConfig { abs_pos_emb: true, ..vit() }, Pooling::Cls, 3, &[])),
        ("absolute", classifier(absolute, Pooling::Mean, 3, &["a", "b", "c"])),
        ("backbone_mean", classifier(per_block, Pooling::Mean, 0, &[])),
        ("backbone_cls", classifier(vit(), Pooling::Cls, 0, &[])),
    ]
}

#[test]
fn transformers_opens_classifiers_and_backbones() {
    let Some(python) = python() else { return };
    let work = tempfile::tempdir().unwrap();
    let eps = VitConfig { norm_eps: 1e-5, ..models::vit() };
    let mut models = classifiers();
    models.push(("eps", models::classifier(eps, Pooling::Mean, 2, &["x", "y"])));
    for case in cases(&work, &python, "hf", models) {
        let Model::Vit(model, config) = &case.model else { panic!() };
        assert_eq!(case.said["problems"], json!([]), "{}", case.name);
        let tokens = case.hidden(&model.trunk, false);
        for (block, tokens) in tokens.iter().enumerate() {
            case.agrees(&format!("hidden{block}"), tokens.clone());
        }
        case.transformers_sees_the_photo();
        let output = model.forward(case.images.clone(), &DropPath::none());
        if config.class_count() == 0 {
            assert_eq!(case.said["architecture"], "BeitModel");
            case.agrees("pooler_output", output);
            let last = tokens[tokens.len() - 1].clone();
            let norm = (config.pooling == Pooling::Cls).then(|| model.norm.as_ref().unwrap());
            case.agrees("last_hidden_state", norm.map_or(last.clone(), |norm| norm.forward(last)));
            continue;
        }
        assert_eq!(case.said["architecture"], "BeitForImageClassification");
        case.agrees("logits", output);
        let names: Vec<String> = match config.class_names.len() {
            0 => (0..config.class_count()).map(|class| format!("LABEL_{class}")).collect(),
            _ => config.class_names.clone(),
        };
        assert_eq!(case.said["labels"], json!(names), "{}", case.name);
        // Their pipeline and our prediction, from the file itself and from the folder.
        let image = beit2::pixels::read(work.path().join("photo.png")).unwrap();
        let classes = config.class_count();
        let ranked = |path: &Path| {
            Classifier::open(path).unwrap().top_k(std::slice::from_ref(&image), classes).unwrap()
        };
        let (own, again) = (ranked(&case.source), ranked(&case.folder));
        assert_eq!(own, again, "{}: the folder is the same model", case.name);
        let theirs: Vec<(String, f64)> = serde_json::from_value(case.said["predictions"].clone()).unwrap();
        assert_eq!(theirs[0].0, names[own[0][0].class], "{}: {theirs:?}", case.name);
        for (label, score) in theirs {
            let ours = own[0].iter().find(|one| names[one.class] == label).unwrap();
            // A step of a pixel moves a probability a little.
            assert!((f64::from(ours.probability) - score).abs() < 0.02, "{}: {label} {score}", case.name);
        }
    }
}

#[test]
fn transformers_opens_masked_image_models() {
    let Some(python) = python() else { return };
    let work = tempfile::tempdir().unwrap();
    for case in cases(&work, &python, "hf", vec![("mim", models::mim(models::vit()))]) {
        let Model::Mim(model, config) = &case.model else { panic!() };
        assert_eq!(case.said["architecture"], "BeitForMaskedImageModeling");
        assert_eq!(case.said["problems"], json!([]));
        case.transformers_sees_the_photo();
        let tokens = case.hidden(&model.trunk, true);
        for (block, tokens) in tokens.iter().enumerate() {
            case.agrees(&format!("hidden{block}"), tokens.clone());
        }
        let patches = config.vit.patches();
        let masked = (0..case.mask.len()).filter(|at| case.mask[*at] == 1);
        let indices: Vec<u32> = masked.map(|at| (at % patches) as u32).collect();
        let [batch, ..] = case.images.dims();
        let mask = PatchMask::<Flex>::new(&indices, batch, patches, &Default::default());
        let branches = model.patch_tokens(case.images.clone(), Some(&mask));
        case.agrees("logits", model.logits_all(&branches)[0].clone());
        // Features of `AutoModel` are ours: after the last block, without the norm of the prediction.
        case.agrees("features", case.hidden(&model.trunk, false).pop().unwrap());
    }
}

#[test]
fn transformers_opens_segmentation_models() {
    let Some(python) = python() else { return };
    let work = tempfile::tempdir().unwrap();
    let models = vec![
        ("scenes", models::upernet(|_| {})),
        (
            "unnamed",
            models::upernet(|config| {
                config.vit.depth = 4;
                config.out_indices = [0, 1, 2, 3];
                config.vit.rel_pos_bias = RelPosKind::Shared;
                config.aux_weight = 0.0;
                config.pool_scales = vec![1, 2];
                config.class_names.clear();
            }),
        ),
    ];
    for case in cases(&work, &python, "hf", models) {
        let Model::UperNet(model, config) = &case.model else { panic!() };
        assert_eq!(case.said["architecture"], "BeitForSemanticSegmentation");
        assert_eq!(case.said["problems"], json!([]), "{}", case.name);
        let channels_first = |map: Tensor<Flex, 4>| map.permute([0, 3, 1, 2]);
        for (block, tokens) in case.hidden(&model.backbone.trunk, false).into_iter().enumerate() {
            case.agrees(&format!("hidden{block}"), tokens);
        }
        case.agrees("logits", channels_first(model.forward(case.images.clone()).unwrap()));
        let auxiliary = model.auxiliary(case.images.clone()).unwrap();
        assert_eq!(auxiliary.is_some(), case.found.contains_key("auxiliary"));
        if let Some(auxiliary) = auxiliary {
            case.agrees("auxiliary", channels_first(auxiliary));
        }
        let names: Vec<String> = match config.class_names.len() {
            0 => (0..3).map(|class| format!("LABEL_{class}")).collect(),
            _ => config.class_names.clone(),
        };
        assert_eq!(case.said["labels"], json!(names));
        let masks: Vec<(String, [u32; 2])> = serde_json::from_value(case.said["masks"].clone()).unwrap();
        assert!(
            !masks.is_empty() && masks.iter().all(|(label, size)| names.contains(label) && *size == [93, 62])
        );
        assert_eq!(case.found["ids"].shape.as_slice(), [62, 93]);
        // The folder is still the same model.
        let image = beit2::pixels::read(work.path().join("photo.png")).unwrap();
        let label = |path: &Path| Segmenter::open(path).unwrap().label(&image).unwrap().data;
        assert_eq!(label(&case.source), label(&case.folder), "{}", case.name);
    }
}

#[test]
fn timm_opens_classifiers_and_backbones() {
    let Some(python) = python() else { return };
    let work = tempfile::tempdir().unwrap();
    let mut models = classifiers();
    // 24 · (61/24) would be rounded down to 60; timm knows models without query and value biases.
    let odd = VitConfig { mlp_ratio: 61.5 / 24.0, qkv_bias: false, ..models::vit() };
    models.push(("odd", models::classifier(odd, Pooling::Mean, 2, &["x", "y"])));
    models.push(("mim", models::mim(models::vit())));
    for case in cases(&work, &python, "timm", models) {
        // timm resizes with Pillow: the same pixels.
        case.sees_the_photo("pixels", 1e-3);
        let trunk = match &case.model {
            Model::Vit(model, _) => &model.trunk,
            Model::Mim(model, _) => &model.trunk,
            Model::UperNet(..) => panic!(),
        };
        let tokens = case.hidden(trunk, false);
        for (block, tokens) in tokens[1..].iter().enumerate() {
            let [batch, count, width] = tokens.dims();
            let side = (count - 1).isqrt();
            let patches = tokens.clone().narrow(1, 1, count - 1).swap_dims(1, 2);
            case.agrees(&format!("block{block}"), patches.reshape([batch, width, side, side]));
        }
        let last = tokens[tokens.len() - 1].clone();
        match &case.model {
            Model::Vit(model, config) => {
                let names = &config.class_names;
                let labels = if names.is_empty() { Value::Null } else { json!(names) };
                assert_eq!(case.said["labels"], labels, "{}", case.name);
                assert_eq!(case.said["classes"], config.class_count());
                case.agrees("output", model.forward(case.images.clone(), &DropPath::none()));
                let norm = (config.pooling == Pooling::Cls).then(|| model.norm.as_ref().unwrap());
                case.agrees("features", norm.map_or(last.clone(), |norm| norm.forward(last)));
            }
            Model::Mim(model, _) => {
                assert_eq!(case.said["classes"], 0);
                let normed = model.norm.forward(last);
                case.agrees("features", normed.clone());
                case.agrees("output", normed.narrow(1, 0, 1).squeeze_dim::<2>(1));
            }
            Model::UperNet(..) => panic!(),
        }
    }
}
