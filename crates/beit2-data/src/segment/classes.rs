//! Class names and colours: the lists that lie beside images and masks, and the colours of classes
//! that have none.

use std::path::Path;

use serde::Deserialize;

use crate::segment::error::SegmentDataError;

/// Largest class list that is read, in bytes.
const MAX_LIST_BYTES: u64 = 1 << 20;

/// The entry of a list that names the colour of pixels without a label. It is not a class.
const IGNORE_NAME: &str = "ignore";

/// The classes of a data set, in the order of their numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ClassList {
    pub(super) names: Vec<String>,
    /// A colour for each class; `None` when the list has none.
    pub(super) colors: Option<Vec<[u8; 3]>>,
    /// Colour of pixels without a label.
    pub(super) ignore_color: Option<[u8; 3]>,
}

/// One entry of a list.
struct Entry {
    /// Number of the line, from 1; `None` in JSON.
    line: Option<usize>,
    name: String,
    color: Option<[u8; 3]>,
}

/// Reads a list by its ending: `.json`, ADE20K's `objectInfo150.txt`, or lines of text.
pub(super) fn read_list(path: &Path) -> Result<ClassList, SegmentDataError> {
    let fail =
        |line, problem| SegmentDataError::ClassList { path: path.display().to_string(), line, problem };
    let whole = |problem| fail(None, problem);
    let meta = std::fs::metadata(path).map_err(|error| whole(format!("cannot read it: {error}")))?;
    if meta.len() > MAX_LIST_BYTES {
        return Err(whole(format!("{} bytes are too many for a class list", meta.len())));
    }
    let bytes = std::fs::read(path).map_err(|error| whole(format!("cannot read it: {error}")))?;
    let text = String::from_utf8(bytes).map_err(|_| whole("it is not UTF-8 text".into()))?;
    let text = text.trim_start_matches('\u{FEFF}');
    if is_object_info(text) {
        return object_info(text).map_err(|(line, problem)| fail(Some(line), problem));
    }
    let entries = if path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("json")) {
        from_json(text).map_err(whole)?
    } else {
        from_lines(text).map_err(|(line, problem)| fail(Some(line), problem))?
    };
    from_entries(entries).map_err(|(line, problem)| fail(line, problem))
}

/// `name`, or `name<TAB>color`, or `name, color`; empty lines do not count.
fn from_lines(text: &str) -> Result<Vec<Entry>, (usize, String)> {
    let lines = text.lines().enumerate().map(|(at, line)| (at + 1, line.trim()));
    lines
        .filter(|(_, line)| !line.is_empty())
        .map(|(number, line)| {
            let (name, color) = name_and_color(line).map_err(|problem| (number, problem))?;
            Ok(Entry { line: Some(number), name: name.into(), color })
        })
        .collect()
}

fn name_and_color(line: &str) -> Result<(&str, Option<[u8; 3]>), String> {
    const WANTED: &str = "#rrggbb or three numbers from 0 to 255 with spaces between them";
    if let Some((name, color)) = line.split_once('\t') {
        let color = color.trim();
        let parsed =
            parse_color(color).ok_or_else(|| format!("'{color}' is not a colour; write {WANTED}"))?;
        return Ok((name.trim(), Some(parsed)));
    }
    // Names may hold commas ("building, edifice"), so what follows one need not be a colour.
    if let Some((name, color)) = line.rsplit_once(',') {
        let color = color.trim();
        if let Some(parsed) = parse_color(color) {
            return Ok((name.trim(), Some(parsed)));
        }
        if color.starts_with('#') || color.parse::<f64>().is_ok() {
            return Err(format!("'{color}' is not a colour; write {WANTED}"));
        }
    }
    if parse_color(line).is_some() {
        return Err("there is a colour but no name in front of it".into());
    }
    Ok((line, None))
}

/// `#rrggbb` or `r g b`.
fn parse_color(text: &str) -> Option<[u8; 3]> {
    if let Some(digits) = text.strip_prefix('#') {
        let all_hex = digits.len() == 6 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        let [_, r, g, b] = u32::from_str_radix(digits, 16).ok().filter(|_| all_hex)?.to_be_bytes();
        return Some([r, g, b]);
    }
    let parts: Vec<u8> = text.split_whitespace().map(|part| part.parse().ok()).collect::<Option<_>>()?;
    parts.try_into().ok()
}

#[derive(Deserialize)]
#[serde(untagged)]
enum JsonEntry {
    Name(String),
    Colored { name: String, color: JsonColor },
}

#[derive(Deserialize)]
#[serde(untagged)]
enum JsonColor {
    Text(String),
    Rgb([u8; 3]),
}

