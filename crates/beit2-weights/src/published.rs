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

/// A published teacher: a model whose patch features a tokenizer learns to rebuild.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublishedTeacher {
    /// Its file's name.
    pub file: &'static str,
    /// Its family, as in `teacher.kind` of a recipe and in `--teacher`.
    pub kind: &'static str,
    /// One line for a list.
    pub about: &'static str,
    /// Where its authors keep it.
    pub url: &'static str,
    /// Its SHA-256, where the authors tell it.
    pub sha256: Option<&'static str>,
    /// Bytes, rounded.
    pub megabytes: u64,
}

const fn dino(
    file: &'static str,
    about: &'static str,
    url: &'static str,
    megabytes: u64,
) -> PublishedTeacher {
    PublishedTeacher { file, kind: "dino", about, url, sha256: None, megabytes }
}

const fn dinov2(
    file: &'static str,
    about: &'static str,
    url: &'static str,
    megabytes: u64,
) -> PublishedTeacher {
    PublishedTeacher { file, kind: "dinov2", about, url, sha256: None, megabytes }
}

/// The published teachers. The first is that of the paper's tokenizers. OpenAI's files are TorchScript archives in half
/// precision, and their addresses hold the SHA-256.
pub const TEACHERS: [PublishedTeacher; 11] = [
    PublishedTeacher {
        file: "ViT-B-16.pt",
        kind: "clip",
        about: "OpenAI's CLIP ViT-B/16, the paper's teacher",
        url: "https://openaipublic.azureedge.net/clip/models/5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f/ViT-B-16.pt",
        sha256: Some("5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f"),
        megabytes: 351,
    },
    PublishedTeacher {
        file: "ViT-L-14.pt",
        kind: "clip",
        about: "OpenAI's CLIP ViT-L/14",
        url: "https://openaipublic.azureedge.net/clip/models/b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836/ViT-L-14.pt",
        sha256: Some("b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"),
        megabytes: 933,
    },
    dino(
        "dino_vitbase16_pretrain.pth",
        "DINO ViT-B/16, the paper's other teacher",
        "https://dl.fbaipublicfiles.com/dino/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth",
        343,
    ),
    dino(
        "dino_deitsmall16_pretrain.pth",
        "DINO ViT-S/16",
        "https://dl.fbaipublicfiles.com/dino/dino_deitsmall16_pretrain/dino_deitsmall16_pretrain.pth",
        87,
    ),
    dino(
        "dino_vitbase8_pretrain.pth",
        "DINO ViT-B/8",
        "https://dl.fbaipublicfiles.com/dino/dino_vitbase8_pretrain/dino_vitbase8_pretrain.pth",
        343,
    ),
    dinov2(
        "dinov2_vits14_pretrain.pth",
        "DINOv2 ViT-S/14",
        "https://dl.fbaipublicfiles.com/dinov2/dinov2_vits14/dinov2_vits14_pretrain.pth",
        88,
    ),
    dinov2(
        "dinov2_vitb14_pretrain.pth",
        "DINOv2 ViT-B/14",
        "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitb14/dinov2_vitb14_pretrain.pth",
        346,
    ),
    dinov2(
        "dinov2_vitl14_pretrain.pth",
        "DINOv2 ViT-L/14",
        "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
        1218,
    ),
    dinov2(
        "dinov2_vits14_reg4_pretrain.pth",
        "DINOv2 ViT-S/14 with registers",
        "https://dl.fbaipublicfiles.com/dinov2/dinov2_vits14/dinov2_vits14_reg4_pretrain.pth",
        88,
    ),
    dinov2(
        "dinov2_vitb14_reg4_pretrain.pth",
        "DINOv2 ViT-B/14 with registers",
        "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitb14/dinov2_vitb14_reg4_pretrain.pth",
        346,
    ),
    dinov2(
        "dinov2_vitl14_reg4_pretrain.pth",
        "DINOv2 ViT-L/14 with registers",
        "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_reg4_pretrain.pth",
        1218,
    ),
];

/// The published teacher of that file name, with or without its ending.
pub fn teacher(name: &str) -> Option<&'static PublishedTeacher> {
    let stem = |name: &str| name.trim_end_matches(".pth").trim_end_matches(".pt").to_lowercase();
    TEACHERS.iter().find(|teacher| stem(teacher.file) == stem(name))
}

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

    #[test]
    fn teachers_are_found_by_their_files() {
        for one in &TEACHERS {
            assert_eq!(teacher(one.file), Some(one));
            assert!(one.url.ends_with(&format!("/{}", one.file)));
            // OpenAI's addresses hold it.
            assert!(one.sha256.is_none_or(|sha256| sha256.len() == 64 && one.url.contains(sha256)));
        }
        assert_eq!(teacher("vit-b-16").map(|one| one.kind), Some("clip"));
    }
}
