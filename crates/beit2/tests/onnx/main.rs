//! Exported graphs, computed by the operators' definitions, give what the program gives: every kind of model, every option.
//!
//! `BEIT2_ONNX_CASES=FOLDER` also writes the files with inputs and outputs, for the runtimes that `tests/onnx-tract` and
//! `scripts/onnx_test.sh` run.

#![allow(clippy::unwrap_used)]

mod cases;
#[path = "../../../../tests/checks.rs"]
mod checks;
mod evaluate;
mod file;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use beit2::onnx::{OPSET, OnnxKind, OnnxModel, OnnxOptions, WeightType, export};
use beit2::weights::{self, WeightFile};
use burn::tensor::{DType, TensorData};

use cases::{BATCH, Case};
use evaluate::Array;
use file::Model;

/// The program computes in f32 and the graph here in f64. Of these small models the program is off by 2e-6 of the largest
/// value at most.
const ROUNDING: f64 = 1e-5;

fn bytes(model: &OnnxModel) -> Vec<u8> {
    let mut bytes = Vec::new();
    model.write_to(&mut bytes).unwrap();
    assert_eq!(model.byte_len(), bytes.len() as u64);
    bytes
}

/// The first `batch` of a case's images.
fn array(data: &TensorData, batch: usize) -> Array {
    let mut shape = data.shape.to_vec();
    let row: usize = shape[1..].iter().product();
    shape[0] = batch;
    let values: Vec<f64> = match data.dtype {
        DType::Bool(_) => data.iter::<bool>().map(f64::from).collect(),
        _ => data.iter::<f64>().collect(),
    };
    Array::new(&shape, values[..batch * row].to_vec())
}

#[track_caller]
fn assert_near(what: &str, found: &Array, expected: &Array, rounding: f64) {
    assert_eq!(found.shape, expected.shape, "{what}");
    let largest = expected.values.iter().fold(0f64, |largest, value| largest.max(value.abs()));
    for (at, (found, expected)) in found.values.iter().zip(&expected.values).enumerate() {
        let near = (found - expected).abs() <= rounding * largest;
        assert!(near, "{what}: value {at} is {found}, expected {expected} (largest {largest})");
    }
}

fn compare(case: &Case, model: &Model, outside: Option<&[u8]>) {
    for batch in [BATCH, 1] {
        let take = |(name, data): (&String, &TensorData)| (name.clone(), array(data, batch));
        let inputs: BTreeMap<_, _> = case.inputs.iter().map(take).collect();
        let outputs: BTreeMap<_, _> = case.outputs.iter().map(take).collect();
        for (ports, values) in [(&model.graph().input, &inputs), (&model.graph().output, &outputs)] {
            assert_eq!(ports.len(), values.len(), "{}", case.name);
            for port in ports {
                assert_eq!(port.shape(batch), values[&port.name].shape, "{}: {}", case.name, port.name);
            }
        }
        let found = evaluate::run(model, outside, &inputs);
        for (name, expected) in &outputs {
            let what = format!("{} {name} of {batch}", case.name);
            let rounding = if name == "ids" { 0.0 } else { ROUNDING };
            assert_near(&what, &found[name], expected, rounding);
        }
    }
}

/// Writes a case for other runtimes, if they are waiting for it.
fn keep(case: &Case, model: &[u8]) {
    let Some(folder) = std::env::var_os("BEIT2_ONNX_CASES").map(PathBuf::from) else { return };
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(format!("{}.onnx", case.name)), model).unwrap();
    let named = |prefix: &'static str| {
        move |(name, data): (&String, &TensorData)| {
            let data = match data.dtype {
                DType::Bool(_) => {
                    TensorData::new(data.iter::<bool>().map(u8::from).collect(), data.shape.clone())
                }
                _ => data.clone(),
            };
            (format!("{prefix}.{name}"), data)
        }
    };
    let tensors = case.inputs.iter().map(named("in")).chain(case.outputs.iter().map(named("out"))).collect();
    let values = weights::encode(&tensors, &BTreeMap::new()).unwrap();
    fs::write(folder.join(format!("{}.safetensors", case.name)), values).unwrap();
    let weights = weights::encode(&case.file.tensors, &case.file.metadata).unwrap();
    fs::write(folder.join(format!("{}.weights.safetensors", case.name)), weights).unwrap();
}

