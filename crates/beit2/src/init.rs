//! The reference's initialisers.
//!
//! One name upstream, three behaviours: pretraining trunks are cut at ±1σ, classification and VQ-KD
//! trunks practically not at all, and the aggregation head keeps PyTorch's defaults because it is
//! built after the initialiser ran (`docs/differences.md` tells why we keep all three). Segmentation
//! draws the trunk's weights once more after scaling them, so there they are not scaled.
//!
//! Every parameter draws from its own generator, keyed by seed and name, so that adding a parameter
//! does not change the others.

use std::collections::BTreeMap;

use beit2_data::fnv1a;
use beit2_kernels::Backend;
use burn::module::Module;
use burn::tensor::{DType, TensorData};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;

use crate::params::{self, ParamInfo};

/// Standard deviation of every normal draw in the method.
pub const STD: f64 = 0.02;

/// Which of the reference's rules fills a model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum InitRule {
    /// Classification models and both halves of the tokenizer; the head is multiplied by `head_scale`.
    Finetune {
        /// 0.001 in the recipes.
        head_scale: f64,
        /// Initial layer scale.
        gamma: f64,
    },
    /// Masked image models; the aggregation head starts after block `early` (1-based).
    Pretrain {
        /// Number of the block whose patch tokens feed the aggregation head.
        early: usize,
        /// Initial layer scale.
        gamma: f64,
    },
    /// Segmentation models: the trunk as [`InitRule::Finetune`] without the scale of residual layers,
    /// PyTorch's defaults for the pyramid, mmcv's for the heads.
    Segment {
        /// Initial layer scale.
        gamma: f64,
    },
}

/// Fills every trainable parameter of `module`.
pub fn initialise<B: Backend, M: Module<B>>(module: M, rule: InitRule, seed: u64) -> M {
    initialise_with(module, rule, STD, seed)
}

/// [`initialise`] with another standard deviation than the method's [`STD`]. What has PyTorch's defaults keeps them.
pub fn initialise_with<B: Backend, M: Module<B>>(module: M, rule: InitRule, std: f64, seed: u64) -> M {
    // A bias does not show its layer's inputs, its weight does.
    let fan_in: BTreeMap<String, usize> = params::list(&module)
        .into_iter()
        .filter_map(|info| {
            let layer = info.name.strip_suffix(".weight")?;
            Some((layer.to_owned(), info.shape[1..].iter().product()))
        })
        .collect();
    params::replace(module, |info| {
        if !info.trainable {
            return None;
        }
        let layer = info.name.rsplit_once('.').map_or("", |(layer, _)| layer);
        let inputs = fan_in.get(layer).copied().unwrap_or(1);
        let values = draw(&info, inputs, (rule, std), &mut generator(seed, &info.name));
        Some((TensorData::new(values, info.shape), DType::F32))
    })
}

/// The generator of one named parameter.
pub(crate) fn generator(seed: u64, name: &str) -> ChaCha8Rng {
    // Any fixed hash will do, but it must never change, or runs would start differently.
    let hash = fnv1a(name.as_bytes());
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&hash.to_le_bytes());
    ChaCha8Rng::from_seed(key)
}

fn draw(info: &ParamInfo, fan_in: usize, (rule, std): (InitRule, f64), rng: &mut ChaCha8Rng) -> Vec<f32> {
    let count = info.shape.iter().product::<usize>();
    let name = info.name.as_str();
    let constant = |value: f64| vec![value as f32; count];
    let leaf = name.rsplit('.').next().unwrap_or(name);
    let (gamma, cut) = match rule {
        InitRule::Finetune { gamma, .. } | InitRule::Segment { gamma } => (gamma, 2.0),
        InitRule::Pretrain { gamma, .. } => (gamma, std),
    };
    if leaf.starts_with("gamma_") {
        return constant(gamma);
    }
    if leaf == "relative_position_bias_table" || leaf == "q_bias" || leaf == "v_bias" {
        return constant(0.0);
    }
    if is_norm(name) {
        return constant(if leaf == "weight" { 1.0 } else { 0.0 });
    }
    let torch_default = match rule {
        InitRule::Finetune { .. } => name.contains("patch_embed."),
        InitRule::Pretrain { .. } => name.contains("cls_pt_layers."),
        InitRule::Segment { .. } => name.contains("patch_embed.") || name.starts_with("backbone.fpn"),
    };
    let mut values = if torch_default {
        uniform(count, fan_in, rng)
    } else if let Some(std) = head_std(info) {
        normal(count, std, rng)
    } else if leaf == "bias" {
        constant(0.0)
    } else {
        truncated_normal(count, std, cut, rng)
    };
    let mut factor = residual_scale(name, rule);
    if let InitRule::Finetune { head_scale, .. } = rule
        && (name == "head.weight" || name == "head.bias")
    {
        factor *= head_scale;
    }
    if factor != 1.0 {
        values.iter_mut().for_each(|v| *v = (f64::from(*v) * factor) as f32);
    }
    values
}

fn is_norm(name: &str) -> bool {
    let module = name.rsplit_once('.').map_or(name, |(module, _)| module);
    let last = module.rsplit('.').next().unwrap_or(module);
    last.contains("norm") || last == "bn" || module == "backbone.fpn1.1"
}

/// Deviation of the convolutions in segmentation heads: mmcv's `ConvModule` (He et al. 2015, by outputs), and
/// mmsegmentation's 0.01 for the classifier.
fn head_std(info: &ParamInfo) -> Option<f64> {
    let name = info.name.strip_suffix(".weight")?;
    if name.ends_with(".conv_seg") {
        return Some(0.01);
    }
    let [outputs, _, height, width] = info.shape[..] else { return None };
    name.ends_with(".conv").then(|| (2.0 / (outputs * height * width) as f64).sqrt())
}

