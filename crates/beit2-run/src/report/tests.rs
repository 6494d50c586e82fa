use super::*;
use crate::metrics::Kind;

/// Small deterministic noise in -1..1.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as f64 / (1u64 << 30) as f64 - 1.0
    }
}

fn records(
    stage: &str,
    steps: u64,
    values: impl Fn(f64, &mut Noise) -> Vec<(&'static str, f64)>,
) -> Vec<Record> {
    let mut noise = Noise(7);
    let record = |kind, step: u64, values: Vec<(&str, f64)>| Record {
        kind,
        stage: stage.into(),
        epoch: step / 100,
        step,
        values: values.into_iter().map(|(n, v)| (n.to_owned(), v)).collect(),
    };
    (1..=steps).map(|step| record(Kind::Step, step, values(step as f64 / steps as f64, &mut noise))).collect()
}

/// An image with some structure: discs on a gradient.
fn image(side: u32, seed: u32) -> RgbImage {
    let mut rgb = Vec::new();
    for y in 0..side {
        for x in 0..side {
            let (u, v) = (f64::from(x) / f64::from(side), f64::from(y) / f64::from(side));
            let s = f64::from(seed);
            let disc = ((u - 0.5 - 0.2 * s.sin()).hypot(v - 0.5 - 0.2 * s.cos())) < 0.28;
            let base = [120.0 + 100.0 * u, 140.0 + 80.0 * v, 200.0 - 60.0 * u];
            let ink = [220.0 - 20.0 * (s % 7.0), 60.0 + 25.0 * (s % 5.0), 40.0 + 30.0 * (s % 6.0)];
            rgb.extend((if disc { ink } else { base }).map(|c: f64| c.clamp(0.0, 255.0) as u8));
        }
    }
    RgbImage { width: side, height: side, rgb }
}

fn with_grid(mut image: RgbImage, hide: impl Fn(u32, u32) -> bool) -> RgbImage {
    for y in 0..image.height {
        for x in 0..image.width {
            if hide(x / 8, y / 8) {
                let at = 3 * (y * image.width + x) as usize;
                image.rgb[at..at + 3].copy_from_slice(&[128, 128, 128]);
            }
        }
    }
    image
}

fn examples() -> Examples {
    let samples = (0..6).map(|i| {
        let hidden = move |x: u32, y: u32| (x * 3 + y * 5 + i) % 7 < 3 || (x + i) % 8 < 2;
        MimSample {
            input: image(64, i),
            masked: with_grid(image(64, i), hidden),
            tokens_drawn: image(64, i + 1),
            predicted_drawn: image(64, i + 2),
            correct: with_grid(image(64, i), move |x, y| !hidden(x, y) || (x + y) % 3 == 0),
            caption: format!("{} of 34 masked patches predicted", 9 + i),
            ..MimSample::default()
        }
    });
    let codes = (0..24).map(|code| GalleryCode {
        code: code * 21,
        count: u64::from(4200 / (code + 1)),
        patches: (0..8).map(|p| image(8, code * 3 + p / 4)).collect(),
    });
    let mut counts = vec![0; 512];
    codes.clone().for_each(|code| counts[code.code as usize] = code.count);
    Examples {
        step: 3000,
        averages: false,
        seen: Seen { validation: true, data: "bundled:val".into(), images: 409, of: 409 },
        gallery: Some(Gallery { counts, codes: codes.collect() }),
        mim_samples: samples.collect(),
        classified: Some(classified(3)),
        segmented: Some(Segmented {
            classes: vec![
                PixelClass { name: "sky".into(), colour: [0, 0, 255], iou: Some(0.875), accuracy: Some(0.9) },
                PixelClass { name: "<sea>".into(), colour: [0, 90, 200], iou: Some(0.25), accuracy: None },
                PixelClass { name: "ice".into(), ..PixelClass::default() },
            ],
            images: vec![image(64, 1)],
        }),
    }
}

/// A classifier that takes every fourth image for the next class.
fn classified(classes: u32) -> Classified {
    let worst = WorstImage {
        name: "cats/<7>.jpg".into(),
        classes: vec![0],
        predicted: vec![Guess { class: 1, probability: 0.75 }],
        probability: Some(0.02),
        loss: 3.912,
        image: image(96, 5),
    };
    Classified {
        classes: (0..classes).map(|class| format!("animal {class}")).collect(),
        confusion: (0..classes)
            .flat_map(|class| [(class, class, 30), (class, (class + 1) % classes, 10)])
            .collect(),
        labels: Vec::new(),
        worst: vec![worst],
    }
}

fn realistic() -> ReportData {
    let row = |label: &str, knn: f64, probe: f64, strong| HeadlineRow {
        label: label.into(),
        cells: vec![Cell::percent(knn), Cell::percent(probe)],
        strong,
    };
    ReportData {
        title: "BEiT v2 quickstart".into(),
        date: "2026-05-17 14:03 UTC".into(),
        command: "beit2 quickstart --out runs/quickstart --seed 1".into(),
        facts: vec![
            ("Codebook usage".into(), "99.6 %".into()),
            ("Codebook perplexity".into(), "248 of 512".into()),
            ("MIM accuracy".into(), "31.2 %".into()),
            ("Wall time".into(), "7 min 42 s".into()),
        ],
        headline: Headline {
            columns: ["Features", "k-NN top-1", "Linear probe top-1"].map(String::from).to_vec(),
            rows: vec![
                row("Raw pixels", 0.34, 0.31, false),
                row("Same ViT, random weights", 0.27, 0.29, false),
                row("Tokenizer encoder", 0.41, 0.44, false),
                row("Pretrained ViT", 0.433, 0.471, true),
                row("Teacher", 0.51, 0.56, false),
            ],
            note:
                "Top-1 accuracy on 400 held-out images of 14 classes; guessing the largest class gives 14 %."
                    .into(),
        },
        warnings: vec!["3 of 2,041 images could not be read and were replaced; see unreadable.txt.".into()],
        stages: vec![
            Stage {
                name: "tokenizer".into(),
                records: records("tokenizer", 900, |t, n| {
                    vec![
                        ("loss", 0.25 + 0.75 * (-5.0 * t).exp() + 0.03 * n.next()),
                        ("commitment_loss", 0.004 + 0.01 * (-3.0 * t).exp() + 0.001 * n.next()),
                        ("lr", 1e-3 * if t < 0.1 { 10.0 * t } else { 0.5 * (1.0 + (3.5 * (t - 0.1)).cos()) }),
                        ("grad_norm", 1.0 + 6.0 * (-8.0 * t).exp() * (1.0 + n.next()) + 0.2 * n.next()),
                        ("images_per_second", 140.0 + 6.0 * n.next()),
                        ("weight_decay", 1e-4),
                    ]
                }),
                settings_toml:
                    "[tokenizer]\ncodebook_size = 512\ncode_width = 32\n\n[optimizer]\nlr = 0.001\n".into(),
                images_per_second: Some(141.3),
                seconds: Some(143.0),
            },
            Stage {
                name: "pretrain".into(),
                records: records("pretrain", 3000, |t, n| {
                    vec![
                        ("loss", 3.3 + 2.9 * (-4.0 * t).exp() + 0.12 * n.next()),
                        ("loss_cls", 3.5 + 2.7 * (-3.5 * t).exp() + 0.12 * n.next()),
                        ("mim_accuracy", 0.33 * (1.0 - (-3.0 * t).exp()) + 0.02 * n.next().abs()),
                        ("mim_accuracy_cls", 0.29 * (1.0 - (-3.0 * t).exp()) + 0.02 * n.next().abs()),
                        ("lr", 1.5e-3 * (1.0 - t)),
                        ("grad_norm", 0.9 + 0.3 * n.next()),
                    ]
                }),
                settings_toml: "[model]\nwidth = 128\ndepth = 4\n".into(),
                images_per_second: Some(212.0),
                seconds: Some(265.0),
            },
        ],
        codebook: Some(CodebookHealth {
            size: 512,
            history: (0..9)
                .map(|e| CodebookPoint {
                    epoch: e,
                    usage: 1.0 - 0.6 * (-(e as f64)).exp(),
                    perplexity: 248.0 - 200.0 * (-0.7 * e as f64).exp(),
                    dead: (307.0 * (-(e as f64)).exp()) as u64,
                })
                .collect(),
        }),
        examples: examples(),
        without_examples: String::new(),
        environment: vec![
            ("Processor".into(), "AMD EPYC 9R14".into()),
            ("Threads".into(), "2".into()),
            ("Software".into(), "beit2 0.1.0".into()),
        ],
    }
}

/// Opening tags must be closed in order; void elements and SVG's self-closing ones excepted.
fn assert_balanced(html: &str) {
    let body = &html[..html.find("<script>").unwrap()];
    let style = body.find("<style>").unwrap()..body.find("</style>").unwrap();
    let body = format!("{}{}", &body[..style.start], &body[style.end + 8..]);
    let mut open = Vec::new();
    for tag in body.split('<').skip(1).map(|rest| &rest[..rest.find('>').unwrap()]) {
        let name = tag.trim_start_matches('/').split([' ', '/']).next().unwrap();
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(name), "</{name}> closes nothing");
        } else if !tag.ends_with('/') && !["img", "meta", "!doctype"].contains(&name) {
            open.push(name);
        }
    }
    assert_eq!(open, ["html", "body"], "these stay open until after the script");
}

