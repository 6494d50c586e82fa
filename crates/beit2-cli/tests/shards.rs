//! `--shard` and `--check` of `embed`, `tokenizer encode`, `predict` and `segment predict`: parts are the undivided output, whatever
//! happens on the way.

#![allow(clippy::unwrap_used)]

mod support;
#[path = "support/tiny.rs"]
mod tiny;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use parquet::file::reader::{FileReader, SerializedFileReader};
use serde_json::Value;
use support::{Ended, IMAGES, World, image, signal};

/// Variables that a scheduler around these tests may have set.
const VARIABLES: [&str; 9] = [
    "SLURM_ARRAY_TASK_ID",
    "SLURM_ARRAY_TASK_COUNT",
    "SLURM_ARRAY_TASK_MIN",
    "SLURM_ARRAY_TASK_MAX",
    "SLURM_ARRAY_TASK_STEP",
    "JOB_COMPLETION_INDEX",
    "JOB_COMPLETION_COUNT",
    "RANK",
    "WORLD_SIZE",
];

fn world() -> World {
    let world = World::new();
    for at in 0..IMAGES {
        let class = world.path("labelled").join(["cat", "dog"][at % 2]);
        fs::create_dir_all(&class).unwrap();
        fs::write(class.join(format!("{at:02}.ppm")), image(at, 40 + at)).unwrap();
    }
    tiny::classifier(&world.path("named.safetensors"), &["ant", "bee", "cow"], 3);
    tiny::mim(&world.path("mim.safetensors"));
    tiny::tokenizer(&world.path("words.safetensors"));
    tiny::segmenter(&world.path("segmenter.safetensors"), 5);
    world
}

fn run_in(world: &World, args: &[&str], variables: &[(&str, &str)]) -> Ended {
    let mut command = world.command(args);
    for name in VARIABLES {
        command.env_remove(name);
    }
    command.envs(variables.iter().copied()).output().unwrap().into()
}

fn run(world: &World, args: &[&str]) -> Ended {
    run_in(world, args, &[])
}

/// `embed labelled` into `out`, in batches that no part has a whole number of.
fn embed<'a>(out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let line =
        ["embed", "labelled", "--weights", "mim.safetensors", "--batch-size", "5", "--quiet", "-o", out];
    [&line[..], more].concat()
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The bytes of each row by the path of its image, of an npy file and its list.
fn rows(file: &Path, row: usize, found: &mut BTreeMap<String, Vec<u8>>) {
    let bytes = fs::read(file).unwrap();
    let header = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let list = fs::read_to_string(format!("{}.paths.jsonl", file.display())).unwrap();
    let values = bytes[header..].chunks_exact(row);
    assert_eq!(values.len(), list.lines().count(), "{}", file.display());
    assert_eq!(bytes[header..].len() % row, 0);
    for (line, values) in list.lines().zip(values) {
        let line: Value = serde_json::from_str(line).unwrap();
        let old = found.insert(line["path"].as_str().unwrap().to_owned(), values.to_vec());
        assert!(old.is_none(), "{line} is in two parts");
    }
}

fn part(folder: &Path, index: usize, count: usize, ending: &str) -> PathBuf {
    folder.join(format!("part-{index:05}-of-{count:05}.{ending}"))
}

#[test]
fn parts_together_are_the_undivided_file() {
    let world = world();
    run(&world, &embed("whole.npy", &[])).works();
    let mut whole = BTreeMap::new();
    rows(&world.path("whole.npy"), 16 * 4, &mut whole);
    assert_eq!(whole.len(), IMAGES);
    // More parts than images: some are empty, and are files as the others are.
    for count in [1, 3, 40] {
        let out = format!("parts{count}");
        let (mut found, mut empty) = (BTreeMap::new(), 0);
        for index in 0..count {
            let shard = format!("{index}/{count}");
            run(&world, &embed(&out, &["--format", "npy", "--shard", &shard])).works();
            let before = found.len();
            rows(&part(&world.path(&out), index, count, "npy"), 16 * 4, &mut found);
            empty += usize::from(found.len() == before);
        }
        assert!(found == whole, "{count} parts differ from the whole");
        assert_eq!(empty > 0, count == 40);
        let ended = run(&world, &embed(&out, &["--check", "--json"]));
        let told: Value = serde_json::from_str(&ended.works().out).unwrap();
        assert_eq!((&told["rows"], &told["missing"]), (&IMAGES.into(), &Value::Array(Vec::new())));
        let manifest = json(&world.path(&out).join("manifest.json"));
        assert_eq!((&manifest["images"], &manifest["rows"]), (&IMAGES.into(), &IMAGES.into()));
        assert_eq!(manifest["parts"].as_array().unwrap().len(), count);
        assert_eq!(manifest["made_with"]["program"], env!("CARGO_PKG_VERSION"));
        assert!(manifest["made_with"]["weights"].as_str().unwrap().len() >= 32);
    }
}

