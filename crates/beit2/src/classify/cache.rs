//! Features on disk, so that several evaluations of one model compute them once.

use std::collections::BTreeMap;
use std::path::Path;

use beit2_run::atomic::write_atomic;
use burn::tensor::TensorData;

use super::Features;
use crate::error::Error;
use crate::weights::{self, Tensors, WeightFile};

/// The features in `path`, or those that `compute` gives, which are then kept there. The name must
/// identify model, images and options; a file that cannot be read is computed anew.
///
/// # Errors
/// What `compute` fails with, a file that cannot be written.
pub fn cached(path: &Path, compute: impl FnOnce() -> Result<Features, Error>) -> Result<Features, Error> {
    if let Some(features) = weights::read(path).ok().and_then(decode) {
        return Ok(features);
    }
    let features = compute()?;
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|source| Error::Io { path: folder.to_owned(), source })?;
    }
    let rows = features.len();
    let labels: Vec<i64> = features.labels.iter().map(|&label| i64::from(label)).collect();
    let tensors = Tensors::from([
        ("values".to_owned(), TensorData::new(features.values.clone(), [rows, features.dim])),
        ("labels".to_owned(), TensorData::new(labels, [rows])),
    ]);
    let metadata = BTreeMap::from([("classes".to_owned(), features.classes.to_string())]);
    write_atomic(path, |w| weights::encode_to(w, &tensors, &metadata).map_err(std::io::Error::other))?;
    Ok(features)
}

fn decode(mut file: WeightFile) -> Option<Features> {
    let values = file.tensors.remove("values")?;
    let labels: Vec<i64> = file.tensors.remove("labels")?.into_vec().ok()?;
    let &[rows, dim] = values.shape.as_slice() else { return None };
    let classes = file.metadata.get("classes")?.parse().ok()?;
    let labels: Vec<u32> = labels.into_iter().map(u32::try_from).collect::<Result<_, _>>().ok()?;
    let complete = labels.len() == rows && labels.iter().all(|&label| (label as usize) < classes);
    complete.then_some(Features { values: values.into_vec().ok()?, dim, labels, classes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn computed_once_and_again_when_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/features.safetensors");
        let features = Features { values: vec![1.0, 2.0, 3.0, 4.0], dim: 2, labels: vec![1, 0], classes: 2 };
        let first = cached(&path, || Ok(features.clone())).unwrap();
        let second = cached(&path, || panic!("computed twice")).unwrap();
        assert_eq!((&first, &second), (&features, &features));
        std::fs::write(&path, b"damaged").unwrap();
        assert_eq!(cached(&path, || Ok(features.clone())).unwrap(), features);
    }
}
