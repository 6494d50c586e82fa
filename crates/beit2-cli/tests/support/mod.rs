//! A tiny world for the real binary: generated images, a random teacher, a recipe that trains in a second.

#![allow(dead_code)] // each test file uses its part
#![allow(clippy::unwrap_used)]

pub mod http;
pub mod models;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use beit2::weights::{self, Tensors};
use burn::tensor::TensorData;
use tempfile::TempDir;

/// Side of the images.
const SIDE: usize = 96;

/// Images of the training folder.
pub const IMAGES: usize = 24;

/// A folder with everything a run needs.
pub struct World {
    dir: TempDir,
}

/// How a finished program ended.
pub struct Ended {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Ended {
    /// Ended with this code, and the last line of stderr is one sentence that holds all of these.
    #[track_caller]
    pub fn fails(&self, code: i32, parts: &[&str]) -> &Self {
        let last = self.err.lines().last().unwrap_or_default();
        assert_eq!(self.code, Some(code), "{}", self.err);
        assert!(last.starts_with("error: "), "{}", self.err);
        for part in parts {
            assert!(last.contains(part), "no `{part}` in: {last}");
        }
        for word in ["panicked", "RUST_BACKTRACE", "stack backtrace"] {
            assert!(!self.err.contains(word), "{}", self.err);
        }
        self
    }

    /// Ended well.
    #[track_caller]
    pub fn works(&self) -> &Self {
        assert_eq!(self.code, Some(0), "{}", self.err);
        self
    }
}

impl World {
    pub fn new() -> Self {
        let world = Self { dir: tempfile::tempdir().unwrap() };
        fs::create_dir(world.path("train")).unwrap();
        for at in 0..IMAGES {
            fs::write(world.path(&format!("train/{at:02}.ppm")), image(at, SIDE)).unwrap();
        }
        fs::write(world.path("teacher.safetensors"), teacher()).unwrap();
        fs::write(world.path("tiny.toml"), TOKENIZER).unwrap();
        fs::write(world.path("mim.toml"), PRETRAIN).unwrap();
        world
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    /// The program, working in this world.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_beit2"));
        // One thread: the tests run side by side.
        command.args(args).current_dir(self.root()).env("RAYON_NUM_THREADS", "1").stdin(Stdio::null());
        command
    }

    /// Runs the program to its end.
    pub fn beit2(&self, args: &[&str]) -> Ended {
        self.command(args).output().unwrap().into()
    }

    /// `tokenizer train tiny.toml --out OUT` and more.
    pub fn tokenizer(&self, out: &str, more: &[&str]) -> Ended {
        self.beit2(&[&["tokenizer", "train", "tiny.toml", "--out", out], more].concat())
    }

    /// The same in the background.
    pub fn spawn_tokenizer(&self, out: &str, more: &[&str]) -> Child {
        let args = [&["tokenizer", "train", "tiny.toml", "--out", out], more].concat();
        self.command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Bytes of a run's newest weights.
    pub fn weights(&self, out: &str) -> Vec<u8> {
        fs::read(self.path(out).join("last/model.safetensors")).unwrap()
    }

    /// Waits until a run has its first checkpoint.
    pub fn wait_for_checkpoint(&self, out: &str) {
        let since = Instant::now();
        while !self.path(out).join("last/state.json").exists() {
            assert!(since.elapsed() < Duration::from_secs(120), "no checkpoint after two minutes");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Sends a signal by name.
pub fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status();
    assert!(sent.unwrap().success());
}

/// A PPM image that differs for every number.
pub fn image(at: usize, side: usize) -> Vec<u8> {
    let mut ppm = format!("P6 {side} {side} 255\n").into_bytes();
    for y in 0..side {
        for x in 0..side {
            let wave = |f: usize| ((x * f + y * (at + 1) + at * 37) * 5 % 256) as u8;
            ppm.extend([wave(1), wave(at % 5 + 2), wave(3)]);
        }
    }
    ppm
}

/// Six images for each class, each class of another brightness.
pub fn classes(dir: &Path, names: &[&str]) {
    for (class, name) in names.iter().enumerate() {
        fs::create_dir_all(dir.join(name)).unwrap();
        for number in 0..6usize {
            let mut ppm = b"P6 40 40 255\n".to_vec();
            ppm.extend((0..40 * 40 * 3).map(|at| (class * 80 + (at * (number + 3)) % 40) as u8));
            fs::write(dir.join(name).join(format!("{number}.ppm")), ppm).unwrap();
        }
    }
}

/// A random DINO-style Vision Transformer: patch 8, 4×4 positions, width 16, one block.
pub fn teacher() -> Vec<u8> {
    let width = 16;
    let shapes: Vec<(&str, Vec<usize>)> = vec![
        ("cls_token", vec![1, 1, width]),
        ("pos_embed", vec![1, 17, width]),
        ("patch_embed.proj.weight", vec![width, 3, 8, 8]),
        ("patch_embed.proj.bias", vec![width]),
        ("blocks.0.norm1.weight", vec![width]),
        ("blocks.0.norm1.bias", vec![width]),
        ("blocks.0.attn.qkv.weight", vec![3 * width, width]),
        ("blocks.0.attn.qkv.bias", vec![3 * width]),
        ("blocks.0.attn.proj.weight", vec![width, width]),
        ("blocks.0.attn.proj.bias", vec![width]),
        ("blocks.0.norm2.weight", vec![width]),
        ("blocks.0.norm2.bias", vec![width]),
        ("blocks.0.mlp.fc1.weight", vec![32, width]),
        ("blocks.0.mlp.fc1.bias", vec![32]),
        ("blocks.0.mlp.fc2.weight", vec![width, 32]),
        ("blocks.0.mlp.fc2.bias", vec![width]),
        ("norm.weight", vec![width]),
        ("norm.bias", vec![width]),
    ];
    let mut tensors = Tensors::new();
    for (seed, (name, shape)) in shapes.into_iter().enumerate() {
        let one = if name.contains("norm") && name.ends_with("weight") { 1.0 } else { 0.0 };
        let count = shape.iter().product();
        let values: Vec<f32> =
            (0..count).map(|j| one + 0.2 * (0.7 * j as f32 + 1.3 * seed as f32).sin()).collect();
        tensors.insert(name.to_owned(), TensorData::new(values, shape));
    }
    weights::encode(&tensors, &BTreeMap::new()).unwrap()
}

/// 3 steps an epoch, 12 steps.
const TOKENIZER: &str = r#"# A tokenizer that trains in a second.
stage = "tokenizer"
[model]
image_size = 32
patch_size = 8
width = 16
depth = 1
heads = 2
decoder_width = 16
decoder_depth = 1
decoder_heads = 2
codebook_size = 16
code_dim = 4
teacher_dim = 16
[teacher]
kind = "dino"
weights = "teacher.safetensors"
heads = 2
[data]
train = "train"
[optimizer]
min_lr = 0.0
[schedule]
epochs = 4
batch_size = 8
warmup_epochs = 1.0
[logging]
log_every = 1
"#;

/// 3 steps an epoch, 6 steps.
const PRETRAIN: &str = r#"# A model that pretrains in a second.
stage = "pretrain"
[model]
vocab_size = 16
intermediate_layer = 1
head_layers = 1
[model.vit]
image_size = 32
patch_size = 8
width = 16
depth = 2
heads = 2
drop_path = 0.1
[mask]
patches = 6
min_block = 2
[data]
train = "train"
[schedule]
epochs = 2
batch_size = 8
warmup_epochs = 1.0
[logging]
log_every = 1
"#;
