//! Small images, a small teacher, small recipes.

use std::collections::BTreeMap;
use std::path::Path;

use beit2::classify::finetune::{FinetuneRecipe, InitConfig};
use beit2::pretrain::{MaskConfig, MimConfig, PretrainRecipe, TokenizerSource};
use beit2::segment::{InferConfig, SegmentEval, SegmentInit, SegmentRecipe, SegmenterConfig};
use beit2::tokenizer::teachers::{DistillRecipe, TeacherConfig, TeacherKind};
use beit2::tokenizer::{CodebookOptions, TokenizerConfig, TokenizerRecipe};
use beit2::train::{DataConfig, LoggingConfig, OptimizerConfig, ScheduleConfig};
use beit2::vit::{RelPosKind, VitConfig};
use beit2::weights;
use beit2_data::segment::SegmentTrainConfig;
use beit2_kernels::simd;
use burn::backend::{Autodiff, Flex};
use burn::module::AutodiffModule;
use burn::tensor::TensorData;
use rand::{RngExt, SeedableRng};

pub type Auto = Autodiff<Flex>;

/// The model with new leaves of the autodiff graph. Before a second backward pass of one model: Burn forgets the leaves
/// of the first, and tests on other threads could take the second one's graph away (`beit2::train::GradientSum`).
pub fn with_new_leaves<M: AutodiffModule<Auto>>(model: &M) -> M {
    M::from_inner(model.valid())
}

/// Keeps the process at the instruction set that `BEIT2_TEST_SIMD` names, if it names one: CI runs these tests at the
/// machine's level and at AVX2.
fn limit_level() {
    if let Some(name) = std::env::var_os("BEIT2_TEST_SIMD") {
        let level = name.to_str().and_then(simd::Level::named);
        simd::limit(
            level.unwrap_or_else(|| panic!("BEIT2_TEST_SIMD: no instruction set {}", name.display())),
        );
    }
}

/// `count` images of coloured rectangles, as PPM files.
pub fn images(dir: &Path, count: usize) {
    limit_level();
    std::fs::create_dir_all(dir).unwrap();
    for number in 0..count {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(number as u64);
        let mut ppm = b"P6 40 36 255\n".to_vec();
        let [top, left, bottom, right] = [0, 0, 14, 14].map(|low| low + rng.random_range(0..20usize));
        let (inside, outside): ([u8; 3], [u8; 3]) = (rng.random(), rng.random());
        for y in 0..36 {
            for x in 0..40 {
                let hit = (top..bottom).contains(&y) && (left..right).contains(&x);
                ppm.extend(if hit { inside } else { outside });
            }
        }
        std::fs::write(dir.join(format!("{number:03}.ppm")), ppm).unwrap();
    }
}

/// `count` images of each of three classes that differ in brightness, in a sub-folder each.
pub fn classes(dir: &Path, count: usize) {
    limit_level();
    for (class, name) in ["dark", "gray", "light"].into_iter().enumerate() {
        std::fs::create_dir_all(dir.join(name)).unwrap();
        for number in 0..count {
            let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64((class * 1000 + number) as u64);
            let mut ppm = b"P6 36 36 255\n".to_vec();
            ppm.extend((0..36 * 36 * 3).map(|_| rng.random_range(0..60u8) + class as u8 * 90));
            std::fs::write(dir.join(name).join(format!("{number:03}.ppm")), ppm).unwrap();
        }
    }
}

/// A random DINO-layout ViT of width 16 with two blocks and patches of 8 pixels.
pub fn teacher(path: &Path) {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
    let mut shapes = vec![
        ("cls_token".to_owned(), vec![1, 1, 16]),
        ("pos_embed".into(), vec![1, 17, 16]),
        ("patch_embed.proj.weight".into(), vec![16, 3, 8, 8]),
        ("patch_embed.proj.bias".into(), vec![16]),
        ("norm.weight".into(), vec![16]),
        ("norm.bias".into(), vec![16]),
    ];
    for block in 0..2 {
        for (name, shape) in [
            ("norm1.weight", vec![16]),
            ("norm1.bias", vec![16]),
            ("attn.qkv.weight", vec![48, 16]),
            ("attn.qkv.bias", vec![48]),
            ("attn.proj.weight", vec![16, 16]),
            ("attn.proj.bias", vec![16]),
            ("norm2.weight", vec![16]),
            ("norm2.bias", vec![16]),
            ("mlp.fc1.weight", vec![64, 16]),
            ("mlp.fc1.bias", vec![64]),
            ("mlp.fc2.weight", vec![16, 64]),
            ("mlp.fc2.bias", vec![16]),
        ] {
            shapes.push((format!("blocks.{block}.{name}"), shape));
        }
    }
    let tensors: weights::Tensors = shapes
        .into_iter()
        .map(|(name, shape)| {
            let count = shape.iter().product();
            let values: Vec<f32> = (0..count).map(|_| rng.random_range(-0.3..0.3)).collect();
            (name, TensorData::new(values, shape))
        })
        .collect();
    std::fs::write(path, weights::encode(&tensors, &BTreeMap::new()).unwrap()).unwrap();
}

