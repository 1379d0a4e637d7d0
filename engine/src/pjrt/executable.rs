//! [`Executable`]: a compiled program and what its compiler knows about it.

use super::buffer::type_of;
use super::error::Result;
use super::handle::Counts;
use super::plugin::{Plugin, call};
use super::value::{self, Value};
use crate::types::Type;
use pjrt_sys as sys;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A compiled program, on a device or not.
pub struct Executable {
    plugin: Plugin,
    raw: *mut sys::PJRT_Executable,
    counts: Arc<Counts>,
}

// SAFETY: an executable is never changed after it was made, and may be used from any thread.
unsafe impl Send for Executable {}
// SAFETY: as above.
unsafe impl Sync for Executable {}

/// The memory that a program takes on each device, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryUse {
    /// Arguments.
    pub arguments: i64,
    /// Results.
    pub outputs: i64,
    /// The part of the arguments that results take over (donation).
    pub aliased: i64,
    /// Intermediate values.
    pub temporaries: i64,
    /// Machine code.
    pub code: i64,
    /// The compiler's own figure of the peak; 0 if it has none.
    pub peak: i64,
}

/// A program after the compiler's passes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptimizedProgram {
    /// The name of the format: `mlir`, `hlo`, or `hlo_with_config`.
    pub format: String,
    /// The program; text or protobuf, as the format says.
    pub code: Vec<u8>,
}

impl MemoryUse {
    /// Arguments, results and intermediate values together, aliased bytes counted once.
    pub fn total(&self) -> i64 {
        self.arguments + self.outputs - self.aliased + self.temporaries
    }
}

impl fmt::Display for MemoryUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let MemoryUse { arguments, outputs, aliased, temporaries, code, peak } = self;
        write!(
            f,
            "arguments {arguments}, outputs {outputs}, aliased {aliased}, temporaries {temporaries}, code {code}, peak {peak} bytes"
        )
    }
}

impl Executable {
    /// # Safety
    /// `raw` is an executable of `plugin` that nobody else destroys.
    pub(super) unsafe fn from_raw(
        plugin: &Plugin,
        raw: *mut sys::PJRT_Executable,
        counts: &Arc<Counts>,
    ) -> Executable {
        counts.executables.fetch_add(1, Ordering::SeqCst);
        Executable { plugin: plugin.clone(), raw, counts: counts.clone() }
    }

    /// The program's name.
    ///
    /// # Errors
    /// If the plugin refuses.
    pub fn name(&self) -> Result<String> {
        // SAFETY: the executable is alive, and what comes out lives as long.
        unsafe {
            let args = call!(&self.plugin, PJRT_Executable_Name { executable: self.raw })?;
            Ok(value::text(args.executable_name, args.executable_name_size))
        }
    }

    /// Element types and shapes of the results, as they lie on one device.
    ///
    /// # Errors
    /// If a result has an element type that the engine does not know.
    pub fn output_types(&self) -> Result<Vec<Type>> {
        // SAFETY: the executable is alive, and the lists live as long.
        unsafe {
            let elements = call!(&self.plugin, PJRT_Executable_OutputElementTypes { executable: self.raw })?;
            let shapes = call!(&self.plugin, PJRT_Executable_OutputDimensions { executable: self.raw })?;
            let ranks = value::slice(shapes.dim_sizes, shapes.num_outputs);
            let mut dims = value::slice(shapes.dims, ranks.iter().sum());
            let elements = value::slice(elements.output_types, elements.num_output_types);
            let mut types = Vec::new();
            for (&element, &rank) in elements.iter().zip(ranks) {
                let (shape, rest) = dims.split_at(rank);
                types.push(type_of(&self.plugin, element, shape)?);
                dims = rest;
            }
            Ok(types)
        }
    }

    /// Number of results on each device.
    ///
    /// # Errors
    /// If the plugin refuses.
    pub fn output_count(&self) -> Result<usize> {
        // SAFETY: the executable is alive.
        unsafe { call!(&self.plugin, PJRT_Executable_NumOutputs { executable: self.raw }) }
            .map(|args| args.num_outputs)
    }