fn check(data: &ReportData) -> String {
    let html = render(data);
    assert_balanced(&html);
    for outside in ["http://", "https://", "src=\"/", "@import", "url("] {
        assert!(!html.contains(outside), "refers to the outside: {outside}");
    }
    html
}

/// Writes the realistic report where a person can look at it: `cargo test -- --ignored show`.
#[test]
#[ignore = "for looking at"]
fn show() {
    let path = std::env::temp_dir().join("beit2-report.html");
    std::fs::write(&path, check(&realistic())).unwrap();
    let mut broken = realistic();
    broken.title = "A run that went wrong".into();
    broken.facts.truncate(2);
    broken.codebook = Some(CodebookHealth {
        size: 512,
        history: vec![CodebookPoint { epoch: 0, usage: 0.015, perplexity: 3.0, dead: 504 }],
    });
    for (n, record) in broken.stages[1].records.iter_mut().enumerate() {
        if n > 2200 {
            record.values.iter_mut().filter(|v| v.0 != "lr").for_each(|v| v.1 = f64::NAN);
        }
    }
    broken.stages[0].records.truncate(1);
    broken.stages.push(Stage { name: "probe".into(), ..Stage::default() });
    broken.examples.mim_samples.truncate(1);
    broken.examples.mim_samples[0].correct = RgbImage::default();
    std::fs::write(std::env::temp_dir().join("beit2-report-broken.html"), check(&broken)).unwrap();
}

