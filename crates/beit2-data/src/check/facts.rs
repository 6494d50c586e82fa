pub use crate::decode::Limits as DecodeOptions;
use crate::decode::decode;
pub(super) struct Facts {
    pub(super) format: &'static str,
    pub(super) channels: usize,
    pub(super) bits: u32,
    pub(super) orientation: u8,
}
pub(super) fn decode_with_facts(
    bytes: &[u8],
    options: &DecodeOptions,
) -> Result<(crate::Image, Facts), crate::DecodeError> {
    Ok((decode(bytes, options)?, Facts { format: "?", channels: 3, bits: 8, orientation: 1 }))
}
