//! Packed sources: the same images, labels and names as before, in shards that are the same bytes each time.
#![allow(clippy::unwrap_used)]

mod common;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use beit2_data::pack::{Encoding, PackConfig, PackFormat, Packed, Packing, Side};
use beit2_data::source::{self, ArchiveSource};
use beit2_data::transform::resize;
use beit2_data::{DecodeOptions, Interpolation, Source, decode};
use common::{noise, ppm};

const FORMATS: [PackFormat; 2] = [PackFormat::Tar, PackFormat::Parquet];

fn open(path: &Path) -> Arc<dyn Source> {
    source::open(&path.display().to_string()).unwrap()
}

/// Two classes of images of several sizes.
fn photographs(dir: &Path) -> Arc<dyn Source> {
    for (class, first) in [("cat", 0), ("dog", 20)] {
        fs::create_dir_all(dir.join(class)).unwrap();
        for number in 0..20u32 {
            let image = noise(20 + 3 * number, 50 - 2 * number, u64::from(first + number));
            fs::write(dir.join(format!("{class}/IMG_{number}.v1.ppm")), ppm(&image)).unwrap();
        }
    }
    open(dir)
}

fn pack(source: &Arc<dyn Source>, out: &Path, config: &PackConfig) -> Packed {
    Packing::open(source.clone(), out, config.clone(), false).unwrap().run(|_| {}, || false).unwrap().unwrap()
}

fn refusal(source: &Arc<dyn Source>, out: &Path, config: &PackConfig) -> String {
    let packing = Packing::open(source.clone(), out, config.clone(), false);
    packing.and_then(|packing| packing.run(|_| {}, || false)).err().unwrap().to_string()
}

/// Every image by its bytes, with the names of its classes.
fn contents(source: &dyn Source) -> BTreeMap<Vec<u8>, Option<Vec<String>>> {
    let names =
        |labels: Vec<u32>| labels.iter().map(|&label| source.classes()[label as usize].clone()).collect();
    (0..source.len()).map(|index| (source.read(index).unwrap(), source.labels(index).map(names))).collect()
}

/// Files of a folder by name.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entry =
        |entry: fs::DirEntry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap());
    fs::read_dir(dir).unwrap().map(|found| entry(found.unwrap())).collect()
}

#[test]
fn copies_keep_bytes_labels_and_names() {
    let dir = tempfile::tempdir().unwrap();
    let source = photographs(&dir.path().join("photos"));
    for format in FORMATS {
        let out = dir.path().join(format!("{format:?}"));
        let packed =
            pack(&source, &out, &PackConfig { format, shard_bytes: 40_000, ..PackConfig::default() });
        assert_eq!((packed.images, packed.copied, packed.unreadable.len()), (40, 40, 0));
        assert!(packed.shards > 3, "{packed:?}");
        let read = open(&out);
        assert_eq!(contents(read.as_ref()), contents(source.as_ref()), "{format:?}");
        assert_eq!(read.classes(), source.classes());
        let account = read.account();
        assert_eq!((account.used, account.skipped_count(), account.warnings), (40, 0, vec![]));
        read.check_labels().unwrap();
        let sizes: Vec<usize> =
            files(&out).into_iter().filter(|(name, _)| name != "shards.index").map(|f| f.1.len()).collect();
        assert!(sizes.len() as u64 == packed.shards && sizes.iter().sum::<usize>() as u64 == packed.bytes);
        if format == PackFormat::Tar {
            assert!(sizes.iter().all(|&size| size <= 40_000), "{sizes:?}");
            assert!(
                (0..40).any(|index| read.name(index).ends_with("tar:cat-IMG_3-v1.ppm")),
                "{}",
                read.name(0)
            );
        }
        // Any shard alone is a sound set with the same classes.
        let one = open(&out.join(format!("shard-00001.{}", format.ending())));
        assert!(one.len() > 1 && one.classes() == source.classes());
    }
}

