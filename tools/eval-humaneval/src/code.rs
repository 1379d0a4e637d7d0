//! The code in what a model wrote.

/// Ends of a text, which many programs leave in what they decode.
const ENDS: [&str; 9] = [
    "<|endoftext|>",
    "<|endofmask|>",
    "<|end_of_text|>",
    "<|eot_id|>",
    "<|EOT|>",
    "<|im_end|>",
    "<end_of_turn>",
    "<｜end▁of▁sentence｜>",
    "</s>",
];

/// The code in a text: without tokens that end the text, and without Markdown around the code.
///
/// Of Markdown, the first fenced block is the code. Only fences at the beginning of a line count: within a function's
/// docstring they are indented, and part of the code.
pub fn code(text: &str) -> &str {
    fenced(ended(text))
}

fn ended(text: &str) -> &str {
    let mut rest = text;
    while let Some(before) = ENDS.iter().find_map(|end| rest.trim_end().strip_suffix(end)) {
        rest = before;
    }
    rest
}

/// A line of a text that begins or ends a block.
struct Fence<'t> {
    /// Where the line begins, and where the next one does.
    start: usize,
    end: usize,
    /// What stands after the backticks: a language. A fence that ends a block has none.
    info: &'t str,
}

fn fences(text: &str) -> Vec<Fence<'_>> {
    let mut found = Vec::new();
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        let end = start + line.len();
        let info = line.trim_start_matches('`').trim();
        if line.starts_with("```") && !info.contains('`') {
            found.push(Fence { start, end, info });
        }
        start = end;
    }
    found
}

fn fenced(text: &str) -> &str {
    let fences = fences(text);
    let Some(first) = fences.first() else { return text };
    let next = fences.get(1);
    // A block that was begun in the prompt ends before its first fence; the fences after it are then one more than pairs,
    // or the next one is cut off from its end.
    let begun_before = first.info.is_empty()
        && !text[..first.start].trim().is_empty()
        && (fences.len() % 2 == 1 || next.is_some_and(|next| !next.info.is_empty()));
    if begun_before {
        &text[..first.start]
    } else {
        &text[first.end..next.map_or(text.len(), |next| next.start)]
    }
}

#[cfg(test)]
mod tests {
    use super::code;

    #[test]
    fn code_is_found_in_what_models_write() {
        let body = "    return x\n";
        for (text, wanted) in [
            ("    return x\n", body),
            ("    return x\n<|endoftext|>", body),
            ("    return x\n<|im_end|>\n<|endoftext|><|endoftext|>\n", body),
            ("```python\n    return x\n```\n", body),
            ("```\n    return x\n```", body),
            ("Here it is:\n\n```python\n    return x\n```\nIt returns x.\n```python\nf(1)\n```\n", body),
            ("Here it is:\n```\n    return x\n```\n", body),
            ("```py\n    return x\n```<|im_end|>", body),
            // Cut off before its end.
            ("```python\n    return x\n", body),
            // Begun in the prompt.
            ("    return x\n```\n", body),
            ("    return x\n```\nFor example:\n```python\nf(1)\n```\n", body),
            ("    return x\n```\nFor example:\n```python\nf(1)", body),
            ("    return x\r\n```\r\n", "    return x\r\n"),
        ] {
            assert_eq!(code(text), wanted, "{text:?}");
        }
    }

    #[test]
    fn code_stays_as_it_is() {
        for text in [
            "",
            "    return x  \n\n",
            "    \"\"\"\n    ```\n    f(1)\n    ```\n    \"\"\"\n    return x\n",
            "    return '```'\n",
            "    return '<|endoftext|>'\n",
            "    return x  # </s> is an end\n",
            "```x``` is code\n",
        ] {
            assert_eq!(code(text), text);
        }
    }
}
