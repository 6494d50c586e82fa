//! Images with masks.

#![allow(dead_code, clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::Path;

use png::{BitDepth, ColorType};

/// Width and height of a scene.
pub const SIZE: (usize, usize) = (72, 66);

/// A PNG of whatever type.
pub fn png(path: &Path, (width, height): (usize, usize), color: ColorType, depth: BitDepth, data: &[u8]) {
    let mut encoder =
        png::Encoder::new(BufWriter::new(File::create(path).unwrap()), width as u32, height as u32);
    encoder.set_color(color);
    encoder.set_depth(depth);
    if color == ColorType::Indexed {
        encoder.set_palette(vec![0x20, 0x20, 0x20, 255, 128, 0]);
    }
    encoder.write_header().unwrap().write_image_data(data).unwrap();
}

/// Bright boxes on dark ground, and where they are.
pub fn scenes(dir: &Path, count: usize) {
    for folder in ["images", "masks"] {
        fs::create_dir_all(dir.join(folder)).unwrap();
    }
    fs::write(dir.join("classes.txt"), "ground\t#202020\nbox\t#ff8000\n").unwrap();
    let (width, height) = SIZE;
    for number in 0..count {
        let (top, left) = (4 + number * 5 % 27, 4 + number * 11 % 31);
        let mut ppm = format!("P6 {width} {height} 255\n").into_bytes();
        let mut ids = Vec::new();
        for at in 0..width * height {
            let (y, x) = (at / width, at % width);
            let hit = (top..top + 24).contains(&y) && (left..left + 28).contains(&x);
            ppm.extend((0..3).map(|c| (at * (7 + c) % 40) as u8 + if hit { 170 } else { 20 }));
            ids.push(u8::from(hit));
        }
        fs::write(dir.join(format!("images/{number:03}.ppm")), ppm).unwrap();
        let mask = dir.join(format!("masks/{number:03}.png"));
        png(&mask, SIZE, ColorType::Indexed, BitDepth::Eight, &ids);
    }
}
