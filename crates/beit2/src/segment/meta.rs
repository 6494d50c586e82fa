//! Class names and colours that mmsegmentation writes into a checkpoint's `meta`, from the text that the weights
//! crate makes of them (as Python prints lists).

/// The texts of a list or tuple such as `('wall', 'it\'s')`; `None` for anything else.
pub(super) fn texts(list: &str) -> Option<Vec<String>> {
    let inside = list.strip_prefix(['(', '['])?.strip_suffix([')', ']'])?;
    let mut texts = Vec::new();
    let mut chars = inside.chars().peekable();
    while chars.peek().is_some() {
        let mut text = String::new();
        if chars.next()? != '\'' {
            return None;
        }
        loop {
            match chars.next()? {
                '\'' => break,
                '\\' => text.push(match chars.next()? {
                    'n' => '\n',
                    other => other,
                }),
                other => text.push(other),
            }
        }
        texts.push(text);
        while chars.next_if(|c| *c == ',' || *c == ' ').is_some() {}
    }
    Some(texts)
}

/// The colours of a list of lists such as `[[120, 120, 120], [180, 120, 120]]`; `None` for anything else.
pub(super) fn colours(list: &str) -> Option<Vec<[u8; 3]>> {
    let value: Vec<Vec<u8>> = serde_json::from_str(&list.replace('(', "[").replace(')', "]")).ok()?;
    value.into_iter().map(|colour| <[u8; 3]>::try_from(colour).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_python_prints() {
        assert_eq!(texts(r"('wall', 'it\'s, so', 'a\\b')").unwrap(), ["wall", "it's, so", r"a\b"]);
        assert_eq!(texts("['one']").unwrap(), ["one"]);
        assert_eq!(texts("('one',)").unwrap(), ["one"]);
        assert_eq!(texts("[]").unwrap(), [""; 0]);
        for odd in ["", "None", "(1, 2)", "('open", "('open)", "['a' 3]"] {
            assert_eq!(texts(odd), None, "{odd}");
        }
        assert_eq!(colours("[[120, 0, 255], (1, 2, 3)]").unwrap(), [[120, 0, 255], [1, 2, 3]]);
        for odd in ["", "None", "[[1, 2]]", "[[1, 2, 300]]", "[[1, 2, 3"] {
            assert_eq!(colours(odd), None, "{odd}");
        }
    }
}
