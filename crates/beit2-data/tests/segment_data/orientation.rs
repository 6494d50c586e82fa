//! EXIF orientation of images that have masks.

use beit2_data::{DecodeOptions, ExifOrientation, Image, Sequence, SequenceConfig};

use super::files::{Field, TiffFile, tags};
use super::*;

/// An image of these sides as stored, with the pixels 1, 2, 3, …
fn tiff(width: u16, height: u16, orientation: u16) -> Vec<u8> {
    let mut tags = tags(width, height, 8, 1, 1, 1);
    tags.push((274, Field::Short(vec![orientation])));
    TiffFile::one(tags, vec![(1..=(width * height) as u8).collect()]).bytes()
}

/// One image and a mask of these sides.
fn pair(image: Vec<u8>, mask: (u32, u32)) -> Folder {
    let folder = Folder::new();
    let ids: Vec<u8> = (0..mask.0 * mask.1).map(|at| (at % 2) as u8).collect();
    folder.write("images/a.tif", image).write("masks/a.png", gray(mask.0, mask.1, &ids));
    folder
}

/// Size and grey values of the image as training and evaluation see it, and what the check finds.
#[allow(clippy::type_complexity)] // sizes and pixels, and the warnings
fn seen(folder: &Folder, exif: ExifOrientation) -> (Result<(u32, u32, Vec<u8>), String>, Vec<String>) {
    let decode = DecodeOptions { exif, ..DecodeOptions::default() };
    let source = folder.open("", &SegmentDataOptions { decode: decode.clone(), ..classes(2) });
    let work = |image: &Image| Ok::<_, String>(image.clone());
    let config = SequenceConfig { decode, ..SequenceConfig::default() };
    let one = Sequence::new(config, source.clone(), work).unwrap().next().unwrap();
    let image =
        one.item.map(|image| (image.width, image.height, image.data.into_iter().step_by(3).collect()));
    let findings = checked(&source).findings;
    (image, findings.into_iter().map(|finding| finding.sentence).collect())
}

#[test]
fn an_image_is_turned_only_where_its_mask_fits() {
    // Stored 3 x 2, seen 2 x 3.
    let upright = pair(tiff(3, 2, 6), (2, 3));
    assert_eq!(seen(&upright, ExifOrientation::Apply), (Ok((2, 3, vec![4, 1, 5, 2, 6, 3])), vec![]));
    let stored = pair(tiff(3, 2, 6), (3, 2));
    assert_eq!(seen(&stored, ExifOrientation::Apply), (Ok((3, 2, vec![1, 2, 3, 4, 5, 6])), vec![]));
    assert_eq!(seen(&stored, ExifOrientation::Ignore), (Ok((3, 2, vec![1, 2, 3, 4, 5, 6])), vec![]));
    let (image, findings) = seen(&upright, ExifOrientation::Ignore);
    assert_eq!(image.unwrap().0, 3);
    assert!(
        findings[0].contains("a.tif is 3 x 2; the sides are exchanged: turn the mask or the image"),
        "{findings:?}"
    );
}

#[test]
fn a_mask_that_fits_both_ways_is_an_error() {
    for (image, mask) in [(tiff(2, 2, 6), (2, 2)), (tiff(3, 2, 3), (3, 2)), (tiff(3, 2, 2), (3, 2))] {
        let folder = pair(image, mask);
        let (image, findings) = seen(&folder, ExifOrientation::Apply);
        let sentence = image.unwrap_err();
        assert!(
            sentence.contains("would fit it turned or as stored; set data.exif = \"ignore\""),
            "{sentence}"
        );
        assert!(findings[0].contains("a.tif: ") && findings[0].ends_with(&sentence), "{findings:?}");
        assert!(seen(&folder, ExifOrientation::Ignore).0.is_ok());
    }
    assert!(seen(&pair(tiff(2, 2, 1), (2, 2)), ExifOrientation::Apply).0.is_ok());
}