#[test]
fn graphs_compute_what_the_program_computes() {
    for case in cases::all() {
        let exported = export(case.file.clone(), &case.name, &case.options).unwrap();
        let bytes = bytes(&exported);
        let model = Model::read(&bytes);
        assert_eq!((model.ir_version, model.opset_import[0].version), (8, OPSET), "{}", case.name);
        compare(&case, &model, None);
        // The same with the weights in a file of their own.
        let (mut graph, mut data) = (Vec::new(), Vec::new());
        exported.write_split(&mut graph, &mut data, "m.onnx.data").unwrap();
        assert!(graph.len() < bytes.len(), "{}", case.name);
        compare(&case, &Model::read(&graph), Some(&data));
        keep(&case, &bytes);
    }
}

#[test]
fn the_same_model_gives_the_same_bytes() {
    let case = &cases::all()[0];
    let [one, other] = [0; 2].map(|_| bytes(&export(case.file.clone(), "m", &case.options).unwrap()));
    assert!(one == other);
}

#[test]
fn half_precision_halves_the_file_and_rounds() {
    let case = cases::all().into_iter().find(|case| case.name == "classifier_own_mean").unwrap();
    let whole = bytes(&export(case.file.clone(), "m", &case.options).unwrap()).len();
    for (weights, rounding) in [(WeightType::F16, 5e-3), (WeightType::Bf16, 4e-2)] {
        let bytes = bytes(&export(case.file.clone(), "m", &OnnxOptions { weights, ..case.options }).unwrap());
        assert!(bytes.len() < whole * 3 / 4, "{weights}: {} of {whole}", bytes.len());
        let inputs = [("images".to_owned(), array(&case.inputs["images"], BATCH))].into();
        let found = evaluate::run(&Model::read(&bytes), None, &inputs);
        let expected = array(&case.outputs["logits"], BATCH);
        // A weight is off by 2⁻¹¹ or 2⁻⁸ of itself at most; the rest is how often it counts.
        assert_near(&format!("{weights}"), &found["logits"], &expected, rounding);
    }
    // What half precision cannot hold is said, not written as infinity.
    let mut file = case.file.clone();
    let weight = file.tensors.get_mut("head.weight").unwrap();
    let mut values: Vec<f32> = weight.clone().into_vec().unwrap();
    values[3] = -70_000.0;
    *weight = TensorData::new(values, weight.shape.clone());
    let weights = WeightType::F16;
    let error =
        export(file.clone(), "m", &OnnxOptions { weights, ..case.options }).err().unwrap().to_string();
    assert!(error.contains("`head.weight`") && error.contains("--dtype f32"), "{error}");
    assert!(export(file, "m", &OnnxOptions { weights: WeightType::Bf16, ..case.options }).is_ok());
}

#[test]
fn the_file_says_what_it_wants() {
    let cases = cases::all();
    let model = |name: &str| {
        let case = cases.iter().find(|case| case.name == name).unwrap();
        Model::read(&bytes(&export(case.file.clone(), name, &case.options).unwrap()))
    };
    let classifier = model("classifier_own_mean");
    for (key, value) in [
        ("beit2.model", "classifier"),
        ("beit2.opset", "17"),
        ("beit2.image_size", "32"),
        ("beit2.patch_size", "8"),
        ("beit2.pixels", "standardized"),
        ("beit2.mean", "[0.485,0.456,0.406]"),
        ("beit2.std", "[0.229,0.224,0.225]"),
        ("beit2.activation", "softmax"),
        ("beit2.classes", "5"),
        ("beit2.weights_type", "f32"),
    ] {
        assert_eq!(classifier.metadata(key), value, "{key}");
    }
    assert_eq!(model("tokenizer").metadata("beit2.mean"), "[0.5,0.5,0.5]");
    assert_eq!(model("tokenizer").metadata("beit2.codebook_size"), "24");
    assert_eq!(model("backbone_mim_layer").metadata("beit2.layer"), "1");
    assert_eq!(model("classifier_5_channels_bytes").metadata("beit2.pixels"), "bytes");
    // Quantizers look for matmuls whose second operand is a matrix of the file: all linear layers are such.
    let graph = classifier.graph();
    let stored = |name: &String| graph.initializer.iter().any(|tensor| tensor.name == *name);
    let layers: Vec<&str> = graph
        .node
        .iter()
        .filter(|node| node.op_type == "MatMul" && stored(&node.input[1]))
        .map(|node| node.name.as_str())
        .collect();
    let block = |number: usize| {
        ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"].map(|layer| format!("blocks.{number}.{layer}/MatMul"))
    };
    let expected: Vec<String> = [block(0), block(1)].concat();
    let found: Vec<String> = layers.iter().map(|name| name.replace("attn/qkv", "attn.qkv")).collect();
    assert_eq!(found[..expected.len()], expected);
    assert_eq!(found[expected.len()..], ["head/MatMul"]);
}

