//! The one way in which Python is started.

use std::ffi::OsStr;
use std::process::Command;

/// Starts an interpreter apart from the place and the person that it is started by (`-I`): it imports nothing from the
/// working folder, where a `random.py` of the user may lie, nor from `PYTHONPATH`, nor packages of the user alone, and
/// `PYTHON*` variables say nothing to it. pip's own (`PIP_*`) and its configuration files count.
pub fn command(interpreter: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(interpreter);
    command.arg("-I");
    command
}

/// What to do where [`command`] finds no pip.
pub const NO_PIP: &str = "install pip for the whole system (the package python3-pip, or `python3 -m ensurepip`) or use a \
                          virtual environment: a pip of `pip install --user` is not looked at";
