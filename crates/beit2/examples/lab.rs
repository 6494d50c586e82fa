//! lab
use beit2::classify::*;
use beit2::tokenizer::teachers::*;
use beit2::train::*;
use beit2::*;
use beit2_run::{Existing, StopFlag};
use burn::backend::{Autodiff, Flex};
type B = Autodiff<Flex>;
struct Obs(std::time::Instant);
impl Observer for Obs {
    fn event(&mut self, e: Event) {
        match e {
            Event::Step { step, total_steps, images_per_second, values, .. }
                if !values.is_empty() && step % 50 == 0 =>
            {
                let v: Vec<String> = values.iter().map(|(n, v)| format!("{n}={v:.4}")).collect();
                println!(
                    "{:6.1}s {step}/{total_steps} {:.0} img/s {}",
                    self.0.elapsed().as_secs_f64(),
                    images_per_second.unwrap_or(0.0),
                    v.join(" ")
                );
            }
            Event::Epoch { epoch, values } => {
                let v: Vec<String> = values.iter().map(|(n, v)| format!("{n}={v:.4}")).collect();
                println!("EPOCH {epoch} {}", v.join(" "));
            }
            Event::Warning(w) => println!("WARN {w}"),
            Event::Started { facts, .. } => println!("{facts:?}"),
            _ => {}
        }
    }
}
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let mut obs = Obs(std::time::Instant::now());
    let device = Default::default();
    let set: Vec<(String, String)> = args[3..]
        .iter()
        .filter_map(|a| a.split_once('=').map(|(a, b)| (a.to_string(), b.to_string())))
        .collect();
    let text = std::fs::read_to_string(&args[2]).unwrap_or_default();
    let dir: std::path::PathBuf = std::env::var("OUT").unwrap_or("/tmp/run".into()).into();
    let env = Env {
        dir: dir.clone(),
        existing: Existing::SetAside,
        stop: StopFlag::new(),
        observer: &mut obs,
        assets: &Files,
    };
    match args[1].as_str() {
        "distill" => {
            let r: DistillRecipe = beit2_run::recipe::resolve(&text, &args[2], &set).unwrap();
            let t = beit2_run::recipe::to_toml(&r).unwrap();
            println!("{:?}", distill::<B>(&r, &t, env, &device));
        }
        "tokenizer" => {
            let r: tokenizer::TokenizerRecipe = beit2_run::recipe::resolve(&text, &args[2], &set).unwrap();
            let t = beit2_run::recipe::to_toml(&r).unwrap();
            println!("{:?}", tokenizer::train::<B>(&r, &t, env, &device));
        }
        "pretrain" => {
            let r: pretrain::PretrainRecipe = beit2_run::recipe::resolve(&text, &args[2], &set).unwrap();
            let t = beit2_run::recipe::to_toml(&r).unwrap();
            println!("{:?}", pretrain::train::<B>(&r, &t, env, &device));
        }
        "check" => {
            let f = weights::read(std::path::Path::new("/tmp/teacher/dinov2_vits14.safetensors")).unwrap();
            let c = weights::read(std::path::Path::new("/tmp/teacher/check.safetensors")).unwrap();
            for (layer, name) in [(9, "block9"), (-1, "norm")] {
                let t = Teacher::<Flex>::from_tensors(
                    &TeacherConfig { kind: TeacherKind::Dinov2, layer, ..Default::default() },
                    f.tensors.clone(),
                    burn::tensor::DType::F32,
                    &device,
                )
                .unwrap();
                for px in [112, 196] {
                    let x = burn::tensor::Tensor::<Flex, 4>::from_data(
                        c.tensors[&format!("input{px}")].clone(),
                        &device,
                    );
                    let y = t.features(x).into_data().into_vec::<f32>().unwrap();
                    let Some(e) =
                        c.tensors.get(&format!("{name}_{px}")).or(c.tensors.get(&format!("{name}{px}")))
                    else {
                        println!("{:?}", c.tensors.keys());
                        continue;
                    };
                    let e = e.clone().into_vec::<f32>().unwrap();
                    println!(
                        "{name} {px} {} {} max diff {}",
                        e.len(),
                        y.len(),
                        e.iter().zip(&y).fold(0f32, |m, (a, b)| m.max((a - b).abs()))
                    );
                }
            }
        }
        "probe" => {
            // probe MODEL... : mim:RUN | random:RUN | tok:RUN | teacher:FILE | pixels
            let stop = StopFlag::new();
            let train =
                beit2_data::source::open("/work/main/assets/quickstart/train-{000..001}.tar").unwrap();
            let val = beit2_data::source::open("/work/main/assets/quickstart/val-000.tar").unwrap();
            let data = DataConfig::default();
            let size: usize = std::env::var("SIZE").ok().and_then(|s| s.parse().ok()).unwrap_or(64);
            for spec in &args[2..] {
                let (kind, path) = spec.split_once(':').unwrap_or((spec, ""));
                let mut all: Vec<(String, Featurizer<Flex>)> = vec![];
                match kind {
                    "pixels" => {
                        let a = pixel_features(train.clone(), &data, size, &mut Silent, &stop).unwrap();
                        let b = pixel_features(val.clone(), &data, size, &mut Silent, &stop).unwrap();
                        println!(
                            "pixels knn20 {:.4} knn10 {:.4} probe {:.4}",
                            knn::<Flex>(&a, &b, KnnConfig::default(), &device).unwrap(),
                            knn::<Flex>(&a, &b, KnnConfig { k: 10, ..Default::default() }, &device).unwrap(),
                            linear_probe::<B>(&a, &b, LinearProbeConfig::default(), &device).unwrap()
                        );
                    }
                    "mim" | "random" => {
                        let (c, m) = weights::load_mim::<Flex>(path, &Files, &device).unwrap();
                        let layers: Vec<usize> = (c.vit.depth.saturating_sub(4)..c.vit.depth).collect();
                        for l in layers {
                            let m = if kind == "random" {
                                pretrain::MimModel::new(&c, 0, &device).unwrap()
                            } else {
                                m.clone()
                            };
                            all.push((format!("layer{l}"), Featurizer::Mim(Box::new(m), l)));
                        }
                    }
                    "tok" => {
                        let (_, m) = weights::load_tokenizer::<Flex>(
                            &pretrain::TokenizerSource { weights: path.into(), variant: String::new() },
                            &Files,
                            &device,
                        )
                        .unwrap();
                        all.push(("enc".into(), Featurizer::Encoder(Box::new(m))));
                    }
                    "dinov2" => {
                        let f = weights::read(std::path::Path::new("/tmp/teacher/dinov2_vits14.safetensors"))
                            .unwrap();
                        let t = Teacher::<Flex>::from_tensors(
                            &TeacherConfig {
                                kind: TeacherKind::Dinov2,
                                layer: path.parse().unwrap(),
                                ..Default::default()
                            },
                            f.tensors,
                            burn::tensor::DType::F32,
                            &device,
                        )
                        .unwrap();
                        all.push(("t".into(), Featurizer::Teacher(Box::new(t))));
                    }
                    "teacher" => {
                        let f = weights::read(&weights::locate(path).unwrap()).unwrap();
                        let t = Teacher::<Flex>::from_tensors(
                            &TeacherConfig { kind: TeacherKind::Distilled, ..Default::default() },
                            f.tensors,
                            burn::tensor::DType::F32,
                            &device,
                        )
                        .unwrap();
                        all.push(("t".into(), Featurizer::Teacher(Box::new(t))));
                    }
                    _ => panic!(),
                }
                for (n, f) in all {
                    for k in [FeatureKind::Cls, FeatureKind::Mean, FeatureKind::Concat] {
                        let t0 = std::time::Instant::now();
                        let a = extract(&f, train.clone(), &data, size, k, "t", &mut Silent, &stop, &device)
                            .unwrap();
                        let b = extract(&f, val.clone(), &data, size, k, "v", &mut Silent, &stop, &device)
                            .unwrap();
                        let e = t0.elapsed().as_secs_f64();
                        println!(
                            "{spec} {n} {k:?} knn20 {:.4} knn10 {:.4} probe {:.4} ({e:.1}s, {:.1}s)",
                            knn::<Flex>(&a, &b, KnnConfig::default(), &device).unwrap(),
                            knn::<Flex>(&a, &b, KnnConfig { k: 10, ..Default::default() }, &device).unwrap(),
                            linear_probe::<B>(&a, &b, LinearProbeConfig::default(), &device).unwrap(),
                            t0.elapsed().as_secs_f64()
                        );
                    }
                }
            }
        }
        _ => {}
    }
}
