//! The guide and the pages after it, followed from top to bottom: their commands run in order, in one folder, as they are
//! written. Only what costs hours is cut down, by settings at the end of a command ([`small`]); what cannot run here is in
//! [`SKIPPED`]. That every command of every page parses is tested beside the parser (`src/cli/tests.rs`).

use std::fs;
use std::time::Instant;

use crate::links::root;
use crate::place::Place;
use crate::support::World;

/// In the order in which a newcomer reads them.
const PAGES: [&str; 12] = [
    "guide.md",
    "adapting.md",
    "finetuning.md",
    "segmentation.md",
    "inference.md",
    "weights.md",
    "export.md",
    "onnx.md",
    "data.md",
    "devices.md",
    "formats/recipes.md",
    "formats/token-cache.md",
];

/// What a command that cannot run here contains, and why it cannot.
const SKIPPED: [(&str, &str); 7] = [
    ("weights fetch ViT-B-16.pt", "downloads; the folder has a small file of this name"),
    ("weights fetch dinov2_vits14_pretrain.pth", "downloads; the folder has a small file of this name"),
    ("weights fetch beitv2_", "downloads"),
    (".cache/beit2/beitv2_", "needs a download"),
    ("--data imagenet-r", "needs a download and a data set"),
    ("ADEChallengeData2016", "needs a data set"),
    ("--device cuda", "needs a GPU"),
];

/// What the paper's recipes leave behind, in small: the pages use it beside what they train themselves.
const OF_THE_PAPER: [&str; 3] = [
    "beit2 tokenizer train vqkd_base_clip_100e --data images --out runs/vqkd_base_clip_100e \
     --set teacher.weights=ViT-B-16.pt --set teacher.activation=quick_gelu \
     --set model.width=32 --set model.depth=1 --set model.heads=2 \
     --set decoder_width=32 --set decoder_depth=1 --set decoder_heads=2",
    "beit2 pretrain mim_base_300e --data images --tokenizer runs/vqkd_base_clip_100e --out runs/mim_base_300e \
     --set width=32 --set depth=4 --set heads=2 --set intermediate_layer=2",
    "beit2 pretrain mim_base_1600e --data images --tokenizer runs/vqkd_base_clip_100e --out runs/mim_base_1600e \
     --set width=32 --set depth=4 --set heads=2 --set intermediate_layer=2",
];

/// Commands of a page: lines of indented blocks that begin with `beit2` or prepare a folder for it.
fn commands(page: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let mut continued = false;
    for line in page.lines() {
        let text = line.trim_start();
        let command =
            line.starts_with("    ") && ["beit2 ", "mkdir "].iter().any(|word| text.starts_with(word));
        match found.last_mut() {
            Some(last) if continued => *last += &format!(" {}", text.trim_end_matches('\\').trim_end()),
            _ if command => found.push(text.trim_end_matches('\\').trim_end().to_owned()),
            _ => continue,
        }
        continued = line.ends_with('\\');
    }
    found
}

/// The same command with these options and their values taken out.
fn without(command: &str, options: &[&str]) -> String {
    let mut kept = Vec::new();
    let mut words = command.split(' ').peekable();
    while let Some(word) = words.next() {
        let setting = if word == "--set" { words.peek().copied().unwrap_or_default() } else { "" };
        if options.iter().any(|&option| word == option || setting.starts_with(&format!("{option}="))) {
            words.next();
        } else {
            kept.push(word);
        }
    }
    kept.join(" ")
}

/// A command cut down for a test: three steps of four images; the paper's recipes are only looked at.
fn small(command: &str) -> String {
    const TRAINING: [&str; 6] =
        ["tokenizer train", "pretrain", "adapt", "finetune", "segment train", "teacher distill"];
    const OF_THE_PAPER: [&str; 6] =
        ["vqkd_base", "mim_base", "mim_large", "finetune_base", "finetune_large", "segment_base"];
    let mut command = command.to_owned();
    if command.contains("ViT-B-16.pt") {
        // OpenAI's archive tells it; a file of tensors cannot.
        command += " --set teacher.activation=quick_gelu";
    }
    let words = command.trim_start_matches("beit2 ").to_owned();
    if words.starts_with("bench data ") {
        return format!("{command} --image-size 48 --images 8 --rounds 1 --batch-size 2");
    }
    if words.starts_with("bench ") {
        let command = without(&command, &["--size", "--steps", "--rounds", "--batch-size"]);
        return format!("{command} --size tiny --steps 1 --rounds 1 --batch-size 2");
    }
    if !TRAINING.iter().any(|name| words.starts_with(&format!("{name} "))) {
        return command;
    }
    let mut command = without(&command, &["--epochs", "--steps", "--batch-size", "kmeans_warmup_steps"]);
    command += " --set schedule.batch_size=4";
    if OF_THE_PAPER.iter().any(|name| words.contains(&format!(" {name}"))) {
        if !command.contains("--out ") {
            command += " --out runs/of_the_paper";
        }
        return command + " --set optimizer.base_batch_size=4 --dry-run";
    }
    command += " --set schedule.steps=3 --set schedule.warmup_steps=1";
    if words.starts_with("tokenizer train") {
        command += " --set kmeans_warmup_steps=1";
    }
    command
}

