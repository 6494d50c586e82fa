//! Images per second and core of decoding, the two-view transform and the fine-tuning transform.
//!
//! `cargo bench --bench throughput -- IMAGE...` measures each file; for ImageNet-like numbers give a JPEG of
//! 500 x 375. One thread; multiply by cores.

use std::time::Instant;

use beit2_data::transform::crop_resize;
use beit2_data::{
    DecodeOptions, FinetuneConfig, FinetuneParams, Key, RngStream, TwoViewConfig, ViewParams, decode,
};

const REPEATS: u64 = 200;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Cargo adds `--bench` to what the user gave.
    let paths: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if paths.is_empty() {
        println!("throughput: nothing to measure; name image files after `--`");
    }
    for path in paths {
        let bytes = std::fs::read(&path)?;
        let image = decode(&bytes, &DecodeOptions::default())?;
        println!("{path}: {} x {}, {} bytes", image.width, image.height, bytes.len());
        let decoding = time(|_| decode(&bytes, &DecodeOptions::default()).map(drop).map_err(Into::into))?;
        report("decode", decoding);
        for size in [64, 224] {
            for color_jitter in [0.0, 0.4] {
                let config = TwoViewConfig {
                    input_size: size,
                    second_size: size,
                    color_jitter,
                    ..TwoViewConfig::default()
                };
                let views = time(|index| {
                    let key = Key { seed: 0, epoch: 0, index, stream: RngStream::Augment };
                    let params = ViewParams::draw(&config, image.width, image.height, &key);
                    params.apply(&config, &image).map(drop).map_err(Into::into)
                })?;
                report(&format!("views at {size}, jitter {color_jitter}"), views);
                report(&format!("decode + views at {size}, jitter {color_jitter}"), decoding + views);
            }
            let config = FinetuneConfig { input_size: size, ..FinetuneConfig::default() };
            let training = time(|index| {
                let key = Key { seed: 0, epoch: 0, index, stream: RngStream::Augment };
                let params = FinetuneParams::draw(&config, image.width, image.height, &key);
                params.apply(&config, &image).map(drop).map_err(Into::into)
            })?;
            report(&format!("fine-tuning at {size}, RandAugment"), training);
            let resize = time(|index| {
                let key = Key { seed: 0, epoch: 0, index, stream: RngStream::Augment };
                let config = TwoViewConfig { color_jitter: 0.0, ..TwoViewConfig::default() };
                let area = ViewParams::draw(&config, image.width, image.height, &key).crop;
                crop_resize(&image, area, size, size, config.interpolation).map(drop).map_err(Into::into)
            })?;
            report(&format!("crop and resize to {size}"), resize);
        }
    }
    Ok(())
}

/// Seconds per call, the best of five rounds (the machine may be shared).
fn time(
    run: impl Fn(u64) -> Result<(), Box<dyn std::error::Error>>,
) -> Result<f64, Box<dyn std::error::Error>> {
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let start = Instant::now();
        for index in 0..REPEATS {
            run(index)?;
        }
        best = best.min(start.elapsed().as_secs_f64() / REPEATS as f64);
    }
    Ok(best)
}

fn report(what: &str, seconds: f64) {
    println!("  {what:<36} {:7.3} ms {:7.0} images/s", seconds * 1e3, 1.0 / seconds);
}
