//! Why classes do not match.

/// Why the classes of a source cannot be those of a model, one sentence each.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClassError {
    /// The data have a class that the target does not know.
    #[error("{data} has the class {unknown}, which {owner} does not have; its classes are {known}")]
    Unknown {
        /// The data.
        data: String,
        /// Their unknown classes.
        unknown: String,
        /// What has the classes.
        owner: String,
        /// Its classes.
        known: String,
        /// Whether both have the same number of classes.
        same_count: bool,
    },
    /// A name that several of the target's classes have.
    #[error("{data} has the class `{name}`, but several classes of {owner} have this name")]
    Twice {
        /// The data.
        data: String,
        /// The name.
        name: String,
        /// What has the classes.
        owner: String,
    },
    /// By position, both need the same number of classes.
    #[error("{data} has {found} classes, but {owner} has {count}; by position both need the same number")]
    Count {
        /// The data.
        data: String,
        /// Classes of the data.
        found: usize,
        /// What has the classes.
        owner: String,
        /// Its classes.
        count: usize,
    },
    /// Nothing tells which class is which.
    #[error(
        "{data} has {found} classes, but {owner} has {count} and does not name them, so they cannot be matched"
    )]
    NoNames {
        /// The data.
        data: String,
        /// Classes of the data.
        found: usize,
        /// What has the classes.
        owner: String,
        /// Its classes.
        count: usize,
    },
    /// A table of classes with a name that nobody has.
    #[error("{path} maps the class `{name}`, which is not a class of {place}; its classes are {known}")]
    Table {
        /// The table.
        path: String,
        /// The name.
        name: String,
        /// Where it was looked for.
        place: String,
        /// The classes there.
        known: String,
    },
    /// A file of names or a table that cannot be used.
    #[error("{path}: {problem}")]
    File {
        /// The file.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
}
