//! What a user types for a source: paths, and what cannot be told from them.

use std::path::Path;

use crate::error::SourceError;

/// What stands between several sources.
pub const AND: &str = " + ";

/// Keys that may follow a path.
const KEYS: &str = "weight, image, label, separator, root and bands";

/// A source as it is typed: `PATH` or `PATH:key=value,key=value`.
///
/// A path that exists as it stands is never taken apart.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Spec {
    /// Folder, file or pattern.
    pub path: String,
    /// How often each image comes in an epoch, on average (`weight=2`, `weight=0.5`); absent: once.
    pub weight: Option<f64>,
    /// What is in a table's columns.
    pub columns: Columns,
}

/// Columns of a table; absent: they are found by their usual names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Columns {
    /// The images (`image=NAME`): encoded bytes in parquet files, paths elsewhere.
    pub image: Option<String>,
    /// The labels (`label=NAME`), or one 0/1 column for each class (`label=A+B+C`).
    pub label: Option<String>,
    /// What stands between several labels in one cell (`separator=|`).
    pub separator: Option<String>,
    /// Endings of the names of files that are the bands of one image, in order (`bands=_B02+_B03+_B04`); for folders.
    pub bands: Option<String>,
    /// The folder that paths start from (`root=DIR`); absent: that of the table.
    pub root: Option<String>,
}

impl Spec {
    /// Several sources, written with [`AND`] between them.
    ///
    /// # Errors
    /// As [`Spec::parse`].
    pub fn list(text: &str) -> Result<Vec<Self>, SourceError> {
        match text.contains(AND) && !Path::new(text).exists() {
            true => text.split(AND).map(|one| Self::parse(one.trim())).collect(),
            false => Ok(vec![Self::parse(text)?]),
        }
    }

    /// One source.
    ///
    /// # Errors
    /// An unknown key, a value that does not fit.
    pub fn parse(text: &str) -> Result<Self, SourceError> {
        let plain = || Self { path: text.to_owned(), ..Self::default() };
        let Some((path, options)) = text.rsplit_once(':') else {
            return Ok(plain());
        };
        // `C:\images` and `s3:bucket` have no options.
        if path.is_empty() || !options.contains('=') || Path::new(text).exists() {
            return Ok(plain());
        }
        let fail = |problem: String| SourceError::NotASource { path: text.to_owned(), problem };
        let mut spec = Self { path: path.to_owned(), ..Self::default() };
        for option in options.split(',') {
            let (key, value) = option.split_once('=').unwrap_or((option, ""));
            let value = value.to_owned();
            if value.is_empty() {
                return Err(fail(format!("'{option}' after the path is not KEY=VALUE; the keys are {KEYS}")));
            }
            match key {
                "weight" => {
                    let weight = value.parse().ok().filter(|weight: &f64| *weight > 0.0 && *weight <= 1000.0);
                    let problem =
                        || fail(format!("the weight '{value}' is not a number above 0 and up to 1000"));
                    spec.weight = Some(weight.ok_or_else(problem)?);
                }
                "image" => spec.columns.image = Some(value),
                "label" => spec.columns.label = Some(value),
                "separator" => spec.columns.separator = Some(value),
                "root" => spec.columns.root = Some(value),
                "bands" => spec.columns.bands = Some(value),
                _ => {
                    return Err(fail(format!(
                        "'{key}' is not a key that can follow a path; the keys are {KEYS}"
                    )));
                }
            }
        }
        Ok(spec)
    }
}

impl std::fmt::Display for Spec {
    /// As it is typed.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Columns { image, label, separator, bands, root } = &self.columns;
        let columns =
            [("image", image), ("label", label), ("separator", separator), ("bands", bands), ("root", root)];
        let columns =
            columns.into_iter().filter_map(|(key, value)| Some(format!("{key}={}", value.as_ref()?)));
        let options: Vec<String> =
            self.weight.map(|weight| format!("weight={weight}")).into_iter().chain(columns).collect();
        match options.as_slice() {
            [] => f.write_str(&self.path),
            options => write!(f, "{}:{}", self.path, options.join(",")),
        }
    }
}

impl Columns {
    /// Whether nothing is named.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_follow_a_path() {
        let spec = Spec::parse("photos/x.csv:image=file,label=a+b,weight=0.5").unwrap();
        assert_eq!((spec.path.as_str(), spec.weight), ("photos/x.csv", Some(0.5)));
        assert_eq!(spec.columns.label.as_deref(), Some("a+b"));
        assert_eq!(Spec::parse(&spec.to_string()).unwrap(), spec);
        for plain in ["photos", "C:\\photos", "bundled:train", "x-{0..3}.tar"] {
            assert_eq!(Spec::parse(plain).unwrap(), Spec { path: plain.into(), ..Spec::default() });
        }
        let error = |text: &str| Spec::parse(text).unwrap_err().to_string();
        assert!(error("a:wieght=2").contains("'wieght' is not a key"), "{}", error("a:wieght=2"));
        assert!(error("a:weight=-1").contains("'-1' is not a number above 0"));
        assert!(error("a:weight=").contains("is not KEY=VALUE"));
    }

    #[test]
    fn several_sources() {
        let all = Spec::list("photos + x.csv:weight=2 + C+C").unwrap();
        let found: Vec<_> = all.iter().map(|spec| (spec.path.as_str(), spec.weight)).collect();
        assert_eq!(found, [("photos", None), ("x.csv", Some(2.0)), ("C+C", None)]);
    }

    #[test]
    fn a_path_that_exists_is_a_path() {
        let dir = tempfile::tempdir().unwrap();
        let odd = dir.path().join("a:weight=2");
        std::fs::create_dir(&odd).unwrap();
        let text = odd.display().to_string();
        assert_eq!(Spec::parse(&text).unwrap().path, text);
    }
}
