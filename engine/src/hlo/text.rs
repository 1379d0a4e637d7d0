//! HLO text in pieces: a module's computations, their lines, the arrays in a type.

use std::collections::HashMap;

/// The computations of a module by name.
pub(super) struct Module<'t> {
    pub(super) entry: &'t str,
    computations: HashMap<&'t str, Computation<'t>>,
}

/// Lines in order; operands stand before their users.
#[derive(Default)]
pub(super) struct Computation<'t> {
    pub(super) lines: Vec<Line<'t>>,
    places: HashMap<&'t str, usize>,
}

/// `%name = type opcode(operands), attributes`
pub(super) struct Line<'t> {
    pub(super) name: &'t str,
    pub(super) opcode: &'t str,
    /// The type of the result, layouts included.
    pub(super) ty: &'t str,
    /// Arrays of the result; of a flat tuple, one for each element.
    pub(super) arrays: Vec<Array>,
    pub(super) operands: Vec<Operand<'t>>,
    /// Between the parentheses: operands, a parameter's number, a constant's value.
    inside: &'t str,
    attributes: &'t str,
    is_root: bool,
}

/// `%name`, or `%name#3` for an element of a tuple.
#[derive(Clone, Copy)]
pub(super) struct Operand<'t> {
    pub(super) name: &'t str,
    pub(super) element: Option<usize>,
}

/// One array of a type.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Array {
    pub(super) dims: Vec<u64>,
    /// Without padding.
    pub(super) bytes: u64,
    /// With the padding of its tiles.
    pub(super) padded: u64,
    /// Whether it lives in the device's main memory: neither in vector memory nor in that of scalars or flags.
    pub(super) in_hbm: bool,
}

impl<'t> Module<'t> {
    pub(super) fn parse(text: &'t str) -> Module<'t> {
        let mut computations: HashMap<&str, Computation<'_>> = HashMap::new();
        let (mut entry, mut current) = ("", None);
        let mut rest = text;
        while !rest.is_empty() {
            let (statement, following) = statement(rest);
            rest = following;
            if !statement.starts_with(' ') && statement.ends_with('{') && statement.contains("->") {
                let name = name_at_start(statement.strip_prefix("ENTRY ").unwrap_or(statement));
                if statement.starts_with("ENTRY ") {
                    entry = name;
                }
                current = Some(name);
            } else if statement.starts_with('}') {
                current = None;
            } else if let (Some(name), Some(line)) = (current, Line::parse(statement)) {
                let computation = computations.entry(name).or_default();
                computation.places.insert(line.name, computation.lines.len());
                computation.lines.push(line);
            }
        }
        Module { entry, computations }
    }

    pub(super) fn computation(&self, name: &str) -> Option<&Computation<'t>> {
        self.computations.get(name)
    }

    /// What a line fuses or calls, not the bodies of loops.
    pub(super) fn callee(&self, line: &Line<'t>) -> Option<&Computation<'t>> {
        let key = match line.opcode {
            "fusion" | "async-start" => "calls=",
            "call" => "to_apply=",
            _ => return None,
        };
        self.computation(line.part(key)?)
    }
}

/// The first line of a text and what follows it. Attributes may break an instruction into lines: those that continue it
/// are not indented, and the last one starts with two braces.
fn statement(text: &str) -> (&str, &str) {
    let mut end = text.find('\n').unwrap_or(text.len());
    if text.starts_with(' ') {
        while let Some(next) = text.get(end + 1..).filter(|next| !next.is_empty()) {
            if next.starts_with(' ') || (next.starts_with('}') && !next.starts_with("}}")) {
                break;
            }
            end += 1 + next.find('\n').unwrap_or(next.len());
        }
    }
    (&text[..end], text.get(end + 1..).unwrap_or_default())
}

impl<'t> Computation<'t> {
    pub(super) fn line(&self, name: &str) -> Option<&Line<'t>> {
        self.places.get(name).map(|&place| &self.lines[place])
    }

