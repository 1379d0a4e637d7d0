//! Between the program's parameters (stacked, `[in, out]`) and a checkpoint's tensors (one a layer, `[out, in]`).

use super::weights::Weights;
use super::{CheckpointError, tensors, write_tensors};
use engine::{DType, Host};
use half::slice::HalfFloatSliceExt;
use model::{Config, Entry, Layout, ParamSpec, Params, specs};
use std::borrow::Cow;
use std::io::{self, Write};
use std::path::Path;

/// Hugging Face's loader refuses files that do not say which framework's names and layouts they follow.
const METADATA: &[(&str, &str)] = &[("format", "pt")];
/// The output head, which some programs save although it is the embedding.
const HEAD: &str = "lm_head.weight";
/// Side of the blocks in which matrices are transposed: 32 x 32 x 4 bytes stay in the first cache.
const BLOCK: usize = 32;

/// Writes master weights as a `model.safetensors`, names in alphabetical order, one transposed matrix in memory at a
/// time.
///
/// # Errors
/// Whatever `out` reports.
///
/// # Panics
/// If a parameter's type is not the configuration's.
pub fn write_params(out: &mut dyn Write, config: &Config, params: &Params<Host>) -> io::Result<()> {
    let list = listed(specs(config).zip(params.as_ref()));
    let types: Vec<_> = list.iter().map(|(entry, _)| (entry.name.clone(), entry.ty.clone())).collect();
    write_tensors(out, METADATA, &types, |i| {
        let (entry, host) = &list[i];
        let bytes = slice(host.bytes(), entry);
        match entry.layout {
            Layout::Same => Cow::Borrowed(bytes),
            Layout::Transposed => {
                let mut transposed = vec![0; bytes.len()];
                // The checkpoint's shape is the result's.
                transpose(bytes, &mut transposed, entry.ty.shape[1], entry.ty.shape[0]);
                Cow::Owned(transposed)
            }
        }
    })
}

/// Bytes of the file that [`write_params`] writes.
pub(super) fn params_file_bytes(config: &Config) -> u64 {
    let entries = specs(config).into_flat().into_iter().flat_map(|(_, spec)| spec.entries());
    tensors::file_bytes(METADATA, &entries.map(|entry| (entry.name, entry.ty)).collect::<Vec<_>>())
}

/// Reads master weights from any safetensors file, or index of such files, with this model's names, a wrapper's prefix before
/// all of them or none; other floating-point numbers become `f32`. A head is taken if it is the embedding.
///
/// # Errors
/// If a file is not readable, or a tensor is missing, has another shape, holds NaN or infinity, or is none of this
/// model's.
pub fn read_params(path: &Path, config: &Config) -> Result<Params<Host>, CheckpointError> {
    params_of(&Weights::open(path)?, config)
}

pub(super) fn params_of(file: &Weights, config: &Config) -> Result<Params<Host>, CheckpointError> {
    let specs = specs(config);
    let params = specs.as_ref().try_map(|_, spec| param_of(file, spec, &specs))?;
    check_names(file, &specs)?;
    Ok(params)
}

/// Reads one parameter: one tensor, or those of all layers.
pub(super) fn param_of(
    file: &Weights,
    spec: &ParamSpec,
    specs: &Params<ParamSpec>,
) -> Result<Host, CheckpointError> {
    let path = file.path();
    let mut host = Host::zeros(spec.ty.clone());
    for entry in spec.entries() {
        let Some(tensor) = file.tensor(&entry.name)? else {
            let (found, known) =
                (file.names().count(), file.names().filter(|name| specs.find(name).is_some()).count());
            return Err(CheckpointError::MissingTensor { path: path.into(), name: entry.name, found, known });
        };
        let ty = tensor.ty().clone();
        let numbers = widened(tensor).filter(|_| ty.shape == entry.ty.shape).ok_or_else(|| {
            let (path, name, wanted) = (path.into(), entry.name.clone(), entry.ty.clone());
            CheckpointError::TensorType { path, name, found: ty.to_string(), wanted }
        })?;
        check_finite(path, &entry, numbers.bytes())?;
        let target = slice_mut(host.bytes_mut(), &entry);
        match entry.layout {
            Layout::Same => target.copy_from_slice(numbers.bytes()),
            Layout::Transposed => transpose(numbers.bytes(), target, ty.shape[0], ty.shape[1]),
        }
    }
    Ok(host)
}

