//! Classes over images, in colours.

use beit2_data::Image;
use beit2_data::segment::{IGNORE, LabelMap};
use beit2_run::report::RgbImage;

/// Pixels between the panels of [`compared`].
const GAP: usize = 4;

/// An image under the colours of its classes, row by row from the top.
#[derive(Debug)]
pub struct Overlay<'a> {
    image: &'a Image,
    palette: &'a [[u8; 3]],
    opacity: f32,
    row: usize,
    /// Classes of the row above, for the outlines.
    above: Vec<u8>,
}

impl<'a> Overlay<'a> {
    /// `opacity` from 0 (the image) to 1 (the colours). Outlines of classes are drawn in full colour: they tell neighbours
    /// apart where colour and image are alike. Pixels without a class stay as they are.
    pub fn new(image: &'a Image, palette: &'a [[u8; 3]], opacity: f32) -> Self {
        Self { image, palette, opacity, row: 0, above: Vec::new() }
    }

    /// The next rows, of these classes, as RGB. Rows below the image are left out.
    pub fn rows(&mut self, ids: &[u8]) -> Vec<u8> {
        let width = self.image.width as usize;
        let mut rgb = Vec::with_capacity(3 * ids.len());
        for ids in ids.chunks_exact(width.max(1)) {
            let Some(pixels) = self.image.data.chunks_exact(3 * width).nth(self.row) else { break };
            for (x, from) in pixels.chunks_exact(3).enumerate() {
                let class = ids[x];
                let left = x > 0 && ids[x - 1] != class;
                let top = self.above.get(x).is_some_and(|&above| above != class);
                let opacity = match self.palette.get(usize::from(class)) {
                    None => 0.0,
                    Some(_) if left || top => 1.0,
                    Some(_) => self.opacity,
                };
                let colour = self.palette.get(usize::from(class)).copied().unwrap_or_default();
                rgb.extend(from.iter().zip(colour).map(|(&from, colour)| {
                    (f32::from(from) * (1.0 - opacity) + f32::from(colour) * opacity).round() as u8
                }));
            }
            self.above = ids.to_vec();
            self.row += 1;
        }
        rgb
    }
}

/// An image, its mask and a prediction side by side; all of one size.
pub fn compared(image: &Image, mask: &LabelMap, found: &LabelMap, palette: &[[u8; 3]]) -> RgbImage {
    debug_assert!(palette.len() <= usize::from(IGNORE));
    let side = |map: &LabelMap| Overlay::new(image, palette, 0.6).rows(&map.data);
    let panels = [image.data.clone(), side(mask), side(found)];
    let (width, height) = (image.width as usize, image.height as usize);
    let mut rgb = Vec::new();
    for row in 0..height {
        for (at, panel) in panels.iter().enumerate() {
            if at > 0 {
                rgb.resize(rgb.len() + 3 * GAP, 255);
            }
            rgb.extend(panel.iter().skip(3 * width * row).take(3 * width));
        }
    }
    RgbImage { width: (3 * width + 2 * GAP) as u32, height: height as u32, rgb }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_lie_over_the_image_and_outlines_in_full() {
        let image = Image::new(3, 2, vec![100; 18]).unwrap();
        let palette = [[0, 0, 0], [200, 0, 100]];
        let mut overlay = Overlay::new(&image, &palette, 0.5);
        let first = overlay.rows(&[0, 0, 1]);
        assert_eq!(first, [50, 50, 50, 50, 50, 50, 200, 0, 100]);
        // An outline below another class, and a pixel without one.
        assert_eq!(overlay.rows(&[0, 1, IGNORE]), [50, 50, 50, 200, 0, 100, 100, 100, 100]);
        assert!(overlay.rows(&[0, 0, 0]).is_empty());
    }

    #[test]
    fn three_panels() {
        let image = Image::new(2, 1, vec![9; 6]).unwrap();
        let map = |id| LabelMap::new(2, 1, vec![id; 2]).unwrap();
        let image = compared(&image, &map(IGNORE), &map(0), &[[9, 9, 9]]);
        assert_eq!((image.width, image.height), (6 + 2 * GAP as u32, 1));
        assert_eq!(image.rgb.len(), 3 * image.width as usize);
    }
}
