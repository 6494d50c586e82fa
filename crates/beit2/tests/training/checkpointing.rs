//! Blocks that are computed again in the backward pass give what kept ones give, to the bit.

use beit2::Error;
use beit2::classify::finetune;
use beit2::pretrain::{self, MimConfig, MimModel, PatchMask};
use beit2::segment::{self, HeadDropout, SegmenterConfig, UperNet, label_tensor, pixel_losses};
use beit2::tokenizer::{self, TokenizerConfig, VqKd, teachers};
use beit2::train::{
    ActivationCheckpointing, Env, Outcome, Rank, SCRATCH, TrainConfig, gradients, trained_parameters,
};
use beit2::vit::{DropPath, Pooling, RelPosKind, VisionTransformer, VitConfig};
use beit2_kernels::{self as kernels, Precision, Recomputing};
use burn::module::AutodiffModule;
use burn::tensor::{Distribution, Int, Tensor, TensorData};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::parallel::{Stage, assert_same as assert_same_runs, on};
use super::scene::{self, Auto, with_new_leaves};

/// The loss and all gradients of `model`, with blocks kept and with blocks computed again.
fn assert_same<M: AutodiffModule<Auto>>(what: &str, model: &M, loss: impl Fn(&M) -> Tensor<Auto, 1>) {
    let kept = with_new_leaves(model);
    let expected = loss(&kept);
    let value = expected.clone().into_data();
    let expected = gradients(&kept, &expected.backward());

    let again = with_new_leaves(model);
    let recomputing = Recomputing::start();
    let found = loss(&again);
    assert_eq!(found.clone().into_data(), value, "{what}: another loss");
    let (grads, _) =
        kernels::backward_recomputing(&found, &Rank::alone(), || trained_parameters(&again)).unwrap();
    drop(recomputing);
    let found = gradients(&again, &grads);
    assert!(found.keys().eq(expected.keys()), "{what}: gradients of other parameters");
    for (name, expected) in &expected {
        assert!(found[name] == *expected, "{what}: {name} has another gradient");
    }
}

fn images(count: usize, size: usize) -> Tensor<Auto, 4> {
    Tensor::random([count, 3, size, size], Distribution::Uniform(0.0, 1.0), &Default::default())
}

fn vit(rel_pos_bias: RelPosKind, abs_pos_emb: bool, layer_scale_init: f64) -> VitConfig {
    VitConfig {
        image_size: 16,
        patch_size: 4,
        width: 16,
        depth: 3,
        heads: 2,
        rel_pos_bias,
        abs_pos_emb,
        layer_scale_init,
        ..VitConfig::default()
    }
}

/// Drops many branches of four images, some of them of all images.
fn drops(branches: usize) -> DropPath<Auto> {
    let rates: Vec<f64> = (0..branches).map(|at| 0.3 * at as f64).map(|rate| rate.min(0.9)).collect();
    DropPath::sample(&rates, 4, &mut ChaCha8Rng::seed_from_u64(5), &Default::default())
}

#[test]
fn gradients_of_masked_image_models() {
    let device = Default::default();
    for (patch_aggregation, shared_lm_head, intermediate_layer) in
        [(false, true, 2), (true, true, 2), (true, false, 1), (true, true, 3)]
    {
        for (kind, abs, gamma) in [
            (RelPosKind::Shared, false, 0.1),
            (RelPosKind::PerBlock, true, 0.0),
            (RelPosKind::None, true, 1e-5),
        ] {
            let config = MimConfig {
                vit: vit(kind, abs, gamma),
                vocab_size: 11,
                patch_aggregation,
                intermediate_layer,
                head_layers: 2,
                shared_lm_head,
            };
            let mut model = MimModel::<Auto>::new(&config, 3, &device).unwrap();
            let (x, drop) = (images(4, 16), drops(5));
            let mask = PatchMask::new(&[0, 3, 7, 2, 8, 15, 1, 2, 3, 13, 14, 15], 4, 16, &device);
            let ids: Vec<i32> = (0..12).map(|at| at * 5 % 11).collect();
            let labels: Tensor<Auto, 1, Int> = Tensor::from_data(TensorData::new(ids, [12]), &device);
            for precision in [Precision::F32, Precision::Bf16] {
                model.set_precision(precision);
                for drop in [&DropPath::none(), &drop, &drop.clone().multiplied()] {
                    assert_same(&format!("{config:?} {precision}"), &model, |model| {
                        model.forward_loss(x.clone(), &mask, labels.clone(), drop).total
                    });
                }
            }
        }
    }
}

