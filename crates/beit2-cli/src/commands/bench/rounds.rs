//! The rounds of `bench train` and `bench infer`: measured one by one, printed as a line or an object each, and summed up.

use std::io::{BufRead, IsTerminal};

use beit2::Error;
use beit2::train::{Event, Observer};
use beit2_bench::noise::{Evidence, Ticks, median, share};
use beit2_bench::{Parts, Stage, gemm_flops};
use beit2_kernels::{AutodiffBackend, probe::Probe};
use beit2_run::environment::{Environment, format_bytes, peak_memory_bytes};
use serde_json::{Value, json};

use super::{Run, checkpointing, kernel_times};
use crate::device::Kind;
use crate::errors::Ending;
use crate::machine::SOFTWARE;
use crate::session::Session;
use crate::{libraries, output};

/// What all rounds of a measurement share.
pub(super) struct Rounds<'a> {
    pub run: &'a Run<'a>,
    /// Operations of a step.
    pub step_flops: f64,
    /// A large matmul's speed, where it is measured only once.
    pub gemm: Option<f64>,
    /// Memory of the process before there was a model.
    pub held: Option<u64>,
}

/// One round's measurement.
#[derive(Clone, Copy)]
struct Round {
    /// Of a step.
    seconds: f64,
    parts: Parts,
    /// Of an NVIDIA GPU, that this process holds.
    gpu_memory: Option<u64>,
}

impl Round {
    /// What the parts do not account for: negative where they overlap in training.
    fn rest(&self) -> f64 {
        self.seconds - self.parts.sum()
    }
}

