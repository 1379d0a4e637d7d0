//! Pinned wheels: fetched by name with pip, checked against a hash kept here, some of their files
//! unpacked into a cache.
//!
//! pip and Python's `zipfile` do the transport, because they honour the user's proxies and mirrors
//! and no archive code has to be compiled; the hash is checked by us, so a file laid down by hand is as good
//! as a fetched one.

use crate::python;
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::UNIX_EPOCH;
use std::{env, fmt};

/// One wheel of one package, pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wheel {
    /// The package's name.
    pub package: &'static str,
    /// The exact version.
    pub version: &'static str,
    /// The wheel's file name; its tags say which platform and which Python it is for.
    pub file: &'static str,
    /// SHA-256 of the wheel, in hex.
    pub sha256: &'static str,
}

/// XLA's CPU plugin with `pjrt_c_api.h` beside it, for a processor architecture as Rust names it.
///
/// None where no package is pinned for that.
pub fn xla_cpu(arch: &str) -> Option<Wheel> {
    let (file, sha256) = match arch {
        "x86_64" => (
            "xla_cpu_pjrt-0.0.1-py3-none-manylinux_2_27_x86_64.whl",
            "55837b6b7b47daa717f2d9a5a03563ea0ceaa338d06a81a1e2d3f060d960decc",
        ),
        "aarch64" => (
            "xla_cpu_pjrt-0.0.1-py3-none-manylinux_2_27_aarch64.whl",
            "8f613be6e891858f40d64f9799319502fff42689661944fc18a6ffd8210b30c9",
        ),
        _ => return None,
    };
    Some(Wheel { package: "xla-cpu-pjrt", version: "0.0.1", file, sha256 })
}

/// Why a file of a wheel could not be had.
#[derive(Debug)]
pub enum Error {
    /// Neither `PYTHONLM_CACHE`, `XDG_CACHE_HOME` nor `HOME` names a folder.
    NoCacheFolder,
    /// A file or folder of the cache could not be read or written.
    Io {
        /// What was being done.
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// pip did not deliver the wheel, and it was not in the cache.
    Download {
        /// The wheel.
        wheel: Wheel,
        /// The folder where the wheel may be put by hand.
        folder: PathBuf,
        /// What pip said.
        reason: String,
    },
    /// A wheel does not have the pinned hash.
    Hash {
        /// The wheel.
        wheel: Wheel,
        /// The file that was checked.
        path: PathBuf,
        /// The hash that was found.
        found: String,
    },
    /// Files could not be unpacked from a wheel whose hash is right.
    Unpack {
        /// The wheel.
        wheel: Wheel,
        /// The file inside it, or what the names of several begin with.
        member: String,
        /// What Python said.
        reason: String,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::NoCacheFolder => f.write_str(
                "looking for the cache folder: none of PYTHONLM_CACHE, XDG_CACHE_HOME and HOME is set; set PYTHONLM_CACHE to a folder",
            ),
            Error::Io { doing, path, source } => write!(f, "{doing} {}: {source}", path.display()),
            Error::Download { wheel, folder, reason } => write!(
                f,
                "fetching {} {} with pip failed: {reason}\nwithout a network: on any machine with one, run\n  {}\nand put {} (sha256 {}) into {}",
                wheel.package,
                wheel.version,
                by_hand(&[*wheel]),
                wheel.file,
                wheel.sha256,
                folder.display()
            ),
            Error::Hash { wheel, path, found } => write!(
                f,
                "checking {}: sha256 is {found}, wanted {}; delete the file and fetch it again",
                path.display(),
                wheel.sha256
            ),
            Error::Unpack { wheel, member, reason } => {
                write!(f, "unpacking {member} from {}: {reason}", wheel.file)
            }
        }
    }
}

impl std::error::Error for Error {}

/// The folder of everything that is fetched: `PYTHONLM_CACHE`, else `pythonlm` in the user's cache folder.
///
/// # Errors
/// If no environment variable names a folder.
pub fn cache_folder() -> Result<PathBuf, Error> {
    let named = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    named("PYTHONLM_CACHE")
        .or_else(|| named("XDG_CACHE_HOME").map(|folder| folder.join("pythonlm")))
        .or_else(|| named("HOME").map(|folder| folder.join(".cache").join("pythonlm")))
        .ok_or(Error::NoCacheFolder)
}

