//! Runs through the real binary: what they print and save, and that no interruption changes a result.

#![allow(clippy::unwrap_used)]

#[path = "reports/compare.rs"]
mod compare;
#[path = "project/mod.rs"]
mod project;
#[path = "reports/stages.rs"]
mod report;
#[path = "support/scenes.rs"]
mod scenes;
mod support;
mod telling;

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use support::{Ended, World, image, signal};

/// Enough steps that a signal always comes in time, few enough to finish soon.
const LONG: [&str; 4] = ["--set", "epochs=60", "--set", "checkpoint_every=2"];

#[test]
fn a_run_leaves_what_it_promises() {
    let world = World::new();
    let ended = world.tokenizer("run", &["--val", "train"]);
    ended.works();
    for part in ["trained parameters", "12 steps of 8 images = 96 images", "step 12/12", "saved", "val loss"]
    {
        assert!(ended.err.contains(part), "no `{part}` in: {}", ended.err);
    }
    for part in ["done", "weights", "run/report.html"] {
        assert!(ended.out.contains(part), "{}", ended.out);
    }
    for file in ["run.toml", "metrics.jsonl", "report.html", "last/model.safetensors", "last/state.json"] {
        assert!(world.path("run").join(file).exists(), "{file}");
    }
    let saved = fs::read_to_string(world.path("run/run.toml")).unwrap();
    for part in ["[fingerprint]", "[environment]", "ema_decay = 0.99", "overrides = [\"data.val=train\"]"] {
        assert!(saved.contains(part), "no `{part}` in: {saved}");
    }
}

#[test]
fn a_finished_run_stays_finished() {
    let world = World::new();
    world.tokenizer("run", &["--quiet"]).works();
    let before = world.weights("run");
    // Paces, names and other things that do not change the result may differ.
    let ended = world.tokenizer("run", &["--workers", "1", "--set", "log_every=5"]);
    assert!(ended.works().err.contains("at step 12 of 12"), "{}", ended.err);
    assert_eq!(world.weights("run"), before);
}

#[test]
fn workers_do_not_change_the_result() {
    let world = World::new();
    world.tokenizer("one", &["--quiet", "--workers", "1"]).works();
    world.tokenizer("four", &["--quiet", "--workers", "4"]).works();
    assert_eq!(world.weights("one"), world.weights("four"));
    world.tokenizer("seed", &["--quiet", "--seed", "1"]).works();
    assert_ne!(world.weights("one"), world.weights("seed"));
}

#[test]
fn a_group_of_devices_trains_in_step_and_only_trains() {
    let world = World::new();
    let run = world.tokenizer("two", &["--device", "cpu,cpu", "--set", "log_every=2"]);
    run.works();
    for part in ["2, 4 images of each step on every one", "step 12/12", "-bound"] {
        assert!(run.err.contains(part), "no `{part}` in: {}", run.err);
    }
    // The same images in the same order: the first losses agree in all digits that a line shows. The first step's line
    // always comes, however fast the steps are.
    let one = world.tokenizer("one", &["--set", "log_every=2"]);
    let loss = |text: &str| {
        let line = text.lines().find(|line| line.starts_with("step 1/12")).unwrap().to_owned();
        line.split("  ").find(|part| part.starts_with("loss")).unwrap().to_owned()
    };
    assert_eq!(loss(&run.err), loss(&one.works().err));
    let three = world.tokenizer("three", &["--device", "cpu,cpu,cpu"]);
    assert_eq!(three.code, Some(2));
    assert!(three.err.contains("use a multiple of 3") && !world.path("three").exists(), "{}", three.err);
    let bench =
        world.beit2(&["bench", "train", "--size", "tiny", "--batch-size", "2", "--device", "cpu,cpu"]);
    assert!(bench.code == Some(2) && bench.err.contains("only training uses several"), "{}", bench.err);
}

