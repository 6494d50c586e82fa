//! Kinds of TIFF files.

use std::io::Cursor;

use beit2_data::{DecodeOptions, decode, decode_with_facts};
use tiff::encoder::{Compression, TiffEncoder, colortype};

use super::files::{BIG, Field, LITTLE, TiffFile, colors, grays, plain, refused, tags};

/// `tags` with one replaced or added.
fn tags_with(mut tags: Vec<(u16, Field)>, more: Vec<(u16, Field)>) -> Vec<(u16, Field)> {
    tags.retain(|(tag, _)| more.iter().all(|(other, _)| other != tag));
    tags.extend(more);
    tags
}

fn short(value: u16) -> Field {
    Field::Short(vec![value])
}

#[test]
fn both_byte_orders_and_bigtiff() {
    for (big_endian, bigtiff) in [(LITTLE, false), (BIG, false), (LITTLE, true), (BIG, true)] {
        let values = [0u16, 257, 65535, 514];
        let data =
            values.iter().flat_map(|v| if big_endian { v.to_be_bytes() } else { v.to_le_bytes() }).collect();
        let pages = vec![(tags(2, 2, 16, 1, 1, 1), vec![data])];
        let bytes = TiffFile { big_endian, bigtiff, pages }.bytes();
        assert_eq!(grays(&bytes, "full"), [0, 1, 255, 2], "{big_endian} {bigtiff}");
    }
}

#[test]
fn the_first_page_is_used_and_pages_are_counted() {
    let page = |level: u8| (tags(2, 1, 8, 1, 1, 1), vec![vec![level; 2]]);
    let mut pages = vec![page(7), page(8), page(9)];
    // A smaller copy and a mask are no pages.
    for subfile in [1, 4] {
        pages.push((
            tags_with(tags(1, 1, 8, 1, 1, 1), vec![(254, Field::Long(vec![subfile]))]),
            vec![vec![1]],
        ));
    }
    let bytes = TiffFile { big_endian: LITTLE, bigtiff: false, pages }.bytes();
    let (image, facts) = decode_with_facts(&bytes, &DecodeOptions::default()).unwrap();
    assert_eq!((image.data, facts.pages, facts.format), (vec![7; 6], 3, "TIFF"));
}

#[test]
fn palettes_and_few_bits() {
    let map = |entries: &[[u8; 3]], size: usize| -> Field {
        let channel =
            |c: usize| (0..size).map(move |at| u16::from(entries.get(at).map_or(0, |e| e[c])) * 257);
        Field::Short((0..3).flat_map(channel).collect())
    };
    let entries = [[0, 0, 0], [255, 0, 0], [1, 2, 3], [9, 8, 7]];
    let file = |bits: u16, data: Vec<u8>| {
        let tags = tags_with(tags(3, 1, bits, 3, 1, 1), vec![(320, map(&entries, 1 << bits))]);
        TiffFile::one(tags, vec![data]).bytes()
    };
    let expected = [255, 0, 0, 9, 8, 7, 1, 2, 3];
    assert_eq!(colors(&file(8, vec![1, 3, 2]), "auto"), expected);
    assert_eq!(colors(&file(4, vec![0x13, 0x20]), "auto"), expected);
    assert_eq!(colors(&file(2, vec![0b01_11_10_00]), "auto"), expected);
    // Alpha behind the index, as Pillow writes it.
    let tags = tags_with(tags(3, 1, 8, 3, 2, 1), vec![(320, map(&entries, 256)), (338, short(2))]);
    assert_eq!(colors(&TiffFile::one(tags, vec![vec![1, 0, 3, 255, 2, 9]]).bytes(), "auto"), expected);
    // Grey of 1, 2 and 4 bits; 0 is black, or white.
    assert_eq!(grays(&plain((9, 1), 1, 1, 1, 1, vec![0b1010_0000, 0x80]), "auto")[..4], [255, 0, 255, 0]);
    assert_eq!(grays(&plain((9, 1), 1, 1, 1, 1, vec![0b1010_0000, 0x80]), "auto")[8], 255);
    assert_eq!(grays(&plain((3, 1), 1, 0, 1, 1, vec![0b1010_0000]), "auto"), [0, 255, 0]);
    assert_eq!(grays(&plain((3, 1), 2, 1, 1, 1, vec![0b00_10_11_00]), "auto"), [0, 170, 255]);
    assert_eq!(grays(&plain((3, 1), 4, 1, 1, 1, vec![0x0F, 0x80]), "auto"), [0, 255, 136]);
    assert_eq!(grays(&plain((2, 1), 8, 0, 1, 1, vec![0, 200]), "auto"), [255, 55]);
    let white16 = plain((2, 1), 16, 0, 1, 1, [65535u16, 257].iter().flat_map(|v| v.to_le_bytes()).collect());
    assert_eq!(grays(&white16, "full"), [0, 254]);
}