#[test]
fn a_full_report_has_its_parts_in_order() {
    let html = check(&realistic());
    let parts = [
        "<h1>BEiT v2 quickstart</h1>",
        "99.6 %",
        "Raw pixels",
        "Stage: tokenizer</h2>",
        "Stage: pretrain</h2>",
        "The codebook is healthy",
        "9 of 34 masked patches predicted",
        "24 of the 512 codes are used among the",
        "4,200 patches",
        "Confusion matrix",
        "animal 1 taken for animal 2: 10 (25.0 %)",
        "Worst images",
        "IoU of each class",
        "AMD EPYC 9R14",
        "codebook_size = 512",
    ];
    let places: Vec<usize> =
        parts.iter().map(|p| html.find(p).unwrap_or_else(|| panic!("{p} is missing"))).collect();
    assert!(places.is_sorted(), "{places:?}");
    assert!(html.len() < 1_500_000, "{} bytes", html.len());
}

#[test]
fn an_empty_report_is_still_a_page() {
    let html = check(&ReportData { title: "nothing".into(), ..ReportData::default() });
    assert!(html.contains("<h1>nothing</h1>") && !html.contains("<nav>"));
    let stage = Stage { name: "a".into(), ..Stage::default() };
    let html = check(&ReportData {
        stages: vec![stage],
        codebook: Some(CodebookHealth::default()),
        ..ReportData::default()
    });
    assert!(html.contains("No metrics were recorded") && html.contains("was not measured"));
}

