//! Keys by their paths, and the key that a mistyped path probably means.

use super::{KEYS, Key};

/// The key of a path.
pub(crate) fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path)
}

/// Whether keys lie below a path.
pub(super) fn is_table(path: &str) -> bool {
    KEYS.iter().any(|key| key.path.strip_prefix(path).is_some_and(|rest| rest.starts_with('.')))
}

/// What to say about a path that is no key: the nearest one, by the whole path or by its last part.
pub(super) fn hint(path: &str) -> String {
    let last = |path: &str| path.rsplit('.').next().unwrap_or_default().to_string();
    let distance = |key: &Key| {
        let whole = strsim::damerau_levenshtein(path, key.path);
        let end = strsim::damerau_levenshtein(&last(path), &last(key.path));
        // A right name in the wrong table is a better guess than a wrong name in the right one.
        whole.min(2 * end + usize::from(last(path) != path))
    };
    let nearest = KEYS.iter().min_by_key(|key| distance(key)).expect("there are keys");
    if distance(nearest) <= (path.len() / 3).max(2) {
        return format!("did you mean `{}`?", nearest.path);
    }
    let mut tables: Vec<_> =
        KEYS.iter().filter_map(|key| key.path.split_once('.')).map(|(table, _)| table).collect();
    tables.dedup();
    format!("the tables are {}; a run's config.toml lists every key", tables.join(", "))
}
