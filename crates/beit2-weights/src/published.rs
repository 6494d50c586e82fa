//! The published files of BEiT v2 (docs/method.md §8) as data; nothing here touches the network.

use crate::layout::Kind;

/// Where the authors' files are today; the earlier links of the papers are dead.
pub const OFFICIAL_BASE_URL: &str = "https://github.com/addf400/files/releases/download/BEiT-v2/";

/// One file of the authors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// Its name there.
    pub file: &'static str,
    /// What it holds.
    pub kind: Kind,
    /// One line for a list.
    pub about: &'static str,
    /// Learned parameters, as [`crate::inspect::inspect`] counts them (docs/method.md §10.1, §5).
    pub parameters: u64,
    /// Classes of its head; 0 when it has none.
    pub classes: usize,
    /// Bytes; `None` for all today, as nobody has recorded them.
    pub bytes: Option<u64>,
    /// The first eight hex digits of its SHA-256; only tokenizers carry them, in their names.
    pub sha256_prefix: Option<&'static str>,
    /// The repository of timm on the Hugging Face Hub with the same weights in timm's names (`model.safetensors`).
    pub timm_mirror: Option<&'static str>,
}

impl Published {
    /// The address of the authors' file.
    pub fn url(&self) -> String {
        format!("{OFFICIAL_BASE_URL}{}", self.file)
    }

    /// The address of the same weights in timm's names, where timm has them.
    pub fn mirror_url(&self) -> Option<String> {
        let repository = self.timm_mirror?;
        Some(format!("https://huggingface.co/{repository}/resolve/main/model.safetensors"))
    }
}

/// The published file of that name, with or without `.pth`.
pub fn find(name: &str) -> Option<&'static Published> {
    let name = name.strip_suffix(".pth").unwrap_or(name);
    PUBLISHED.iter().find(|published| published.file.strip_suffix(".pth") == Some(name))
}

const fn tokenizer(file: &'static str, sha256: &'static str, parameters: u64) -> Published {
    Published {
        file,
        kind: Kind::Tokenizer,
        about: "tokenizer",
        parameters,
        classes: 0,
        bytes: None,
        sha256_prefix: Some(sha256),
        timm_mirror: None,
    }
}

const fn model(
    file: &'static str,
    kind: Kind,
    about: &'static str,
    parameters: u64,
    classes: usize,
    timm_mirror: Option<&'static str>,
) -> Published {
    Published { file, kind, about, parameters, classes, bytes: None, sha256_prefix: None, timm_mirror }
}

use Kind::{Classifier, Pretraining, Segmentation};

const PT_300: &str = "pretraining on ImageNet-1k, 300 epochs";
const PT_1600: &str = "pretraining on ImageNet-1k, 1600 epochs";
const FT_300: &str = "300 epochs of pretraining, fine-tuned on ImageNet-1k";
const FT_1K: &str = "1600 epochs of pretraining, fine-tuned on ImageNet-1k";
const FT_21K: &str = "1600 epochs of pretraining, fine-tuned on ImageNet-21k";
const FT_21K_1K: &str = "1600 epochs of pretraining, fine-tuned on ImageNet-21k, then on ImageNet-1k";
const SEG: &str = "UPerNet on ADE20K";
const SEG_21K: &str = "UPerNet on ADE20K, after fine-tuning on ImageNet-21k";

const BASE: u64 = 86_530_984;
const LARGE: u64 = 304_430_568;

/// All 19 files.
pub const PUBLISHED: [Published; 19] = [
    tokenizer("vqkd_encoder_base_decoder_1x768x12_clip-d93179da.pth", "d93179da", 94_655_008),
    // The one all published models were pretrained with.
    tokenizer("vqkd_encoder_base_decoder_3x768x12_clip-d5036aa7.pth", "d5036aa7", 108_829_216),
    tokenizer("vqkd_encoder_base_decoder_1x768x12_dino-663c55d7.pth", "663c55d7", 94_851_872),
    model("beitv2_base_patch16_224_pt1k_300e.pth", Pretraining, PT_300, 106_143_056, 0, None),
    model("beitv2_base_patch16_224_pt1k.pth", Pretraining, PT_1600, 106_143_056, 0, None),
    model("beitv2_base_patch16_224_pt1k_300e_ft1k.pth", Classifier, FT_300, BASE, 1000, None),
    model(
        "beitv2_base_patch16_224_pt1k_ft1k.pth",
        Classifier,
        FT_1K,
        BASE,
        1000,
        Some("timm/beitv2_base_patch16_224.in1k_ft_in1k"),
    ),
    model(
        "beitv2_base_patch16_224_pt1k_ft21k.pth",
        Classifier,
        FT_21K,
        102_557_713,
        21_841,
        Some("timm/beitv2_base_patch16_224.in1k_ft_in22k"),
    ),
    model(
        "beitv2_base_patch16_224_pt1k_ft21kto1k.pth",
        Classifier,
        FT_21K_1K,
        BASE,
        1000,
        Some("timm/beitv2_base_patch16_224.in1k_ft_in22k_in1k"),
    ),
    model("beitv2_base_patch16_224_pt1k_ftade20k.pth", Segmentation, SEG, 163_080_812, 150, None),
    model("beitv2_base_patch16_224_pt1k_ft21ktoade20k.pth", Segmentation, SEG_21K, 163_080_812, 150, None),
    model("beitv2_large_patch16_224_pt1k_300e.pth", Pretraining, PT_300, 336_728_512, 0, None),
    model("beitv2_large_patch16_224_pt1k.pth", Pretraining, PT_1600, 336_728_512, 0, None),
    model("beitv2_large_patch16_224_pt1k_300e_ft1k.pth", Classifier, FT_300, LARGE, 1000, None),
    model(
        "beitv2_large_patch16_224_pt1k_ft1k.pth",
        Classifier,
        FT_1K,
        LARGE,
        1000,
        Some("timm/beitv2_large_patch16_224.in1k_ft_in1k"),
    ),
    model(
        "beitv2_large_patch16_224_pt1k_ft21k.pth",
        Classifier,
        FT_21K,
        325_792_593,
        21_841,
        Some("timm/beitv2_large_patch16_224.in1k_ft_in22k"),
    ),
    model(
        "beitv2_large_patch16_224_pt1k_ft21kto1k.pth",
        Classifier,
        FT_21K_1K,
        LARGE,
        1000,
        Some("timm/beitv2_large_patch16_224.in1k_ft_in22k_in1k"),
    ),
    model("beitv2_large_patch16_224_pt1k_ftade20k.pth", Segmentation, SEG, 440_398_636, 150, None),
    model("beitv2_large_patch16_224_pt1k_ft21ktoade20k.pth", Segmentation, SEG_21K, 440_398_636, 150, None),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_found() {
        let names: BTreeSet<&str> = PUBLISHED.iter().map(|published| published.file).collect();
        assert_eq!(names.len(), 19);
        for published in &PUBLISHED {
            assert_eq!(find(published.file), Some(published));
            if let Some(prefix) = published.sha256_prefix {
                assert!(published.file.ends_with(&format!("-{prefix}.pth")));
            }
        }
        let base = find("beitv2_base_patch16_224_pt1k_ft1k");
        let mirror =
            "https://huggingface.co/timm/beitv2_base_patch16_224.in1k_ft_in1k/resolve/main/model.safetensors";
        assert_eq!(base.and_then(Published::mirror_url).as_deref(), Some(mirror));
        assert_eq!(find("beit_base"), None);
    }
}
