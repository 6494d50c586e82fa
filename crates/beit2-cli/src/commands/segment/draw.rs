//! Masks, overlays and legends as files.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufWriter, Write};

use beit2::segment::SegmenterConfig;
use beit2_data::Image;
use png::{BitDepth, ColorType, Encoder};

use crate::output;

/// A PNG file whose rows are still to come.
pub type Png<'a> = png::Writer<&'a mut BufWriter<File>>;

/// The mask of a picture: one byte a pixel, the class, with the classes' colours as the palette, so that viewers show colours
/// and programs read numbers.
pub fn mask_png<'a>(
    file: &'a mut BufWriter<File>,
    image: &Image,
    palette: &[[u8; 3]],
) -> Result<Png<'a>, png::EncodingError> {
    let mut encoder = Encoder::new(file, image.width, image.height);
    encoder.set_color(ColorType::Indexed);
    encoder.set_depth(BitDepth::Eight);
    encoder.set_palette(palette.concat());
    encoder.write_header()
}

/// A picture of the size of `image`.
pub fn overlay_png<'a>(file: &'a mut BufWriter<File>, image: &Image) -> Result<Png<'a>, png::EncodingError> {
    let mut encoder = Encoder::new(file, image.width, image.height);
    encoder.set_color(ColorType::Rgb);
    encoder.set_depth(BitDepth::Eight);
    encoder.write_header()
}

/// A picture under the colours of its classes, row by row.
pub struct Overlay<'a> {
    image: &'a Image,
    palette: &'a [[u8; 3]],
    opacity: f32,
    row: usize,
    /// Classes of the row above, for the outlines.
    above: Vec<u8>,
}

impl<'a> Overlay<'a> {
    /// `opacity` from 0 (the picture) to 1 (the colours).
    pub fn new(image: &'a Image, palette: &'a [[u8; 3]], opacity: f32) -> Self {
        Self { image, palette, opacity, row: 0, above: Vec::new() }
    }

    /// Writes the next rows, of these classes, as RGB.
    pub fn rows(&mut self, ids: &[u8], to: &mut impl Write) -> io::Result<()> {
        let width = self.image.width as usize;
        let mut line = vec![0; width * 3];
        for ids in ids.chunks_exact(width.max(1)) {
            let pixels = &self.image.data[self.row * width * 3..(self.row + 1) * width * 3];
            for (x, (to, from)) in line.chunks_exact_mut(3).zip(pixels.chunks_exact(3)).enumerate() {
                let class = ids[x];
                let edge =
                    (x > 0 && ids[x - 1] != class) || self.above.get(x).is_some_and(|&above| above != class);
                // Outlines in the full colour tell neighbours apart where colour and picture are alike.
                let opacity = if edge { 1.0 } else { self.opacity };
                let colour = self.palette.get(class as usize).copied().unwrap_or([0; 3]);
                for ((to, &from), colour) in to.iter_mut().zip(from).zip(colour) {
                    *to = (f32::from(from) * (1.0 - opacity) + f32::from(colour) * opacity).round() as u8;
                }
            }
            to.write_all(&line)?;
            self.above = ids.to_vec();
            self.row += 1;
        }
        Ok(())
    }
}

/// Class numbers, names and colours as a table.
pub fn legend_csv(config: &SegmenterConfig) -> String {
    let mut text = "class,name,colour\n".to_owned();
    for (class, (name, colour)) in entries(config).enumerate() {
        let _ = writeln!(text, "{class},{},{}", output::csv_cell(&name), hex(colour));
    }
    text
}

/// The same as a picture to look at.
pub fn legend_svg(config: &SegmenterConfig) -> String {
    const ROW: usize = 24;
    const COLUMN: usize = 220;
    const ROWS: usize = 30;
    let count = config.classes;
    let (columns, rows) = (count.div_ceil(ROWS).max(1), count.min(ROWS));
    let (width, height) = (columns * COLUMN, rows * ROW + 8);
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    for (class, (name, colour)) in entries(config).enumerate() {
        let (x, y) = (class / ROWS * COLUMN + 8, class % ROWS * ROW + 6);
        let _ = writeln!(
            text,
            "<rect x=\"{x}\" y=\"{y}\" width=\"28\" height=\"18\" fill=\"{}\" stroke=\"#00000040\"/>\
             <text x=\"{}\" y=\"{}\">{class} {}</text>",
            hex(colour),
            x + 36,
            y + 14,
            escaped(&name)
        );
    }
    text + "</svg>\n"
}

fn entries(config: &SegmenterConfig) -> impl Iterator<Item = (String, [u8; 3])> {
    (0..config.classes).map(|class| (config.class_name(class), config.colours()[class]))
}

fn hex([r, g, b]: [u8; 3]) -> String {
    format!("#{r:02x}{g:02x}{b:02x}")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