#[test]
fn every_form_of_an_empty_part_is_sound() {
    let world = world();
    let count = 40;
    let empty = (0..count)
        .find(|index| {
            let shard = format!("{index}/{count}");
            run(&world, &embed("parquet", &["--shard", &shard])).works();
            json(&part(&world.path("parquet"), *index, count, "json"))["rows"] == 0
        })
        .unwrap();
    let shard = format!("{empty}/{count}");
    let file = fs::File::open(part(&world.path("parquet"), empty, count, "parquet")).unwrap();
    let reader = SerializedFileReader::new(file).unwrap();
    assert_eq!(reader.metadata().file_metadata().num_rows(), 0);
    let columns = reader.metadata().file_metadata().schema().get_fields().len();
    assert_eq!(columns, 3, "path, label, features");
    for (format, length) in [("safetensors", None), ("npy", Some(128))] {
        run(&world, &embed(format, &["--shard", &shard, "--format", format])).works();
        let bytes = fs::read(part(&world.path(format), empty, count, format)).unwrap();
        assert!(length.is_none_or(|length| bytes.len() == length), "{format}");
        assert!(String::from_utf8_lossy(&bytes).contains(if format == "npy" { "(0, 16)" } else { "[0,16]" }));
    }
    let words =
        ["tokenizer", "encode", "labelled", "--tokenizer", "words.safetensors", "--quiet", "-o", "ids"];
    run(&world, &[&words[..], &["--shard", &shard, "--format", "jsonl"]].concat()).works();
    assert_eq!(fs::metadata(part(&world.path("ids"), empty, count, "jsonl")).unwrap().len(), 0);
    // Of a single image all parts but one are empty.
    let one = ["predict", "labelled/cat/00.ppm", "--weights", "named.safetensors", "--quiet", "-o", "one"];
    for index in 0..3 {
        run(&world, &[&one[..], &["--shard", &format!("{index}/3")]].concat()).works();
        let text = fs::read_to_string(part(&world.path("one"), index, 3, "csv")).unwrap();
        assert!(text.starts_with("path,path_bytes,class_1,"), "{text}");
    }
    run(&world, &[&one[..], &["--check"]].concat()).works();
    assert_eq!(json(&world.path("one/manifest.json"))["rows"], 1);
}

#[test]
fn the_other_commands_divide_too() {
    let world = world();
    let ids = ["tokenizer", "encode", "labelled", "--tokenizer", "words.safetensors", "--quiet", "-o"];
    run(&world, &[&ids[..], &["ids.jsonl"]].concat()).works();
    let classes = ["predict", "labelled", "--weights", "named.safetensors", "--quiet"];
    run(&world, &[&classes[..], &["--csv", "classes.csv"]].concat()).works();
    let masks = ["segment", "predict", "labelled", "--weights", "segmenter.safetensors", "--quiet", "--out"];
    run(&world, &[&masks[..], &["masks"]].concat()).works();
    let (mut found_ids, mut found_classes, mut listed) = (Vec::new(), Vec::new(), 0);
    for index in 0..3 {
        let shard = ["--shard", &format!("{index}/3")];
        run(&world, &[&ids[..], &["ids", "--format", "jsonl"], &shard].concat()).works();
        let text = |folder: &str, ending: &str| {
            fs::read_to_string(part(&world.path(folder), index, 3, ending)).unwrap()
        };
        found_ids.extend(text("ids", "jsonl").lines().map(str::to_owned));
        run(&world, &[&classes[..], &["--out", "classes"], &shard].concat()).works();
        // Parts always have the column of bytes, which is empty for names that are text.
        found_classes.extend(text("classes", "csv").lines().skip(1).map(|line| line.replacen(",,", ",", 1)));
        run(&world, &[&masks[..], &["masks-3"], &shard].concat()).works();
        listed += text("masks-3", "jsonl").lines().count();
    }
    let sorted = |mut lines: Vec<String>| {
        lines.sort();
        lines
    };
    let whole = |name: &str| fs::read_to_string(world.path(name)).unwrap();
    assert_eq!(sorted(found_ids), sorted(whole("ids.jsonl").lines().map(str::to_owned).collect()));
    assert_eq!(
        sorted(found_classes),
        sorted(whole("classes.csv").lines().skip(1).map(str::to_owned).collect())
    );
    assert_eq!(listed, IMAGES);
    for kind in ["masks", "overlays"] {
        for class in ["cat", "dog"] {
            for entry in fs::read_dir(world.path("masks").join(kind).join(class)).unwrap() {
                let name = entry.unwrap().file_name();
                let read =
                    |folder: &str| fs::read(world.path(folder).join(kind).join(class).join(&name)).unwrap();
                assert!(read("masks") == read("masks-3"), "{kind} {class} {name:?}");
            }
        }
    }
    for (line, out) in
        [(&ids[..], "ids"), (&[&classes[..], &["--out"]].concat(), "classes"), (&masks, "masks-3")]
    {
        run(&world, &[line, &[out, "--check"]].concat()).works();
        assert_eq!(json(&world.path(out).join("manifest.json"))["rows"], IMAGES, "{out}");
    }
    // Masks of a plain run are not taken for those of parts.
    run(&world, &[&masks[..], &["masks", "--shard", "0/3"]].concat()).fails(2, &["masks", "already exists"]);
    run(&world, &[&masks[..], &["masks-3", "--shard", "0/3", "--keep"]].concat()).fails(2, &["--keep"]);
}

