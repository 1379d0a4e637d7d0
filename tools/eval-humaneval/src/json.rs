//! JSON as Python writes it, and as much of a damaged list as can be read.

use serde_json::{Result, Value};

/// A JSON value; NaN and infinities, which Python writes and no JSON has, become null.
///
/// # Errors
/// If the text is something else.
pub fn parse(text: &str) -> Result<Value> {
    serde_json::from_str(text).or_else(|error| match without_nan(text) {
        Some(text) => serde_json::from_str(&text),
        None => Err(error),
    })
}

/// The text with null for every NaN and infinity; none if there is none.
fn without_nan(text: &str) -> Option<String> {
    let mut out = String::new();
    let mut copied = 0;
    for place in outside_strings(text) {
        let name = ["NaN", "Infinity", "-Infinity"].into_iter().find(|name| text[place..].starts_with(name));
        if let Some(name) = name.filter(|_| place >= copied) {
            out += &text[copied..place];
            out += "null";
            copied = place + name.len();
        }
    }
    (copied > 0).then(|| out + &text[copied..])
}

/// The texts of a list's elements, whatever is wrong with one of them. None if it is no list, or its brackets are not in
/// pairs.
pub fn elements(text: &str) -> Option<Vec<&str>> {
    let inside = text.trim().strip_prefix('[')?.strip_suffix(']')?;
    let (mut found, mut start, mut depth) = (Vec::new(), 0, 0u32);
    for place in outside_strings(inside) {
        match inside.as_bytes()[place] {
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.checked_sub(1)?,
            b',' if depth == 0 => {
                found.push(inside[start..place].trim());
                start = place + 1;
            }
            _ => {}
        }
    }
    let last = inside[start..].trim();
    if !(found.is_empty() && last.is_empty()) {
        found.push(last);
    }
    (depth == 0).then_some(found)
}

/// The places of the ASCII characters outside of strings.
fn outside_strings(text: &str) -> impl Iterator<Item = usize> {
    let (mut inside, mut escaped) = (false, false);
    text.bytes().enumerate().filter_map(move |(place, byte)| {
        let was_inside = inside;
        inside ^= byte == b'"' && !escaped;
        escaped = inside && byte == b'\\' && !escaped;
        (!was_inside && byte.is_ascii() && byte != b'"').then_some(place)
    })
}

#[cfg(test)]
mod tests {
    use super::{elements, parse};
    use serde_json::json;

    #[test]
    fn nan_is_null_outside_of_strings() {
        let text = r#"{"NaN": NaN, "a": [-Infinity, Infinity, 1], "b": "NaN, \"Infinity\" \\", "c": NaN}"#;
        let wanted = json!({"NaN": null, "a": [null, null, 1], "b": "NaN, \"Infinity\" \\", "c": null});
        assert_eq!(parse(text).unwrap(), wanted);
        for text in ["{\"a\": NaNs}", "{\"a\": nan}", "{\"a\": \"NaN}", "NaN,"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_list_is_cut_at_its_own_commas() {
        let text = r#" [ {"a": [1, 2]}, "x, ] \" ,", [[3], 4] , \ud800, é ] "#;
        let wanted = [r#"{"a": [1, 2]}"#, r#""x, ] \" ,""#, "[[3], 4]", "\\ud800", "é"];
        assert_eq!(elements(text).unwrap(), wanted);
        assert_eq!(elements("[]").unwrap(), [""; 0]);
        assert_eq!(elements("[1]").unwrap(), ["1"]);
        for text in ["", "[", "[[1]", "[1]]", "[1] [2]", "{}"] {
            assert_eq!(elements(text), None, "{text}");
        }
    }
}