    /// The memory that the program takes on each device.
    ///
    /// # Errors
    /// If the plugin keeps no such statistics.
    pub fn memory_use(&self) -> Result<MemoryUse> {
        // SAFETY: the executable is alive.
        let args =
            unsafe { call!(&self.plugin, PJRT_Executable_GetCompiledMemoryStats { executable: self.raw }) }?;
        Ok(MemoryUse {
            arguments: args.argument_size_in_bytes,
            outputs: args.output_size_in_bytes,
            aliased: args.alias_size_in_bytes,
            temporaries: args.temp_size_in_bytes,
            code: args.generated_code_size_in_bytes,
            peak: args.peak_memory_in_bytes,
        })
    }

    /// The compiler's estimate of the work: `flops`, `bytes accessed` and others. The body of a loop counts
    /// once.
    ///
    /// # Errors
    /// If the plugin makes none.
    pub fn cost(&self) -> Result<BTreeMap<String, Value>> {
        // SAFETY: the executable is alive, and the values live as long.
        unsafe {
            let args = call!(&self.plugin, PJRT_Executable_GetCostAnalysis { executable: self.raw })?;
            Ok(value::from_raw(args.properties, args.num_properties))
        }
    }

    /// The program after the compiler's passes.
    ///
    /// # Errors
    /// If the plugin does not give it out.
    pub fn optimized_program(&self) -> Result<OptimizedProgram> {
        let mut program =
            sys::PJRT_Program { struct_size: size_of::<sys::PJRT_Program>(), ..Default::default() };
        // SAFETY: the first call, with no room given, tells the size; the second writes that many bytes. The
        // format's name lives as long as the executable.
        unsafe {
            call!(
                &self.plugin,
                PJRT_Executable_OptimizedProgram { executable: self.raw, program: &mut program }
            )?;
            let mut code = vec![0; program.code_size];
            program.code = code.as_mut_ptr().cast();
            call!(
                &self.plugin,
                PJRT_Executable_OptimizedProgram { executable: self.raw, program: &mut program }
            )?;
            Ok(OptimizedProgram { format: value::text(program.format, program.format_size), code })
        }
    }

    /// Bytes of machine code; -1 if the plugin does not know.
    ///
    /// # Errors
    /// If the plugin refuses.
    pub fn code_size(&self) -> Result<i64> {
        // SAFETY: the executable is alive.
        unsafe { call!(&self.plugin, PJRT_Executable_SizeOfGeneratedCodeInBytes { executable: self.raw }) }
            .map(|args| args.size_in_bytes)
    }

    /// A name for the compiled program's content.
    ///
    /// # Errors
    /// If the plugin gives none.
    pub fn fingerprint(&self) -> Result<String> {
        // SAFETY: the executable is alive, and what comes out lives as long.
        unsafe {
            let args = call!(&self.plugin, PJRT_Executable_Fingerprint { executable: self.raw })?;
            Ok(value::text(args.executable_fingerprint, args.executable_fingerprint_size))
        }
    }

    /// Bytes for [`Client::deserialize`](super::Client::deserialize).
    ///
    /// # Errors
    /// If the plugin cannot serialise the program.
    pub fn serialize(&self) -> Result<Vec<u8>> {
        // SAFETY: the executable is alive. The bytes live until the deleter is called, which is done once.
        unsafe {
            let args = call!(&self.plugin, PJRT_Executable_Serialize { executable: self.raw })?;
            let bytes = value::slice(args.serialized_bytes.cast::<u8>(), args.serialized_bytes_size).to_vec();
            if let Some(delete) = args.serialized_executable_deleter {
                delete(args.serialized_executable);
            }
            Ok(bytes)
        }
    }
}

impl Drop for Executable {
    fn drop(&mut self) {
        // SAFETY: the executable is alive, and this is its last use. A failure could not be acted upon.
        let _ = unsafe { call!(&self.plugin, PJRT_Executable_Destroy { executable: self.raw }) };
        self.counts.executables.fetch_sub(1, Ordering::SeqCst);
    }
}

impl fmt::Debug for Executable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Executable({})", self.name().unwrap_or_default())
    }
}
