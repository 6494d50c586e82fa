//! Suite L: accuracies, the codebook's usage line, and the k-nearest-neighbour vote.

use beit2::classify::{Features, KnnConfig, knn};
use beit2::classify::{hard_cross_entropy, top_k_hits};
use beit2::tokenizer::CodeUsage;
use beit2::train::Silent;
use beit2_run::StopFlag;
use burn::tensor::{DType, Int, Tensor};

use super::checks::{check, equal};
use super::folder::{Case, Inner, cases_with, each_case, floats, ints};

fn near(name: &str, expected: f64, found: f64) {
    println!("{name:32} expected {expected:.9}  found {found:.9}");
    check((expected - found).abs() <= 1e-6 * expected.abs().max(1.0), || {
        format!("{name} is {found}, expected {expected}")
    });
}

#[test]
fn golden_l_accuracy_and_evaluation() {
    each_case(|| cases_with("L", "targets"), accuracy_and_evaluation);
}

fn accuracy_and_evaluation(case: &Case) {
    let (logits, classes) = (floats(case.raw("logits")), case.size("classes"));
    let rows: Vec<f32> = logits.iter().map(|&v| v as f32).collect();
    let labels: Vec<u32> = ints(case.raw("targets")).iter().map(|&v| v as u32).collect();
    for k in case.sizes("topk") {
        let share = 100.0 * top_k_hits(&rows, classes, &labels, k) as f64 / labels.len() as f64;
        near(&format!("acc@{k}"), floats(case.raw(&format!("acc@{k}")))[0], share);
        if let Some(recorded) = case.meta["evaluate"][format!("acc{k}")].as_f64() {
            near(&format!("evaluate acc{k}"), recorded, share);
        }
    }
    // The reference's loss is the mean of its batches' means, the short last one counting as much.
    let (mut start, mut sum, mut batches) = (0, 0.0, 0.0);
    for size in case.sizes("cuts") {
        let all: Tensor<Inner, 2> = case.tensor("logits", DType::F64);
        let numbers: Vec<i64> = labels[start..start + size].iter().map(|&v| i64::from(v)).collect();
        let numbers = Tensor::<Inner, 1, Int>::from_data(&numbers[..], &Default::default());
        sum += floats(&hard_cross_entropy(all.narrow(0, start, size), numbers).to_data())[0];
        (start, batches) = (start + size, batches + 1.0);
    }
    near("evaluate loss", case.meta["evaluate"]["loss"].as_f64().unwrap(), sum / batches);
}

#[test]
fn golden_l_codebook_usage() {
    each_case(|| cases_with("L", "counts"), codebook_usage);
}

fn codebook_usage(case: &Case) {
    let mut usage = CodeUsage::new(case.size("K"));
    usage.add(ints(case.raw("ids")).iter().map(|&id| id as usize));
    let counts: Vec<i64> = usage.counts().iter().map(|&n| n as i64).collect();
    equal("counts", &counts, &ints(case.raw("counts")));
    let health = usage.health();
    equal("codes never used", &(health.dead() as u64), &case.meta["never_used"].as_u64().unwrap());
    near("perplexity", case.meta["perplexity_exp_entropy"].as_f64().unwrap(), health.perplexity);
}

#[test]
fn golden_l_nearest_neighbours() {
    each_case(|| cases_with("L", "train_labels"), nearest_neighbours);
}

fn nearest_neighbours(case: &Case) {
    let side = |name: &str| Features {
        sets: None,
        values: floats(case.raw(name)).iter().map(|&v| v as f32).collect(),
        dim: case.size("dim"),
        labels: ints(case.raw(&format!("{name}_labels"))).iter().map(|&v| v as u32).collect(),
        classes: case.size("classes"),
    };
    let (train, test) = (side("train"), side("test"));
    for k in case.sizes("ks") {
        for temperature in case.config["T"].as_array().unwrap().iter().map(|t| t.as_f64().unwrap()) {
            let config = KnnConfig { k: vec![k], temperature };
            let stop = StopFlag::new();
            let found =
                knn::<Inner>(&train, &test, &config, &mut Silent, &stop, &Default::default()).unwrap();
            let name = format!("k{k}_T{temperature}");
            near(&name, case.meta[&name]["top1"].as_f64().unwrap(), 100.0 * found[0].value);
        }
    }
}
