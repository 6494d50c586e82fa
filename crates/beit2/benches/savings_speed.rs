//! What leaving work out saves in a training step of a pretraining model (forward, backward, AdamW): branches of
//! kept samples only, against all multiplied by 0 or the factor; and rows of masked patches only in the last
//! blocks, against all rows. Milliseconds.
//!
//! `cargo bench --bench savings_speed -- [batch image patch width depth heads]`
//!
//! Both forms are run in turn, so that a load on the machine hits both, and `saved` is the median of the pairs.
//! On a busy machine set `RAYON_NUM_THREADS=1`.

use std::time::Instant;

use beit2::pretrain::{MimConfig, MimLogits, MimModel, PatchMask};
use beit2::train::{AdamW, AdamWConfig, GroupRule};
use beit2::vit::{DropPath, VitConfig};
use burn::backend::{Autodiff, Flex};
use burn::tensor::{Distribution, Int, Tensor, TensorData};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

type B = Autodiff<Flex>;

/// Pairs of steps for each line; each pair with draws of its own.
const ROUNDS: usize = 9;

const CODES: usize = 512;

fn main() {
    let numbers: Vec<usize> = std::env::args().skip(1).flat_map(|a| a.parse()).collect();
    let &[batch, image_size, patch_size, width, depth, heads] = numbers.as_slice() else {
        let small = VitConfig {
            image_size: 64,
            patch_size: 8,
            width: 192,
            depth: 6,
            heads: 3,
            ..VitConfig::default()
        };
        run(64, small);
        run(8, VitConfig { width: 384, depth: 12, heads: 6, ..VitConfig::default() });
        return;
    };
    run(batch, VitConfig { image_size, patch_size, width, depth, heads, ..VitConfig::default() });
}

/// What a line compares.
#[derive(Clone, Copy)]
enum Saving {
    DropPath(f64),
    MaskedRows,
}

fn run(batch: usize, vit: VitConfig) {
    println!("{batch} × {} tokens × {}, {} blocks", vit.patches() + 1, vit.width, vit.depth);
    println!("{:<16} {:>11} {:>11} {:>8}", "", "all", "needed", "saved");
    for saving in [Saving::DropPath(0.1), Saving::DropPath(0.2), Saving::MaskedRows] {
        compare(batch, &vit, saving);
    }
}

fn compare(batch: usize, vit: &VitConfig, saving: Saving) {
    let (name, rate) = match saving {
        Saving::DropPath(rate) => (format!("drop path {rate}"), rate),
        Saving::MaskedRows => ("masked rows".to_owned(), 0.0),
    };
    let device = Default::default();
    let config = MimConfig {
        vit: VitConfig { drop_path: rate, ..vit.clone() },
        vocab_size: CODES,
        intermediate_layer: vit.depth * 3 / 4,
        ..MimConfig::default()
    };
    let Ok(mut model) = MimModel::<B>::new(&config, 1, &device) else {
        println!("sizes that do not fit each other");
        return;
    };
    let mut optimizer = AdamW::<B>::new(AdamWConfig::default(), GroupRule::flat(0.05));
    let (patches, size) = (vit.patches(), vit.image_size);
    let masked = patches * 2 / 5;
    let indices: Vec<u32> = (0..batch).flat_map(|_| 0..masked as u32).collect();
    let mask = PatchMask::new(&indices, batch, patches, &device);
    let labels =
        Tensor::<B, 1, Int>::arange(0..(batch * masked) as i64, &device).remainder_scalar(CODES as i64);
    let x = Tensor::<B, 4>::random([batch, 3, size, size], Distribution::Normal(0.0, 1.0), &device);
    let rows = (0..batch).flat_map(|at| (0..masked).map(move |row| (at * patches + row) as i32)).collect();
    let rows = Tensor::<B, 1, Int>::from_data(TensorData::new::<i32, _>(rows, [batch * masked]), &device);
    let every_row = |model: &MimModel<B>| {
        let tokens = model.patch_tokens(x.clone(), Some(&mask)).into_iter().map(|tokens| {
            let [batch, patches, width] = tokens.dims();
            tokens.reshape([batch * patches, width]).select(0, rows.clone()).unsqueeze()
        });
        let mut logits = model.logits_all(&tokens.collect::<Vec<_>>()).into_iter().map(Tensor::squeeze);
        MimLogits { last: logits.next().expect("every model has a branch"), patch_aggregation: logits.next() }
    };
    let rates = config.drop_path_rates();
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut pairs = Vec::new();
    // The first round fills the memory that later ones use again.
    for round in 0..=ROUNDS {
        let drop = DropPath::sample(&rates, batch, &mut rng, &device);
        let mut times = [0.0; 2];
        for form in if round % 2 == 0 { [0, 1] } else { [1, 0] } {
            let start = Instant::now();
            let logits = match (form, saving) {
                (0, Saving::DropPath(_)) => model.forward(x.clone(), &mask, &drop.clone().multiplied()),
                (0, Saving::MaskedRows) => every_row(&model),
                _ => model.forward(x.clone(), &mask, &drop),
            };
            let grads = MimModel::loss(logits, labels.clone()).total.backward();
            (model, _) = optimizer.step(model, grads, 1e-4, Some(3.0));
            times[form] = start.elapsed().as_secs_f64() * 1e3;
        }
        pairs.push(times);
    }
    pairs.remove(0);
    let median = |of: fn(&[f64; 2]) -> f64| {
        let mut values: Vec<f64> = pairs.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let (all, needed) = (median(|pair| pair[0]), median(|pair| pair[1]));
    println!(
        "{name:<16} {all:>8.1} ms {needed:>8.1} ms {:>6.1} %",
        median(|pair| 100.0 * (1.0 - pair[1] / pair[0]))
    );
}
