//! The 3×3 convolution against its alternatives, forward and backward, in GFLOP/s.
//!
//! `cargo bench --bench conv_speed -- [large]`
//!
//! Columns: this crate's operation; nine shifted linear layers; Burn's convolution; one linear layer of the same
//! number of multiplications, which is what a convolution can hope for. They are run in turn, so that a load on
//! the machine hits all. `large` adds sizes of BEiT v2 base (minutes).

use std::time::Instant;

use beit2_kernels::{self as kernels, Precision};
use burn::backend::{Autodiff, Flex};
use burn::tensor::{Distribution, Tensor};

type B = Autodiff<Flex>;
type X<const D: usize> = Tensor<B, D>;

fn main() {
    let large = std::env::args().any(|arg| arg == "large");
    println!(
        "{:<28} {:>8} {:>8} {:>8} {:>8}   share of linear",
        "forward + backward, GFLOP/s", "conv3x3", "shifted", "Burn", "linear"
    );
    for (batch, side, inputs, outputs) in [
        (8, 16, 64, 64),
        (8, 16, 192, 64),
        (8, 32, 64, 64),
        (8, 32, 256, 64),
        (8, 32, 128, 128),
        (2, 64, 128, 128),
    ] {
        shape(batch, side, inputs, outputs, 9, true);
    }
    if large {
        shape(1, 32, 768, 768, 3, true);
        shape(1, 64, 768, 768, 3, true);
        shape(1, 32, 3072, 768, 3, true);
        shape(1, 128, 768, 768, 1, false);
    }
}

fn shape(batch: usize, side: usize, inputs: usize, outputs: usize, repeats: usize, others: bool) {
    let x = random([batch, side, side, inputs]);
    let weight = random([outputs, inputs, 3, 3]);
    let wide = random([batch, side, side, 9 * inputs]);
    let matrix = random([outputs, 9 * inputs]);
    let flops = 3.0 * 2.0 * (batch * side * side * 9 * inputs * outputs) as f64;
    let mut runs: Vec<Box<dyn FnMut()>> =
        vec![Box::new(|| step(kernels::conv3x3(leaf(&x), leaf(&weight), Precision::F32)))];
    if others {
        runs.push(Box::new(|| step(shifted(leaf(&x), leaf(&weight)))));
        runs.push(Box::new(|| step(kernels::reference::conv3x3(leaf(&x), leaf(&weight)))));
    }
    runs.push(Box::new(|| step(kernels::linear(leaf(&wide), leaf(&matrix), None, Precision::F32))));
    let mut times = vec![Vec::new(); runs.len()];
    for round in 0..=repeats {
        for (run, times) in runs.iter_mut().zip(&mut times) {
            let start = Instant::now();
            run();
            // The first round fills the memory pool.
            if round > 0 {
                times.push(start.elapsed().as_secs_f64());
            }
        }
    }
    let speeds: Vec<f64> = times
        .iter_mut()
        .map(|times| {
            times.sort_by(f64::total_cmp);
            flops / times[times.len() / 2] / 1e9
        })
        .collect();
    let cell = |at: usize| if others { format!("{:.1}", speeds[at]) } else { String::new() };
    let linear = speeds[speeds.len() - 1];
    println!(
        "{:<28} {:>8.1} {:>8} {:>8} {:>8.1}   {:>3.0} %",
        format!("{batch}×{side}×{side}, {inputs} → {outputs}"),
        speeds[0],
        cell(1),
        cell(2),
        linear,
        100.0 * speeds[0] / linear
    );
}

/// The convolution as nine linear layers on shifted maps.
fn shifted(x: X<4>, weight: X<4>) -> X<4> {
    let [batch, height, width, inputs] = x.dims();
    let outputs = weight.dims()[0];
    let padded = x.pad([(1, 1), (1, 1), (0, 0)], 0.0);
    let taps = (0..9).map(|tap| {
        let window = padded.clone().narrow(1, tap / 3, height).narrow(2, tap % 3, width);
        let matrix = weight.clone().narrow(2, tap / 3, 1).narrow(3, tap % 3, 1).reshape([outputs, inputs]);
        kernels::linear(window.reshape([batch, height, width, inputs]), matrix, None, Precision::F32)
    });
    taps.reduce(|sum, tap| sum + tap).unwrap_or_else(|| padded.zeros_like())
}

fn random<const D: usize>(dims: [usize; D]) -> X<D> {
    X::random(dims, Distribution::Normal(0.0, 1.0), &Default::default())
}

/// A copy that needs a gradient, as the output of another layer would be.
fn leaf<const D: usize>(x: &X<D>) -> X<D> {
    x.clone().require_grad()
}

fn step<const D: usize>(y: X<D>) {
    drop(y.backward());
}
