//! `predict`, `embed` and `tokenizer encode` through the real binary: every format against the library, interruption,
//! and bad input.

#![allow(clippy::unwrap_used)]

mod demo;
mod reading;
mod streaming;
mod support;
#[path = "support/tiny.rs"]
mod tiny;

use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use beit2::classify::{Classifier, Embedder, EmbedderOptions, FeatureKind};
use beit2::tokenizer::Tokenizer;
use beit2::{pixels, weights};
use beit2_data::Image;
use burn::backend::Flex;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use serde_json::Value;
use support::{Ended, IMAGES, World, image, signal};

/// Images in two classes and a model of every kind.
fn world() -> World {
    let world = World::new();
    for at in 0..IMAGES {
        let class = world.path("labelled").join(["cat", "dog"][at % 2]);
        fs::create_dir_all(&class).unwrap();
        fs::write(class.join(format!("{at:02}.ppm")), image(at, 40 + at)).unwrap();
    }
    tiny::classifier(&world.path("named.safetensors"), &["ant", "bee", "cow"], 3);
    tiny::classifier(&world.path("nameless.safetensors"), &[], 7);
    tiny::backbone(&world.path("backbone.safetensors"));
    tiny::mim(&world.path("mim.safetensors"));
    tiny::tokenizer(&world.path("words.safetensors"));
    world
}

/// Names, as `embed` writes them, and images of the labelled folder in its order.
fn labelled(world: &World) -> (Vec<String>, Vec<Image>) {
    let mut names = Vec::new();
    for class in ["cat", "dog"] {
        let from = usize::from(class == "dog");
        names.extend((from..IMAGES).step_by(2).map(|at| format!("labelled/{class}/{at:02}.ppm")));
    }
    let images = names.iter().map(|name| pixels::read(world.path(name)).unwrap()).collect();
    (names, images)
}

fn embedder(world: &World, name: &str, options: EmbedderOptions) -> Embedder<Flex> {
    Embedder::open_with(world.path(name), &options, &Default::default()).unwrap()
}

/// What the library gives, in the batches of the program.
fn features(world: &World, name: &str, options: EmbedderOptions, kind: FeatureKind) -> Vec<f32> {
    let model = embedder(world, name, options);
    let rows = |images: &[Image]| model.embed(images, kind).unwrap().into_data().to_vec::<f32>().unwrap();
    labelled(world).1.chunks(10).flat_map(rows).collect()
}

fn embed(world: &World, weights: &str, out: &str, more: &[&str]) -> Ended {
    let line = ["embed", "labelled", "--weights", weights, "-o", out, "--batch-size", "10", "--quiet"];
    world.beit2(&[&line[..], more].concat())
}