impl Wheel {
    /// The path of one file of the wheel, unpacked in `cache`, as by [`Wheel::unpack`].
    ///
    /// # Errors
    /// As [`Wheel::unpack`].
    pub fn member(&self, member: &str, cache: &Path, say: &mut dyn FnMut(&str)) -> Result<PathBuf, Error> {
        let root = self.root(cache);
        self.unpack(&[member], &root, cache, say)?;
        Ok(root.join(member))
    }

    /// Lays the files whose names begin with one of `parts` below `root`, where pip would lay them below a folder of
    /// packages. They are fetched and unpacked if they are not there or damaged.
    ///
    /// Whether they are damaged is seen from size and modification time, noted when they were unpacked: a plugin
    /// has hundreds of megabytes and is opened by every process, and what an interrupted copy, a full disk or
    /// an editor does to a file shows in one of the two. `say` gets one line before a download starts.
    ///
    /// # Errors
    /// If the wheel can neither be found nor fetched, has another hash, or the cache cannot be written.
    pub fn unpack(
        &self,
        parts: &[&str],
        root: &Path,
        cache: &Path,
        say: &mut dyn FnMut(&str),
    ) -> Result<(), Error> {
        if state(root, parts) == State::Whole {
            return Ok(());
        }
        let wheels = wheels_folder(cache);
        for folder in [root, &wheels] {
            fs::create_dir_all(folder).map_err(io_error("creating", folder))?;
        }
        // Held until the end of the function; the system releases it when a process dies.
        let lock = wheels.join(format!("{}.lock", self.file));
        let held = File::options().create(true).write(true).truncate(false).open(&lock);
        let _held = held.and_then(|file| file.lock().map(|()| file)).map_err(io_error("locking", &lock))?;
        if state(root, parts) == State::Whole {
            return Ok(());
        }
        let wheel = self.obtain(&wheels, say)?;
        let names = run(python::command("python3").args(["-c", UNPACK]).arg(wheel).arg(root).args(parts))
            .map_err(|reason| Error::Unpack { wheel: *self, member: parts.join(" and "), reason })?;
        let mut text = String::new();
        for name in names.lines() {
            text += &line_of(root, name).map_err(io_error("reading", &root.join(name)))?;
        }
        let seal = seal(root, parts);
        write_whole(&seal, &text).map_err(io_error("writing", &seal))
    }

    /// The folder that the wheel's files are unpacked below.
    pub(crate) fn root(&self, cache: &Path) -> PathBuf {
        cache.join("unpacked").join(format!("{}-{}-{}", self.package, self.version, &self.sha256[..12]))
    }

    /// The wheel itself, in `folder`, with the right hash.
    fn obtain(&self, folder: &Path, say: &mut dyn FnMut(&str)) -> Result<PathBuf, Error> {
        let path = folder.join(self.file);
        if path.exists() {
            match self.check(&path) {
                Ok(()) => return Ok(path),
                Err(Error::Hash { .. }) => {
                    say(&format!("{} is damaged, fetching it again", path.display()));
                    fs::remove_file(&path).map_err(io_error("deleting", &path))?;
                }
                Err(other) => return Err(other),
            }
        }
        say(&format!("fetching {} {} into {}", self.package, self.version, folder.display()));
        let part = folder.join(format!("{}.part", self.file));
        if part.exists() {
            fs::remove_dir_all(&part).map_err(io_error("deleting", &part))?;
        }
        fs::create_dir_all(&part).map_err(io_error("creating", &part))?;
        let failed = |mut reason: String| {
            if reason.contains("No module named pip") {
                reason = format!("{reason}; {}", python::NO_PIP);
            }
            Error::Download { wheel: *self, folder: folder.to_path_buf(), reason }
        };
        let requirements = part.join("requirements.txt");
        let line = format!("{}=={} --hash=sha256:{}\n", self.package, self.version, self.sha256);
        fs::write(&requirements, line).map_err(io_error("writing", &requirements))?;
        let fetched = run(python::command("python3")
            .args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"])
            .args(["--require-hashes", "--no-deps", "--only-binary=:all:"])
            .args(self.tags().concat())
            .arg("--dest")
            .arg(&part)
            .arg("--requirement")
            .arg(&requirements));
        let result = fetched.map_err(failed).and_then(|_| {
            let arrived = part.join(self.file);
            if !arrived.exists() {
                return Err(failed(format!("pip delivered another file than {}", self.file)));
            }
            self.check(&arrived)?;
            fs::rename(&arrived, &path).map_err(io_error("renaming", &arrived))?;
            Ok(path)
        });
        // A leftover is only waste, and the next fetch deletes it.
        let _ = fs::remove_dir_all(&part);
        result
    }

