//! Parquet, CSV and JSON-lines files as other tools write them (`scripts/make_table_data.py`).
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use beit2_data::source::{ParquetSource, open};
use beit2_data::{DecodeOptions, Image, Loader, LoaderConfig, Source, TransformError, decode};

fn data(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/parquet");
    folder.join(name).display().to_string()
}

/// Image i has the colour (i, 2 i, 3 i).
fn number(source: &dyn Source, index: usize) -> u8 {
    let image = decode(&source.read(index).unwrap(), &DecodeOptions::default()).unwrap();
    assert_eq!(image.data[..3], [image.data[0], 2 * image.data[0], 3 * image.data[0]]);
    image.data[0]
}

fn error(spec: &str) -> String {
    open(spec).err().unwrap().to_string()
}

#[test]
fn parquet_as_hugging_face_writes_it() {
    let source = open(&data("train-*.parquet")).unwrap();
    assert_eq!(source.len(), 17);
    assert_eq!(source.classes(), ["dog", "cat", "ape"], "in the order of the metadata");
    for index in [16, 0, 7, 12, 3] {
        assert_eq!(usize::from(number(source.as_ref(), index)), index);
    }
    let labels: Vec<Option<u32>> = (0..17).map(|index| source.label(index)).collect();
    assert_eq!(labels[..4], [Some(0), Some(1), Some(2), Some(0)]);
    assert_eq!((labels[11], labels[12]), (None, Some(2)));
    assert!(source.account().warnings[0].contains("1 of 17 images"), "{:?}", source.account());
    assert!(source.name(13).ends_with("train-00001-of-00002.parquet:1"), "{}", source.name(13));
    assert!(source.read(17).is_err() && source.name(17).is_empty());
    // Groups of 5 rows, of which two make a window.
    let units = source.units().unwrap();
    assert_eq!(units.runs, [(0, 5), (5, 10), (10, 12), (12, 17)]);
    let again = open(&data("train-{00000,00001}-of-00002.parquet")).unwrap();
    assert_eq!(source.fingerprint(), again.fingerprint());
    assert_ne!(source.fingerprint(), open(&data("train-00000-of-00002.parquet")).unwrap().fingerprint());
}

#[test]
fn a_loader_reads_row_groups_once_or_twice() {
    let paths =
        [data("train-00000-of-00002.parquet"), data("train-00001-of-00002.parquet")].map(PathBuf::from);
    let source: Arc<dyn Source> = Arc::new(ParquetSource::open(&paths, &Default::default()).unwrap());
    let config =
        LoaderConfig { batch: 4, workers: 2, epochs: Some(2), drop_last: false, ..LoaderConfig::default() };
    let work = Arc::new(|image: &Image, _: &_| Ok::<_, TransformError>(image.data[0]));
    let batches: Vec<_> = Loader::new(config, source, work).unwrap().collect::<Result<_, _>>().unwrap();
    assert_eq!(batches.len(), 10);
    for epoch in [&batches[..5], &batches[5..]] {
        let items: Vec<u8> = epoch.iter().flat_map(|batch| batch.items.clone()).collect();
        let indices: Vec<u8> =
            epoch.iter().flat_map(|batch| batch.indices.iter().map(|&i| i as u8)).collect();
        assert_eq!(items, indices);
        assert_eq!(items.iter().collect::<BTreeSet<_>>().len(), 17, "each image once an epoch");
    }
}

#[test]
fn several_classes_and_other_layouts() {
    let several = open(&data("several.parquet")).unwrap();
    assert_eq!((several.len(), several.classes().len()), (3, 3));
    assert_eq!(several.label(0), None, "none of several is the class");

    let why = error(&data("plain.parquet"));
    assert!(why.contains("several columns can hold images: 'jpg', 'thumbnail'; name one"), "{why}");
    let plain = open(&format!("{}:image=jpg", data("plain.parquet"))).unwrap();
    assert_eq!(plain.classes(), ["fox", "wolf"]);
    assert_eq!((plain.label(0), plain.label(1), number(plain.as_ref(), 2)), (Some(1), Some(0), 2));
    let why = plain.read(1).unwrap_err().to_string();
    assert!(why.ends_with("plain.parquet:1: the image has no bytes in this row"), "{why}");
    assert!(error(&format!("{}:image=cls", data("plain.parquet"))).contains("'cls' holds no encoded images"));
    assert!(
        error(&format!("{}:image=x", data("plain.parquet")))
            .contains("its columns are 'jpg', 'thumbnail', 'cls'")
    );
    let why = error(&data("{several,train-00000-of-00002,plain}.parquet"));
    assert!(why.contains("several columns can hold images"), "{why}");
}

