//! The whole chain through the real binary, shortened: what it prints, writes, and that it continues.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};
use std::time::Instant;

fn quickstart(dir: &Path, more: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_beit2"))
        .args(["quickstart", "--minutes", "0.15", "--out", "run"])
        .args(more)
        .current_dir(dir)
        .output()
        .unwrap()
}

#[test]
fn from_images_to_a_report() {
    let dir = tempfile::tempdir().unwrap();
    let output = quickstart(dir.path(), &["--json", "--quiet"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    for measure in ["knn", "probe"] {
        let both = ["random_concat", "pretrained_concat"];
        for model in ["pixels", "random", "encoder", "pretrained", "teacher"].into_iter().chain(both) {
            let value = found[measure][model].as_f64().unwrap();
            assert!((0.0..=1.0).contains(&value), "{measure} of {model} is {value}");
        }
    }
    assert!(found["codebook_usage"].as_f64().unwrap() > 0.3, "{found}");
    assert!(found["mim_accuracy"].as_f64().unwrap() > 1.0 / 512.0, "{found}");
    assert!(found["seconds"]["tokenizer"].as_f64().unwrap() > 0.0);
    let report = std::fs::read_to_string(dir.path().join(found["report"].as_str().unwrap())).unwrap();
    for part in ["pretrained ViT", "data:image/png;base64", "codebook", "quickstart"] {
        assert!(report.to_lowercase().contains(&part.to_lowercase()), "the report lacks `{part}`");
    }
    assert!(!report.contains("http://") && !report.contains("src=\"http"), "the report must stand alone");

    // The same command finds everything done and only measures again.
    let start = Instant::now();
    let again = quickstart(dir.path(), &[]);
    let text = String::from_utf8_lossy(&again.stdout).into_owned();
    assert!(again.status.success() && text.contains("linear probe"), "{text}");
    println!("second run: {:.1} s", start.elapsed().as_secs_f64());

    // Other settings in the same folder are refused, in one sentence.
    let other = quickstart(dir.path(), &["--seed", "5"]);
    assert_eq!(other.status.code(), Some(2), "{}", String::from_utf8_lossy(&other.stderr));
    assert!(String::from_utf8_lossy(&other.stderr).contains("seed"));
}

#[test]
fn bad_minutes_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for minutes in ["0", "-3", "nan"] {
        let output = Command::new(env!("CARGO_BIN_EXE_beit2"))
            .args(["quickstart", &format!("--minutes={minutes}")])
            .current_dir(dir.path())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&output.stderr).contains("--minutes"));
    }
}