impl Rounds<'_> {
    /// Runs `steps` (number, whether to go on after each → seconds of a step, its parts, the last loss) round by round.
    pub fn measure<B: AutodiffBackend>(
        &self,
        session: &mut Session<'_>,
        device: &B::Device,
        mut steps: impl FnMut(usize, &mut dyn FnMut() -> bool) -> Result<(f64, Parts, Option<f64>), Error>,
    ) -> anyhow::Result<Ending> {
        let (common, signals) = (self.run.common, session.signals);
        let (bar, total) = (std::io::stderr().is_terminal(), common.rounds * common.steps);
        let mut evidence = Evidence {
            step_flops: self.step_flops,
            gemm: self.gemm.into_iter().collect(),
            threads: beit2_kernels::threads(),
            ..Evidence::default()
        };
        session.progress.note("warming up: two steps and the peak of this machine");
        // Threads start, buffers are made, kernels are chosen.
        match steps(2, &mut || !signals.stop.is_set()) {
            Err(Error::Interrupted) => return Ok(Ending::Stopped),
            warm => warm?,
        };
        self.add_peaks::<B>(&mut evidence, device)?;
        if common.paced {
            output::result(&json!({ "ready": true, "program": "beit2", "version": SOFTWARE }).to_string())?;
        }
        let mut input = std::io::stdin().lock().lines();
        let mut measured: Vec<Round> = Vec::new();
        for number in 0..common.rounds {
            if common.paced && input.next().transpose()?.is_none() {
                break;
            }
            let mut done = number * common.steps;
            let mut go_on = || {
                done += 1;
                if bar {
                    let (done, total) = (done as u64, total as u64);
                    session.progress.event(Event::Progress { what: "steps".to_owned(), done, total });
                }
                !signals.stop.is_set()
            };
            let before = Ticks::now();
            let (seconds, parts, loss) = match steps(common.steps, &mut go_on) {
                Err(Error::Interrupted) => return Ok(Ending::Stopped),
                measured => measured?,
            };
            if self.run.on_cpu() {
                evidence.load.add(before, Ticks::now());
            }
            if let Some(loss) = loss.filter(|loss| !loss.is_finite()) {
                anyhow::bail!("the loss became {loss}, so the measurement means nothing");
            }
            let gpu_memory =
                (common.device.device.kind == Kind::Cuda).then(libraries::gpu_memory_held_bytes).flatten();
            let round = Round { seconds, parts, gpu_memory };
            evidence.seconds.push(seconds);
            self.add_peaks::<B>(&mut evidence, device)?;
            session.progress.note(&format!(
                "round {} of {}: {:.2} images/s, {:.1} ms a step",
                number + 1,
                common.rounds,
                common.batch_size as f64 / seconds,
                1e3 * seconds
            ));
            if common.json {
                output::result(&self.line(&round, &evidence).to_string())?;
            }
            measured.push(round);
        }
        if let Some(file) = &common.kernel_times {
            // As many steps as a round has, and for training one more, which is taken part by part.
            let count = common.steps + usize::from(self.run.stage.is_some());
            let device = common.device.device.to_string();
            kernel_times::write(file, &device, count, || steps(common.steps, &mut || true).map(drop))?;
        }
        session.progress.close();
        if !common.json && !measured.is_empty() {
            output::result(&self.summary(&measured, &evidence))?;
        }
        Ok(Ending::Done)
    }

    /// Measures the peaks once more, where they are measured between rounds.
    fn add_peaks<B: AutodiffBackend>(
        &self,
        evidence: &mut Evidence,
        device: &B::Device,
    ) -> anyhow::Result<()> {
        if self.run.precision.is_int8() {
            // The peaks are those of floats.
            return Ok(());
        }
        if self.gemm.is_none() {
            evidence.gemm.push(gemm_flops::<B::InnerBackend>(self.run.precision.of_floats(), device)?);
        }
        if self.run.on_cpu()
            && let Some(probe) = Probe::new(self.run.precision.of_floats())
        {
            evidence.registers.push((0..3).map(|_| probe.flops()).fold(0.0, f64::max));
        }
        Ok(())
    }

    /// Peak memory of the process, and what of it came with the model.
    fn memory(&self) -> (Option<u64>, Option<u64>) {
        let peak = peak_memory_bytes();
        (peak, peak.zip(self.held).map(|(peak, held)| peak.saturating_sub(held)))
    }

    /// One round as JSON. Peaks and noise are those of the measurement so far.
    fn line(&self, round: &Round, evidence: &Evidence) -> Value {
        let (run, (peak, own)) = (self.run, self.memory());
        let mebibytes = |bytes: Option<u64>| bytes.map(|bytes| bytes as f64 / f64::from(1 << 20));
        let ms = |seconds: f64| seconds * 1e3;
        let Parts { data, tokenizer, forward, backward, optimizer } = round.parts;
        let achieved = self.step_flops / round.seconds;
        let (gemm, registers) = (evidence.best_gemm(), evidence.best_registers());
        let reasons = evidence.reasons();
        json!({
            "program": "beit2",
            "version": SOFTWARE,
            "kind": run.kind,
            "stage": run.stage.map(Stage::name),
            "size": run.size.name(),
            "batch_size": run.common.batch_size,
            "grad_accum_steps": run.stage.map(|_| run.micro_batches),
            "activation_checkpointing": run.stage.map(|_| checkpointing(run.train.activation_checkpointing)),
            "precision": run.precision,
            "device": run.common.device.device.to_string(),
            "threads": evidence.threads,
            "steps": run.common.steps,
            "seconds_per_step": round.seconds,
            "images_per_second": run.common.batch_size as f64 / round.seconds,
            "ms": {
                "data": ms(data),
                "tokenizer": ms(tokenizer),
                "forward": ms(forward),
                "backward": ms(backward),
                "optimizer": ms(optimizer),
                "rest": ms(round.rest()),
            },
            "gflop_per_step": self.step_flops / 1e9,
            "gflops": achieved / 1e9,
            "gemm_gflops": gemm.map(|flops| flops / 1e9),
            "share_of_gemm_peak": gemm.and_then(|flops| share(achieved, flops)),
            "register_gflops": registers.map(|flops| flops / 1e9),
            "share_of_register_peak": registers.and_then(|flops| share(achieved, flops)),
            "peak_memory_mib": mebibytes(peak),
            "peak_step_memory_mib": mebibytes(own),
            "gpu_memory_mib": mebibytes(round.gpu_memory),
            "noisy": !reasons.is_empty(),
            "reasons": reasons,
        })
    }

    fn summary(&self, rounds: &[Round], evidence: &Evidence) -> String {
        let run = self.run;
        let batch = run.common.batch_size as f64;
        let what = match run.stage {
            Some(stage) => format!("training step, {}", stage.name()),
            None => "prediction of a classifier".to_owned(),
        };
        let machine = Environment::detect(SOFTWARE);
        let mut rows = vec![
            (
                "measured".to_owned(),
                format!(
                    "{what}, {} size, batch {batch}{}, {}",
                    run.size.name(),
                    run.division(),
                    run.precision
                ),
            ),
            (
                "on".to_owned(),
                match run.common.device.device.to_string().as_str() {
                    "cpu" => {
                        let threads = evidence.threads;
                        let s = if threads == 1 { "" } else { "s" };
                        format!("{}, {threads} thread{s}", machine.cpu.unwrap_or_else(|| "cpu".into()))
                    }
                    device => device.to_owned(),
                },
            ),
        ];
        let speeds: Vec<f64> = rounds.iter().map(|round| batch / round.seconds).collect();
        let (least, most) = speeds.iter().fold((f64::INFINITY, 0.0f64), |(a, b), &s| (a.min(s), b.max(s)));
        if let Some(speed) = median(&speeds) {
            let of = format!("(median of {}; {least:.2} to {most:.2})", rounds.len());
            rows.push(("images/s".to_owned(), format!("{speed:.2} {of}")));
        }
        let middle = middle(rounds);
        rows.extend(step_rows(&middle));
        let achieved = self.step_flops / middle.seconds;
        let rate = |flops: f64| format!("{:.0} GFLOP/s", flops / 1e9);
        let of_peak = |peak: f64| match share(achieved, peak) {
            Some(share) => format!("{:.0} % of {}", 100.0 * share, rate(peak)),
            None => format!("peak not known (measured as {}, which is too little)", rate(peak)),
        };
        if let Some(peak) = evidence.best_gemm() {
            rows.push((
                "matmul".to_owned(),
                format!("{}, {} (a large matmul)", rate(achieved), of_peak(peak)),
            ));
        }
        if let Some(peak) = evidence.best_registers() {
            rows.push((String::new(), format!("{} (registers only)", of_peak(peak))));
        }
        if let (Some(peak), own) = self.memory() {
            let own = own.map(|own| format!(", {} of it for the model and its steps", format_bytes(own)));
            rows.push((
                "peak memory".to_owned(),
                format!("{}{}", format_bytes(peak), own.unwrap_or_default()),
            ));
        }
        if let Some(bytes) = rounds.iter().filter_map(|round| round.gpu_memory).max() {
            rows.push(("GPU memory".to_owned(), format!("{} held by this process", format_bytes(bytes))));
        }
        let reasons = evidence.reasons();
        if !reasons.is_empty() {
            let why = reasons.join("; ");
            rows.push((
                "noisy".to_owned(),
                format!("do not trust these figures: {why}; measure again on a quiet machine"),
            ));
        }
        output::pairs(&rows)
    }
}