    pub(super) fn root(&self) -> Option<&Line<'t>> {
        self.lines.iter().find(|line| line.is_root).or(self.lines.last())
    }

    pub(super) fn parameter(&self, number: usize) -> Option<&Line<'t>> {
        let number = number.to_string();
        self.lines.iter().find(|line| line.opcode == "parameter" && line.inside == number)
    }

    /// Lines that read a line, and as which operand.
    pub(super) fn users(&self, name: &str) -> impl Iterator<Item = (&Line<'t>, usize)> {
        self.lines.iter().flat_map(move |line| {
            let operands = line.operands.iter().enumerate();
            operands.filter(move |(_, operand)| operand.name == name).map(move |(place, _)| (line, place))
        })
    }

    /// The arrays that an operand stands for.
    pub(super) fn arrays(&self, operand: Operand<'t>) -> &[Array] {
        let arrays = self.line(operand.name).map_or(&[][..], |line| &line.arrays);
        match operand.element {
            Some(element) => arrays.get(element..=element).unwrap_or_default(),
            None => arrays,
        }
    }
}

impl<'t> Line<'t> {
    fn parse(line: &'t str) -> Option<Line<'t>> {
        let line = line.trim();
        let (line, is_root) = match line.strip_prefix("ROOT ") {
            Some(rest) => (rest, true),
            None => (line, false),
        };
        let (name, rest) = line.split_once(" = ")?;
        let (ty, rest) = rest.split_at(end(rest, ' ')?);
        let (opcode, rest) = rest.trim_start().split_once('(')?;
        let (inside, attributes) = rest.split_at(end(rest, ')')?);
        Some(Line {
            name: name.trim_start_matches('%'),
            opcode,
            ty,
            arrays: arrays(ty),
            operands: inside.split(", ").filter_map(Operand::parse).collect(),
            inside,
            attributes,
            is_root,
        })
    }

    /// The name after a key such as `body=`.
    pub(super) fn part(&self, key: &str) -> Option<&'t str> {
        self.attribute(key, ",").map(name_at_start)
    }

    /// What stands in the attributes between `before` and `after`.
    pub(super) fn attribute(&self, before: &str, after: &str) -> Option<&'t str> {
        between(self.attributes, before, after)
    }

    /// A whole number that is a constant's value.
    pub(super) fn constant(&self) -> Option<u64> {
        (self.opcode == "constant").then(|| self.inside.parse().ok())?
    }

    /// The author's file and line, if the line has one; `-` is where a program's builder made something of its own.
    pub(super) fn at(&self) -> Option<String> {
        let file = self.attribute("source_file=\"", "\"").filter(|file| *file != "-")?;
        Some(match self.attribute("source_line=", " ") {
            Some(number) => format!("{file}:{}", number.trim_end_matches(['}', ','])),
            None => file.to_owned(),
        })
    }
}

