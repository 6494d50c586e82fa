//! The work that is left out changes nothing: masked rows only, against all rows.

use beit2::pretrain::{MimConfig, MimModel, TokenMask, masked_labels};
use beit2::vit::{DropPath, VitConfig};
use burn::tensor::{Distribution, Int, Tensor, TensorData};

use super::scene::Auto;

#[test]
fn masked_rows_equal_the_full_computation() {
    for (early_layers, shared_lm_head) in [(2, true), (3, false)] {
        let vit = VitConfig {
            image_size: 24,
            patch_size: 4,
            width: 24,
            depth: 3,
            heads: 3,
            ..VitConfig::default()
        };
        let config =
            MimConfig { vit, vocab: 13, early_layers, head_layers: 2, shared_lm_head, cls_head: true };
        let device = Default::default();
        let model = MimModel::<Auto>::new(&config, 9, &device).unwrap();
        let x = Tensor::<Auto, 4>::random([2, 3, 24, 24], Distribution::Normal(0.0, 1.0), &device);
        let chosen = [0u32, 5, 17, 35, 1, 2, 30, 31];
        let mask = TokenMask::new(&chosen, 2, 36, &device);
        let short = model.forward(x.clone(), &mask, &DropPath::none());
        let full = model.logits_all(&model.patch_tokens(x, Some(&mask)));
        let rows: Vec<i32> =
            chosen.iter().enumerate().map(|(at, i)| (at as i32 / 4) * 36 + *i as i32).collect();
        let rows = Tensor::<Auto, 1, Int>::from_data(TensorData::new(rows, [8]), &device);
        for (short, full) in [short.last, short.aggregated.unwrap()].into_iter().zip(full) {
            let expected = full.reshape([72, 13]).select(0, rows.clone());
            let worst = (short - expected).abs().max().into_scalar();
            assert!(worst < 1e-5, "rows differ by {worst}");
        }
        let ids = Tensor::<Auto, 1, Int>::arange(0..72, &device).reshape([2, 36]);
        let labels: Vec<i64> = masked_labels(ids, &mask).into_data().convert::<i64>().into_vec().unwrap();
        assert_eq!(labels, [0, 5, 17, 35, 37, 38, 66, 67]);
    }
}
