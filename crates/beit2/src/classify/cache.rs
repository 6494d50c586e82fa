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
    let mut tensors = Tensors::from([
        ("values".to_owned(), TensorData::new(features.values.clone(), [rows, features.dim])),
        ("labels".to_owned(), TensorData::new(labels, [rows])),
    ]);
    if let Some(sets) = &features.sets {
        let mut targets = vec![0f32; rows * features.classes];
        for (row, set) in targets.chunks_mut(features.classes.max(1)).zip(sets) {
            set.iter().for_each(|&class| row[class as usize] = 1.0);
        }
        tensors.insert("targets".to_owned(), TensorData::new(targets, [rows, features.classes]));
    }
    let metadata = BTreeMap::from([("classes".to_owned(), features.classes.to_string())]);
    write_atomic(path, |w| weights::encode_to(w, &tensors, &metadata).map_err(std::io::Error::other))?;
    Ok(features)
}

fn decode(mut file: WeightFile) -> Option<Features> {
    let values = file.tensors.remove("values")?;
    let labels: Vec<i64> = file.tensors.remove("labels")?.into_vec().ok()?;
    let &[rows, dim] = values.shape.as_slice() else { return None };
    let classes: usize = file.metadata.get("classes")?.parse().ok()?;
    let labels: Vec<u32> = labels.into_iter().map(u32::try_from).collect::<Result<_, _>>().ok()?;
    let complete = labels.len() == rows && labels.iter().all(|&label| (label as usize) < classes.max(1));
    let targets = file.tensors.remove("targets").map(TensorData::into_vec::<f32>).transpose().ok()?;
    let set = |row: &[f32]| (0..).zip(row).filter(|(_, on)| **on > 0.0).map(|(class, _)| class).collect();
    let sets = targets.map(|targets| targets.chunks(classes.max(1)).map(set).collect::<Vec<Vec<u32>>>());
    let complete = complete && sets.as_ref().is_none_or(|sets| sets.len() == rows);
    complete.then_some(Features { values: values.into_vec().ok()?, dim, labels, sets, classes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn computed_once_and_again_when_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/features.safetensors");
        let features =
            Features { values: vec![1.0, 2.0, 3.0, 4.0], dim: 2, labels: vec![1, 0], sets: None, classes: 2 };
        let first = cached(&path, || Ok(features.clone())).unwrap();
        let second = cached(&path, || panic!("computed twice")).unwrap();
        assert_eq!((&first, &second), (&features, &features));
        std::fs::write(&path, b"damaged").unwrap();
        assert_eq!(cached(&path, || Ok(features.clone())).unwrap(), features);

        let path = dir.path().join("sets.safetensors");
        let features = Features { labels: vec![0, 0], sets: Some(vec![vec![0, 1], vec![]]), ..features };
        for _ in 0..2 {
            assert_eq!(cached(&path, || Ok(features.clone())).unwrap(), features);
        }
    }
}
