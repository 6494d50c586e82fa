//! Every operation, forward and backward: fast against composed from Burn's primitives.
//!
//! `cargo bench --bench op_speed`
//!
//! Both are run in turn, so that a load on the machine hits both. On a busy machine set
//! `RAYON_NUM_THREADS=1`: a thread that waits for another that is not scheduled tells nothing.

use std::time::Instant;

use beit2_kernels as fast;
use beit2_kernels::reference as slow;
use beit2_kernels::{AttentionSpec, Precision};
use burn::backend::{Autodiff, Flex};
use burn::tensor::{Distribution, Int, Tensor};

type B = Autodiff<Flex>;
type X<const D: usize> = Tensor<B, D>;

const REPEATS: usize = 25;

fn main() {
    println!("{:<44} {:>9} {:>9} {:>6}", "forward + backward, median ms", "fast", "composed", "ratio");
    for (batch, tokens, width, heads) in [(8, 197, 384, 6), (64, 65, 128, 4), (64, 65, 192, 3)] {
        shapes(batch, tokens, width, heads);
    }
    maps(8, 32, 64, 20);
}

/// Channels-last maps of segmentation heads; convolutions have a benchmark of their own, `conv_speed`.
fn maps(batch: usize, side: usize, channels: usize, classes: usize) {
    println!("-- {batch} × {side} × {side} × {channels}");
    let x = random([batch, side, side, channels]);
    let [mean, scale, shift] = [(); 3].map(|()| random([channels]));
    compare(
        "channel_moments",
        || {
            let (mean, var) = fast::channel_moments(leaf(&x));
            step(mean + var);
        },
        || {
            let (mean, var) = slow::channel_moments(leaf(&x).reshape([batch * side * side, channels]));
            step(mean + var);
        },
    );
    compare(
        "channel_norm, ReLU",
        || step(fast::channel_norm(leaf(&x), leaf(&mean), leaf(&scale), leaf(&shift), true)),
        || step(slow::channel_norm(leaf(&x), leaf(&mean), leaf(&scale), leaf(&shift), true)),
    );
    let (large, logits) = (4 * side, random([batch, side, side, classes]));
    let ids: Vec<i32> = (0..(batch * large * large) as i32).map(|i| i / 50 % classes as i32).collect();
    let labels = Tensor::<B, 1, Int>::from_ints(ids.as_slice(), &Default::default());
    let labels = labels.reshape([batch, large, large]);
    compare(
        "pixel_cross_entropy, four times as large",
        || step(fast::pixel_cross_entropy(leaf(&logits), labels.clone()).0),
        || step(slow::pixel_cross_entropy(leaf(&logits), labels.clone()).0),
    );
}

fn random<const D: usize>(dims: [usize; D]) -> X<D> {
    X::random(dims, Distribution::Normal(0.0, 1.0), &Default::default())
}

fn shapes(b: usize, t: usize, d: usize, h: usize) {
    println!("-- {b} × {t} × {d}, {h} heads");
    let x = random([b, t, d]);
    let wide = random([b, t, 4 * d]);
    let (ones, zeros) = (random([d]), random([d]));
    compare("gelu [.., 4D]", || step(fast::gelu(leaf(&wide))), || step(slow::gelu(leaf(&wide))));
    compare(
        "layer_norm",
        || step(fast::layer_norm(leaf(&x), leaf(&ones), leaf(&zeros), 1e-6)),
        || step(slow::layer_norm(leaf(&x), leaf(&ones), leaf(&zeros), 1e-6)),
    );
    compare(
        "residual_scale",
        || step(fast::residual_scale(leaf(&x), leaf(&x), leaf(&ones))),
        || step(slow::residual_scale(leaf(&x), leaf(&x), leaf(&ones))),
    );
    let (weight, bias) = (random([4 * d, d]), random([4 * d]));
    compare(
        "linear D → 4D",
        || step(fast::linear(leaf(&x), leaf(&weight), Some(leaf(&bias)), Precision::F32)),
        || step(slow::linear(leaf(&x), leaf(&weight), Some(leaf(&bias)))),
    );
    let (qkv, table) = (random([b, t, 3 * d]), random([1, h, t, t]));
    let scale = ((d / h) as f64).powf(-0.5);
    let spec = AttentionSpec { heads: h, scale, precision: Precision::F32 };
    compare(
        "attention_qkv, shared bias with gradient",
        || step(fast::attention_qkv(leaf(&qkv), Some(leaf(&table)), spec)),
        || {
            let qkv = leaf(&qkv);
            let [q, k, v] = [0, 1, 2].map(|i| qkv.clone().narrow(2, i * d, d));
            step(slow::attention(q, k, v, Some(leaf(&table)), h, scale))
        },
    );
    compare(
        "attention, no bias",
        || step(fast::attention(leaf(&x), leaf(&x), leaf(&x), None, spec)),
        || step(slow::attention(leaf(&x), leaf(&x), leaf(&x), None, h, scale)),
    );
    let (rows, classes) = (b * (t - 1) * 2 / 5, 2048);
    let logits = random([rows, classes]);
    let ids: Vec<i32> = (0..rows as i32).map(|i| i * 31 % classes as i32).collect();
    let ids = Tensor::<B, 1, Int>::from_ints(ids.as_slice(), &Default::default());
    compare(
        "cross_entropy, 2048 classes",
        || step(fast::cross_entropy(leaf(&logits), ids.clone())),
        || step(slow::cross_entropy(leaf(&logits), ids.clone())),
    );
    let (z, codes) = (random([b * (t - 1), 32]).inner(), random([classes, 32]).inner());
    compare(
        "nearest_code, 2048 × 32 (forward)",
        || drop(fast::nearest_code(z.clone(), codes.clone())),
        || drop(slow::nearest_code(z.clone(), codes.clone())),
    );
    let numbers = fast::AdamwStep {
        lr: 1e-3,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.05,
        step: 3,
        grad_scale: 0.5,
    };
    let p = || random([4 * d, 3 * d]).inner();
    let (g, mut one, mut two) = (p(), (p(), p(), p().abs()), (p(), p(), p().abs()));
    compare(
        "adamw, 12·D²",
        || {
            let (a, b, c) = std::mem::replace(&mut one, empty());
            one = fast::adamw(a, g.clone(), b, c, numbers);
        },
        || {
            let (a, b, c) = std::mem::replace(&mut two, empty());
            two = slow::adamw(a, g.clone(), b, c, numbers);
        },
    );
}

type Moments = (Tensor<Flex, 2>, Tensor<Flex, 2>, Tensor<Flex, 2>);

fn empty() -> Moments {
    let x = Tensor::zeros([1, 1], &Default::default());
    (x.clone(), x.clone(), x)
}

/// A copy that needs a gradient, as the output of another layer would be.
fn leaf<const D: usize>(x: &X<D>) -> X<D> {
    x.clone().require_grad()
}

fn step<const D: usize>(y: X<D>) {
    drop(y.backward());
}

fn compare(name: &str, mut fast: impl FnMut(), mut slow: impl FnMut()) {
    let (mut a, mut b) = (Vec::new(), Vec::new());
    fast();
    slow();
    for _ in 0..REPEATS {
        a.push(milliseconds(&mut fast));
        b.push(milliseconds(&mut slow));
    }
    let [a, b] = [a, b].map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[REPEATS / 2]
    });
    println!("{name:<44} {a:>9.2} {b:>9.2} {:>5.1}×", b / a);
}

fn milliseconds(f: &mut impl FnMut()) -> f64 {
    let start = Instant::now();
    f();
    start.elapsed().as_secs_f64() * 1e3
}
