//! Every trained parameter of every trainable model gets a gradient.

use beit2::params;
use beit2::pretrain::{MimConfig, MimModel, PatchMask};
use beit2::segment::{HeadDropout, SegmenterConfig, UperNet, label_tensor, pixel_losses};
use beit2::tokenizer::{TokenizerConfig, VqKd, cosine_loss};
use beit2::train::{Rank, gradients};
use beit2::vit::{DropPath, Pooling, RelPosKind, VisionTransformer, VitConfig};
use burn::module::AutodiffModule;
use burn::tensor::{Distribution, Int, Tensor, TensorData};
use rand::SeedableRng;

use super::scene::{Auto, with_new_leaves};

type Grads = <Auto as burn::tensor::backend::AutodiffBackend>::Gradients;

fn all_have_gradients<M: AutodiffModule<Auto>>(what: &str, model: &M, grads: &Grads) {
    let named = gradients(model, grads);
    let mut trained = 0;
    for info in params::list(model).into_iter().filter(|info| info.trainable) {
        let grad = named.get(&info.name).unwrap_or_else(|| panic!("{what}: {} gets no gradient", info.name));
        let values = grad.clone().convert::<f32>().into_vec::<f32>().unwrap();
        assert!(
            values.iter().all(|v| v.is_finite()),
            "{what}: {} has a gradient that is not finite",
            info.name
        );
        assert!(values.iter().any(|v| *v != 0.0), "{what}: {} has a zero gradient", info.name);
        trained += 1;
    }
    assert_eq!(trained, named.len(), "{what}: state that must not be trained gets a gradient");
}

fn images(size: usize) -> Tensor<Auto, 4> {
    Tensor::random([2, 3, size, size], Distribution::Uniform(0.0, 1.0), &Default::default())
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

#[test]
fn masked_image_models() {
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
            let model = MimModel::<Auto>::new(&config, 3, &Default::default()).unwrap();
            let mask = PatchMask::new(&[0, 3, 7, 2, 8, 15], 2, 16, &Default::default());
            let labels: Tensor<Auto, 1, Int> =
                Tensor::from_data(TensorData::new(vec![1i32, 4, 10, 0, 2, 7], [6]), &Default::default());
            let loss = model.forward_loss(images(16), &mask, labels, &DropPath::none());
            let what = format!("{config:?}");
            all_have_gradients(&what, &model, &loss.total.backward());
        }
    }
}

#[test]
fn tokenizers() {
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
    let model = VqKd::<Auto>::new(&config, 3, &Default::default()).unwrap();
    let x = model.preprocess(images(16));
    let target = Tensor::random([2, 16, 7], Distribution::Normal(0.0, 1.0), &Default::default());
    let loss = model.forward(x.clone(), target.clone());
    all_have_gradients("tokenizer", &model, &loss.total.backward());
    let model = with_new_leaves(&model);
    let (loss, _) = model.forward_unquantized(x, target);
    all_have_gradients("tokenizer without quantization", &model, &loss.backward());
}

#[test]
fn classifiers_and_students() {
    for pooling in [Pooling::Mean, Pooling::Cls] {
        let config = vit(RelPosKind::PerBlock, true, 0.1);
        let model = VisionTransformer::<Auto>::new(&config, pooling, 6, &Default::default());
        let rule = beit2::init::InitRule::Finetune { head_scale: 1.0, gamma: 0.1 };
        let model = beit2::init::initialise(model, rule, 1);
        let loss = model.forward(images(16), &DropPath::none()).powi_scalar(2).sum();
        all_have_gradients("classifier", &model, &loss.backward());
        let model = with_new_leaves(&model);
        let target = Tensor::random([2, 16, 6], Distribution::Normal(0.0, 1.0), &Default::default());
        let loss = cosine_loss(model.patch_tokens(images(16), &DropPath::none()), target);
        all_have_gradients("student", &model, &loss.backward());
    }
}

#[test]
fn segmentation_models() {
    // Biases in front of a batch norm have a gradient of zero by mathematics; what they get is rounding.
    for (patch_size, kind, abs_pos_emb) in [(16, RelPosKind::PerBlock, false), (8, RelPosKind::Shared, true)]
    {
        let vit = VitConfig { image_size: 64, patch_size, depth: 4, ..vit(kind, abs_pos_emb, 0.1) };
        let config = SegmenterConfig {
            vit,
            out_indices: [0, 1, 2, 3],
            channels: 10,
            aux_channels: 6,
            classes: Some(5),
            ..SegmenterConfig::default()
        };
        let device = Default::default();
        let model = UperNet::<Auto>::zeros(&config, &device).unwrap().initialise(&config, 1);
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(2);
        let dropout = HeadDropout::sample(&config, 2, &mut rng, &device);
        let logits = model.forward_train(images(64), &DropPath::none(), &dropout, &Rank::alone()).unwrap();
        let ids = (0..2 * 64 * 64).map(|at| (at / 37 % 5) as u8).collect();
        let labels = label_tensor(ids, [2, 64, 64], 5, &device).unwrap();
        let losses = pixel_losses(&logits, labels, config.aux_weight);
        all_have_gradients(&format!("{config:?}"), &model, &losses.total.backward());
    }
}
