//! Matmuls of Vision Transformers as shares of what this machine can do in registers.
//!
//! `cargo bench --bench matmul_speed`, or with `-- avx2` (or another name of a level) at most at this instruction set
//!
//! The matmuls are those of `linear`, forward and backward, for 8 images of 197 tokens, and then those of several layers
//! with weights packed once, among them the whole MLP branch with its norm and GELU. Peak and
//! matmul are measured in turn, and the best of each is shown: on a busy machine that is the one which
//! was not interrupted. Set `RAYON_NUM_THREADS=1` for one core.

use std::time::Instant;

use beit2_kernels::probe::Probe;
use beit2_kernels::simd::{Level, level, limit};
use beit2_kernels::{LinearOps, Precision, linear_packed, norm_mlp_packed, pack_weight};
use burn::backend::Flex;
use burn::tensor::{Distribution, Tensor};

const ROWS: usize = 8 * 197;
const REPEATS: usize = 25;

fn main() {
    // Cargo adds `--bench`.
    if let Some(name) = std::env::args().skip(1).find(|arg| !arg.starts_with('-')) {
        let Some(level) = Level::named(&name) else { panic!("there is no instruction set {name}") };
        limit(level);
    }
    let threads = rayon::current_num_threads();
    println!("rows {ROWS}, {threads} threads, {:?}; GFLOP/s and share of the peak", level());
    for precision in [Precision::F32, Precision::Bf16] {
        let Some(probe) = Probe::new(precision) else {
            println!("{precision}: this CPU has no such matmuls");
            continue;
        };
        println!("-- {precision}");
        println!("{:<14} {:>16} {:>16} {:>16}", "in → out", "forward", "to input", "to weight");
        for (inner, out) in
            [(384, 384), (384, 1152), (384, 1536), (1536, 384), (768, 768), (768, 3072), (3072, 768)]
        {
            shape(&probe, precision, inner, out);
        }
        println!("{:<14} {:>16} {:>16} {:>16}", "frozen layers", "q, k, v", "projection", "norm + MLP");
        for width in [384, 768] {
            layers(&probe, precision, width);
        }
    }
}

/// Layers with weights of their own, as in inference, where no weight is in a cache when its turn comes.
const LAYERS: usize = 6;

fn layers(probe: &Probe, precision: Precision, width: usize) {
    let vector =
        |n: usize| Tensor::<Flex, 1>::random([n], Distribution::Normal(0.0, 1.0), &Default::default());
    let pack = |out: usize, inner: usize| -> Vec<_> {
        let weights = (0..LAYERS).map(|_| {
            let w = Tensor::random([out, inner], Distribution::Normal(0.0, 1.0), &Default::default());
            pack_weight::<Flex>(w, precision)
        });
        weights.map(|w| w.expect("this CPU packs weights")).collect()
    };
    let x = Tensor::<Flex, 2>::random([ROWS, width], Distribution::Normal(0.0, 1.0), &Default::default());
    let work = |outputs: usize| 2.0 * (LAYERS * ROWS * width * outputs) as f64;
    let linear = |out: usize| {
        let (weights, bias) = (pack(out, width), vector(out));
        measure(probe, work(out), || {
            for w in &weights {
                linear_packed(x.clone(), w, Some(bias.clone()));
            }
        })
    };
    let (first, second) = (pack(4 * width, width), pack(width, 4 * width));
    let (norm, b1, b2) = ([vector(width), vector(width)], vector(4 * width), vector(width));
    let mlp = measure(probe, work(8 * width), || {
        for (first, second) in first.iter().zip(&second) {
            let (first, second) = ((first, b1.clone()), (second, b2.clone()));
            norm_mlp_packed(x.clone(), norm.clone(), 1e-6, first, second);
        }
    });
    print!("{:<14}", format!("{LAYERS} × {width}"));
    for (speed, share) in [linear(3 * width), linear(width), mlp] {
        print!(" {:>7.0} ({:>4.0} %)", speed / 1e9, 100.0 * share);
    }
    println!();
}

fn random(dims: [usize; 2]) -> burn_flex::FlexTensor {
    let x = Tensor::<Flex, 2>::random(dims, Distribution::Normal(0.0, 1.0), &Default::default());
    x.into_primitive().tensor()
}

fn shape(probe: &Probe, precision: Precision, inner: usize, out: usize) {
    let (x, w, g) = (random([ROWS, inner]), random([out, inner]), random([ROWS, out]));
    let work = 2.0 * (ROWS * inner * out) as f64;
    let cells = [
        measure(probe, work, || drop(Flex::fused_linear(x.clone(), w.clone(), None, precision))),
        measure(probe, work, || drop(Flex::fused_linear_backward_input(w.clone(), g.clone(), precision))),
        measure(probe, work, || drop(Flex::fused_linear_backward_weight(x.clone(), g.clone(), precision))),
    ];
    print!("{:<14}", format!("{inner} → {out}"));
    for (speed, share) in cells {
        print!(" {:>7.0} ({:>4.0} %)", speed / 1e9, 100.0 * share);
    }
    println!();
}

/// Best speed and its share of the best peak.
fn measure(probe: &Probe, work: f64, mut f: impl FnMut()) -> (f64, f64) {
    f();
    let (mut speed, mut peak) = (0f64, 0f64);
    for _ in 0..REPEATS {
        peak = peak.max(probe.flops());
        let start = Instant::now();
        f();
        speed = speed.max(work / start.elapsed().as_secs_f64());
    }
    (speed, speed / peak)
}
