//! Every way in which data can be wrong, one sentence each: what is wrong, where, and what would be
//! right.

use std::path::PathBuf;

/// Why encoded bytes did not become an [`Image`](crate::Image). The caller knows the file name and
/// puts it in front.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The file holds no bytes.
    #[error("the file is empty; an image file was expected")]
    Empty,
    /// More encoded bytes than [`DecodeOptions::max_file_bytes`](crate::DecodeOptions).
    #[error("the file has {bytes} bytes, more than the limit of {limit} for one image")]
    FileTooLarge {
        /// Size found, in bytes.
        bytes: u64,
        /// Limit, in bytes.
        limit: u64,
    },
    /// The content starts like none of the supported formats (the file name is not looked at).
    #[error("the content is not a JPEG, PNG, WebP, GIF, BMP, TIFF or PNM image")]
    UnknownFormat,
    /// The header promises more pixels than allowed; nothing was allocated.
    #[error(
        "the image is {width} x {height} pixels, above the limit of {max_pixels} pixels and {max_side} per side"
    )]
    TooManyPixels {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// Limit on width x height.
        max_pixels: u64,
        /// Limit on each side.
        max_side: u32,
    },
    /// One side is zero.
    #[error("the image is {width} x {height} pixels; both sides must be at least 1")]
    NoPixels {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
    },
    /// The data end before the image does.
    #[error("the {format} image is truncated: its data end before the last row; copy the file again")]
    Truncated {
        /// Name of the format.
        format: &'static str,
    },
    /// A format that is recognised and not read.
    #[error("this is a {name}, which beit2 cannot read; convert it to JPEG or PNG")]
    ForeignFormat {
        /// Name of the format.
        name: &'static str,
    },
    /// A DICOM file, in a build that cannot read any.
    #[error(
        "this is a DICOM file, which this build of beit2 does not read; build it with --features dicom, or convert the file to PNG"
    )]
    NoDicom,
    /// A kind of pixel this crate does not turn into 8-bit RGB.
    #[error("the image has {kind} pixels, which beit2 cannot read; save it as 8-bit or 16-bit grey or RGB")]
    UnsupportedPixels {
        /// Name of the pixel type.
        kind: String,
    },
    /// A TIFF file with a compression or layout that is not read.
    #[error(
        "this kind of TIFF file cannot be read ({reason}); save it as PNG, or as TIFF with LZW or deflate compression"
    )]
    UnsupportedTiff {
        /// What the decoder says.
        reason: String,
    },
    /// Several bands of no stated colour.
    #[error(
        "the image has {bands} bands of no stated colour, but grey, RGB or CMYK was expected; for a model of {bands} bands set in_chans = {bands}"
    )]
    Bands {
        /// Samples of a pixel.
        bands: usize,
    },
    /// Another number of channels than the model's.
    #[error("the image has {found} channels, but {expected} were expected (the model's in_chans)")]
    Channels {
        /// What the image has.
        found: u32,
        /// What was asked for.
        expected: u32,
    },
    /// An image to be turned, whose mask fits the stored pixels as well as the turned ones.
    #[error(
        "the image ({width} x {height}) has EXIF orientation {orientation}, and its mask would fit it turned or as stored; set data.exif = \"ignore\" (--exif ignore) if masks belong to the stored pixels, else save the image turned, without the EXIF entry"
    )]
    AmbiguousOrientation {
        /// EXIF orientation.
        orientation: u8,
        /// Width of the stored image.
        width: u32,
        /// Height of the stored image.
        height: u32,
    },
    /// Values that do not fit into 8 bits, and no setting that says what to do about it.
    #[error(
        "the image has {kind} values from {values}, but 8 bits hold 0 to 255; choose with data.range (--range) how they are mapped: full (all of {full}), {bounds} or other bounds for all images, percentile (of each image), or 8bit (as Pillow, which cuts grey at 255)"
    )]
    RangeNeeded {
        /// Name of the numeric type.
        kind: String,
        /// Lowest and highest value.
        values: String,
        /// What `full` would take.
        full: String,
        /// The values as bounds.
        bounds: String,
    },
    /// Floating point values outside 0 to 1.
    #[error(
        "the image has {kind} values from {values}, but range full takes 0 to 1 for floating point; give the bounds as data.range = [low, high] (--range low,high), or use percentile"
    )]
    BeyondFull {
        /// Name of the numeric type.
        kind: String,
        /// Lowest and highest value.
        values: String,
    },
    /// Both percentiles are the same value, although the image is not constant.
    #[error(
        "the image's 0.5 and 99.5 percentiles are both {at}, while its values are {values}; give bounds as data.range = [low, high] (--range low,high)"
    )]
    FlatPercentiles {
        /// The value.
        at: String,
        /// Lowest and highest value.
        values: String,
    },
    /// A value that is no number.
    #[error("pixel ({x}, {y}) is {value}; every value must be a finite number")]
    NotFinite {
        /// Column.
        x: u32,
        /// Row.
        y: u32,
        /// `NaN` or `infinite`.
        value: &'static str,
    },
    /// The format's own decoder refused the data.
    #[error("the image cannot be decoded: {reason}")]
    Invalid {
        /// What the decoder says.
        reason: String,
    },
}

