//! Which metric counts in a stage, its best value and its last one.
//!
//! The metric is the one by which the training loop chose the checkpoint `best`: of validation images the mAP or top-1
//! accuracy of a classifier (of its moving average where that is higher), the mean IoU of a segmentation model, the
//! loss of a tokenizer or a masked image model, or the metric that its recipe names (`monitor.best`). A run without
//! validation images has no such checkpoint; then it is the training loss, and [`Best::split`] says so.

use std::fmt;

use crate::metrics::{Kind, Record};

/// Which images a metric is measured on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// The training images, while they are trained on.
    Training,
    /// The validation set.
    Validation,
    /// The images that monitors look at.
    Monitored,
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Training => "training",
            Self::Validation => "validation",
            Self::Monitored => "monitored images",
        })
    }
}

/// Which value of a metric is the better one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    /// Losses.
    Lower,
    /// Accuracies, mAP, IoU.
    Higher,
}

/// A value of the metric that counts.
#[derive(Debug, Clone, PartialEq)]
pub struct Score {
    /// Its name in `metrics.jsonl`, such as `val_acc1`. Of two models (a classifier and its moving average) the better
    /// one's.
    pub name: String,
    /// The value; accuracies, mAP and IoU as fractions.
    pub value: f64,
    /// Epochs done.
    pub epoch: u64,
    /// Steps done; the checkpoint of a best value is that of this step.
    pub step: u64,
    /// Other metrics of the same images that people look at beside it, by their names in `metrics.jsonl`.
    pub beside: Vec<(String, f64)>,
}

/// The metric that counts, with its best and its last value.
#[derive(Debug, Clone, PartialEq)]
pub struct Best {
    /// What it is, without the images it is measured on: `top-1 accuracy`, `mAP`, `mean IoU`, `loss`.
    pub label: &'static str,
    /// The images it is measured on. Only a best value on validation images has a checkpoint.
    pub split: Split,
    /// Which values are better.
    pub better: Better,
    /// The best value; of equal ones the first, as checkpoints are chosen.
    pub best: Score,
    /// The last value.
    pub last: Score,
}

/// A metric that may count. `names`: those of several models, of which the better one counts.
struct Candidate<'a> {
    names: &'a [&'a str],
    label: &'static str,
    better: Better,
    beside: &'static [&'static str],
}

/// What may count in a stage, in the order of preference.
fn candidates(stage: &str) -> &'static [Candidate<'static>] {
    const MAP: Candidate<'static> = Candidate {
        names: &["val_map", "ema_val_map"],
        label: "mAP",
        better: Better::Higher,
        beside: &["val_loss"],
    };
    const TOP1: Candidate<'static> = Candidate {
        names: &["val_acc1", "ema_val_acc1"],
        label: "top-1 accuracy",
        better: Better::Higher,
        beside: &["val_acc5", "val_loss"],
    };
    const MIOU: Candidate<'static> = Candidate {
        names: &["val_miou"],
        label: "mean IoU",
        better: Better::Higher,
        beside: &["val_macc", "val_aacc"],
    };
    const fn loss(beside: &'static [&'static str]) -> Candidate<'static> {
        Candidate { names: &["val_loss"], label: "loss", better: Better::Lower, beside }
    }
    const TOKENIZER: Candidate<'static> = loss(&["val_codebook_usage", "val_codebook_perplexity"]);
    const PRETRAIN: Candidate<'static> = loss(&["val_mim_acc_1", "val_mim_acc"]);
    const OTHER: Candidate<'static> = loss(&[]);
    match stage {
        "finetune" => &[MAP, TOP1],
        "segment" => &[MIOU],
        "tokenizer" => &[TOKENIZER],
        "pretrain" => &[PRETRAIN],
        _ => &[OTHER],
    }
}

/// What a monitored metric is called.
fn label_of(name: &str) -> &'static str {
    match name.split_once('_').map_or(name, |(_, quantity)| quantity) {
        "knn_top1" => "k-NN accuracy",
        "cls_knn_top1" => "k-NN accuracy of CLS",
        "effective_rank" => "effective rank",
        "uniformity" => "uniformity of CLS",
        "drift" => "drift from the start",
        "codebook_usage" => "use of the codebook",
        "codebook_perplexity" => "perplexity of the codebook",
        _ => "metric",
    }
}

/// The training loss, for runs without validation images.
fn training(stage: &str) -> Candidate<'static> {
    let beside: &[&str] = match stage {
        "finetune" => &["class_acc"],
        "segment" => &["pixel_acc"],
        "tokenizer" => &["codebook_usage", "codebook_perplexity"],
        "pretrain" => &["mim_acc_1", "mim_acc"],
        _ => &[],
    };
    Candidate { names: &["loss"], label: "loss", better: Better::Lower, beside }
}

