//! A folder as the guide describes it: images, labelled images, scenes, bands, teachers under their published names.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use beit2::weights::{self, Tensors};
use burn::tensor::TensorData;
use png::{BitDepth, ColorType};
use tempfile::TempDir;

use crate::links::root;
use crate::scenes::png;

/// Where the commands run; it is the home folder, too.
pub struct Place {
    dir: TempDir,
}

impl Place {
    pub fn new() -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap() };
        place.images();
        place.scenes();
        place.fields();
        fs::write(place.path("dinov2_vits14_pretrain.pth"), dinov2()).unwrap();
        fs::write(place.path("ViT-B-16.pt"), clip()).unwrap();
        place
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs a line in a shell that finds this build of the program.
    pub fn shell(&self, line: &str) -> Output {
        let program = Path::new(env!("CARGO_BIN_EXE_beit2")).parent().unwrap();
        let paths = std::env::var_os("PATH").unwrap_or_default();
        let paths = std::iter::once(program.to_owned()).chain(std::env::split_paths(&paths));
        let mut shell = Command::new("sh");
        shell.args(["-euc", line]).current_dir(self.dir.path()).stdin(Stdio::null());
        shell.env("PATH", std::env::join_paths(paths).unwrap()).env("HOME", self.dir.path());
        shell.env_remove("XDG_CACHE_HOME").output().unwrap()
    }

    /// Bundled drawings of three classes: labelled ones, others for pretraining, and one that is called cat.jpg.
    fn images(&self) {
        let shard = root().join("crates/beit2-quickstart-data/data/val-000.tar");
        let all = tempfile::tempdir().unwrap();
        let untar = Command::new("tar").arg("-xf").arg(shard).arg("-C").arg(all.path()).status();
        assert!(untar.unwrap().success());
        for class in ["animals", "electronics", "food"] {
            let entries = fs::read_dir(all.path().join(class)).unwrap().map(|entry| entry.unwrap().path());
            let mut files: Vec<PathBuf> =
                entries.filter(|path| path.extension().is_some_and(|ending| ending == "webp")).collect();
            files.sort();
            let mut files = files.into_iter();
            fs::copy(files.as_slice().first().unwrap(), self.path("cat.jpg")).unwrap();
            for (folder, count) in [
                (format!("labelled/train/{class}"), 8),
                (format!("labelled/val/{class}"), 4),
                ("images".into(), 6),
                ("held_out".into(), 2),
            ] {
                let folder = self.path(&folder);
                fs::create_dir_all(&folder).unwrap();
                for file in files.by_ref().take(count) {
                    fs::copy(&file, folder.join(file.file_name().unwrap())).unwrap();
                }
            }
        }
    }

    /// A box on a ground, with its mask.
    fn scenes(&self) {
        let (width, height) = (192usize, 144usize);
        for (set, count) in [("train", 8), ("val", 3)] {
            let dir = self.path("scenes").join(set);
            for folder in ["images", "masks"] {
                fs::create_dir_all(dir.join(folder)).unwrap();
            }
            fs::write(dir.join("classes.txt"), "ground\t#202020\nbox\t#ff8000\n").unwrap();
            for number in 0..count {
                let corner = 10 + 7 * number;
                let inside = corner..corner + 50;
                let mut colours = Vec::new();
                let mut ids = Vec::new();
                for at in 0..width * height {
                    let (y, x) = (at / width, at % width);
                    let hit = inside.contains(&y) && inside.contains(&x);
                    colours.extend((0..3).map(|c| (at * (number + 3 + c) % 60) as u8 + 150 * u8::from(hit)));
                    ids.push(u8::from(hit));
                }
                let file = |folder: &str| dir.join(folder).join(format!("{number}.png"));
                let eight = BitDepth::Eight;
                png(&file("images"), (width, height), ColorType::Rgb, eight, &colours);
                png(&file("masks"), (width, height), ColorType::Grayscale, eight, &ids);
            }
        }
    }

    /// Four bands of one file each, in two classes.
    fn fields(&self) {
        for (set, count) in [("train", 12), ("val", 4)] {
            for number in 0..count {
                let class = ["maize", "wheat"][number % 2];
                let dir = self.path("fields").join(set).join(class);
                fs::create_dir_all(&dir).unwrap();
                for (at, band) in ["B02", "B03", "B04", "B08"].into_iter().enumerate() {
                    let mut file = b"P5 96 96 255\n".to_vec();
                    file.extend((0..96 * 96).map(|pixel| (pixel * (at + 1 + number) + 17 * number) as u8));
                    fs::write(dir.join(format!("{number:02}_{band}.pgm")), file).unwrap();
                }
            }
        }
    }
}

