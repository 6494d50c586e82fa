//! What a model's configuration says and the configuration files of other libraries ask for.

use beit2::classify::EvalTable;
use beit2::segment::SegmenterConfig;
use beit2::vit::VitConfig;
use beit2::weights::{StateFile, written_config};
use beit2_data::{CropMode, EvalConfig, Interpolation};
use beit2_weights::Normalization;
use beit2_weights::convert::{Facts, Filter, Preprocessing, SegmentationFacts};
use beit2_weights::layout::{Family, Kind};
use serde_json::Value;

/// Facts of the model in a file, as this program sees it itself. `heads` is what the user says.
pub(super) fn of(state: &StateFile, heads: Option<usize>) -> Result<Facts, beit2::Error> {
    let own: Value = written_config(&state.metadata, &state.origin)?.unwrap_or_default();
    let (vit, beside, summary) = (&own["vit"], &state.beside, &state.summary);
    let count = |value: &Value| value.as_u64().and_then(|count| usize::try_from(count).ok());
    let usual = Facts::default();
    let names = match texts(&own["class_names"]) {
        names if names.is_empty() => beside.class_names.clone(),
        names => names,
    };
    let normalization: Option<Normalization> =
        beside.normalization.clone().or_else(|| serde_json::from_value(vit["normalization"].clone()).ok());
    let mut facts = Facts {
        // Without any of these the published models' width of a head counts, where the width is a published one.
        heads: heads
            .or_else(|| count(&vit["heads"]))
            .or(beside.sizes.heads)
            .or_else(|| Some(VitConfig::from_shapes(state).ok()?.heads)),
        image_px: count(&vit["image_size"]).or(beside.sizes.image_px),
        norm_eps: match (vit["norm_eps"].as_f64(), summary.layout.family, beside.norm_eps) {
            (Some(eps), ..) | (None, Family::HuggingFace, Some(eps)) => eps,
            _ => usual.norm_eps,
        },
        class_names: names,
        multi_label: own["multi_label"].as_bool().unwrap_or_default(),
        ..usual
    };
    if let Some(Normalization { mean, std }) = normalization {
        (facts.mean, facts.std) = (mean, std);
    }
    if state.summary.layout.kind == Kind::Segmentation {
        let config = SegmenterConfig::of_file(state)?;
        facts.class_names = config.class_names.clone();
        let has_auxiliary = state.tensors.contains_key("auxiliary_head.conv_seg.weight");
        facts.segmentation = Some(SegmentationFacts {
            out_indices: config.out_indices,
            channels: config.channels,
            pool_scales: config.pool_scales,
            aux_channels: has_auxiliary.then_some(config.aux_channels),
            aux_index: config.aux_index,
            aux_weight: config.aux_weight,
        });
    }
    if let Some(size) = state.summary.image_px().or(facts.image_px) {
        facts.preprocessing = Some(preprocessing(&EvalTable::beside(state, None)?.view(size))?);
    }
    Ok(facts)
}

/// A view of this program in the words of other libraries.
fn preprocessing(view: &EvalConfig) -> Result<Preprocessing, beit2::Error> {
    let size = view.size as usize;
    let usual = Preprocessing::of_size(size);
    let squash = match view.crop_mode {
        CropMode::Center => false,
        CropMode::Squash => true,
        CropMode::Border => {
            return Err(beit2::Error::Config(
                "this model's images are padded to squares, and no configuration of another library says that".into(),
            ));
        }
    };
    Ok(Preprocessing {
        size,
        crop_pct: view.crop_pct.unwrap_or(usual.crop_pct),
        resized: view.resize_side() as usize,
        squash,
        filter: match view.interpolation {
            Interpolation::Bilinear => Filter::Bilinear,
            Interpolation::Bicubic => Filter::Bicubic,
            Interpolation::Lanczos => Filter::Lanczos,
        },
    })
}

fn texts(list: &Value) -> Vec<String> {
    let texts: Option<Vec<String>> =
        list.as_array().and_then(|list| list.iter().map(|text| Some(text.as_str()?.to_owned())).collect());
    texts.unwrap_or_default()
}

/// What a user should know about labels and images, one line each.
pub(super) fn notes(facts: &Facts, kind: Kind, classes: Option<usize>, hugging_face: bool) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(classes) = classes {
        let names = &facts.class_names;
        let mut sorted: Vec<&String> = names.iter().collect();
        sorted.sort();
        if names.len() != classes && hugging_face {
            let last = classes.saturating_sub(1);
            notes.push(format!(
                "the classes have no names here; config.json calls them LABEL_0 to LABEL_{last}"
            ));
        } else if names.len() != classes {
            notes.push("the classes have no names here, so config.json has no label_names".to_owned());
        } else if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            notes.push(format!("several classes are called `{}`; label2id has the last of them", pair[0]));
        }
    }
    if facts.multi_label && kind == Kind::Classifier && !hugging_face {
        notes.push(
            "images may have several classes: put each logit through a sigmoid, not all through a softmax"
                .to_owned(),
        );
    }
    if let (Some(view), true) = (facts.preprocessing, hugging_face && kind != Kind::Segmentation)
        && view.resized.saturating_sub(view.size) % 4 == 3
    {
        // Half a pixel too much on each side: the reference rounds to the even number, transformers down.
        notes.push("transformers cuts out the centre one pixel further up and left than beit2".to_owned());
    }
    if kind == Kind::Segmentation {
        notes.push(
            "a block of zeros was added at the end: transformers takes no map after the last block"
                .to_owned(),
        );
        notes.push(
            "the image processor squashes an image to one window; beit2 resizes it and averages windows, so masks differ"
                .to_owned(),
        );
    }
    notes
}
