//! What a file is: an image, a shard, or something else, by its name and its first bytes.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::account::{Account, SkipReason};
use super::name::text_of;

/// File name endings of images, lower case. Files with them are taken for images without a look; whether they are is
/// found out when they are decoded. Of other files the first bytes decide.
pub const IMAGE_EXTENSIONS: [&str; 14] =
    ["jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm", "pbm", "pnm"];

/// First bytes that tell a file's kind: the mark of a tar file stands at 257.
pub(crate) const START: usize = 512;

/// Endings of files that begin like TIFF but are raw data of cameras or slides of gigabytes, whose first image is a
/// thumbnail or far too large; and of files that are not complete.
const NEVER: [&str; 23] = [
    "dng",
    "nef",
    "nrw",
    "cr2",
    "arw",
    "sr2",
    "srf",
    "orf",
    "pef",
    "srw",
    "3fr",
    "iiq",
    "erf",
    "mef",
    "mos",
    "rw2",
    "svs",
    "ndpi",
    "scn",
    "part",
    "partial",
    "crdownload",
    "download",
];

/// Endings of images that cannot be decoded.
const FOREIGN: [&str; 30] = [
    "heic", "heif", "hif", "avif", "jp2", "j2k", "jpf", "jpx", "jpc", "jxl", "jxr", "tga", "psd", "exr",
    "hdr", "svg", "ico", "eps", "pcx", "dds", "xcf", "ai", "dng", "nef", "cr2", "cr3", "arw", "orf", "raf",
    "rw2",
];

/// Endings of archives that are read only when they are unpacked.
const PACKED: [&str; 13] =
    ["zip", "gz", "tgz", "xz", "txz", "zst", "bz2", "tbz2", "tbz", "lz4", "7z", "rar", "tar.gz"];

/// Names, in lower case, of what systems and programs keep for themselves beside a user's files.
const SYSTEM: [&str; 24] = [
    "__macosx",
    "lost+found",
    "$recycle.bin",
    "recycler",
    "system volume information",
    "@eadir",
    "@recycle",
    "@recently-snapshot",
    "@tmp",
    "#recycle",
    "#snapshot",
    "~snapshot",
    "found.000",
    "network trash folder",
    "temporary items",
    "__pycache__",
    "thumbs.db",
    "ehthumbs.db",
    "ehthumbs_vista.db",
    "thumbs.db:encryptable",
    "desktop.ini",
    "icon\r",
    "paxheaders",
    "ntuser.dat",
];

/// Whether a name belongs to a system or a program: hidden files, their folders, backups of editors.
pub(crate) fn is_system(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    name.starts_with('.')
        || name.ends_with('~')
        || lower.starts_with("paxheaders.")
        || lower.ends_with(":zone.identifier") // where Windows keeps where a file came from, on Linux inside of it
        || SYSTEM.contains(&lower.as_str())
}

/// Whether the name ends like an image's.
pub(crate) fn is_image_name(path: &Path) -> bool {
    has_extension(path, &IMAGE_EXTENSIONS)
}

pub(crate) fn has_extension(path: &Path, wanted: &[&str]) -> bool {
    let extension = path.extension().and_then(|e| e.to_str());
    extension.is_some_and(|e| wanted.iter().any(|w| e.eq_ignore_ascii_case(w)))
}

/// Whether a file with another ending than an image's is one, by its first bytes ([`START`]).
pub(crate) fn is_image(name: &Path, start: &[u8]) -> bool {
    if has_extension(name, &NEVER) {
        return false;
    }
    match start {
        // Two letters are too little: text may begin with them. The header behind those of a BMP has one of few sizes.
        [b'B', b'M', ..] => start
            .get(14..18)
            .is_some_and(|size| matches!(size, [12 | 16 | 40 | 52 | 56 | 64 | 108 | 124, 0, 0, 0])),
        [b'P', b'1'..=b'7', rest @ ..] => is_pnm(rest),
        _ => crate::decode::is_readable(start),
    }
}

/// Whether width and height follow the first two bytes of a PNM file, with comments in between.
fn is_pnm(rest: &[u8]) -> bool {
    if !rest.first().is_some_and(u8::is_ascii_whitespace) {
        return false;
    }
    let lines =
        rest.split(|&byte| byte == b'\n').map(|line| line.split(|&byte| byte == b'#').next().unwrap_or(line));
    let mut words =
        lines.flat_map(|line| line.split(u8::is_ascii_whitespace)).filter(|word| !word.is_empty());
    match (words.next(), words.next()) {
        (Some(b"WIDTH"), _) => true,
        (Some(width), Some(height)) => width.iter().chain(height).all(u8::is_ascii_digit),
        _ => false,
    }
}

/// Whether a file is a tar file by its first bytes.
pub(crate) fn is_tar(start: &[u8]) -> bool {
    start.get(257..262) == Some(b"ustar")
}

