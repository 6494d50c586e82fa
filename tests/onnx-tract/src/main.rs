//! Runs every case of a folder (`NAME.onnx`, `NAME.safetensors` with `in.*` and `out.*`) with tract and compares.
//!
//! usage: onnx-tract FOLDER

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use tract_onnx::prelude::*;

/// tract and the program both compute in f32, in different orders. Of these small models the sums have at most a few hundred
/// terms: 1e-5 of the largest value is fifty times the last bit.
const ROUNDING: f32 = 1e-5;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(std::env::args_os().nth(1).ok_or("usage: onnx-tract FOLDER")?);
    let mut models: Vec<PathBuf> =
        fs::read_dir(&folder)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    models.retain(|path| path.extension().is_some_and(|ending| ending == "onnx"));
    // tract 0.23 does not know bf16.
    models.retain(|path| !path.file_stem().is_some_and(|name| name.to_string_lossy().ends_with("_bf16")));
    models.sort();
    if models.is_empty() {
        return Err(format!("{} has no *.onnx", folder.display()).into());
    }
    let mut worst = 0f32;
    for path in &models {
        let found = compare(path).map_err(|error| format!("{}: {error}", path.display()))?;
        worst = worst.max(found);
    }
    println!(
        "tract: {} models agree, batches of 3 and 1; worst difference {worst:.1e} of the largest value",
        models.len()
    );
    Ok(())
}

/// The worst difference of a case, relative to its largest value.
fn compare(path: &Path) -> Result<f32, Box<dyn Error>> {
    let model = tract_onnx::onnx().model_for_path(path)?;
    let names = |outlets: &[OutletId]| -> Vec<String> {
        outlets.iter().map(|outlet| model.node(outlet.node).name.clone()).collect()
    };
    let inputs = names(model.input_outlets()?);
    let outputs = names(model.output_outlets()?);
    let plan = model.into_optimized()?.into_runnable()?;
    let bytes = fs::read(path.with_extension("safetensors"))?;
    let values = SafeTensors::deserialize(&bytes)?;
    let mut worst = 0f32;
    for batch in [3, 1] {
        let given: TractResult<TVec<TValue>> = inputs
            .iter()
            .map(|name| Ok(tensor(&values, &format!("in.{name}"), batch, name == "mask")?.into_tvalue()))
            .collect();
        let found = plan.run(given?)?;
        for (name, found) in outputs.iter().zip(found.iter()) {
            let expected = tensor(&values, &format!("out.{name}"), batch, false)?;
            if found.shape() != expected.shape() {
                return Err(
                    format!("{name} has shape {:?}, expected {:?}", found.shape(), expected.shape()).into()
                );
            }
            let [found, expected] =
                [found, &expected].map(|tensor| tensor.cast_to::<f32>().map(|t| t.into_owned()));
            let (found, expected) = (found?, expected?);
            let (found, expected) =
                (found.to_plain_array_view::<f32>()?, expected.to_plain_array_view::<f32>()?);
            let largest = expected.iter().fold(0f32, |largest, value| largest.max(value.abs()));
            let difference =
                found.iter().zip(expected.iter()).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            let allowed = if name == "ids" { 0.0 } else { ROUNDING };
            if difference.is_nan() || difference > allowed * largest {
                return Err(format!("{name} of {batch} images differs by {difference:e} of {largest}").into());
            }
            worst = worst.max(difference / largest.max(f32::MIN_POSITIVE));
        }
    }
    Ok(worst)
}

/// The first `batch` rows of a stored tensor.
fn tensor(values: &SafeTensors, name: &str, batch: usize, bool: bool) -> TractResult<Tensor> {
    let view = values.tensor(name).map_err(|error| TractError::msg(format!("{name}: {error}")))?;
    let mut shape = view.shape().to_vec();
    let bytes = &view.data()[..view.data().len() / shape[0] * batch];
    shape[0] = batch;
    let dtype = match view.dtype() {
        Dtype::F32 => DatumType::F32,
        Dtype::I64 => DatumType::I64,
        Dtype::U8 if bool => DatumType::Bool,
        Dtype::U8 => DatumType::U8,
        other => return Err(TractError::msg(format!("{name} has type {other:?}"))),
    };
    unsafe { Tensor::from_raw_dt(dtype, &shape, bytes) }
}