/// The metric that counts in the records of a stage (`tokenizer`, `pretrain`, `finetune`, `segment`, `distill`). `None`
/// before there is a finite value. `followed`: the metric that the recipe names (`monitor.best`), and which of its values
/// are better; `None`: the stage's own.
pub fn best(stage: &str, records: &[Record], followed: Option<(&str, Better)>) -> Option<Best> {
    let of_stage = || records.iter().filter(|record| record.stage == stage);
    // The record before the first step is of what the run started from.
    let is_epoch = |record: &&Record| record.kind == Kind::Epoch && record.step > 0;
    let epochs: Vec<&Record> = of_stage().filter(is_epoch).collect();
    if let Some((name, better)) = followed {
        let (label, split) = match name {
            "val_loss" => ("loss", Split::Validation),
            name => (label_of(name), Split::Monitored),
        };
        return find(&Candidate { names: &[name], label, better, beside: &["val_loss"] }, &epochs, split);
    }
    let validated = candidates(stage).iter().find_map(|metric| find(metric, &epochs, Split::Validation));
    validated.or_else(|| {
        // A run that was stopped within its first epoch has records of steps only.
        let mut records = if epochs.is_empty() { of_stage().collect() } else { epochs };
        // While a tokenizer has no codebook, its loss is a part of the later one.
        if records.iter().any(|record| record.get("commitment_loss").is_some()) {
            records.retain(|record| record.get("commitment_loss").is_some());
        }
        find(&training(stage), &records, Split::Training)
    })
}

