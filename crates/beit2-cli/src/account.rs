//! What a source uses and leaves out, as it is told at the start of every command that reads images.

use beit2_data::Source;
use beit2_data::source::Account;
use serde_json::{Value, json};

use crate::flags::OutputArgs;
use crate::output;

/// Tells what is used and what is left out, and what looks wrong about it. With --quiet only the latter.
pub fn tell(output: OutputArgs, spec: &str, source: &dyn Source) {
    let account = source.account();
    if !output.quiet {
        output::note(&format!("{spec}: {account}"));
    }
    tell_warnings(&account.warnings);
}

/// Warnings on stderr.
pub fn tell_warnings(warnings: &[String]) {
    warnings.iter().for_each(|warning| output::warning(warning));
}

/// What is used and left out, for JSON.
pub fn json(account: &Account) -> Value {
    json!({ "used": account.used, "skipped": account.skipped })
}

/// The accounts of a training and a validation set, for JSON.
pub fn json_of(train: &dyn Source, val: Option<&dyn Source>) -> Value {
    json!({ "train": json(&train.account()), "val": val.map(|val| json(&val.account())) })
}
