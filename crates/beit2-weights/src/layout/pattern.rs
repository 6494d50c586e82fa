//! The little language in which the tables of [`super::tables`] write names.
//!
//! `{n}` is a decimal number (a layer), `{p}` is `weight` or `bias`, `{s}` one segment without a dot, and `{*}` at the end
//! any rest. Everything else stands for itself. One name means the same captures on both sides of a rule, in order.

/// Layer numbers have at most this many digits: no model has more layers, and a count made from a name must not overflow.
const MAX_DIGITS: usize = 5;

/// The texts that the placeholders of `pattern` stand for in `name`, or `None` when it does not match.
pub(crate) fn captures<'a>(pattern: &str, name: &'a str) -> Option<Vec<&'a str>> {
    let mut found = Vec::new();
    let (mut pattern, mut name) = (pattern, name);
    loop {
        let Some(open) = pattern.find('{') else {
            return (pattern == name).then_some(found);
        };
        name = name.strip_prefix(&pattern[..open])?;
        let (hole, rest) = pattern[open..].split_at(3);
        let len = match hole {
            "{n}" => number_len(name)?,
            "{p}" => ["weight", "bias"].iter().find(|word| name.starts_with(**word))?.len(),
            "{s}" => name.find('.').unwrap_or(name.len()),
            _ => name.len(),
        };
        if len == 0 {
            return None;
        }
        found.push(&name[..len]);
        (pattern, name) = (rest, &name[len..]);
    }
}

/// `pattern` with its placeholders filled in order; missing ones stay as they are.
pub(crate) fn fill(pattern: &str, captures: &[&str]) -> String {
    let mut out = String::with_capacity(pattern.len() + 8);
    let mut rest = pattern;
    for capture in captures {
        let Some(open) = rest.find('{') else { break };
        out.push_str(&rest[..open]);
        out.push_str(capture);
        rest = &rest[open + 3..];
    }
    out + rest
}

/// Digits at the start of `name`, without leading zeros.
fn number_len(name: &str) -> Option<usize> {
    let len = name.bytes().take_while(u8::is_ascii_digit).count();
    ((1..=MAX_DIGITS).contains(&len) && (len == 1 || !name.starts_with('0'))).then_some(len)
}

/// How many single-character changes lie between two names (Levenshtein), for "the nearest known name".
pub(crate) fn distance(a: &str, b: &str) -> usize {
    // Why a limit: names may be megabytes long, and no suggestion helps then.
    const LONGEST: usize = 200;
    if a.len() > LONGEST || b.len() > LONGEST {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let change = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// A name with its numbers replaced by `*`, so that the layers of a model become one line.
pub(crate) fn without_numbers(name: &str) -> String {
    let segments =
        name.split('.').map(|segment| if number_len(segment) == Some(segment.len()) { "*" } else { segment });
    segments.collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_names() {
        assert_eq!(captures("blocks.{n}.norm1.{p}", "blocks.11.norm1.bias"), Some(vec!["11", "bias"]));
        assert_eq!(captures("teacher_model.{*}", "teacher_model.a.b"), Some(vec!["a.b"]));
        assert_eq!(captures("psp.{n}.{s}.x", "psp.3.bn.x"), Some(vec!["3", "bn"]));
        for (pattern, name) in [
            ("blocks.{n}.norm1.{p}", "blocks.01.norm1.bias"),
            ("blocks.{n}.norm1.{p}", "blocks..norm1.bias"),
            ("blocks.{n}.norm1.{p}", "blocks.999999.norm1.bias"),
            ("blocks.{n}.norm1.{p}", "blocks.1.norm1.biased"),
            ("teacher_model.{*}", "teacher_model."),
            ("cls_token", "cls_token2"),
        ] {
            assert_eq!(captures(pattern, name), None, "{name}");
        }
    }

    #[test]
    fn filling_is_the_inverse_of_capturing() {
        let name = "encoder.blocks.7.norm1.weight";
        let pattern = "encoder.blocks.{n}.norm1.{p}";
        assert_eq!(fill(pattern, &captures(pattern, name).unwrap_or_default()), name);
        assert_eq!(fill("a.{n}", &[]), "a.{n}");
    }

    #[test]
    fn distances_and_summaries() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance(&"x".repeat(300), "x"), usize::MAX);
        assert_eq!(without_numbers("blocks.10.mlp.fc1.weight"), "blocks.*.mlp.fc1.weight");
    }
}