#[test]
fn a_finished_part_is_skipped_and_another_one_refused() {
    let world = world();
    let first = ["--shard", "0/2"];
    run(&world, &embed("out", &first)).works();
    let file = part(&world.path("out"), 0, 2, "parquet");
    let before = (fs::read(&file).unwrap(), fs::metadata(&file).unwrap().modified().unwrap());
    let again = run(&world, &embed("out", &first));
    assert!(
        again.works().out.starts_with("part 0 of 2 is finished already: out/part-00000"),
        "{}",
        again.out
    );
    assert_eq!(again.out.lines().count(), 1);
    let object = run(&world, &embed("out", &["--shard", "0/2", "--json"]));
    let object: Value = serde_json::from_str(&object.works().out).unwrap();
    assert_eq!(object["part"]["was_finished"], true);
    assert_eq!((fs::read(&file).unwrap(), fs::metadata(&file).unwrap().modified().unwrap()), before);
    run(&world, &embed("out", &["--shard", "0/2", "--force"])).works();
    assert_eq!(fs::read(&file).unwrap(), before.0);
    // A file that was cut off is made again.
    fs::write(&file, &before.0[..100]).unwrap();
    run(&world, &embed("out", &["--check"])).fails(1, &["2 of 2 parts are missing", "--array=0-1"]);
    run(&world, &embed("out", &first)).works();
    assert_eq!(fs::read(&file).unwrap(), before.0);
    for (more, parts) in [
        (&["--layer", "1"][..], &["another `layer`", "parts.json"][..]),
        (&["--features", "cls"], &["another `features`"]),
        (&["--format", "npy"], &["another format (parquet)"]),
        (&["--batch-size", "4"], &["another `batch_size`"]),
        (&["--shard", "1/3"], &["number of parts (2, not 3)"]),
    ] {
        let shard: &[&str] = if more[0] == "--shard" { &[] } else { &["--shard", "1/2"] };
        let line = embed("out", &[more, shard].concat());
        // The last one of a flag counts.
        let line: Vec<&str> = line.into_iter().collect();
        let line = if more[0] == "--batch-size" {
            let at = line.iter().position(|word| *word == "--batch-size").unwrap();
            [&line[..at], &line[at + 2..]].concat()
        } else {
            line
        };
        run(&world, &line).fails(2, parts);
    }
    let encode = [
        "tokenizer",
        "encode",
        "labelled",
        "--tokenizer",
        "words.safetensors",
        "-o",
        "out",
        "--shard",
        "1/2",
    ];
    run(&world, &encode).fails(2, &["another command (`embed`)"]);
    // Other images, and other weights of the same name.
    fs::write(world.path("labelled/cat/new.ppm"), image(3, 50)).unwrap();
    run(&world, &embed("out", &["--shard", "1/2"])).fails(2, &["another `images`"]);
    run(&world, &embed("out", &["--check"])).fails(2, &["another `images`"]);
    fs::remove_file(world.path("labelled/cat/new.ppm")).unwrap();
    fs::copy(world.path("named.safetensors"), world.path("mim.safetensors")).unwrap();
    run(&world, &embed("out", &["--shard", "1/2"])).fails(2, &["another `weights`"]);
    run(&world, &embed("out", &["--check"])).fails(2, &["another `weights`"]);
    assert_eq!(fs::read(&file).unwrap(), before.0, "nothing was touched");
    assert!(!part(&world.path("out"), 1, 2, "parquet").exists());
}