/// Whether a file is compressed by its first bytes.
pub(crate) fn is_packed(start: &[u8]) -> bool {
    const MARKS: [&[u8]; 7] =
        [b"\x1F\x8B", b"\xFD7zXZ", b"\x28\xB5\x2F\xFD", b"BZh", b"7z\xBC\xAF", b"Rar!", b"PK\x03\x04"];
    MARKS.iter().any(|mark| start.starts_with(mark))
}

/// The first bytes of a file, at most [`START`].
pub(crate) fn start_of(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut start = Vec::with_capacity(START);
    File::open(path)?.take(START as u64).read_to_end(&mut start)?;
    Ok(start)
}

/// What a file is.
pub(crate) enum Kind {
    Image,
    /// A tar file that is not compressed.
    Shard,
    Other(SkipReason),
}

impl Kind {
    /// Of a file on disk; its first bytes are read only if its ending is not an image's.
    pub(crate) fn of(path: &Path) -> Self {
        if is_image_name(path) {
            return Self::Image;
        }
        if has_extension(path, &["tar"]) {
            return Self::Shard;
        }
        match start_of(path) {
            Ok(start) if is_image(path, &start) => Self::Image,
            Ok(start) if is_tar(&start) => Self::Shard,
            Ok(_) => Self::Other(SkipReason::Kind(ending(path))),
            Err(_) => Self::Other(SkipReason::Unreadable),
        }
    }
}

/// `.heic`, `.tar.gz`, `no ending`: how a file that is left out is counted.
pub(crate) fn ending(path: &Path) -> String {
    const NONE: &str = "no ending";
    // An ending is short and has a letter; `IMG_2023.0001` has none, or each file would be a kind of its own.
    let is_ending = |text: &str| {
        (1..=12).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_+".contains(&byte))
            && text.bytes().any(|byte| byte.is_ascii_alphabetic())
    };
    let name = text_of(path.file_name().unwrap_or_default().as_encoded_bytes()).to_ascii_lowercase();
    match name.rsplit_once('.') {
        Some((stem, last)) if !stem.is_empty() && is_ending(last) => match stem.ends_with(".tar") {
            true => format!(".tar.{last}"),
            false => format!(".{last}"),
        },
        _ => NONE.into(),
    }
}

/// Whether a reason says that images were left out, and not just other files.
pub(crate) fn hides_images(reason: &SkipReason) -> bool {
    match reason {
        SkipReason::Kind(kind) => FOREIGN.contains(&kind.trim_start_matches('.')),
        SkipReason::DanglingLink | SkipReason::Unreadable | SkipReason::Sparse => true,
        _ => false,
    }
}

/// Behind "no images in it": what was found instead, and what to do about it.
pub(crate) fn instead(account: &Account) -> String {
    const READ: &str = "JPEG, PNG, WebP, GIF, BMP, TIFF and PNM are read, whatever the files' endings";
    if account.skipped.is_empty() {
        return format!("; it is empty ({READ})");
    }
    let kinds: Vec<&str> = account
        .skipped
        .keys()
        .filter_map(|reason| match reason {
            SkipReason::Kind(kind) => Some(kind.trim_start_matches('.')),
            _ => None,
        })
        .collect();
    let any = |known: &[&str]| kinds.iter().any(|kind| known.contains(kind) || kind.starts_with("tar."));
    let has = |known: &[&str]| kinds.iter().any(|kind| known.contains(kind));
    let advice = if has(&FOREIGN) {
        "convert the images to PNG or JPEG"
    } else if has(&["safetensors", "pth", "pt", "ckpt", "bin"]) {
        "these are weights; give a folder of images here"
    } else if any(&PACKED) {
        "give a .tar.gz or .zip archive itself instead of its folder, and unpack others"
    } else if has(&["mp4", "avi", "mov", "mkv", "webm"]) {
        "extract frames from the videos"
    } else if has(&["tar"]) {
        "give the folder that the .tar shards lie in"
    } else if has(&["parquet", "csv", "tsv", "jsonl"]) {
        "give the table itself instead of its folder"
    } else {
        READ
    };
    format!(", only {}; {advice}", account.left_out())
}

