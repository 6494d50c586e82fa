//! Converts any weights file to safetensors: `cargo run --release -p beit2-weights --example convert -- IN OUT [ENTRY]`.

use std::collections::BTreeMap;
use std::path::Path;

use beit2_weights::{ReadOptions, read_with, write_safetensors};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [input, output, entry @ ..] = args.as_slice() else {
        return Err("expected: IN OUT [ENTRY]".into());
    };
    let options = ReadOptions { root: entry.first().map(String::as_str), ..Default::default() };
    let checkpoint = read_with(Path::new(input), &options)?;
    let tensors = checkpoint.tensors.iter().map(|(name, view)| (name.as_str(), view));
    write_safetensors(Path::new(output), tensors, &BTreeMap::new())?;
    println!("{} tensors of `{}` written to {output}", checkpoint.tensors.len(), checkpoint.root);
    Ok(())
}