/// Images, classes, masks and a teacher: what the recipes below read.
pub fn of_every_stage(root: &Path) {
    images(&root.join("images"), 14);
    classes(&root.join("classes"), 7);
    masks(&root.join("scenes"), 13);
    teacher(&root.join("teacher.safetensors"));
}

fn data(dir: &Path) -> DataConfig {
    let path = dir.join("images").to_string_lossy().into_owned();
    DataConfig { train: path.clone(), val: Some(path), workers: 2, ..DataConfig::default() }
}

/// Eleven steps of three to an epoch, with every option of the codebook on.
pub fn tokenizer(dir: &Path) -> TokenizerRecipe {
    TokenizerRecipe {
        seed: 7,
        model: TokenizerConfig {
            image_size: 32,
            patch_size: 8,
            width: 24,
            depth: 2,
            heads: 2,
            decoder_width: 16,
            decoder_depth: 1,
            decoder_heads: 2,
            codebook_size: 24,
            code_dim: 6,
            teacher_dim: 16,
            ..TokenizerConfig::default()
        },
        teacher: TeacherConfig {
            kind: Some(TeacherKind::Dino),
            weights: dir.join("teacher.safetensors").to_string_lossy().into_owned(),
            heads: Some(2),
            ..TeacherConfig::default()
        },
        data: data(dir),
        optimizer: OptimizerConfig { min_lr: 0.0, ..TokenizerRecipe::default().optimizer },
        schedule: ScheduleConfig {
            steps: Some(11),
            warmup_steps: Some(2),
            batch_size: 4,
            ..ScheduleConfig::default()
        },
        codebook: CodebookOptions {
            kmeans_warmup_steps: 2,
            kmeans_rows_per_code: 4,
            revive_after_steps: Some(2),
        },
        logging: logging(),
        ..TokenizerRecipe::default()
    }
}

/// Nine steps of three to an epoch, every epoch with the crops of the first.
pub fn distill(dir: &Path) -> DistillRecipe {
    DistillRecipe {
        seed: 3,
        model: VitConfig {
            image_size: 32,
            patch_size: 8,
            width: 24,
            depth: 2,
            heads: 2,
            ..DistillRecipe::default().model
        },
        teacher: tokenizer(dir).teacher,
        data: data(dir),
        view_epochs: Some(1),
        schedule: ScheduleConfig {
            steps: Some(9),
            warmup_steps: Some(2),
            batch_size: 4,
            ..ScheduleConfig::default()
        },
        logging: logging(),
        ..DistillRecipe::default()
    }
}

/// Nine steps with drop path.
pub fn pretrain(dir: &Path, tokenizer: &Path) -> PretrainRecipe {
    PretrainRecipe {
        seed: 5,
        model: MimConfig {
            vit: VitConfig {
                image_size: 32,
                patch_size: 8,
                width: 24,
                depth: 3,
                heads: 2,
                drop_path: 0.3,
                ..VitConfig::default()
            },
            vocab_size: 24,
            intermediate_layer: 2,
            head_layers: 2,
            ..MimConfig::default()
        },
        tokenizer: TokenizerSource {
            weights: tokenizer.to_string_lossy().into_owned(),
            ..TokenizerSource::default()
        },
        mask: MaskConfig { patches: 6, min_block: 2, ..MaskConfig::default() },
        data: data(dir),
        optimizer: OptimizerConfig {
            weight_decay_end: Some(0.2),
            clip_grad: Some(3.0),
            ..OptimizerConfig::default()
        },
        schedule: ScheduleConfig {
            steps: Some(9),
            warmup_steps: Some(2),
            batch_size: 4,
            ..ScheduleConfig::default()
        },
        logging: logging(),
        ..PretrainRecipe::default()
    }
}

