//! Numbers as people read them.

use beit2::classify::bootstrap::Estimate;

/// Images per second.
pub fn speed(per_second: f64) -> String {
    if per_second < 10.0 { format!("{per_second:.1} img/s") } else { format!("{per_second:.0} img/s") }
}

/// A score with its 95 % interval, `53.1 % (95 %: 50.2 to 55.9)`, with this many decimals.
pub fn estimate(estimate: Estimate, decimals: usize) -> String {
    let [value, low, high] =
        [estimate.value, estimate.interval[0], estimate.interval[1]].map(|share| 100.0 * share);
    format!("{value:.decimals$} % (95 %: {low:.decimals$} to {high:.decimals$})")
}

/// A learning rate: `1.5e-3`, `5e-4`, `0`.
pub fn rate(value: f64) -> String {
    // Six digits: a scaled rate may have endless ones.
    if value == 0.0 {
        return "0".to_owned();
    }
    let text = format!("{value:.5e}");
    match text.split_once('e') {
        Some((digits, power)) if digits.contains('.') => {
            format!("{}e{power}", digits.trim_end_matches('0').trim_end_matches('.'))
        }
        _ => text,
    }
}

/// A metric by the kind of its name: shares in percent, rates in scientific form, the rest with four digits.
pub fn metric(name: &str, value: f64) -> String {
    let share = ["acc", "usage", "top1", "accuracy", "miou", "val_map", "data_wait"]
        .iter()
        .any(|part| name.contains(part));
    if share {
        format!("{:.1} %", 100.0 * value)
    } else if value != 0.0 && (value.abs() < 1e-3 || value.abs() >= 1e6) {
        format!("{value:.2e}")
    } else if value.fract() == 0.0 {
        format!("{value}")
    } else {
        let digits = (3 - value.abs().max(1e-3).log10().floor() as i32).clamp(0, 6) as usize;
        format!("{value:.digits$}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        let found = Estimate { value: 0.5312, interval: [0.502, 0.5594] };
        assert_eq!(estimate(found, 1), "53.1 % (95 %: 50.2 to 55.9)");
        assert_eq!(metric("loss", 9.01234), "9.012");
        assert_eq!(metric("loss", 0.51234), "0.5123");
        assert_eq!(metric("lr", 0.00015), "1.50e-4");
        assert_eq!(metric("mim_acc_1", 0.1234), "12.3 %");
        assert_eq!(metric("val_miou", 0.531), "53.1 %");
        assert_eq!(metric("ema_val_map", 0.25), "25.0 %");
        assert_eq!(metric("codebook_dead", 12.0), "12");
        assert_eq!([1.5e-3, 5e-4, 0.0, 1e-3 / 3.0].map(rate), ["1.5e-3", "5e-4", "0", "3.33333e-4"]);
        assert_eq!((speed(3.21), speed(140.2)), ("3.2 img/s".into(), "140 img/s".into()));
    }
}
