//! Left-right flip.

use crate::image::Image;

/// Mirrors an image left to right, in place. Shape `[height, width, 3]`.
pub fn flip_horizontal(image: &mut Image) {
    let row_bytes = image.width as usize * 3;
    if row_bytes == 0 {
        return;
    }
    for row in image.data.chunks_exact_mut(row_bytes) {
        let (pixels, _) = row.as_chunks_mut::<3>();
        pixels.reverse();
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
