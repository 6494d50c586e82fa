//! Decodes files again and again and prints the time of each; `--ppm DIR` writes the pixels instead.
//!
//! `cargo run --release -p beit2-jpeg --example decode -- a.jpg b.jpg`; one thread, the best of 150 rounds.

use std::error::Error;
use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

use beit2_jpeg::{Jpeg, Region};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let target = match arguments.iter().position(|argument| argument == "--ppm") {
        Some(at) => arguments.drain(at..).nth(1),
        None => None,
    };
    for path in arguments {
        let bytes = std::fs::read(&path)?;
        let jpeg = Jpeg::open(&bytes)?;
        let (width, height) = (jpeg.width(), jpeg.height());
        if let Some(dir) = &target {
            let rgb = jpeg.decode(Region { left: 0, top: 0, width, height })?;
            let name = Path::new(&path).file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let head = format!("P6 {width} {height} 255\n").into_bytes();
            std::fs::write(Path::new(dir).join(format!("{name}.ppm")), [head, rgb].concat())?;
            continue;
        }
        let whole = Region { left: 0, top: 0, width, height };
        // A third of the area, in the middle.
        let part = Region { left: width / 5, top: height / 5, width: width * 3 / 5, height: height * 3 / 5 };
        let times = [whole, part].map(|region| {
            let rounds = (0..150).map(|_| {
                let start = Instant::now();
                for _ in 0..4 {
                    let _ = black_box(Jpeg::open(black_box(&bytes)).and_then(|jpeg| jpeg.decode(region)));
                }
                start.elapsed().as_secs_f64() / 4.0
            });
            rounds.fold(f64::INFINITY, f64::min) * 1e6
        });
        println!(
            "{path}: {width} x {height}, {} bytes: {:.0} µs, {:.0} µs for the middle third",
            bytes.len(),
            times[0],
            times[1]
        );
    }
    Ok(())
}
