//! A program's text as the C API takes it.

use pjrt_sys as sys;

/// Program text with a NUL after it: the CPU plugin's parser reads past the end of a text that has none.
pub(super) struct ProgramText(Vec<u8>);

impl ProgramText {
    pub(super) fn new(text: &str) -> ProgramText {
        let mut bytes = Vec::with_capacity(text.len() + 1);
        bytes.extend_from_slice(text.as_bytes());
        bytes.push(0);
        ProgramText(bytes)
    }

    /// The C form; it points into `self`.
    pub(super) fn raw(&mut self) -> sys::PJRT_Program {
        const FORMAT: &str = "mlir";
        sys::PJRT_Program {
            struct_size: size_of::<sys::PJRT_Program>(),
            code_size: self.0.len() - 1,
            code: self.0.as_mut_ptr().cast(),
            format: FORMAT.as_ptr().cast(),
            format_size: FORMAT.len(),
            ..Default::default()
        }
    }
}