#[cfg(unix)]
#[test]
fn signals_save_and_the_same_command_continues_to_the_bit() {
    let world = World::new();
    world.tokenizer("whole", &[&LONG[..], &["--quiet"]].concat()).works();
    for (name, code) in [("INT", 130), ("TERM", 143)] {
        let child = world.spawn_tokenizer(name, &LONG);
        world.wait_for_checkpoint(name);
        signal(&child, name);
        let ended = Ended::from(child.wait_with_output().unwrap());
        assert_eq!(ended.code, Some(code), "{}", ended.err);
        let last = ended.err.lines().last().unwrap();
        assert!(
            last.starts_with("stopped after step ") && last.contains("continue with: beit2 tokenizer train"),
            "{last}"
        );
        let resumed = world.tokenizer(name, &LONG);
        assert!(resumed.works().err.contains("continues"), "{}", resumed.err);
        assert_eq!(world.weights(name), world.weights("whole"), "SIG{name}");
    }
}

#[cfg(unix)]
#[test]
fn a_second_signal_ends_at_once() {
    let world = World::new();
    // The k-means start of the first step reads all of these images, which takes seconds.
    let slow =
        ["--data", "bundled:train", "--set", "image_size=160", "--set", "kmeans_rows_per_code=1000000"];
    let mut child = world.spawn_tokenizer("run", &slow);
    while !world.path("run/run.toml").exists() {
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_millis(300));
    signal(&child, "INT");
    std::thread::sleep(Duration::from_millis(300));
    assert!(child.try_wait().unwrap().is_none(), "the first signal lets the step end");
    signal(&child, "INT");
    let ended = Ended::from(child.wait_with_output().unwrap());
    assert_eq!(ended.code, Some(130), "{}", ended.err);
    assert!(ended.err.contains("interrupt again to end at once"), "{}", ended.err);
    assert!(!ended.err.contains("stopped after"), "{}", ended.err);
}