#[cfg(unix)]
#[test]
fn the_pages_can_be_followed_from_top_to_bottom() {
    let place = Place::new();
    let run = |line: &str| {
        let since = Instant::now();
        let ended = place.shell(line);
        println!("{:5.1} s  {line}", since.elapsed().as_secs_f64());
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let last = text(&ended.stderr).lines().last().unwrap_or_default().to_owned();
        (!ended.status.success()).then(|| format!("{line}\n    {last}"))
    };
    for command in OF_THE_PAPER {
        let command = format!(
            "{command} --set schedule.steps=1 --set schedule.warmup_steps=0 --set schedule.batch_size=2 \
             --set optimizer.base_batch_size=2 --set min_lr=0"
        );
        assert_eq!(run(&command), None);
    }
    let mut failures = Vec::new();
    let mut skipped = [false; SKIPPED.len()];
    let mut count = 0;
    for page in PAGES {
        for command in commands(&fs::read_to_string(root().join("docs").join(page)).unwrap()) {
            if let Some(at) = SKIPPED.iter().position(|(part, _)| command.contains(part)) {
                skipped[at] = true;
                continue;
            }
            count += 1;
            failures.extend(run(&small(&command)).map(|why| format!("{page}: {why}")));
        }
    }
    assert!(failures.is_empty(), "{} of {count} fail:\n{}", failures.len(), failures.join("\n"));
    assert!(count > 60, "{count} commands in all pages");
    for (skipped, (part, _)) in skipped.into_iter().zip(SKIPPED) {
        assert!(skipped, "no page has `{part}`; take it out of the list");
    }
    for made in [
        "runs/tokenizer/report.html",
        "runs/mim/report.html",
        "runs/classifier/best/model.safetensors",
        "runs/segmenter/best/model.safetensors",
        "features.parquet",
        "ids.npy",
        "marked/masks",
        "marked/legend.csv",
        "classifier_hf/config.json",
        "classifier_timm/config.json",
        ".local/share/man/man1/beit2-pretrain.1",
        ".local/share/bash-completion/completions/beit2",
    ] {
        assert!(place.path(made).exists(), "{made}");
    }
    assert!(!place.path("runs/of_the_paper").exists(), "--dry-run leaves nothing behind");
}

#[test]
fn commands_are_taken_from_blocks_and_cut_down() {
    let page = "Text with `beit2 knn`:\n\n    beit2 pretrain my.toml \\\n        --steps 8000\n    --set a=1\n\nbeit2 no\n";
    assert_eq!(commands(page), ["beit2 pretrain my.toml --steps 8000"]);
    let three = "--set schedule.batch_size=4 --set schedule.steps=3 --set schedule.warmup_steps=1";
    assert_eq!(small("beit2 pretrain my.toml --steps 8000"), format!("beit2 pretrain my.toml {three}"));
    let cut = small("beit2 tokenizer train a.toml --set kmeans_warmup_steps=40 --out b");
    assert_eq!(cut, format!("beit2 tokenizer train a.toml --out b {three} --set kmeans_warmup_steps=1"));
    let paper = small("beit2 pretrain mim_base_300e --out x");
    assert!(paper.ends_with("--dry-run") && paper.contains("--out x"), "{paper}");
    assert_eq!(small("beit2 knn --weights x"), "beit2 knn --weights x");
}

#[test]
fn a_wrong_teacher_dim_names_the_right_one() {
    let world = World::new();
    let line = ["tokenizer", "train", "quickstart_tokenizer", "--data", "train", "--val", "train"];
    let wrong = world.beit2(&[&line[..], &["--set", "model.teacher_dim=512", "--out", "run"]].concat());
    wrong.fails(
        2,
        &["model.teacher_dim is 512", "bundled:teacher have 384 values", "set model.teacher_dim=384"],
    );
}

/// The teacher of this world is a plain Vision Transformer, which does not tell its family.
#[test]
fn messages_name_what_the_command_has() {
    let world = World::new();
    let line =
        ["tokenizer", "train", "quickstart_tokenizer", "--data", "train", "--val", "train", "--out", "run"];
    let set = ["--set", "teacher.kind=none", "--set", "teacher.weights=teacher.safetensors"];
    let training = world.beit2(&[&line[..], &set].concat());
    training.fails(2, &["set teacher.kind to `dino`"]);
    for (line, says) in [
        ("tokenizer train --data train", "the recipe quickstart_tokenizer"),
        ("teacher distill distill_tiny --data train", "`beit2 weights fetch` lists teachers"),
        ("pretrain --data train", "use --tokenizer RUN"),
        ("finetune --data train", "use --init RUN"),
        ("segment train --data train", "use --init RUN"),
    ] {
        let ended = world.beit2(&line.split(' ').collect::<Vec<_>>());
        ended.fails(2, &[says]);
        assert!(!ended.err.contains("--set init") && !ended.err.contains("--set tokenizer"), "{}", ended.err);
    }
    crate::support::classes(&world.path("labelled"), &["a", "b"]);
    let knn =
        world.beit2(&["knn", "--weights", "teacher.safetensors", "--data", "labelled", "--val", "labelled"]);
    knn.fails(2, &["--teacher"]);
}
