//! Whether a measurement can be believed: what other programs did meanwhile, and figures that contradict each other.

use std::time::Instant;

/// Rounds further apart than this are not believed, as a fraction of their median.
pub const MOST_SPREAD: f64 = 0.2;
/// The same for measurements of the peak, which are short and see every disturbance, as a fraction of the best.
pub const MOST_PEAK_SPREAD: f64 = 0.3;
/// Other programs may use this fraction of the processors.
pub const MOST_LOAD: f64 = 0.05;
/// By how much a large matmul may seem faster than registers: both are measured for a few milliseconds.
const SLACK: f64 = 1.02;
/// Linux counts processor time in hundredths of a second.
const TICKS: f64 = 100.0;
/// Fewer ticks than this are rounding.
const FEW_TICKS: u64 = 5;

/// The middle value; of an even number the mean of both in the middle. `None` without values.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    Some(if sorted.len() % 2 == 1 { upper } else { (sorted[sorted.len() / 2 - 1] + upper) / 2.0 })
}

/// Processor time since the machine started, in ticks.
#[derive(Debug, Clone, Copy)]
pub struct Ticks {
    at: Instant,
    /// Of all programs.
    all: u64,
    /// What a hypervisor gave to others.
    stolen: u64,
    /// Of this process.
    own: u64,
    cpus: usize,
}

impl Ticks {
    /// `None` where the system does not tell (only Linux does).
    pub fn now() -> Option<Self> {
        let stat = std::fs::read_to_string("/proc/stat").ok()?;
        let own = std::fs::read_to_string("/proc/self/stat").ok()?;
        Self::parse(&stat, &own)
    }

    fn parse(stat: &str, own: &str) -> Option<Self> {
        let mut lines = stat.lines();
        let numbers: Vec<u64> =
            lines.next()?.strip_prefix("cpu ")?.split_whitespace().map_while(|n| n.parse().ok()).collect();
        // user, nice, system, idle, iowait, irq, softirq, steal
        let [user, nice, system, _, _, irq, softirq, stolen, ..] = numbers[..] else { return None };
        let cpus = lines.take_while(|line| line.starts_with("cpu")).count();
        // The name in brackets may hold anything.
        let fields: Vec<&str> = own.rsplit_once(')')?.1.split_whitespace().collect();
        let field = |at: usize| fields.get(at)?.parse::<u64>().ok();
        let all = user + nice + system + irq + softirq;
        Some(Self { at: Instant::now(), all, stolen, own: field(11)? + field(12)?, cpus: cpus.max(1) })
    }
}

/// What others did while something was measured; sums over several rounds.
#[derive(Debug, Clone, Copy, Default)]
pub struct Load {
    seconds: f64,
    others: u64,
    stolen: u64,
    cpus: usize,
}

impl Load {
    /// Adds the time between two readings.
    pub fn add(&mut self, from: Option<Ticks>, to: Option<Ticks>) {
        let Some((from, to)) = from.zip(to) else { return };
        self.seconds += (to.at - from.at).as_secs_f64();
        let own = to.own.saturating_sub(from.own);
        self.others += to.all.saturating_sub(from.all).saturating_sub(own);
        self.stolen += to.stolen.saturating_sub(from.stolen);
        self.cpus = to.cpus;
    }

    /// Sentences about load that makes a measurement on `threads` threads worthless.
    fn reasons(&self, threads: usize) -> Vec<String> {
        if self.seconds <= 0.0 {
            return Vec::new();
        }
        let cores = |ticks: u64| ticks as f64 / TICKS / self.seconds;
        let (cpus, others, stolen) = (self.cpus as f64, cores(self.others), cores(self.stolen));
        // On a large machine others may be busy as long as they leave enough processors free.
        let crowded = others + threads as f64 > cpus && others > MOST_LOAD * cpus;
        let mut reasons = Vec::new();
        if crowded && self.others >= FEW_TICKS {
            reasons.push(format!("other programs kept {others:.1} of {cpus} processors busy"));
        }
        if stolen > MOST_LOAD * cpus && self.stolen >= FEW_TICKS {
            reasons.push(format!("the hypervisor took {stolen:.1} of {cpus} processors away"));
        }
        reasons
    }
}

/// What was measured so far, to be judged.
#[derive(Debug, Clone, Default)]
pub struct Evidence {
    /// Seconds of a step, of each round.
    pub seconds: Vec<f64>,
    /// Operations of a step.
    pub step_flops: f64,
    /// Every measurement of a large matmul, operations a second.
    pub gemm: Vec<f64>,
    /// Every measurement of registers, operations a second; empty where there is none.
    pub registers: Vec<f64>,
    /// What others did during the rounds.
    pub load: Load,
    /// Threads that were used on the CPU.
    pub threads: usize,
}

impl Evidence {
    /// The best measurement of a large matmul: a disturbed one is only ever too slow.
    pub fn best_gemm(&self) -> Option<f64> {
        best(&self.gemm)
    }

    /// The best measurement of registers.
    pub fn best_registers(&self) -> Option<f64> {
        best(&self.registers)
    }