/// What a single file is that is neither an image nor a shard, and what to do about it.
pub(crate) fn describe(path: &Path, start: &[u8]) -> String {
    let ending = ending(path);
    let foreign = |what: &str| format!("{what} cannot be decoded; convert it to PNG or JPEG");
    let packed = |what: &str, how: &str| {
        format!(
            "it is compressed with {what}, which cannot be read at random positions; unpack it first ({how})"
        )
    };
    let weights = "it is a weight file, and images were expected here";
    let heif = |brand: &[u8]| matches!(brand, b"heic" | b"heix" | b"mif1" | b"msf1" | b"hevc" | b"heim");
    match start {
        [] => "the file is empty; an image or a .tar shard was expected".into(),
        [0x1F, 0x8B, ..] => packed("gzip", "gunzip, or tar -xzf for an archive"),
        [0xFD, b'7', b'z', b'X', b'Z', ..] => packed("xz", "unxz"),
        [0x28, 0xB5, 0x2F, 0xFD, ..] => packed("Zstandard", "unzstd"),
        [b'B', b'Z', b'h', ..] => packed("bzip2", "bunzip2"),
        [b'7', b'z', 0xBC, 0xAF, ..] => packed("7-Zip", "7z x"),
        [b'R', b'a', b'r', b'!', ..] => packed("RAR", "unrar x"),
        [b'P', b'K', 3, 4, ..] => match ending.as_str() {
            ".pth" | ".pt" | ".bin" | ".ckpt" => weights.into(),
            ".npz" => {
                "it is an archive of NumPy arrays; save the images as PNG files or give a folder".into()
            }
            _ => packed("zip", "unzip"),
        },
        [b'P', b'A', b'R', b'1', ..] => "it is a parquet file; its name must end in .parquet".into(),
        [0x93, b'N', b'U', b'M', b'P', b'Y', ..] => {
            "it is a NumPy array; save the images as PNG files or give a folder".into()
        }
        [0x89, b'H', b'D', b'F', ..] => "it is an HDF5 file; save the images as PNG files".into(),
        [b'%', b'P', b'D', b'F', ..] => foreign("a PDF"),
        [_, _, _, _, b'f', b't', b'y', b'p', brand @ ..] => match brand.get(..4) {
            Some(brand) if heif(brand) => foreign("a HEIC image"),
            Some(b"avif" | b"avis") => foreign("an AVIF image"),
            _ => "it is a video; extract its frames first".into(),
        },
        [0, 0, 0, 12, b'j', b'P', b' ', b' ', ..] | [0xFF, 0x4F, 0xFF, 0x51, ..] => {
            foreign("a JPEG 2000 image")
        }
        [0, 0, 0, 12, b'J', b'X', b'L', ..] | [0xFF, 0x0A, ..] => foreign("a JPEG XL image"),
        [b'8', b'B', b'P', b'S', ..] => foreign("a Photoshop file"),
        [_, _, _, _, _, 0, 0, 0, b'{', ..] => weights.into(),
        [0x80, 2..=5, ..] if matches!(ending.as_str(), ".pth" | ".pt" | ".bin" | ".ckpt") => weights.into(),
        [0x80, 2..=5, ..] => "it is a Python pickle, which is not read; save the images as PNG files".into(),
        _ if matches!(ending.as_str(), ".safetensors" | ".pth" | ".pt" | ".ckpt") => weights.into(),
        _ if hides_images(&SkipReason::Kind(ending.clone())) => foreign(&format!("a {ending} file")),
        _ if start.iter().all(|&byte| byte >= 0x20 || byte.is_ascii_whitespace()) => {
            "it is a text file; a list of images must end in .csv, .tsv or .jsonl".into()
        }
        _ => "the content is no image that can be read and no .tar file".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_that_begins_like_an_image_is_none() {
        let is = |start: &[u8]| is_image(Path::new("x.txt"), start);
        assert!(!is(b"BMW cars, a list of them") && !is(b"P5 is a format") && !is(b"P6") && !is(b""));
        assert!(
            is(b"P6 40 30 255\n...") && is(b"P5\n# made by\n2 2 255\n....") && is(b"\xFF\xD8\xFF\xE0..JFIF")
        );
        let mut bmp = b"BM\0\0\0\0\0\0\0\0\x36\0\0\0".to_vec();
        bmp.extend([40, 0, 0, 0, 1, 0]);
        assert!(is(&bmp) && is(b"II*\0\x08\0\0\0"));
        assert!(!is_image(Path::new("x.NEF"), b"II*\0\x08\0\0\0"), "its first image is a thumbnail");
    }

    #[test]
    fn endings() {
        let check = |name: &str, expected: &str| assert_eq!(ending(Path::new(name)), expected, "{name}");
        check("a.HEIC", ".heic");
        check("a.tar.gz", ".tar.gz");
        check("IMG_2023.0001", "no ending");
        check("README", "no ending");
        check("scan 1.of two parts", "no ending");
    }

    #[test]
    fn names_of_systems() {
        for name in
            ["__MACOSX", "LOST+FOUND", "$Recycle.Bin", "@eaDir", ".ipynb_checkpoints", "Thumbs.db", "._a.jpg"]
        {
            assert!(is_system(name), "{name}");
        }
        assert!(!is_system("cat") && !is_system("macosx") && !is_system("a.jpg"));
    }
}
