//! The tables of the README and of the benchmark pages say what the files in `docs/benchmarks/data` say, and comments in the
//! code agree with the pages that they cite.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use serde_json::Value;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn page(name: &str) -> String {
    let path = repository().join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn data(name: &str) -> Value {
    serde_json::from_str(&page(&format!("docs/benchmarks/data/{name}.json"))).unwrap()
}

/// The rows below the first header that contains `title`, without emphasis.
fn table(page: &str, title: &str) -> Vec<Vec<String>> {
    let lines = page.lines().skip_while(|line| !(line.starts_with('|') && line.contains(title)));
    let cells = |line: &str| -> Vec<String> {
        let line = line.trim().trim_matches('|').replace("**", "");
        line.split('|').map(|cell| cell.trim().to_owned()).collect()
    };
    let rows: Vec<_> = lines.skip(2).take_while(|line| line.starts_with('|')).map(cells).collect();
    assert!(!rows.is_empty(), "no table has `{title}` in its header");
    rows
}

/// The row whose first cell is or begins with this label.
fn row(rows: &[Vec<String>], label: &str) -> Vec<String> {
    let equal = rows.iter().find(|row| row[0] == label);
    let row = equal.or_else(|| rows.iter().find(|row| row[0].starts_with(label)));
    row.unwrap_or_else(|| panic!("no row begins with `{label}`"))[1..].to_vec()
}

/// A share as a percentage.
fn percent(share: &Value) -> String {
    format!("{:.1}", 100.0 * share.as_f64().unwrap())
}

/// `a · b · c`
fn joined(runs: &[Value], value: impl Fn(&Value) -> String) -> String {
    runs.iter().map(value).collect::<Vec<_>>().join(" · ")
}

fn minutes(seconds: &Value) -> String {
    let seconds = seconds.as_f64().unwrap().round() as u64;
    format!("{} min {} s", seconds / 60, seconds % 60)
}

#[test]
fn quickstart_in_the_readme() {
    let (page, run) = (page("README.md"), data("quickstart-whitened-seed-0"));
    let rows = table(&page, "409 held-out drawings");
    for (label, features) in [
        ("raw pixels", "pixels"),
        ("same ViT at random initialisation", "random"),
        ("tokenizer's encoder", "encoder"),
        ("pretrained ViT", "pretrained"),
        ("bundled teacher", "teacher"),
    ] {
        let expected = ["knn", "probe"].map(|way| format!("{} %", percent(&run[way][features])));
        assert_eq!(row(&rows, label), expected, "{label}");
    }
    let perplexity = format!("perplexity {:.0}", run["codebook_perplexity"].as_f64().unwrap());
    for text in [perplexity, minutes(&run["seconds"]["total"])] {
        assert!(page.contains(&text), "README.md does not say `{text}`");
    }
    assert_eq!(run["codebook_usage"], 1.0, "README.md says that all codes are in use");
}

/// Rows of the quickstart's tables, and their keys.
const ROWS: [(&str, &str); 7] = [
    ("raw pixels", "pixels"),
    ("same ViT at random initialisation, CLS", "random"),
    ("same ViT at random initialisation, CLS + mean", "random_concat"),
    ("tokenizer's encoder", "encoder"),
    ("pretrained ViT, CLS", "pretrained"),
    ("pretrained ViT, CLS + mean", "pretrained_concat"),
    ("bundled teacher", "teacher"),
];

