//! Numbers as people read them.

/// A whole number with separators: `1,234,567`.
pub fn thousands(value: u64) -> String {
    let digits = value.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Seconds with the two units that matter: `0.4 s`, `12 s`, `3 min 7 s`, `2 h 5 min`, `3 d 4 h`.
pub fn format_duration(seconds: f64) -> String {
    if !seconds.is_finite() {
        return "unknown".to_owned();
    }
    if seconds < 9.95 {
        return format!("{:.1} s", seconds.max(0.0));
    }
    match seconds.round() as u64 {
        s @ 0..60 => format!("{s} s"),
        s @ 60..3600 => format!("{} min {} s", s / 60, s % 60),
        s @ 3600..86_400 => format!("{} h {} min", s / 3600, s / 60 % 60),
        s => format!("{} d {} h", s / 86_400, s / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_separated() {
        assert_eq!([0, 999, 1000, 1_281_167].map(thousands), ["0", "999", "1,000", "1,281,167"]);
    }

    #[test]
    fn durations_read_well() {
        let cases = [
            (0.42, "0.4 s"),
            (9.97, "10 s"),
            (59.7, "1 min 0 s"),
            (187.0, "3 min 7 s"),
            (7_500.0, "2 h 5 min"),
            (3.0 * 86_400.0 + 4.0 * 3600.0, "3 d 4 h"),
            (f64::NAN, "unknown"),
        ];
        for (seconds, text) in cases {
            assert_eq!(format_duration(seconds), text);
        }
    }
}