/// An array of names, or of `{"name": …, "color": "#rrggbb"}`.
fn from_json(text: &str) -> Result<Vec<Entry>, String> {
    let wanted = r##"expected an array of names, or of objects such as {"name": "car", "color": "#00008e"}"##;
    let entries: Vec<JsonEntry> =
        serde_json::from_str(text).map_err(|error| format!("{wanted}, found something else ({error})"))?;
    let read = |entry| {
        let (name, color) = match entry {
            JsonEntry::Name(name) => (name, None),
            JsonEntry::Colored { name, color: JsonColor::Rgb(color) } => (name, Some(color)),
            JsonEntry::Colored { name, color: JsonColor::Text(color) } => {
                let parsed =
                    parse_color(&color).ok_or_else(|| format!("'{color}' is not a colour; {wanted}"))?;
                (name, Some(parsed))
            }
        };
        Ok(Entry { line: None, name: name.trim().to_owned(), color })
    };
    entries.into_iter().map(read).collect()
}

/// Checks that names and colours tell classes apart, and takes [`IGNORE_NAME`] out.
fn from_entries(entries: Vec<Entry>) -> Result<ClassList, (Option<usize>, String)> {
    let mut list = ClassList::default();
    let mut colors = Vec::new();
    let colored = entries.iter().any(|entry| entry.color.is_some());
    for Entry { line, name, color } in entries {
        let bad = |problem: String| Err((line, problem));
        if name.is_empty() {
            return bad("the class has no name".into());
        }
        if list.names.contains(&name) {
            return bad(format!("the class '{name}' is there twice"));
        }
        match color {
            None if name == IGNORE_NAME => {
                return bad(format!(
                    "'{IGNORE_NAME}' is not a class: it names the colour of pixels without a label and needs one"
                ));
            }
            None if colored => return bad(format!("'{name}' has no colour, but other classes have one")),
            Some(color) if colors.contains(&color) || list.ignore_color == Some(color) => {
                return bad(format!("the colour {} of '{name}' is there twice", hex(color)));
            }
            Some(color) if name == IGNORE_NAME && list.ignore_color.is_some() => {
                return bad(format!("'{IGNORE_NAME}' is there twice, here with {}", hex(color)));
            }
            Some(color) if name == IGNORE_NAME => {
                list.ignore_color = Some(color);
                continue;
            }
            color => colors.extend(color),
        }
        list.names.push(name);
    }
    if list.names.is_empty() {
        return Err((None, "it lists no class; one class a line was expected".into()));
    }
    list.colors = colored.then_some(colors);
    Ok(list)
}

/// Whether a text is ADE20K's table of its 150 classes.
fn is_object_info(text: &str) -> bool {
    text.lines()
        .next()
        .is_some_and(|first| first.starts_with("Idx\t") && first.trim_end().ends_with("\tName"))
}

/// Lines of tab-separated columns, number first, names last. A class is called by the first of its
/// names, or by all of them when an earlier class is called like that.
fn object_info(text: &str) -> Result<ClassList, (usize, String)> {
    let mut list = ClassList::default();
    let lines = text.lines().enumerate().skip(1).map(|(at, line)| (at + 1, line.trim()));
    for (number, line) in lines.filter(|(_, line)| !line.is_empty()) {
        let mut columns = line.split('\t');
        let id = columns.next().and_then(|id| id.trim().parse::<usize>().ok());
        let (Some(id), Some(names)) =
            (id, columns.next_back().map(str::trim).filter(|name| !name.is_empty()))
        else {
            return Err((
                number,
                "a class number, columns and a name, with tabs between them, were expected".into(),
            ));
        };
        if id != list.names.len() + 1 {
            let expected = list.names.len() + 1;
            return Err((number, format!("class number {id} comes where {expected} was expected")));
        }
        let first = names.split([',', ';']).next().map_or(names, str::trim).to_owned();
        let taken = list.names.contains(&first);
        list.names.push(if taken { names.to_owned() } else { first });
    }
    if list.names.is_empty() {
        return Err((1, "the table has no classes".into()));
    }
    Ok(list)
}

/// The colour that is drawn for a class whose class list names none: light enough to be seen on a dark image, never
/// black (which reads as "nothing here"), and another one for each of 255 classes.
///
/// Neighbours differ most, as their hues are a golden section of the circle apart.
pub fn class_color(class: u8) -> [u8; 3] {
    const GOLDEN: f64 = 0.618_033_988_749_894_9;
    let class = usize::from(class);
    let hue = 6.0 * (0.58 + class as f64 * GOLDEN).fract();
    // Hues come close again after some classes; by then another brightness tells them apart.
    let value = [1.0, 0.78, 0.9][class % 3];
    let saturation = [0.72, 0.95, 0.5][class / 3 % 3];
    let channel = |offset: f64| {
        let at = (offset + hue) % 6.0;
        let share = at.min(4.0 - at).clamp(0.0, 1.0);
        (255.0 * value * (1.0 - saturation * share)).round() as u8
    };
    [5.0, 3.0, 1.0].map(channel)
}

