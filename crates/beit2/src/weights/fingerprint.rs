//! What was read of a weight file, as one short text.

use std::collections::BTreeMap;

use burn::tensor::TensorData;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::WeightFile;

/// Hexadecimal digits of a fingerprint. It guards against mixing files up, not against an attacker.
const DIGITS: usize = 32;

impl WeightFile {
    /// A value that changes when the tensors do, or the texts that were read with them.
    ///
    /// It is that of the values in memory and not of the file, which may be replaced right after it was read (or while). So
    /// the same tensors in another format have another text only if their metadata differ.
    pub fn fingerprint(&self) -> String {
        // Tensors by themselves, so that threads share the work: SHA-256 is slower than reading from the page cache.
        let tensors: Vec<(&String, &TensorData)> = self.tensors.iter().collect();
        let digests: Vec<_> = tensors
            .into_par_iter()
            .map(|(name, data)| {
                (name, format!("{:?} {:?}", data.dtype, data.shape), Sha256::digest(data.as_bytes()))
            })
            .collect();
        let mut all = Sha256::new();
        for (name, kind, digest) in digests {
            part(&mut all, name.as_bytes());
            part(&mut all, kind.as_bytes());
            all.update(digest);
        }
        texts(&mut all, &self.metadata);
        for beside in [&self.beside.config, &self.beside.preprocessor, &self.beside.open_clip] {
            part(&mut all, beside.to_string().as_bytes());
        }
        let mut text: String = all.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        text.truncate(DIGITS);
        text
    }
}

/// With its length, so that what follows cannot be taken for a part of it.
fn part(all: &mut Sha256, bytes: &[u8]) {
    all.update((bytes.len() as u64).to_le_bytes());
    all.update(bytes);
}

fn texts(all: &mut Sha256, texts: &BTreeMap<String, String>) {
    all.update((texts.len() as u64).to_le_bytes());
    for (name, text) in texts {
        part(all, name.as_bytes());
        part(all, text.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> WeightFile {
        let mut file = WeightFile::default();
        file.tensors.insert("a".into(), TensorData::new(vec![1f32, 2.0], [2]));
        file.tensors.insert("b".into(), TensorData::new(vec![3f32, 4.0], [1, 2]));
        file.metadata.insert("format".into(), "pt".into());
        file
    }

    #[test]
    fn everything_that_was_read_counts() {
        let own = file().fingerprint();
        assert_eq!((own.len(), &own), (DIGITS, &file().fingerprint()));
        let changes: [fn(&mut WeightFile); 6] = [
            |file| drop(file.tensors.insert("a".into(), TensorData::new(vec![1f32, 2.5], [2]))),
            |file| drop(file.tensors.insert("a".into(), TensorData::new(vec![1f32, 2.0], [2, 1]))),
            |file| {
                let data = file.tensors.remove("a").unwrap_or_else(|| TensorData::new(vec![0f32], [1]));
                file.tensors.insert("c".into(), data);
            },
            |file| drop(file.tensors.remove("b")),
            |file| drop(file.metadata.insert("format".into(), "np".into())),
            |file| file.beside.config = serde_json::json!({ "layer_norm_eps": 1e-6 }),
        ];
        for (at, change) in changes.into_iter().enumerate() {
            let mut other = file();
            change(&mut other);
            assert_ne!(other.fingerprint(), own, "change {at}");
        }
        let mut noted = file();
        noted.notes.push("how it was read".into());
        assert_eq!(noted.fingerprint(), own);
    }
}