#[test]
fn an_index_says_what_a_look_through_the_shards_says() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("shards");
    let source = photographs(&dir.path().join("photos"));
    pack(&source, &out, &PackConfig { shard_bytes: 40_000, ..PackConfig::default() });
    let facts = |source: &dyn Source| {
        let of = |index| (source.name(index), source.read(index).unwrap(), source.label(index));
        let all: Vec<_> = (0..source.len()).map(of).collect();
        (all, source.classes().to_vec(), source.account())
    };
    let by_index = facts(open(&out).as_ref());
    let fingerprint = open(&out).fingerprint();
    let index = fs::read(out.join("shards.index")).unwrap();
    fs::remove_file(out.join("shards.index")).unwrap();
    assert_eq!(facts(open(&out).as_ref()), by_index);
    // Without it shards are not read in runs, so that an epoch has another order: a run cannot be continued exactly.
    assert_ne!(open(&out).fingerprint(), fingerprint);

    // An index that does not fit is told, and not used.
    let warned = |text: &str| {
        let read = open(&out);
        let warnings = read.account().warnings.join(" ");
        assert!(warnings.contains("was not used") && warnings.contains(text), "{warnings}");
        read.len()
    };
    let cut = index.iter().enumerate().filter(|(_, byte)| **byte == b'\n').nth(1).unwrap().0 + 20;
    fs::write(out.join("shards.index"), &index[..cut]).unwrap();
    assert_eq!(warned("it does not list shard-00001.tar"), 40);
    fs::write(out.join("shards.index"), "{}\n").unwrap();
    assert_eq!(warned("its first line is unsound"), 40);
    fs::write(out.join("shards.index"), &index).unwrap();
    let (first, second) = (out.join("shard-00000.tar"), out.join("shard-00001.tar"));
    let bytes = fs::read(&first).unwrap();
    fs::write(&first, fs::read(&second).unwrap()).unwrap();
    warned("shard-00000.tar is not the file that it lists");
    // Nor is one that does not know the bytes at a place, though the length is right.
    let mut other = bytes.clone();
    other[1024 + 40] ^= 1;
    fs::write(&first, &other).unwrap();
    let read = ArchiveSource::open(std::slice::from_ref(&first));
    assert!(read.is_err() || !read.unwrap().account().warnings.is_empty());
}

#[test]
fn larger_images_are_shrunk_as_pillow_does() {
    let dir = tempfile::tempdir().unwrap();
    let source = photographs(&dir.path().join("photos"));
    for format in FORMATS {
        for side in [Side::Shorter(24), Side::Longer(40)] {
            let out = dir.path().join(format!("{format:?}{side:?}"));
            let config = PackConfig {
                format,
                side: Some(side),
                encoding: Encoding::Lossless,
                shuffle: false,
                ..PackConfig::default()
            };
            let packed = pack(&source, &out, &config);
            assert!(packed.copied > 0 && packed.copied < packed.images, "{packed:?}");
            let read = open(&out);
            for index in 0..read.len() {
                let image = |source: &dyn Source| {
                    decode(&source.read(index).unwrap(), &DecodeOptions::default()).unwrap()
                };
                let (original, found) = (image(source.as_ref()), image(read.as_ref()));
                assert_eq!(read.label(index), source.label(index));
                let (length, limit) = match side {
                    Side::Shorter(px) => (original.shorter_side(), px),
                    Side::Longer(px) => (original.width.max(original.height), px),
                };
                if length <= limit {
                    assert_eq!(read.read(index).unwrap(), source.read(index).unwrap());
                    continue;
                }
                let shrunk = match side {
                    Side::Shorter(_) => found.shorter_side(),
                    Side::Longer(_) => found.width.max(found.height),
                };
                assert_eq!(shrunk, limit);
                let expected = resize(&original, found.width, found.height, Interpolation::Bicubic).unwrap();
                assert_eq!(found, expected);
            }
        }
    }
}

