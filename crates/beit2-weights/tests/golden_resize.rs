//! Bias tables and position embeddings of other sizes, against the official code's own results (golden suite D).

#![allow(clippy::unwrap_used)]

mod support;

use beit2_weights::Tensor;
use beit2_weights::resize::{TableResize, geometric_positions, resize_bias_table, resize_pos_embed};
use support::checks::{self, check as holds, equal};
use support::{each_case, golden_tensors};

/// The worst absolute difference.
fn worst(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Runs a resize on every `<s>to<t>/in` of a file and prints how far it is from `out`.
fn check(file: &str, tolerance: f32, resize: impl Fn(&Tensor, usize, usize) -> Vec<f32>) {
    checks::golden(|| {
        let Some(tensors) = golden_tensors(file) else { return };
        for (name, input) in &tensors {
            let Some(case) = name.strip_suffix("/in") else { continue };
            let (source, target) = case.split_once("to").unwrap();
            let found = resize(input, source.parse().unwrap(), target.parse().unwrap());
            let difference = worst(&found, &tensors[&format!("{case}/out")].to_f32());
            println!("{file} {case}: {difference:.1e}");
            holds(difference < tolerance, || {
                format!("{file} {case} differs by {difference:e}, allowed {tolerance:e}")
            });
        }
    });
}

#[test]
fn golden_bias_tables() {
    check("D_tables.safetensors", 1e-6, |input, source, target| {
        let found = resize_bias_table(&input.to_f32(), input.shape()[1], source, target, TableResize::Spline)
            .unwrap();
        // In f64 the rounded result is the same.
        let wide: Vec<f64> = input.to_f32().into_iter().map(f64::from).collect();
        let wide = resize_bias_table(&wide, input.shape()[1], source, target, TableResize::Spline).unwrap();
        let same = wide.iter().zip(&found).all(|(a, b)| *a as f32 == *b);
        holds(same, || format!("tables {source} to {target} differ between f64 and f32"));
        found
    });
}

#[test]
fn golden_bias_table_of_timm() {
    checks::golden(|| {
        let Some(tensors) = golden_tensors("I_timm_table_resize.safetensors") else { return };
        let (input, expected) = (&tensors["in"], &tensors["out"]);
        let heads = input.shape()[1];
        let grid = |rows: usize| beit2_weights::resize::table_grid(rows).unwrap();
        let (source, target) = (grid(input.shape()[0]), grid(expected.shape()[0]));
        let found = resize_bias_table(&input.to_f32(), heads, source, target, TableResize::Linear).unwrap();
        let difference = worst(&found, &expected.to_f32());
        println!("I_timm_table_resize {source}to{target}: {difference:.1e}");
        holds(difference < 1e-6, || format!("the table differs by {difference:e}"));
    });
}

#[test]
fn golden_position_embeddings() {
    // Why not 1e-6: the recorded values come from PyTorch in f32, whose coordinates are rounded; PyTorch in f64 is up to
    // 4.24e-6 away from them (14 to 24), and as near to ours as f32 shows.
    check("D_pos_embed.safetensors", 5e-6, |input, source, target| {
        resize_pos_embed(&input.to_f32(), input.shape()[2], 1, source, target).unwrap()
    });
}

#[test]
fn golden_source_coordinates() {
    each_case("D", |case, entry| {
        // Of the cases that resize tables.
        for (pair, meta) in entry["meta"].as_object().into_iter().flatten() {
            let Some(recorded) = meta["original_positions"].as_str() else { continue };
            let (source, target) = pair.split_once("to").unwrap();
            let expected: Vec<f64> = serde_json::from_str(recorded).unwrap();
            let found = geometric_positions(source.parse().unwrap(), target.parse().unwrap());
            equal(&format!("{case} {pair}: number of positions"), &found.len(), &expected.len());
            holds(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-12), || {
                format!("{case} {pair}: positions are {found:?}, expected {expected:?}")
            });
        }
    });
}
