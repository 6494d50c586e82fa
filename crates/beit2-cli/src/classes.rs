//! Classes of labelled images and of models: the flags that say which is which, and what they mean.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use beit2_data::Source;
use beit2_data::classes::{
    ClassError, ClassMatch, ClassTable, ClassesBy, IMAGENET_CLASSES, Target, is_synset, match_classes,
    read_names,
};
use clap::{Args, ValueEnum, ValueHint};

use crate::errors::{Usage, usage};

/// Names of a model's classes.
#[derive(Debug, Args)]
pub struct ClassArgs {
    /// Names of the model's classes in their order, where its file has none: a text file with one name a line, or JSON
    /// (a list, or a config.json with id2label)
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub names: Option<PathBuf>,

    /// Which class of the model each class of the data is: a CSV file of two columns, or JSON
    /// {"data name": "model name"}; several may share one
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub class_map: Option<PathBuf>,

    /// How classes are matched [default: by name; without names only where it is certain]
    #[arg(long, value_name = "HOW")]
    pub classes_by: Option<ClassesByArg>,
}

/// How classes are matched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ClassesByArg {
    /// By their names
    Name,
    /// Class k is class k; folders are numbered in the order of their names' bytes
    Position,
}

/// The names of a model's classes, and what is doubtful about them.
pub struct ModelNames {
    /// Empty when they are unknown.
    pub names: Vec<String>,
    pub warnings: Vec<String>,
}

impl ClassArgs {
    /// Flags that contradict each other.
    pub fn check(&self) -> anyhow::Result<()> {
        if self.class_map.is_some() && self.classes_by == Some(ClassesByArg::Position) {
            return usage("--class-map matches classes by name; leave out --classes-by position");
        }
        Ok(())
    }

    /// The table of --class-map.
    pub fn table(&self) -> anyhow::Result<Option<ClassTable>> {
        Ok(self.class_map.as_deref().map(ClassTable::read).transpose()?)
    }

    /// The names of a model's `count` classes: those of --names, or those in its file, `own`. `rows` are the classes that
    /// are left of ImageNet's 1000.
    pub fn model_names(
        &self,
        own: &[String],
        count: usize,
        rows: Option<&[usize]>,
        weights: &str,
    ) -> anyhow::Result<ModelNames> {
        let Some(path) = &self.names else {
            return Ok(ModelNames { names: own.to_vec(), warnings: Vec::new() });
        };
        let mut names = read_names(path)?;
        if let (Some(rows), IMAGENET_CLASSES) = (rows, names.len()) {
            names = rows.iter().map(|&row| names[row].clone()).collect();
        }
        if names.len() != count {
            return usage(format!(
                "{} has {} names, but the model in {weights} has {count} classes",
                path.display(),
                names.len()
            ));
        }
        Ok(self.choose(own, names, path, weights))
    }

    /// Both lists name the classes; which one counts.
    fn choose(&self, own: &[String], names: Vec<String>, path: &Path, weights: &str) -> ModelNames {
        let path = path.display();
        let moved = names.iter().zip(own).enumerate().find_map(|(at, (name, known))| {
            let elsewhere = own.iter().position(|other| other == name)?;
            (name != known).then_some((at, name, elsewhere))
        });
        let Some((at, name, elsewhere)) = moved else {
            return ModelNames { names, warnings: Vec::new() };
        };
        let sorted = |names: &[String]| {
            let mut names = names.to_vec();
            names.sort_unstable();
            names
        };
        let is_permutation = sorted(&names) == sorted(own);
        let keeps_own = is_permutation && self.classes_by != Some(ClassesByArg::Position);
        let what = match is_permutation {
            true => "lists the model's own names in another order",
            false => "contradicts the model's own names",
        };
        let used = match keeps_own {
            true => "the model's own order is used (--classes-by position takes that of the list)",
            false => "the list is used",
        };
        let warning =
            format!("{path} {what}: class {at} is `{name}` there, in {weights} class {elsewhere} is; {used}");
        ModelNames { names: if keeps_own { own.to_vec() } else { names }, warnings: vec![warning] }
    }