#[test]
fn missing_parts_are_told_as_an_array() {
    let world = world();
    run(&world, &embed("out", &["--check"])).fails(2, &["out has no parts.json"]);
    for index in [0, 1, 2, 4, 5, 6, 10] {
        run(&world, &embed("out", &["--shard", &format!("{index}/11")])).works();
    }
    let ended = run(&world, &embed("out", &["--check"]));
    ended.fails(1, &["4 of 11 parts are missing in out", "sbatch --array=3,7-9"]);
    assert_eq!(ended.out, "3,7-9\n");
    assert!(!world.path("out/manifest.json").exists());
    for index in [3, 7, 8, 9] {
        run(&world, &embed("out", &["--shard", &format!("{index}/11")])).works();
    }
    let ended = run(&world, &embed("out", &["--check"]));
    assert_eq!(ended.works().out, "", "no part is missing");
    assert!(ended.err.contains("11, none is missing"), "{}", ended.err);
    // A part with other settings, copied in by hand.
    let record = part(&world.path("out"), 3, 11, "json");
    let mut changed = json(&record);
    changed["made_with"]["precision"] = "bf16".into();
    fs::write(&record, changed.to_string()).unwrap();
    run(&world, &embed("out", &["--check"])).fails(1, &["part-00003-of-00011", "another `precision`"]);
    fs::write(&record, "{").unwrap();
    run(&world, &embed("out", &["--check"])).fails(1, &["part-00003-of-00011.json is damaged"]);
}

#[test]
fn schedulers_say_the_part() {
    let world = world();
    let slurm = |id: &'static str, [count, min, max]: [&'static str; 3]| {
        [
            ("SLURM_ARRAY_TASK_ID", id),
            ("SLURM_ARRAY_TASK_COUNT", count),
            ("SLURM_ARRAY_TASK_MIN", min),
            ("SLURM_ARRAY_TASK_MAX", max),
            ("SLURM_ARRAY_TASK_STEP", "1"),
        ]
    };
    // An array from 1 to 4, of which task 3 fails and is run again by itself.
    for id in ["1", "2", "4"] {
        let ended = run_in(&world, &embed("slurm", &[]), &slurm(id, ["4", "1", "4"]));
        let told = format!("SLURM_ARRAY_TASK_ID is {id} in the array 1-4");
        assert!(ended.works().err.contains(&told), "{}", ended.err);
        assert!(ended.err.contains("of 4 of the images, because"), "{}", ended.err);
    }
    let check = run(&world, &embed("slurm", &["--check"]));
    assert_eq!(check.fails(1, &["1 of 4 parts"]).out, "3\n");
    let ended = run_in(&world, &embed("slurm", &[]), &slurm("3", ["1", "3", "3"]));
    assert!(ended.works().err.contains("part 2 of 4 of the images"), "{}", ended.err);
    run(&world, &embed("slurm", &["--check"])).works();
    run_in(&world, &embed("slurm", &[]), &slurm("9", ["1", "9", "9"])).fails(2, &["done by the tasks 1-4"]);
    // In a new folder an array with gaps does not say how many parts there are.
    run_in(&world, &embed("gaps", &[]), &slurm("7", ["4", "3", "9"])).fails(2, &["with gaps"]);

    let kubernetes = [("JOB_COMPLETION_INDEX", "1"), ("JOB_COMPLETION_COUNT", "2")];
    run_in(&world, &embed("kubernetes", &[]), &kubernetes).works();
    assert!(part(&world.path("kubernetes"), 1, 2, "parquet").exists());
    run_in(&world, &embed("other", &[]), &kubernetes[..1]).fails(2, &["JOB_COMPLETION_COUNT", "--shard 1/N"]);
    let torchrun = [("RANK", "2"), ("WORLD_SIZE", "3")];
    run_in(&world, &embed("torchrun", &[]), &torchrun).works();
    assert!(part(&world.path("torchrun"), 2, 3, "parquet").exists());
    run_in(&world, &embed("other", &[]), &[&torchrun[..], &kubernetes].concat())
        .fails(2, &["different parts"]);
    run_in(&world, &embed("kubernetes", &[]), &torchrun).fails(2, &["number of parts (2, not 3)"]);
    // What is said is not asked for.
    let ended = run_in(&world, &embed("said", &["--shard", "0/1"]), &torchrun);
    assert_eq!((ended.works().err.as_str(), part(&world.path("said"), 0, 1, "parquet").exists()), ("", true));

    // A file is never divided in silence.
    let ended = run_in(&world, &embed("file.npy", &[]), &torchrun);
    assert!(ended.works().err.contains("all images are done here"), "{}", ended.err);
    let ended = run_in(&world, &embed("file2.npy", &[]), &[("RANK", "0"), ("WORLD_SIZE", "1")]);
    assert_eq!(ended.works().err, "");
    assert!(fs::read(world.path("file.npy")).unwrap() == fs::read(world.path("file2.npy")).unwrap());
}

