//! Facts about images, teacher and machine.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use beit2::tokenizer::teachers::{Teacher, TeacherConfig};
use beit2::train::{Assets, Event, Observer};
use beit2_data::check::{self, Set};
use beit2_data::classes::{ClassesBy, Target, match_classes};
use beit2_data::decode::decode_with_facts;
use beit2_data::segment::{ReduceZeroLabel, SegmentSource};
use beit2_data::source::Spec;
use beit2_data::{DecodeOptions, PixelRange, Source};
use beit2_kernels::Precision;
use burn::backend::Flex;
use burn::tensor::DType;

use super::masks::{self, Masks};
use super::plan::{FEWEST, Goal, TeacherFacts, few};
use super::split;
use crate::account;
use crate::errors::usage;
use crate::flags::OutputArgs;
use crate::session::Session;

/// Images that are decoded to learn their sizes.
const SAMPLE: usize = 24;
/// Seconds that comparing all images may take before the split goes by neighbours instead.
const COMPARING: f64 = 120.0;

/// The images as they were found.
pub struct Found {
    /// As the user named them.
    pub spec: String,
    pub source: Arc<dyn Source>,
    /// With masks, for segmentation.
    pub masks: Option<Masks>,
    pub val: Option<(String, Arc<dyn Source>)>,
    /// Median of the shorter and of the longer sides.
    pub short: u32,
    pub long: u32,
    pub range: PixelRange,
    /// Seconds that a thread needs to decode an image.
    pub decode_seconds: f64,
}

/// A path or several as recipes name them, so that they work from any folder.
pub fn absolute(text: &str) -> anyhow::Result<String> {
    let mut parts = Vec::new();
    for mut spec in Spec::list(text)? {
        if !spec.path.starts_with("bundled:") {
            spec.path = absolute_path(&spec.path)?;
            spec.columns.root = spec.columns.root.as_deref().map(absolute_path).transpose()?;
        }
        parts.push(spec.to_string());
    }
    Ok(parts.join(beit2_data::source::AND))
}

fn absolute_path(path: &str) -> anyhow::Result<String> {
    let found = std::path::absolute(path).with_context(|| format!("{path} is no path"))?;
    Ok(found.display().to_string())
}

/// Refuses a project inside a folder of images: what it holds would be taken for more of them.
pub fn outside(out: &Path, specs: &[&str]) -> anyhow::Result<()> {
    let real = |path: &Path| std::fs::canonicalize(path).ok();
    // Of a folder that is not there yet, the one above it.
    let place = std::path::absolute(out)?;
    let Some(place) = place.ancestors().find_map(real) else { return Ok(()) };
    for text in specs {
        for Spec { path, .. } in Spec::list(text)? {
            let path = Path::new(&path);
            if path.is_dir() && real(path).is_some_and(|images| place.starts_with(images)) {
                return usage(format!(
                    "{} would lie inside the images' folder {}, and its images would be taken for more of them; name another \
                     folder with --out",
                    out.display(),
                    path.display()
                ));
            }
        }
    }
    Ok(())
}

