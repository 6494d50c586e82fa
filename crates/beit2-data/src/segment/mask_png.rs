//! PNG files as masks: ids or colours, exactly as stored. (`decode.rs` would look palettes up and
//! stretch gray values of less than 8 bits, which is right for images and wrong for ids.)

use std::io::{Cursor, ErrorKind};

use png::{BitDepth, ColorType, DecodingError, Info, Transformations};

use crate::decode::{DecodeOptions, check_dimensions};
use crate::error::DecodeError;
use crate::segment::error::MaskProblem;

/// The first bytes of every PNG file.
pub(super) const SIGNATURE: [u8; 8] = [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1A, b'\n'];

/// A mask as it is stored.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RawMask {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) pixels: RawPixels,
}

/// Pixels of a [`RawMask`].
#[derive(Debug, PartialEq, Eq)]
pub(super) enum RawPixels {
    /// Gray values or numbers of palette entries, `[height, width]`.
    Ids {
        ids: Vec<u8>,
        /// Colours of the entries, when there is a palette.
        palette: Option<Vec<[u8; 3]>>,
    },
    /// Colours, `[height, width, 3]`.
    Rgb(Vec<u8>),
}

/// Decodes one mask. Nothing is allocated for pixels before the header has been held against the
/// limits.
pub(super) fn decode_mask(bytes: &[u8], options: &DecodeOptions) -> Result<RawMask, MaskProblem> {
    if bytes.is_empty() {
        return Err(DecodeError::Empty.into());
    }
    if bytes.len() as u64 > options.max_file_bytes {
        let (bytes, limit) = (bytes.len() as u64, options.max_file_bytes);
        return Err(DecodeError::FileTooLarge { bytes, limit }.into());
    }
    if !bytes.starts_with(&SIGNATURE) {
        return Err(MaskProblem::NotPng);
    }
    // Rows and tables of the decoder; the pixels are ours. A palette PNG of the largest image needs less.
    let buffers = usize::try_from(options.max_pixels.saturating_add(1 << 20)).unwrap_or(usize::MAX);
    let mut decoder = png::Decoder::new_with_limits(Cursor::new(bytes), png::Limits { bytes: buffers });
    decoder.set_transformations(Transformations::IDENTITY);
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    let header = decoder.read_header_info().map_err(describe)?;
    check_dimensions(header.width, header.height, options)?;
    check_kind(header)?;
    let mut reader = decoder.read_info().map_err(describe)?;
    let size = reader.output_buffer_size().ok_or_else(too_large)?;
    let mut data = vec![0; size];
    reader.next_frame(&mut data).map_err(describe)?;

    let info = reader.info();
    let (width, height) = (info.width, info.height);
    let pixels = match info.color_type {
        ColorType::Rgb => RawPixels::Rgb(data),
        kind => {
            let ids = unpacked(data, width as usize, info.bit_depth as usize);
            let colors = info.palette.as_deref().filter(|_| kind == ColorType::Indexed);
            RawPixels::Ids { ids, palette: colors.map(|colors| colors.as_chunks::<3>().0.to_vec()) }
        }
    };
    Ok(RawMask { width, height, pixels })
}

/// Refuses kinds of pixels that are no class ids.
fn check_kind(header: &Info<'_>) -> Result<(), MaskProblem> {
    let (kind, alpha) = match header.color_type {
        ColorType::Grayscale => ("gray", false),
        ColorType::Rgb => ("RGB", false),
        ColorType::Indexed => ("palette", false),
        ColorType::GrayscaleAlpha => ("gray + alpha", true),
        ColorType::Rgba => ("RGBA", true),
    };
    match header.bit_depth {
        BitDepth::Sixteen => Err(MaskProblem::SixteenBit { kind }),
        _ if alpha => Err(MaskProblem::Alpha { kind }),
        _ => Ok(()),
    }
}

/// One byte per pixel from rows of 1, 2, 4 or 8 bits per pixel, the first pixel in the highest bits.
fn unpacked(data: Vec<u8>, width: usize, bits: usize) -> Vec<u8> {
    if bits == 8 {
        return data;
    }
    let (per_byte, mask) = (8 / bits, (1u8 << bits) - 1);
    let row_bytes = width.div_ceil(per_byte);
    let pixels = |row: &[u8]| -> Vec<u8> {
        let shifts = (0..per_byte).rev().map(|place| place * bits);
        let all = row.iter().flat_map(|&byte| shifts.clone().map(move |shift| (byte >> shift) & mask));
        all.take(width).collect()
    };
    data.chunks_exact(row_bytes).flat_map(pixels).collect()
}

/// The decoder's error as one of ours.
fn describe(error: DecodingError) -> MaskProblem {
    match error {
        DecodingError::IoError(error) if error.kind() == ErrorKind::UnexpectedEof => {
            DecodeError::Truncated { format: "PNG" }.into()
        }
        DecodingError::LimitsExceeded => too_large(),
        other => DecodeError::Invalid { reason: other.to_string() }.into(),
    }
}

fn too_large() -> MaskProblem {
    DecodeError::Invalid { reason: "it needs more memory than the pixel limit allows".into() }.into()
}