    /// The names to show for a model's classes: those that --class-map gives to `names`, or to their numbers.
    pub fn shown(&self, names: Vec<String>, count: usize, weights: &str) -> anyhow::Result<Vec<String>> {
        let Some(table) = self.table()? else { return Ok(names) };
        let names = match names.is_empty() {
            true => (0..count).map(|number| number.to_string()).collect(),
            false => names,
        };
        let owner = &format!("the model in {weights}");
        table.names_of(Target { owner, count, names: &names }).map_err(|error| advised(error).into())
    }

    /// The source with the model's class numbers. `is_subset` says that they are a part of ImageNet-1k's, in the order of
    /// their WordNet ids.
    pub fn matched(
        &self,
        data: &str,
        source: Arc<dyn Source>,
        weights: &str,
        (names, count): (&[String], usize),
        is_subset: bool,
    ) -> anyhow::Result<ClassMatch> {
        let table = self.table()?;
        let ids = source.classes();
        let known_order = is_subset
            && ids.len() == count
            && ids.is_sorted()
            && ids.iter().all(|name| is_synset(name) && !names.contains(name));
        let by = match (&table, self.classes_by) {
            (Some(table), _) => ClassesBy::Table(table),
            (None, Some(ClassesByArg::Name)) => ClassesBy::Name,
            (None, Some(ClassesByArg::Position)) => ClassesBy::Position,
            (None, None) if known_order => ClassesBy::Position,
            (None, None) => ClassesBy::Auto,
        };
        let owner = &format!("the model in {weights}");
        match_classes(data, source, Target { owner, count, names }, by).map_err(|error| advised(error).into())
    }
}

/// The error with the flags that help.
fn advised(error: ClassError) -> Usage {
    let advice = match &error {
        ClassError::Unknown { same_count: true, .. } => {
            "; say which is which with --class-map FILE, or, if both have the same classes in the same order, use \
             --classes-by position"
        }
        ClassError::Unknown { .. } | ClassError::Twice { .. } => "; say which is which with --class-map FILE",
        ClassError::NoNames { .. } => {
            "; name the model's classes with --names FILE, or say which is which with --class-map FILE"
        }
        ClassError::Count { .. } | ClassError::Table { .. } | ClassError::File { .. } => "",
    };
    Usage(format!("{error}{advice}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_that_contradicts_the_file_is_told() {
        let strings = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let choose = |by, list: &[&str]| {
            let args = ClassArgs { names: None, class_map: None, classes_by: by };
            args.choose(&strings(&["a", "b", "c"]), strings(list), Path::new("list"), "run")
        };
        let found = choose(None, &["b", "a", "c"]);
        assert_eq!(found.names, ["a", "b", "c"]);
        assert_eq!(
            found.warnings,
            [
                "list lists the model's own names in another order: class 0 is `b` there, in run class 1 is; the \
              model's own order is used (--classes-by position takes that of the list)"
            ]
        );
        let found = choose(Some(ClassesByArg::Position), &["b", "a", "c"]);
        assert_eq!((found.names.join(" ").as_str(), found.warnings.len()), ("b a c", 1));
        let found = choose(None, &["b", "x", "c"]);
        assert_eq!((found.names.join(" ").as_str(), found.warnings.len()), ("b x c", 1));
        for list in [["a", "b", "c"], ["ant", "bee", "cat"]] {
            let found = choose(None, &list);
            assert_eq!((found.names, found.warnings.len()), (strings(&list), 0));
        }
    }

    #[test]
    fn a_part_of_imagenet_has_the_order_of_its_wordnet_ids() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["n01443537", "n01484850"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
            std::fs::write(dir.path().join(name).join("1.ppm"), b"P6 1 1 255\nabc").unwrap();
        }
        let source = || beit2_data::source::open(&dir.path().display().to_string()).unwrap();
        let args = ClassArgs { names: None, class_map: None, classes_by: None };
        let words = ["goldfish".to_owned(), "great white shark".to_owned()];
        for names in [&words[..], &[]] {
            let found = args.matched("data", source(), "model", (names, 2), true).unwrap();
            assert_eq!((found.by, found.warnings.len()), (beit2_data::classes::Matched::Position, 0));
        }
        assert!(args.matched("data", source(), "model", (&words, 2), false).is_err());
    }
}
