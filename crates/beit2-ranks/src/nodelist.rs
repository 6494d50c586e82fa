//! Slurm's lists of nodes, such as `gpu[03-07,12],login1`.

/// The first node of a list; `None` of what is no list.
pub(crate) fn first(list: &str) -> Option<String> {
    let (mut name, mut rest) = (String::new(), list.trim());
    while let Some(at) = rest.find(['[', ',']) {
        name += &rest[..at];
        if rest[at..].starts_with(',') {
            rest = "";
            break;
        }
        let end = at + rest[at..].find(']')?;
        let numbers = &rest[at + 1..end];
        name += numbers.split([',', '-']).next().filter(|number| !number.is_empty())?;
        rest = &rest[end + 1..];
    }
    name += rest;
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::first;

    #[test]
    fn the_first_node() {
        for (list, node) in [
            ("node7", "node7"),
            ("node7,node9", "node7"),
            ("gpu[03-07,12],login1", "gpu03"),
            ("rack[2,4]node[11-12]", "rack2node11"),
            ("n[1-2].cluster.org,x", "n1.cluster.org"),
        ] {
            assert_eq!(first(list).as_deref(), Some(node), "{list}");
        }
        for list in ["", "n[1", "n[]", ","] {
            assert_eq!(first(list), None, "{list}");
        }
    }
}
