//! Time per image and core of decoding, the two-view transform and the fine-tuning transform, and of their stages.
//!
//! `cargo bench -p beit2-data --bench throughput -- [--simd LEVEL] IMAGE...` measures the files in turn; for
//! ImageNet-like numbers give JPEGs of 500 x 375 (`bench/compare/data.sh` makes some). With `--serve` it waits for lines
//! `CELL COUNT` on standard input and answers each with a line of JSON: that is how `bench/compare/data.py` lets programs
//! take turns. One thread; multiply by cores.

use std::io::BufRead;
use std::time::Instant;

use beit2_data::simd::{self, Level};
use beit2_data::transform::crop_resize;
use beit2_data::{
    AugmentOp, DecodeOptions, EncodedImage, EvalConfig, FinetuneConfig, FinetuneParams, Image, JitterParams,
    Key, RngStream, TwoViewConfig, ViewParams, Views, decode,
};

/// Images per round.
const REPEATS: u64 = 400;
/// Rounds, of which the fastest counts: the machine may be shared.
const ROUNDS: usize = 7;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// What can be measured: whole transforms with and without decoding, then stages of them.
const CELLS: [&str; 14] = [
    "decode",
    "mim",
    "mim-jitter",
    "finetune",
    "eval",
    "decode+mim",
    "decode+mim-jitter",
    "decode+finetune",
    "mim-64",
    "stage:draw",
    "stage:crop-resize",
    "stage:mean",
    "stage:jitter",
    "stage:randaugment",
];

struct Sample {
    bytes: Vec<u8>,
    image: Image,
}

fn main() -> Outcome<()> {
    // Cargo adds `--bench` to what the user gave.
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let (mut serve, mut samples) = (false, Vec::new());
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--serve" => serve = true,
            "--simd" => match arguments.next().as_deref() {
                Some("baseline") => simd::limit(Level::Baseline),
                Some("avx2") => simd::limit(Level::Avx2),
                Some("avx512") => simd::limit(Level::Avx512),
                _ => return Err("--simd takes baseline, avx2 or avx512".into()),
            },
            path => {
                let bytes = std::fs::read(path).map_err(|e| format!("{path}: {e}"))?;
                let image = decode(&bytes, &DecodeOptions::default()).map_err(|e| format!("{path}: {e}"))?;
                samples.push(Sample { bytes, image });
            }
        }
    }
    if samples.is_empty() {
        println!("throughput: nothing to measure; name image files after `--`");
        return Ok(());
    }
    beit2_data::keep_freed_memory(); // as the loader does
    if serve {
        for line in std::io::stdin().lock().lines() {
            let line = line?;
            let (cell, count) = line.split_once(' ').ok_or("a line is `CELL COUNT`")?;
            let count: u64 = count.trim().parse()?;
            println!("{{\"cell\": \"{cell}\", \"seconds\": {:e}}}", round(cell, &samples, count)?);
        }
        return Ok(());
    }
    println!("{:?}, {} images", simd::level(), samples.len());
    for cell in CELLS {
        let mut best = f64::INFINITY;
        for _ in 0..ROUNDS {
            best = best.min(round(cell, &samples, REPEATS)?);
        }
        println!("  {cell:<20} {:8.1} us {:8.0} images/s", best * 1e6, 1.0 / best);
    }
    Ok(())
}