#[test]
fn splits_in_one_folder_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["train-0.parquet", "test-0.parquet"] {
        std::fs::copy(data("train-00000-of-00002.parquet"), dir.path().join(name)).unwrap();
    }
    let why = error(&dir.path().display().to_string());
    assert!(why.contains("several splits (test and train)") && why.contains("test*.parquet'"), "{why}");
    std::fs::remove_file(dir.path().join("test-0.parquet")).unwrap();
    assert_eq!(open(&dir.path().display().to_string()).unwrap().len(), 12);
    std::fs::write(dir.path().join("train-0.parquet"), b"PAR1 and nothing more").unwrap();
    assert!(error(&dir.path().display().to_string()).contains("not a sound parquet file"));
}

/// A folder with images `a.ppm`, `b.ppm`, `c.ppm` and a table.
fn table(name: &str, text: &str) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    for (value, file) in [(1u8, "a.ppm"), (2, "b.ppm"), (3, "c.ppm")] {
        let bytes = [b"P6 1 1 255\n".as_slice(), &[value, 2 * value, 3 * value]].concat();
        std::fs::write(dir.path().join(file), bytes).unwrap();
    }
    std::fs::write(dir.path().join(name), text).unwrap();
    let spec = dir.path().join(name).display().to_string();
    (dir, spec)
}

fn labels(source: &dyn Source) -> Vec<Option<u32>> {
    (0..source.len()).map(|index| source.label(index)).collect()
}

#[test]
fn tables_of_paths_and_labels() {
    let (_dir, spec) =
        table("x.csv", "\u{feff}id,file_name,label\n7,b.ppm,\"big, dog\"\n8,a.ppm,cat\n9,c.ppm,\n");
    let source = open(&spec).unwrap();
    assert_eq!(source.classes(), ["big, dog", "cat"]);
    assert_eq!(labels(source.as_ref()), [Some(0), Some(1), None]);
    assert_eq!((number(source.as_ref(), 0), number(source.as_ref(), 2)), (2, 3));
    assert!(source.account().warnings[0].contains("1 of 3 images have no label"));

    let (_dir, spec) = table("x.tsv", "image\tclass\na.ppm\t10\nb.ppm\t9\n");
    let source = open(&spec).unwrap();
    assert_eq!(
        (source.classes(), labels(source.as_ref())),
        (&["9".into(), "10".into()][..], vec![Some(1), Some(0)])
    );

    let (_dir, spec) = table("x.csv", "path;label\r\na.ppm;1\r\nb.ppm;0\r\n");
    assert_eq!(open(&spec).unwrap().classes(), ["0", "1"]);

    let (_dir, spec) = table(
        "x.jsonl",
        "{\"file_name\": \"a.ppm\", \"label\": \"cat\"}\n\n{\"file_name\": \"c.ppm\", \"label\": null}\n",
    );
    let source = open(&spec).unwrap();
    assert_eq!((labels(source.as_ref()), number(source.as_ref(), 1)), (vec![Some(0), None], 3));
}

#[test]
fn several_labels_of_one_image() {
    let text = "path,label\na.ppm,b|a\nb.ppm,a\nc.ppm,c|b\n";
    let (_dir, spec) = table("x.csv", text);
    let several = open(&format!("{spec}:separator=|")).unwrap();
    assert!(several.is_multi_label() && several.label(1).is_none());
    let sets = |source: &dyn Source| (0..source.len()).map(|at| source.labels(at)).collect::<Vec<_>>();
    assert_eq!(sets(several.as_ref()), [Some(vec![0, 1]), Some(vec![0]), Some(vec![1, 2])]);

    let (_dir, single) = table("y.csv", "path,label\na.ppm,c\nb.ppm,\n");
    let source = open(&single).unwrap();
    assert!(!source.is_multi_label());
    assert_eq!(sets(source.as_ref()), [Some(vec![0]), None]);
    let chain = open(&format!("{single} + {spec}:separator=|")).unwrap();
    assert!(chain.is_multi_label() && chain.label(0).is_none(), "one part with several labels is enough");
    assert_eq!(chain.classes(), ["a", "b", "c"]);
    let all = [Some(vec![2]), None, Some(vec![0, 1]), Some(vec![0]), Some(vec![1, 2])];
    assert_eq!(sets(chain.as_ref()), all);
}