/// Weights of timm, with what timm computed.
#[test]
fn golden_i_as_onnx() {
    checks::golden(|| {
        let path = checks::root().join("I_timm_rel.safetensors");
        if !path.exists() {
            return checks::skip(format!("{} is not there", path.display()));
        }
        let recorded = weights::read(&path).unwrap().tensors;
        let strip = |(name, data): (&String, &TensorData)| {
            Some((name.strip_prefix("weight/")?.to_owned(), data.clone()))
        };
        let tensors = recorded.iter().filter_map(strip).collect();
        let file = WeightFile { tensors, ..WeightFile::default() };
        let model = export(file, "I_timm_rel", &OnnxOptions::default()).unwrap();
        assert_eq!(model.kind, OnnxKind::Classifier);
        let (images, logits) = (&recorded["input/images"], &recorded["output/logits"]);
        let inputs = [("images".to_owned(), array(images, images.shape[0]))].into();
        let found = evaluate::run(&Model::read(&bytes(&model)), None, &inputs);
        let expected = array(logits, logits.shape[0]);
        let largest = expected.values.iter().fold(0f64, |largest, value| largest.max(value.abs()));
        let worst = found["logits"]
            .values
            .iter()
            .zip(&expected.values)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f64::max);
        checks::check(worst <= ROUNDING * largest, || format!("logits differ by {worst:e} of {largest}"));
    });
}

#[test]
fn what_a_model_cannot_have_is_refused() {
    let cases = cases::all();
    let refused = |name: &str, options: OnnxOptions| {
        let case = cases.iter().find(|case| case.name == name).unwrap();
        export(case.file.clone(), "runs/x", &options).err().unwrap().to_string()
    };
    let plain = OnnxOptions::default();
    let kind = |kind| OnnxOptions { kind: Some(kind), ..plain };
    for (name, options, expected) in [
        (
            "classifier_own_mean",
            OnnxOptions { layer: Some(1), ..plain },
            "a classifier has no layer to choose",
        ),
        ("tokenizer", OnnxOptions { image_size: Some(64), ..plain }, "no other image size"),
        ("mim_bare", OnnxOptions { image_size: Some(64), ..plain }, "no other image size"),
        ("classifier_own_mean", OnnxOptions { image_size: Some(33), ..plain }, "multiple"),
        ("mim_bare", kind(OnnxKind::Classifier), "runs/x"),
        ("mim_bare", kind(OnnxKind::Tokenizer), "runs/x"),
        ("tokenizer", kind(OnnxKind::Mim), "runs/x"),
        ("tokenizer", kind(OnnxKind::Classifier), "runs/x"),
        ("classifier_own_mean", kind(OnnxKind::Mim), "runs/x"),
        (
            "backbone_mim",
            OnnxOptions { layer: Some(9), ..kind(OnnxKind::Backbone) },
            "layer 9 does not exist",
        ),
        (
            "backbone_tokenizer",
            OnnxOptions { layer: Some(1), ..kind(OnnxKind::Backbone) },
            "leave the layer out",
        ),
    ] {
        let text = refused(name, options);
        assert!(text.contains(expected), "{name}: {text}");
        assert!(!text.trim_end_matches('.').contains(". ") && !text.contains('\n'), "one sentence: {text}");
    }
    // Models that have no graph here.
    let mut file = cases[0].file.clone();
    file.metadata.insert("beit2.stage".into(), "distill".into());
    let text = export(file, "runs/x", &plain).err().unwrap().to_string();
    assert!(text.contains("runs/x") && text.contains("not written as ONNX"), "{text}");
}