#[test]
fn hostile_text_stays_text() {
    let evil = "</title><script>alert('x')</script>\"&\u{0}";
    let mut data = realistic();
    data.title = evil.into();
    data.command = evil.into();
    data.facts[0] = (evil.into(), evil.into());
    data.headline.rows[0].label = evil.into();
    data.headline.columns[0] = evil.into();
    data.headline.note = evil.into();
    data.warnings[0] = evil.into();
    data.stages[0].name = evil.into();
    data.stages[0].settings_toml = evil.into();
    for record in &mut data.stages[0].records {
        record.values[0].0 = format!("loss {evil}");
    }
    data.examples.mim_samples[0].caption = evil.into();
    data.examples.seen.data = evil.into();
    let classified = data.examples.classified.as_mut().unwrap();
    (classified.classes[0], classified.worst[0].name) = (evil.into(), evil.into());
    data.examples.segmented.as_mut().unwrap().classes[0].name = evil.into();
    data.without_examples = evil.into();
    data.environment[0] = (evil.into(), evil.into());
    let html = check(&data);
    assert_eq!(html.matches("<script").count(), 1, "only our own");
    assert!(html.contains("&lt;script&gt;alert(&#39;x&#39;)"));
}

#[test]
fn values_that_are_not_finite_are_pointed_out() {
    let mut data = realistic();
    data.stages[1].records[10].values[0].1 = f64::NAN;
    data.stages[1].records[11].values[0].1 = f64::INFINITY;
    data.headline.rows[0].cells = vec![Cell::percent(f64::NAN)];
    let html = check(&data);
    assert!(html.contains("pretrain: 2 recorded values are not finite"));
    assert!(html.contains("2 values are not finite (marked ×"));
}

#[test]
fn many_classes_are_listed_by_what_is_confused_most() {
    let mut found = classified(40);
    found.confusion.push((7, 30, 12));
    let data = ReportData {
        examples: Examples { classified: Some(found), ..Examples::default() },
        ..ReportData::default()
    };
    let html = check(&data);
    assert!(
        html.contains("The 20 of 41 confused pairs that occur most") && !html.contains("Confusion matrix")
    );
    // 12 of the 52 images of class 7, and before the pairs of 10.
    let [most, next] = ["<td>animal 7</td><td>animal 30</td><td>12</td><td>23.1 %</td>", "<td>animal 0</td>"]
        .map(|part| html.find(part).unwrap());
    assert!(most < next);
    assert!(html.contains("<summary>20 more</summary>"), "the other classes are folded");
    // Class 7 has the lowest accuracy: 30 of 52.
    assert!(html.contains("<tr><td>animal 7</td><td><span>57.7 %</span>"));
}

#[test]
fn images_with_several_classes_have_average_precisions() {
    let labels = vec![
        LabelScore { positives: 4, average_precision: Some(0.75) },
        LabelScore { positives: 0, average_precision: None },
        LabelScore { positives: 9, average_precision: Some(0.5) },
    ];
    let mut found = Classified { confusion: Vec::new(), labels, ..classified(3) };
    found.worst[0].predicted.clear();
    let data = ReportData {
        examples: Examples { classified: Some(found), ..Examples::default() },
        ..ReportData::default()
    };
    let html = check(&data);
    let places =
        ["animal 2</td><td><span>50.0 %", "animal 0</td><td><span>75.0 %", "animal 1</td><td><span>–"]
            .map(|part| html.find(part).unwrap_or_else(|| panic!("no {part}")));
    assert!(places.is_sorted() && html.contains("taken for no class") && !html.contains("Confusion matrix"));
}

