//! Folders of images and masks as users have them: layouts, class lists, formats of masks, and what the
//! data check says about everything that can be wrong.
#![allow(clippy::unwrap_used)]

mod common;
#[allow(dead_code)]
#[path = "decoding/files.rs"]
mod files;
#[path = "segment_data/orientation.rs"]
mod orientation;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use beit2_data::classes::Target;
use beit2_data::segment::{
    CheckConfig, DataReport, FindingKind, IGNORE, ReduceZeroLabel, SegmentDataOptions, SegmentSource, check,
    class_color, open_segment,
};
use beit2_data::{Loader, LoaderConfig, Source};
use common::{noise, ppm};
use png::{BitDepth, ColorType};
use tempfile::TempDir;

/// A folder that is filled file by file.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> &Self {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
        self
    }

    fn image(&self, name: &str, width: u32, height: u32) -> &Self {
        self.write(name, ppm(&noise(width, height, 1)))
    }

    /// An image of 4 x 2 pixels and its gray mask.
    fn pair(&self, image: &str, mask: &str, ids: [u8; 8]) -> &Self {
        self.image(image, 4, 2).write(mask, gray(4, 2, &ids))
    }

    fn open(&self, name: &str, options: &SegmentDataOptions) -> Arc<SegmentSource> {
        open_segment(&self.text(name), options).unwrap()
    }

    /// The error's sentence, without the place of the folder.
    fn error(&self, name: &str, options: &SegmentDataOptions) -> String {
        let error = open_segment(&self.text(name), options).err().unwrap().to_string();
        error
            .replace(&format!("{}/", self.0.path().display()), "")
            .replace(&self.text(""), "")
            .replace(&self.0.path().display().to_string(), "ROOT")
    }
}

fn png(
    width: u32,
    height: u32,
    color: ColorType,
    depth: BitDepth,
    palette: Option<&[u8]>,
    data: &[u8],
) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(color);
    encoder.set_depth(depth);
    if let Some(palette) = palette {
        encoder.set_palette(palette.to_vec());
    }
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(data).unwrap();
    writer.finish().unwrap();
    bytes
}

fn gray(width: u32, height: u32, ids: &[u8]) -> Vec<u8> {
    png(width, height, ColorType::Grayscale, BitDepth::Eight, None, ids)
}

fn palette(ids: [u8; 8], colors: &[u8]) -> Vec<u8> {
    png(4, 2, ColorType::Indexed, BitDepth::Eight, Some(colors), &ids)
}

fn rgb(colors: [[u8; 3]; 8]) -> Vec<u8> {
    png(4, 2, ColorType::Rgb, BitDepth::Eight, None, colors.as_flattened())
}

fn classes(n: usize) -> SegmentDataOptions {
    SegmentDataOptions { classes: Some(n), ..SegmentDataOptions::default() }
}

fn checked(source: &Arc<SegmentSource>) -> DataReport {
    check(source, &CheckConfig::default(), |_| {}, || false).unwrap()
}

/// What the check says about one mask of 4 x 2 pixels beside the given class list.
fn verdict(list: &str, mask: impl AsRef<[u8]>) -> Result<Vec<u8>, (FindingKind, String)> {
    let folder = Folder::new();
    folder.image("images/a.ppm", 4, 2).write("masks/a.png", mask).write("classes.txt", list);
    let source = folder.open("", &SegmentDataOptions::default());
    let report = checked(&source);
    match report.findings.as_slice() {
        [] => Ok(source.mask(0).unwrap().data),
        [finding] => {
            let at = folder.text("masks/a.png");
            // The check and a single read say the same, except about the size.
            if finding.kind != FindingKind::Size {
                assert_eq!(source.mask(0).unwrap_err().to_string(), finding.sentence);
            }
            let rest = finding.sentence.strip_prefix(&at).unwrap().strip_prefix(": ").unwrap();
            Err((finding.kind, rest.replace(&folder.text("images"), "images")))
        }
        more => panic!("{more:?}"),
    }
}

