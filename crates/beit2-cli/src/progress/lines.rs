//! Values as text: the few of a stage that a line shows. All of them are in `metrics.jsonl`.

use crate::display::metric;

/// Metrics of a stage by name, and what a line calls them.
fn shown(stage: &str) -> &'static [(&'static str, &'static str)] {
    match stage {
        "tokenizer" => &[
            ("loss", "loss"),
            ("codebook_usage", "codes"),
            ("val_loss", "val loss"),
            ("val_codebook_usage", "val codes"),
            ("monitor_knn_top1", "k-NN"),
            ("monitor_effective_rank", "rank"),
            ("forgetting_top1_lost", "forgotten"),
        ],
        "pretrain" => &[
            ("loss", "loss"),
            ("mim_acc_1", "acc"),
            ("mim_acc", "acc"),
            ("val_loss", "val loss"),
            ("val_mim_acc_1", "val acc"),
            ("val_mim_acc", "val acc"),
            ("monitor_knn_top1", "k-NN"),
            ("monitor_effective_rank", "rank"),
            ("forgetting_top1_lost", "forgotten"),
        ],
        "finetune" => &[
            ("loss", "loss"),
            ("class_acc", "acc"),
            ("val_acc1", "val top-1"),
            ("val_map", "val mAP"),
            ("ema_val_acc1", "average's top-1"),
            ("ema_val_map", "average's mAP"),
        ],
        "segment" => &[("loss", "loss"), ("pixel_acc", "pixel acc"), ("val_miou", "val mIoU")],
        _ => &[("loss", "loss"), ("val_loss", "val loss")],
    }
}

/// `loss 5.012  acc 12.3 %`.
pub(super) fn spelled(stage: &str, values: &[(String, f64)]) -> String {
    let value = |name: &str| values.iter().find(|(found, _)| found == name).map(|(_, value)| *value);
    let parts = shown(stage)
        .iter()
        .filter_map(|(name, label)| Some(format!("{label} {}", metric(name, value(name)?))));
    parts.collect::<Vec<_>>().join("  ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_holds_the_numbers_that_matter() {
        let values = [("loss", 5.01234), ("grad_norm", 1.0), ("lr", 1.5e-4), ("val_acc1", 0.531)];
        let values = values.map(|(name, value)| (name.to_owned(), value));
        assert_eq!(spelled("finetune", &values), "loss 5.012  val top-1 53.1 %");
        assert_eq!(spelled("distill", &values), "loss 5.012");
    }
}