/// `#rrggbb`.
pub(super) fn hex([r, g, b]: [u8; 3]) -> String {
    format!("#{r:02x}{g:02x}{b:02x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, text: impl AsRef<[u8]>) -> Result<ClassList, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        read_list(&path).map_err(|error| {
            let sentence = error.to_string();
            sentence.rsplit_once(name).map_or(sentence.clone(), |(_, rest)| rest.to_owned())
        })
    }

    #[test]
    fn names_alone() {
        let list = read("classes.txt", "wall\n\nbuilding, edifice\r\n  sky \n").unwrap();
        assert_eq!(list.names, ["wall", "building, edifice", "sky"]);
        assert_eq!((list.colors, list.ignore_color), (None, None));
    }

    #[test]
    fn colours_in_both_forms() {
        let expected = ClassList {
            names: vec!["road".into(), "car, small".into()],
            colors: Some(vec![[128, 64, 128], [0, 0, 142]]),
            ignore_color: Some([224, 224, 192]),
        };
        let text = "road\t#804080\ncar, small, 0 0 142\nignore,#E0E0C0";
        assert_eq!(read("classes.txt", text).unwrap(), expected);
        let json = r##"[{"name": "road", "color": "#804080"}, {"name": "car, small", "color": [0, 0, 142]},
            {"name": "ignore", "color": [224, 224, 192]}]"##;
        assert_eq!(read("classes.json", json).unwrap(), expected);
        assert_eq!(read("classes.json", r#"["a", "b"]"#).unwrap().names, ["a", "b"]);
    }

    #[test]
    fn mistakes_are_named() {
        let sentence = |text: &str| read("classes.txt", text).unwrap_err();
        assert_eq!(sentence("a\nb\na"), ", line 3: the class 'a' is there twice");
        assert_eq!(sentence("a,#010203\nb"), ", line 2: 'b' has no colour, but other classes have one");
        assert_eq!(sentence("a,#010203\nb\t1 2 3"), ", line 2: the colour #010203 of 'b' is there twice");
        assert!(
            sentence("a\tred").starts_with(", line 1: 'red' is not a colour; write #rrggbb or three numbers")
        );
        assert!(sentence("a,0,0,142").starts_with(", line 1: '142' is not a colour"));
        assert!(sentence("a,#12345").contains("'#12345' is not a colour"));
        assert!(sentence("a\t1 2 300").contains("'1 2 300' is not a colour"));
        assert!(sentence("ignore").contains("'ignore' is not a class"));
        assert!(
            sentence("ignore,#010203\na,#010203")
                .contains("line 2: the colour #010203 of 'a' is there twice")
        );
        assert!(sentence("\t#010203").contains("no name in front of it"));
        assert!(sentence(" ,#010203").contains("no name"));
        assert!(sentence("\n").contains("lists no class"));
        let sentence = |text: &str| read("classes.json", text).unwrap_err();
        assert!(sentence("{}").contains("expected an array of names"));
        assert!(sentence("[3]").contains("expected an array of names"));
        assert!(sentence(r#"[{"name": "a", "color": "red"}]"#).contains("'red' is not a colour"));
        assert!(read("classes.txt", [0xFF, 0xFE, b'a']).unwrap_err().contains("not UTF-8"));
        assert!(read("classes.txt", vec![b'a'; 2 << 20]).unwrap_err().contains("too many for a class list"));
    }

    #[test]
    fn table_of_ade20k() {
        let text = "Idx\tRatio\tTrain\tVal\tStuff\tName\n1\t0.15\t11664\t1172\t1\twall\n\
            2\t0.1\t6046\t612\t1\tbuilding, edifice\n3\t0.1\t1\t1\t0\twall;brick wall\n";
        let list = read("objectInfo150.txt", text).unwrap();
        assert_eq!(list.names, ["wall", "building", "wall;brick wall"]);
        let skipped = text.replace("\n2\t", "\n5\t");
        assert_eq!(
            read("objectInfo150.txt", skipped).unwrap_err(),
            ", line 3: class number 5 comes where 2 was expected"
        );
        assert!(read("objectInfo150.txt", "Idx\tName\nwall").unwrap_err().contains("line 2"));
    }

    #[test]
    fn colours_of_classes_are_seen_and_told_apart() {
        let colors: Vec<[u8; 3]> = (0..255).map(class_color).collect();
        for (class, [r, g, b]) in colors.iter().copied().enumerate() {
            assert!(r.max(g).max(b) >= 190, "class {class} is too dark: {}", hex([r, g, b]));
        }
        let apart =
            |a: [u8; 3], b: [u8; 3]| a.iter().zip(b).map(|(a, b)| u32::from(a.abs_diff(b))).sum::<u32>();
        for (at, &one) in colors.iter().enumerate() {
            let near = colors[..at].iter().map(|&other| apart(one, other)).min();
            let enough = if at < 21 { 40 } else { 1 };
            assert!(
                near.is_none_or(|near| near >= enough),
                "class {at} is {}, {near:?} from another",
                hex(one)
            );
        }
    }
}