#[test]
fn layout_of_ade20k() {
    let folder = Folder::new();
    folder.pair("ade/images/training/b.ppm", "ade/annotations/training/b.png", [0, 1, 2, 150, 255, 1, 1, 1]);
    folder.pair("ade/images/training/a.ppm", "ade/annotations/training/a.png", [3; 8]);
    folder.pair("ade/images/validation/c.ppm", "ade/annotations/validation/c.png", [1; 8]);
    let plain = SegmentDataOptions::default();
    let training = SegmentDataOptions { split: Some("training".into()), ..plain.clone() };
    let source = folder.open("ade/images/training", &plain);
    assert_eq!((source.len(), source.class_names().len(), source.is_ade20k()), (2, 150, true));
    assert_eq!(
        (source.class_names()[0].as_str(), source.class_names()[149].as_str()),
        ("class 1", "class 150")
    );
    assert!(source.name(1).ends_with("b.ppm") && source.mask_name(1).ends_with("annotations/training/b.png"));
    assert_eq!(source.mask(1).unwrap().data, [IGNORE, 0, 1, 149, IGNORE, 0, 0, 0]);
    assert_eq!(source.label(0), None);
    for (path, options) in [("ade", &training), ("ade/images", &training), ("ade/images/training", &training)]
    {
        assert_eq!(folder.open(path, options).fingerprint(), source.fingerprint(), "{path}");
    }
    assert_eq!(folder.open("ade/images/validation", &plain).len(), 1);
    let sentence = "ade: it has splits; choose one of training, validation (split), or give the path to it";
    assert_eq!(folder.error("ade", &plain), sentence);
    let other = SegmentDataOptions { split: Some("test".into()), ..plain.clone() };
    assert_eq!(folder.error("ade", &other), "ade/images: no 'test' in it; it has training, validation");
    assert!(folder.error("ade/images/validation", &training).contains("names 'validation' already"));

    folder.write("ade/objectInfo150.txt", "Idx\tName\n1\twall, brick wall\n2\tsky\n3\ttree\n");
    let source = folder.open("ade/images/training", &plain);
    assert_eq!(source.class_names(), ["wall", "sky", "tree"]);
    let report = checked(&source);
    assert_eq!((report.problems, report.by_kind[&FindingKind::IdOutside]), (1, 1));
    assert!(report.findings[0].sentence.ends_with(
        "b.png: pixel (3, 0) has the id 150; 3 classes have the ids 1 to 3, and 0 and 255 are ignored; masks.map = \"150=ID\" (--map) makes it another id"
    ));
    let kept = SegmentDataOptions { reduce_zero_label: ReduceZeroLabel::No, classes: None, ..plain };
    assert_eq!(folder.open("ade/images/validation", &kept).mask(0).unwrap().data, [1; 8]);
}

#[test]
fn generic_layouts() {
    for masks in ["masks", "annotations", "labels"] {
        let folder = Folder::new();
        folder.pair("images/x/1.a.ppm", &format!("{masks}/x/1.a.png"), [0, 1, 2, 255, 0, 0, 0, 0]);
        folder.pair("images/2.ppm", &format!("{masks}/2.png"), [1; 8]);
        folder.write(&format!("{masks}/readme.txt"), "not a mask").write("classes.txt", "sea\nland\nice\n");
        let source = folder.open("", &SegmentDataOptions::default());
        assert_eq!((source.len(), source.is_ade20k()), (2, false));
        assert_eq!(source.classes(), ["sea", "land", "ice"]);
        assert_eq!(source.palette(), [0, 1, 2].map(class_color));
        assert!(source.name(0).ends_with("images/2.ppm") && source.name(1).ends_with("images/x/1.a.ppm"));
        assert_eq!(source.mask(1).unwrap().data, [0, 1, 2, IGNORE, 0, 0, 0, 0]);
        assert!(checked(&source).is_sound());
        assert_eq!(folder.open("images/x", &SegmentDataOptions::default()).len(), 1);
        assert_eq!(source.name(2), "");
        assert!(source.mask(2).unwrap_err().to_string().contains("has 2"));
    }
}