#[test]
fn jpegs_are_near_the_shrunk_image() {
    let dir = tempfile::tempdir().unwrap();
    let photo = fs::read(common::excerpt_dir().join("photos/astronaut_box1.ppm")).unwrap();
    fs::create_dir(dir.path().join("in")).unwrap();
    fs::write(dir.path().join("in/a.ppm"), &photo).unwrap();
    let source = open(&dir.path().join("in"));
    let out = dir.path().join("out");
    pack(&source, &out, &PackConfig { side: Some(Side::Shorter(64)), ..PackConfig::default() });
    let found = decode(&open(&out).read(0).unwrap(), &DecodeOptions::default()).unwrap();
    let original = decode(&photo, &DecodeOptions::default()).unwrap();
    let expected = resize(&original, found.width, found.height, Interpolation::Bicubic).unwrap();
    let squares = found.data.iter().zip(&expected.data).map(|(a, b)| f64::from(a.abs_diff(*b)).powi(2));
    let error = (squares.sum::<f64>() / found.data.len() as f64).sqrt();
    assert!(error < 4.0, "{error} levels");
}

#[test]
fn the_order_is_one_draw_and_the_bytes_depend_on_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let source = photographs(&dir.path().join("photos"));
    for format in FORMATS {
        let config = PackConfig {
            format,
            shard_bytes: 40_000,
            side: Some(Side::Shorter(24)),
            ..PackConfig::default()
        };
        let of = |name: &str, config: &PackConfig| {
            let out = dir.path().join(format!("{format:?}-{name}"));
            pack(&source, &out, config);
            (open(&out), files(&out))
        };
        let (read, bytes) = of("2", &config);
        assert_eq!(of("5", &PackConfig { workers: 5, ..config.clone() }).1, bytes);
        assert_eq!(of("1", &PackConfig { workers: 0, ..config.clone() }).1, bytes);
        assert_ne!(of("seed", &PackConfig { seed: 1, ..config.clone() }).1, bytes);
        let labels = |source: &dyn Source| (0..40).map(|at| source.label(at).unwrap()).collect::<Vec<_>>();
        let mixed = labels(read.as_ref())[..20].iter().filter(|&&label| label == 0).count();
        assert!((4..=16).contains(&mixed), "{mixed} of the first 20 are cats");
        let (ordered, _) = of("order", &PackConfig { shuffle: false, ..config.clone() });
        assert_eq!(labels(ordered.as_ref()), labels(source.as_ref()));
    }
}

#[test]
fn shuffled_tar_shards_are_read_in_runs() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("in")).unwrap();
    for number in 0..10 {
        // 2.4 MB each, and one that is larger than a run.
        let side = if number == 4 { 1800 } else { 900 };
        fs::write(dir.path().join(format!("in/{number}.ppm")), ppm(&noise(side, side, number))).unwrap();
    }
    let source = open(&dir.path().join("in"));
    let pack = |name: &str, shuffle| {
        let out = dir.path().join(name);
        pack(&source, &out, &PackConfig { shuffle, shard_bytes: 14 << 20, ..PackConfig::default() });
        out
    };
    assert_eq!(open(&pack("ordered", false)).units(), None);
    let out = pack("shuffled", true);
    let read = open(&out);
    let units = read.units().unwrap();
    assert_eq!(units.runs.first().map(|run| run.0), Some(0));
    assert!(units.runs.windows(2).all(|pair| pair[0].1 == pair[1].0));
    assert_eq!(units.runs.last().map(|run| run.1), Some(10));
    let size = |index: u64| read.read(index as usize).unwrap().len();
    for &(start, end) in &units.runs {
        let bytes: usize = (start..end).map(size).sum();
        assert!(bytes <= 8 << 20 || end == start + 1, "{units:?}");
        let shard = |index: u64| read.name(index as usize).split(':').next().map(str::to_owned);
        assert!((start..end).all(|index| shard(index) == shard(start)), "{units:?}");
    }
    assert!((4..8).contains(&units.runs.len()), "{units:?}");
    assert_eq!(contents(read.as_ref()), contents(source.as_ref()));

    // A run that cannot be read whole: the images before the fault are still there, the others say what is wrong.
    let cut = open(&out);
    let (start, end) = *units.runs.iter().find(|(start, end)| end - start > 1).unwrap();
    let shard = cut.name(start as usize).split_once(".tar").unwrap().0.to_owned() + ".tar";
    let behind = (0..10)
        .filter(|&index| cut.name(index).starts_with(&shard))
        .take_while(|&index| index < end as usize);
    let length: usize = behind.map(|index| cut.read(index).unwrap().len() + 1024).sum();
    let fresh = open(&out);
    fs::File::options().write(true).open(&shard).unwrap().set_len(length as u64 - 600_000).unwrap();
    assert_eq!(fresh.read(start as usize).unwrap(), cut.read(start as usize).unwrap());
    let sentence = fresh.read(end as usize - 1).unwrap_err().to_string();
    assert!(sentence.contains("read the member"), "{sentence}");
}

