//! Scales and ticks: where values go and how numbers are written.

/// How an axis maps values to 0..1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Scale {
    pub(super) low: f64,
    pub(super) high: f64,
    pub(super) log: bool,
}

impl Scale {
    /// A scale that holds all of `values` with a little air. All are finite and below 1e100 in size;
    /// if `log`, all are above 1e-100 too.
    pub(super) fn around(values: impl Iterator<Item = f64>, log: bool) -> Self {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values {
            low = low.min(value);
            high = high.max(value);
        }
        if low > high {
            (low, high) = (0.0, 1.0);
        }
        if log {
            let air = (high / low).powf(0.05).max(1.02);
            return Self { low: low / air, high: high * air, log };
        }
        if low == high {
            // One value: seen from zero, or from zero to one.
            let (low, high) = if low == 0.0 { (0.0, 1.0) } else { (low.min(0.0), high.max(0.0)) };
            let air = 0.05 * (high - low);
            return Self { low: if low < 0.0 { low - air } else { 0.0 }, high: high + air, log };
        }
        let air = 0.05 * (high - low);
        // Zero belongs to the image when it is near: a loss that halves should look like it.
        let low = if low >= 0.0 && low < 0.4 * high { 0.0 } else { low - air };
        Self { low, high: high + air, log }
    }

    /// Exactly from `low` to `high`, for the horizontal axis.
    pub(super) fn exact(low: f64, high: f64) -> Self {
        if low < high {
            Self { low, high, log: false }
        } else {
            Self { low: low - 0.5, high: low + 0.5, log: false }
        }
    }

    /// The position of `value`: 0 at the low end, 1 at the high end.
    pub(super) fn place(&self, value: f64) -> f64 {
        if self.log {
            (value / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        }
    }

    /// Ticks with their labels, about `count` of them.
    pub(super) fn ticks(&self, count: usize, percent: bool) -> Vec<(f64, String)> {
        if self.log {
            let ticks = self.log_ticks();
            if ticks.len() >= 2 {
                return ticks.into_iter().map(|tick| (tick, number(tick))).collect();
            }
        }
        let step = nice_step((self.high - self.low) / count.max(1) as f64);
        let first = (self.low / step).ceil() * step;
        (0..=3 * count)
            .map(|i| first + i as f64 * step)
            .take_while(|tick| *tick <= self.high + 1e-9 * step)
            .map(|tick| (tick, tick_label(tick, step, percent)))
            .collect()
    }

    /// Powers of ten, thinned when there are many, with 2 and 5 between them when there are few.
    fn log_ticks(&self) -> Vec<f64> {
        let (from, to) = (self.low.log10().floor() as i32, self.high.log10().ceil() as i32);
        let every = ((to - from) / 7 + 1) as usize;
        let factors: &[f64] = if to - from <= 2 { &[1.0, 2.0, 5.0] } else { &[1.0] };
        let powers = (from..=to).step_by(every);
        powers
            .flat_map(|power| factors.iter().map(move |factor| factor * 10f64.powi(power)))
            .filter(|tick| (self.low..=self.high).contains(tick))
            .collect()
    }
}

/// The next of 1, 2, 5 times a power of ten.
fn nice_step(raw: f64) -> f64 {
    if !(raw.is_finite() && raw > 0.0) {
        return 1.0;
    }
    let power = 10f64.powf(raw.log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0].into_iter().find(|f| f * power >= raw * 0.999).unwrap_or(10.0);
    factor * power
}

/// A label that is just precise enough to tell neighbours `step` apart.
fn tick_label(tick: f64, step: f64, percent: bool) -> String {
    let (tick, step) = if percent { (100.0 * tick, 100.0 * step) } else { (tick, step) };
    // What is left of zero after adding steps.
    let tick = if tick.abs() < 1e-9 * step { 0.0 } else { tick };
    let decimals = (-step.log10()).ceil().clamp(0.0, 9.0) as usize;
    let text = match tick.abs() {
        0.0 => "0".to_owned(),
        // One notation along an axis: not 5e-4 below 0.001.
        _ if step < 0.999e-3 => scientific(tick),
        size if size >= 1e4 && step >= 1e3 => number(tick),
        size if size >= 1e6 => number(tick),
        _ => format!("{tick:.decimals$}"),
    };
    if percent { format!("{text} %") } else { text }
}

/// A number with four significant digits: `0.0123`, `5.123`, `14.2k`, `1.5e-4`.
pub(super) fn number(value: f64) -> String {
    let size = value.abs();
    match size {
        _ if !value.is_finite() => "not finite".to_owned(),
        0.0 => "0".to_owned(),
        _ if !(1e-3..1e12).contains(&size) => scientific(value),
        _ if size >= 1e9 => format!("{}G", trim(format!("{:.2}", value / 1e9))),
        _ if size >= 1e6 => format!("{}M", trim(format!("{:.2}", value / 1e6))),
        _ if size >= 1e4 => format!("{}k", trim(format!("{:.1}", value / 1e3))),
        _ => {
            let decimals = (3.0 - size.log10().floor()).clamp(0.0, 6.0) as usize;
            trim(format!("{value:.decimals$}"))
        }
    }
}

/// Three significant digits and a power of ten.
fn scientific(value: f64) -> String {
    let text = format!("{value:.2e}");
    let (digits, power) = text.split_once('e').unwrap_or((&text, "0"));
    format!("{}e{power}", trim(digits.to_owned()))
}

/// Without zeros at the end of the decimals.
fn trim(text: String) -> String {
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// A value for a legend or a hover: a number, or percent with one decimal.
pub(super) fn value_label(value: f64, percent: bool) -> String {
    if percent && value.is_finite() { format!("{:.1} %", 100.0 * value) } else { number(value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(scale: Scale, percent: bool) -> Vec<String> {
        scale.ticks(5, percent).into_iter().map(|(_, label)| label).collect()
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(labels(Scale::exact(0.0, 1.0), false), ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(labels(Scale::exact(0.0, 1.0), true), ["0 %", "20 %", "40 %", "60 %", "80 %", "100 %"]);
        assert_eq!(labels(Scale::exact(0.0, 23_000.0), false), ["0", "5000", "10k", "15k", "20k"]);
        assert_eq!(labels(Scale::exact(0.0, 0.0015), false), ["0", "5e-4", "1e-3", "1.5e-3"]);
        assert_eq!(labels(Scale { low: 0.9, high: 1100.0, log: true }, false), ["1", "10", "100", "1000"]);
        assert_eq!(labels(Scale { low: 1.1, high: 6.0, log: true }, false), ["2", "5"]);
    }

    #[test]
    fn scales_survive_odd_values() {
        for values in [vec![], vec![0.0], vec![-3.0], vec![1e99, -1e99], vec![1e-300], vec![1.0, 1.0 + 1e-16]]
        {
            let scale = Scale::around(values.iter().copied(), false);
            assert!(scale.low < scale.high, "{values:?}");
            assert!(scale.ticks(5, false).len() < 20);
            assert!(values.iter().all(|v| scale.place(*v).is_finite()));
        }
        assert_eq!(Scale::around([0.1, 1.0].into_iter(), false).low, 0.0);
        assert!(Scale::around([1e-99, 1e99].into_iter(), true).ticks(5, false).len() < 20);
    }

    #[test]
    fn numbers_are_short() {
        let cases = [
            (0.0, "0"),
            (5.1234, "5.123"),
            (14_200.0, "14.2k"),
            (0.00015, "1.5e-4"),
            (2.0, "2"),
            (-0.5, "-0.5"),
        ];
        for (value, text) in cases {
            assert_eq!(number(value), text);
        }
    }
}