fn find(metric: &Candidate<'_>, records: &[&Record], split: Split) -> Option<Best> {
    let is_better = |value: f64, than: f64| match metric.better {
        Better::Lower => value < than,
        Better::Higher => value > than,
    };
    let score = |record: &&Record| -> Option<Score> {
        let values = metric.names.iter().filter_map(|name| Some((*name, record.get(name)?)));
        let finite = values.filter(|(_, value)| value.is_finite());
        let (name, value) = finite.reduce(|a, b| if is_better(b.1, a.1) { b } else { a })?;
        let prefix = if name.starts_with("ema_") { "ema_" } else { "" };
        let beside = metric.beside.iter().filter_map(|name| {
            let name = format!("{prefix}{name}");
            record.get(&name).map(|value| (name, value))
        });
        Some(Score {
            name: name.to_owned(),
            value,
            epoch: record.epoch,
            step: record.step,
            beside: beside.collect(),
        })
    };
    let scores: Vec<Score> = records.iter().filter_map(score).collect();
    let best =
        scores.iter().reduce(|best, next| if is_better(next.value, best.value) { next } else { best })?;
    let (best, last) = (best.clone(), scores.last()?.clone());
    Some(Best { label: metric.label, split, better: metric.better, best, last })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: Kind, stage: &str, at: u64, values: &[(&str, f64)]) -> Record {
        let values = values.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
        Record { kind, stage: stage.into(), epoch: at, step: 10 * at, values }
    }

    fn epochs(stage: &str, values: &[&[(&str, f64)]]) -> Vec<Record> {
        (1..).zip(values).map(|(at, values)| record(Kind::Epoch, stage, at, values)).collect()
    }

    fn told(found: &Score) -> (&str, f64, u64, u64) {
        (&found.name, found.value, found.epoch, found.step)
    }

    #[test]
    fn a_classifier_counts_by_accuracy_and_the_first_of_equals_is_best() {
        let records = epochs(
            "finetune",
            &[
                &[("loss", 2.0), ("val_loss", 1.0), ("val_acc1", 0.5), ("val_acc5", 0.9)],
                &[("loss", 1.0), ("val_loss", 0.9), ("val_acc1", 0.7), ("val_acc5", 0.95)],
                &[("loss", 0.9)],
                &[("loss", 0.8), ("val_loss", 0.1), ("val_acc1", 0.7), ("val_acc5", 0.99)],
                &[("loss", 0.7), ("val_loss", 0.1), ("val_acc1", 0.6), ("val_acc5", 0.99)],
            ],
        );
        let found = best("finetune", &records, None).unwrap();
        assert_eq!(
            (found.label, found.split, found.better),
            ("top-1 accuracy", Split::Validation, Better::Higher)
        );
        assert_eq!(told(&found.best), ("val_acc1", 0.7, 2, 20));
        assert_eq!(found.best.beside, [("val_acc5".to_owned(), 0.95), ("val_loss".to_owned(), 0.9)]);
        assert_eq!(told(&found.last), ("val_acc1", 0.6, 5, 50));
        assert_eq!(best("pretrain", &records, None), None, "records of another stage do not count");
    }

    #[test]
    fn the_better_of_a_model_and_its_average_counts() {
        let records = epochs(
            "finetune",
            &[
                &[("val_acc1", 0.5), ("ema_val_acc1", 0.4)],
                &[("val_acc1", 0.6), ("ema_val_acc1", 0.8), ("ema_val_acc5", 0.9)],
            ],
        );
        let found = best("finetune", &records, None).unwrap();
        assert_eq!(told(&found.best), ("ema_val_acc1", 0.8, 2, 20));
        assert_eq!(found.best.beside, [("ema_val_acc5".to_owned(), 0.9)]);
        let records = epochs(
            "finetune",
            &[&[("val_loss", 0.3), ("val_map", 0.25)], &[("val_loss", 0.4), ("val_map", 0.5)]],
        );
        let found = best("finetune", &records, None).unwrap();
        assert_eq!((found.label, told(&found.best)), ("mAP", ("val_map", 0.5, 2, 20)));
    }

    #[test]
    fn losses_count_by_the_lowest_and_values_that_are_not_finite_do_not() {
        for stage in ["tokenizer", "pretrain"] {
            let records = epochs(
                stage,
                &[
                    &[("val_loss", f64::NAN)],
                    &[("val_loss", 3.0), ("val_mim_acc_1", 0.2)],
                    &[("val_loss", 4.0)],
                ],
            );
            let found = best(stage, &records, None).unwrap();
            assert_eq!((found.label, found.better), ("loss", Better::Lower));
            assert_eq!(
                (told(&found.best), told(&found.last)),
                (("val_loss", 3.0, 2, 20), ("val_loss", 4.0, 3, 30))
            );
        }
        let records =
            epochs("segment", &[&[("loss", 1.0), ("val_miou", 0.1), ("val_aacc", 0.9)], &[("loss", 0.5)]]);
        let found = best("segment", &records, None).unwrap();
        assert_eq!((found.label, told(&found.best)), ("mean IoU", ("val_miou", 0.1, 1, 10)));
        assert_eq!(found.best.beside, [("val_aacc".to_owned(), 0.9)]);
    }

    #[test]
    fn a_recipe_can_name_the_metric() {
        let mut records = vec![record(Kind::Epoch, "pretrain", 0, &[("monitor_knn_top1", 0.9)])];
        records.extend(epochs(
            "pretrain",
            &[
                &[("val_loss", 3.0), ("monitor_knn_top1", 0.2)],
                &[("val_loss", 2.0), ("monitor_knn_top1", 0.4)],
                &[("val_loss", 1.0), ("monitor_knn_top1", 0.3)],
            ],
        ));
        let found = best("pretrain", &records, Some(("monitor_knn_top1", Better::Higher))).unwrap();
        assert_eq!((found.label, found.split), ("k-NN accuracy", Split::Monitored));
        assert_eq!(told(&found.best), ("monitor_knn_top1", 0.4, 2, 20));
        assert_eq!(found.best.beside, [("val_loss".to_owned(), 2.0)]);
        assert_eq!(told(&best("pretrain", &records, None).unwrap().best), ("val_loss", 1.0, 3, 30));
    }

    #[test]
    fn without_validation_images_the_training_loss_counts() {
        let records = epochs("distill", &[&[("loss", 0.5)], &[("loss", 0.25)], &[("loss", 0.3)]]);
        let found = best("distill", &records, None).unwrap();
        assert_eq!((found.split, found.split.to_string()), (Split::Training, "training".into()));
        assert_eq!((told(&found.best), told(&found.last)), (("loss", 0.25, 2, 20), ("loss", 0.3, 3, 30)));
        // Before it has a codebook, a tokenizer's loss lacks a term.
        let records = epochs(
            "tokenizer",
            &[
                &[("loss", 0.1)],
                &[("loss", 0.5), ("commitment_loss", 0.2)],
                &[("loss", 0.4), ("commitment_loss", 0.1)],
            ],
        );
        assert_eq!(told(&best("tokenizer", &records, None).unwrap().best), ("loss", 0.4, 3, 30));
        // Stopped within the first epoch.
        let steps = [
            record(Kind::Step, "pretrain", 1, &[("loss", 9.0)]),
            record(Kind::Step, "pretrain", 2, &[("loss", 8.5)]),
        ];
        assert_eq!(told(&best("pretrain", &steps, None).unwrap().last), ("loss", 8.5, 2, 20));
        assert_eq!(best("pretrain", &[], None), None);
    }
}
