//! Images as PNG in data URLs.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::RgbImage;
use super::html::escape;

/// Small images are enlarged by whole pixels, at least to about this many.
const SHOWN: u32 = 128;

/// An `<img>` shown at least `shown` pixels wide, or a grey box where the image's size and bytes do not
/// agree.
pub(super) fn img(image: &RgbImage, shown: u32, alt: &str) -> String {
    let Some(url) = data_url(image) else {
        return "<span class=\"noimage\">no image</span>".to_owned();
    };
    let factor = shown.div_ceil(image.width).max(1);
    // Enlarging shows the model's pixels as they are; shrinking should not alias.
    let class = if factor > 1 { " class=\"pixels\"" } else { "" };
    format!(
        "<img{class} src=\"{url}\" alt=\"{}\" width=\"{}\" height=\"{}\">",
        escape(alt),
        u64::from(image.width) * u64::from(factor),
        u64::from(image.height) * u64::from(factor),
    )
}

/// [`img`] in the usual size.
pub(super) fn large(image: &RgbImage, alt: &str) -> String {
    img(image, SHOWN, alt)
}

fn data_url(image: &RgbImage) -> Option<String> {
    Some(png_url(&png(image)?))
}

/// A PNG file as an address.
pub(super) fn png_url(png: &[u8]) -> String {
    format!("data:image/png;base64,{}", STANDARD.encode(png))
}

/// The image as a PNG file; `None` when it is empty or its bytes do not fit its size.
pub fn png(image: &RgbImage) -> Option<Vec<u8>> {
    let (width, height) = (image.width, image.height);
    let bytes = usize::try_from(u64::from(width).checked_mul(u64::from(height))?.checked_mul(3)?).ok()?;
    if bytes == 0 || bytes != image.rgb.len() {
        return None;
    }
    let mut png = Vec::new();
    let mut encoder = png::Encoder::new(&mut png, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::High);
    let mut writer = encoder.write_header().ok()?;
    writer.write_image_data(&image.rgb).ok()?;
    writer.finish().ok()?;
    Some(png)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_image_survives() {
        let rgb: Vec<u8> = (0..2 * 3 * 3).collect();
        let html = img(&RgbImage { width: 2, height: 3, rgb: rgb.clone() }, 4, "a \"b\"");
        assert!(html.contains("width=\"4\" height=\"6\"") && html.contains("a &quot;b&quot;"), "{html}");
        let base64 = html.split("base64,").nth(1).unwrap().split('"').next().unwrap();
        let png = STANDARD.decode(base64).unwrap();
        let mut reader = png::Decoder::new(std::io::Cursor::new(png)).read_info().unwrap();
        let mut back = vec![0; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut back).unwrap();
        assert_eq!(back, rgb);
    }

    #[test]
    fn broken_images_become_a_box() {
        for image in [
            RgbImage::default(),
            RgbImage { width: 2, height: 2, rgb: vec![0; 11] },
            RgbImage { width: u32::MAX, height: u32::MAX, rgb: vec![] },
        ] {
            assert!(large(&image, "").contains("no image"));
        }
    }
}
