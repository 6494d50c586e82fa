//! Images as PNG in data URLs.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::RgbImage;
use super::html::escape;

/// Small images are enlarged by whole pixels, at least to about this many.
const SHOWN: u32 = 128;
/// Larger images than these bytes are not of this software.
const LARGEST: usize = 256 << 20;

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
    Some(format!("data:image/png;base64,{}", STANDARD.encode(png(image)?)))
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

/// The image in a PNG file of 8-bit RGB; `None` for anything else.
pub(super) fn decode(bytes: &[u8]) -> Option<RgbImage> {
    let limits = png::Limits { bytes: LARGEST };
    let mut reader = png::Decoder::new_with_limits(std::io::Cursor::new(bytes), limits).read_info().ok()?;
    let (color, depth) = reader.output_color_type();
    let size = reader.output_buffer_size().filter(|size| *size <= LARGEST)?;
    if (color, depth) != (png::ColorType::Rgb, png::BitDepth::Eight) {
        return None;
    }
    let mut rgb = vec![0; size];
    let info = reader.next_frame(&mut rgb).ok()?;
    Some(RgbImage { width: info.width, height: info.height, rgb })
}

/// The image with its longer side at most `most` pixels, by the mean of the pixels that become one.
pub(super) fn shrunk(image: &RgbImage, most: u32) -> RgbImage {
    let longest = image.width.max(image.height);
    let bytes = 3 * u64::from(image.width) * u64::from(image.height);
    if longest <= most || most == 0 || bytes != image.rgb.len() as u64 {
        return image.clone();
    }
    let scaled = |side: u32| (u64::from(side) * u64::from(most) / u64::from(longest)).max(1) as usize;
    let (width, height) = (image.width as usize, image.height as usize);
    let (new_width, new_height) = (scaled(image.width), scaled(image.height));
    let span = |at: usize, old: usize, new: usize| at * old / new..((at + 1) * old).div_ceil(new);
    let mut rgb = Vec::with_capacity(3 * new_width * new_height);
    for y in 0..new_height {
        for x in 0..new_width {
            let (rows, columns) = (span(y, height, new_height), span(x, width, new_width));
            let count = (rows.len() * columns.len()) as u32;
            let mut sums = [0u32; 3];
            for row in rows {
                let start = 3 * (row * width + columns.start);
                for pixel in image.rgb[start..start + 3 * columns.len()].chunks_exact(3) {
                    sums.iter_mut().zip(pixel).for_each(|(sum, &value)| *sum += u32::from(value));
                }
            }
            rgb.extend(sums.map(|sum| ((sum + count / 2) / count) as u8));
        }
    }
    RgbImage { width: new_width as u32, height: new_height as u32, rgb }
}

/// Images of one size side by side; one of another size than the first becomes black.
pub(super) fn beside(images: &[RgbImage]) -> RgbImage {
    let Some(first) = images.first() else { return RgbImage::default() };
    let (width, height) = (first.width as usize, first.height as usize);
    let mut rgb = Vec::with_capacity(3 * width * height * images.len());
    for row in 0..height {
        for image in images {
            match image.rgb.get(3 * width * row..3 * width * (row + 1)) {
                Some(pixels) if image.width == first.width => rgb.extend_from_slice(pixels),
                _ => rgb.resize(rgb.len() + 3 * width, 0),
            }
        }
    }
    RgbImage { width: (width * images.len()) as u32, height: first.height, rgb }
}

/// The squares that stand side by side in an image.
pub(super) fn squares(image: &RgbImage) -> Vec<RgbImage> {
    let (width, side) = (image.width as usize, image.height as usize);
    let count = width.checked_div(side).unwrap_or(0);
    let row = |at: usize, row: usize| &image.rgb[3 * (row * width + at * side)..][..3 * side];
    let square = |at: usize| RgbImage {
        width: image.height,
        height: image.height,
        rgb: (0..side).flat_map(|y| row(at, y)).copied().collect(),
    };
    (0..count).map(square).collect()
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
    fn images_are_joined_shrunk_and_taken_apart() {
        let square = |value: u8| RgbImage { width: 2, height: 2, rgb: vec![value; 12] };
        let strip = beside(&[square(1), square(2), RgbImage::default()]);
        assert_eq!((strip.width, strip.height, &strip.rgb[..9]), (6, 2, &[1, 1, 1, 1, 1, 1, 2, 2, 2][..]));
        assert_eq!(squares(&strip), [square(1), square(2), square(0)]);
        assert_eq!(decode(&png(&strip).unwrap()).unwrap(), strip);
        let (mixed, none) = (beside(&[square(1), square(3)]), RgbImage::default());
        assert_eq!(shrunk(&mixed, 2), RgbImage { width: 2, height: 1, rgb: vec![1, 1, 1, 3, 3, 3] });
        assert_eq!(shrunk(&mixed, 3).width, 3);
        assert_eq!(
            (shrunk(&mixed, 9), shrunk(&none, 1), squares(&none)),
            (mixed.clone(), none.clone(), vec![])
        );
        assert_eq!(decode(b"no PNG"), None);
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