/// Why an image could not be transformed or stacked, or an augmentation's settings make no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransformError {
    /// The pixel buffer does not have `width * height * channels` bytes.
    #[error("an image of {width} x {height} with {channels} channels needs {expected} bytes, found {found}")]
    BufferLength {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// Values of a pixel.
        channels: u32,
        /// Bytes needed.
        expected: u64,
        /// Bytes found.
        found: u64,
    },
    /// A channel that an image does not have.
    #[error("there is no channel {} of {channels}; channels count from 1", channel + 1)]
    Channel {
        /// The channel, from 0.
        channel: u32,
        /// How many there are.
        channels: u32,
    },
    /// Another number of channels than expected.
    #[error("the image has {found} channels, expected {expected}")]
    Channels {
        /// What is expected.
        expected: u32,
        /// What was found.
        found: u32,
    },
    /// The buffer of a label map does not have `width * height` bytes.
    #[error("a label map of {width} x {height} needs {expected} ids, found {found}")]
    LabelCount {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// Ids needed.
        expected: u64,
        /// Ids found.
        found: u64,
    },
    /// An image and its mask do not cover the same pixels.
    #[error("the mask is {mask_w} x {mask_h} pixels, its image is {width} x {height}; both must agree")]
    MaskSize {
        /// Width of the mask.
        mask_w: u32,
        /// Height of the mask.
        mask_h: u32,
        /// Width of the image.
        width: u32,
        /// Height of the image.
        height: u32,
    },
    /// Normalised pixels do not have `3 * width * height` values.
    #[error("an image of 3 x {height} x {width} needs {expected} values, found {found}")]
    ValueCount {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// Values needed.
        expected: u64,
        /// Values found.
        found: u64,
    },
    /// A padded crop larger than the image with its padding.
    #[error(
        "a crop of {size} x {size} does not fit into the image of {width} x {height} with {padding} pixels of padding; use larger images or crop = \"resized\""
    )]
    PaddedCrop {
        /// Side of the crop, pixels.
        size: u32,
        /// Image width, pixels.
        width: u32,
        /// Image height, pixels.
        height: u32,
        /// Padding on each side, pixels.
        padding: u32,
    },
    /// Mixing pairs sample i with sample B - 1 - i.
    #[error("a batch of {samples} cannot be mixed: its samples are paired, so their number must be even")]
    OddBatch {
        /// Samples in the batch.
        samples: usize,
    },
    /// A class number past the number of classes.
    #[error("sample {position} of the batch has class {label}, but there are only {classes} classes")]
    ClassOutside {
        /// Index in the batch.
        position: usize,
        /// Its class.
        label: u32,
        /// Number of classes.
        classes: usize,
    },
    /// A crop box that is empty or leaves the image.
    #[error(
        "the crop (left {left}, top {top}, {crop_w} x {crop_h}) does not lie inside the image of {width} x {height}"
    )]
    CropOutside {
        /// Left edge, pixels.
        left: u32,
        /// Top edge, pixels.
        top: u32,
        /// Crop width, pixels.
        crop_w: u32,
        /// Crop height, pixels.
        crop_h: u32,
        /// Image width, pixels.
        width: u32,
        /// Image height, pixels.
        height: u32,
    },
    /// A decoded region of another size than the parameters' box.
    #[error("the transform needs a region of {need_w} x {need_h} pixels, found one of {width} x {height}")]
    RegionSize {
        /// Width of the box, pixels.
        need_w: u32,
        /// Height of the box, pixels.
        need_h: u32,
        /// Width of the region, pixels.
        width: u32,
        /// Height of the region, pixels.
        height: u32,
    },
    /// A part of an image where the whole is needed.
    #[error(
        "contrast jitter and padded crops need the whole image, and only a region of {width} x {height} was given"
    )]
    NeedsWholeImage {
        /// Width of the region, pixels.
        width: u32,
        /// Height of the region, pixels.
        height: u32,
    },
    /// A target size that is zero or absurdly large.
    #[error("cannot resize to {width} x {height} pixels; each side must be 1 to {max}")]
    TargetSize {
        /// Requested width.
        width: u32,
        /// Requested height.
        height: u32,
        /// Largest side accepted.
        max: u32,
    },
    /// Images of different sizes were put into one batch.
    #[error(
        "image {position} of the batch is {width} x {height}, the first is {first_w} x {first_h}; all must agree"
    )]
    MixedSizes {
        /// Index in the batch.
        position: usize,
        /// Its width.
        width: u32,
        /// Its height.
        height: u32,
        /// Width of the first image.
        first_w: u32,
        /// Height of the first image.
        first_h: u32,
    },
    /// A setting outside its range.
    #[error("{name} is {value}; it must be {expected}")]
    Setting {
        /// Name of the setting.
        name: &'static str,
        /// Value found.
        value: String,
        /// What would be right.
        expected: &'static str,
    },
}

