//! Pickles that no recorded file has: TorchScript, newer and wrapped tensors, and small files that describe endless things.

#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use beit2_weights::{DType, ReadOptions, Root, read, read_with};

/// Writes a stored zip file as torch does: `archive/data.pkl`, `archive/data/KEY`. Checksums are left at 0: torch can be told
/// to leave them out, so nobody may rely on them.
fn archive(pickle: &[u8], storages: &[(&str, &[u8])]) -> (tempfile::TempDir, PathBuf) {
    let mut entries = vec![("archive/data.pkl".to_string(), pickle)];
    entries.extend(storages.iter().map(|(key, bytes)| (format!("archive/data/{key}"), *bytes)));
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, bytes) in &entries {
        let (name_len, len, offset) =
            ((name.len() as u16).to_le_bytes(), (bytes.len() as u32).to_le_bytes(), file.len() as u32);
        let common = [&[0; 8][..], &[0; 4], &len, &len, &name_len, &[0; 2]].concat();
        // version, then flags, method, time, date, checksum, sizes, lengths
        file.extend([b"PK\x03\x04\x14\0", &common[..], name.as_bytes(), bytes].concat());
        let attributes = [&[0; 10][..], &offset.to_le_bytes()].concat();
        directory.extend([b"PK\x01\x02\x14\0\x14\0", &common[..], &attributes, name.as_bytes()].concat());
    }
    let count = (entries.len() as u16).to_le_bytes();
    let (len, start) = ((directory.len() as u32).to_le_bytes(), (file.len() as u32).to_le_bytes());
    file.extend([&directory[..], b"PK\x05\x06\0\0\0\0", &count, &count, &len, &start, &[0; 2]].concat());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file.pth");
    std::fs::write(&path, file).unwrap();
    (folder, path)
}

/// Pickle of a short text.
fn text(value: &str) -> Vec<u8> {
    [b"X", &(value.len() as u32).to_le_bytes()[..], value.as_bytes()].concat()
}

/// Pickle of a tuple.
fn tuple(items: &[Vec<u8>]) -> Vec<u8> {
    [b"(", &items.concat()[..], b"t"].concat()
}

/// Pickle of a tuple of small numbers.
fn numbers(values: &[u8]) -> Vec<u8> {
    tuple(&values.iter().map(|&value| vec![b'K', value]).collect::<Vec<_>>())
}

fn storage(class: &str, key: &str, count: u8) -> Vec<u8> {
    let id = [text("storage"), format!("c{class}\n").into_bytes(), text(key), text("cpu"), vec![b'K', count]];
    [&tuple(&id)[..], b"Q"].concat()
}

/// Pickle of a call of `function`, given as `module\nname`.
fn call(function: &str, args: &[Vec<u8>]) -> Vec<u8> {
    [b"c", function.as_bytes(), b"\n", &tuple(args)[..], b"R"].concat()
}

fn tensor_args(class: &str, key: &str, count: u8, shape: &[u8], strides: &[u8]) -> Vec<Vec<u8>> {
    let hooks = call("collections\nOrderedDict", &[]);
    vec![storage(class, key, count), vec![b'K', 0], numbers(shape), numbers(strides), vec![0x89], hooks]
}

fn tensor(key: &str, count: u8, shape: &[u8], strides: &[u8]) -> Vec<u8> {
    call("torch._utils\n_rebuild_tensor_v2", &tensor_args("torch\nFloatStorage", key, count, shape, strides))
}

/// Pickle of a dictionary.
fn dict(pairs: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let items: Vec<u8> = pairs.iter().flat_map(|(key, value)| [text(key), value.clone()].concat()).collect();
    [b"}(", &items[..], b"u"].concat()
}

fn whole(value: Vec<u8>) -> Vec<u8> {
    [b"\x80\x02", &value[..], b"."].concat()
}

const TWO: [u8; 8] = [0, 0, 128, 63, 0, 0, 0, 64]; // 1.0, 2.0