    /// Why the figures should not be believed, a phrase each; empty if nothing speaks against them.
    pub fn reasons(&self) -> Vec<String> {
        let mut reasons = self.load.reasons(self.threads);
        let (least, most) = (least(&self.seconds), best(&self.seconds));
        if let (Some(least), Some(most), Some(middle)) = (least, most, median(&self.seconds)) {
            let apart = (most - least) / middle;
            if apart > MOST_SPREAD {
                reasons.push(format!(
                    "a step took {:.1} ms in one round and {:.1} ms in another, more than {:.0} % apart",
                    1e3 * least,
                    1e3 * most,
                    1e2 * MOST_SPREAD
                ));
            }
        }
        for (peak, what) in [(&self.gemm, "a large matmul"), (&self.registers, "registers")] {
            if let (Some(slowest), Some(fastest)) = (self::least(peak), best(peak))
                && (fastest - slowest) / fastest > MOST_PEAK_SPREAD
            {
                let [slowest, fastest] = [slowest, fastest].map(|flops| flops / 1e9);
                reasons.push(format!(
                    "the peak of {what} was {slowest:.0} GFLOP/s once and {fastest:.0} another time"
                ));
            }
            if let (Some(peak), Some(seconds)) = (best(peak), least)
                && self.step_flops / seconds > peak
            {
                reasons.push(format!(
                    "steps came out faster than the measured peak of {what}, which is impossible"
                ));
            }
        }
        if let (Some(gemm), Some(registers)) = (self.best_gemm(), self.best_registers())
            && gemm > SLACK * registers
        {
            reasons.push("a large matmul came out faster than registers, which is impossible".to_owned());
        }
        reasons
    }
}

/// A fraction of a peak; `None` where it cannot be true.
pub fn share(achieved: f64, peak: f64) -> Option<f64> {
    let share = achieved / peak;
    (share <= 1.0).then_some(share)
}

fn best(values: &[f64]) -> Option<f64> {
    values.iter().copied().max_by(f64::total_cmp)
}

fn least(values: &[f64]) -> Option<f64> {
    values.iter().copied().min_by(f64::total_cmp)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_is_the_mean_of_the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[7.0]), Some(7.0));
        assert_eq!(median(&[20.0, 10.0]), Some(15.0));
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 100.0, 1.0, 2.0]), Some(3.0));
    }

    /// Steps of 100 GFLOP in half a second, and peaks that allow them.
    fn quiet() -> Evidence {
        Evidence {
            seconds: vec![0.5, 0.52, 0.49],
            step_flops: 100e9,
            gemm: vec![300e9, 280e9],
            registers: vec![400e9, 390e9],
            load: Load { seconds: 2.0, others: 4, stolen: 0, cpus: 2 },
            threads: 2,
        }
    }

    #[track_caller]
    fn says(evidence: &Evidence, words: &[&str]) {
        let reasons = evidence.reasons();
        assert_eq!(reasons.len(), 1, "{reasons:?}");
        for word in words {
            assert!(reasons[0].contains(word), "no `{word}` in {reasons:?}");
        }
    }

    #[test]
    fn a_quiet_machine_is_believed_and_each_kind_of_noise_is_named() {
        assert_eq!(quiet().reasons(), [""; 0]);
        assert_eq!(Evidence::default().reasons(), [""; 0], "nothing was measured");
        let apart = Evidence { seconds: vec![0.5, 0.62], ..quiet() };
        says(&apart, &["500.0 ms in one round", "620.0 ms in another, more than 20 % apart"]);
        says(
            &Evidence { gemm: vec![300e9, 200e9], ..quiet() },
            &["a large matmul was 200 GFLOP/s once and 300"],
        );
        says(&Evidence { registers: vec![250e9, 400e9], ..quiet() }, &["registers was 250 GFLOP/s once"]);
        says(&Evidence { gemm: vec![400e9, 410e9], ..quiet() }, &["faster than registers"]);
        // 204 GFLOP/s, of a matmul that was measured while something else ran.
        says(&Evidence { gemm: vec![44e9], ..quiet() }, &["faster than the measured peak of a large matmul"]);
        assert_eq!((share(204e9, 44e9), share(150e9, 300e9)), (None, Some(0.5)));
        let load = |others, stolen| Load { others, stolen, ..quiet().load };
        says(&Evidence { load: load(200, 0), ..quiet() }, &["other programs kept 1.0 of 2 processors busy"]);
        says(&Evidence { load: load(0, 60), ..quiet() }, &["hypervisor took 0.3 of 2"]);
    }

    #[test]
    fn others_may_work_where_there_is_room() {
        let load = Load { seconds: 2.0, others: 4000, stolen: 0, cpus: 64 };
        assert_eq!(Evidence { load, threads: 32, ..quiet() }.reasons(), [""; 0]);
        says(&Evidence { load, threads: 64, ..quiet() }, &["20.0 of 64 processors"]);
    }

    #[test]
    fn the_peak_is_the_best_measurement() {
        let evidence = Evidence { gemm: vec![50e9, 310e9, 300e9], ..quiet() };
        assert_eq!(evidence.best_gemm(), Some(310e9));
    }

    #[test]
    fn linux_tells_ticks() {
        let stat = "cpu  100 20 30 900 5 1 2 7 0 0\ncpu0 50 10 15 450 2 0 1 3 0 0\ncpu1 50 10 15 450 3 1 1 4 0 0\nintr 1\n";
        let own = "12 (a b) c) S 1 1 1 0 -1 4194560 10 0 0 0 40 9 0 0 20 0 1 0 5 6 7";
        let first = Ticks::parse(stat, own).unwrap();
        assert_eq!((first.all, first.stolen, first.own, first.cpus), (153, 7, 49, 2));
        let later = Ticks { at: first.at + std::time::Duration::from_secs(2), all: 553, own: 249, ..first };
        let mut load = Load::default();
        load.add(Some(first), Some(later));
        load.add(None, Some(later));
        assert_eq!((load.seconds, load.others, load.cpus), (2.0, 200, 2));
        if cfg!(target_os = "linux") {
            assert!(Ticks::now().is_some());
        }
    }
}
