//! Text in JSON: an object a line, or an array of objects; plain, gzip or zstd.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::sync::atomic::Ordering;

use flate2::bufread::MultiGzDecoder;
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use super::{BYTE_ORDER_MARK, BytesRead, Item, Items};
use crate::data::bad::{Bad, Place};

const NAMES: [&str; 3] = [".jsonl", ".ndjson", ".json"];
const COMPRESSED: [&str; 2] = [".gz", ".zst"];

/// A name in lower case without the ending of its compression.
fn plain(name: &str) -> &str {
    COMPRESSED.iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name)
}

/// Whether a name in lower case is that of a file that is read here.
pub(super) fn is_named(name: &str) -> bool {
    NAMES.iter().any(|end| plain(name).ends_with(end))
}

/// Whether a file of this name may hold settings instead of data.
pub(super) fn may_be_settings(path: &Path) -> bool {
    plain(&path.to_string_lossy().to_ascii_lowercase()).ends_with(".json")
}

/// Whether the first record of a file has text. Also if the file cannot be read: that is reported later.
pub(super) fn begins_with_text(path: &Path, column: &str) -> bool {
    match items(path, column, &BytesRead::default()).next() {
        Some(Item::Bad(bad)) => bad.place == Place::Whole,
        Some(_) => true,
        None => false,
    }
}

/// The documents of a file.
pub(super) fn items(path: &Path, column: &str, read: &BytesRead) -> Items {
    let bad = {
        let path = path.to_owned();
        move |place, reason| Item::Bad(Bad { path: path.clone(), place, reason, documents: 1 })
    };
    let mut reader = match open(path, read) {
        Ok(reader) => reader,
        Err(e) => return Box::new(std::iter::once(bad(Place::Whole, format!("cannot be read: {e}")))),
    };
    let records = match begin(&mut reader) {
        Ok(Some((b'[', line))) => Records::Elements(Elements { reader, line, met: 0, at: At::Within }),
        Ok(Some(_)) => Records::Lines { reader, line: 0 },
        Ok(None) => return Box::new(std::iter::empty()),
        Err(e) => return Box::new(std::iter::once(bad(Place::Line(1), format!("cannot be read: {e}")))),
    };
    let column = column.to_owned();
    Box::new(records.map(move |(line, record)| match record.and_then(|record| text(&record, &column)) {
        Ok(text) => Item::Bytes(text.into_bytes()),
        Err(reason) => bad(Place::Line(line), reason),
    }))
}

/// Counts what is read from a file.
struct Counted(File, BytesRead);

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.0.read(buffer)?;
        self.1.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

type Reader = Box<dyn BufRead + Send>;

fn open(path: &Path, read: &BytesRead) -> io::Result<Reader> {
    const BUFFER: usize = 1 << 20;
    let file = BufReader::with_capacity(BUFFER, Counted(File::open(path)?, read.clone()));
    let name = path.to_string_lossy().to_ascii_lowercase();
    Ok(if name.ends_with(".gz") {
        Box::new(BufReader::with_capacity(BUFFER, MultiGzDecoder::new(file)))
    } else if name.ends_with(".zst") {
        Box::new(BufReader::with_capacity(BUFFER, zstd::Decoder::with_buffer(file)?))
    } else {
        Box::new(file)
    })
}

/// Skips a byte order mark and white space: the first byte after them and its line, from 1.
fn begin(reader: &mut Reader) -> io::Result<Option<(u8, u64)>> {
    if reader.fill_buf()?.starts_with(BYTE_ORDER_MARK) {
        reader.consume(BYTE_ORDER_MARK.len());
    }
    let mut line = 1;
    loop {
        match reader.fill_buf()?.first().copied() {
            Some(b'\n') => line += 1,
            Some(byte) if byte.is_ascii_whitespace() => {}
            other => return Ok(other.map(|byte| (byte, line))),
        }
        reader.consume(1);
    }
}

/// A record's line, from 1, and its bytes or why there are none.
type Record = (u64, Result<Vec<u8>, String>);

/// The records of a file.
enum Records {
    /// One a line. The number of the line before is kept.
    Lines { reader: Reader, line: u64 },
    /// The elements of one array.
    Elements(Elements),
}

impl Iterator for Records {
    type Item = Record;

    fn next(&mut self) -> Option<Record> {
        match self {
            Self::Elements(elements) => elements.next(),
            Self::Lines { reader, line } => loop {
                let mut record = Vec::new();
                *line += 1;
                match reader.read_until(b'\n', &mut record) {
                    Ok(0) => return None,
                    Ok(_) if record.trim_ascii().is_empty() => {}
                    Ok(_) => {
                        record.truncate(record.trim_ascii_end().len());
                        return Some((*line, Ok(record)));
                    }
                    Err(e) => {
                        let said = (*line, Err(format!("cannot be read from here on: {e}")));
                        *self = Self::Lines { reader: Box::new(io::empty()), line: 0 };
                        return Some(said);
                    }
                }
            },
        }
    }
}

