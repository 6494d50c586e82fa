//! Why an image cannot be transformed.

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