#[test]
fn splits_of_generic_data_are_not_mixed() {
    let folder = Folder::new();
    folder.pair("images/train/1.ppm", "masks/train/1.png", [0; 8]);
    folder.pair("images/val/2.ppm", "masks/val/2.png", [0; 8]);
    assert!(folder.error("", &classes(2)).contains("it has splits; choose one of train, val"));
    let val = SegmentDataOptions { split: Some("val".into()), ..classes(2) };
    assert!(folder.open("", &val).name(0).ends_with("2.ppm"));
    std::fs::remove_dir_all(folder.path("masks/val")).unwrap();
    assert!(
        folder.error("", &val).contains("masks/val: there is images/val, but no such folder for the masks")
    );
}

#[test]
fn folders_that_are_not_arranged_right() {
    let folder = Folder::new();
    folder.write("file", "x").image("images/1.ppm", 4, 2);
    let two = classes(2);
    assert!(folder.error("nowhere", &two).starts_with("nowhere: cannot open it (No such file"));
    assert!(folder.error("file", &two).starts_with("file: not a folder; a folder with images/ and masks/"));
    assert!(
        folder.error("", &two).contains("there is images/, but none of masks/, annotations/ and labels/")
    );
    assert!(folder.error("images", &two).starts_with("images: no images/ in it; a folder with"));
    folder.write("masks/2.png", gray(4, 2, &[0; 8]));
    assert!(folder.error("", &two).contains("no image has a mask of the same name below masks"));
    folder.write("masks/1.png", gray(4, 2, &[0; 8])).write("masks/1.tif", "x");
    assert!(folder.error("", &two).contains("1.png and 1.tif are masks of the same image"));
    std::fs::remove_file(folder.path("masks/1.tif")).unwrap();
    folder.image("images/1.pnm", 4, 2);
    assert!(folder.error("", &two).contains("1.pnm and 1.ppm would have the same mask"));
    folder.write("labels/1.png", "x");
    assert!(folder.error("", &two).contains("both masks/ and labels/ could be the masks"));
    let empty = Folder::new();
    std::fs::create_dir_all(empty.path("images")).unwrap();
    std::fs::create_dir_all(empty.path("masks")).unwrap();
    assert!(empty.error("", &two).contains("images: no images in it; it is empty"));
}

#[test]
fn another_list_numbers_the_classes_by_their_names() {
    let folder = Folder::new();
    folder.pair("images/1.ppm", "masks/1.png", [0, 1, 0, 1, 255, 1, 0, 0]).write("classes.txt", "sea\nsky");
    let source = folder.open("", &SegmentDataOptions::default());
    let by = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        source.numbered_by("data", Target { owner: "model", count: names.len(), names: &names })
    };
    let sky_first = by(&["sky", "sand", "sea"]).unwrap();
    assert_eq!(sky_first.mask(0).unwrap().data, [2, 0, 2, 0, 255, 0, 2, 2]);
    assert_eq!(sky_first.class_names(), ["sky", "sand", "sea"]);
    assert_ne!(sky_first.fingerprint(), source.fingerprint());
    let same = by(&["sea", "sky"]).unwrap();
    assert_eq!((same.mask(0).unwrap(), same.fingerprint()), (source.mask(0).unwrap(), source.fingerprint()));
    let error = by(&["sea", "land"]).err().unwrap().to_string();
    assert_eq!(error, "data has the class `sky`, which model does not have; its classes are `sea`, `land`");
    // Numbers are by position.
    assert_eq!(by(&["class 0", "class 1"]).unwrap().mask(0).unwrap(), source.mask(0).unwrap());
    assert!(by(&["class 0", "class 1", "class 2"]).is_err());
}

