//! Values as text.

use crate::display::metric;

/// Values of a record that a line leaves out: they are in the header or elsewhere on the line.
const NOT_ON_A_LINE: [&str; 4] = ["images_per_second", "data_wait", "weight_decay", "grad_norm"];

/// `loss 5.012  lr 1.50e-4 …`.
pub(super) fn spelled(values: &[(String, f64)]) -> String {
    let shown = values.iter().filter(|(name, _)| !NOT_ON_A_LINE.contains(&name.as_str()));
    let parts: Vec<String> = shown.map(|(name, value)| format!("{name} {}", metric(name, *value))).collect();
    parts.join("  ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_holds_the_numbers() {
        let values = [("loss".to_owned(), 5.01234), ("grad_norm".to_owned(), 1.0), ("lr".to_owned(), 1.5e-4)];
        assert_eq!(spelled(&values), "loss 5.012  lr 1.50e-4");
    }
}
