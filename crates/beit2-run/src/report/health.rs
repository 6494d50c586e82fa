//! The codebook's health as a sentence and a level.
//!
//! Perplexity is exp of the entropy of the codes' frequencies: a codebook is as varied as that many equally
//! frequent codes.

use std::fmt::Write;

use super::CodebookHealth;
use super::chart::{Chart, Series};
use super::html::{Page, escape};
use crate::format::thousands;

/// How worried to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Nothing to do.
    Good,
    /// Worth a look.
    Warning,
    /// Training on would waste time.
    Bad,
}

/// What the codebook's numbers mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// How worried to be.
    pub level: Level,
    /// The finding in short, for a headline.
    pub title: String,
    /// Why, and what helps, in one to three sentences.
    pub text: String,
}

/// Judges the codebook by its last epoch and by what came before.
///
/// The limits are rules of thumb: below a tenth of the codes in use the published recipes count as collapsed,
/// above half they pretrain well as long as the codes in use are not dominated by a few.
pub fn assess(codebook: &CodebookHealth) -> Verdict {
    let verdict = |level, title: &str, text: String| Verdict { level, title: title.to_owned(), text };
    let Some(last) = codebook.history.last() else {
        let text = "No epoch of the tokenizer has ended yet, so there is nothing to judge.";
        return verdict(Level::Warning, "The codebook was not measured", text.to_owned());
    };
    if !last.usage.is_finite() || !last.perplexity.is_finite() {
        let text = "Usage or perplexity is not a finite number: the tokenizer's training has diverged. A smaller learning \
                    rate or a longer warm-up usually helps.";
        return verdict(Level::Bad, "The codebook's numbers are broken", text.to_owned());
    }
    let size = f64::from(codebook.size.max(1));
    let used = (last.usage * size).round().max(0.0);
    let facts = format!(
        "{} of {} codes ({:.1} %) were used in the last epoch, and they are as varied as {:.0} equally frequent codes \
         (perplexity).",
        thousands(used as u64),
        thousands(u64::from(codebook.size)),
        100.0 * last.usage,
        last.perplexity,
    );
    if last.usage < 0.1 || last.perplexity < 0.02 * size {
        let text = format!(
            "{facts} Nearly every patch gets one of the same few codes, so there is little for pretraining to predict. \
             What helps: warm-up steps before the k-means start, more vectors for k-means, revival of unused codes, or a \
             smaller codebook."
        );
        return verdict(Level::Bad, "The codebook has collapsed", text);
    }
    let best =
        codebook.history.iter().filter(|p| p.usage.is_finite()).max_by(|a, b| a.usage.total_cmp(&b.usage));
    if let Some(best) = best.filter(|best| last.usage < best.usage - 0.1) {
        let text = format!(
            "{facts} It was {:.1} % after epoch {}; codes are dying. If this goes on, turn on the revival of unused codes.",
            100.0 * best.usage,
            best.epoch
        );
        return verdict(Level::Warning, "The codebook is losing codes", text);
    }
    if last.usage < 0.5 {
        let text =
            format!("{facts} More than half of the codebook is idle; a smaller one would say as much.");
        return verdict(Level::Warning, "Much of the codebook is unused", text);
    }
    if last.perplexity < 0.2 * used {
        let text = format!("{facts} A few codes carry most patches; plain background is the usual reason.");
        return verdict(Level::Warning, "A few codes dominate", text);
    }
    verdict(Level::Good, "The codebook is healthy", facts)
}

/// The section with the verdict and its curves.
pub(super) fn section(page: &mut Page, codebook: &CodebookHealth) {
    let verdict = assess(codebook);
    let mut html = banner(verdict.level, &verdict.title, &verdict.text);
    let points = |value: fn(&super::CodebookPoint) -> f64| -> Vec<(f64, f64)> {
        codebook.history.iter().map(|p| (p.epoch as f64, value(p))).collect()
    };
    let chart = |title: &str, percent, points| Chart {
        title: title.to_owned(),
        x_label: "epoch".to_owned(),
        series: vec![Series { name: title.to_owned(), points, smooth: false }],
        percent,
        ..Chart::default()
    };
    if !codebook.history.is_empty() {
        html.push_str("<div class=\"charts three\">\n");
        html.push_str(&chart("Codes in use", true, points(|p| p.usage)).render());
        html.push_str(&chart("Perplexity", false, points(|p| p.perplexity)).render());
        html.push_str(&chart("Unused codes", false, points(|p| p.dead as f64)).render());
        html.push_str("</div>\n");
    }
    page.section("Codebook", html);
}

/// A coloured box; the sign and the title carry the meaning too, the colour only helps.
pub(super) fn banner(level: Level, title: &str, text: &str) -> String {
    let (class, sign) = match level {
        Level::Good => ("good", "✓"),
        Level::Warning => ("warning", "!"),
        Level::Bad => ("bad", "✕"),
    };
    let mut html = format!("<div class=\"banner {class}\"><span aria-hidden=\"true\">{sign}</span><p>");
    if !title.is_empty() {
        let _ = write!(html, "<b>{}.</b> ", escape(title));
    }
    let _ = writeln!(html, "{}</p></div>", escape(text));
    html
}

#[cfg(test)]
mod tests {
    use super::super::CodebookPoint;
    use super::*;

    fn level(points: &[(f64, f64)]) -> (Level, String) {
        let history = points
            .iter()
            .enumerate()
            .map(|(epoch, &(usage, perplexity))| CodebookPoint {
                epoch: epoch as u64,
                usage,
                perplexity,
                dead: 0,
            })
            .collect();
        let verdict = assess(&CodebookHealth { size: 512, history });
        (verdict.level, format!("{}: {}", verdict.title, verdict.text))
    }

    #[test]
    fn judges_as_a_practitioner_would() {
        assert_eq!(level(&[(0.99, 248.0)]).0, Level::Good);
        let (collapsed, text) = level(&[(0.015, 3.0)]);
        assert_eq!(collapsed, Level::Bad);
        assert!(text.contains("collapsed") && text.contains("8 of 512 codes (1.5 %)"), "{text}");
        assert!(level(&[(0.9, 200.0), (0.6, 150.0)]).1.contains("losing codes"));
        assert!(level(&[(0.3, 60.0)]).1.contains("unused"));
        assert!(level(&[(0.9, 40.0)]).1.contains("dominate"));
        assert_eq!(level(&[(f64::NAN, 40.0)]).0, Level::Bad);
        assert_eq!(level(&[]).0, Level::Warning);
    }
}