fn error(pickle: Vec<u8>) -> String {
    let (_folder, path) = archive(&pickle, &[("0", &TWO)]);
    read(&path).map(|checkpoint| checkpoint.root).unwrap_err().to_string()
}

#[test]
fn a_torchscript_module_gives_its_parameters() {
    // An object whose attributes are its parameters and submodules: `class, (), NEWOBJ, state, BUILD`.
    let object = |state: Vec<u8>| [b"c__torch__.clip\nModel\n)\x81", &state[..], b"b"].concat();
    let visual = object(dict(&[("training", vec![0x89]), ("weight", tensor("0", 2, &[2], &[1]))]));
    let (_folder, path) =
        archive(&whole(object(dict(&[("visual", visual), ("size", vec![b'K', 224])]))), &[("0", &TWO)]);
    let checkpoint = read(&path).unwrap();
    assert_eq!(checkpoint.root, Root::Script);
    assert_eq!(checkpoint.tensor("visual.weight").unwrap().to_f32(), [1.0, 2.0]);
    assert_eq!(checkpoint.tensors.len(), 1);
}

#[test]
fn newer_and_wrapped_tensors_are_understood() {
    let mut v3 = tensor_args("torch.storage\nUntypedStorage", "0", 8, &[2, 2], &[2, 1]);
    v3.extend([b"ctorch\nint16\n".to_vec(), b"N".to_vec()]);
    let v3 = call("torch._utils\n_rebuild_tensor_v3", &v3);
    let parameter =
        call("torch._utils\n_rebuild_parameter", &[tensor("0", 2, &[2], &[1]), vec![0x88], b"N".to_vec()]);
    let inner = tuple(&tensor_args("torch\nFloatStorage", "0", 2, &[1], &[1]));
    let subclass =
        [b"ctorch._utils\n_rebuild_tensor_v2\n".to_vec(), b"cmy\nTensor\n".to_vec(), inner, b"}".to_vec()];
    let subclass = call("torch._tensor\n_rebuild_from_type_v2", &subclass);
    let (_folder, path) = archive(
        &whole(dict(&[("v3", v3), ("parameter", parameter), ("subclass", subclass)])),
        &[("0", &TWO)],
    );
    let checkpoint = read(&path).unwrap();
    assert_eq!(checkpoint.tensors["v3"].dtype(), DType::I16);
    assert_eq!(checkpoint.tensor("v3").unwrap().to_i64(), Some(vec![0, 0x3f80, 0, 0x4000]));
    assert_eq!(checkpoint.tensor("parameter").unwrap().to_f32(), [1.0, 2.0]);
    assert_eq!(checkpoint.tensor("subclass").unwrap().to_f32(), [1.0]);
}

#[test]
fn a_weight_that_cannot_be_read_is_an_error_not_a_gap() {
    let sparse = call("torch._utils\n_rebuild_sparse_tensor", &[]);
    let complex = call(
        "torch._utils\n_rebuild_tensor_v2",
        &tensor_args("torch\nComplexFloatStorage", "0", 1, &[1], &[1]),
    );
    let good = || ("good", tensor("0", 2, &[2], &[1]));
    for (bad, word) in [(sparse, "_rebuild_sparse_tensor"), (complex, "ComplexFloatStorage")] {
        let text = error(whole(dict(&[good(), ("bad", bad)])));
        assert!(text.contains("`bad`") && text.contains(word), "{text}");
    }
}

#[test]
fn a_whole_pickled_model_is_explained() {
    let model = [b"cmy.code\nNet\n)\x81", &dict(&[])[..], b"b"].concat();
    for pickle in [whole(model.clone()), whole(dict(&[("model", model)]))] {
        let text = error(pickle);
        assert!(text.contains("`my.code.Net`") && text.contains("state_dict()"), "{text}");
    }
}

