//! Finished rows as NumPy's array file.

use std::io::Write;

use beit2_run::atomic::AtomicFile;

use super::finished::Finished;

/// Header and values.
pub fn write(rows: &Finished<'_>, writer: &mut AtomicFile) -> anyhow::Result<()> {
    writer.write_all(&header(rows.layout.element.numpy(), &rows.shape()))?;
    rows.write_values(writer)
}

/// Shape of all rows as Python writes a tuple; with one entry it ends in a comma.
fn tuple(shape: &[usize]) -> String {
    let entries: Vec<String> = shape.iter().map(usize::to_string).collect();
    match entries.as_slice() {
        [one] => format!("({one},)"),
        many => format!("({})", many.join(", ")),
    }
}

/// Version 1.0 of the format: a magic number, a length, a Python dictionary padded so that values start at a multiple of
/// 64 bytes.
fn header(descr: &str, shape: &[usize]) -> Vec<u8> {
    let shape = tuple(shape);
    let mut text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
    const BEFORE: usize = 10; // magic number, version, length
    let padded = (BEFORE + text.len() + 1).next_multiple_of(64) - BEFORE;
    text.extend(std::iter::repeat_n(' ', padded - text.len() - 1));
    text.push('\n');
    let length = (text.len() as u16).to_le_bytes();
    [b"\x93NUMPY\x01\x00".as_slice(), &length, text.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_aligned_and_say_the_shape() {
        for (shape, expected) in
            [(&[3][..], "(3,)"), (&[12, 768][..], "(12, 768)"), (&[1, 14, 14][..], "(1, 14, 14)")]
        {
            let header = header("<u2", shape);
            assert_eq!(header.len() % 64, 0);
            assert_eq!(u16::from_le_bytes([header[8], header[9]]) as usize, header.len() - 10);
            let text = String::from_utf8(header[10..].to_vec()).unwrap();
            assert!(
                text.contains(&format!("'<u2', 'fortran_order': False, 'shape': {expected}, }}")),
                "{text}"
            );
            assert!(text.ends_with('\n'));
        }
    }
}
