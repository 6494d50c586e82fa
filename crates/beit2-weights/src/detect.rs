//! Which format a file has, by its first bytes and never by its name.

use crate::checkpoint::Format;
use crate::error::WeightsError;
use crate::source::FileSource;

/// How the legacy format begins: a pickle of protocol 2 that holds torch's magic number 0x1950a86a20f9469cfc6c.
const LEGACY_MAGIC: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";

/// Other formats people have at hand, and what to say about them.
const OTHERS: &[(&[u8], &str)] = &[
    (b"\x1f\x8b", "a gzip archive"),
    (b"PK\x05\x06", "a zip archive without entries"),
    (b"\x89HDF", "an HDF5 file (Keras, TensorFlow)"),
    (b"GGUF", "a GGUF file (llama.cpp)"),
    (b"ggml", "a GGML file"),
    (b"RIFF", "an image, or a sound or a video"),
    (b"\x89PNG", "an image"),
    (b"\xff\xd8\xff", "an image"),
    (b"PAR1", "a Parquet file"),
    (b"Rar!", "a RAR archive"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ", "an xz archive"),
    (b"\x80", "a plain Python pickle, which torch.save does not write"),
    (b"{", "JSON text (name the folder, or the weights beside it)"),
];

/// Looks at the first bytes of `source`.
pub(crate) fn format(source: &FileSource) -> Result<Format, WeightsError> {
    let head = source.read(0, source.len().min(512), "its beginning")?;
    let path = || source.path().to_path_buf();
    if head.starts_with(b"PK\x03\x04") {
        return Ok(Format::TorchZip);
    }
    if head.starts_with(LEGACY_MAGIC) {
        return Ok(Format::TorchLegacy);
    }
    if head.starts_with(b"version https://git-lfs") {
        return Err(WeightsError::LfsPointer { path: path() });
    }
    if looks_like_html(&head) {
        return Err(WeightsError::Html { path: path() });
    }
    // Why also a header that does not fit: `{` in ninth place is no accident, and "cut short" says more than "unknown".
    if head.get(8) == Some(&b'{') {
        return Ok(Format::Safetensors);
    }
    if let Some((_, what)) = OTHERS.iter().find(|(magic, _)| head.starts_with(magic)) {
        return Err(WeightsError::NotWeights { path: path(), what });
    }
    if let Some(what) = by_ending(source.path(), &head) {
        return Err(WeightsError::NotWeights { path: path(), what });
    }
    let what = match head.get(257..262) {
        Some(b"ustar") => "a tar archive (torch before 0.1.10 wrote those; save it again with a newer torch)",
        _ if LEGACY_MAGIC.starts_with(&head) || b"PK\x03\x04".starts_with(&head) => {
            "cut short after its first bytes"
        }
        _ if is_image(&head) => "an image",
        // What people call a text: no control characters but white space.
        _ if head.iter().all(|&byte| byte >= 0x20 || byte.is_ascii_whitespace()) => {
            "a text of an unknown format"
        }
        _ => "of an unknown format",
    };
    Err(WeightsError::NotWeights { path: path(), what })
}

/// Formats without a signature of their own, which the name makes likely. Only for a message: nothing is read by its name.
fn by_ending(path: &std::path::Path, head: &[u8]) -> Option<&'static str> {
    let name = path.file_name()?.to_string_lossy().to_lowercase();
    let ends = |endings: &[&str]| endings.iter().any(|ending| name.ends_with(ending));
    // ONNX is a protobuf whose first field is a small version number.
    let protobuf = head.first() == Some(&0x08) || head.first() == Some(&0x0a);
    Some(match () {
        () if ends(&[".msgpack"]) => "a Flax file (msgpack)",
        () if ends(&[".onnx"]) || (protobuf && head.windows(7).any(|part| part == b"pytorch")) => {
            "an ONNX file"
        }
        () if ends(&[".pb"]) => "a TensorFlow graph",
        () if head.get(4..8) == Some(b"TFL3") => "a TensorFlow Lite file",
        () if name.contains(".ckpt") && ends(&[".index", ".meta"]) || name.contains(".data-0") => {
            "a part of a TensorFlow checkpoint"
        }
        () if ends(&[".mlmodel"]) => "a Core ML file",
        () => return None,
    })
}

/// Images without a long signature.
fn is_image(head: &[u8]) -> bool {
    let pnm = matches!(head, [b'P', b'1'..=b'7', space, ..] if space.is_ascii_whitespace());
    pnm || [&b"GIF8"[..], b"II*\0", b"MM\0*"].iter().any(|magic| head.starts_with(magic))
        || head.starts_with(b"BM") && head.get(6..10) == Some(&[0; 4])
}

/// HTML and XML (cloud storage sends its errors as XML), after a byte-order mark and white space.
fn looks_like_html(head: &[u8]) -> bool {
    let head = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).trim_ascii_start();
    let lower: Vec<u8> = head.iter().take(5).map(u8::to_ascii_lowercase).collect();
    [&b"<!doc"[..], b"<html", b"<head", b"<?xml", b"<body", b"<!--"].iter().any(|tag| lower.starts_with(tag))
}