impl<'t> Operand<'t> {
    fn parse(text: &'t str) -> Option<Operand<'t>> {
        // Some compilers print the type before the name.
        let name = &text[text.rfind('%')? + 1..];
        Some(match name.split_once('#') {
            Some((name, element)) => Operand { name, element: element.parse().ok() },
            None => Operand { name, element: None },
        })
    }
}

/// Where a text ends: at the first `stop` outside of brackets. Types of tuples have blanks inside.
fn end(text: &str, stop: char) -> Option<usize> {
    let mut depth = 0i32;
    for (at, letter) in text.char_indices() {
        match letter {
            _ if letter == stop && depth == 0 => return Some(at),
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
    }
    None
}

/// `f32[8,128]{1,0:T(8,128)}` -> `f32[8,128]`, in tuples too; comments go with them.
pub(super) fn without_layouts(ty: &str) -> String {
    let mut plain = String::new();
    let mut depth = 0;
    let mut rest = ty;
    while let Some(letter) = rest.chars().next() {
        if let Some(comment) = rest.strip_prefix("/*") {
            rest = comment.split_once("*/").map_or("", |(_, rest)| rest);
            continue;
        }
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            other if depth == 0 => plain.push(other),
            _ => {}
        }
        rest = &rest[letter.len_utf8()..];
    }
    plain
}

/// All arrays in a type, in order.
fn arrays(ty: &str) -> Vec<Array> {
    let mut arrays = Vec::new();
    let mut rest = ty;
    while let Some((before, after)) = rest.split_once('[') {
        let element = before.rsplit(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default();
        let Some((dims, after)) = after.split_once(']') else { break };
        let layout = match after.strip_prefix('{') {
            Some(layout) => layout.split_once('}').map_or("", |(layout, _)| layout),
            None => "",
        };
        arrays.push(array(element, dims, layout));
        rest = after;
    }
    arrays
}

/// `layout` is `1,0:T(8,128)(2,1)S(1)`: dimensions from the fastest to the slowest, tiles of the fastest ones, memory.
fn array(element: &str, dims: &str, layout: &str) -> Array {
    let numbers = |list: &str| -> Vec<u64> {
        list.split(',').filter_map(|number| number.trim_start_matches("<=").parse().ok()).collect()
    };
    let bits = match element {
        "pred" => 8,
        "token" | "opaque" => 0,
        other => other.trim_start_matches(|c: char| !c.is_ascii_digit()).parse().unwrap_or(8),
    };
    let dims = numbers(dims);
    let (order, properties) = layout.split_once(':').unwrap_or((layout, ""));
    let mut padded = dims.clone();
    if let Some(tile) = between(properties, "T(", ")") {
        for (&dim, size) in numbers(order).iter().zip(numbers(tile).into_iter().rev()) {
            if let Some(extent) = padded.get_mut(dim as usize) {
                *extent = extent.next_multiple_of(size.max(1));
            }
        }
    }
    let bytes = |dims: &[u64]| dims.iter().product::<u64>() * bits / 8;
    Array {
        bytes: bytes(&dims),
        padded: bytes(&padded),
        dims,
        in_hbm: matches!(between(properties, "S(", ")"), None | Some("0")),
    }
}

pub(super) fn name_at_start(text: &str) -> &str {
    let text = text.trim_start_matches('%');
    let end = text.find(|c: char| !(c.is_alphanumeric() || "_.-".contains(c))).unwrap_or(text.len());
    &text[..end]
}

pub(super) fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let rest = &text[text.find(before)? + before.len()..];
    Some(&rest[..rest.find(after).unwrap_or(rest.len())])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_is_its_arrays() {
        let found =
            arrays("(bf16[8,2048,1]{1,0,2:T(8,128)(2,1)}, /*index=1*/f32[12,100]{1,0:T(8,128)S(1)}, u32[])");
        assert_eq!(found.len(), 3);
        // 2048 columns are full tiles, and so are 8 rows.
        assert_eq!((found[0].bytes, found[0].padded, found[0].in_hbm), (32768, 32768, true));
        assert_eq!((found[1].bytes, found[1].padded, found[1].in_hbm), (4800, 16 * 128 * 4, false));
        assert_eq!((&found[2].dims[..], found[2].bytes), (&[][..], 4));
        // One column takes a tile's 128.
        assert_eq!(arrays("f32[16,1]{1,0:T(8,128)}")[0].padded, 16 * 128 * 4);
        assert_eq!((arrays("s4[6]")[0].bytes, arrays("token[]")[0].bytes), (3, 0));
    }

    #[test]
    fn a_line_has_operands_and_attributes() {
        let text = "  ROOT %a.1 = (f32[2]{0}, s32[]) fusion(%wide.arg#21, f32[2]{0} %b, /*index=2*/%c), kind=kLoop, \
                    calls=%body, metadata={source_file=\"model/src/x.rs\" source_line=7 source_column=1}";
        let line = Line::parse(text).unwrap();
        assert_eq!(
            (line.name, line.opcode, line.is_root, line.part("calls=")),
            ("a.1", "fusion", true, Some("body"))
        );
        let operands: Vec<_> = line.operands.iter().map(|operand| (operand.name, operand.element)).collect();
        assert_eq!(operands, [("wide.arg", Some(21)), ("b", None), ("c", None)]);
        assert_eq!(line.at().as_deref(), Some("model/src/x.rs:7"));
        let nowhere = text.replace("model/src/x.rs", "-");
        assert_eq!(Line::parse(&nowhere).unwrap().at(), None);
        assert_eq!(Line::parse("  %n = s32[] constant(24), metadata={}").unwrap().constant(), Some(24));
    }

    #[test]
    fn an_instruction_may_take_several_lines() {
        let text = "%f () -> s32[] {
  %k = s32[] custom-call(), attributes={metadata={
\"a\": \"b\"
}}, backend_config={\"estimated_cycles\":\"7\"}
  ROOT %n = s32[] copy(%k)
}
";
        let module = Module::parse(text);
        let computation = module.computation("f").unwrap();
        assert_eq!(computation.lines.len(), 2);
        assert_eq!(computation.lines[0].attribute("\"estimated_cycles\":\"", "\""), Some("7"));
        assert_eq!(computation.root().unwrap().name, "n");
    }
}
