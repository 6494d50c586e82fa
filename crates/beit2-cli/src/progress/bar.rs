//! The one line of a terminal that says how far work is.

use console::{Term, measure_text_width, style, truncate_str};

/// Columns of the bar itself; without room for the least there is none.
const BAR: std::ops::RangeInclusive<usize> = 8..=24;

/// A part of the line after the count. Where the terminal is narrow, those with the highest number go first.
pub(super) struct Part {
    text: String,
    rank: u8,
}

impl Part {
    pub(super) fn new(rank: u8, text: impl Into<String>) -> Self {
        Self { text: text.into(), rank }
    }
}

/// Columns of the terminal that a line may use. The last one stays free: some terminals wrap there.
pub(super) fn columns() -> usize {
    Term::stderr().size_checked().map_or(80, |(_, columns)| usize::from(columns)).max(20) - 1
}

/// `pretrain ━━━━━━──── 1,234/20,000  epoch 3/10  loss 9.012  140 img/s  2 h 5 min left`, in at most this many columns.
pub(super) fn line(name: &str, (done, total): (u64, u64), parts: Vec<Part>, columns: usize) -> String {
    let count = format!("{}/{}", beit2_run::thousands(done), beit2_run::thousands(total));
    let fixed = measure_text_width(name) + 2 + measure_text_width(&count);
    let mut parts = parts;
    let width = |parts: &[Part]| parts.iter().map(|part| 2 + measure_text_width(&part.text)).sum::<usize>();
    let drop_last = |parts: &mut Vec<Part>, least: usize, worth: u8| {
        while fixed + least + width(parts) > columns {
            let Some(last) = parts.iter().map(|part| part.rank).max().filter(|rank| *rank >= worth) else {
                break;
            };
            parts.retain(|part| part.rank != last);
        }
    };
    // The bar goes before the parts that are needed most.
    drop_last(&mut parts, *BAR.start() + 1, 2);
    drop_last(&mut parts, 0, 0);
    let room = columns.saturating_sub(fixed + width(&parts) + 1).min(*BAR.end());
    let bar = if room >= *BAR.start() { format!("{} ", bar(done, total, room)) } else { String::new() };
    let rest: String = parts.iter().map(|part| format!("  {}", part.text)).collect();
    let line = format!("{}  {bar}{count}{rest}", style(name).for_stderr().bold());
    truncate_str(&line, columns, "").into_owned()
}

fn bar(done: u64, total: u64, width: usize) -> String {
    let share = if total == 0 { 1.0 } else { (done as f64 / total as f64).min(1.0) };
    let filled = (share * width as f64).floor() as usize;
    let part = |sign: &str, count: usize| sign.repeat(count);
    format!(
        "{}{}",
        style(part("━", filled)).for_stderr().cyan(),
        style(part("─", width - filled)).for_stderr().dim()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(columns: usize) -> String {
        let parts = vec![
            Part::new(4, "epoch 12/100"),
            Part::new(1, "loss 9.012"),
            Part::new(3, "140 img/s"),
            Part::new(0, "2 h 5 min left"),
            Part::new(5, "device-bound"),
        ];
        console::strip_ansi_codes(&line("pretrain", (1_234, 20_000), parts, columns)).into_owned()
    }

    #[test]
    fn a_line_fits_its_terminal() {
        for columns in 20..=160 {
            let line = example(columns);
            assert!(measure_text_width(&line) <= columns, "{columns}: {line}");
        }
        // What goes first is what is needed least.
        assert!(example(160).ends_with("epoch 12/100  loss 9.012  140 img/s  2 h 5 min left  device-bound"));
        let narrow = example(79);
        assert!(narrow.starts_with("pretrain  ━───"), "{narrow}");
        assert!(narrow.ends_with("1,234/20,000  loss 9.012  140 img/s  2 h 5 min left"), "{narrow}");
        assert_eq!(example(40), "pretrain  1,234/20,000  2 h 5 min left");
    }
}