    pub(crate) fn check(&self, path: &Path) -> Result<(), Error> {
        let found = sha256(path).map_err(io_error("reading", path))?;
        if found == self.sha256 {
            Ok(())
        } else {
            Err(Error::Hash { wheel: *self, path: path.to_path_buf(), found })
        }
    }

    /// The options that let any Python fetch a wheel made for a certain one, from the tags of the file name.
    fn tags(&self) -> Vec<[String; 2]> {
        let mut tags = self.file.trim_end_matches(".whl").rsplit('-');
        let (platforms, abi, python) =
            (tags.next().unwrap_or(""), tags.next().unwrap_or(""), tags.next().unwrap_or(""));
        let option = |name: &str, value: &str| [format!("--{name}"), value.to_owned()];
        let mut options: Vec<_> = platforms.split('.').map(|tag| option("platform", tag)).collect();
        if let Some(version) = python.strip_prefix("cp3") {
            options.push(option("python-version", &format!("3.{version}")));
            options.extend([option("implementation", "cp"), option("abi", abi)]);
        }
        options
    }
}

/// The command that fetches wheels, all made for the same Python, on another machine.
pub(crate) fn by_hand(wheels: &[Wheel]) -> String {
    let mut tags: Vec<[String; 2]> = Vec::new();
    for tag in wheels.iter().flat_map(Wheel::tags) {
        if !tags.contains(&tag) {
            tags.push(tag);
        }
    }
    let named: Vec<String> =
        wheels.iter().map(|wheel| format!("{}=={}", wheel.package, wheel.version)).collect();
    format!(
        "python3 -m pip download --no-deps --only-binary=:all: {} {}",
        tags.concat().join(" "),
        named.join(" ")
    )
}

/// Lays the files of a wheel whose names begin with one of the parts below a folder, and prints their names.
const UNPACK: &str = "import os, shutil, sys, zipfile
wheel, root, *parts = sys.argv[1:]
with zipfile.ZipFile(wheel) as source:
    names = [name for name in source.namelist() if name.startswith(tuple(parts)) and not name.endswith('/')]
    for part in parts:
        if not any(name.startswith(part) for name in names):
            sys.exit('it has no ' + part)
    for name in names:
        target = os.path.join(root, name)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with source.open(name) as packed, open(target + '.part', 'wb') as file:
            shutil.copyfileobj(packed, file, 1 << 20)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(target + '.part', source.getinfo(name).external_attr >> 16 & 0o777 or 0o644)
        os.replace(target + '.part', target)
        print(name)";

/// How the files of a wheel lie below a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// As they were unpacked.
    Whole,
    /// This one was changed since.
    Altered(PathBuf),
    /// Not all are there.
    Missing,
}

pub(crate) fn state(root: &Path, parts: &[&str]) -> State {
    let seal = fs::read_to_string(seal(root, parts)).unwrap_or_default();
    if seal.is_empty() {
        let there = parts.iter().map(|part| root.join(part)).find(|path| path.is_file());
        return there.map_or(State::Missing, State::Altered);
    }
    for line in seal.lines() {
        let name = line.rsplit(' ').next().unwrap_or_default();
        match line_of(root, name) {
            Ok(now) if now.trim_end() == line => {}
            Ok(_) => return State::Altered(root.join(name)),
            Err(_) => return State::Missing,
        }
    }
    State::Whole
}

/// Where it is noted how files were unpacked.
fn seal(root: &Path, parts: &[&str]) -> PathBuf {
    root.join(format!("{}.seal", parts.join("+").replace('/', "-")))
}

/// The line of a file in a seal.
fn line_of(root: &Path, name: &str) -> io::Result<String> {
    let data = fs::metadata(root.join(name))?;
    let modified = data.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(format!(
        "{} bytes, modified {}.{:09}, {name}\n",
        data.len(),
        modified.as_secs(),
        modified.subsec_nanos()
    ))
}

/// Where the wheels themselves are kept.
pub(crate) fn wheels_folder(cache: &Path) -> PathBuf {
    cache.join("wheels")
}

fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| Error::Io { doing, path, source }
}

/// Runs a Python command and gives what it printed; the error is the end of what it complained of.
fn run(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("python3 could not be started ({error})"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    Err(format!("{} ({})", lines[lines.len().saturating_sub(3)..].join("; "), output.status))
}

fn sha256(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let (mut hash, mut block) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut block)? {
            0 => return Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            read => hash.update(&block[..read]),
        }
    }
}

fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    let part = path.with_extension("seal.part");
    fs::write(&part, text)?;
    fs::rename(&part, path)
}
