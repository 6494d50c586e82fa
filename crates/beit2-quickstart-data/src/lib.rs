//! The data of `beit2 quickstart`, as bytes inside the program: 2,421 labelled drawings in tar shards (WebDataset
//! layout) and the weights of a tiny teacher. README.md says where they come from and how to make them again.
//!
//! A crate of its own because crates.io takes at most 10 MiB: a program without the data leaves it out.

/// Training images: name and bytes of each tar shard.
pub static TRAIN: &[(&str, &[u8])] = &[
    ("train-000.tar", include_bytes!("../data/train-000.tar")),
    ("train-001.tar", include_bytes!("../data/train-001.tar")),
];

/// The validation set: name and bytes of each tar shard.
pub static VAL: &[(&str, &[u8])] = &[("val-000.tar", include_bytes!("../data/val-000.tar"))];

/// The teacher, a ViT of 2.8 million parameters: file name and bytes (safetensors).
pub static TEACHER: (&str, &[u8]) =
    ("tiny_teacher.safetensors", include_bytes!("../data/tiny_teacher.safetensors"));

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    /// A new shard must be listed above, or the quickstart would train without it.
    #[test]
    fn every_file_of_the_folder_is_inside() {
        let folder = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/data")).unwrap();
        let mut found: Vec<_> = folder.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        found.sort();
        let mut inside: Vec<_> = super::TRAIN.iter().chain(super::VAL).map(|(name, _)| *name).collect();
        inside.push(super::TEACHER.0);
        inside.sort_unstable();
        assert_eq!(found, inside);
    }
}
