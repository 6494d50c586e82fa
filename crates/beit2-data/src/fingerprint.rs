//! FNV-1a: short, stable for ever, and good enough against accidental change (not against malice). What it gives is
//! recorded in files and seeds generators, so it must never change.

/// 64 bits of it.
pub fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// 128 bits of it, over the names, sizes and labels of samples.
pub(crate) struct Fingerprint(u128);

impl Fingerprint {
    pub(crate) fn new() -> Self {
        Self(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d)
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013B);
        }
    }

    /// One sample; lengths are hashed too, so that no two lists run into each other.
    pub(crate) fn sample(&mut self, name: &str, size: u64, label: Option<u32>) {
        self.bytes(&(name.len() as u64).to_le_bytes());
        self.bytes(name.as_bytes());
        self.bytes(&size.to_le_bytes());
        self.bytes(&label.map_or(u64::MAX, u64::from).to_le_bytes());
    }

    pub(crate) fn finish(self) -> String {
        format!("{:032x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_pinned() {
        // Test vectors of FNV-1a.
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
        let mut hash = Fingerprint::new();
        hash.bytes(b"a");
        assert_eq!(hash.finish(), "d228cb696f1a8caf78912b704e4a8964");
    }
}