/// Refuses tensors that the model has no place for, but not a head that is the embedding.
pub(super) fn check_names(file: &Weights, specs: &Params<ParamSpec>) -> Result<(), CheckpointError> {
    let path = file.path();
    let mut extra: Vec<_> = file.names().filter(|name| specs.find(name).is_none()).collect();
    if let Some(head) = file.tensor(HEAD)? {
        let embed = param_of(file, &specs.embed, specs)?;
        if widened(head).is_none_or(|head| head != embed) {
            return Err(CheckpointError::UntiedHead { path: path.into() });
        }
        extra.retain(|name| *name != HEAD);
    }
    if extra.is_empty() {
        return Ok(());
    }
    let some: Vec<_> = extra.iter().take(5).map(|name| name.as_str()).collect();
    let more = if extra.len() > some.len() {
        format!(" and {} more", extra.len() - some.len())
    } else {
        String::new()
    };
    Err(CheckpointError::ExtraTensors { path: path.into(), names: some.join(", ") + &more })
}

/// Refuses a tensor of f32 that holds NaN or infinity: everything computed with it would be NaN.
fn check_finite(path: &Path, entry: &Entry, bytes: &[u8]) -> Result<(), CheckpointError> {
    // A file need not align its numbers.
    let number = |bytes: &[u8]| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    // No branch within a block, so that the compiler makes vectors of it.
    let finite =
        |block: &[u8]| block.chunks_exact(4).fold(true, |all, bytes| all & number(bytes).is_finite());
    if bytes.chunks(1 << 16).all(finite) {
        return Ok(());
    }
    let mut bad = bytes.chunks_exact(4).map(number).enumerate().filter(|(_, number)| !number.is_finite());
    let Some((first, number)) = bad.next() else { return Ok(()) };
    let mut place = first;
    let mut at: Vec<usize> = Vec::new();
    for &size in entry.ty.shape.iter().rev() {
        at.insert(0, place % size);
        place /= size;
    }
    let (path, name, count) = (path.into(), entry.name.clone(), bad.count() + 1);
    Err(CheckpointError::NotFinite { path, name, number, at, count })
}

/// Every tensor of the file with the parameter that it is a part of, in alphabetical order.
fn listed(params: Params<(ParamSpec, &Host)>) -> Vec<(Entry, &Host)> {
    let mut list = Vec::new();
    for (name, (spec, host)) in params.into_flat() {
        assert!(
            *host.ty() == spec.ty,
            "parameter `{name}` is {}, but its configuration says {}",
            host.ty(),
            spec.ty
        );
        list.extend(spec.entries().into_iter().map(|entry| (entry, host)));
    }
    list.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
    list
}

fn range(entry: &Entry) -> std::ops::Range<usize> {
    let bytes = entry.ty.bytes();
    let start = entry.layer.unwrap_or(0) * bytes;
    start..start + bytes
}

fn slice<'a>(stacked: &'a [u8], entry: &Entry) -> &'a [u8] {
    &stacked[range(entry)]
}

fn slice_mut<'a>(stacked: &'a mut [u8], entry: &Entry) -> &'a mut [u8] {
    &mut stacked[range(entry)]
}

/// The same numbers as `f32`, those of `f64` rounded; none for other element types.
fn widened(other: Host) -> Option<Host> {
    let mut wide = match other.ty().dtype {
        DType::F32 => return Some(other),
        DType::Bf16 | DType::F16 | DType::F64 => Host::zeros(other.ty().with_dtype(DType::F32)),
        _ => return None,
    };
    let to = wide.as_mut_slice::<f32>();
    match other.ty().dtype {
        DType::Bf16 => other.as_slice::<half::bf16>().convert_to_f32_slice(to),
        DType::F16 => other.as_slice::<half::f16>().convert_to_f32_slice(to),
        _ => to.iter_mut().zip(other.as_slice::<f64>()).for_each(|(to, from)| *to = *from as f32),
    }
    Some(wide)
}

/// `[rows, columns]` of four-byte elements to `[columns, rows]`.
fn transpose(from: &[u8], to: &mut [u8], rows: usize, columns: usize) {
    let from: &[[u8; 4]] = bytemuck::cast_slice(from);
    let to: &mut [[u8; 4]] = bytemuck::cast_slice_mut(to);
    for row_block in (0..rows).step_by(BLOCK) {
        for column_block in (0..columns).step_by(BLOCK) {
            for column in column_block..(column_block + BLOCK).min(columns) {
                for row in row_block..(row_block + BLOCK).min(rows) {
                    to[column * rows + row] = from[row * columns + column];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transposing_twice_changes_nothing_and_once_does() {
        for (rows, columns) in [(1, 5), (33, 64), (100, 31)] {
            let from: Vec<u8> = (0..rows * columns).flat_map(|i| (i as u32).to_le_bytes()).collect();
            let (mut once, mut twice) = (vec![0; from.len()], vec![0; from.len()]);
            transpose(&from, &mut once, rows, columns);
            assert_eq!(once[4 * rows..4 * rows + 4], from[4..8]);
            transpose(&once, &mut twice, columns, rows);
            assert_eq!(from, twice);
        }
    }
}