/// `1/√(2ℓ)` for the two projections that write to the residual stream of layer ℓ.
fn residual_scale(name: &str, rule: InitRule) -> f64 {
    if matches!(rule, InitRule::Segment { .. }) {
        return 1.0;
    }
    if !name.ends_with("attn.proj.weight") && !name.ends_with("mlp.fc2.weight") {
        return 1.0;
    }
    let number_after = |marker: &str| -> Option<usize> {
        let rest = &name[name.find(marker)? + marker.len()..];
        rest.split('.').next()?.parse().ok()
    };
    let layer = match (number_after("cls_pt_layers."), rule) {
        (Some(index), InitRule::Pretrain { early, .. }) => early + index + 1,
        _ => number_after("blocks.").map_or(1, |index| index + 1),
    };
    (2.0 * layer as f64).sqrt().recip()
}

fn truncated_normal(count: usize, std: f64, cut: f64, rng: &mut ChaCha8Rng) -> Vec<f32> {
    let limit = cut / std;
    let mut one = || loop {
        let z: f64 = rng.sample(StandardNormal);
        if z.abs() <= limit {
            return (z * std) as f32;
        }
    };
    (0..count).map(|_| one()).collect()
}

fn normal(count: usize, std: f64, rng: &mut ChaCha8Rng) -> Vec<f32> {
    let mut one = || -> f64 { rng.sample(StandardNormal) };
    (0..count).map(|_| (one() * std) as f32).collect()
}

/// PyTorch's default for linear and convolution layers, `U(±1/√fan_in)` for weight and bias.
fn uniform(count: usize, fan_in: usize, rng: &mut ChaCha8Rng) -> Vec<f32> {
    let bound = (fan_in as f64).sqrt().recip();
    (0..count).map(|_| rng.random_range(-bound..bound) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segmentation_models_have_four_rules() {
        let values = |name: &str, shape: &[usize], fan_in: usize| -> Vec<f64> {
            let info = ParamInfo { name: name.into(), shape: shape.to_vec(), trainable: true };
            let rule = InitRule::Segment { gamma: 0.1 };
            draw(&info, fan_in, (rule, STD), &mut generator(1, name)).into_iter().map(f64::from).collect()
        };
        let deviation =
            |values: &[f64]| (values.iter().map(|v| v * v).sum::<f64>() / values.len() as f64).sqrt();
        let near = |found: f64, expected: f64| assert!((found / expected - 1.0).abs() < 0.03, "{found}");
        // The trunk, not rescaled with depth.
        near(deviation(&values("backbone.blocks.7.mlp.fc2.weight", &[64, 256], 256)), 0.02);
        // PyTorch's default: uniform, with the deviation of its bound over √3.
        let neck = values("backbone.fpn1.3.weight", &[64, 64, 2, 2], 256);
        assert!(neck.iter().all(|v| v.abs() <= 1.0 / 16.0));
        near(deviation(&neck), 1.0 / 16.0 / 3f64.sqrt());
        assert!(
            values("backbone.fpn2.0.bias", &[64], 256).iter().all(|v| *v != 0.0 && v.abs() <= 1.0 / 16.0)
        );
        // mmcv's convolutions, by outputs, and mmsegmentation's classifier.
        near(
            deviation(&values("decode_head.bottleneck.conv.weight", &[32, 80, 3, 3], 720)),
            (2.0f64 / 288.0).sqrt(),
        );
        near(deviation(&values("auxiliary_head.conv_seg.weight", &[30, 500, 1, 1], 500)), 0.01);
        assert_eq!(values("decode_head.conv_seg.bias", &[3], 8), [0.0; 3]);
        for norm in ["decode_head.psp_modules.0.1.bn", "backbone.fpn1.1", "backbone.blocks.0.norm1"] {
            assert_eq!(values(&format!("{norm}.weight"), &[2], 1), [1.0; 2], "{norm}");
            assert_eq!(values(&format!("{norm}.bias"), &[2], 1), [0.0; 2], "{norm}");
        }
    }

    #[test]
    fn each_parameter_has_its_own_stream() {
        let draw = |seed, name| truncated_normal(4, STD, STD, &mut generator(seed, name));
        let a = draw(1, "a");
        assert_eq!(a, draw(1, "a"));
        assert_ne!(a, draw(1, "b"));
        assert_ne!(a, draw(2, "a"));
        assert!(a.iter().all(|v| v.abs() <= STD as f32));
    }

    #[test]
    fn another_deviation_scales_what_is_normal_and_nothing_else() {
        let rule = InitRule::Pretrain { early: 3, gamma: 0.1 };
        let values = |name: &str, shape: &[usize], std: f64| {
            let info = ParamInfo { name: name.into(), shape: shape.to_vec(), trainable: true };
            draw(&info, 8, (rule, std), &mut generator(1, name))
        };
        for (name, shape) in [("blocks.1.mlp.fc2.weight", &[8, 8][..]), ("mask_token", &[1, 1, 8])] {
            let four_times: Vec<f32> =
                values(name, shape, STD).into_iter().map(|value| 4.0 * value).collect();
            assert_eq!(values(name, shape, 4.0 * STD), four_times, "{name}");
        }
        for (name, shape) in [
            ("blocks.0.gamma_1", &[8][..]),
            ("norm.weight", &[8]),
            ("cls_pt_layers.0.mlp.fc1.weight", &[8, 8]),
        ] {
            assert_eq!(values(name, shape, 4.0 * STD), values(name, shape, STD), "{name}");
        }
    }
}