#[test]
fn unreadable_images_are_left_out_up_to_the_limit() {
    let dir = tempfile::tempdir().unwrap();
    photographs(&dir.path().join("photos"));
    fs::write(dir.path().join("photos/cat/broken.ppm"), "P6 30 30 255\nabc").unwrap();
    let source = open(&dir.path().join("photos"));
    let config = PackConfig { max_bad_fraction: 0.03, ..PackConfig::default() };
    let packed = pack(&source, &dir.path().join("out"), &config);
    assert_eq!(packed.images, 40);
    let [bad] = packed.unreadable.as_slice() else { panic!("{packed:?}") };
    assert!(bad.path.ends_with("cat/broken.ppm") && bad.error.contains("truncated"), "{bad:?}");

    let strict = PackConfig { max_bad_fraction: 0.0, ..config.clone() };
    let out = dir.path().join("strict");
    let sentence = refusal(&source, &out, &strict);
    assert!(
        sentence.starts_with("1 of 41 images cannot be read, more than the 0 that may be left out (0 %): "),
        "{sentence}"
    );
    assert!(sentence.contains("broken.ppm: the PNM image is truncated"), "{sentence}");
    assert!(!out.exists());

    fs::create_dir(dir.path().join("none")).unwrap();
    fs::write(dir.path().join("none/a.jpg"), "no image").unwrap();
    let out = dir.path().join("empty");
    let sentence =
        refusal(&open(&dir.path().join("none")), &out, &PackConfig { max_bad_fraction: 1.0, ..config });
    assert_eq!(sentence, "none of the 1 images can be read; nothing was written");
    assert!(!out.exists() && !dir.path().join("empty.partial").exists());
}

#[test]
fn an_interrupted_pack_goes_on_to_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    photographs(&dir.path().join("photos"));
    fs::write(dir.path().join("photos/cat/broken.ppm"), "P6 30 30 255\nabc").unwrap();
    let source = open(&dir.path().join("photos"));
    for format in FORMATS {
        let config = PackConfig { format, shard_bytes: 40_000, ..PackConfig::default() };
        let whole = dir.path().join(format!("{format:?}-whole"));
        let expected = pack(&source, &whole, &config);
        let out = dir.path().join(format!("{format:?}"));
        let partial = dir.path().join(format!("{format:?}.partial"));
        let mut starts = Vec::new();
        for most in [1, 9, 13, 20, 41] {
            let packing = Packing::open(source.clone(), &out, config.clone(), false).unwrap();
            starts.push(packing.done());
            let done = Cell::new(0);
            let result = packing.run(|at| done.set(at), || done.get() >= most).unwrap();
            assert!(out.exists() == result.is_some() && partial.exists() == result.is_none(), "{most}");
            if let Some(packed) = result {
                assert_eq!(packed, expected);
            } else {
                // As if killed while it wrote.
                fs::write(partial.join("shard.writing"), "half a shard").unwrap();
                let index = partial.join("shards.index");
                let mut text = fs::read(&index).unwrap();
                text.extend_from_slice(b"{\"shard\": \"sha");
                fs::write(&index, text).unwrap();
            }
        }
        assert!(starts.is_sorted() && starts[0] == 0 && starts[4] > 9, "{starts:?}");
        assert_eq!(files(&out), files(&whole));
    }
}

