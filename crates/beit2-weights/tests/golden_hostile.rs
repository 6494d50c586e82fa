//! Golden suite H, hostile files: a clear error (or the harmless part), nothing executed, no time, no memory.

#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::time::{Duration, Instant};

use beit2_weights::{Checkpoint, DType, WeightsError, read};
use support::checks::{check, skip};
use support::{each_indexed, file};

/// A word that each error must contain, so that a user can tell the cases apart.
const WORDS: &[(&str, &str)] = &[
    ("truncated_", "cut short"),
    ("empty.", "is empty"),
    ("html_instead", "HTML page"),
    ("lfs_pointer", "git lfs pull"),
    ("raw.pickle", "plain Python pickle"),
    ("model_is_string", "a text as its entry `model`"),
    ("top_is_list", "holds a list"),
    ("zip_bad_local_offset", "points to byte"),
    ("zip_bad_cd_offset", "points to byte"),
    ("zip_huge_size", "more than the file holds"),
    ("zip_missing_storage", "needs storage `0`, which is missing"),
    ("zip_short_storage", "has only"),
    ("zip_deflated", "is compressed"),
    ("zip_bomb", "is compressed"),
    ("zip_no_pickle", "no `data.pkl`"),
    ("zip_big_endian", "big-endian"),
    ("pickle_deep_nesting", "holds a tuple"),
    ("pickle_stack_underflow", "empty stack"),
    ("pickle_huge_long", "2147483647 more bytes wanted"),
    ("pickle_huge_string", "4294967280 more bytes wanted"),
    ("pickle_unknown_opcode", "instruction 0xff"),
    ("pickle_memo_missing", "recalls value"),
    ("pickle_no_stop", "ends before it is complete"),
    ("pickle_shape_beyond_storage", "beyond its storage"),
    ("overlap.", "without holes or overlaps"),
    ("hole.", "without holes or overlaps"),
    ("huge_header", "the limit is"),
    ("header_past_eof", "cut short"),
    ("size_mismatch", "does not fit its 16 bytes"),
    ("overflow_shape", "does not fit"),
    ("reversed_offsets", "does not fit"),
    ("negative_shape", "header is not valid"),
    ("unknown_dtype", "has type"),
    ("not_json", "header is not valid"),
    ("duplicate_key", "is there twice"),
    ("trailing_bytes", "follow the last tensor"),
    ("deep_json", "header is not valid"),
];

#[test]
fn golden_hostile_files() {
    // What the `evil` cases would create.
    let trace = Path::new("/tmp/PWNED");
    let trace_before = trace.exists();
    each_indexed("hostile", |name, entry| {
        let Some(path) = file("hostile", entry, "file") else { return };
        let start = Instant::now();
        let result = read(&path);
        let time = start.elapsed();
        check(time < Duration::from_secs(1), || format!("{name} took {time:?}"));
        let expect = entry["expect"].as_str().unwrap();
        match result {
            Err(error) => assert_error(name, expect, &path, &error),
            Ok(checkpoint) => assert_readable(name, expect, &checkpoint),
        }
        check(trace.exists() == trace_before, || format!("{name}: something was executed"));
    });
}

fn assert_error(name: &str, expect: &str, path: &Path, error: &WeightsError) {
    let text = error.to_string();
    println!("{text}");
    assert!(expect.starts_with("error"), "{name} must be readable: {text}");
    assert!(text.contains(&path.display().to_string()), "{name}: {text}");
    assert!(!text.contains('\n') && text.len() < 600, "{name}: {text}");
    match WORDS.iter().find(|(part, _)| name.contains(part)) {
        Some((_, word)) => assert!(text.contains(word), "{name}: expected `{word}` in: {text}"),
        None => skip(format!("what the error of {name} must say; it says: {text}")),
    }
}

fn assert_readable(name: &str, expect: &str, checkpoint: &Checkpoint) {
    assert!(!expect.starts_with("error"), "{name} must be refused: {expect}");
    // Whatever could be opened can be read.
    let tensors: Vec<_> = checkpoint.tensors.keys().map(|name| checkpoint.tensor(name).unwrap()).collect();
    match name {
        "wrong_shape.pth" => assert_eq!(checkpoint.tensors["blocks.0.attn.qkv.weight"].shape(), [3, 5]),
        "wrong_dtype.pth" => assert_eq!(checkpoint.tensors["norm.weight"].dtype(), DType::I64),
        "nan_values.pth" => assert!(tensors.iter().any(|tensor| tensor.count_non_finite() > 0)),
        "missing_keys.pth" => assert!(!checkpoint.tensors.keys().any(|key| key.starts_with("blocks.1."))),
        _ if name.starts_with("evil_") => {
            assert_eq!(checkpoint.tensor("w").unwrap().to_f32(), [1.0, 1.0]);
            assert!(
                checkpoint.ignored.iter().any(|object| object.contains("args")),
                "{:?}",
                checkpoint.ignored
            );
        }
        _ => skip(format!("what {name} must hold: it may be read, and was")),
    }
}