#[test]
fn numbers_of_classes() {
    let folder = Folder::new();
    folder.pair("images/1.ppm", "masks/1.png", [0; 8]);
    let none = SegmentDataOptions::default();
    assert!(
        folder.error("", &none).contains("the classes are not known: add classes.txt with one class a line")
    );
    assert!(folder.error("", &classes(0)).contains("0 classes; 8-bit masks tell 1 to 255 apart"));
    assert!(folder.error("", &classes(256)).contains("256 classes; 8-bit masks tell 1 to 255 apart"));
    let reduced = SegmentDataOptions { reduce_zero_label: ReduceZeroLabel::Yes, ..classes(255) };
    assert!(folder.error("", &reduced).contains("1 to 254 apart"));
    assert_eq!(folder.open("", &classes(255)).class_names()[254], "class 254");
    folder.write("list.txt", "a\nb");
    let elsewhere = SegmentDataOptions { class_list: Some(folder.path("list.txt")), ..none.clone() };
    assert_eq!(folder.open("", &elsewhere).class_names(), ["a", "b"]);
    let missing = SegmentDataOptions { class_list: Some(folder.path("no.txt")), ..none.clone() };
    assert!(folder.error("", &missing).starts_with("no.txt: cannot read it"));
    folder.write("classes.txt", "a\nb\nc");
    assert!(folder.error("", &classes(2)).starts_with("classes.txt lists 3 classes, but the settings say 2"));
    folder.write("classes.json", "[]");
    assert!(folder.error("", &none).contains("both classes.txt and classes.json list classes"));
}

#[test]
fn missing_partners_in_both_directions() {
    let folder = Folder::new();
    folder.pair("images/1.ppm", "masks/1.png", [0; 8]);
    folder.image("images/only.ppm", 4, 2).write("masks/x/alone.png", gray(4, 2, &[0; 8]));
    let sentence = folder.error("", &classes(2));
    assert_eq!(
        sentence,
        "images without a mask: 1, masks without an image: 1 (images/only.ppm has no mask masks/only.png; \
         masks/x/alone.png has no image images/x/alone.jpg or similar)"
    );
    let source = folder.open("", &SegmentDataOptions { keep_unpaired: true, ..classes(2) });
    assert_eq!((source.len(), source.unpaired().images.len(), source.unpaired().masks.len()), (1, 1, 1));
    let report = checked(&source);
    assert_eq!(
        report.findings.iter().map(|f| f.kind).collect::<Vec<_>>(),
        [FindingKind::MissingMask, FindingKind::MissingImage]
    );
    assert_eq!((report.problems, report.checked, report.is_sound()), (2, 1, false));
}

#[test]
fn gray_and_palette_masks_of_every_depth() {
    assert_eq!(verdict("a\nb\nc", gray(4, 2, &[0, 1, 2, 255, 0, 1, 2, 0])).unwrap()[..4], [0, 1, 2, IGNORE]);
    let one = png(4, 2, ColorType::Grayscale, BitDepth::One, None, &[0b1010_0000, 0b0110_0000]);
    assert_eq!(verdict("a\nb", one).unwrap(), [1, 0, 1, 0, 0, 1, 1, 0]);
    let two = png(4, 2, ColorType::Grayscale, BitDepth::Two, None, &[0b00_01_10_11, 0b11_00_00_01]);
    assert_eq!(verdict("a\nb\nc\nd", two).unwrap(), [0, 1, 2, 3, 3, 0, 0, 1]);
    let four = png(4, 2, ColorType::Indexed, BitDepth::Four, Some(&[9; 30]), &[0x01, 0x92, 0x34, 0x50]);
    assert_eq!(verdict("a\nb\nc\nd\ne\nf\ng\nh\ni\nj", four).unwrap(), [0, 1, 9, 2, 3, 4, 5, 0]);
    // PASCAL VOC: the entry's number is the id, 255 is ignored.
    assert_eq!(verdict("a\nb", palette([0, 1, 1, 0, 255, 0, 0, 0], &[7; 768])).unwrap()[4], IGNORE);
}

#[test]
fn interlaced_masks() {
    for bits in [1u8, 2, 4, 8] {
        let ids: Vec<u8> = (0..13 * 11u32).map(|at| (at * 7 % 5) as u8 & ((1 << bits.min(3)) - 1)).collect();
        let folder = Folder::new();
        folder.image("images/a.ppm", 13, 11).write("masks/a.png", interlaced(13, 11, bits, &ids));
        assert_eq!(folder.open("", &classes(8)).mask(0).unwrap().data, ids, "{bits} bits");
    }
}

