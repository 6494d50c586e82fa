//! What an image of a packed set costs: bytes, and milliseconds to decode, for each way to write it.
//!
//! `cargo bench --bench pack_formats -- IMAGE...` shrinks each image to a shorter side of 256 pixels, writes it in
//! every candidate form and decodes that with the crate's own decoder. One thread, the best of five rounds. The error
//! is the root mean square over all values, in levels of 255.

use std::error::Error;
use std::time::Instant;

use beit2_data::transform::resize;
use beit2_data::{DecodeOptions, Image, Interpolation, decode};
use image::ImageEncoder;
use mozjpeg::{ColorSpace, Compress};

const SIDE: u32 = 256;
const REPEATS: usize = 50;

type Encode = fn(&Image) -> Result<Vec<u8>, Box<dyn Error>>;

const CANDIDATES: [(&str, Encode); 8] = [
    ("JPEG 95, 4:4:4", |image| jpeg(image, 95.0, 1, false)),
    ("JPEG 95, 4:4:4, optimised", |image| jpeg(image, 95.0, 1, true)),
    ("JPEG 95, 4:2:0, optimised", |image| jpeg(image, 95.0, 2, true)),
    ("JPEG 90, 4:4:4, optimised", |image| jpeg(image, 90.0, 1, true)),
    ("PNG, fast", |image| png(image, png::Compression::Fast)),
    ("PNG, balanced", |image| png(image, png::Compression::Balanced)),
    ("WebP, lossless", webp),
    ("PPM", ppm),
];

fn main() -> Result<(), Box<dyn Error>> {
    let paths: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if paths.is_empty() {
        println!("pack_formats: nothing to measure; name image files after `--`");
        return Ok(());
    }
    let mut small = Vec::new();
    for path in &paths {
        let image = decode(&std::fs::read(path)?, &DecodeOptions::default())?;
        let shorter = image.shorter_side();
        let scaled = |length: u32| (u64::from(SIDE) * u64::from(length) / u64::from(shorter)) as u32;
        small.push(resize(&image, scaled(image.width), scaled(image.height), Interpolation::Bicubic)?);
    }
    println!("{} images, shorter side {SIDE}, means:", small.len());
    for (name, encode) in CANDIDATES {
        let (mut bytes, mut encoding, mut decoding, mut error) = (0, 0.0, 0.0, 0.0);
        for image in &small {
            let encoded = encode(image)?;
            bytes += encoded.len();
            let decoded = decode(&encoded, &DecodeOptions::default())?;
            let squares =
                image.data.iter().zip(&decoded.data).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2));
            error += squares.sum::<f64>() / image.data.len() as f64;
            encoding += time(|| encode(image).map(drop))?;
            decoding += time(|| decode(&encoded, &DecodeOptions::default()).map(drop).map_err(Into::into))?;
        }
        let count = small.len() as f64;
        println!(
            "  {name:<26} {:7.1} KB  write {:6.2} ms  decode {:6.3} ms  error {:5.2}",
            bytes as f64 / count / 1e3,
            encoding / count * 1e3,
            decoding / count * 1e3,
            (error / count).sqrt()
        );
    }
    Ok(())
}

fn jpeg(image: &Image, quality: f32, chroma: u8, optimised: bool) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut compress = Compress::new(ColorSpace::JCS_RGB);
    compress.set_size(image.width as usize, image.height as usize);
    compress.set_fastest_defaults();
    compress.set_optimize_coding(optimised);
    compress.set_quality(quality);
    compress.set_chroma_sampling_pixel_sizes((chroma, chroma), (chroma, chroma));
    let mut started = compress.start_compress(Vec::new())?;
    started.write_scanlines(&image.data)?;
    Ok(started.finish()?)
}

fn png(image: &Image, compression: png::Compression) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut out = Vec::new();
    let mut encoder = png::Encoder::new(&mut out, image.width, image.height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(compression);
    encoder.write_header()?.write_image_data(&image.data)?;
    Ok(out)
}

fn webp(image: &Image) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut out = Vec::new();
    let encoder = image::codecs::webp::WebPEncoder::new_lossless(&mut out);
    encoder.write_image(&image.data, image.width, image.height, image::ExtendedColorType::Rgb8)?;
    Ok(out)
}

fn ppm(image: &Image) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut out = format!("P6\n{} {}\n255\n", image.width, image.height).into_bytes();
    out.extend_from_slice(&image.data);
    Ok(out)
}

/// Seconds per call, the best of five rounds (the machine may be shared).
fn time(run: impl Fn() -> Result<(), Box<dyn Error>>) -> Result<f64, Box<dyn Error>> {
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let start = Instant::now();
        for _ in 0..REPEATS {
            run()?;
        }
        best = best.min(start.elapsed().as_secs_f64() / REPEATS as f64);
    }
    Ok(best)
}
