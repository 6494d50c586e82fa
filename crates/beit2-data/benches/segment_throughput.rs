//! Training views of semantic segmentation per second and core, and where the time goes.
//!
//! `cargo bench --bench segment_throughput -- DATA [CLASSES]` takes the pairs of a folder with `images/` and
//! `masks/`; for ADE20K-like numbers give JPEGs of 683 x 512. One thread; multiply by cores.

use std::time::{Duration, Instant};

use beit2_data::segment::{SegmentDataOptions, SegmentTrainConfig, SegmentTrainParams, open_segment};
use beit2_data::{Key, RngStream, Source, decode};

const VIEWS: u64 = 300;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Cargo adds `--bench` to what the user gave.
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let Some(data) = arguments.next() else {
        println!("segment_throughput: nothing to measure; give DATA [CLASSES] after `--`");
        return Ok(());
    };
    let classes = arguments.next().map(|n| n.parse()).transpose()?;
    let source = open_segment(&data, &SegmentDataOptions { classes, ..SegmentDataOptions::default() })?;
    let config = SegmentTrainConfig::default();
    let steps = ["read and decode image", "read and decode mask", "draw parameters", "make the view"];
    let mut best = [Duration::MAX; 4];
    // The best of five rounds, because the machine may be shared.
    for _ in 0..5 {
        let mut total = [Duration::ZERO; 4];
        for number in 0..VIEWS {
            let index = number as usize % source.len();
            let key = Key { seed: 0, epoch: 0, index: number, stream: RngStream::Augment };
            let image = timed(&mut total[0], || {
                decode(&source.read(index)?, source.decode_options()).map_err(Box::from)
            })?;
            let mask = timed(&mut total[1], || source.mask(index).map_err(Box::from))?;
            let params =
                timed(&mut total[2], || SegmentTrainParams::draw(&config, &mask, &key).map_err(Box::from))?;
            timed(&mut total[3], || params.apply(&config, &image, &mask).map_err(Box::from))?;
        }
        best = std::array::from_fn(|step| best[step].min(total[step]));
    }
    for (step, time) in steps.iter().zip(best) {
        println!("{step:<24} {:7.3} ms", time.as_secs_f64() * 1e3 / VIEWS as f64);
    }
    let all: Duration = best.iter().sum();
    println!("views per second         {:7.1}", VIEWS as f64 / all.as_secs_f64());
    Ok(())
}

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn timed<T>(total: &mut Duration, run: impl FnOnce() -> Outcome<T>) -> Outcome<T> {
    let start = Instant::now();
    let result = run();
    *total += start.elapsed();
    result
}