/// Why a loader's work function made nothing of a sample.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SampleError {
    /// The image cannot be decoded.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The image cannot be transformed.
    #[error(transparent)]
    Transform(#[from] TransformError),
}

/// A contradiction in a [`BlockMaskConfig`](crate::BlockMaskConfig).
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum MaskError {
    /// A grid without cells.
    #[error("the mask grid is {grid_h} x {grid_w}; both sides must be 1 to {max}")]
    Grid {
        /// Rows.
        grid_h: usize,
        /// Columns.
        grid_w: usize,
        /// Largest side accepted.
        max: usize,
    },
    /// More masked patches than patches.
    #[error(
        "{masked} masked patches do not fit: the {grid_h} x {grid_w} grid has only {patches}; use at most {patches}"
    )]
    TooMany {
        /// Requested masked patches.
        masked: usize,
        /// Rows.
        grid_h: usize,
        /// Columns.
        grid_w: usize,
        /// Patches in the grid.
        patches: usize,
    },
    /// Block size limits that contradict each other.
    #[error("max_patches is {max}, below min_patches {min}; a block needs room for its minimum")]
    Limits {
        /// Smallest block area.
        min: usize,
        /// Largest block area.
        max: usize,
    },
    /// An aspect limit outside (0, 1].
    #[error("min_aspect is {0}; it must be above 0 and at most 1 (0.3 in the paper)")]
    Aspect(f64),
}

/// Why a source of images could not be opened, or one of its samples could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// No such file or folder.
    #[error(
        "{path}: no such file or folder; give a folder of images, a .tar shard, or a pattern like 'shard-{{000..003}}.tar'"
    )]
    Missing {
        /// The requested path.
        path: String,
    },
    /// A file where a folder is needed.
    #[error("{}: not a folder; a folder of images was expected", path.display())]
    NotAFolder {
        /// The path.
        path: PathBuf,
    },
    /// A file that is neither a folder nor a tar shard.
    #[error("{path}: {problem}; give a folder of images or an uncompressed .tar shard")]
    NotASource {
        /// The path.
        path: String,
        /// What it is.
        problem: String,
    },
    /// A folder or a set of shards that holds no image.
    #[error("{place}: no images in it{instead}")]
    NoImages {
        /// Folder or shards.
        place: String,
        /// What was found instead, and what would be right.
        instead: String,
    },
    /// Folders that would be trained on for something that they are not.
    #[error("{place}: {problem}")]
    Arrangement {
        /// The folder or shard.
        place: String,
        /// What they are and what would be right.
        problem: String,
    },
    /// Labels that are missing or wrong where they matter.
    #[error("{}{}", problems.first().map_or("", String::as_str), match problems.len() {
        0 | 1 => String::new(),
        2 => "; and there is 1 more problem with labels (`beit2 data check` names all)".to_owned(),
        more => format!("; and there are {} more problems with labels (`beit2 data check` names all)", more - 1),
    })]
    Labels {
        /// One sentence each.
        problems: Vec<String>,
    },
    /// A pattern that matches nothing or cannot be expanded.
    #[error("pattern '{pattern}': {problem}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// A shard that is not a sound tar file.
    #[error("{shard}: {problem}")]
    Shard {
        /// Path or name of the shard.
        shard: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// A label that is not a number in range.
    #[error("{shard}, member {member}: {problem}")]
    Label {
        /// Path or name of the shard.
        shard: String,
        /// Member of the shard.
        member: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// An IDX file that is not sound.
    #[error("{path}: {problem}")]
    Idx {
        /// The file.
        path: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// A parquet, CSV or JSON-lines file that cannot be used.
    #[error("{path}: {problem}")]
    Table {
        /// The file, with the row if it is about one.
        path: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// An index file with a bad line.
    #[error(
        "{path}, line {line}: {problem}; a line like {{\"class\": \"cat\", \"files\": [\"1.jpg\"]}} was expected"
    )]
    IndexFile {
        /// The file.
        path: String,
        /// Number of the line, from 1.
        line: usize,
        /// What is wrong.
        problem: String,
    },
    /// A sample larger than [`MAX_SAMPLE_BYTES`](crate::source::MAX_SAMPLE_BYTES).
    #[error("{name}: {bytes} bytes is more than the limit of {limit} for one image")]
    TooLarge {
        /// Sample name.
        name: String,
        /// Its size in bytes.
        bytes: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// A sample number past the end (a caller's mistake).
    #[error("there is no sample {index}: the source has {len}")]
    Index {
        /// Sample number.
        index: usize,
        /// Number of samples.
        len: usize,
    },
    /// The operating system refused.
    #[error("{path}: cannot {action}: {error}{}", match error.kind() {
        std::io::ErrorKind::PermissionDenied => "; give yourself the right to read it, or move it elsewhere",
        _ => "",
    })]
    Io {
        /// Path or member.
        path: String,
        /// What was attempted.
        action: &'static str,
        /// What the system says.
        error: std::io::Error,
    },
}