#[test]
fn an_unknown_entry_lists_those_that_are_there() {
    let pickle =
        whole(dict(&[("net", dict(&[("w", tensor("0", 2, &[2], &[1]))])), ("epoch", vec![b'K', 3])]));
    let (_folder, path) = archive(&pickle, &[("0", &TWO)]);
    let text = read(&path).unwrap_err().to_string();
    assert!(text.contains("`net`, `epoch`"), "{text}");
    let entry = |root| read_with(&path, &ReadOptions { root: Some(root), ..Default::default() });
    assert_eq!(entry("net").unwrap().tensors.len(), 1);
    assert!(entry("student").unwrap_err().to_string().contains("`net`, `epoch`"));
    assert!(entry("epoch").unwrap_err().to_string().contains("a plain value"));
}

#[test]
fn expansion_is_bounded() {
    // 255^4 floats out of one element: 16 GiB.
    let text = error(whole(dict(&[("w", tensor("0", 1, &[255; 4], &[0; 4]))])));
    assert!(text.contains("`w`") && text.contains("repeats its bytes"), "{text}");
    let text = error(whole(dict(&[("w", tensor("0", 2, &[255; 64], &[255; 64]))])));
    assert!(text.contains("beyond its storage"), "{text}");
}

#[test]
fn a_dictionary_inside_itself_many_times_is_bounded() {
    // d0 = {a: tensor}, d1 = {0: d0, 1: d0, …}, d2 = {0: d1, 1: d1, …}: width^levels names from a few hundred bytes.
    let nest = |width: u8, levels: u8| {
        // Each level is remembered as 0; the one before leaves the stack (instruction `0`) and is recalled `width` times.
        let mut value = [dict(&[("a", tensor("0", 1, &[1], &[1]))]), vec![b'q', 0]].concat();
        for _ in 0..levels {
            let recalls: Vec<u8> = (0..width).flat_map(|index| [b'K', index, b'h', 0]).collect();
            value = [&value[..], b"0}(", &recalls, b"uq\0"].concat();
        }
        whole(dict(&[("model", value)]))
    };
    let (_folder, path) = archive(&nest(2, 10), &[("0", &TWO)]);
    assert_eq!(read(&path).unwrap().tensors.len(), 1 << 10);
    let start = std::time::Instant::now();
    assert!(error(nest(100, 8)).contains("more values than"));
    assert!(error(nest(2, 60)).contains("deeper than"));
    // A list that contains itself.
    let cycle = [b"]q\0h\0a".to_vec()].concat();
    assert!(error(whole(dict(&[("model", dict(&[("w", cycle)]))]))).contains("deeper than"));
    // Unbounded it would take years; the real limit of a second is tested on the hostile files.
    assert!(start.elapsed() < std::time::Duration::from_secs(10));
}

#[test]
fn endless_instructions_are_bounded() {
    let start = std::time::Instant::now();
    for (endless, word) in
        [(&b"N"[..], "values"), (b"(", "open groups"), (b"N0", "values"), (b")2", "values")]
    {
        let text = error([b"\x80\x02", &endless.repeat((8 << 20) / endless.len())[..]].concat());
        assert!(text.contains("more than") && text.contains(word), "{text}");
    }
    assert!(start.elapsed() < std::time::Duration::from_secs(4), "{:?}", start.elapsed());
    assert!(error(b"\x80\x02N2".repeat(2)).contains("ends before"));
}

#[test]
fn deep_nesting_is_no_stack_overflow() {
    // Tuples in tuples, dictionaries in dictionaries, and JSON arrays in JSON arrays, 200 000 deep.
    let tuples = [b"\x80\x02N".to_vec(), b"\x85".repeat(200_000), b".".to_vec()].concat();
    assert!(error(tuples).contains("holds a tuple"));
    let open = [b"}".to_vec(), text("model")].concat().repeat(200_000);
    let dicts = [b"\x80\x02".to_vec(), open, b"N".to_vec(), b"s".repeat(200_000), b".".to_vec()].concat();
    assert!(error(dicts).contains("deeper than"));

    let header = [&b"{\"a\":"[..], &b"[".repeat(200_000), &b"]".repeat(200_000), b"}"].concat();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deep.safetensors");
    std::fs::write(&path, [&(header.len() as u64).to_le_bytes()[..], &header].concat()).unwrap();
    assert!(read(&path).unwrap_err().to_string().contains("header is not valid"));
}