#[test]
fn bad_input_is_told_before_work_starts() {
    let world = world();
    for (shard, why) in [
        ("2/2", "counted from 0 to 1"),
        ("0/0", "at least 1"),
        ("x", "I/N"),
        ("-1/2", "I/N"),
        ("1/2/3", "I/N"),
        ("0/100001", "too many"),
        ("0/99999999999999999999", "I/N"),
    ] {
        let flag = format!("--shard={shard}");
        run(&world, &embed("out", &[&flag])).fails(2, &[why]);
    }
    run(&world, &embed("a.npy", &["--shard", "0/2"])).fails(2, &["--out a.npy names a file"]);
    run(&world, &embed("out", &[])).fails(2, &["out must end in .npy", "--shard I/N"]);
    run(&world, &embed("out", &["--shard", "0/2", "--check"])).fails(2, &["--check"]);
    run(&world, &embed("a.npy", &["--format", "npy"])).fails(2, &["--format is for the parts"]);
    run(&world, &embed("out", &["--shard", "0/2", "--format", "jsonl"]))
        .fails(2, &["--format can be one of .npy"]);
    run(&world, &embed("mim.safetensors", &["--shard", "0/2"])).fails(2, &["names a file"]);
    fs::create_dir(world.path("folder")).unwrap();
    run(&world, &embed("folder", &[]))
        .fails(2, &["folder is a folder; give the path of a file", "--shard I/N"]);
    let predict = ["predict", "labelled", "--weights", "named.safetensors"];
    run(&world, &[&predict[..], &["--shard", "0/2"]].concat()).fails(2, &["--out DIR"]);
    run(&world, &[&predict[..], &["--out", "folder"]].concat()).fails(2, &["--shard I/N", "--csv FILE"]);
    run(&world, &[&predict[..], &["--out", "a.csv", "--shard", "0/2"]].concat()).fails(2, &["--csv"]);
    run(&world, &[&predict[..], &["--out", "folder", "--csv", "a.csv"]].concat()).fails(2, &["--csv"]);
    assert!(!world.path("out").exists() && fs::read_dir(world.path("folder")).unwrap().next().is_none());
    // A part stops at an image that cannot be read, as the undivided command does; another part does not have it.
    fs::write(world.path("labelled/cat/00.ppm"), "P6 no image").unwrap();
    let codes: Vec<_> = (0..4)
        .map(|index| run(&world, &embed("bad", &["--shard", &format!("{index}/4")])).code.unwrap())
        .collect();
    assert_eq!(codes.iter().filter(|&&code| code == 1).count(), 1, "{codes:?}");
    assert_eq!(codes.iter().filter(|&&code| code == 0).count(), 3, "{codes:?}");
    let bad = codes.iter().position(|&code| code == 1).unwrap();
    let shard = format!("{bad}/4");
    run(&world, &embed("bad", &["--shard", &shard, "--skip-unreadable"])).works();
    run(&world, &embed("bad", &["--check"])).works();
    let manifest = json(&world.path("bad/manifest.json"));
    assert_eq!((&manifest["rows"], &manifest["skipped"]), (&(IMAGES - 1).into(), &1.into()));
    assert!(manifest["parts"][bad]["skipped"][0]["path"].as_str().unwrap().ends_with("cat/00.ppm"));
    // The same of `predict`, which does the others and then says so.
    let codes: Vec<_> = (0..4)
        .map(|index| {
            let shard = format!("{index}/4");
            run(&world, &[&predict[..], &["--quiet", "--out", "classes", "--shard", &shard]].concat())
                .code
                .unwrap()
        })
        .collect();
    assert_eq!(codes.iter().sum::<i32>(), 1, "{codes:?}");
    run(&world, &[&predict[..], &["--quiet", "--out", "classes", "--check"]].concat()).works();
    assert_eq!(json(&world.path("classes/manifest.json"))["skipped"], 1);
}