#[test]
fn quickstart_page() {
    let page = page("docs/benchmarks/quickstart.md");
    let seeds = |kind: &str| [0, 1, 2].map(|seed| data(&format!("quickstart-{kind}seed-{seed}")));

    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let (avx512, avx2, before) = (seeds("whitened-"), seeds("whitened-avx2-"), seeds("f32-"));
    let rows = table(&page, "k-NN, AVX-512");
    for (label, features) in ROWS {
        let columns = [(&avx512, "knn"), (&avx2, "knn"), (&before, "knn"), (&avx512, "probe")];
        let expected: Vec<String> = columns
            .into_iter()
            .flat_map(|(runs, way)| {
                let shares: Vec<f64> =
                    runs.iter().map(|run| 100.0 * run[way][features].as_f64().unwrap()).collect();
                [joined(runs, |run| percent(&run[way][features])), format!("{:.1}", mean(&shares))]
            })
            .collect();
        assert_eq!(row(&rows, label), expected, "{label}");
    }

    let shorter = [seeds("whitened-3000-steps-"), seeds("whitened-3000-steps-avx2-")];
    let rows = table(&page, "k-NN, AVX-512, fewer steps");
    for (label, features) in &ROWS[3..6] {
        let expected: Vec<String> = shorter
            .iter()
            .flat_map(|runs| {
                let shares: Vec<f64> =
                    runs.iter().map(|run| 100.0 * run["knn"][features].as_f64().unwrap()).collect();
                [joined(runs, |run| percent(&run["knn"][features])), format!("{:.1}", mean(&shares))]
            })
            .collect();
        assert_eq!(row(&rows, label), expected, "{label}");
    }
    let former = data("quickstart-former-seed-0");
    assert_eq!(
        former["knn"],
        data("quickstart-f32-seed-0")["knn"],
        "the recipes of then have the digits of then"
    );
    for run in [&avx512[0], &shorter[0][0], &shorter[1][0], &former] {
        let time = minutes(&run["seconds"]["total"]);
        assert!(page.contains(&time), "the page does not say `{time}`");
    }

    let (swept, fixed) = (data("quickstart-sweep-seed-0"), data("quickstart-f32-seed-0"));
    assert_eq!(swept["knn"], fixed["knn"], "the probe's protocol changes no features");
    let rows = table(&page, "linear probe, chosen rate");
    let interval = |value: &Value| format!("{} to {}", percent(&value[0]), percent(&value[1]));
    for (label, features) in ROWS {
        let expected = [
            percent(&swept["knn"][features]),
            interval(&swept["knn_interval"][features]),
            percent(&swept["probe"][features]),
            interval(&swept["probe_interval"][features]),
            format!("{:e}", swept["probe_lr"][features].as_f64().unwrap()),
            percent(&swept["probe_train"][features]),
            percent(&fixed["probe"][features]),
        ];
        assert_eq!(row(&rows, label), expected, "{label}");
    }

    let runs = seeds("");
    let rows = table(&page, "k-NN, seeds 0, 1, 2");
    for (label, features) in ROWS {
        let expected = ["knn", "probe"].map(|way| joined(&runs, |run| percent(&run[way][features])));
        assert_eq!(row(&rows, label), expected, "{label}");
    }

    let precisions = [seeds("f32-"), seeds("bf16-")];
    let rows = table(&page, "| f32 | mean | bf16 | mean |");
    let mut checked = 0;
    for (label, path, decimals) in [
        ("k-NN, pretrained ViT, CLS", "/knn/pretrained", 1),
        ("k-NN, pretrained ViT, CLS + mean", "/knn/pretrained_concat", 1),
        ("k-NN, tokenizer's encoder", "/knn/encoder", 1),
        ("linear probe, pretrained ViT, CLS", "/probe/pretrained", 1),
        ("linear probe, CLS + mean", "/probe/pretrained_concat", 1),
        ("linear probe, tokenizer's encoder", "/probe/encoder", 1),
        ("MIM accuracy, last block", "/mim_accuracy", 1),
        ("MIM accuracy, aggregated", "/mim_accuracy_patch_aggregation", 1),
        ("codes used, percent", "/codebook_usage", 0),
        ("codebook perplexity", "/codebook_perplexity", 0),
    ] {
        let factor = if label == "codebook perplexity" { 1.0 } else { 100.0 };
        let number = |run: &Value| factor * run.pointer(path).unwrap().as_f64().unwrap();
        let text = |value: f64| format!("{value:.decimals$}");
        let expected = precisions.iter().flat_map(|runs| {
            let numbers: Vec<f64> = runs.iter().map(number).collect();
            [joined(runs, |run| text(number(run))), text(mean(&numbers))]
        });
        assert_eq!(row(&rows, label), expected.collect::<Vec<_>>(), "{label}");
        checked += 1;
    }
    assert_eq!(checked, rows.len(), "rows that no file stands behind");

    let random = data("quickstart-minutes-1")["knn"]["random"].clone();
    for cells in table(&page, "| `--minutes` |") {
        let minutes = cells[0].split(' ').next().unwrap();
        let name = if minutes == "8" { "seed-0".to_owned() } else { format!("minutes-{minutes}") };
        let run = data(&format!("quickstart-{name}"));
        let number = |value: &Value| value.as_f64().unwrap();
        let usage = percent(&run["codebook_usage"]).trim_end_matches(".0").to_owned();
        let added = 100.0 * (number(&run["knn"]["pretrained"]) - number(&random));
        let expected = [
            format!("{usage} %, {:.0}", number(&run["codebook_perplexity"])),
            format!("{} %", percent(&run["mim_accuracy"])),
            percent(&run["knn"]["encoder"]),
            percent(&run["knn"]["pretrained"]),
            format!("{added:.1}").replace('-', "−"),
            percent(&run["probe"]["pretrained"]),
            percent(&run["knn"]["pretrained_concat"]),
        ];
        assert_eq!(cells[2..], expected, "--minutes {minutes}");
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Images per second of each program, in every round of a cell.
fn speeds(cell: &Value, program: &str) -> Vec<f64> {
    let rounds = cell["programs"][program]["rounds"].as_array().unwrap();
    rounds.iter().map(|round| round["images_per_second"].as_f64().unwrap()).collect()
}

/// Medians of the rounds' ratios, to eager PyTorch and to what is faster of it and the compiled one.
fn ratios(cell: &Value) -> [f64; 2] {
    let faster = ["pytorch-eager", "pytorch-compile"]
        .into_iter()
        .max_by(|a, b| median(speeds(cell, a)).total_cmp(&median(speeds(cell, b))))
        .unwrap();
    ["pytorch-eager", faster].map(|other| {
        let pairs = speeds(cell, "beit2").into_iter().zip(speeds(cell, other));
        median(pairs.map(|(ours, theirs)| ours / theirs).collect())
    })
}

fn cells(name: &str) -> Vec<Value> {
    let file = page(&format!("docs/benchmarks/data/{name}.jsonl"));
    file.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn speed_in_the_readme() {
    let cells = cells("cpu");
    let rows = table(&page("README.md"), "PyTorch eager");
    let mut checked = 0;
    for (label, cell) in [
        ("pretraining, small", "train:pretrain:small:8"),
        ("fine-tuning, small", "train:finetune:small:8"),
        ("tokenizer, small", "train:tokenizer:small:8"),
        ("inference, base, 8 images", "infer:base:8"),
        ("inference, base, 1 image", "infer:base:1"),
    ] {
        let of = |precision: &str| {
            let name = format!("{cell}:{precision}");
            ratios(cells.iter().find(|cell| cell["cell"] == name.as_str()).unwrap())
        };
        let (f32, bf16) = (of("f32"), of("bf16"));
        let expected = [0, 1].map(|column| format!("{:.2}× / {:.2}×", f32[column], bf16[column]));
        assert_eq!(row(&rows, label), expected, "{label}");
        checked += 1;
    }
    assert_eq!(checked, rows.len(), "rows that no file stands behind");
}

#[test]
fn cpu_page() {
    let page = page("docs/benchmarks/cpu.md");
    let (first, avx2) = page.split_once("\n## With AVX2\n").unwrap();
    for (part, file) in [(first, "cpu"), (avx2, "cpu-avx2")] {
        let cells = cells(file);
        let rows = table(part, "beit2 / eager");
        assert_eq!(rows.len(), cells.len());
        for cell in &cells {
            let name = cell["cell"].as_str().unwrap();
            let found = row(&rows, name);
            let programs = ["beit2", "pytorch-eager", "pytorch-compile"];
            let speeds = programs.map(|program| format!("{:.2}", median(speeds(cell, program))));
            assert_eq!(found[..3], speeds, "{name}: images per second");
            for (column, ratio) in found[3..5].iter().zip(ratios(cell)) {
                assert!(
                    column.starts_with(&format!("{ratio:.2} (")),
                    "{name}: {column}, the file gives {ratio}"
                );
            }
        }
    }
}

/// Seeds 1 and 2 have files; seed 0 ran before there were any.
#[test]
fn fashion_mnist_page() {
    let page_text = page("docs/benchmarks/fashion-mnist.md");
    let rows = table(&page_text, "top-1 on the test images");
    let runs = [1, 2].map(|seed| data(&format!("fashion-mnist-seed-{seed}")));
    for (label, path) in [
        ("fine-tuned from the pretrained model", "/from-pretrain-eval/top1"),
        ("the same model from scratch", "/from-scratch-eval/top1"),
        ("linear probe on the pretrained model", "/pretrain-probe/probe/top1"),
        ("k-NN (20 neighbours) on the pretrained model", "/pretrain-knn/knn/0/top1"),
    ] {
        let found = row(&rows, label);
        let expected = [0, 1].map(|seed| percent(runs[seed].pointer(path).unwrap()));
        assert_eq!(found[1..3], expected, "{label}");
        let numbers: Vec<f64> = found[..4].iter().map(|cell| cell.parse().unwrap()).collect();
        let mean = numbers[..3].iter().sum::<f64>() / 3.0;
        // Of values that are rounded themselves.
        assert!((mean - numbers[3]).abs() <= 0.1 + 1e-9, "{label}: mean {mean}");
    }
    let readme = page("README.md");
    for label in ["fine-tuned from the pretrained model", "the same model from scratch"] {
        let mean = format!("{} %", row(&rows, label)[3]);
        assert!(readme.contains(&mean), "README.md does not say {mean}");
    }
}

#[test]
fn segmentation_page() {
    let rows = table(&page("docs/benchmarks/segmentation.md"), "| pretrained backbone |");
    let run = data("segmentation-seed-0");
    for (label, key) in [("mIoU", "miou"), ("mAcc", "macc"), ("aAcc", "aacc")] {
        let expected = ["from-pretrain-eval", "from-scratch-eval"].map(|part| percent(&run[part][key]));
        assert_eq!(row(&rows, label), expected, "{label}");
    }
}

/// The Rust files of all crates but this one, by their paths in the repository, with their text.
fn sources() -> Vec<(String, String)> {
    let (root, mut files) = (repository(), Vec::new());
    let mut folders = vec![root.join("crates")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("target") {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs")
                && !path.ends_with("benchmarks.rs")
            {
                let parts = path.strip_prefix(&root).unwrap().iter();
                let parts: Vec<_> = parts.map(|part| part.to_string_lossy()).collect();
                files.push((parts.join("/"), std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    files.sort();
    files
}

#[test]
fn differences_marked_in_the_code_are_listed() {
    let page = page("docs/differences.md");
    let (_, list) = page.split_once("\n## Marked in the code\n").unwrap();
    let item = |line: &str| Some(line.strip_prefix("- `")?.strip_suffix('`')?.to_owned());
    let listed: Vec<String> = list.lines().filter_map(item).collect();
    let marked = sources().into_iter().filter(|(_, text)| text.contains("Differs from upstream:"));
    let marked: Vec<String> = marked.map(|(path, _)| path).collect();
    assert_eq!(listed, marked, "the list at the end of docs/differences.md (left) and the comments (right)");
}

#[test]
fn sections_and_traps_that_comments_cite_exist() {
    let page = page("docs/method.md");
    let heading = |line: &str| {
        let title = line.strip_prefix("### ").or(line.strip_prefix("## "))?;
        Some(title.split(' ').next()?.trim_end_matches('.').to_owned())
    };
    let sections: Vec<String> = page.lines().filter_map(heading).collect();
    let (_, traps) = page.split_once("\n## 9. Traps\n").unwrap();
    let (traps, _) = traps.split_once("\n## 10.").unwrap();
    let number = |text: &str| -> String {
        let number: String = text.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
        number.trim_end_matches('.').to_owned()
    };
    let mut cited = 0;
    for (path, text) in sources() {
        for line in text.lines().filter(|line| line.contains("docs/method.md")) {
            for section in line.split('§').skip(1).map(number) {
                assert!(sections.contains(&section), "{path} cites section {section}: {line}");
                cited += 1;
            }
            for trap in line.split("trap ").skip(1).map(number) {
                assert!(traps.contains(&format!("\n{trap}. ")), "{path} cites trap {trap}: {line}");
            }
        }
    }
    assert!(cited > 50, "only {cited} citations found");
}
