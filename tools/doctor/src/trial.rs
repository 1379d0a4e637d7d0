//! Trying a plugin in a process of its own: this program, started anew with a mark as its first argument.

use crate::{Finding, State};
use engine::gpu::Gpu;
use engine::pjrt::{Arg, Client, CompileOptions, Error, Plugin, Topology, Value};
use engine::{CallFrame, Host, HostCall, HostFunction, Program, Type};
use fetch::devices;
use fetch::platform::Platform;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fmt;
use std::io::Read;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// What a plugin is tried with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Way {
    /// Computing on its first device.
    Run,
    /// Compiling for a device that is not here.
    CompileFor(Absent),
}

/// A device that is not here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Absent {
    V6e,
    H100,
}

/// What a plugin could do, and what it said about itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Report {
    /// Its version of the PJRT API.
    api: (i32, i32),
    /// The newest StableHLO that it reads.
    stablehlo: Option<Vec<i64>>,
    /// The platform's own version.
    version: Option<String>,
    /// Its devices, or those of the topology.
    devices: Vec<Device>,
}

/// A kind of device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Device {
    /// The plugin's name for it.
    kind: String,
    /// How many there are.
    count: usize,
    /// Bytes of memory of each, if the plugin says.
    memory: Option<i64>,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} x {}", self.count, self.kind)?;
        match self.memory {
            Some(bytes) => write!(f, " of {:.1} GiB", bytes as f64 / (1u64 << 30) as f64),
            None => Ok(()),
        }
    }
}

/// Why a plugin is of no use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Failure {
    /// What happened.
    what: String,
    /// What to do.
    remedy: String,
}

/// Tries a plugin; `bad` is what a failure means.
pub(crate) fn try_plugin(
    platform: &Platform,
    subject: &str,
    library: &Path,
    bad: State,
    root: &Path,
) -> Finding {
    let way = match platform {
        Platform::Tpu if devices::tpus(root).is_empty() => Way::CompileFor(Absent::V6e),
        Platform::Cuda if devices::gpus(root).is_empty() => Way::CompileFor(Absent::H100),
        Platform::Cpu | Platform::Cuda | Platform::Tpu | Platform::Path(_) => Way::Run,
    };
    match run(library, &way) {
        Ok(report) => usable(subject, library, &way, &report, bad),
        Err(Failure { what, remedy }) => Finding::bad(bad, subject, what, remedy),
    }
}

/// The StableHLO that the engine prints.
const STABLEHLO: [i64; 2] = [1, 13];

fn usable(subject: &str, library: &Path, way: &Way, report: &Report, bad: State) -> Finding {
    let Report { api: (major, minor), stablehlo, version, devices } = report;
    let known = |numbers: &[i64]| numbers.iter().map(i64::to_string).collect::<Vec<_>>().join(".");
    let mut what = format!("PJRT API {major}.{minor}");
    if let Some(numbers) = stablehlo {
        what += &format!(", StableHLO {}", known(numbers));
    }
    if let Some(version) = version {
        what += &format!(", {version}");
    }
    let kinds: Vec<String> = devices.iter().map(Device::to_string).collect();
    what += &match way {
        Way::Run => format!("; computes on {}", kinds.join(", ")),
        Way::CompileFor(_) => format!("; no such device is here, compiles for {}", kinds.join(", ")),
    };
    what += &format!("; {}", library.display());
    match stablehlo {
        Some(numbers) if numbers[..] < STABLEHLO[..] => Finding::bad(
            bad,
            subject,
            format!("{what}: wanted StableHLO {} or newer", known(&STABLEHLO)),
            "take a newer plugin",
        ),
        _ => Finding::good(subject, what),
    }
}

/// The first argument of a process that tries a plugin.
const MARK: &str = "--try-plugin";

/// Loading and compiling take seconds; a plugin that waits for something that is not there waits for minutes.
const PATIENCE: Duration = Duration::from_secs(120);

/// Tries a plugin in a process of its own.
///
/// # Errors
/// What the plugin said, or how its process ended.
fn run(library: &Path, way: &Way) -> Result<Report, Failure> {
    let failed = |what: String| Failure {
        what,
        remedy: "run again with TF_CPP_MIN_LOG_LEVEL=0 to see the plugin's own log; or take another plugin"
            .into(),
    };
    let mut child = Command::new("/proc/self/exe")
        .arg(MARK)
        .arg(library)
        .arg(serde_json::to_string(way).map_err(|error| failed(error.to_string()))?)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| failed(format!("starting a process for the plugin: {error}")))?;
    let start = Instant::now();
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if start.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(20)),
            Ok(None) => {
                // It may have ended by itself; either way the process is waited for.
                let _ = child.kill();
                let _ = child.wait();
                return Err(failed(format!("no answer within {} s", PATIENCE.as_secs())));
            }
            Err(error) => return Err(failed(format!("waiting for the plugin's process: {error}"))),
        }
    };
    let mut said = String::new();
    if let Some(output) = &mut child.stdout {
        output
            .read_to_string(&mut said)
            .map_err(|error| failed(format!("reading the plugin's answer: {error}")))?;
    }
    // A plugin may write to standard output too; the answer is the last line.
    let answer =
        said.lines().last().and_then(|line| serde_json::from_str::<Result<Report, Failure>>(line).ok());
    answer.unwrap_or_else(|| Err(failed(format!("its process ended without an answer ({status})"))))
}