/// Shape and values of an npy file.
fn npy(path: &Path) -> (String, Vec<u8>) {
    let bytes = fs::read(path).unwrap();
    let length = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    (String::from_utf8(bytes[10..10 + length].to_vec()).unwrap(), bytes[10 + length..].to_vec())
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

fn lines(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Path, label and list of every row.
fn parquet(path: &Path, values: &str) -> Vec<(String, Option<String>, Vec<f64>)> {
    let reader = SerializedFileReader::new(File::open(path).unwrap()).unwrap();
    let mut rows = Vec::new();
    for row in reader.get_row_iter(None).unwrap() {
        let (mut path, mut label, mut list) = (String::new(), None, Vec::new());
        for (name, field) in row.unwrap().get_column_iter() {
            match (name.as_str(), field) {
                ("path", Field::Str(text)) => path = text.clone(),
                ("label", Field::Str(text)) => label = Some(text.clone()),
                (name, Field::ListInternal(found)) if name == values => {
                    list.extend(found.elements().iter().map(|value| match value {
                        Field::Float(value) => f64::from(*value),
                        Field::Float16(value) => f64::from(*value),
                        Field::UShort(value) => f64::from(*value),
                        other => panic!("{other:?}"),
                    }));
                }
                other => panic!("{other:?}"),
            }
        }
        rows.push((path, label, list));
    }
    rows
}

#[test]
fn embed_writes_every_format_as_the_library_computes_it() {
    let world = world();
    let (names, images) = labelled(&world);
    let wanted = features(&world, "mim.safetensors", EmbedderOptions::default(), FeatureKind::Mean);
    embed(&world, "mim.safetensors", "a.npy", &[]).works();
    let (header, bytes) = npy(&world.path("a.npy"));
    assert!(header.contains("'<f4'") && header.contains("(24, 16)"), "{header}");
    assert_eq!(floats(&bytes), wanted);
    let list = lines(&world.path("a.npy.paths.jsonl"));
    let paths: Vec<&str> = list.iter().map(|row| row["path"].as_str().unwrap()).collect();
    assert_eq!(paths, names);
    assert!(list[0]["label"] == "cat" && list[23]["label"] == "dog", "{list:?}");
    assert!(!world.path("a.npy.partial").exists());

    let ended = embed(&world, "mim.safetensors", "a.parquet", &["--json"]);
    let object: Value = serde_json::from_str(&ended.works().out).unwrap();
    assert_eq!((object["rows"].as_u64(), object["row"][0].as_u64()), (Some(24), Some(16)), "{object}");
    let rows = parquet(&world.path("a.parquet"), "features");
    assert_eq!(rows.iter().map(|row| &row.0).collect::<Vec<_>>(), names.iter().collect::<Vec<_>>());
    assert_eq!(rows[23].1.as_deref(), Some("dog"));
    let values: Vec<f32> = rows.iter().flat_map(|row| row.2.iter().map(|value| *value as f32)).collect();
    assert_eq!(values, wanted);

    embed(&world, "mim.safetensors", "a.safetensors", &[]).works();
    let file = weights::read(&world.path("a.safetensors")).unwrap();
    assert_eq!(file.tensors["features"].shape.as_slice(), [24, 16]);
    assert_eq!(file.tensors["features"].to_vec::<f32>().unwrap(), wanted);
    assert_eq!(file.metadata["features"], "mean");

    let half = ["--features", "patches", "--layer", "1", "--dtype", "f16"];
    embed(&world, "mim.safetensors", "half.npy", &half).works();
    let (header, bytes) = npy(&world.path("half.npy"));
    assert!(header.contains("'<f2'") && header.contains("(24, 16, 16)"), "{header}");
    let model = embedder(&world, "mim.safetensors", EmbedderOptions { layer: Some(1), ..Default::default() });
    let patches = model.patches(&images[..10]).unwrap().into_data();
    let patches = patches.convert_dtype(burn::tensor::DType::F16);
    assert_eq!(bytes[..10 * 16 * 16 * 2], *patches.as_bytes());
    embed(&world, "mim.safetensors", "half.parquet", &half).works();
    let rows = parquet(&world.path("half.parquet"), "features");
    let first: Vec<f64> = patches.iter::<f32>().take(256).map(f64::from).collect();
    assert_eq!(rows[0].2, first);
}

#[test]
fn embed_opens_every_kind_of_model() {
    let world = world();
    for (name, width) in [("named", 16), ("backbone", 64), ("words", 16), ("mim", 16)]
        .map(|(n, w)| (format!("{n}.safetensors"), w))
    {
        for (features_name, kind) in [("cls", FeatureKind::Cls), ("concat", FeatureKind::Concat)] {
            let out = format!("{name}.{features_name}.npy");
            embed(&world, &name, &out, &["--features", features_name]).works();
            let (header, bytes) = npy(&world.path(&out));
            let width = if kind == FeatureKind::Concat { 2 * width } else { width };
            assert!(header.contains(&format!("(24, {width})")), "{header}");
            assert_eq!(floats(&bytes), features(&world, &name, EmbedderOptions::default(), kind), "{out}");
        }
    }
    let sizes = EmbedderOptions { layer: Some(2), image_size: Some(48), ..EmbedderOptions::default() };
    embed(&world, "mim.safetensors", "large.npy", &["--layer", "2", "--image-size", "48"]).works();
    let (_, bytes) = npy(&world.path("large.npy"));
    assert_eq!(floats(&bytes), features(&world, "mim.safetensors", sizes, FeatureKind::Mean));

    // What a classifier's head sees is what `mean` gives.
    let model = Classifier::open(world.path("named.safetensors")).unwrap();
    let mean = features(&world, "named.safetensors", EmbedderOptions::default(), FeatureKind::Mean);
    let mean = burn::tensor::TensorData::new(mean, [24, 16]);
    let mean = burn::tensor::Tensor::<Flex, 2>::from_data(mean, &Default::default());
    let found = model.model.head.as_ref().unwrap().forward(mean).into_data();
    // One view for both: small images go into classifiers as they are, the reference's rule for CIFAR.
    let view = embedder(&world, "named.safetensors", EmbedderOptions::default()).view();
    let images = pixels::views(&labelled(&world).1, &view, &Default::default()).unwrap();
    found.assert_approx_eq::<f32>(&model.logits(images).into_data(), burn::tensor::Tolerance::default());

    for command in ["knn", "probe"] {
        let on = ["--data", "labelled", "--val", "labelled", "--quiet"];
        for name in ["named.safetensors", "backbone.safetensors"] {
            world.beit2(&[&[command, "--weights", name], &on[..]].concat()).works();
        }
    }
}

#[test]
fn encode_gives_the_ids_of_the_library() {
    let world = world();
    let (names, images) = labelled(&world);
    let tokenizer = Tokenizer::open(world.path("words.safetensors")).unwrap();
    let ids = tokenizer.encode(&images).unwrap();
    assert_eq!(ids.dims(), [24, 4, 4]);
    let wanted: Vec<u16> = ids.into_data().iter::<i64>().map(|id| id as u16).collect();
    assert!(wanted.iter().any(|id| *id != wanted[0]), "the test's codes differ");
    let encode = |out: &str, more: &[&str]| {
        let line =
            ["tokenizer", "encode", "labelled", "--tokenizer", "words.safetensors", "--quiet", "-o", out];
        world.beit2(&[&line[..], more].concat())
    };
    encode("ids.npy", &[]).works();
    let (header, bytes) = npy(&world.path("ids.npy"));
    assert!(header.contains("'<u2'") && header.contains("(24, 4, 4)"), "{header}");
    assert_eq!(bytes, wanted.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>());

    encode("ids.jsonl", &[]).works();
    let rows = lines(&world.path("ids.jsonl"));
    assert_eq!((rows.len(), rows[5]["path"].as_str()), (24, Some(names[5].as_str())));
    let grid: Vec<u64> = rows[5]["ids"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|row| {
            assert_eq!(row.as_array().unwrap().len(), 4);
            row.as_array().unwrap().iter().map(|id| id.as_u64().unwrap())
        })
        .collect();
    assert_eq!(grid, wanted[5 * 16..6 * 16].iter().map(|id| u64::from(*id)).collect::<Vec<_>>());

    encode("ids.parquet", &[]).works();
    let found: Vec<u16> = parquet(&world.path("ids.parquet"), "ids")
        .iter()
        .flat_map(|row| row.2.iter().map(|id| *id as u16))
        .collect();
    assert_eq!(found, wanted);
    encode("closer.npy", &["--crop-pct", "0.5"]).works();
    assert_ne!(npy(&world.path("closer.npy")).1, bytes, "the crop matters");
    encode("ids.safetensors", &[]).fails(2, &["must end in .npy, .parquet, .jsonl"]);
}

/// bf16 has eight bits of a number: small differences, the same classes but for near-ties. Where the processor has no
/// bf16 matmuls, the results are those of f32. int8 has eight bits of the largest number of a row.
#[test]
fn bf16_and_int8_agree_with_f32() {
    agrees_with_f32("bf16", 0.02);
    agrees_with_f32("int8", 0.04);
}

fn agrees_with_f32(precision: &str, near: f64) {
    let world = world();
    let json = |line: &[&str], precision: &str| -> Value {
        let flags = ["--precision", precision, "--json", "--quiet"];
        let object = serde_json::from_str(&world.beit2(&[line, &flags[..]].concat()).works().out).unwrap();
        let object: Value = object;
        assert_eq!(object["precision"].as_str(), Some(precision), "{line:?}");
        object
    };
    let best = |precision: &str| -> Vec<Vec<(u64, f64)>> {
        let found = json(&["predict", "labelled", "--weights", "named.safetensors", "--top", "3"], precision);
        let guess = |one: &Value| (one["class"].as_u64().unwrap(), one["probability"].as_f64().unwrap());
        let rows = found["images"].as_array().unwrap().iter();
        rows.map(|row| row["predictions"].as_array().unwrap().iter().map(guess).collect()).collect()
    };
    let (exact, rounded) = (best("f32"), best(precision));
    assert_eq!((exact.len(), rounded.len()), (IMAGES, IMAGES));
    for (exact, rounded) in exact.iter().zip(&rounded) {
        assert!(exact[0].0 == rounded[0].0 || exact[0].1 - exact[1].1 < near, "{exact:?} {rounded:?}");
        for (class, probability) in exact {
            let other = rounded.iter().find(|other| other.0 == *class).unwrap();
            assert!((probability - other.1).abs() < near, "{exact:?} {rounded:?}");
        }
    }

    let features = |precision: &str| {
        let out = format!("{precision}.npy");
        json(&["embed", "labelled", "--weights", "mim.safetensors", "-o", &out], precision);
        floats(&npy(&world.path(&out)).1)
    };
    let (exact, rounded) = (features("f32"), features(precision));
    let largest = exact.iter().fold(0f32, |largest, x| largest.max(x.abs()));
    let distance = exact.iter().zip(&rounded).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
    println!("{precision} features: {distance} of {largest}");
    assert!(f64::from(distance) < near * f64::from(largest), "{distance} of {largest}");

    let on = ["--data", "labelled", "--val", "labelled"];
    json(
        &["tokenizer", "encode", "labelled", "--tokenizer", "words.safetensors", "-o", "ids.npy"],
        precision,
    );
    json(&[&["knn", "--weights", "mim.safetensors"], &on[..]].concat(), precision);
    json(&[&["probe", "--weights", "mim.safetensors", "--epochs", "1"], &on[..]].concat(), precision);
    let line = ["predict", "labelled", "--weights", "named.safetensors", "--precision", "f16"];
    world.beit2(&line).fails(2, &["f16", "f32", "bf16", "int8"]);
}

#[test]
fn predictions_in_every_form() {
    let world = world();
    let model = Classifier::open(world.path("named.safetensors")).unwrap();
    let best = model.top_k(&labelled(&world).1, 2).unwrap();
    let predict = |more: &[&str]| world.beit2(&[&["predict", "labelled", "--quiet"], more].concat());
    let named = ["--weights", "named.safetensors", "--top", "2"];

    let ended = predict(&[&named[..], &["--json"]].concat());
    let object: Value = serde_json::from_str(&ended.works().out).unwrap();
    let rows = object["images"].as_array().unwrap();
    assert_eq!((rows.len(), object["finished"].as_bool()), (24, Some(true)));
    for (row, best) in rows.iter().zip(&best) {
        for (found, wanted) in row["predictions"].as_array().unwrap().iter().zip(best) {
            assert_eq!(found["class"].as_u64(), Some(wanted.class as u64));
            assert_eq!(found["name"].as_str(), wanted.name.as_deref());
            let difference = found["probability"].as_f64().unwrap() - f64::from(wanted.probability);
            assert!(difference.abs() < 1e-5, "{row}");
        }
    }
    let text = predict(&named).works().out.clone();
    assert_eq!(text.lines().count(), 24);
    let name = best[0][0].name.as_deref().unwrap();
    assert!(text.starts_with("labelled/cat/00.ppm: ") && text.contains(&format!(" % {name}, ")), "{text}");

    predict(&[&named[..], &["--csv", "out.csv"]].concat()).works();
    let table = fs::read_to_string(world.path("out.csv")).unwrap();
    assert!(table.starts_with("path,class_1,name_1,probability_1,class_2,name_2,probability_2\n"), "{table}");
    assert!(table.lines().count() == 25 && table.contains(&format!(",{name},")), "{table}");
    predict(&[&named[..], &["--csv", "out.csv"]].concat()).fails(2, &["out.csv already exists", "--force"]);
    predict(&[&named[..], &["--csv", "out.csv", "--force"]].concat()).works();

    let nameless = ["--weights", "nameless.safetensors", "--top", "9"];
    let note = world.beit2(&[&["predict", "labelled/cat/00.ppm"], &nameless[..]].concat());
    assert!(note.works().err.contains("--names FILE"), "{}", note.err);
    assert_eq!(note.out.matches("class ").count(), 7, "there are no more classes: {}", note.out);
    fs::write(world.path("names.txt"), "a\nb\nc\nd\ne\nf\ng\n").unwrap();
    let ended = predict(&[&nameless[..], &["--names", "names.txt"]].concat());
    assert!(ended.works().out.contains(" % g"), "{}", ended.out);
    fs::write(world.path("names.txt"), "a\nb\n").unwrap();
    predict(&[&nameless[..], &["--names", "names.txt"]].concat())
        .fails(2, &["names.txt has 2 names", "7 classes"]);
    predict(&[&nameless[..], &["--names", "gone.txt"]].concat()).fails(1, &["gone.txt"]);
}

/// The configuration that Hugging Face keeps beside a file names the classes.
#[test]
fn names_from_the_configuration_beside_the_weights() {
    let world = world();
    fs::create_dir(world.path("hub")).unwrap();
    tiny::bare_classifier(&world.path("hub/model.safetensors"), 2);
    let named = |labels: &str| {
        fs::write(world.path("hub/config.json"), format!("{{\"id2label\": {labels}}}")).unwrap();
        let line = ["predict", "labelled/cat/00.ppm", "--weights", "hub/model.safetensors"];
        world.beit2(&line).works().out.clone()
    };
    let text = named("{\"1\": \"yak\", \"0\": \"emu\"}");
    assert!(text.contains(" % yak") && text.contains(" % emu"), "{text}");
    for labels in ["{\"0\": \"emu\"}", "{\"0\": \"LABEL_0\", \"1\": \"LABEL_1\"}", "7"] {
        assert!(named(labels).contains(" % class 1"), "{labels}");
    }
}

#[test]
fn unreadable_images_are_named() {
    let world = world();
    fs::write(world.path("labelled/cat/04.ppm"), "no image").unwrap();
    let weights = ["--weights", "named.safetensors"];
    world
        .beit2(&[&["predict", "labelled/cat/04.ppm"], &weights[..]].concat())
        .fails(1, &["04.ppm", "not a JPEG"]);
    fs::write(world.path("labelled/dog/05.ppm"), "").unwrap();
    let ended = world.beit2(&[&["predict", "labelled", "--json"], &weights[..]].concat());
    ended.fails(1, &["2 of 24 images could not be read"]);
    assert!(ended.err.contains("unreadable: labelled/cat/04.ppm: "), "{}", ended.err);
    let object: Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!(object["images"].as_array().unwrap().len(), 22);
    assert_eq!(object["unreadable"][1]["path"], "labelled/dog/05.ppm");

    embed(&world, "mim.safetensors", "a.npy", &[]).fails(1, &["04.ppm", "--skip-unreadable"]);
    assert!(!world.path("a.npy").exists());
    let ended = embed(&world, "mim.safetensors", "a.npy", &["--skip-unreadable", "--json"]);
    let object: Value = serde_json::from_str(&ended.works().out).unwrap();
    assert_eq!((object["rows"].as_u64(), object["skipped"].as_array().unwrap().len()), (Some(22), 2));
    assert!(npy(&world.path("a.npy")).0.contains("(22, 16)"));
    let list = lines(&world.path("a.npy.paths.jsonl"));
    assert!(list.len() == 22 && list.iter().all(|row| row["path"] != "labelled/cat/04.ppm"));
}

/// A file name of bytes that are no text comes back from every form, byte by byte, and opens the file.
#[cfg(target_os = "linux")]
#[test]
fn names_that_are_no_text_survive() {
    use std::ffi::{OsStr, OsString};
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let world = world();
    fs::create_dir(world.path("odd")).unwrap();
    fs::write(world.path("odd/a.ppm"), image(0, 32)).unwrap();
    let names: [&[u8]; 3] = [b"odd/a.ppm", b"odd/caf\xE8 50%.ppm", b"odd/caf\xE9 50%.ppm"];
    for name in &names[1..] {
        fs::write(world.root().join(OsStr::from_bytes(name)), image(1, 32)).unwrap();
    }
    let shown = ["odd/a.ppm", "odd/caf%E8 50%25.ppm", "odd/caf%E9 50%25.ppm"];
    let unhex = |digits: &str| -> Vec<u8> {
        (0..digits.len() / 2).map(|at| u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).unwrap()).collect()
    };
    // The name that a reader takes: the bytes if there are some, else the text.
    let check = |rows: Vec<(String, Option<Vec<u8>>)>| {
        for ((path, bytes), (shown, name)) in rows.into_iter().zip(shown.iter().zip(names)) {
            assert_eq!((path.as_str(), bytes.is_some()), (*shown, shown.contains('%')));
            let bytes = bytes.unwrap_or_else(|| path.into_bytes());
            assert_eq!(bytes, name);
            assert!(world.root().join(OsString::from_vec(bytes)).is_file());
        }
    };
    let of_json =
        |row: &Value| (row["path"].as_str().unwrap().to_owned(), row["path_bytes"].as_str().map(unhex));

    for out in ["a.npy", "a.parquet"] {
        world.beit2(&["embed", "odd", "--weights", "mim.safetensors", "-o", out]).works();
    }
    check(lines(&world.path("a.npy.paths.jsonl")).iter().map(of_json).collect());
    let reader = SerializedFileReader::new(File::open(world.path("a.parquet")).unwrap()).unwrap();
    let field = |field: &Field| match field {
        Field::Bytes(bytes) => Some(bytes.data().to_vec()),
        Field::Str(text) => Some(text.clone().into_bytes()),
        _ => None,
    };
    let of_row = |row: parquet::record::Row| {
        let columns: Vec<(String, Option<Vec<u8>>)> =
            row.get_column_iter().map(|(name, value)| (name.clone(), field(value))).collect();
        let column = |wanted: &str| columns.iter().find(|(name, _)| name == wanted).unwrap().1.clone();
        (String::from_utf8(column("path").unwrap()).unwrap(), column("path_bytes"))
    };
    check(reader.get_row_iter(None).unwrap().map(|row| of_row(row.unwrap())).collect());

    let predict = |more: &[&str]| {
        world
            .beit2(&[&["predict", "odd", "--weights", "named.safetensors"], more].concat())
            .works()
            .out
            .clone()
    };
    let object: Value = serde_json::from_str(&predict(&["--json"])).unwrap();
    check(object["images"].as_array().unwrap().iter().map(of_json).collect());
    predict(&["--csv", "out.csv"]);
    let table = fs::read_to_string(world.path("out.csv")).unwrap();
    assert!(table.starts_with("path,path_bytes,class_1,"), "{table}");
    let cells = table.lines().skip(1).map(|line| line.split(',').take(2).collect::<Vec<_>>());
    check(
        cells.map(|row| (row[0].to_owned(), Some(unhex(row[1])).filter(|bytes| !bytes.is_empty()))).collect(),
    );
}

#[test]
fn bad_input_is_told_before_work_starts() {
    let world = world();
    embed(&world, "mim.safetensors", "a.npy", &[]).works();
    embed(&world, "mim.safetensors", "a.npy", &[]).fails(2, &["a.npy already exists", "--force"]);
    let before = fs::read(world.path("a.npy")).unwrap();
    embed(&world, "mim.safetensors", "a.npy", &["--force", "--layer", "1"]).works();
    assert_ne!(fs::read(world.path("a.npy")).unwrap(), before);
    embed(&world, "mim.safetensors", "a.txt", &[])
        .fails(2, &["a.txt must end in .npy, .parquet, .safetensors"]);
    embed(&world, "mim.safetensors", "gone/a.npy", &[]).fails(2, &["the folder gone does not exist"]);
    embed(&world, "gone.safetensors", "b.npy", &[]).fails(1, &["gone.safetensors"]);
    embed(&world, "mim.safetensors", "b.npy", &["--layer", "3"]).fails(2, &["layer 3", "blocks 1 to 2"]);
    embed(&world, "mim.safetensors", "b.npy", &["--image-size", "30"]).fails(2, &["30", "patches of 8 px"]);
    embed(&world, "mim.safetensors", "b.npy", &["--crop-pct", "0"]).fails(2, &["crop_pct"]);
    embed(&world, "words.safetensors", "b.npy", &["--layer", "1"]).fails(2, &["holds a tokenizer"]);
    world
        .beit2(&["embed", "nowhere", "--weights", "mim.safetensors", "-o", "b.npy"])
        .fails(1, &["nowhere: no such file or folder"]);
    let words = ["tokenizer", "encode", "labelled", "-o", "ids.npy", "--tokenizer"];
    world.beit2(&[&words[..], &["mim.safetensors"]].concat()).fails(2, &["pretrain", "tokenizer"]);
    let predict = |weights: &str| world.beit2(&["predict", "labelled", "--weights", weights]);
    predict("mim.safetensors").fails(2, &["no classes", "beit2 finetune"]);
    predict("words.safetensors").fails(2, &["no classes"]);
    world
        .beit2(&["predict", "gone.jpg", "--weights", "named.safetensors"])
        .fails(1, &["gone.jpg: no such file or folder"]);
    let leftovers = |entry: fs::DirEntry| entry.file_name().to_string_lossy().starts_with("b.npy");
    assert!(!fs::read_dir(world.root()).unwrap().any(|entry| leftovers(entry.unwrap())));
}

/// Killed and stopped on the way, the file is what it is without interruption.
#[cfg(unix)]
#[test]
fn an_interrupted_export_continues_to_the_same_bytes() {
    let world = world();
    // Large images, so that there is time to interrupt; links, so that they need no room.
    fs::create_dir(world.path("many")).unwrap();
    for at in 0..4 {
        fs::write(world.path(&format!("big-{at}.ppm")), image(at, 700)).unwrap();
    }
    for at in 0..240 {
        let to = world.path(&format!("many/{at:03}.ppm"));
        std::os::unix::fs::symlink(world.path(&format!("big-{}.ppm", at % 4)), to).unwrap();
    }
    let args = |out: &'static str| {
        ["embed", "many", "--weights", "mim.safetensors", "--batch-size", "7", "--workers", "1", "-o", out]
    };
    world.beit2(&args("whole.npy")).works();
    let samples = world.path("cut.npy.partial/samples.jsonl");
    let size = || fs::metadata(&samples).map_or(0, |meta| meta.len());
    let mut interrupted = 0;
    for name in ["KILL", "INT"] {
        let before = size();
        let mut command = world.command(&args("cut.npy"));
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let since = Instant::now();
        while size() <= before && child.try_wait().unwrap().is_none() {
            assert!(since.elapsed() < Duration::from_secs(120), "no rows after two minutes");
            std::thread::sleep(Duration::from_millis(1));
        }
        signal(&child, name);
        let status = child.wait().unwrap();
        interrupted += usize::from(!world.path("cut.npy").exists());
        if name == "INT" && !status.success() {
            assert_eq!(status.code(), Some(130));
        }
    }
    assert!(interrupted > 0, "the machine is too fast for this test");
    let other = world.beit2(&[&args("cut.npy")[..], &["--layer", "1"]].concat());
    other.fails(2, &["another `layer`", "--force"]);
    let ended = world.beit2(&args("cut.npy"));
    assert!(ended.works().err.contains("continues at image"), "{}", ended.err);
    for name in ["npy", "npy.paths.jsonl"] {
        let read = |stem: &str| fs::read(world.path(&format!("{stem}.{name}"))).unwrap();
        assert!(read("whole") == read("cut"), "{name} differs");
    }
    assert!(!world.path("cut.npy.partial").exists());
}