#[test]
fn what_is_there_is_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    let source = photographs(&dir.path().join("photos"));
    let config = PackConfig { shard_bytes: 40_000, ..PackConfig::default() };
    let full = dir.path().join("full");
    fs::create_dir(&full).unwrap();
    fs::write(full.join("mine"), "x").unwrap();
    assert!(
        refusal(&source, &full, &config)
            .ends_with("full is not empty; shards go into a new folder, so give another one or remove it")
    );
    assert!(refusal(&source, &full.join("mine"), &config).contains("there is a file of this name"));
    let empty = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    pack(&source, &empty, &config);

    // A folder of somebody else with our name, and shards of other settings.
    let out = dir.path().join("out");
    let partial = dir.path().join("out.partial");
    fs::create_dir(&partial).unwrap();
    fs::write(partial.join("shard-00000.tar"), "mine").unwrap();
    assert!(refusal(&source, &out, &config).contains("out.partial is not empty"));
    fs::remove_dir_all(&partial).unwrap();
    let stopped = Cell::new(0);
    let packing = Packing::open(source.clone(), &out, config.clone(), false).unwrap();
    assert!(packing.run(|at| stopped.set(at), || stopped.get() > 30).unwrap().is_none());
    let other = PackConfig { seed: 7, ..config.clone() };
    let sentence = refusal(&source, &out, &other);
    assert!(sentence.contains("begun with another `order`") && sentence.contains("--force"), "{sentence}");
    let again = Packing::open(source.clone(), &out, other, true).unwrap();
    assert_eq!(again.done(), 0);
    let sentence = refusal(&source, &out, &config);
    assert!(sentence.contains("in use"), "{sentence}");
    assert_eq!(again.run(|_| {}, || false).unwrap().unwrap().images, 40);
}

#[test]
fn several_labels_and_none() {
    let dir = tempfile::tempdir().unwrap();
    let mut lines = String::new();
    for (number, labels) in [r#"["a","c"]"#, "[]", r#"["b"]"#, "null"].into_iter().enumerate() {
        fs::write(dir.path().join(format!("{number}.ppm")), ppm(&noise(9, 8, number as u64))).unwrap();
        lines += &format!("{{\"file\": \"{number}.ppm\", \"label\": {labels}}}\n");
    }
    let table = dir.path().join("table.jsonl");
    fs::write(&table, lines).unwrap();
    let several = open(&table);
    fs::create_dir(dir.path().join("plain")).unwrap();
    fs::write(dir.path().join("plain/x.ppm"), ppm(&noise(9, 8, 5))).unwrap();
    let none = open(&dir.path().join("plain"));
    for format in FORMATS {
        let config = PackConfig { format, ..PackConfig::default() };
        for (name, source) in [("several", &several), ("none", &none)] {
            let out = dir.path().join(format!("{name}{format:?}"));
            pack(source, &out, &config);
            for indexed in [true, false] {
                let read = open(&out);
                assert_eq!(read.is_multi_label(), source.is_multi_label());
                assert_eq!(contents(read.as_ref()), contents(source.as_ref()), "{name} {format:?} {indexed}");
                let _ = fs::remove_file(out.join("shards.index"));
            }
        }
    }
}

#[test]
fn settings_out_of_range_are_sentences() {
    let dir = tempfile::tempdir().unwrap();
    let source = photographs(&dir.path().join("photos"));
    let say = |config: PackConfig| refusal(&source, &dir.path().join("out"), &config);
    let base = PackConfig::default;
    let low = Encoding::Jpeg { quality: 75 };
    assert!(
        say(PackConfig { encoding: low, ..base() }).starts_with("the JPEG quality: 75; it must be 90 to 100")
    );
    assert!(say(PackConfig { side: Some(Side::Longer(0)), ..base() }).contains("1 to 16384 pixels"));
    assert!(say(PackConfig { max_bad_fraction: 2.0, ..base() }).contains("from 0 to 1"));
    let bands = DecodeOptions::default().of_channels(5);
    let five = PackConfig { side: Some(Side::Longer(9)), decode: bands, ..base() };
    assert!(say(five).contains("RGB or grey"), "bands");
    let weighted = source::open(&format!("{}:weight=2", dir.path().join("photos").display())).unwrap();
    assert!(refusal(&weighted, &dir.path().join("out"), &base()).contains("leave the weight to the recipe"));
    assert!(!dir.path().join("out.partial").exists());
}
