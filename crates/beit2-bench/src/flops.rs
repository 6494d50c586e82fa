//! Floating-point operations of the matmuls in a step, as this software computes it.
//!
//! A multiply-add counts two. Backward passes count twice their forward pass; what is computed again in one (attention's
//! weights) is not counted, nor is anything that is no matmul.

use beit2::vit::VitConfig;

use crate::size::{CLASSES, Size, Stage};

/// Masked patches of an image in the measured pretraining.
pub(crate) const MASKED: usize = 75;

/// Of one training step on one image.
pub(crate) fn training(stage: Stage, size: Size) -> f64 {
    match stage {
        Stage::Tokenizer => {
            let config = size.tokenizer();
            let [encoder, decoder] = [config.encoder(), config.decoder()];
            let patches = encoder.patches();
            let tasks = matmul(patches, config.width, config.width)
                + matmul(patches, config.width, config.code_dim)
                + matmul(patches, config.decoder_width, config.decoder_width)
                + matmul(patches, config.decoder_width, config.teacher_dim);
            let learned = trunk(&encoder) + trunk(&decoder) + tasks;
            let codes = matmul(patches, config.code_dim, config.codebook_size);
            let teacher = size.teacher();
            let frozen = trunk(&teacher) + matmul(patches, teacher.width, config.teacher_dim);
            // The images take no gradient.
            3.0 * learned - embedding(&encoder) + codes + frozen
        }
        Stage::Pretrain => {
            let (config, tokenizer) = (size.student(), size.tokenizer());
            let (vit, tokens) = (&config.vit, config.vit.patches() + 1);
            let all = block(vit, tokens, tokens) * (vit.depth - 1 + config.head_layers - 1) as f64;
            let short = block(vit, tokens, MASKED + 1) + block(vit, tokens, MASKED);
            let logits = 2.0 * matmul(MASKED, vit.width, config.vocab_size);
            let learned = embedding(vit) + all + short + logits;
            let encoder = tokenizer.encoder();
            let tokens = encoder.patches() + 1;
            // A frozen block has the weights of queries, keys and values as one.
            let queries = matmul(tokens - MASKED, encoder.width, encoder.width);
            let targets = embedding(&encoder)
                + (encoder.depth - 1) as f64 * block(&encoder, tokens, tokens)
                + block(&encoder, tokens, MASKED)
                + queries
                + matmul(MASKED, tokenizer.width, tokenizer.width)
                + matmul(MASKED, tokenizer.width, tokenizer.code_dim)
                + matmul(MASKED, tokenizer.code_dim, tokenizer.codebook_size);
            3.0 * learned - embedding(vit) + targets
        }
        Stage::Finetune => {
            let vit = size.classifier();
            3.0 * inference(size) - embedding(&vit)
        }
    }
}

/// Of one forward pass of a classifier on one image.
pub(crate) fn inference(size: Size) -> f64 {
    let vit = size.classifier();
    trunk(&vit) + matmul(1, vit.width, CLASSES)
}

fn matmul(rows: usize, inner: usize, columns: usize) -> f64 {
    2.0 * rows as f64 * inner as f64 * columns as f64
}

fn embedding(vit: &VitConfig) -> f64 {
    matmul(vit.patches(), vit.in_chans * vit.patch_size * vit.patch_size, vit.width)
}

fn trunk(vit: &VitConfig) -> f64 {
    let tokens = vit.patches() + 1;
    embedding(vit) + vit.depth as f64 * block(vit, tokens, tokens)
}

/// A block over `tokens` of which `rows` are read afterwards.
fn block(vit: &VitConfig, tokens: usize, rows: usize) -> f64 {
    let width = vit.width;
    let keys = matmul(tokens, width, 2 * width);
    let queries = matmul(rows, width, width);
    let attention = 2.0 * matmul(rows, width, tokens);
    keys + queries + attention + matmul(rows, width, width) + 2.0 * matmul(rows, width, vit.mlp_hidden())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_counts() {
        // ViT-B/16 at 224 px: 17.6 GMAC in the literature.
        let base = inference(Size::Base) / 2e9;
        assert!((base - 17.6).abs() < 0.1, "{base}");
        // The recipes state 164 and 166 GFLOP an image, of which the rows of the attention head that nothing reads
        // are not computed here.
        let pretrain = training(Stage::Pretrain, Size::Base) / 1e9;
        assert!((140.0..164.0).contains(&pretrain), "{pretrain}");
        let tokenizer = training(Stage::Tokenizer, Size::Base) / 1e9;
        assert!((tokenizer - 166.0).abs() < 4.0, "{tokenizer}");
    }
}