/// The round of median speed; of an even number the mean of both in the middle, so that the parts still add up.
fn middle(rounds: &[Round]) -> Round {
    let mut sorted = rounds.to_vec();
    sorted.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
    let both = [sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]];
    Round {
        seconds: (both[0].seconds + both[1].seconds) / 2.0,
        parts: Parts::mean(&both.map(|round| round.parts)),
        gpu_memory: None,
    }
}

/// A step and its parts in milliseconds; the parts and what is left over add up to the step as printed.
fn step_rows(round: &Round) -> Vec<(String, String)> {
    // Tenths of milliseconds.
    let tenths = |seconds: f64| (seconds * 1e4).round() as i64;
    let ms = |tenths: i64| format!("{:.1} ms", tenths as f64 / 10.0);
    let step = tenths(round.seconds);
    let Parts { data, tokenizer, forward, backward, optimizer } = round.parts;
    let parts = [
        ("data", data),
        ("tokenizer or teacher", tokenizer),
        ("forward", forward),
        ("backward", backward),
        ("optimizer", optimizer),
    ];
    let mut rows = vec![("a step".to_owned(), ms(step))];
    let mut rest = step;
    for (name, seconds) in parts.into_iter().filter(|(_, seconds)| *seconds > 0.0) {
        rest -= tenths(seconds);
        rows.push((format!("  {name}"), ms(tenths(seconds))));
    }
    match rest {
        0 => {}
        ..0 => rows.push((
            "  overlap".to_owned(),
            format!(
                "{} (parts are timed one by one; in training, the next batch's images and frozen model overlap with the step)",
                ms(rest)
            ),
        )),
        _ => rows.push(("  other".to_owned(), format!("{} (not in any part, or parts were faster alone)", ms(rest)))),
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(seconds: f64, forward: f64, backward: f64) -> Round {
        let parts = Parts { data: 0.00104, forward, backward, ..Parts::default() };
        Round { seconds, parts, gpu_memory: None }
    }

    /// Milliseconds of a row.
    fn ms(rows: &[(String, String)], name: &str) -> f64 {
        let row =
            rows.iter().find(|row| row.0.trim() == name).unwrap_or_else(|| panic!("no {name}: {rows:?}"));
        row.1.split(' ').next().unwrap().parse().unwrap()
    }

    #[test]
    fn printed_parts_add_up_to_the_printed_step() {
        for (round, rest) in
            [(round(0.01, 0.00306, 0.00709), "overlap"), (round(0.0123, 0.00306, 0.00709), "other")]
        {
            let rows = step_rows(&round);
            let parts: f64 = ["data", "forward", "backward", rest].map(|name| ms(&rows, name)).iter().sum();
            assert!((parts - ms(&rows, "a step")).abs() < 1e-9, "{rows:?}");
        }
        let rows = step_rows(&round(0.01119, 0.00306, 0.00709));
        assert_eq!(rows.len(), 4, "nothing is left over: {rows:?}");
    }

    #[test]
    fn the_middle_of_two_rounds_is_their_mean() {
        let two = middle(&[round(0.4, 0.1, 0.2), round(0.2, 0.2, 0.1)]);
        assert!((two.seconds - 0.3).abs() < 1e-12 && (two.parts.forward - 0.15).abs() < 1e-12);
        let three = middle(&[round(9.0, 0.1, 0.2), round(0.2, 0.3, 0.1), round(0.1, 0.5, 0.1)]);
        assert_eq!((three.seconds, three.parts.forward), (0.2, 0.3));
    }
}