/// Opens and samples the images.
pub fn data(
    session: &Session<'_>,
    spec: &str,
    val: Option<&str>,
    goal: Goal,
    output: OutputArgs,
) -> anyhow::Result<Found> {
    let assets = &session.assets;
    if goal != Goal::Segment
        && let Some(path) =
            Spec::list(spec)?.iter().map(|spec| spec.path.as_str()).find(|path| has_masks(path))
    {
        return usage(format!(
            "{path} holds images/ and masks, which would be taken for images; add --goal segment, or name {path}/images"
        ));
    }
    let (source, masks, val): (Arc<dyn Source>, _, _) = match goal {
        Goal::Segment => {
            let masks = masks::open(assets, spec, val.is_some())?;
            let open = |val: &str| {
                Ok::<_, beit2::Error>((val.to_owned(), assets.segment_source(val, &masks.options())?))
            };
            let val = val.map(open).transpose()?;
            if let Some((name, source)) = &val {
                let set = Set { name: spec, source: &masks.pairs };
                stop_on(check::masks(set, Some(Set { name, source }), 2).0)?;
            }
            (masks.pairs.clone(), Some(masks), val.map(|(name, source)| (name, source as Arc<dyn Source>)))
        }
        Goal::Pretrain | Goal::Finetune => {
            let source = assets.source(spec)?;
            let val =
                val.map(|val| Ok::<_, beit2::Error>((val.to_owned(), assets.source(val)?))).transpose()?;
            (source, None, val)
        }
    };
    account::tell(output, spec, source.as_ref());
    if let Some((name, source)) = &val {
        account::tell(output, name, source.as_ref());
    }
    if source.len() < FEWEST {
        return usage(format!("{spec}: {}", few(source.len())));
    }
    if goal == Goal::Finetune {
        source.check_labels()?;
        if !source.classes().is_empty() {
            stop_on(check::labels(Set { name: spec, source: &source }, None))?;
        }
        if let Some((name, val)) = &val {
            val.check_labels()?;
            let target = Target { owner: spec, count: source.classes().len(), names: source.classes() };
            match_classes(name, val.clone(), target, ClassesBy::Auto)
                .or_else(|error| usage(error.to_string()))?;
        }
    }
    let Sample { short, long, range, decode_seconds } = sample(spec, source.as_ref())?;
    Ok(Found { spec: spec.to_owned(), source, masks, val, short, long, range, decode_seconds })
}

/// Tells warnings, and stops on the first error.
pub fn stop_on(findings: check::Findings) -> anyhow::Result<()> {
    account::tell_warnings(&findings.warnings);
    match findings.errors.first() {
        None => Ok(()),
        Some(first) => usage(first.as_str()),
    }
}

/// Whether a folder holds `images/` and masks.
fn has_masks(path: &str) -> bool {
    let inside = |name: &str| Path::new(path).join(name).is_dir();
    inside("images") && ["masks", "annotations", "labels"].into_iter().any(inside)
}

struct Sample {
    short: u32,
    long: u32,
    range: PixelRange,
    decode_seconds: f64,
}

/// Decodes some images, evenly spread.
fn sample(spec: &str, source: &dyn Source) -> anyhow::Result<Sample> {
    let count = source.len().min(SAMPLE);
    let (mut shorts, mut longs) = (Vec::new(), Vec::new());
    let (mut deep, mut first_error) = (0, None);
    let started = Instant::now();
    for at in (0..count).map(|at| at * source.len() / count) {
        let looked = source.read(at).map_err(anyhow::Error::from).and_then(|bytes| {
            // Values of more than 8 bits are refused by the default, and fit any range here.
            let options = DecodeOptions { range: PixelRange::Percentile, ..DecodeOptions::default() };
            let refused = decode_with_facts(&bytes, &DecodeOptions::default()).is_err();
            let (image, facts) = decode_with_facts(&bytes, &options)?;
            Ok((image, refused && facts.bits > 8))
        });
        match looked {
            Ok((image, refused)) => {
                shorts.push(image.width.min(image.height));
                longs.push(image.width.max(image.height));
                deep += usize::from(refused);
            }
            Err(error) => {
                let name = source.name(at);
                first_error.get_or_insert(format!("{name}: {error:#}"));
            }
        }
    }
    if let (true, Some(why)) = (shorts.is_empty(), first_error) {
        anyhow::bail!("{spec}: none of {count} images of a sample can be used, first {why}");
    }
    let median = |mut values: Vec<u32>| {
        values.sort_unstable();
        values.get(values.len().saturating_sub(1) / 2).copied().unwrap_or(1)
    };
    // The time of both decodings, halved.
    let decode_seconds = started.elapsed().as_secs_f64() / 2.0 / count.max(1) as f64;
    let range = if deep > 0 { PixelRange::Percentile } else { PixelRange::Auto };
    Ok(Sample { short: median(shorts), long: median(longs), range, decode_seconds })
}

/// Which images are set aside for validation, and how that was decided; `None` where there is a validation set, or none can
/// be made.
pub struct Split {
    pub is_val: Vec<bool>,
    /// A sentence.
    pub how: String,
}

