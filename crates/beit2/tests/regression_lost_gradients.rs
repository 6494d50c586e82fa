//! Micro-batches beside a backward pass on another thread. A process of its own: the other thread would disturb tests
//! that use leaves twice.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use beit2::classify::soft_cross_entropy;
use beit2::init::{InitRule, initialise};
use beit2::train::{GradientSum, gradients};
use beit2::vit::{DropPath, Pooling, VisionTransformer, VitConfig};
use burn::backend::{Autodiff, Flex};
use burn::module::AutodiffModule;
use burn::tensor::{Distribution, Tensor, TensorData};

type Auto = Autodiff<Flex>;

/// Burn's clean-up after a backward pass took the graph of another thread's second micro-batch away, and with it
/// gradients (tracel-ai/burn issue 5573): on two devices with accumulation, a run was sometimes another one.
#[test]
fn another_threads_backward_pass_takes_no_gradient_away() {
    let device = Default::default();
    let vit =
        VitConfig { image_size: 16, patch_size: 8, width: 16, depth: 2, heads: 2, ..VitConfig::default() };
    let model = VisionTransformer::<Auto>::new(&vit, Pooling::Mean, 3, &device);
    let mut model = initialise(model, InitRule::Finetune { head_scale: 1.0, gamma: vit.layer_scale_init }, 5);
    let x = Tensor::<Auto, 4>::random([2, 3, 16, 16], Distribution::Uniform(0.0, 1.0), &device);
    let targets = Tensor::<Auto, 2>::from_data([[1.0f32, 0.0, 0.0], [0.0, 0.0, 1.0]], &device);
    let step = |mut model: VisionTransformer<Auto>, micro_batches: usize| {
        let mut sum = GradientSum::default();
        for _ in 0..micro_batches {
            model = sum.start(model);
            let loss = soft_cross_entropy(model.forward(x.clone(), &DropPath::none()), targets.clone());
            sum.add(&model, loss.backward());
        }
        let Some(grads) = sum.finish() else { panic!("a step has micro-batches") };
        let named = gradients(&model, &grads);
        (model, named)
    };
    let (one, three): (BTreeMap<String, TensorData>, BTreeMap<String, TensorData>);
    (model, one) = step(model, 1);
    (model, three) = step(model, 3);
    assert!(!one.is_empty() && one.len() == three.len());

    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Bounded, so that a panic on the other thread ends the test.
            for _ in (0..2_000_000).take_while(|_| !done.load(Ordering::Relaxed)) {
                let x = Tensor::<Auto, 1>::ones([4], &Default::default()).require_grad();
                let _ = (x.clone() * x).sum().backward();
            }
        });
        let lost = (0..400).filter(|at| {
            let (micro_batches, expected) = if at % 2 == 0 { (1, &one) } else { (3, &three) };
            // New leaves, as the optimiser makes them at each step.
            let (_, named) = step(VisionTransformer::from_inner(model.valid()), micro_batches);
            named != *expected
        });
        let lost = lost.count();
        done.store(true, Ordering::Relaxed);
        assert_eq!(lost, 0, "of 400 steps lost gradients");
    });
}
