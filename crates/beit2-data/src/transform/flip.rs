//! Left-right flip.

use crate::image::Image;
use crate::transform::rows::mirror;

/// Mirrors an image left to right, in place. Shape `[height, width, channels]`.
pub fn flip_horizontal(image: &mut Image) {
    let channels = image.channels as usize;
    let row_bytes = image.width as usize * channels;
    if row_bytes == 0 {
        return;
    }
    let mut before = Vec::with_capacity(row_bytes);
    for row in image.data.chunks_exact_mut(row_bytes) {
        if channels == 3 {
            before.clear();
            before.extend_from_slice(row);
            mirror(&before, row);
            continue;
        }
        // Every value mirrored, then every pixel mirrored back.
        row.reverse();
        row.chunks_exact_mut(channels).for_each(<[u8]>::reverse);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_each_row() {
        let mut image = Image::new(2, 2, vec![1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]).unwrap();
        flip_horizontal(&mut image);
        assert_eq!(image.data, [4, 5, 6, 1, 2, 3, 10, 11, 12, 7, 8, 9]);
    }
}