/// Divides the images, where that is needed and can be done.
pub fn divide(
    found: &Found,
    goal: Goal,
    seed: u64,
    cores: usize,
    session: &mut Session<'_>,
) -> anyhow::Result<Option<Split>> {
    if found.val.is_some() {
        return Ok(None);
    }
    let special =
        Spec::list(&found.spec)?.iter().any(|spec| spec.columns.bands.is_some() || spec.weight.is_some());
    if special || !split::can_be_listed(found.source.as_ref()) {
        if goal == Goal::Pretrain {
            return Ok(None);
        }
        return usage(format!(
            "{} is not a set of single files with names in UTF-8, so no validation images can be set aside; name some \
             with --val",
            found.spec
        ));
    }
    let count = found.source.len();
    let takes = count as f64 * found.decode_seconds / cores as f64;
    let (group, how) = match takes > COMPARING {
        true => (
            split::blocks(count),
            format!(
                "comparing {count} images would take {}, so neighbours by name stay on one side",
                beit2_run::format_duration(takes)
            ),
        ),
        false => {
            let Session { progress, signals, .. } = session;
            let options = DecodeOptions { range: found.range, ..DecodeOptions::default() };
            let tell = |done: usize| {
                let (done, total) = (done as u64, count as u64);
                progress.event(Event::Progress { what: "images compared".into(), done, total });
            };
            let alike = check::alike(&found.source, &options, cores, tell, || signals.stop.is_set());
            let Some(alike) = alike else { return Err(beit2::Error::Interrupted.into()) };
            let joined = (0..count).filter(|&at| alike.group[at] != at).count();
            let how = match joined {
                0 => "no two images are nearly the same".to_owned(),
                1 => "one that is nearly the same as another is on its side".to_owned(),
                _ => format!("{joined} that are nearly the same as another are on its side"),
            };
            (alike.group, how)
        }
    };
    let is_val = split::split(&group, &split::strata(found.source.as_ref()), seed);
    let aside = is_val.iter().filter(|&&val| val).count();
    if aside == 0 {
        if goal == Goal::Pretrain {
            return Ok(None);
        }
        return usage(format!(
            "no validation images can be set aside from {}: its images are nearly the same, or its classes have fewer than \
             three images; name some with --val",
            found.spec
        ));
    }
    let by_class =
        if found.source.classes().is_empty() || goal == Goal::Segment { "" } else { ", some of each class" };
    Ok(Some(Split { is_val, how: format!("{aside} of {count} images are set aside{by_class}; {how}") }))
}

/// How a source reads its masks.
pub fn reduce_zero_label(pairs: &SegmentSource) -> ReduceZeroLabel {
    if pairs.rule().reduce_zero_label { ReduceZeroLabel::Yes } else { ReduceZeroLabel::No }
}

/// Reads the teacher.
pub fn teacher(session: &Session<'_>, weights: &str) -> anyhow::Result<TeacherFacts> {
    let name = match weights.starts_with("bundled:") {
        true => weights.to_owned(),
        false => absolute_path(weights)?,
    };
    let file = session.assets.weights(&name)?;
    let teacher =
        Teacher::<Flex>::from_file(&TeacherConfig::default(), file, DType::F32, &Default::default())
            .with_context(|| format!("{weights} cannot be the teacher"))?;
    Ok(TeacherFacts {
        weights: name,
        kind: Some(teacher.kind()),
        dim: teacher.dim(),
        cost: Box::new(move |grid| teacher.cost(grid)),
    })
}

/// Floating-point operations a second of large matmuls on the processor or GPU.
pub struct Matmuls(pub Precision);

impl crate::session::Job for Matmuls {
    type Output = f64;

    fn run<B: beit2_kernels::AutodiffBackend>(
        self,
        _: &mut Session<'_>,
        device: &B::Device,
    ) -> anyhow::Result<f64> {
        Ok(beit2_bench::gemm_flops::<B::InnerBackend>(self.0, device)?)
    }
}
