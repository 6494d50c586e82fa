//! How segmentation models see images, and how masks are read.

use beit2::segment::{InferConfig, MasksConfig, Mode};
use beit2_data::DecodeOptions;
use beit2_data::segment::{IdMap, ReduceZeroLabel, SegmentDataOptions};
use clap::{Args, ValueEnum};

/// How a segmentation model is run on images. The defaults are stored with the model.
#[derive(Debug, Args)]
pub struct InferArgs {
    /// How the model covers an image [default: as in the model's recipe]
    #[arg(long, value_name = "MODE")]
    pub mode: Option<InferMode>,

    /// Stride of the windows in pixels [default: as in the model's recipe]
    #[arg(long, value_name = "PX")]
    pub stride: Option<usize>,

    /// Resize images to fit LONGxSHORT first, such as 2048x512, or keep their size with `native` [default: as in the
    /// model's recipe]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub resize: Option<Resize>,

    /// Average the predictions at these scales, such as 0.5,1,1.5
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub scales: Option<Vec<f64>>,

    /// Average the predictions for the image and its mirror image
    #[arg(long)]
    pub flip: bool,

    /// Windows per batch [default: as in the model's recipe]
    #[arg(long, value_name = "N")]
    pub batch_size: Option<usize>,
}

/// `--mode`.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum InferMode {
    /// Overlapping windows
    Slide,
    /// The whole image at once
    Whole,
}

/// Longer and shorter side; `None`: images stay as they are.
#[derive(Debug, Clone, Copy)]
pub struct Resize(Option<(u32, u32)>);

fn size(text: &str) -> Result<Resize, String> {
    if text == "native" {
        return Ok(Resize(None));
    }
    let sides =
        text.split_once('x').and_then(|(long, short)| Some((long.parse().ok()?, short.parse().ok()?)));
    match sides {
        Some((a, b)) if a > 0 && b > 0 => Ok(Resize(Some((u32::max(a, b), u32::min(a, b))))),
        _ => Err("write it as 2048x512, or native".to_owned()),
    }
}

impl InferArgs {
    /// The model's own options with these flags over them.
    pub fn on(&self, mut infer: InferConfig) -> InferConfig {
        if let Some(mode) = self.mode {
            infer.mode = match mode {
                InferMode::Slide => Mode::Slide,
                InferMode::Whole => Mode::Whole,
            };
        }
        infer.stride = self.stride.or(infer.stride);
        if let Some(Resize(sides)) = self.resize {
            infer.resize = sides.is_some();
            (infer.long_side, infer.short_side) = sides.unwrap_or((infer.long_side, infer.short_side));
        }
        if let Some(scales) = &self.scales {
            infer.scales.clone_from(scales);
        }
        infer.flip |= self.flip;
        infer.windows_per_batch = self.batch_size.unwrap_or(infer.windows_per_batch);
        infer
    }
}

/// How masks are read, for commands without a recipe.
#[derive(Debug, Args)]
pub struct MaskArgs {
    /// Whether 0 in a mask means "no label", so that the classes start at 1
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    pub reduce_zero_label: ReduceZeroLabelArg,

    /// Value of mask pixels without a label
    #[arg(long, value_name = "ID", default_value_t = 255)]
    pub ignore: u8,

    /// Mask values that stand for other ids, applied first: 255=1 for masks of 0 and 255
    #[arg(long, value_name = "VALUE=ID,…", default_value = "")]
    pub map: IdMap,
}

/// `--reduce-zero-label`.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum ReduceZeroLabelArg {
    /// Only in the folders of ADE20K
    Auto,
    /// Always
    Yes,
    /// Never
    No,
}

impl MaskArgs {
    /// The same for the library.
    pub fn options(&self, decode: DecodeOptions) -> SegmentDataOptions {
        let reduce_zero_label = match self.reduce_zero_label {
            ReduceZeroLabelArg::Auto => ReduceZeroLabel::Auto,
            ReduceZeroLabelArg::Yes => ReduceZeroLabel::Yes,
            ReduceZeroLabelArg::No => ReduceZeroLabel::No,
        };
        MasksConfig { reduce_zero_label, ignore: self.ignore, map: self.map.clone() }.options(decode)
    }
}
