//! What a file is, from names and shapes alone: for `weights inspect`.

use std::collections::BTreeMap;

use super::TeacherKind;
use super::names::{Found, Names, Renamed};

/// One line about a published teacher's file, such as `a DINOv2 teacher with 4 registers, ViT-S/14 …`; `None` of files whose
/// names do not show a teacher's family.
pub fn describe(shapes: &BTreeMap<String, Vec<usize>>) -> Option<String> {
    let renamed = Renamed::of(shapes.keys().map(String::as_str)).ok()?;
    let Found::Family(kind) = renamed.found else { return None };
    let shape = |name: &str| renamed.source.get(name).and_then(|full| shapes.get(full));
    let [width, _, patch, _] = shape("patch_embed.proj.weight")?[..] else { return None };
    let depth = renamed.blocks();
    let size = match (width, depth) {
        (192, 12) => "ViT-Ti",
        (384, 12) => "ViT-S",
        (768, 12) => "ViT-B",
        (1024, 24) => "ViT-L",
        (1152, 27) => "ViT-So400m",
        (1280, 32) => "ViT-H",
        (1536, 40) => "ViT-g",
        (4096, 40) => "ViT-7B",
        _ => "ViT",
    };
    let mut text = format!("a {} teacher", kind.title());
    if let Some(registers) = shape("register_tokens").and_then(|shape| shape.iter().rev().nth(1)) {
        text += &format!(" with {registers} registers");
    }
    text += &format!(", {size}/{patch}: width {width}, {depth} blocks");
    let gated = ["mlp.gate.weight", "mlp.gate_up.weight"];
    if gated.iter().any(|name| renamed.has(&format!("blocks.0.{name}"))) {
        text += ", gated MLPs";
    }
    let projection = shape("projection").map(|shape| shape.last().copied());
    let projection =
        projection.or_else(|| shape("head.weight").map(|shape| shape.first().copied())).flatten();
    if let Some(features) = projection.filter(|_| kind == TeacherKind::Clip && !renamed.has("head.bias")) {
        text += &format!(", features of {features} values");
    }
    let names = match renamed.names {
        Names::OpenAi => "OpenAI or open_clip",
        Names::HfClip | Names::HfVit => "Hugging Face",
        Names::Plain => "timm or the original code",
    };
    Some(format!("{text} (names of {names}; teacher.kind = \"{kind}\")"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dinov2_file_is_described() {
        let mut shapes: BTreeMap<String, Vec<usize>> = [
            ("cls_token", vec![1, 1, 384]),
            ("register_tokens", vec![1, 4, 384]),
            ("pos_embed", vec![1, 1370, 384]),
            ("mask_token", vec![1, 384]),
            ("patch_embed.proj.weight", vec![384, 3, 14, 14]),
        ]
        .map(|(name, shape)| (name.to_owned(), shape))
        .into();
        for block in 0..12 {
            shapes.insert(format!("blocks.{block}.norm1.weight"), vec![384]);
            shapes.insert(format!("blocks.{block}.ls1.gamma"), vec![384]);
        }
        let expected = "a DINOv2 teacher with 4 registers, ViT-S/14: width 384, 12 blocks (names of timm or the original code; \
                        teacher.kind = \"dinov2\")";
        assert_eq!(describe(&shapes).as_deref(), Some(expected));
        shapes.remove("pos_embed");
        shapes.remove("register_tokens");
        assert_eq!(describe(&shapes), None);
    }
}
