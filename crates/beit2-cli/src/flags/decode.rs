//! How images are decoded, for commands without a recipe.

use std::path::{Path, PathBuf};

use anyhow::Context;
use beit2_data::{Background, DecodeOptions, ExifOrientation, PixelRange};
use clap::{Args, Command, ValueEnum};
use serde::Deserialize;

/// How images become 8-bit RGB.
#[derive(Debug, Clone, Copy, Args)]
pub struct DecodeArgs {
    /// How values of more than 8 bits become 8-bit values: auto (an error when they do not fit), full (the whole range of
    /// the type), 8bit (cut at 255), two bounds such as 0,4095, or percentile (of each image) [default: as in the run
    /// whose weights are used, else auto]
    #[arg(long, value_name = "RANGE", allow_hyphen_values = true)]
    range: Option<PixelRange>,

    /// Whether images are turned as their EXIF orientation says [default: as in the run whose weights are
    /// used, else apply]
    #[arg(long, value_name = "WHAT")]
    exif: Option<ExifArg>,

    /// What transparent pixels become [default: as in the run whose weights are used,
    /// else drop]
    #[arg(long, value_name = "COLOUR")]
    background: Option<BackgroundArg>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ExifArg {
    /// Turn and mirror images, as viewers do
    Apply,
    /// Use pixels as they are stored, as the reference does
    Ignore,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum BackgroundArg {
    /// Blend with white
    White,
    /// Blend with black
    Black,
    /// Drop alpha, as the reference does
    Drop,
}

impl DecodeArgs {
    /// The options: these flags, else those of the run that `weights` belong to, else `otherwise`.
    pub fn options(&self, weights: &str, otherwise: DecodeOptions) -> anyhow::Result<DecodeOptions> {
        let mut options = decoding_of_run(weights)?.unwrap_or(otherwise);
        if let Some(range) = self.range {
            options.range = range;
        }
        if let Some(exif) = self.exif {
            options.exif = match exif {
                ExifArg::Apply => ExifOrientation::Apply,
                ExifArg::Ignore => ExifOrientation::Ignore,
            };
        }
        if let Some(background) = self.background {
            options.background = match background {
                BackgroundArg::White => Background::White,
                BackgroundArg::Black => Background::Black,
                BackgroundArg::Drop => Background::Drop,
            };
        }
        Ok(options)
    }
}

/// `--exif` of a command that repeats published evaluations.
pub fn exif_as_published(arg: clap::Arg) -> clap::Arg {
    arg.help(
        "Whether images are turned as their EXIF orientation says [default: as in the run whose weights are used, else \
         ignore, as in the published evaluations]",
    )
}

/// Help of a command without weights.
pub fn decoding_without_weights(command: Command) -> Command {
    command
        .mut_arg("range", |arg| {
            arg.help(
                "How values of more than 8 bits become 8-bit values: auto (an error when they do not fit), full (the whole \
                 range of the type), 8bit (cut at 255), two bounds such as 0,4095, or percentile (of each image) [default: \
                 auto]",
            )
        })
        .mut_arg("exif", |arg| {
            arg.help("Whether images are turned as their EXIF orientation says [default: apply]")
        })
        .mut_arg("background", |arg| arg.help("What transparent pixels become [default: drop]"))
}

/// What a published evaluation does: EXIF orientation is ignored.
pub fn published() -> DecodeOptions {
    DecodeOptions { exif: ExifOrientation::Ignore, ..DecodeOptions::default() }
}

/// What of [`DecodeOptions`] changes pixels, for names and records.
pub fn describe(options: &DecodeOptions) -> String {
    format!("range {}, exif {}, background {}", options.range, options.exif.name(), options.background.name())
}

/// The `[data]` of a run, as far as it concerns decoding.
#[derive(Deserialize)]
struct RunFile {
    data: Option<RunData>,
}

#[derive(Deserialize)]
struct RunData {
    range: Option<PixelRange>,
    exif: Option<ExifOrientation>,
    background: Option<Background>,
}

/// The options of the run that a path belongs to: a run directory, one of its checkpoints, or a file in one.
///
/// # Errors
/// A `run.toml` that cannot be read.
pub fn decoding_of_run(weights: &str) -> anyhow::Result<Option<DecodeOptions>> {
    let Some(file) = run_file(Path::new(weights)) else {
        return Ok(None);
    };
    let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let run: RunFile = toml::from_str(&text)
        .with_context(|| format!("{}: its [data] settings cannot be understood", file.display()))?;
    Ok(run.data.map(|data| {
        let default = DecodeOptions::default();
        DecodeOptions {
            range: data.range.unwrap_or(default.range),
            exif: data.exif.unwrap_or(default.exif),
            background: data.background.unwrap_or(default.background),
            ..default
        }
    }))
}

fn run_file(weights: &Path) -> Option<PathBuf> {
    // Two steps up: RUN/checkpoints/step-…/model.safetensors, RUN/best.
    let above = weights.ancestors().take(4).filter(|folder| !folder.as_os_str().is_empty());
    above.map(|folder| folder.join("run.toml")).find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_over_the_run_over_the_default() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoint = dir.path().join("checkpoints/step-1");
        std::fs::create_dir_all(&checkpoint).unwrap();
        let text = "seed = 1\n[data]\nrange = [0, 4095]\nexif = \"ignore\"\n[data.other]\nx = 1\n";
        std::fs::write(dir.path().join("run.toml"), text).unwrap();
        let flags = DecodeArgs { range: None, exif: None, background: Some(BackgroundArg::White) };
        for weights in [dir.path(), &checkpoint, &checkpoint.join("model.safetensors")] {
            let found = flags.options(&weights.display().to_string(), DecodeOptions::default()).unwrap();
            assert_eq!(found.range, PixelRange::Bounds(0.0, 4095.0));
            assert_eq!((found.exif, found.background), (ExifOrientation::Ignore, Background::White));
        }
        let flags =
            DecodeArgs { range: Some(PixelRange::Full), exif: Some(ExifArg::Apply), background: None };
        let found = flags.options(&dir.path().display().to_string(), published()).unwrap();
        assert_eq!((found.range, found.exif), (PixelRange::Full, ExifOrientation::Apply));
        let flags = DecodeArgs { range: None, exif: None, background: None };
        assert_eq!(flags.options("no/such/file", published()).unwrap(), published());
    }
}
