//! Reference data for tests: the folder in `BEIT2_GOLDEN`, the workspace's `tests/golden/`, and the
//! excerpt in `tests/data/`.
#![allow(dead_code, clippy::unwrap_used)]

use std::path::{Path, PathBuf};

#[path = "../../../../tests/checks.rs"]
pub mod checks;

use beit2_data::{Image, Key, RngStream};
use safetensors::SafeTensors;

/// The excerpt of suite J that ships with this crate.
pub fn excerpt_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data")
}

/// One suite of reference data.
pub struct Suite {
    pub dir: PathBuf,
    pub json: serde_json::Value,
    bytes: Vec<u8>,
}

impl Suite {
    /// Loads `NAME.json` and `NAME.safetensors`; prints a line and gives nothing when they are not
    /// there.
    pub fn load(dir: &Path, name: &str) -> Option<Self> {
        let path = |ending: &str| dir.join(format!("{name}.{ending}"));
        if !path("json").exists() || !path("safetensors").exists() {
            checks::skip(format!("no {name}.json and {name}.safetensors in {}", dir.display()));
            return None;
        }
        let json = serde_json::from_slice(&std::fs::read(path("json")).unwrap()).unwrap();
        Some(Self { dir: dir.into(), json, bytes: std::fs::read(path("safetensors")).unwrap() })
    }

    pub fn tensors(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.bytes).unwrap()
    }

    /// An image tensor `[H, W, 3]`.
    pub fn image(&self, name: &str) -> Option<Image> {
        let tensors = self.tensors();
        let tensor = tensors.tensor(name).ok()?;
        let &[h, w, 3] = tensor.shape() else { panic!("{name} is not [H, W, 3]") };
        Some(Image::new(w as u32, h as u32, tensor.data().to_vec()).unwrap())
    }

    pub fn shape(&self, name: &str) -> Vec<usize> {
        self.tensors().tensor(name).unwrap().shape().to_vec()
    }

    pub fn f32s(&self, name: &str) -> Vec<f32> {
        let tensors = self.tensors();
        let (chunks, _) = tensors.tensor(name).unwrap().data().as_chunks::<4>();
        chunks.iter().map(|&b| f32::from_le_bytes(b)).collect()
    }

    pub fn i64s(&self, name: &str) -> Vec<i64> {
        let tensors = self.tensors();
        let (chunks, _) = tensors.tensor(name).unwrap().data().as_chunks::<8>();
        chunks.iter().map(|&b| i64::from_le_bytes(b)).collect()
    }
}

/// A golden test of both places of suite J that hold what it is about.
#[track_caller]
pub fn each_image_suite(key: &str, test: impl Fn(&Suite)) {
    checks::golden(|| {
        for suite in image_suites() {
            if suite.json[key].is_null() {
                checks::skip(format!("no {key} in {}", suite.dir.display()));
            } else {
                checks::part(&suite.dir.display().to_string(), || test(&suite));
            }
        }
    });
}

/// Suite J from both places.
pub fn image_suites() -> Vec<Suite> {
    [checks::root(), excerpt_dir()].iter().filter_map(|dir| Suite::load(dir, "J_images")).collect()
}

/// Largest difference of any value; different sizes count as 256.
pub fn max_difference(a: &Image, b: &Image) -> u8 {
    if (a.width, a.height) != (b.width, b.height) {
        return 255;
    }
    a.data.iter().zip(&b.data).map(|(x, y)| x.abs_diff(*y)).max().unwrap_or(0)
}

/// An image of noise.
pub fn noise(width: u32, height: u32, seed: u64) -> Image {
    use beit2_data::rng::Rng;
    let mut rng = Key { seed, epoch: 0, index: 0, stream: RngStream::Order }.rng();
    Image::new(width, height, (0..width * height * 3).map(|_| rng.next_u32() as u8).collect()).unwrap()
}

/// An image as a PPM file.
pub fn ppm(image: &Image) -> Vec<u8> {
    let mut bytes = format!("P6 {} {} 255\n", image.width, image.height).into_bytes();
    bytes.extend_from_slice(&image.data);
    bytes
}
