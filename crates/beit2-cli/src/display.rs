//! Numbers as people read them.

/// `1281167` as `1,281,167`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Seconds as `42 s`, `3 min 5 s`, `2 h 14 min` or `5 d 3 h`.
pub fn duration(seconds: f64) -> String {
    if !seconds.is_finite() {
        return "unknown".into();
    }
    match seconds.max(0.0).round() as u64 {
        s @ 0..60 => format!("{s} s"),
        s @ 60..3600 => format!("{} min {} s", s / 60, s % 60),
        s @ 3600..86_400 => format!("{} h {} min", s / 3600, s / 60 % 60),
        s => format!("{} d {} h", s / 86_400, s / 3600 % 24),
    }
}

/// Images per second.
pub fn speed(per_second: f64) -> String {
    if per_second < 10.0 { format!("{per_second:.1} img/s") } else { format!("{per_second:.0} img/s") }
}

/// A metric by the kind of its name: shares in percent, rates in scientific form, the rest with four digits.
pub fn metric(name: &str, value: f64) -> String {
    let share = ["acc", "usage", "top1", "accuracy", "miou"].iter().any(|part| name.contains(part));
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

/// The candidate that someone most likely meant.
pub fn nearest<'a>(typed: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let scored = candidates.into_iter().map(|name| (strsim::jaro_winkler(typed, name), name));
    let best = scored.max_by(|a, b| a.0.total_cmp(&b.0))?;
    (best.0 > 0.75).then_some(best.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!([0, 999, 1000, 1_281_167].map(grouped), ["0", "999", "1,000", "1,281,167"]);
        assert_eq!(
            [5.4, 65.0, 7500.0, 400_000.0].map(duration),
            ["5 s", "1 min 5 s", "2 h 5 min", "4 d 15 h"]
        );
        assert_eq!(duration(f64::NAN), "unknown");
        assert_eq!(metric("loss", 9.01234), "9.012");
        assert_eq!(metric("loss", 0.51234), "0.5123");
        assert_eq!(metric("lr", 0.00015), "1.50e-4");
        assert_eq!(metric("mim_acc_1", 0.1234), "12.3 %");
        assert_eq!(metric("val_miou", 0.531), "53.1 %");
        assert_eq!(metric("codebook_dead", 12.0), "12");
        assert_eq!((speed(3.21), speed(140.2)), ("3.2 img/s".into(), "140 img/s".into()));
    }

    #[test]
    fn suggestions_are_near() {
        assert_eq!(nearest("mim_bas_300e", ["mim_base_300e", "mim_large_300e"]), Some("mim_base_300e"));
        assert_eq!(nearest("zzz", ["mim_base_300e"]), None);
    }
}