#[cfg(unix)]
#[test]
fn kill_9_loses_nothing_before_the_last_checkpoint() {
    let world = World::new();
    world.tokenizer("whole", &[&LONG[..], &["--quiet"]].concat()).works();
    for round in 0..3 {
        let mut child = world.spawn_tokenizer("killed", &LONG);
        world.wait_for_checkpoint("killed");
        std::thread::sleep(Duration::from_millis(20 * round));
        signal(&child, "KILL");
        child.wait().unwrap();
        assert!(world.path("killed/run.toml").is_file());
    }
    world.tokenizer("killed", &LONG).works();
    assert_eq!(world.weights("killed"), world.weights("whole"));
    let metrics = |run: &str| {
        let text = fs::read_to_string(world.path(run).join("metrics.jsonl")).unwrap();
        text.lines()
            .map(|line| line.split(",\"images_per_second").next().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(metrics("killed"), metrics("whole"), "one straight story");
}

#[test]
fn two_processes_do_not_share_a_run() {
    let world = World::new();
    let mut first = world.spawn_tokenizer("run", &["--set", "epochs=100000", "--set", "checkpoint_every=5"]);
    world.wait_for_checkpoint("run");
    let more = ["--set", "epochs=100000", "--set", "checkpoint_every=5"];
    let second = world.tokenizer("run", &more);
    first.kill().unwrap();
    first.wait().unwrap();
    second.fails(1, &["run is in use by another process", "--out"]);
}

#[test]
fn dry_run_prints_and_touches_nothing() {
    let world = World::new();
    let ended = world.tokenizer("run", &["--dry-run", "--set", "lr=1e-3"]);
    let table: toml::Table = ended.works().out.parse().unwrap();
    assert_eq!(table["optimizer"]["lr"].as_float(), Some(1e-3));
    assert_eq!(table["optimizer"]["beta2"].as_float(), Some(0.99), "defaults are there too");
    assert!(ended.err.contains("ready: 12 steps of 8 images"), "{}", ended.err);
    for row in ["parameters", "memory", "time", "writes"] {
        assert!(ended.err.lines().any(|line| line.starts_with(row)), "no {row}: {}", ended.err);
    }
    assert!(!world.path("run").exists());
}

#[test]
fn a_rehearsal_is_json_and_says_where_a_run_goes_on() {
    let world = World::new();
    let files = || {
        let entries = fs::read_dir(world.path("")).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = files();
    let rehearse = || {
        let ended = world.tokenizer("run", &["--dry-run", "--json", "--val", "train", "--set", "epochs=4"]);
        serde_json::from_str::<serde_json::Value>(&ended.works().out).unwrap()
    };
    let told = rehearse();
    assert_eq!(files(), before, "nothing is left");
    assert_eq!(told["ready"], true);
    assert_eq!(told["continues_at"], serde_json::Value::Null);
    assert_eq!((told["images_per_step"].as_u64(), told["steps"].as_u64()), (Some(8), Some(12)));
    assert_eq!(told["settings"]["schedule"]["epochs"], 4);
    assert_eq!(told["warnings"], serde_json::json!([]));
    let number = |name: &str| told[name].as_f64().unwrap_or_else(|| panic!("no number {name}: {told}"));
    assert!(number("seconds") >= number("seconds_per_epoch") && number("seconds_per_step") > 0.0);
    assert!(number("memory_bytes") > 1e6 && number("measured_memory_bytes") > 1e6);

    // What was ready starts, with as many parameters.
    let run = world.tokenizer("run", &["--val", "train", "--set", "epochs=4"]);
    let parameters = beit2_run::thousands(told["parameters"].as_u64().unwrap());
    assert!(run.works().err.contains(&format!("{parameters} trained parameters")), "{}", run.err);
    let state = fs::read(world.path("run/last/state.json")).unwrap();
    assert_eq!(rehearse()["continues_at"], 12);
    assert_eq!(fs::read(world.path("run/last/state.json")).unwrap(), state);
}

/// What keeps a run from starting keeps a rehearsal from succeeding: the same sentence, the same exit code, no folder.
#[test]
fn a_rehearsal_finds_what_the_run_finds() {
    let world = World::new();
    world.tokenizer("tokens", &["--quiet"]).works();
    support::classes(&world.path("classes"), &["cat", "dog"]);
    fs::create_dir(world.path("other")).unwrap();
    fs::write(world.path("other/notes.txt"), "mine").unwrap();
    let tokenizer = ["tokenizer", "train", "tiny.toml"];
    let pretrain = ["pretrain", "--data", "train", "--batch-size", "4", "--steps", "2"];
    let finetune = ["finetune", "--data", "classes", "--batch-size", "4", "--steps", "2"];
    let cases: [(&[&str], &[&str], &str); 8] = [
        (&tokenizer, &["--set", "teacher_dim=7"], "model.teacher_dim is 7"),
        (&tokenizer, &["--set", "teacher.weights=tokens"], "stage `tokenizer`"),
        (&tokenizer, &["--device", "cpu,cpu,cpu"], "use a multiple of 3"),
        (&tokenizer, &["--out", "other"], "not a run directory"),
        (&tokenizer, &["--out", "tokens", "--set", "lr=9e-3"], "belongs to another run"),
        (&pretrain, &["--tokenizer", "teacher.safetensors"], "teacher.safetensors"),
        (&pretrain, &["--tokenizer", "tokens", "--set", "vocab_size=9"], "vocab_size is 9"),
        (
            &finetune,
            &["--init", "scratch", "--size", "tiny", "--device", "cpu,cpu,cpu"],
            "use a multiple of 3",
        ),
    ];
    for (command, more, sentence) in cases {
        let out: &[&str] = if more.contains(&"--out") { &[] } else { &["--out", "never"] };
        let all = [command, more, out, &["--no-check"]].concat();
        let run = world.beit2(&all);
        let dry = world.beit2(&[&all[..], &["--dry-run"]].concat());
        let last = |ended: &Ended| ended.err.lines().last().unwrap_or_default().to_owned();
        assert!(last(&dry).contains(sentence), "{more:?}: {}", dry.err);
        assert_eq!((last(&dry), dry.code), (last(&run), run.code), "{more:?}");
        assert!(dry.code != Some(0) && !world.path("never").exists(), "{more:?}");
    }
}

#[test]
fn every_recipe_resolves() {
    let world = World::new();
    support::classes(&world.path("classes"), &["cat", "dog"]);
    scenes::scenes(&world.path("scenes"), 3);
    let list = world.beit2(&["recipes", "list", "--json"]);
    let list: serde_json::Value = serde_json::from_str(&list.works().out).unwrap();
    let recipes = list["recipes"].as_array().unwrap();
    assert!(recipes.len() >= 7);
    for recipe in recipes {
        let name = recipe["name"].as_str().unwrap();
        let (command, weights): (&[&str], _) = match recipe["stage"].as_str().unwrap() {
            "tokenizer" => (&["tokenizer", "train"], "teacher.weights=teacher.safetensors"),
            "pretrain" => (&["pretrain"], "tokenizer.weights=teacher.safetensors"),
            "finetune" => (&["finetune"], "init.weights=scratch"),
            "segment" => (&["segment", "train"], "init.weights=scratch"),
            _ => (&["teacher", "distill"], "teacher.weights=teacher.safetensors"),
        };
        let data = match command[0] {
            "finetune" => "classes",
            "segment" => "scenes",
            _ => "train",
        };
        let changes = [
            "--dry-run",
            "--data",
            data,
            "--val",
            data,
            "--set",
            weights,
            "--set",
            "batch_size=2",
            "--set",
            "min_lr=0.0",
            "--set",
            "warmup_epochs=0.0",
            "--set",
            "warmup_steps=none",
            "--set",
            "kmeans_warmup_steps=0",
        ];
        let changes = if command[0] == "tokenizer" { &changes[..] } else { &changes[..changes.len() - 2] };
        // Models from scratch are small enough to be rehearsed. The weights of other stages are of another kind, which a
        // rehearsal says after the recipe.
        let scratch = weights == "init.weights=scratch";
        let size: &[&str] = match command[0] {
            "finetune" => &["--size", "tiny"],
            "segment" => &[
                "--set",
                "vit.width=64",
                "--set",
                "vit.heads=4",
                "--set",
                "model.channels=16",
                "--set",
                "aux_channels=8",
            ],
            _ => &[],
        };
        let ended = world.beit2(&[command, &[name], changes, size].concat());
        if scratch {
            ended.works();
        }
        assert!(
            ended.out.parse::<toml::Table>().is_ok_and(|table| !table.is_empty()),
            "{name}: {}",
            ended.err
        );
        let shown = world.beit2(&["recipes", "show", name]);
        assert!(shown.works().out.starts_with("# "), "{name}");
    }
}

#[test]
fn json_is_one_object_and_quiet_is_quiet() {
    let world = World::new();
    let ended = world.tokenizer("run", &["--json", "--quiet"]);
    let object: serde_json::Value = serde_json::from_str(&ended.works().out).unwrap();
    assert_eq!((object["complete"].as_bool(), object["steps"].as_u64()), (Some(true), Some(12)));
    assert!(object["metrics"]["rec_loss"].is_number() && object["checkpoint"].is_string(), "{object}");
    assert_eq!(ended.err, "");
    let report = world.beit2(&["report", "run", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&report.works().out).unwrap();
    let page = fs::read_to_string(world.path(report["report"].as_str().unwrap())).unwrap();
    assert!(page.contains("</html>") && page.contains("codebook"));
}

#[test]
fn pretraining_and_probes_follow_a_tokenizer() {
    let world = World::new();
    world.tokenizer("tokenizer", &["--quiet"]).works();
    let args = ["pretrain", "mim.toml", "--tokenizer", "tokenizer", "--out", "mim"];
    let ended = world.beit2(&args);
    assert!(ended.works().err.contains("6 of 16 patches"), "{}", ended.err);
    for class in ["cat", "dog"] {
        fs::create_dir_all(world.path("labelled").join(class)).unwrap();
        for at in 0..8 {
            let number = at + if class == "cat" { 0 } else { 60 };
            fs::write(world.path("labelled").join(class).join(format!("{at}.ppm")), image(number, 40))
                .unwrap();
        }
    }
    let on = ["--data", "labelled", "--val", "labelled"];
    for weights in ["mim", "tokenizer", "pixels"] {
        let ended = world
            .beit2(&[&["knn", "--weights", weights, "--k", "1,5", "--json", "--quiet"], &on[..]].concat());
        let object: serde_json::Value = serde_json::from_str(&ended.works().out).unwrap();
        assert_eq!(object["knn"][0]["top1"].as_f64(), Some(1.0), "every image finds itself: {object}");
        assert_eq!((object["train"].as_u64(), object["classes"].as_u64()), (Some(16), Some(2)));
    }
    let probe = ["probe", "--weights", "mim", "--features", "concat", "--layer", "1", "--epochs", "5"];
    let ended = world.beit2(&[&probe[..], &on].concat());
    assert!(
        ended.works().out.contains("linear probe top-1") && ended.out.contains("after block 1, 32 values"),
        "{}",
        ended.out
    );
    let teacher = ["knn", "--weights", "teacher.safetensors", "--image-size", "32", "--k", "1"];
    let dino_flags = ["--teacher", "dino", "--teacher-heads", "2"];
    let ended = world.beit2(&[&teacher[..], &dino_flags, &on[..]].concat());
    assert!(ended.works().out.contains("100.0 %") && ended.out.contains("16 values"), "{}", ended.out);
    world
        .beit2(&[&teacher[..], &on[..]].concat())
        .fails(2, &["teacher.safetensors", "name its family", "--teacher"]);
    world
        .beit2(&[&teacher[..], &["--teacher", "dino"], &on[..]].concat())
        .fails(2, &["attention heads", "width 16", "--teacher-heads"]);
    world
        .beit2(&[&teacher[..], &["--teacher", "clip"], &on[..]].concat())
        .fails(2, &["`clip`", "a plain Vision Transformer"]);
    let dino = |more: [&'static str; 2]| {
        world.beit2(&[&["knn", "--weights", "teacher.safetensors"], &dino_flags[..], &more, &on[..]].concat())
    };
    dino(["--image-size", "30"]).fails(2, &["30", "multiple of this model's patches of 8 px"]);
    dino(["--layer", "2"]).fails(2, &["teacher.layer 2 does not exist", "blocks 1 to 1"]);
    let wrong = world.beit2(&[&["knn", "--weights", "mim", "--layer", "3"], &on[..]].concat());
    wrong.fails(2, &["layer 3", "blocks 1 to 2"]);
    world
        .beit2(&["knn", "--weights", "mim", "--data", "labelled", "--val", "train"])
        .fails(2, &["train has no classes; it needs those of labelled"]);
    world
        .beit2(&["knn", "--weights", "mim", "--data", "train", "--val", "train"])
        .fails(2, &["train has no classes; features are measured by classes"]);
}

#[test]
fn doctor_and_help() {
    let world = World::new();
    let doctor = world.beit2(&["doctor", "--json"]);
    let object: serde_json::Value = serde_json::from_str(&doctor.works().out).unwrap();
    assert_eq!(object["devices"]["cpu"]["works"].as_bool(), Some(true));
    assert!(world.beit2(&["doctor"]).works().out.contains("device cpu"));
    assert!(world.beit2(&["pretrain", "--help"]).works().out.contains("Examples:"));
    assert!(world.beit2(&["--version"]).works().out.starts_with("beit2 "));
}

#[test]
fn a_closed_pipe_is_no_error() {
    let world = World::new();
    let mut child = world
        .command(&["recipes", "show", "mim_base_300e"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let ended = Ended::from(child.wait_with_output().unwrap());
    assert_eq!(ended.err, "");
}

/// A step of a minute on one core, stopped after some seconds of it.
#[cfg(unix)]
#[test]
fn a_signal_is_answered_inside_a_step() {
    let world = World::new();
    let sizes = ["image_size=224", "patch_size=16", "vit.width=384", "vit.depth=12", "vit.heads=6"];
    let batch = ["schedule.batch_size=256", "grad_accum_steps=32", "workers=1"];
    let mut args =
        vec!["finetune", "finetune_base_1600e", "--data", "bundled:train", "--init", "scratch", "--no-check"];
    args.extend(["--set", "steps=10", "--set", "warmup_steps=1", "--out", "run"]);
    sizes.iter().chain(&batch).for_each(|set| args.extend(["--set", set]));
    let mut child = world.command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    // How far the step is, after some seconds.
    let shown =
        lines.find(|line| line.starts_with("first step: ")).expect("no part of the first step was told");
    let share: f64 = shown.trim_start_matches("first step: ").trim_end_matches(" %").parse().unwrap();
    assert!((0.0..99.0).contains(&share), "{shown}");
    signal(&child, "TERM");
    let since = Instant::now();
    let last = lines.last().unwrap();
    let code = child.wait().unwrap().code();
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
    assert_eq!(code, Some(143));
    assert!(
        last.starts_with("stopped in the first step") && last.contains("begin again with: beit2"),
        "{last}"
    );
    assert_eq!(fs::read_dir(world.path("run/checkpoints")).unwrap().count(), 0);
}