/// Seconds of processor time per image of `count` runs of a cell, the samples in turn.
fn round(cell: &str, samples: &[Sample], count: u64) -> Outcome<f64> {
    let (cell, decodes) = match cell.strip_prefix("decode+") {
        Some(rest) => (rest, true),
        None => (cell, false),
    };
    let config = |input_size, color_jitter| TwoViewConfig {
        input_size,
        second_size: input_size,
        color_jitter,
        ..TwoViewConfig::default()
    };
    let (plain, jittered, small) = (config(224, 0.0), config(224, 0.4), config(64, 0.4));
    let (finetune, eval) = (FinetuneConfig::default(), EvalConfig::default());
    let mut tested = samples[0].image.clone();
    let options = DecodeOptions::default();
    let start = clock()?;
    for index in 0..count {
        let sample = &samples[index as usize % samples.len()];
        let key = Key { seed: 0, epoch: 0, index, stream: RngStream::Augment };
        let image = &sample.image;
        let drawn = |config: &TwoViewConfig| ViewParams::draw(config, image.width, image.height, &key);
        let views = |config: &TwoViewConfig| -> Outcome<Views> {
            Ok(match decodes {
                true => drawn(config).apply_encoded(config, &EncodedImage::open(&sample.bytes, &options)?)?,
                false => drawn(config).apply(config, image)?,
            })
        };
        match cell {
            "decode" => drop(std::hint::black_box(decode(&sample.bytes, &options)?)),
            "mim" => drop(std::hint::black_box(views(&plain)?)),
            "mim-jitter" => drop(std::hint::black_box(views(&jittered)?)),
            "mim-64" => drop(std::hint::black_box(views(&small)?)),
            "finetune" => {
                let params = FinetuneParams::draw(&finetune, image.width, image.height, &key);
                let view = match decodes {
                    true => params.apply_encoded(&finetune, &EncodedImage::open(&sample.bytes, &options)?)?,
                    false => params.apply(&finetune, image)?,
                };
                drop(std::hint::black_box(standardised(&params, &view)?));
            }
            "eval" => drop(std::hint::black_box(eval.apply(image)?)),
            "stage:draw" => drop(std::hint::black_box(drawn(&jittered))),
            "stage:crop-resize" => {
                let area = drawn(&plain).crop;
                drop(std::hint::black_box(crop_resize(image, area, 224, 224, plain.interpolation)?));
            }
            "stage:mean" | "stage:jitter" => {
                let jitter = JitterParams::sample(&mut key.rng(), 0.4);
                if cell == "stage:mean" {
                    drop(std::hint::black_box(jitter.prepare(image)));
                } else {
                    jitter.prepare(&Image::new(1, 1, vec![9; 3])?).apply(&mut tested.data);
                }
            }
            "stage:randaugment" => {
                let mut image = Image::new(224, 224, image.data[..224 * 224 * 3].to_vec())?;
                for op in finetune.rand_augment.sample(&mut key.rng()) {
                    op.apply(&mut image, finetune.rand_augment.fill)?;
                }
                std::hint::black_box(image);
            }
            _ => match operation(cell) {
                Some(op) => op.apply(&mut tested, [1, 2, 3])?,
                None => return Err(format!("there is no cell {cell}").into()),
            },
        }
    }
    std::hint::black_box(&tested);
    Ok((clock()? - start) / count as f64)
}

/// The cell `op:NAME`: one operation of RandAugment at magnitude 9, on the first image as a view of 224.
fn operation(cell: &str) -> Option<AugmentOp> {
    let name = cell.strip_prefix("op:")?;
    let kinds = beit2_data::transform::AugmentKind::ALL;
    kinds.into_iter().find(|kind| format!("{kind:?}") == name).map(|kind| kind.at(9.0, false))
}

/// What a model takes: the view in f32 `[3, 224, 224]`, standardised, its box erased. (Training does this for a batch, on
/// the device.)
fn standardised(params: &FinetuneParams, view: &Image) -> Outcome<Vec<f32>> {
    let pixels = view.data.as_chunks::<3>().0;
    let mut out = Vec::with_capacity(view.data.len());
    for channel in 0..3 {
        let (mean, scale) = ([0.485, 0.456, 0.406][channel], 1.0 / [0.229, 0.224, 0.225][channel]);
        let (factor, offset) = (scale / 255.0, -mean * scale);
        out.extend(pixels.iter().map(|pixel| f32::from(pixel[channel]) * factor + offset));
    }
    if let Some(erase) = &params.erase {
        erase.apply_chw(&mut out, view.width, view.height)?;
    }
    Ok(out)
}

/// Processor time of this thread in seconds, which others on the machine do not lengthen; the time of day where the
/// system does not tell.
fn clock() -> Outcome<f64> {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    match std::fs::read_to_string("/proc/thread-self/schedstat") {
        Ok(text) => {
            let nanoseconds = text.split_whitespace().next().ok_or("schedstat is empty")?;
            Ok(nanoseconds.parse::<u64>()? as f64 * 1e-9)
        }
        Err(_) => Ok(START.get_or_init(Instant::now).elapsed().as_secs_f64()),
    }
}