/// If this process was started by [`run`]: tries the plugin. Call it before all else.
pub(crate) fn become_child(arguments: &[OsString]) -> Option<ExitCode> {
    let [_, mark, library, way] = arguments else { return None };
    if mark != MARK {
        return None;
    }
    let way = serde_json::from_str(&way.to_string_lossy()).ok()?;
    let answer = attempt(Path::new(library), &way).map_err(|error| failure(&error));
    println!("{}", serde_json::to_string(&answer).ok()?);
    Some(ExitCode::SUCCESS)
}

/// The engine's messages end in what to do, after a semicolon, unless they are the plugin's own words.
fn failure(error: &Error) -> Failure {
    let text = error.to_string();
    if let Some(remedy) = error.remedy() {
        return Failure { what: text.replace(&format!("; {remedy}"), ""), remedy };
    }
    match (error, text.rsplit_once("; ")) {
        (Error::Call { .. } | Error::Unsupported { .. } | Error::Arguments(_), _) | (_, None) => {
            let remedy = "see that the device is there and that no other process uses it";
            Failure { what: text, remedy: remedy.to_owned() }
        }
        (_, Some((what, remedy))) => Failure { what: what.to_owned(), remedy: remedy.to_owned() },
    }
}

fn attempt(library: &Path, way: &Way) -> Result<Report, Error> {
    let plugin = Plugin::load(library)?;
    let mut report = Report { api: plugin.version(), stablehlo: None, version: None, devices: Vec::new() };
    // An old plugin may not tell its version; what it cannot do is found below.
    if let Ok(attributes) = plugin.attributes()
        && let Some(Value::Ints(numbers)) = attributes.get("stablehlo_current_version")
    {
        report.stablehlo = Some(numbers.clone());
    }
    let program = Program::build("trial", |g| {
        let x = g.input("x", Type::f32([2]));
        g.output("y", x + x);
    });
    match way {
        Way::CompileFor(device) => {
            let topology = match device {
                Absent::V6e => Topology::new(&plugin, "v6e:1x1", &[])?,
                Absent::H100 => Gpu::H100.topology(&plugin)?,
            };
            for device in topology.devices()? {
                let memory = match device.attributes.get("device_memory_bytes_limit") {
                    Some(Value::Int(bytes)) => Some(*bytes),
                    _ => None,
                };
                count(&mut report.devices, device.kind, memory);
            }
            program.compile_for(&topology, &CompileOptions::single())?;
        }
        Way::Run => {
            let client = Client::new(&plugin, &[])?;
            report.version = client.platform_version().ok().and_then(|text| first_words(&text));
            for device in client.devices() {
                let memory = device.memory_stats()?.and_then(|stats| stats.limit);
                count(&mut report.devices, device.kind().to_owned(), memory);
            }
            let Some(device) = client.devices().first() else {
                return Err(Error::Arguments("the plugin has no device on this machine".to_owned()));
            };
            let program = if client.platform_name()? == "cpu" { with_a_call_back() } else { program };
            let compiled = program.compile(&client)?;
            let x = client.to_device(&Host::new([2], &[1f32, -3.0]), device)?;
            let y = compiled.run([Arg::Donate(x)])?.remove(0).to_host()?;
            if y != Host::new([2], &[2f32, -6.0]) {
                return Err(Error::Arguments(format!("[1, -3] doubled is {:?} on this device", y.to_f64())));
            }
        }
    }
    Ok(report)
}

/// A copy that this process makes when the plugin asks: what a CPU's native kernels need of a plugin.
struct Copied;

impl HostFunction for Copied {
    const NAME: &'static str = "doctor_copied";

    fn call(CallFrame { operands, results, .. }: CallFrame<'_>) {
        let pairs = results.into_iter().zip(operands);
        pairs.for_each(|(y, x)| y.into_slice::<f32>().copy_from_slice(x.as_slice()));
    }
}

fn with_a_call_back() -> Program {
    Program::build("trial", |g| {
        let x = g.input("x", Type::f32([2]));
        g.output("y", x + g.host_call(HostCall::new::<Copied>(vec![0], vec![x.ty()]), &[x])[0]);
    })
}

fn count(devices: &mut Vec<Device>, kind: String, memory: Option<i64>) {
    match devices.iter_mut().find(|device| device.kind == kind && device.memory == memory) {
        Some(known) => known.count += 1,
        None => devices.push(Device { kind, count: 1, memory }),
    }
}

/// A plugin's version can be many lines.
fn first_words(text: &str) -> Option<String> {
    let line: String = text.lines().next()?.chars().take(40).collect();
    (!line.trim().is_empty()).then(|| line.trim().to_owned())
}