fn logging() -> LoggingConfig {
    LoggingConfig {
        log_every: 2,
        checkpoint_every: Some(100),
        keep_checkpoints: 2,
        eval_every_epochs: Some(2),
    }
}

/// Ten steps of five to an epoch with everything on: two parts to a step, averages, mixing, erasing, drop path.
pub fn finetune(dir: &Path, init: &str) -> FinetuneRecipe {
    let spec = dir.join("classes").to_string_lossy().into_owned();
    let mut recipe = FinetuneRecipe {
        seed: 4,
        ema_decay: Some(0.9),
        init: InitConfig { weights: init.to_owned(), ..InitConfig::default() },
        data: DataConfig { train: spec.clone(), val: Some(spec), workers: 2, ..DataConfig::default() },
        schedule: ScheduleConfig {
            steps: Some(10),
            warmup_steps: Some(2),
            batch_size: 4,
            grad_accum_steps: 2,
            ..ScheduleConfig::default()
        },
        logging: logging(),
        ..FinetuneRecipe::default()
    };
    recipe.augment.erase.prob = 0.5;
    recipe.model.vit = VitConfig {
        image_size: 32,
        patch_size: 8,
        width: 24,
        depth: 2,
        heads: 2,
        drop_path: 0.3,
        rel_pos_bias: RelPosKind::PerBlock,
        ..VitConfig::default()
    };
    recipe
}

/// `count` images of a bright box on dark ground with their masks, a hand's breadth of pixels around the image without
/// a class.
pub fn masks(dir: &Path, count: usize) {
    limit_level();
    for folder in ["images", "masks"] {
        std::fs::create_dir_all(dir.join(folder)).unwrap();
    }
    std::fs::write(dir.join("classes.txt"), "ground\t#202020\nbox\t#ff8000\n").unwrap();
    let (width, height) = (72usize, 66usize);
    for number in 0..count {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(number as u64);
        let [top, left] = [0, 0].map(|low| low + rng.random_range(4..30usize));
        let [bottom, right] = [top, left].map(|start| start + rng.random_range(16..32usize));
        let mut ppm = format!("P6 {width} {height} 255\n").into_bytes();
        let mut ids = Vec::new();
        for at in 0..width * height {
            let (y, x) = (at / width, at % width);
            let hit = (top..bottom).contains(&y) && (left..right).contains(&x);
            ppm.extend((0..3).map(|_| rng.random_range(0..60u8) + if hit { 150 } else { 20 }));
            ids.push(if y < 2 { 255 } else { u8::from(hit) });
        }
        std::fs::write(dir.join(format!("images/{number:03}.ppm")), ppm).unwrap();
        let file = std::fs::File::create(dir.join(format!("masks/{number:03}.png"))).unwrap();
        let mut encoder = png::Encoder::new(file, width as u32, height as u32);
        encoder.set_color(png::ColorType::Grayscale);
        encoder.write_header().unwrap().write_image_data(&ids).unwrap();
    }
}

/// Ten steps of three to an epoch with everything on: two parts to a step, dropout, drop path.
pub fn segment(dir: &Path, init: &str) -> SegmentRecipe {
    let spec = dir.join("scenes").to_string_lossy().into_owned();
    let vit = VitConfig {
        image_size: 64,
        patch_size: 8,
        width: 24,
        depth: 4,
        heads: 2,
        drop_path: 0.2,
        rel_pos_bias: RelPosKind::PerBlock,
        ..VitConfig::default()
    };
    SegmentRecipe {
        seed: 6,
        init: SegmentInit { weights: init.to_owned(), ..SegmentInit::default() },
        model: SegmenterConfig {
            vit,
            out_indices: [0, 1, 2, 3],
            channels: 16,
            aux_channels: 8,
            ..SegmenterConfig::default()
        },
        data: DataConfig { train: spec.clone(), val: Some(spec), workers: 2, ..DataConfig::default() },
        augment: SegmentTrainConfig { base: [72, 66], ..SegmentTrainConfig::default() },
        schedule: ScheduleConfig {
            epochs: 0,
            steps: Some(10),
            warmup_steps: Some(2),
            batch_size: 4,
            grad_accum_steps: 2,
            ..ScheduleConfig::default()
        },
        eval: SegmentEval { every: Some(4) },
        infer: InferConfig { long_side: 72, short_side: 66, ..InferConfig::default() },
        logging: logging(),
        ..SegmentRecipe::default()
    }
}