/// The elements of an array, cut at its commas without being understood, so that one bad element seldom spoils another.
struct Elements {
    /// It has read the last element, but not the bracket or comma that ended it.
    reader: Reader,
    line: u64,
    met: u64,
    at: At,
}

/// Where the reader of an array is.
#[derive(Clone, Copy)]
enum At {
    Within,
    /// Its closing bracket is the next byte.
    Close,
    End,
}

impl Elements {
    fn next(&mut self) -> Option<Record> {
        let read = match self.at {
            At::Within => self.element(),
            At::Close => self.after_array(),
            At::End => return None,
        };
        read.unwrap_or_else(|e| {
            self.at = At::End;
            Some((self.line, Err(format!("cannot be read from here on: {e}"))))
        })
        .or_else(|| self.next())
    }

    /// Reads on after the closing bracket, where nothing should be.
    fn after_array(&mut self) -> io::Result<Option<Record>> {
        self.at = At::End;
        self.reader.consume(1);
        let mut rest = Vec::new();
        self.reader.read_to_end(&mut rest)?;
        let extra =
            (!rest.trim_ascii().is_empty()).then(|| "there is more after the end of its array".to_owned());
        Ok(extra.map(|reason| (self.line, Err(reason))))
    }

    /// The next element; an empty array has none.
    fn element(&mut self) -> io::Result<Option<Record>> {
        let (line, element, end) = self.cut()?;
        self.met += 1;
        self.at = match end {
            Some(b',') => At::Within,
            Some(_) => At::Close,
            None => At::End,
        };
        Ok(match end {
            Some(b']') if self.met == 1 && element.is_empty() => None,
            None => Some((
                line,
                Err("the file ends within this element: it is cut, or a quote or bracket is missing here"
                    .to_owned()),
            )),
            _ => Some((line, Ok(element))),
        })
    }

    /// Cuts the next element: the line of its first byte, itself, and what ended it, if not the end of the file.
    fn cut(&mut self) -> io::Result<(u64, Vec<u8>, Option<u8>)> {
        // The bracket or comma before it.
        self.reader.consume(1);
        let (mut element, mut begun) = (Vec::new(), self.line);
        let (mut blank, mut depth, mut in_string, mut escaped) = (true, 0_u64, false, false);
        loop {
            let buffer = self.reader.fill_buf()?;
            if buffer.is_empty() {
                return Ok((begun, element, None));
            }
            for (at, &byte) in buffer.iter().enumerate() {
                if blank && !byte.is_ascii_whitespace() {
                    (blank, begun) = (false, self.line);
                }
                match byte {
                    _ if escaped => escaped = false,
                    b'\\' if in_string => escaped = true,
                    b'"' => in_string = !in_string,
                    // A string ends within its line, so this one lacks a quote; what follows may be good.
                    b'\n' => in_string = false,
                    _ if in_string => {}
                    b'{' | b'[' => depth += 1,
                    b',' | b']' if depth == 0 => {
                        element.extend_from_slice(&buffer[..at]);
                        self.reader.consume(at);
                        return Ok((begun, element.trim_ascii().to_vec(), Some(byte)));
                    }
                    b'}' | b']' => depth = depth.saturating_sub(1),
                    _ => {}
                }
                self.line += u64::from(byte == b'\n');
            }
            element.extend_from_slice(buffer);
            let length = buffer.len();
            self.reader.consume(length);
        }
    }
}

/// The text of a record. Other keys are skipped: they may hold what cannot be represented, such as numbers out of
/// range and half characters.
fn text(record: &[u8], column: &str) -> Result<String, String> {
    let mut json = serde_json::Deserializer::from_slice(record);
    let read = Column(column).deserialize(&mut json).and_then(|found| json.end().map(|()| found));
    match read {
        Ok((Some(Value::String(text)), _)) => Ok(text),
        Ok((Some(Value::Null), _)) => Err(format!("`{column}` is null")),
        Ok((Some(_), _)) => Err(format!("`{column}` is not a string")),
        Ok((None, keys)) => {
            Err(format!("no `{column}`, only {keys:?}; name the key with the text with --text-column"))
        }
        Err(e) => {
            let said = e.to_string();
            // The error counts lines from the record's begin, not the file's.
            let said = said.rfind(" at line ").map_or(said.as_str(), |at| &said[..at]);
            Err(format!("not a JSON object with text in `{column}`: {said} at byte {}", e.column()))
        }
    }
}

/// Reads an object: the value of this key, and the names of the others.
struct Column<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for Column<'_> {
    type Value = (Option<Value>, Vec<String>);

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Column<'_> {
    type Value = (Option<Value>, Vec<String>);

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut found, mut others) = (None, Vec::new());
        while let Some(key) = map.next_key::<String>()? {
            if key == self.0 {
                found = Some(map.next_value()?);
            } else {
                map.next_value::<IgnoredAny>()?;
                others.push(key);
            }
        }
        Ok((found, others))
    }
}
