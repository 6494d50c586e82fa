//! A plan in one line, for what is told before a run.

use indexmap::IndexMap;

use super::{Plan, Source, Unused};

impl Plan {
    /// How many tensors are taken and what became of them, which are new, which are not used: by the part that they belong
    /// to, so that it stays a line. `Display` lists every tensor.
    pub fn summary(&self) -> String {
        let mut changed: IndexMap<String, usize> = IndexMap::new();
        for how in self.used.values() {
            let what = match how {
                Source::Same => continue,
                Source::Shared => "copied from a shared table".to_owned(),
                Source::Resized { from, to, .. } => {
                    format!("resized from {from}×{from} patches to {to}×{to}")
                }
                Source::HeadRows => "with other classes".to_owned(),
                Source::Channels { from, to } => format!("for {to} channels instead of {from}"),
            };
            *changed.entry(what).or_default() += 1;
        }
        let changed: Vec<String> =
            changed.into_iter().map(|(what, count)| format!("{count} {what}")).collect();
        let mut text = format!("{} tensors taken", self.used.len());
        if !changed.is_empty() {
            text.push_str(&format!(", of them {}", changed.join(", ")));
        }
        // Index buffers are no weights, and every official file has some.
        let unused = self.unused.iter().filter(|(_, why)| *why != Unused::Recomputed);
        for (what, parts) in [
            ("new", parts(self.fresh.iter().map(String::as_str))),
            ("not used", parts(unused.map(|(name, _)| name.as_str()))),
        ] {
            if !parts.is_empty() {
                text.push_str(&format!("; {what}: {}", parts.join(", ")));
            }
        }
        text
    }
}

/// Names by their first part: `lm_head (2 tensors)`; one alone by its own.
fn parts<'a>(names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut groups: IndexMap<&str, Vec<&str>> = IndexMap::new();
    for name in names {
        groups.entry(name.split('.').next().unwrap_or(name)).or_default().push(name);
    }
    let group = |(part, names): (&str, Vec<&str>)| match names.as_slice() {
        [one] => (*one).to_owned(),
        many => format!("{part} ({} tensors)", many.len()),
    };
    groups.into_iter().map(group).collect()
}