#[test]
fn tiles_and_planes() {
    // 4 x 3 pixels in tiles of 16 x 16.
    let mut tile = vec![0; 256];
    for y in 0..3 {
        (0..4).for_each(|x| tile[16 * y + x] = (10 * y + x) as u8);
    }
    let tiled = vec![(322, short(16)), (323, short(16))];
    let mut all = tags_with(tags(4, 3, 8, 1, 1, 1), tiled);
    all.retain(|(tag, _)| *tag != 278);
    let bytes = TiffFile::one(all, vec![tile]).bytes();
    assert_eq!(grays(&bytes, "auto"), [0, 1, 2, 3, 10, 11, 12, 13, 20, 21, 22, 23]);
    // Tiles over the edge in planes, and compressed ones whose padding is data too.
    let one = |value: u8| vec![value; 256];
    let mut all =
        tags_with(tags(20, 1, 8, 2, 3, 1), vec![(322, short(16)), (323, short(16)), (284, short(2))]);
    all.retain(|(tag, _)| *tag != 278);
    let bytes = TiffFile::one(all, (1..=6).map(one).collect()).bytes();
    let expected: Vec<u8> = [[1, 3, 5]; 16].into_iter().chain([[2, 4, 6]; 4]).flatten().collect();
    assert_eq!(colors(&bytes, "auto"), expected);
    let planar = tags_with(tags(2, 1, 8, 2, 3, 1), vec![(284, short(2))]);
    let bytes = TiffFile::one(planar, vec![vec![1, 2], vec![3, 4], vec![5, 6]]).bytes();
    assert_eq!(colors(&bytes, "auto"), [1, 3, 5, 2, 4, 6]);
}

#[test]
fn inks_and_ycbcr() {
    // Pillow 13: Image.new("CMYK", (1, 1), (55, 155, 205, 127)).convert("RGB").
    assert_eq!(colors(&plain((1, 1), 8, 5, 4, 1, vec![55, 155, 205, 127]), "auto"), [100, 50, 25]);
    let full = tags_with(tags(2, 1, 8, 6, 3, 1), vec![(530, Field::Short(vec![1, 1]))]);
    let bytes = TiffFile::one(full, vec![vec![128, 128, 128, 76, 85, 255]]).bytes();
    assert_eq!(colors(&bytes, "auto"), [128, 128, 128, 254, 0, 0]);
    let half = TiffFile::one(tags(2, 2, 8, 6, 3, 1), vec![vec![128; 6]]).bytes();
    assert_eq!(
        refused(&half, "auto"),
        "the image has subsampled YCbCr (without JPEG compression) pixels, which beit2 cannot read; save it as 8-bit or \
         16-bit grey or RGB"
    );
}

#[test]
fn compressed_files_with_extra_bands_keep_their_colours() {
    // The predictor runs over all samples of a pixel, the extra one too.
    let pixels: Vec<u8> = (0..4 * 5 * 3).map(|at| (at * 37 % 251) as u8).collect();
    let expected: Vec<u8> = pixels.as_chunks::<4>().0.iter().flat_map(|&[r, g, b, _]| [r, g, b]).collect();
    let mut rows = Vec::new();
    for row in pixels.chunks(20) {
        rows.extend(
            row.iter().enumerate().map(|(at, &v)| if at < 4 { v } else { v.wrapping_sub(row[at - 4]) }),
        );
    }
    let deflated = {
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        std::io::Write::write_all(&mut encoder, &rows).unwrap();
        encoder.finish().unwrap()
    };
    let more = vec![(259, short(8)), (317, short(2)), (338, short(0))];
    let bytes = TiffFile::one(tags_with(tags(5, 3, 8, 2, 4, 1), more), vec![deflated]).bytes();
    assert_eq!(colors(&bytes, "auto"), expected);
}

