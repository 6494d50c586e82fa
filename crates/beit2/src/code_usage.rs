//! How well a codebook is used: metrics, and a warning where they are bad.

use beit2_run::report::{self, CodebookPoint, Level, assess};

/// Counts of code uses, gathered over batches on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CodeUsage {
    counts: Vec<u64>,
}

impl CodeUsage {
    /// No uses yet of `codes` codes.
    pub fn new(codes: usize) -> Self {
        Self { counts: vec![0; codes] }
    }

    /// Counts uses of ids; ids out of range are ignored.
    pub fn add(&mut self, ids: impl IntoIterator<Item = usize>) {
        for id in ids {
            if let Some(count) = self.counts.get_mut(id) {
                *count += 1;
            }
        }
    }

    /// Adds uses counted elsewhere, in the order of the codes.
    pub fn add_counts(&mut self, counts: impl IntoIterator<Item = u64>) {
        for (count, more) in self.counts.iter_mut().zip(counts) {
            *count += more;
        }
    }

    /// Uses of each code.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// The codes used most, first the most used.
    pub fn most_used(&self, limit: usize) -> Vec<(u32, u64)> {
        let mut codes: Vec<(u32, u64)> =
            (0u32..).zip(self.counts.iter().copied()).filter(|c| c.1 > 0).collect();
        codes.sort_by_key(|&(code, count)| (std::cmp::Reverse(count), code));
        codes.truncate(limit);
        codes
    }

    /// The summary.
    pub fn health(&self) -> CodebookHealth {
        let total: u64 = self.counts.iter().sum();
        let used = self.counts.iter().filter(|&&count| count > 0).count();
        let entropy: f64 = self
            .counts
            .iter()
            .filter(|&&count| count > 0)
            .map(|&count| count as f64 / total as f64)
            .map(|p| -p * p.ln())
            .sum();
        CodebookHealth {
            codes: self.counts.len(),
            used,
            perplexity: if total == 0 { 0.0 } else { entropy.exp() },
            tokens: total,
        }
    }
}

/// A codebook's health over some tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CodebookHealth {
    /// Codes K.
    pub codes: usize,
    /// Codes used at least once.
    pub used: usize,
    /// e^entropy of the uses: how many codes an even use would need to be as varied.
    pub perplexity: f64,
    /// Tokens counted.
    pub tokens: u64,
}

impl CodebookHealth {
    /// Share of the codes that is used, in [0, 1].
    pub fn usage(&self) -> f64 {
        self.used as f64 / self.codes.max(1) as f64
    }

    /// Codes never used.
    pub fn dead(&self) -> usize {
        self.codes - self.used
    }

    /// A warning of one sentence when something is wrong with the codebook, judged as the report does,
    /// but only when the tokens would have sufficed to use every code several times.
    pub fn warning(&self) -> Option<String> {
        if self.tokens < 4 * self.codes as u64 {
            return None;
        }
        let now = CodebookPoint {
            epoch: 0,
            usage: self.usage(),
            perplexity: self.perplexity,
            dead: self.dead() as u64,
        };
        let size = u32::try_from(self.codes).unwrap_or(u32::MAX);
        let verdict = assess(&report::CodebookHealth { size, history: vec![now] });
        (verdict.level != Level::Good).then(|| format!("{}: {}", verdict.title, verdict.text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn even_use_is_healthy_and_collapse_is_said() {
        let mut even = CodeUsage::new(8);
        even.add((0..64).map(|i| i % 8));
        let health = even.health();
        assert_eq!((health.used, health.dead()), (8, 0));
        assert!((health.perplexity - 8.0).abs() < 1e-9);
        assert_eq!(health.warning(), None);

        let mut collapsed = CodeUsage::new(512);
        collapsed.add((0..4096).map(|i| i % 2));
        assert!(collapsed.health().warning().unwrap().contains("collapsed"));
        assert_eq!(collapsed.most_used(1), [(0, 2048)]);

        let mut early = CodeUsage::new(512);
        early.add([1]);
        assert_eq!(early.health().warning(), None, "too few tokens to judge");
    }
}