/// A gray PNG of seven passes, by the format's definition.
fn interlaced(width: u32, height: u32, bits: u8, ids: &[u8]) -> Vec<u8> {
    let mut raw = Vec::new();
    for [left, top, step_x, step_y] in
        [[0, 0, 8, 8], [4, 0, 8, 8], [0, 4, 4, 8], [2, 0, 4, 4], [0, 2, 2, 4], [1, 0, 2, 2], [0, 1, 1, 2]]
    {
        for y in (top..height).step_by(step_y as usize) {
            let row: Vec<u8> =
                (left..width).step_by(step_x as usize).map(|x| ids[(y * width + x) as usize]).collect();
            if !row.is_empty() {
                raw.push(0); // no filter
                let packed = |ids: &[u8]| {
                    ids.iter().fold((0, 8), |(byte, room), id| (byte | id << (room - bits), room - bits)).0
                };
                raw.extend(row.chunks(usize::from(8 / bits)).map(packed));
            }
        }
    }
    let mut packer = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
    std::io::Write::write_all(&mut packer, &raw).unwrap();
    let mut header = [width.to_be_bytes(), height.to_be_bytes()].concat();
    header.extend([bits, 0, 0, 0, 1]);
    let mut bytes = vec![0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1A, b'\n'];
    for (kind, data) in [(b"IHDR", header), (b"IDAT", packer.finish().unwrap()), (b"IEND", vec![])] {
        let body = [kind.as_slice(), &data].concat();
        bytes.extend((data.len() as u32).to_be_bytes());
        bytes.extend(&body);
        bytes.extend(crc32(&body).to_be_bytes());
    }
    bytes
}

#[test]
fn colours_of_the_class_list() {
    const LIST: &str = "road\t#804080\ncar\t0 0 142\nignore\t#e0e0c0";
    const ROAD: [u8; 3] = [128, 64, 128];
    const CAR: [u8; 3] = [0, 0, 142];
    const VOID: [u8; 3] = [224, 224, 192];
    let mut colors = [ROAD, ROAD, CAR, CAR, VOID, ROAD, CAR, VOID];
    assert_eq!(verdict(LIST, rgb(colors)).unwrap(), [0, 0, 1, 1, IGNORE, 0, 1, IGNORE]);
    colors[6] = [1, 1, 140];
    let (kind, sentence) = verdict(LIST, rgb(colors)).unwrap_err();
    assert_eq!(kind, FindingKind::Palette);
    assert_eq!(
        sentence,
        "pixel (2, 1) has the colour #01018c, which is no class's; the nearest is #00008e of 'car'"
    );
    let ids = [0, 1, 1, 0, 255, 0, 0, 0];
    let right = [ROAD, CAR].concat();
    assert_eq!(verdict(LIST, palette(ids, &[right.clone(), vec![0; 762]].concat())).unwrap()[..3], [0, 1, 1]);
    let (kind, sentence) =
        verdict(LIST, palette([0, 1, 1, 0, 0, 0, 0, 0], &[CAR, ROAD].concat())).unwrap_err();
    assert_eq!(kind, FindingKind::Palette);
    assert!(
        sentence
            .starts_with("palette entry 0 is #00008e, but class 'road' has #804080 in the class list; bring"),
        "{sentence}"
    );
    // Only entries in use count.
    assert!(verdict(LIST, palette([0; 8], &[ROAD, ROAD].concat())).is_ok());
    let (kind, sentence) = verdict("road\ncar", rgb([ROAD; 8])).unwrap_err();
    assert_eq!(kind, FindingKind::Palette);
    assert!(sentence.starts_with("the mask has RGB colours, but the class list has none; give each class"));
}