#[test]
fn runs_are_compared_on_equal_axes() {
    let run = |name: &str, scale: f64| Compared {
        name: name.into(),
        records: records("pretrain", 50, move |t, _| vec![("loss", scale * (1.0 - t) + 1.0), ("lr", 1e-3)]),
    };
    let line = |label: &str, cells: [&str; 2], best| Line {
        label: label.into(),
        cells: cells.map(|cell| Some(cell.to_owned())).to_vec(),
        best,
    };
    let mut comparison = Comparison {
        title: "a and b".into(),
        warnings: vec!["The validation images differ.".into()],
        runs: vec![run("a", 5.0), run("<b>", 2.0)],
        results: vec![line("best loss", ["1.2", "1.1"], vec![1])],
        settings: vec![line("optimizer.lr", ["0.1", "0.2"], Vec::new())],
        ..Comparison::default()
    };
    let html = render_comparison(&comparison);
    assert_balanced(&html);
    for part in [
        "The validation images differ.",
        "<td>1.2</td><td class=\"best\">1.1</td>",
        "<td>optimizer.lr</td>",
        "<b>Loss, training</b>",
        "&lt;b&gt;",
    ] {
        assert!(html.contains(part), "no {part}");
    }
    assert!(!html.contains("Learning rate"), "what is constant and the same in all has no chart");
    comparison.settings.clear();
    assert!(render_comparison(&comparison).contains("All settings are equal"));
}

#[test]
fn the_command_is_whole() {
    let words: Vec<String> = (0..60).map(|at| format!("--set key.number{at}=a-value")).collect();
    let command = format!("beit2 pretrain {} --out 'my runs/<x>'", words.join(" "));
    let html = check(&ReportData { command: command.clone(), ..ReportData::default() });
    let pre = html.split("<pre class=\"command\">").nth(1).unwrap().split("</pre>").next().unwrap();
    let text = pre.replace("<span>", "").replace("</span>", "");
    assert_eq!(text, html::escape(&command), "what is copied is what was typed");
}

#[test]
fn the_page_of_large_images_is_bounded() {
    let mut noise = Noise(3);
    let mut photograph = |width: u32, height: u32| {
        // Half noise, half structure, as photographs are for PNG.
        let rgb =
            (0..3 * width * height).map(|at| ((at / 97 % 200) as f64 + 20.0 * (1.0 + noise.next())) as u8);
        RgbImage { width, height, rgb: rgb.collect() }
    };
    let mut examples = Examples {
        segmented: Some(Segmented {
            classes: Vec::new(),
            images: (0..6).map(|_| photograph(1536, 683)).collect(),
        }),
        classified: Some(classified(3)),
        ..Examples::default()
    };
    let size = |examples: &Examples| {
        check(&ReportData { examples: examples.clone(), ..ReportData::default() }).len()
    };
    assert!(size(&examples) < 2_500_000, "{}", size(&examples));
    // Kept images are small before they come to a page.
    let dir = tempfile::tempdir().unwrap();
    examples.segmented = None;
    examples.classified.as_mut().unwrap().worst[0].image = photograph(800, 600);
    examples.gallery = Some(Gallery {
        counts: vec![1; 32],
        codes: (0..32)
            .map(|code| GalleryCode {
                code,
                count: 1,
                patches: (0..12).map(|_| photograph(64, 64)).collect(),
            })
            .collect(),
    });
    examples.mim_samples = (0..6)
        .map(|_| MimSample {
            input: photograph(384, 384),
            masked: photograph(384, 384),
            tokens_drawn: photograph(384, 384),
            predicted_drawn: photograph(384, 384),
            correct: photograph(384, 384),
            ..MimSample::default()
        })
        .collect();
    examples.save(dir.path()).unwrap();
    let kept = Examples::load(dir.path()).unwrap().unwrap();
    assert_eq!(
        (kept.mim_samples[0].input.width, kept.gallery.as_ref().unwrap().codes[0].patches[11].width),
        (160, 40)
    );
    assert_eq!(kept.classified.unwrap().worst[0].image.width, 128);
    let sizes = [
        size(&Examples { gallery: kept.gallery, ..Examples::default() }),
        size(&Examples { mim_samples: kept.mim_samples, ..Examples::default() }),
    ];
    assert!(sizes.iter().all(|size| *size < 3_000_000), "{sizes:?}");
}
