//! What lies beside weights, what a file's name tells, what flags say, which entry is read, and weights that are no numbers:
//! the same for every command.

use std::fs;
use std::path::Path;

use beit2::classify::Classifier;
use beit2::vit::{DropPath, Pooling, VisionTransformer, VitConfig, plan_weights};
use beit2::weights::{self, StateFile};
use beit2::{params, pixels};
use beit2_data::{CropMode, EvalConfig, Image, Interpolation};
use beit2_weights::plan::PlanOptions;
use burn::backend::Flex;
use burn::tensor::{DType, Tensor, TensorData};
use serde_json::{Value, json};

use super::support::World;
use super::{labelled, tiny, world};

const HALF: [f64; 3] = [0.5; 3];

fn put(world: &World, name: &str, value: &Value) {
    fs::write(world.path(name), value.to_string()).unwrap();
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// A folder with a bare classifier of 2 classes as `model.safetensors`.
fn folder(world: &World, name: &str) {
    fs::create_dir_all(world.path(name)).unwrap();
    tiny::bare_classifier(&world.path(&format!("{name}/model.safetensors")), 2);
}

/// Top-1 and loss of the labelled images from logits `[n, 2]`, computed here.
fn scores(logits: &[f32]) -> (f64, f64) {
    let (mut right, mut loss) = (0.0, 0.0);
    for (at, row) in logits.chunks(2).enumerate() {
        // Cats come first.
        let class = usize::from(at >= logits.len() / 4);
        let rows: Vec<f64> = row.iter().map(|value| f64::from(*value)).collect();
        right += f64::from(u8::from(rows[class] > rows[1 - class]));
        loss += (rows[0].exp() + rows[1].exp()).ln() - rows[class];
    }
    let n = (logits.len() / 2) as f64;
    (right / n, loss / n)
}

/// Logits of the labelled images by a model of `heads` heads, standardised and cut by this test.
fn logits(world: &World, file: &str, view: &EvalConfig, mean: [f64; 3], std: [f64; 3]) -> Vec<f32> {
    let model = Classifier::open(world.path(file)).unwrap().model;
    forward(&model, &labelled(world).1, view, mean, std)
}

fn forward(
    model: &VisionTransformer<Flex>,
    images: &[Image],
    view: &EvalConfig,
    mean: [f64; 3],
    std: [f64; 3],
) -> Vec<f32> {
    let x: Tensor<Flex, 4> = pixels::views(images, view, &Default::default()).unwrap();
    model.forward(pixels::standardise(x, mean, std), &DropPath::none()).into_data().to_vec().unwrap()
}

fn eval(world: &World, weights: &str, more: &[&str]) -> (f64, f64, String) {
    let args = ["eval", "--weights", weights, "--data", "labelled", "--json"];
    let ended = world.beit2(&[&args[..], more].concat());
    let object = parsed(&ended.works().out);
    (object["top1"].as_f64().unwrap(), object["loss"].as_f64().unwrap(), ended.err.clone())
}

#[track_caller]
fn assert_close(found: (f64, f64, String), expected: (f64, f64)) {
    let (top1, loss, told) = found;
    assert!(
        (top1 - expected.0).abs() < 1e-9 && (loss - expected.1).abs() < 1e-5,
        "{top1} {loss} {expected:?}\n{told}"
    );
}

fn preprocessor() -> Value {
    json!({
        "image_processor_type": "BeitImageProcessor", "do_resize": true, "size": { "height": 32, "width": 32 },
        "do_center_crop": false, "resample": 2, "image_mean": HALF, "image_std": HALF,
    })
}

#[test]
fn statistics_and_view_beside_the_weights_reach_every_command() {
    let world = world();
    folder(&world, "hf");
    let squashed = EvalConfig {
        crop_pct: Some(1.0),
        crop_mode: CropMode::Squash,
        interpolation: Interpolation::Bilinear,
        ..EvalConfig::of_size(32)
    };
    let bare = "hf/model.safetensors";
    let expected = scores(&logits(&world, bare, &squashed, HALF, HALF));
    let other =
        scores(&logits(&world, bare, &EvalConfig::of_size(32), pixels::IMAGENET_MEAN, pixels::IMAGENET_STD));
    assert!((expected.1 - other.1).abs() > 1e-3, "statistics must matter here");
    // Without files beside it: ImageNet's, with a word.
    let found = eval(&world, "hf", &[]);
    assert!(found.2.contains("does not say how its images are standardised"), "{}", found.2);
    assert_close(found, other);

    put(&world, "hf/preprocessor_config.json", &preprocessor());
    put(&world, "hf/config.json", &json!({ "model_type": "beit", "id2label": { "0": "cat", "1": "dog" } }));
    for weights in ["hf", bare] {
        let found = eval(&world, weights, &[]);
        assert!(
            found.2.contains(
                "from config.json and preprocessor_config.json: mean 0.5 std 0.5, view 32 px crop 1 squashed \
             bilinear, 2 class names"
            ),
            "{}",
            found.2
        );
        assert!(!found.2.contains("warning: "), "{}", found.2);
        assert_close(found, expected);
    }
    // What flags say counts more.
    let flags =
        ["--normalization", "imagenet", "--crop-mode", "center", "--interpolation", "bicubic", "--crop-pct"];
    let found = eval(&world, "hf", &[&flags[..], &["1"]].concat());
    let imagenet = logits(
        &world,
        bare,
        &EvalConfig { crop_pct: Some(1.0), ..EvalConfig::of_size(32) },
        pixels::IMAGENET_MEAN,
        pixels::IMAGENET_STD,
    );
    assert_close(found, scores(&imagenet));

    let best =
        parsed(&world.beit2(&["predict", "labelled", "--weights", "hf", "--json", "--quiet"]).works().out);
    let rows = logits(&world, bare, &squashed, HALF, HALF);
    for (image, row) in best["images"].as_array().unwrap().iter().zip(rows.chunks(2)) {
        let class = usize::from(row[1] > row[0]);
        assert_eq!(image["predictions"][0]["class"], class);
        assert_eq!(image["predictions"][0]["name"], ["cat", "dog"][class]);
        let probability = 1.0 / (1.0 + f64::from(row[1 - class] - row[class]).exp());
        assert!((image["predictions"][0]["probability"].as_f64().unwrap() - probability).abs() < 1e-5);
    }

    // Features: the same images by hand.
    let model = Classifier::open(world.path("hf")).unwrap().model;
    let features = |mean, std| -> Vec<f32> {
        let x: Tensor<Flex, 4> = pixels::views(&labelled(&world).1, &squashed, &Default::default()).unwrap();
        let tokens = model.trunk.tokens_after(pixels::standardise(x, mean, std), 1);
        let [batch, count, width] = tokens.dims();
        tokens.narrow(1, 1, count - 1).mean_dim(1).reshape([batch, width]).into_data().to_vec().unwrap()
    };
    world.beit2(&["embed", "labelled", "--weights", "hf", "--layer", "1", "-o", "half.npy"]).works();
    let found = super::floats(&super::npy(&world.path("half.npy")).1);
    let expected = features(HALF, HALF);
    let far = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(far < 1e-4, "{far}");
    assert!(
        found
            .iter()
            .zip(features(pixels::IMAGENET_MEAN, pixels::IMAGENET_STD))
            .any(|(a, b)| (a - b).abs() > 1e-2)
    );
    let told =
        world.beit2(&["knn", "--weights", "hf", "--data", "labelled", "--val", "labelled", "--k", "1"]);
    assert!(told.works().err.contains("mean 0.5 std 0.5"), "{}", told.err);
}

#[test]
fn fine_tuning_keeps_the_statistics_of_what_it_starts_from() {
    let world = world();
    folder(&world, "hf");
    put(&world, "hf/preprocessor_config.json", &preprocessor());
    let recipe = "stage = \"finetune\"\n[model.vit]\nimage_size = 32\n[schedule]\nepochs = 1\nbatch_size = 8\nwarmup_epochs = 0\n";
    fs::write(world.path("ft.toml"), recipe).unwrap();
    let args = ["finetune", "ft.toml", "--data", "labelled", "--init", "hf", "--out", "run"];
    let ended = world.beit2(&args);
    assert!(
        ended.works().err.contains("hf: from preprocessor_config.json: mean 0.5 std 0.5"),
        "{}",
        ended.err
    );
    let config = Classifier::open(world.path("run")).unwrap().config;
    assert_eq!(config.vit.normalization, Some(beit2_weights::Normalization::half()));
    // And the run is evaluated with them, wherever its file lies.
    let half = scores(&logits(&world, "run", &EvalConfig::of_size(32), HALF, HALF));
    assert_close(eval(&world, "run", &[]), half);
    let toml = fs::read_to_string(world.path("run/run.toml")).unwrap();
    assert!(toml.contains("[model.vit.normalization]"), "{toml}");
    // With other statistics it would be another run.
    put(
        &world,
        "hf/preprocessor_config.json",
        &json!({ "image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1] }),
    );
    assert_ne!(world.beit2(&args).code, Some(0));
}

#[test]
fn heads_come_from_the_configuration_or_are_asked_for() {
    let world = world();
    fs::create_dir(world.path("plain")).unwrap();
    tiny::headless_classifier(&world.path("plain/model.safetensors"), 2);
    for command in [
        &["eval", "--weights", "plain", "--data", "labelled"][..],
        &["predict", "labelled", "--weights", "plain"],
        &["embed", "labelled", "--weights", "plain", "-o", "x.npy"],
        &["knn", "--weights", "plain", "--data", "labelled", "--val", "labelled"],
        &["finetune", "--data", "labelled", "--init", "plain", "--dry-run"],
    ] {
        let ended = world.beit2(command);
        assert!(ended.code != Some(0) && ended.err.contains("--heads"), "{command:?}: {}", ended.err);
    }
    let expected = {
        let state =
            StateFile::new(weights::read(&world.path("plain/model.safetensors")).unwrap(), "it").unwrap();
        let vit =
            VitConfig { width: 64, heads: 4, abs_pos_emb: true, ..tiny::vit(beit2::vit::RelPosKind::None) };
        let plan = plan_weights(state, &vit, Pooling::Mean, 2, &PlanOptions::default()).unwrap();
        let zeros = VisionTransformer::<Flex>::new(&vit, Pooling::Mean, 2, &Default::default());
        let values =
            plan.tensors.into_iter().map(|(name, t)| (name, TensorData::new(t.to_f32(), t.shape().to_vec())));
        let model = params::load_strict(zeros, values.collect(), DType::F32, |_| false).unwrap();
        let (mean, std) = (pixels::IMAGENET_MEAN, pixels::IMAGENET_STD);
        scores(&forward(&model, &labelled(&world).1, &EvalConfig::of_size(32), mean, std))
    };
    let one = eval(&world, "plain", &["--heads", "1"]);
    assert!((one.1 - expected.1).abs() > 1e-4, "heads must matter here");
    assert_close(eval(&world, "plain", &["--heads", "4"]), expected);
    put(
        &world,
        "plain/config.json",
        &json!({ "model_type": "beit", "hidden_size": 64, "num_attention_heads": 4 }),
    );
    let found = eval(&world, "plain", &[]);
    assert!(found.2.contains("from config.json: 4 heads"), "{}", found.2);
    assert_close(found, expected);
    // Tensors that show another number.
    folder(&world, "tables");
    put(&world, "tables/config.json", &json!({ "model_type": "beit", "num_attention_heads": 4 }));
    world
        .beit2(&["eval", "--weights", "tables", "--data", "labelled"])
        .fails(2, &["says a number of attention heads of 4, but the tensors show 1"]);
}

#[test]
fn names_and_flags_tell_beit_v1() {
    let world = world();
    let view = EvalConfig::of_size(32);
    let save = |name: &str| tiny::bare_classifier(&world.path(name), 2);
    save("bare.safetensors");
    let half = scores(&logits(&world, "bare.safetensors", &view, HALF, HALF));
    let imagenet =
        scores(&logits(&world, "bare.safetensors", &view, pixels::IMAGENET_MEAN, pixels::IMAGENET_STD));
    for (name, flags, expected, word) in [
        ("beit_base_patch16_224_pt22k_ft22kto1k.safetensors", &[][..], half, Some("BEiT v1, by its name")),
        ("beitv2_base_patch16_224_pt1k_ft1k.safetensors", &[], imagenet, None),
        ("mine.safetensors", &[], imagenet, Some("warning: mine.safetensors does not say how")),
        ("mine.safetensors", &["--normalization", "half"], half, None),
        ("mine.safetensors", &["--mean", "0.5", "--std", "0.5"], half, None),
        ("mine.safetensors", &["--normalization", "imagenet"], imagenet, None),
        ("mine.safetensors", &["--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5"], half, None),
    ] {
        save(name);
        let found = eval(&world, name, flags);
        match word {
            Some(word) => assert!(found.2.contains(word), "{name}: {}", found.2),
            None => {
                assert!(
                    !found.2.contains("does not say how") && !found.2.contains("v1"),
                    "{name}: {}",
                    found.2
                );
            }
        }
        assert_close(found, expected);
    }
}

#[test]
fn the_mean_loss_does_not_depend_on_the_batch() {
    let world = world();
    folder(&world, "beitv2_x");
    let rows =
        logits(&world, "beitv2_x", &EvalConfig::of_size(32), pixels::IMAGENET_MEAN, pixels::IMAGENET_STD);
    for batch in ["1", "5", "7", "64"] {
        assert_close(eval(&world, "beitv2_x", &["--batch-size", batch]), scores(&rows));
    }
}

/// The file with one value replaced.
fn broken(path: &Path, tensor: &str, value: f32, to: &Path) {
    let mut file = weights::read(path).unwrap();
    let data = file.tensors.get_mut(tensor).unwrap();
    let mut values: Vec<f32> = data.to_vec().unwrap();
    values[0] = value;
    *data = TensorData::new(values, data.shape.clone());
    fs::write(to, weights::encode(&file.tensors, &file.metadata).unwrap()).unwrap();
}

#[test]
fn weights_that_are_no_numbers_stop_every_command() {
    let world = world();
    tiny::segmenter(&world.path("seg.safetensors"), 2);
    let at = |name: &str| world.path(name);
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        broken(&at("named.safetensors"), "fc_norm.weight", value, &at("bad.safetensors"));
        broken(&at("mim.safetensors"), "norm.weight", value, &at("bad_mim.safetensors"));
        broken(&at("words.safetensors"), "encode_task_layer.0.weight", value, &at("bad_words.safetensors"));
        broken(&at("teacher.safetensors"), "norm.weight", value, &at("bad_teacher.safetensors"));
        broken(&at("seg.safetensors"), "decode_head.conv_seg.weight", value, &at("bad_seg.safetensors"));
        for (tensor, command) in [
            ("fc_norm.weight", &["eval", "--weights", "bad.safetensors", "--data", "labelled"][..]),
            ("fc_norm.weight", &["predict", "labelled", "--weights", "bad.safetensors"]),
            ("fc_norm.weight", &["embed", "labelled", "--weights", "bad.safetensors", "-o", "x.npy"]),
            (
                "fc_norm.weight",
                &["knn", "--weights", "bad.safetensors", "--data", "labelled", "--val", "labelled"],
            ),
            (
                "fc_norm.weight",
                &["probe", "--weights", "bad.safetensors", "--data", "labelled", "--val", "labelled"],
            ),
            ("fc_norm.weight", &["finetune", "--data", "labelled", "--init", "bad.safetensors", "--dry-run"]),
            ("fc_norm.weight", &["weights", "convert", "bad.safetensors", "--to", "timm", "-o", "converted"]),
            (
                "norm.weight",
                &["knn", "--weights", "bad_mim.safetensors", "--data", "labelled", "--val", "labelled"],
            ),
            (
                "encode_task_layer.0.weight",
                &["tokenizer", "encode", "train", "--tokenizer", "bad_words.safetensors", "-o", "x.npy"],
            ),
            (
                "encode_task_layer.0.weight",
                &[
                    "pretrain",
                    "mim.toml",
                    "--data",
                    "train",
                    "--tokenizer",
                    "bad_words.safetensors",
                    "-o",
                    "r",
                ],
            ),
            (
                "norm.weight",
                &[
                    "tokenizer",
                    "train",
                    "tiny.toml",
                    "--set",
                    "teacher.weights=bad_teacher.safetensors",
                    "-o",
                    "r",
                ],
            ),
            (
                "decode_head.conv_seg.weight",
                &["segment", "predict", "train", "--weights", "bad_seg.safetensors", "-o", "masks"],
            ),
        ] {
            let ended = world.beit2(command);
            assert_ne!(ended.code, Some(0), "{command:?}");
            let sentence = format!("tensor `{tensor}` has 1 of ");
            assert!(
                ended.err.contains(&sentence) && ended.err.contains("NaN or infinite"),
                "{command:?}: {}",
                ended.err
            );
        }
        assert!(!at("converted/model.safetensors").exists());
    }
    // Looking is allowed, and says it.
    let told = world.beit2(&["weights", "inspect", "bad.safetensors"]);
    assert!(
        told.works().out.contains("`fc_norm.weight` has 1 of 16 values that are NaN or infinite"),
        "{}",
        told.out
    );
}

#[test]
fn the_averages_of_a_run_can_be_chosen() {
    let world = world();
    fs::create_dir(world.path("step")).unwrap();
    fs::copy(world.path("named.safetensors"), world.path("step/model.safetensors")).unwrap();
    tiny::classifier(&world.path("step/model_ema.safetensors"), &["ant", "bee", "cow", "doe"], 4);
    let names = |more: &[&str]| {
        let args = ["predict", "labelled", "--weights", "step", "--json", "--top", "9"];
        let ended = world.beit2(&[&args[..], more].concat());
        let object = parsed(&ended.works().out);
        (object["images"][0]["predictions"].as_array().unwrap().len(), ended.err.clone())
    };
    let (classes, told) = names(&[]);
    assert!(
        classes == 3 && told.contains("entry `model` of the run; also there: model_ema (--entry NAME)"),
        "{told}"
    );
    let (classes, told) = names(&["--entry", "model_ema"]);
    assert!(classes == 4 && told.contains("entry `model_ema` of the run"), "{told}");
    world
        .beit2(&["predict", "labelled", "--weights", "step", "--entry", "teacher"])
        .fails(2, &["no entry `teacher`; it has model and model_ema"]);
}

#[test]
fn flags_count_for_runs_too_and_contradictions_are_said() {
    let world = world();
    tiny::classifier(&world.path("own.safetensors"), &["cat", "dog"], 2);
    let half = scores(&logits(&world, "own.safetensors", &EvalConfig::of_size(32), HALF, HALF));
    assert_close(eval(&world, "own.safetensors", &["--normalization", "half"]), half);
    world
        .beit2(&["eval", "--weights", "own.safetensors", "--data", "labelled", "--heads", "4"])
        .fails(2, &["4 attention heads were asked for, but the weights show 2"]);
    world
        .beit2(&["eval", "--weights", "own.safetensors", "--data", "labelled", "--mean", "0.5", "--std", "0"])
        .fails(2, &["--mean and --std", "not above 0"]);
}

#[test]
fn sizes_of_the_images_beside_the_weights_must_be_the_model_s() {
    let world = world();
    folder(&world, "hf");
    let mut other = preprocessor();
    other["size"] = json!({ "height": 64, "width": 64 });
    put(&world, "hf/preprocessor_config.json", &other);
    let args = ["eval", "--weights", "hf", "--data", "labelled"];
    let ended = world.beit2(&args);
    assert_ne!(ended.code, Some(0));
    assert!(
        ended.err.contains("makes images of 64 px, but the weights are of a model of 32 px"),
        "{}",
        ended.err
    );
    world.beit2(&[&args[..], &["--image-size", "64"]].concat()).works();
    // A filter that is not offered is no reason to take another.
    other["size"] = json!({ "height": 32, "width": 32 });
    other["resample"] = json!(0);
    put(&world, "hf/preprocessor_config.json", &other);
    let ended = world.beit2(&args);
    assert!(ended.code != Some(0) && ended.err.contains("the filter `nearest`"), "{}", ended.err);
}

#[test]
fn inspect_knows_what_a_run_says_of_itself() {
    let world = world();
    let told = world.beit2(&["weights", "inspect", "mim.safetensors"]);
    assert!(told.works().out.contains("1 layers after block 1, "), "{}", told.out);
    let told = world.beit2(&["weights", "inspect", "mim.safetensors", "--json"]);
    assert_eq!(parsed(&told.works().out)["model"]["patch_aggregation"]["intermediate_layer"], 1);
    world
        .beit2(&[
            "embed",
            "labelled",
            "--weights",
            "words.safetensors",
            "--normalization",
            "half",
            "-o",
            "x.npy",
        ])
        .fails(2, &["always standardises images as in its training"]);
}

#[test]
fn names_of_models_lead_to_them() {
    let world = world();
    for (name, part) in [
        ("microsoft/beit-base-patch16-224", "hf download microsoft/beit-base-patch16-224"),
        ("beitv2_base_patch16_224_pt1k_ft1k", "beit2 weights fetch beitv2_base_patch16_224_pt1k_ft1k"),
    ] {
        for command in [
            &["eval", "--data", "labelled", "--weights", name][..],
            &["predict", "labelled", "--weights", name],
            &["finetune", "--data", "labelled", "--init", name],
            &["pretrain", "mim.toml", "--data", "train", "--tokenizer", name],
            &["weights", "inspect", name],
        ] {
            let ended = world.beit2(command);
            assert!(ended.code != Some(0) && ended.err.contains(part), "{command:?}: {}", ended.err);
        }
    }
}