#[test]
fn masks_that_cannot_be_used() {
    let is = |mask: Vec<u8>, kind: FindingKind, beginning: &str| {
        let (found, sentence) = verdict("a\nb", mask).unwrap_err();
        assert_eq!(found, kind, "{sentence}");
        assert!(sentence.starts_with(beginning), "{sentence}");
    };
    let eight = BitDepth::Eight;
    is(
        png(4, 2, ColorType::Grayscale, BitDepth::Sixteen, None, &[0; 16]),
        FindingKind::MaskFormat,
        "the mask has 16-bit gray pixels; save class ids as 8-bit gray or palette PNG",
    );
    is(
        png(4, 2, ColorType::Rgb, BitDepth::Sixteen, None, &[0; 48]),
        FindingKind::MaskFormat,
        "the mask has 16-bit RGB pixels",
    );
    is(
        png(4, 2, ColorType::Rgba, eight, None, &[0; 32]),
        FindingKind::MaskFormat,
        "the mask has an alpha channel (RGBA); save it without one",
    );
    is(
        png(4, 2, ColorType::GrayscaleAlpha, eight, None, &[0; 16]),
        FindingKind::MaskFormat,
        "the mask has an alpha channel (gray + alpha)",
    );
    is(
        b"P5 4 2 255\n........".to_vec(),
        FindingKind::MaskFormat,
        "the mask is not a PNG file; save class ids",
    );
    is(Vec::new(), FindingKind::UnreadableMask, "the file is empty");
    is(
        gray(4, 2, &[0, 1, 0, 0, 0, 0, 7, 0]),
        FindingKind::IdOutside,
        "pixel (2, 1) has the id 7; 2 classes have the ids 0 to 1, and 255 is ignored; masks.map = \"7=ID\" (--map) makes it another id",
    );
    is(
        gray(2, 4, &[0; 8]),
        FindingKind::Size,
        "the mask is 2 x 4 pixels, but its image images/a.ppm is 4 x 2",
    );
}

#[test]
fn hostile_files_end_as_sentences() {
    let whole =
        gray(64, 64, &common::noise(64, 64, 3).data[..4096].iter().map(|v| v & 1).collect::<Vec<_>>());
    for end in (0..whole.len()).step_by(37) {
        let (kind, _) = verdict("a\nb", &whole[..end]).unwrap_err();
        assert!(matches!(kind, FindingKind::UnreadableMask | FindingKind::MaskFormat), "{end}: {kind:?}");
    }
    // Every byte of the header and the first chunks, changed: never a panic, never an image of absurd size.
    for at in 0..60 {
        for value in [0, 1, 0x7F, 0xFF] {
            let mut bytes = whole.clone();
            bytes[at] = value;
            let _ = verdict("a\nb", bytes);
        }
    }
    // A header that promises 4 gigapixels, with a right checksum.
    let mut huge = gray(1, 1, &[0]);
    huge[16..24].copy_from_slice(&[0, 0, 0xFF, 0xFF, 0, 0, 0xFF, 0xFF]);
    let crc = crc32(&huge[12..29]);
    huge[29..33].copy_from_slice(&crc.to_be_bytes());
    let (_, sentence) = verdict("a\nb", huge).unwrap_err();
    assert!(sentence.starts_with("the image is 65535 x 65535 pixels, above the limit of"), "{sentence}");
}

/// The checksum of PNG chunks, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), step))
}