/// Tensors that differ; gains are near 1.
fn encode(shapes: Vec<(String, Vec<usize>)>) -> Vec<u8> {
    let mut tensors = Tensors::new();
    for (seed, (name, shape)) in shapes.into_iter().enumerate() {
        let gain = name.ends_with("gamma") || (shape.len() == 1 && name.ends_with("weight"));
        let value =
            |at: usize| f32::from(u8::from(gain)) + 0.05 * (0.7 * at as f32 + 1.3 * seed as f32).sin();
        let values: Vec<f32> = (0..shape.iter().product()).map(value).collect();
        tensors.insert(name, TensorData::new(values, shape));
    }
    weights::encode(&tensors, &BTreeMap::new()).unwrap()
}

fn named(prefix: &str, shapes: &[(&str, &[usize])]) -> Vec<(String, Vec<usize>)> {
    shapes.iter().map(|(name, shape)| (format!("{prefix}{name}"), shape.to_vec())).collect()
}

/// DINOv2's ViT-S/14 with narrow MLPs.
fn dinov2() -> Vec<u8> {
    let (w, mlp) = (384, 64);
    let mut shapes = named(
        "",
        &[
            ("cls_token", &[1, 1, w]),
            ("mask_token", &[1, w]),
            ("pos_embed", &[1, 257, w]),
            ("patch_embed.proj.weight", &[w, 3, 14, 14]),
            ("patch_embed.proj.bias", &[w]),
            ("norm.weight", &[w]),
            ("norm.bias", &[w]),
        ],
    );
    for block in 0..12 {
        let block_shapes: &[(&str, &[usize])] = &[
            ("norm1.weight", &[w]),
            ("norm1.bias", &[w]),
            ("attn.qkv.weight", &[3 * w, w]),
            ("attn.qkv.bias", &[3 * w]),
            ("attn.proj.weight", &[w, w]),
            ("attn.proj.bias", &[w]),
            ("ls1.gamma", &[w]),
            ("norm2.weight", &[w]),
            ("norm2.bias", &[w]),
            ("mlp.fc1.weight", &[mlp, w]),
            ("mlp.fc1.bias", &[mlp]),
            ("mlp.fc2.weight", &[w, mlp]),
            ("mlp.fc2.bias", &[w]),
            ("ls2.gamma", &[w]),
        ];
        shapes.extend(named(&format!("blocks.{block}."), block_shapes));
    }
    encode(shapes)
}

/// One block of CLIP's ViT-B/16 with a narrow MLP.
fn clip() -> Vec<u8> {
    let (w, mlp) = (768, 64);
    let mut shapes = named(
        "visual.",
        &[
            ("class_embedding", &[w]),
            ("positional_embedding", &[197, w]),
            ("proj", &[w, 512]),
            ("conv1.weight", &[w, 3, 16, 16]),
            ("ln_pre.weight", &[w]),
            ("ln_pre.bias", &[w]),
            ("ln_post.weight", &[w]),
            ("ln_post.bias", &[w]),
        ],
    );
    shapes.extend(named(
        "visual.transformer.resblocks.0.",
        &[
            ("attn.in_proj_weight", &[3 * w, w]),
            ("attn.in_proj_bias", &[3 * w]),
            ("attn.out_proj.weight", &[w, w]),
            ("attn.out_proj.bias", &[w]),
            ("ln_1.weight", &[w]),
            ("ln_1.bias", &[w]),
            ("ln_2.weight", &[w]),
            ("ln_2.bias", &[w]),
            ("mlp.c_fc.weight", &[mlp, w]),
            ("mlp.c_fc.bias", &[mlp]),
            ("mlp.c_proj.weight", &[w, mlp]),
            ("mlp.c_proj.bias", &[w]),
        ],
    ));
    encode(shapes)
}
