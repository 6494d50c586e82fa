//! What someone most likely meant.

/// The known name that is most like the one that was typed; `None` when none is near. In dotted names, such as
/// `optimizer.lr`, the last part counts for itself too.
pub fn suggest<'a>(typed: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    fn last(name: &str) -> &str {
        name.rsplit('.').next().unwrap_or_default()
    }
    let score = |name: &str| {
        let whole = strsim::jaro_winkler(typed, name);
        // A right name in the wrong table is a likelier mistake than a similar spelling of the whole path.
        let end = strsim::normalized_damerau_levenshtein(last(typed), last(name));
        whole.max(0.97 * end)
    };
    let best = names.into_iter().map(|name| (score(name), name)).max_by(|a, b| a.0.total_cmp(&b.0))?;
    (best.0 >= 0.75).then_some(best.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggestions_are_near() {
        assert_eq!(suggest("mim_bas_300e", ["mim_base_300e", "mim_large_300e"]), Some("mim_base_300e"));
        assert_eq!(suggest("optimiser.lr", ["optimizer.lr", "schedule.epochs"]), Some("optimizer.lr"));
        assert_eq!(suggest("zzz", ["mim_base_300e"]), None);
    }
}
