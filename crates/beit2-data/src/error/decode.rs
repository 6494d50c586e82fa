//! Why encoded bytes are no image.

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
