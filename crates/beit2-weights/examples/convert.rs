//! Converts any weight file to safetensors, one tensor at a time.
//!
//! `cargo run --release --example convert -- IN OUT [ENTRY]`; ENTRY names the state dict inside a checkpoint (`model`,
//! `module` …) when the file holds several.

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
