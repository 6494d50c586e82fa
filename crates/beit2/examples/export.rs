//! Writes a classifier for Hugging Face transformers: their names, the same bits, and the configurations that they need beside it.
//! `beit2 weights convert --to hf` does the same and writes a model card too.
//!
//! ```sh
//! cargo run --release --example train -- runs/example       # or name any classifier in place of runs/example/classifier
//! cargo run --release --example export -- runs/example/classifier classifier_hf
//! ```
//!
//! ```text
//! classifier_hf/model.safetensors: 76 tensors, Hugging Face classifier
//! left out: rel_pos_bias.relative_position_index (follows from the size of the relative position bias table)
//! 16 classes, from animals to transportation, in images of 64 px
//! ```
//!
//! Then, in Python: `pipeline("image-classification", "classifier_hf")`. For timm, take `Family::Timm` and
//! `timm_config`.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;

use beit2::classify::Classifier;
use beit2::weights;
use beit2_weights::convert::{Facts, convert, hf_config, hf_preprocessor};
use beit2_weights::inspect::inspect;
use beit2_weights::layout::Family;
use beit2_weights::{read, write_safetensors};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, out] = args.as_slice() else {
        return Err("expected: MODEL FOLDER".into());
    };
    let checkpoint = read(&weights::locate(model)?.path)?;
    let converted = convert(checkpoint.load_all()?, None, Family::HuggingFace)?;
    let summary = inspect(&converted.tensors)?;
    let class_names = Classifier::open(model)?.config.class_names;
    let facts = Facts { class_names, ..Facts::default() };
    let (config, preprocessor) = (hf_config(&summary, &facts)?, hf_preprocessor(&summary, &facts)?);
    let (folder, file) = (Path::new(out), Path::new(out).join("model.safetensors"));
    std::fs::create_dir_all(folder)?;
    std::fs::write(folder.join("config.json"), serde_json::to_string_pretty(&config)?)?;
    std::fs::write(folder.join("preprocessor_config.json"), serde_json::to_string_pretty(&preprocessor)?)?;
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    write_safetensors(
        &file,
        converted.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)),
        &metadata,
    )?;
    println!("{}: {} tensors, {}", file.display(), converted.tensors.len(), converted.layout);
    for (name, why) in &converted.left_out {
        println!("left out: {name} ({why})");
    }

    // What was written opens here as well.
    let Classifier { config, .. } = Classifier::open(folder)?;
    let (classes, size) = (config.classes.unwrap_or_default(), config.vit.image_size);
    let names = match config.class_names.as_slice() {
        [first, .., last] => format!(", from {first} to {last},"),
        _ => String::new(),
    };
    println!("{classes} classes{names} in images of {size} px");
    Ok(())
}