#[test]
fn what_a_table_may_not_be() {
    let why = |name: &str, text: &str, options: &str| {
        let (_dir, spec) = table(name, text);
        error(&format!("{spec}{options}"))
    };
    assert!(why("x.csv", "a.ppm,cat\nb.ppm,dog\n", "").contains("no column is called like one of paths"));
    assert!(
        why("x.csv", "path,image\na.ppm,b.ppm\n", "").contains("'path' and 'image' can both be the paths")
    );
    assert!(
        why("x.csv", "path,label\na.ppm,1\na.ppm,2\n", "")
            .contains("one label on line 2 and another on line 3")
    );
    assert!(why("x.csv", "path,label\na.ppm\n", "").contains("line 2 has 1 cells, the header has 2"));
    assert!(why("x.csv", "path,label\nz.ppm,1\n", "").contains("none of the files that it lists is there"));
    assert!(why("x.csv", "path,label\n", "").contains("it lists no images"));
    assert!(
        why("x.csv", "path,A,B\na.ppm,1,x\n", ":label=A+B")
            .contains("column 'B' is 'x'; 0 or 1 was expected")
    );
    assert!(why("x.jsonl", "[1]\n", "").contains("line 1 is not a JSON object"));
    assert!(why("x.jsonl", "{\"path\": \"a.ppm\", \"label\": 1.5}\n", "").contains("1.5 is not a label"));
    assert!(why("a.png", "", ":label=x").contains("are for tables"));
}

#[test]
fn doubts_are_said() {
    let (_dir, spec) = table("x.csv", "path,finding\na.ppm,1\n");
    assert!(open(&spec).unwrap().account().warnings[0].contains("so the images have none"));
    let (_dir, spec) = table("x.csv", "path,label\na.ppm,x|y\nb.ppm,x\n");
    assert!(open(&spec).unwrap().account().warnings[0].contains("'x|y' is taken as one class"));
    let (_dir, spec) = table("x.csv", "path,label\na.ppm,x\na.ppm,x\n");
    assert!(open(&spec).unwrap().account().warnings[0].contains("1 lines list an image"));
}

#[test]
fn a_weight_changes_the_length_of_an_epoch() {
    let (_dir, spec) = table("x.csv", "path\na.ppm\nb.ppm\n");
    let source = open(&format!("{spec}:weight=2.5")).unwrap();
    assert_eq!((source.len(), source.epoch_len()), (2, 5));
    let config = LoaderConfig { batch: 5, workers: 0, epochs: Some(2), ..LoaderConfig::default() };
    let work = Arc::new(|image: &Image, info: &beit2_data::SampleInfo| {
        Ok::<_, TransformError>((image.data[0], info.slot))
    });
    let batches: Vec<_> = Loader::new(config, source, work).unwrap().collect::<Result<_, _>>().unwrap();
    let count =
        |value: u8| batches.iter().flat_map(|batch| &batch.items).filter(|item| item.0 == value).count();
    assert_eq!((count(1), count(2)), (5, 5));
    let slots: BTreeSet<u64> = batches[0].items.iter().map(|item| item.1).collect();
    assert_eq!(slots.len(), 5, "each copy is augmented in its own way");
}

#[test]
fn damaged_parquet_files_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let whole = std::fs::read(data("train-00000-of-00002.parquet")).unwrap();
    let path = dir.path().join("x.parquet");
    let mut outcomes = [0, 0];
    for at in (0..whole.len()).step_by(13) {
        for change in [0x01, 0x80, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] ^= change;
            std::fs::write(&path, &bytes).unwrap();
            let sound = open(path.to_str().unwrap())
                .is_ok_and(|source| (0..source.len().min(12)).all(|index| source.read(index).is_ok()));
            outcomes[usize::from(sound)] += 1;
        }
    }
    for length in (0..whole.len()).step_by(97) {
        std::fs::write(&path, &whole[..length]).unwrap();
        assert!(open(path.to_str().unwrap()).is_err());
    }
    assert!(outcomes[0] > 100, "{outcomes:?}");
}