/// What to do about unusable images, as the rest of a sentence. `data` is how the user names the images.
#[must_use]
pub fn advice_on_bad_images(bad: u64, samples: u64, data: &str) -> String {
    // With some room: what was found so far may not be all.
    let wanted = 1.5 * bad as f64 / samples.max(1) as f64;
    let fraction = [0.05, 0.1, 0.2, 0.5].into_iter().find(|&fraction| wanted <= fraction).unwrap_or(1.0);
    format!(
        "`beit2 data check {data} --decode` names all of them: repair or remove them, or allow more with --set data.max_bad_fraction={fraction} (in knn and probe --max-bad-fraction {fraction})"
    )
}

/// Why a [`Loader`](crate::Loader) could not start or had to stop.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoaderError {
    /// A setting outside its range.
    #[error("loader setting {name} is {value}; it must be {expected}")]
    Setting {
        /// Name of the setting.
        name: &'static str,
        /// Value found.
        value: String,
        /// What would be right.
        expected: String,
    },
    /// The source holds no samples.
    #[error("the data source holds no samples; at least one image is needed")]
    EmptySource,
    /// With `drop_last`, one global batch must fit into the data.
    #[error(
        "a batch of {global_batch} does not fit into {samples} samples when incomplete batches are dropped; use a batch of at most {samples}"
    )]
    BatchTooLarge {
        /// Batch size times world size.
        global_batch: u64,
        /// Samples in the source.
        samples: u64,
    },
    /// A position past the end of an epoch.
    #[error(
        "cannot start at step {step} of epoch {epoch}: an epoch of this data has {steps} steps; did the data or the batch size change?"
    )]
    StartOutside {
        /// Requested epoch.
        epoch: u64,
        /// Requested step.
        step: u64,
        /// Steps in an epoch.
        steps: u64,
    },
    /// More unreadable samples than `max_bad_fraction` of the epoch.
    #[error(
        "{bad} of {samples} images could not be used in epoch {epoch}, more than the {limit} that data.max_bad_fraction allows ({percent} %): {}{}",
        first.join("; "),
        match (*bad as usize).saturating_sub(first.len()) { 0 => String::new(), more => format!("; and {more} more") }
    )]
    TooManyBad {
        /// Epoch in which it happened.
        epoch: u64,
        /// Unusable samples so far.
        bad: u64,
        /// How many were allowed.
        limit: u64,
        /// Samples in the epoch (of this rank).
        samples: u64,
        /// The limit as a percentage, ready to print.
        percent: String,
        /// The first few, as `name: reason`.
        first: Vec<String>,
    },
    /// A sample and every replacement drawn for it were unusable.
    #[error("{name}: {error}; {tries} other samples drawn in its place could not be used either")]
    NoReplacement {
        /// Name of the sample.
        name: String,
        /// Its own error.
        error: String,
        /// Replacements tried.
        tries: u32,
    },
    /// The caller's work function, or the source, panicked.
    #[error("a data worker crashed on {name}: {message}")]
    WorkerPanicked {
        /// Name of the sample.
        name: String,
        /// The panic's message.
        message: String,
    },
    /// Threads could not be started.
    #[error("cannot start a data worker thread: {0}")]
    Spawn(String),
}