#[test]
fn the_report_counts_and_warns() {
    let folder = Folder::new();
    for number in 0..30 {
        let mut ids = [0, 0, 0, 1, 255, 0, 0, 0];
        ids[0] = if number % 10 == 7 { 9 } else { 0 };
        folder.pair(&format!("images/{number:02}.ppm"), &format!("masks/{number:02}.png"), ids);
    }
    folder.write("images/11.ppm", "P6 4 2 255\n...");
    folder.write("masks/12.png", gray(4, 2, &[255; 8]));
    folder.write("masks/13.png", palette([1; 8], &[1, 2, 3, 4, 5, 6]));
    folder.write("masks/14.png", palette([1; 8], &[1, 2, 3, 4, 5, 7]));
    folder.write("classes.txt", "sea\nland\nice\nfire");
    let source = folder.open("", &SegmentDataOptions::default());
    let run = |workers, listed| {
        let mut seen = Vec::new();
        let report =
            check(&source, &CheckConfig { workers, listed }, |done| seen.push(done), || false).unwrap();
        assert_eq!(seen, (1..=30).collect::<Vec<_>>());
        report
    };
    let report = run(2, 20);
    for workers in [0, 1, 5] {
        assert_eq!(run(workers, 20), report);
    }
    assert_eq!((report.pairs, report.checked, report.problems), (30, 30, 4));
    assert_eq!(report.by_kind[&FindingKind::IdOutside], 3);
    assert_eq!(report.by_kind[&FindingKind::UnreadableImage], 1);
    assert!(report.findings[1].sentence.contains("images/11.ppm: the PNM image is truncated"));
    // One of each kind.
    assert_eq!(run(2, 1).findings, report.findings[..2]);
    // 23 plain masks of six, one and one, two of only land, one of nothing.
    let [sea, land] = [&report.classes[0], &report.classes[1]];
    assert_eq!((sea.pixels, sea.images, land.pixels, land.images), (23 * 6, 23, 23 + 16, 25));
    assert_eq!(report.ignored_pixels, 23 + 8);
    assert_eq!(report.warnings[0], "2 of 4 classes have no pixel: ice, fire");
    assert!(report.warnings[1].starts_with("masks without a single labelled pixel: 1, first "));
    assert!(
        report.warnings[2]
            .starts_with("1 masks have another palette than earlier ones: entry 1 is another colour in ")
    );
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(
        (json["by_kind"]["id_outside"].as_u64(), json["classes"][1]["name"].as_str()),
        (Some(3), Some("land"))
    );

    let stopped = check(&source, &CheckConfig::default(), |_| {}, {
        let calls = std::cell::Cell::new(0);
        move || calls.replace(calls.get() + 1) == 5
    })
    .unwrap();
    assert_eq!((stopped.checked, stopped.is_sound(), stopped.warnings.len()), (5, false, 0));
}

#[test]
fn fingerprints_cover_masks_classes_and_rule() {
    let folder = Folder::new();
    folder.pair("images/1.ppm", "masks/1.png", [1; 8]).write("classes.txt", "a\nb");
    let plain = SegmentDataOptions::default();
    let first = folder.open("", &plain).fingerprint();
    assert_eq!(folder.open("images", &plain).fingerprint(), first);
    let reduced = SegmentDataOptions { reduce_zero_label: ReduceZeroLabel::Yes, ..plain.clone() };
    let ignored = SegmentDataOptions { ignore: 7, ..plain.clone() };
    let mut all =
        vec![first, folder.open("", &reduced).fingerprint(), folder.open("", &ignored).fingerprint()];
    folder.write("classes.txt", "a\nc");
    all.push(folder.open("", &plain).fingerprint());
    folder.write("classes.txt", "a,1 2 3\nc,1 2 4");
    all.push(folder.open("", &plain).fingerprint());
    folder.write("masks/1.png", gray(4, 2, &[0, 1, 0, 1, 1, 1, 0, 0]));
    all.push(folder.open("", &plain).fingerprint());
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 6);
}

#[test]
fn a_loader_drives_images_and_masks() {
    let folder = Folder::new();
    for number in 0..9u8 {
        folder.pair(&format!("images/{number}.ppm"), &format!("masks/{number}.png"), [number; 8]);
    }
    folder.write("masks/4.png", gray(4, 2, &[99; 8]));
    let source = folder.open("", &classes(9));
    let masks = source.clone();
    let config = LoaderConfig { batch: 3, epochs: Some(1), max_bad_fraction: 0.2, ..LoaderConfig::default() };
    let work = Arc::new(move |_: &beit2_data::Image, info: &beit2_data::SampleInfo| {
        masks.mask(info.index as usize).map(|mask| (info.index, mask.data[0]))
    });
    let batches: Vec<_> = Loader::new(config, source, work).unwrap().map(Result::unwrap).collect();
    let items: Vec<(u64, u8)> = batches.iter().flat_map(|batch| batch.items.clone()).collect();
    assert_eq!(items.len(), 9);
    assert!(items.iter().all(|&(index, class)| index == u64::from(class) && class != 4));
    let replaced: Vec<_> = batches.iter().flat_map(|batch| &batch.replaced).collect();
    assert!(replaced[0].error.contains("masks/4.png: pixel (0, 0) has the id 99"), "{}", replaced[0].error);
    assert!(Path::new(&replaced[0].name).ends_with("images/4.ppm"));
}
