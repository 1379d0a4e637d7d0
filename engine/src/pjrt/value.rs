//! Named values: how the C API passes options in, and attributes and costs out.

use pjrt_sys as sys;
use std::collections::BTreeMap;
use std::fmt;

/// One option, attribute or cost.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Value {
    Text(String),
    Int(i64),
    Ints(Vec<i64>),
    Float(f32),
    Bool(bool),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Text(text) => f.write_str(text),
            Value::Int(number) => write!(f, "{number}"),
            Value::Ints(numbers) => write!(f, "{numbers:?}"),
            Value::Float(number) => write!(f, "{number}"),
            Value::Bool(truth) => write!(f, "{truth}"),
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Value {
        Value::Text(text.to_string())
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Value {
        Value::Int(number)
    }
}

impl From<bool> for Value {
    fn from(truth: bool) -> Value {
        Value::Bool(truth)
    }
}

/// The C form of options; it points into `options`.
pub(super) fn to_raw(options: &[(&str, Value)]) -> Vec<sys::PJRT_NamedValue> {
    let mut raw = Vec::with_capacity(options.len());
    for (name, value) in options {
        let mut named = sys::PJRT_NamedValue {
            struct_size: size_of::<sys::PJRT_NamedValue>(),
            name: name.as_ptr().cast(),
            name_size: name.len(),
            value_size: 1,
            ..Default::default()
        };
        match value {
            Value::Text(text) => {
                named.type_ = sys::PJRT_NamedValue_kString;
                named.__bindgen_anon_1.string_value = text.as_ptr().cast();
                named.value_size = text.len();
            }
            Value::Int(number) => {
                named.type_ = sys::PJRT_NamedValue_kInt64;
                named.__bindgen_anon_1.int64_value = *number;
            }
            Value::Ints(numbers) => {
                named.type_ = sys::PJRT_NamedValue_kInt64List;
                named.__bindgen_anon_1.int64_array_value = numbers.as_ptr();
                named.value_size = numbers.len();
            }
            Value::Float(number) => {
                named.type_ = sys::PJRT_NamedValue_kFloat;
                named.__bindgen_anon_1.float_value = *number;
            }
            Value::Bool(truth) => {
                named.type_ = sys::PJRT_NamedValue_kBool;
                named.__bindgen_anon_1.bool_value = *truth;
            }
        }
        raw.push(named);
    }
    raw
}

/// Copies named values out of a plugin; kinds that this API version does not know are left out.
///
/// # Safety
/// `raw` points to `count` named values that live during the call (or `count` is 0).
pub(super) unsafe fn from_raw(raw: *const sys::PJRT_NamedValue, count: usize) -> BTreeMap<String, Value> {
    let mut values = BTreeMap::new();
    // SAFETY: by the contract; the union's member is chosen by its tag.
    unsafe {
        for named in slice(raw, count) {
            let data = &named.__bindgen_anon_1;
            let value = match named.type_ {
                sys::PJRT_NamedValue_kString => Value::Text(text(data.string_value, named.value_size)),
                sys::PJRT_NamedValue_kInt64 => Value::Int(data.int64_value),
                sys::PJRT_NamedValue_kInt64List => {
                    Value::Ints(slice(data.int64_array_value, named.value_size).to_vec())
                }
                sys::PJRT_NamedValue_kFloat => Value::Float(data.float_value),
                sys::PJRT_NamedValue_kBool => Value::Bool(data.bool_value),
                _ => continue,
            };
            values.insert(text(named.name, named.name_size), value);
        }
    }
    values
}

/// A text of the C API; it need not be UTF-8 nor end in a NUL.
///
/// # Safety
/// `data` points to `size` bytes, or is null.
pub(super) unsafe fn text(data: *const std::ffi::c_char, size: usize) -> String {
    // SAFETY: by the contract.
    String::from_utf8_lossy(unsafe { slice(data.cast::<u8>(), size) }).into_owned()
}

/// A list of the C API, where an empty one may be a null pointer.
///
/// # Safety
/// `data` points to `count` elements that live for `'a`, or is null.
pub(super) unsafe fn slice<'a, T>(data: *const T, count: usize) -> &'a [T] {
    if data.is_null() || count == 0 {
        return &[];
    }
    // SAFETY: by the contract.
    unsafe { std::slice::from_raw_parts(data, count) }
}
