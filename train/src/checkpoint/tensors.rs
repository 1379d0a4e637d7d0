//! The safetensors format: a streaming writer that never holds the file, and a mapped reader.
//! Eight bytes of header length, the header as JSON padded with spaces to a multiple of eight, then the data.

use super::CheckpointError;
use crate::mapped;
use engine::{DType, Host, Type};
use safetensors::tensor::{Dtype, Metadata, SafeTensors};
use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Writes a file: `tensors` in this order, the bytes of tensor `i` from `bytes(i)`, asked for one after another.
///
/// # Errors
/// Whatever `out` reports.
///
/// # Panics
/// If `bytes` gives a number of bytes other than the type's.
pub fn write_tensors<'a>(
    out: &mut dyn Write,
    metadata: &[(&str, &str)],
    tensors: &[(String, Type)],
    mut bytes: impl FnMut(usize) -> Cow<'a, [u8]>,
) -> io::Result<()> {
    let header = header(metadata, tensors);
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(header.as_bytes())?;
    for (i, (name, ty)) in tensors.iter().enumerate() {
        let data = bytes(i);
        assert!(
            data.len() == ty.bytes(),
            "tensor `{name}`: {ty} has {} bytes, got {}",
            ty.bytes(),
            data.len()
        );
        out.write_all(&data)?;
    }
    Ok(())
}

/// Bytes of the whole file that [`write_tensors`] would write.
pub(super) fn file_bytes(metadata: &[(&str, &str)], tensors: &[(String, Type)]) -> u64 {
    8 + header(metadata, tensors).len() as u64 + tensors.iter().map(|(_, ty)| ty.bytes() as u64).sum::<u64>()
}

/// The JSON, padded.
fn header(metadata: &[(&str, &str)], tensors: &[(String, Type)]) -> String {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let mut entries = Vec::new();
    if !metadata.is_empty() {
        let pairs: Vec<_> = metadata.iter().map(|(k, v)| format!("{}:{}", quoted(k), quoted(v))).collect();
        entries.push(format!("\"__metadata__\":{{{}}}", pairs.join(",")));
    }
    let mut start = 0;
    for (name, ty) in tensors {
        let end = start + ty.bytes();
        let shape: Vec<_> = ty.shape.iter().map(ToString::to_string).collect();
        entries.push(format!(
            "{}:{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{start},{end}]}}",
            quoted(name),
            dtype_name(ty.dtype),
            shape.join(",")
        ));
        start = end;
    }
    let mut text = format!("{{{}}}", entries.join(","));
    while !text.len().is_multiple_of(8) {
        text.push(' ');
    }
    text
}

/// A safetensors file, open for reading. Its tensors are read and not mapped: what is read of a drive that goes away is an
/// error, where touching a map of it would end the process, and no more is in memory than was asked for.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    file: File,
    metadata: Metadata,
    /// Where the first tensor begins.
    data: u64,
}

impl TensorFile {
    /// Opens a file and checks its header: offsets contiguous and covering the file.
    ///
    /// # Errors
    /// If it cannot be opened or is no valid safetensors file.
    pub fn open(path: &Path) -> Result<TensorFile, CheckpointError> {
        let file = File::open(path).map_err(CheckpointError::read("opening", path))?;
        // Of the map only the header is touched.
        let map = mapped::map(&file).map_err(CheckpointError::read("mapping", path))?;
        let (header, metadata) = SafeTensors::read_metadata(&map)
            .map_err(|error| CheckpointError::NotTensors { path: path.into(), reason: error.to_string() })?;
        Ok(TensorFile { path: path.into(), file, metadata, data: 8 + header as u64 })
    }

    /// Type of a tensor, if there is one of this name.
    ///
    /// # Errors
    /// If its element type is none of the engine's.
    pub fn ty(&self, name: &str) -> Result<Option<Type>, CheckpointError> {
        let Some(info) = self.metadata.info(name) else { return Ok(None) };
        let dtype = dtype(info.dtype).ok_or_else(|| CheckpointError::NotTensors {
            path: self.path.clone(),
            reason: format!("tensor `{name}` has element type {:?}", info.dtype),
        })?;
        Ok(Some(Type::new(dtype, info.shape.clone())))
    }

    /// Reads a tensor, if there is one of this name.
    ///
    /// # Errors
    /// If its element type is none of the engine's, or reading fails.
    pub fn tensor(&self, name: &str) -> Result<Option<Host>, CheckpointError> {
        let Some((ty, info)) = self.ty(name)?.zip(self.metadata.info(name)) else { return Ok(None) };
        let mut host = Host::zeros(ty);
        let start = self.data + info.data_offsets.0 as u64;
        self.file
            .read_exact_at(host.bytes_mut(), start)
            .map_err(CheckpointError::read("reading", &self.path))?;
        Ok(Some(host))
    }

    /// Names of all tensors in alphabetical order.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.metadata.tensors().into_keys().collect();
        names.sort();
        names
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn dtype_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F64 => "F64",
        DType::F32 => "F32",
        DType::Bf16 => "BF16",
        DType::F16 => "F16",
        DType::I32 => "I32",
        DType::U32 => "U32",
        DType::I64 => "I64",
        DType::U8 => "U8",
        DType::Bool => "BOOL",
    }
}

fn dtype(dtype: Dtype) -> Option<DType> {
    DType::ALL.into_iter().find(|ours| dtype_name(*ours) == dtype.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_official_reader_reads_what_we_write() {
        let tensors =
            [("b\"\n".to_string(), Type::f32([2])), ("a".to_string(), Type::new(DType::Bf16, [3, 1]))];
        let data: [&[u8]; 2] = [&[1, 2, 3, 4, 5, 6, 7, 8], &[9; 6]];
        let mut file = Vec::new();
        write_tensors(&mut file, &[("format", "pt")], &tensors, |i| data[i].into()).unwrap();
        assert_eq!(file.len() as u64, file_bytes(&[("format", "pt")], &tensors));
        let read = SafeTensors::deserialize(&file).unwrap();
        assert_eq!(read.tensor("b\"\n").unwrap().data(), data[0]);
        assert_eq!(read.tensor("a").unwrap().shape(), [3, 1]);
    }

    #[test]
    fn every_element_type_has_a_name_that_reads_back() {
        for ours in DType::ALL {
            let mut file = Vec::new();
            let tensors = [("x".to_string(), Type::new(ours, [2]))];
            write_tensors(&mut file, &[], &tensors, |_| vec![0; 2 * ours.size()].into()).unwrap();
            let read = SafeTensors::deserialize(&file).unwrap();
            assert_eq!(dtype(read.tensor("x").unwrap().dtype()), Some(ours));
        }
    }
}
