//! Masks, overlays and legends as files.

use std::fmt::Write as _;

use beit2::segment::SegmenterConfig;
use beit2_data::Image;
use beit2_run::atomic::AtomicFile;
use beit2_run::csv_cell;
use png::{BitDepth, ColorType, Encoder};

/// A PNG file whose rows are still to come.
pub type Png<'a> = png::Writer<&'a mut AtomicFile>;

/// The mask of an image: one byte a pixel, the class, with the classes' colours as the palette, so that viewers show colours
/// and programs read numbers.
pub fn mask_png<'a>(
    file: &'a mut AtomicFile,
    image: &Image,
    palette: &[[u8; 3]],
) -> Result<Png<'a>, png::EncodingError> {
    let mut encoder = Encoder::new(file, image.width, image.height);
    encoder.set_color(ColorType::Indexed);
    encoder.set_depth(BitDepth::Eight);
    encoder.set_palette(palette.concat());
    encoder.write_header()
}

/// An image of the size of `image`.
pub fn overlay_png<'a>(file: &'a mut AtomicFile, image: &Image) -> Result<Png<'a>, png::EncodingError> {
    let mut encoder = Encoder::new(file, image.width, image.height);
    encoder.set_color(ColorType::Rgb);
    encoder.set_depth(BitDepth::Eight);
    encoder.write_header()
}

/// Class numbers, names and colours as a table.
pub fn legend_csv(config: &SegmenterConfig) -> String {
    let mut text = "class,name,colour\n".to_owned();
    for (class, (name, colour)) in entries(config).enumerate() {
        let _ = writeln!(text, "{class},{},{}", csv_cell(&name), hex(colour));
    }
    text
}

/// The same as an image to look at.
pub fn legend_svg(config: &SegmenterConfig) -> String {
    const ROW: usize = 24;
    const COLUMN: usize = 220;
    const ROWS: usize = 30;
    let count = config.class_count();
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
    (0..config.class_count()).map(|class| (config.class_name(class), config.colours()[class]))
}

fn hex([r, g, b]: [u8; 3]) -> String {
    format!("#{r:02x}{g:02x}{b:02x}")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
