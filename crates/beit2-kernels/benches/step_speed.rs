//! A training step (forward + backward) of a 4-block Transformer: this crate's operations in f32 and in
//! bf16, and the same made of Burn's primitives. Images per second.
//!
//! `cargo bench --bench step_speed -- [batch tokens width heads] [f32] [bf16] [composed]`
//!
//! Without names all three are run, in turn, so that a load on the machine hits all.

use std::time::Instant;

use beit2_kernels as fast;
use beit2_kernels::reference as slow;
use beit2_kernels::{AttentionSpec, Precision};
use burn::backend::{Autodiff, Flex};
use burn::tensor::{Distribution, Int, Tensor};

type B = Autodiff<Flex>;
type X<const D: usize> = Tensor<B, D>;

const DEPTH: usize = 4;
const CLASSES: usize = 512;
const ROUNDS: usize = 9;

/// One block's parameters.
struct Block {
    norms: [X<1>; 4],
    qkv: (X<2>, X<1>),
    proj: (X<2>, X<1>),
    fc1: (X<2>, X<1>),
    fc2: (X<2>, X<1>),
    gammas: [X<1>; 2],
}

fn parameter<const D: usize>(dims: [usize; D], scale: f64) -> X<D> {
    X::random(dims, Distribution::Normal(0.0, scale), &Default::default()).require_grad()
}

fn dense(out: usize, inner: usize) -> (X<2>, X<1>) {
    (parameter([out, inner], 0.02), parameter([out], 0.02))
}

impl Block {
    fn new(d: usize) -> Self {
        Self {
            norms: [(); 4].map(|()| parameter([d], 1.0)),
            qkv: dense(3 * d, d),
            proj: dense(d, d),
            fc1: dense(4 * d, d),
            fc2: dense(d, 4 * d),
            gammas: [(); 2].map(|()| parameter([d], 0.1)),
        }
    }

    fn fast(&self, x: X<3>, bias: X<4>, spec: AttentionSpec) -> X<3> {
        let [w1, b1, w2, b2] = self.norms.clone();
        let dense = |x, p: &(X<2>, X<1>)| fast::linear(x, p.0.clone(), Some(p.1.clone()), spec.precision);
        let y = fast::layer_norm(x.clone(), w1, b1, 1e-6);
        let y = fast::attention_qkv(dense(y, &self.qkv), Some(bias), spec);
        let x = fast::residual_scale(x, dense(y, &self.proj), self.gammas[0].clone());
        let y = fast::layer_norm(x.clone(), w2, b2, 1e-6);
        let y = dense(fast::gelu(dense(y, &self.fc1)), &self.fc2);
        fast::residual_scale(x, y, self.gammas[1].clone())
    }

    fn composed(&self, x: X<3>, bias: X<4>, heads: usize, scale: f64) -> X<3> {
        let [w1, b1, w2, b2] = self.norms.clone();
        let width = x.dims()[2];
        let dense = |x, p: &(X<2>, X<1>)| slow::linear(x, p.0.clone(), Some(p.1.clone()));
        let qkv = dense(slow::layer_norm(x.clone(), w1, b1, 1e-6), &self.qkv);
        let [q, k, v] = [0, 1, 2].map(|i| qkv.clone().narrow(2, i * width, width));
        let y = slow::attention(q, k, v, Some(bias), heads, scale);
        let x = slow::residual_scale(x, dense(y, &self.proj), self.gammas[0].clone());
        let y = slow::layer_norm(x.clone(), w2, b2, 1e-6);
        let y = dense(slow::gelu(dense(y, &self.fc1)), &self.fc2);
        slow::residual_scale(x, y, self.gammas[1].clone())
    }
}

fn main() {
    let numbers: Vec<usize> =
        std::env::args().skip(1).filter(|argument| argument != "--bench").flat_map(|a| a.parse()).collect();
    let &[batch, tokens, width, heads] = numbers.as_slice() else {
        run(64, 65, 192, 3);
        run(8, 197, 384, 6);
        return;
    };
    run(batch, tokens, width, heads);
}

fn run(batch: usize, tokens: usize, width: usize, heads: usize) {
    let blocks: Vec<Block> = (0..DEPTH).map(|_| Block::new(width)).collect();
    let head = dense(CLASSES, width);
    let table = parameter([1, heads, tokens, tokens], 0.1);
    let x = parameter([batch, tokens, width], 1.0).detach();
    let rows = batch * tokens;
    let ids: Vec<i32> = (0..rows as i32).map(|i| i * 31 % CLASSES as i32).collect();
    let ids = Tensor::<B, 1, Int>::from_ints(ids.as_slice(), &Default::default());
    let scale = ((width / heads) as f64).powf(-0.5);
    let step = |precision: Option<Precision>| {
        let mut x = x.clone();
        for block in &blocks {
            x = match precision {
                Some(precision) => block.fast(x, table.clone(), AttentionSpec { heads, scale, precision }),
                None => block.composed(x, table.clone(), heads, scale),
            };
        }
        let x = x.reshape([rows, width]);
        let (w, b) = head.clone();
        let loss = match precision {
            Some(precision) => fast::cross_entropy(fast::linear(x, w, Some(b), precision), ids.clone()),
            None => slow::cross_entropy(slow::linear(x, w, Some(b)), ids.clone()),
        };
        let grads = loss.backward();
        let norm = table.grad(&grads).map(|g| g.powi_scalar(2).sum().into_scalar().sqrt());
        (loss.into_scalar(), norm.unwrap_or_default())
    };
    println!("{batch} × {tokens} × {width}, {heads} heads, {DEPTH} blocks");
    let all = [("f32", Some(Precision::F32)), ("bf16", Some(Precision::Bf16)), ("composed", None)];
    let named: Vec<_> = all.into_iter().filter(|(name, _)| std::env::args().any(|a| a == *name)).collect();
    let chosen = if named.is_empty() { all.to_vec() } else { named };
    for (name, precision) in &chosen {
        let (loss, norm) = step(*precision);
        println!("  {name:<9} loss {loss:.6}, norm of the bias table's gradient {norm:.6e}");
    }
    let mut times = vec![Vec::new(); chosen.len()];
    for _ in 0..ROUNDS {
        for (times, (_, precision)) in times.iter_mut().zip(&chosen) {
            let start = Instant::now();
            step(*precision);
            times.push(start.elapsed().as_secs_f64());
        }
    }
    for (times, (name, _)) in times.iter_mut().zip(chosen) {
        times.sort_by(f64::total_cmp);
        println!(
            "  {name:<9} {:>7.1} img/s median, {:>7.1} best",
            batch as f64 / times[ROUNDS / 2],
            batch as f64 / times[0]
        );
    }
}