#[test]
fn gradients_of_tokenizers_and_classifiers() {
    let device = Default::default();
    let config = TokenizerConfig {
        image_size: 16,
        patch_size: 4,
        width: 16,
        depth: 2,
        heads: 2,
        decoder_width: 12,
        decoder_depth: 2,
        decoder_heads: 2,
        codebook_size: 9,
        code_dim: 5,
        teacher_dim: 7,
        kmeans_init: false,
        ..TokenizerConfig::default()
    };
    let model = VqKd::<Auto>::new(&config, 3, &device).unwrap();
    let x = model.preprocess(images(4, 16));
    let target = Tensor::random([4, 16, 7], Distribution::Normal(0.0, 1.0), &device);
    assert_same("tokenizer", &model, |model| model.forward(x.clone(), target.clone()).total);
    assert_same("tokenizer without codes", &model, |model| {
        model.forward_unquantized(x.clone(), target.clone()).0
    });
    for kind in [RelPosKind::Shared, RelPosKind::PerBlock, RelPosKind::None] {
        let model = VisionTransformer::<Auto>::new(&vit(kind, true, 0.1), Pooling::Mean, 6, &device);
        let rule = beit2::init::InitRule::Finetune { head_scale: 1.0, gamma: 0.1 };
        let model = beit2::init::initialise(model, rule, 1);
        let (x, drop) = (images(4, 16), drops(3));
        assert_same(&format!("classifier {kind:?}"), &model, |model| {
            model.forward(x.clone(), &drop).powi_scalar(2).sum()
        });
    }
}

#[test]
fn gradients_of_segmentation_models() {
    let device = Default::default();
    for (patch_size, kind) in [(16, RelPosKind::PerBlock), (8, RelPosKind::Shared)] {
        let vit = VitConfig { image_size: 64, patch_size, depth: 8, ..vit(kind, false, 0.1) };
        let config = SegmenterConfig {
            vit,
            out_indices: [1, 3, 5, 7],
            channels: 10,
            aux_channels: 6,
            classes: Some(5),
            ..SegmenterConfig::default()
        };
        let model = UperNet::<Auto>::zeros(&config, &device).unwrap().initialise(&config, 1);
        let dropout = HeadDropout::sample(&config, 4, &mut ChaCha8Rng::seed_from_u64(2), &device);
        let ids = (0..4 * 64 * 64).map(|at| (at / 37 % 5) as u8).collect();
        let labels = label_tensor(ids, [4, 64, 64], 5, &device).unwrap();
        let (x, drop) = (images(4, 64), drops(8));
        assert_same(&format!("{config:?}"), &model, |model| {
            let logits = model.forward_train(x.clone(), &drop, &dropout, &Rank::alone()).unwrap();
            pixel_losses(&logits, labels.clone(), config.aux_weight).total
        });
    }
}

type Trained<'a> = &'a (dyn Fn(Env<'_>, TrainConfig) -> Result<Outcome, Error> + Sync);

#[test]
fn whole_runs_end_with_the_same_weights() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    scene::of_every_stage(root);
    let device = Default::default();
    let again = TrainConfig { activation_checkpointing: ActivationCheckpointing::Blocks };
    let compare = |name: &str, devices: usize, stage: Trained| {
        let weights = |train: TrainConfig, dir: &str| {
            let stage: Stage = &|env| stage(env, train);
            let outcome = on(devices, &root.join(name).join(dir), stage);
            std::fs::read(outcome.checkpoint.join("model.safetensors")).unwrap()
        };
        assert!(weights(TrainConfig::default(), "kept") == weights(again, "again"), "{name}");
    };

    let recipe = scene::tokenizer(root);
    compare("tokenizer", 1, &|env, train| {
        let recipe = tokenizer::TokenizerRecipe { train, ..recipe.clone() };
        tokenizer::train::<Auto>(&recipe, env, &device)
    });
    let tokens = root.join("tokenizer/kept");
    let recipe = scene::distill(root);
    compare("distill", 1, &|env, train| {
        let recipe = teachers::DistillRecipe { train, ..recipe.clone() };
        teachers::distill::<Auto>(&recipe, env, &device)
    });
    // In micro-batches, and on two devices.
    let mut recipe = scene::pretrain(root, &tokens);
    recipe.schedule.grad_accum_steps = 2;
    for devices in [1, 2] {
        compare(&format!("pretrain-{devices}"), devices, &|env, train| {
            let recipe = pretrain::PretrainRecipe { train, ..recipe.clone() };
            pretrain::train::<Auto>(&recipe, env, &device)
        });
    }
    let init = root.join("pretrain-1/kept");
    let recipe = scene::finetune(root, &init.to_string_lossy());
    compare("finetune", 1, &|env, train| {
        let recipe = finetune::FinetuneRecipe { train, ..recipe.clone() };
        finetune::train::<Auto>(&recipe, env, &device)
    });
    // The pyramid reads the outputs of inner blocks too, and where it comes among the three that are added depends on its levels.
    let mut recipe = scene::segment(root, SCRATCH);
    recipe.optimizer.eps = 1e-4;
    for devices in [1, 2] {
        let [kept, again] = [("kept", TrainConfig::default()), ("again", again)].map(|(name, train)| {
            let dir = root.join(format!("segment-{devices}-{name}"));
            let recipe = segment::SegmentRecipe { train, ..recipe.clone() };
            let stage: Stage = &|env| segment::train::<Auto>(&recipe, env, &device);
            let outcome = on(devices, &dir, stage);
            (dir, outcome)
        });
        assert_same_runs((&kept.0, &kept.1), (&again.0, &again.1));
    }
}
