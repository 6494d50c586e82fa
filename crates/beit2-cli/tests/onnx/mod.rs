//! `beit2 weights export`: what it writes, what it refuses, and that nothing is half written. (That the graphs compute the right
//! values is tested in `crates/beit2/tests/onnx`.)

use std::fs;

use beit2_run::atomic::write_bytes_atomic;

use super::support::{Ended, World};
use super::{json, tiny, weights};

fn world() -> World {
    let world = World::new();
    tiny::classifier(&world.path("classifier.safetensors"), &["cat", "dog"], 2);
    tiny::mim(&world.path("mim.safetensors"));
    tiny::tokenizer(&world.path("tokenizer.safetensors"));
    tiny::segmenter(&world.path("segmenter.safetensors"), 3);
    tiny::backbone(&world.path("backbone.safetensors"));
    world
}

fn export(world: &World, args: &[&str]) -> Ended {
    weights(world.root(), &[&["export"], args].concat())
}

#[test]
fn every_kind_of_model_is_written_as_what_it_holds() {
    let world = world();
    for (name, model, inputs, outputs) in [
        ("classifier", "classifier", 1, &["logits"][..]),
        ("mim", "mim", 2, &["logits", "patch_aggregation_logits"]),
        ("tokenizer", "tokenizer", 1, &["ids"]),
        ("backbone", "backbone", 1, &["cls", "mean", "patches"]),
    ] {
        let (file, out) = (format!("{name}.safetensors"), format!("{name}.onnx"));
        let told = json(&export(&world, &[&file, "--out", &out, "--json"]));
        assert_eq!((&told["model"], &told["opset"]), (&model.into(), &17.into()), "{name}");
        assert_eq!(told["bytes"], fs::metadata(world.path(&out)).unwrap().len(), "{name}");
        assert!(told["data"].is_null());
        assert_eq!(told["inputs"].as_array().unwrap().len(), inputs, "{name}");
        let found: Vec<&str> =
            told["outputs"].as_array().unwrap().iter().map(|port| port["name"].as_str().unwrap()).collect();
        assert_eq!(found, outputs, "{name}");
        assert_eq!(told["metadata"]["beit2.image_size"], "32", "{name}");
        // For people.
        let told = export(&world, &[&file, "--out", &out, "--force"]).works().out.clone();
        assert!(told.contains("opset 17") && told.contains("images [batch, 3, 32, 32] (float32)"), "{told}");
    }
    let told = json(&export(&world, &["classifier.safetensors", "--out", "c.ONNX", "--json"]));
    assert_eq!(told["metadata"]["beit2.class_names"], r#"["cat","dog"]"#);
}

#[test]
fn weights_in_a_file_of_their_own() {
    let world = world();
    let split = |more: &[&str]| {
        let args = ["classifier.safetensors", "--out", "c.onnx", "--external-data"];
        export(&world, &[&args, more].concat())
    };
    let told = json(&split(&["--json"]));
    assert_eq!(told["data"], "c.onnx.data");
    let graph = fs::read(world.path("c.onnx")).unwrap();
    assert!(graph.windows(11).any(|bytes| bytes == b"c.onnx.data"));
    let data = fs::read(world.path("c.onnx.data")).unwrap();
    assert!(data.len() > graph.len(), "{} and {}", data.len(), graph.len());
    split(&[]).fails(2, &["c.onnx already exists", "--force"]);
    fs::remove_file(world.path("c.onnx")).unwrap();
    split(&[]).fails(2, &["c.onnx.data already exists", "--force"]);
    split(&["--force"]).works();
    assert!(fs::read(world.path("c.onnx")).unwrap() == graph, "the same again");
    assert!(fs::read(world.path("c.onnx.data")).unwrap() == data);
}

#[test]
fn mistakes_are_one_sentence_and_leave_nothing() {
    let world = world();
    write_bytes_atomic(&world.path("there.onnx"), b"mine").unwrap();
    let before = names(&world);
    for (args, code, parts) in [
        (&["classifier.safetensors", "--out", "x.pt"][..], 2, &["x.pt must end in .onnx"][..]),
        (&["classifier.safetensors", "--out", "there.onnx"], 2, &["there.onnx already exists", "--force"]),
        (&["classifier.safetensors", "--out", "gone/x.onnx"], 2, &["gone/x.onnx", "does not exist"]),
        (&["gone.safetensors", "--out", "x.onnx"], 1, &["gone.safetensors"]),
        (&["segmenter.safetensors", "--out", "x.onnx"], 2, &["segmenter.safetensors", "not written as ONNX"]),
        (&["segmenter.safetensors", "--model", "backbone", "--out", "x.onnx"], 2, &["segmenter.safetensors"]),
        (&["classifier.safetensors", "--model", "whole", "--out", "x.onnx"], 2, &["whole"]),
        (&["classifier.safetensors", "--model", "mim", "--out", "x.onnx"], 2, &["classifier.safetensors"]),
        (&["classifier.safetensors", "--layer", "1", "--out", "x.onnx"], 2, &["no layer to choose"]),
        (&["classifier.safetensors", "--image-size", "33", "--out", "x.onnx"], 2, &["33", "multiple"]),
        (&["tokenizer.safetensors", "--image-size", "64", "--out", "x.onnx"], 2, &["no other image size"]),
        (&["backbone.safetensors", "--layer", "9", "--out", "x.onnx"], 2, &["layer 9 does not exist"]),
        (&["classifier.safetensors", "--dtype", "int8", "--out", "x.onnx"], 2, &["int8"]),
        (&["bundled:teacher", "--out", "x.onnx"], 2, &["teacher", "not written as ONNX"]),
    ] {
        export(&world, args).fails(code, parts);
        assert_eq!(names(&world), before, "{args:?}");
    }
    let convert = ["convert", "classifier.safetensors", "--to", "timm", "--out", "x.onnx"];
    weights(world.root(), &convert).fails(2, &["beit2 weights export"]);
    assert_eq!(fs::read(world.path("there.onnx")).unwrap(), b"mine");
}

fn names(world: &World) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(world.root())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}