/// A part that is killed goes on where it was; its file is the same to the byte.
#[cfg(unix)]
#[test]
fn a_killed_part_goes_on() {
    let world = world();
    fs::create_dir(world.path("many")).unwrap();
    for at in 0..4 {
        fs::write(world.path(&format!("big-{at}.ppm")), image(at, 700)).unwrap();
    }
    for at in 0..400 {
        let to = world.path(&format!("many/{at:03}.ppm"));
        std::os::unix::fs::symlink(world.path(&format!("big-{}.ppm", at % 4)), to).unwrap();
    }
    let line = |out: &'static str| {
        let line = ["embed", "many", "--weights", "mim.safetensors", "--batch-size", "7", "--workers", "1"];
        [&line[..], &["--shard", "0/2", "-o", out]].concat()
    };
    run(&world, &line("whole")).works();
    let (whole, cut) = (world.path("whole"), world.path("cut"));
    let partial = part(&cut, 0, 2, "parquet.partial");
    let size = || fs::metadata(partial.join("samples.jsonl")).map_or(0, |meta| meta.len());
    let mut interrupted = 0;
    for _ in 0..2 {
        let before = size();
        let mut command = world.command(&line("cut"));
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let since = Instant::now();
        while size() <= before && child.try_wait().unwrap().is_none() {
            assert!(since.elapsed() < Duration::from_secs(120), "no rows after two minutes");
            std::thread::sleep(Duration::from_millis(1));
        }
        if child.try_wait().unwrap().is_none() {
            signal(&child, "KILL");
        }
        child.wait().unwrap();
        if !part(&cut, 0, 2, "json").exists() {
            interrupted += 1;
            let check = [&line("cut")[..8], &["-o", "cut", "--check"]].concat();
            assert_eq!(run(&world, &check).fails(1, &["2 of 2 parts are missing"]).out, "0-1\n");
        }
    }
    assert!(interrupted > 0, "the machine is too fast for this test");
    run(&world, &line("cut")).works();
    assert!(
        fs::read(part(&whole, 0, 2, "parquet")).unwrap() == fs::read(part(&cut, 0, 2, "parquet")).unwrap()
    );
    assert!(!partial.exists());
    // Killed between the file and its record: the part is done again, to the same bytes.
    fs::remove_file(part(&cut, 0, 2, "json")).unwrap();
    run(&world, &line("cut")).works();
    assert!(
        fs::read(part(&whole, 0, 2, "parquet")).unwrap() == fs::read(part(&cut, 0, 2, "parquet")).unwrap()
    );
}

/// Parts are the same wherever the images lie.
#[test]
fn parts_do_not_depend_on_the_place_of_the_images() {
    let world = world();
    fs::create_dir_all(world.path("elsewhere/deep")).unwrap();
    fs::rename(world.path("labelled"), world.path("elsewhere/deep/photos")).unwrap();
    let names = |source: &str, out: &str| -> Vec<String> {
        let line =
            ["embed", source, "--weights", "mim.safetensors", "--quiet", "--format", "npy", "--shard", "1/3"];
        run(&world, &[&line[..], &["-o", out]].concat()).works();
        let list = fs::read_to_string(part(&world.path(out), 1, 3, "npy.paths.jsonl")).unwrap();
        let path =
            |line: &str| serde_json::from_str::<Value>(line).unwrap()["path"].as_str().unwrap().to_owned();
        list.lines().map(|line| path(line).rsplit('/').next().unwrap().to_owned()).collect()
    };
    let first = names("elsewhere/deep/photos", "a");
    let absolute = world.path("elsewhere/deep/photos");
    assert_eq!(names(absolute.to_str().unwrap(), "b"), first);
    fs::rename(world.path("elsewhere/deep/photos"), world.path("photos")).unwrap();
    assert_eq!(names("photos", "a2"), first);
    // Into the folder of before, from another place: the same images.
    let line = [
        "embed",
        "photos",
        "--weights",
        "mim.safetensors",
        "--quiet",
        "--format",
        "npy",
        "--shard",
        "0/3",
        "-o",
        "a",
    ];
    run(&world, &line).works();
    assert!(!first.is_empty());
}