#[test]
fn files_of_a_common_encoder() {
    let rgb: Vec<u16> = (0..30 * 20 * 3u32).map(|at| ((at * 7919) % 256 * 257) as u16).collect();
    let expected: Vec<u8> = rgb.iter().map(|&v| (v / 257) as u8).collect();
    for compression in [
        Compression::Uncompressed,
        Compression::Lzw,
        Compression::Deflate(Default::default()),
        Compression::Packbits,
    ] {
        let mut out = Cursor::new(Vec::new());
        let mut encoder = TiffEncoder::new(&mut out).unwrap().with_compression(compression);
        encoder.write_image::<colortype::RGB16>(30, 20, &rgb).unwrap();
        assert_eq!(colors(out.get_ref(), "full"), expected);
    }
    let mut out = Cursor::new(Vec::new());
    let mut encoder = TiffEncoder::new_big(&mut out).unwrap();
    encoder.write_image::<colortype::Gray32Float>(2, 1, &[0.0, 0.5]).unwrap();
    encoder.write_image::<colortype::Gray8>(1, 1, &[1]).unwrap();
    assert_eq!(grays(out.get_ref(), "full"), [0, 128]);
    assert_eq!(decode_with_facts(out.get_ref(), &super::files::with("full")).unwrap().1.pages, 2);
}

#[test]
fn kinds_that_are_not_read_get_one_clear_sentence() {
    let bands = plain((1, 1), 8, 1, 5, 1, vec![0; 5]);
    assert_eq!(
        refused(&bands, "auto"),
        "the image has 5 bands of no stated colour, but grey, RGB or CMYK was expected; for a model of 5 bands set in_chans = 5"
    );
    assert!(refused(&plain((1, 1), 8, 8, 3, 1, vec![0; 3]), "auto").contains("CIE L*a*b*"));
    assert!(
        refused(&plain((2, 1), 12, 1, 1, 1, vec![0; 3]), "auto")
            .contains("this kind of TIFF file cannot be read")
    );
    let lerc =
        TiffFile::one(tags_with(tags(1, 1, 8, 1, 1, 1), vec![(259, short(34887))]), vec![vec![0]]).bytes();
    assert!(
        refused(&lerc, "auto").contains("save it as PNG, or as TIFF with LZW or deflate"),
        "{}",
        refused(&lerc, "auto")
    );
    let preview = tags_with(tags(1, 1, 8, 1, 1, 1), vec![(254, Field::Long(vec![1]))]);
    assert!(refused(&TiffFile::one(preview, vec![vec![0]]).bytes(), "auto").contains("camera raw"));
}

#[test]
fn cut_or_damaged_files_never_panic() {
    let data: Vec<u8> = (0..64).collect();
    for (big_endian, bigtiff) in [(LITTLE, false), (BIG, true)] {
        let page =
            tags_with(tags(8, 8, 8, 3, 1, 1), vec![(320, Field::Short(vec![9; 768])), (274, short(6))]);
        let bytes = TiffFile { big_endian, bigtiff, pages: vec![(page, vec![data.clone()])] }.bytes();
        let whole = decode(&bytes, &DecodeOptions::default()).unwrap();
        for length in 0..bytes.len() {
            if let Ok(cut) = decode(&bytes[..length], &DecodeOptions::default()) {
                assert_eq!(cut, whole);
            }
        }
        for position in 0..bytes.len() {
            for flip in [0xFF, 0x01, 0x80] {
                let mut damaged = bytes.clone();
                damaged[position] ^= flip;
                let _ = decode(&damaged, &DecodeOptions { max_pixels: 1 << 20, ..DecodeOptions::default() });
            }
        }
    }
}
