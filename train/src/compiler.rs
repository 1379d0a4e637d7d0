//! Compiling a program without running it: what the compiler says of it, for a device that is here or for one that is not.
//! `--plan` and `dump-hlo` use it. It is here, and not in the engine, because it takes the options and the choice of
//! kernels that a run takes ([`crate::device`]). The program's own figures are [`engine::work`], those of the compiler's text
//! [`engine::hlo`].

use crate::device::{
    CodeGeneration, device_memory, main_memory, open_client, options, target_of, tpu_target,
};
use anyhow::{Context, Result, bail, ensure};
use engine::gpu::Gpu;
use engine::pjrt::{Client, CompileOptions, MemoryUse, Plugin, Topology, Value};
use engine::plugin::{Platform, devices};
use engine::{Form, Locations, Program, Target, faithful};
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

/// Where a program would run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// On the first device of a platform on this machine.
    Here(Platform),
    /// On a TPU that need not be here: a topology as libtpu names it, `v6e:1x1`.
    Topology(String),
    /// On a GPU that need not be here.
    Gpu(Gpu),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Here(platform) => platform.fmt(f),
            Place::Topology(topology) => write!(f, "tpu:{topology}"),
            Place::Gpu(gpu) => write!(f, "cuda:{gpu}"),
        }
    }
}

impl FromStr for Place {
    type Err = anyhow::Error;

    /// `cpu`, `cuda`, `cuda:h100`, `tpu`, `tpu:TOPOLOGY` or the path of a plugin. A bare `tpu` is the one of this machine,
    /// or one v6e chip if there is none.
    fn from_str(name: &str) -> Result<Place> {
        if let Some(topology) = name.strip_prefix("tpu:") {
            return Ok(Place::Topology(topology.to_owned()));
        }
        if let Some(gpu) = name.strip_prefix("cuda:") {
            return Ok(Place::Gpu(gpu.parse()?));
        }
        let platform = Platform::choose(Some(name))?;
        let absent = platform == Platform::Tpu && devices::tpus(Path::new("/")).is_empty();
        Ok(if absent { Place::Topology("v6e:1x1".to_owned()) } else { Place::Here(platform) })
    }
}

impl Place {
    /// What programs are lowered for. For a TPU, and for a plugin given by its path, the plugin is asked.
    ///
    /// # Errors
    /// If the plugin must be asked and cannot be used.
    pub fn target(&self) -> Result<Target> {
        Ok(match self {
            Place::Here(Platform::Cpu) => Target::Cpu,
            Place::Here(Platform::Cuda) | Place::Gpu(_) => Target::Cuda,
            Place::Here(Platform::Tpu | Platform::Path(_)) | Place::Topology(_) => {
                Compiler::open(self)?.target
            }
        })
    }
}

impl Place {
    /// Bytes of the device's memory that a program may use, if they are known.
    ///
    /// # Errors
    /// If the plugin must be asked and cannot be used.
    pub fn memory(&self) -> Result<Option<u64>> {
        match self {
            Place::Here(Platform::Cpu) => Ok(main_memory()),
            _ => Compiler::open(self)?.device_memory(),
        }
    }
}

/// A compiler for one place.
pub struct Compiler {
    devices: Devices,
    target: Target,
}

enum Devices {
    Here(Client),
    Absent(Topology),
}

/// What a compiler made of a program.
#[derive(Clone, Debug)]
pub struct Made {
    /// From the text to the executable.
    pub took: Duration,
    /// Memory on the device.
    pub memory: MemoryUse,
    /// The compiler's estimate of the work, a loop's body counted once; empty if the plugin makes none.
    pub cost: BTreeMap<String, Value>,
    /// The optimised program as HLO text, from the compiler's own dump.
    pub optimized: String,
    /// The largest buffers of the compiler's assignment, largest first; empty if it wrote none.
    pub buffers: Vec<Buffer>,
}

/// One allocation of the compiler's assignment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Its size.
    pub bytes: u64,
    /// How many values live in it, one after the other.
    pub values: u64,
    /// Their types, as the compiler lists them.
    pub shapes: String,
}

impl Compiler {
    /// Loads the plugin, fetching it if need be.
    ///
    /// # Errors
    /// If the plugin cannot be had or used, has no device, or does not know the topology.
    pub fn open(place: &Place) -> Result<Compiler> {
        match place {
            Place::Here(platform) => {
                let client = open_client(platform)?;
                ensure!(
                    !client.devices().is_empty(),
                    "platform {platform} has no device on this machine; for one that is not here say tpu:v6e:1x1 or cuda:h100"
                );
                let target = target_of(&client, platform)?;
                Ok(Compiler { devices: Devices::Here(client), target })
            }
            Place::Topology(name) => {
                let topology = Topology::new(&Plugin::to_compile(&Platform::Tpu)?, name, &[])
                    .with_context(|| format!("looking up the topology {name}; one v6e chip is v6e:1x1"))?;
                let target = tpu_target(topology.devices()?.first().map_or("", |device| &device.kind));
                Ok(Compiler { devices: Devices::Absent(topology), target })
            }
            Place::Gpu(gpu) => Ok(Compiler {
                devices: Devices::Absent(gpu.topology(&Plugin::to_compile(&Platform::Cuda)?)?),
                target: Target::Cuda,
            }),
        }
    }

    /// What programs are lowered for.
    pub fn target(&self) -> Target {
        self.target
    }

    /// The kind that the device calls itself, `TPU v6 lite`.
    ///
    /// # Errors
    /// If the plugin refuses.
    pub fn device_kind(&self) -> Result<String> {
        Ok(match &self.devices {
            Devices::Here(client) => client.devices()[0].kind().to_owned(),
            Devices::Absent(topology) => {
                topology.devices()?.first().map(|device| device.kind.clone()).unwrap_or_default()
            }
        })
    }

    /// Bytes of the device's memory that a program may use: the plugin's figure, of a GPU that is not here the part of it
    /// that the plugin takes, or this machine's memory for the CPU.
    ///
    /// # Errors
    /// If the plugin refuses.
    pub fn device_memory(&self) -> Result<Option<u64>> {
        let topology = match &self.devices {
            Devices::Here(client) => return device_memory(client, self.target),
            Devices::Absent(topology) => topology,
        };
        let attributes = topology.devices()?.into_iter().next().map(|device| device.attributes);
        let limit = match attributes.and_then(|mut all| all.remove("device_memory_bytes_limit")) {
            Some(Value::Int(bytes)) => u64::try_from(bytes).ok(),
            _ => None,
        };
        Ok(limit.map(|bytes| if self.target == Target::Cuda { bytes / 4 * 3 } else { bytes }))
    }

    /// The build of the compiler: a hash of the plugin's library.
    ///
    /// # Errors
    /// If the library cannot be read.
    pub fn build(&self) -> Result<String> {
        let plugin = match &self.devices {
            Devices::Here(client) => client.plugin(),
            Devices::Absent(topology) => topology.plugin(),
        };
        Ok(plugin.build()?.to_string())
    }

    /// Chooses the kernels' forms as a run does.
    ///
    /// # Errors
    /// If native ones are asked for and there is a kernel that has none.
    pub fn lower(&self, program: &Program, kernels: Option<Form>) -> Result<(Program, Vec<(String, Form)>)> {
        crate::device::lower(program, self.target, kernels)
    }

    /// The options of a run's step program.
    ///
    /// # Errors
    /// If the plugin refuses.
    pub fn options(&self) -> Result<CompileOptions> {
        let options = options(self.target, CodeGeneration::Quick);
        Ok(match &self.devices {
            Devices::Here(client) => faithful(client, &options)?,
            Devices::Absent(_) => options,
        })
    }

    /// Compiles a lowered program and reads what the compiler wrote about it.
    ///
    /// # Errors
    /// If it does not compile or does not fit ([`engine::pjrt::Error`] is then the cause), or the compiler's dump cannot
    /// be read.
    pub fn compile(&self, program: &Program) -> Result<Made> {
        let folder = tempfile::Builder::new()
            .prefix("pythonlm-dump-")
            .tempdir()
            .context("creating a temporary folder for the compiler's dump; set TMPDIR to another one")?;
        let mut options = self.options()?;
        let mut set = |name: &str, value: Value| options.overrides.insert(name.to_owned(), value);
        set("xla_dump_to", Value::Text(folder.path().display().to_string()));
        set("xla_dump_hlo_as_text", Value::Bool(true));
        // With locations, so that the compiler's text names the author's lines.
        let text = program.text(Locations::Print);
        let start = Instant::now();
        let doing = || format!("compiling the {} program", program.name());
        let (memory, cost) = match &self.devices {
            Devices::Here(client) => {
                program.register_host_functions(client).with_context(doing)?;
                let loaded = client.compile(&text, &options).with_context(doing)?;
                (loaded.memory_use()?, loaded.cost().unwrap_or_default())
            }
            Devices::Absent(topology) => {
                let executable = topology.compile(&text, &options).with_context(doing)?;
                (executable.memory_use()?, executable.cost().unwrap_or_default())
            }
        };
        let took = start.elapsed();
        let dump = Dump::of(folder.path())?;
        // The TPU's last stage has the estimates of cycles.
        let Some(optimized) = dump.read(&["after_codegen.txt", "after_optimizations.txt"])? else {
            bail!("the plugin wrote no optimised program; its dump has: {}", dump.names());
        };
        let report = dump.read(&["memory-usage-report.txt"])?.unwrap_or_default();
        Ok(Made { took, memory, cost, optimized, buffers: buffers(&report) })
    }
}

/// The files of a dump. A compiler may compile more than one module; the program is the one with the largest text.
struct Dump(Vec<PathBuf>);

impl Dump {
    fn of(folder: &Path) -> Result<Dump> {
        let doing = || format!("listing the compiler's dump {}", folder.display());
        let entries = std::fs::read_dir(folder).with_context(doing)?;
        let paths = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>();
        Ok(Dump(paths.with_context(doing)?))
    }

    /// The text of the first of these kinds of files that is there.
    fn read(&self, ends: &[&str]) -> Result<Option<String>> {
        let found = ends.iter().find_map(|end| {
            let files = self.0.iter().filter(|path| path.to_string_lossy().ends_with(end));
            files.max_by_key(|path| path.metadata().map_or(0, |data| data.len()))
        });
        let Some(path) = found else { return Ok(None) };
        let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    }

    fn names(&self) -> String {
        let names = self.0.iter().filter_map(|path| path.file_name());
        names.map(|name| name.to_string_lossy()).collect::<Vec<_>>().join(", ")
    }
}

/// The tables of a memory report: `cumulative; size; offset; values; shapes`, and `cumulative; rest; allocation`.
fn buffers(report: &str) -> Vec<Buffer> {
    let mut found: Vec<Buffer> = report.lines().filter_map(buffer).collect();
    found.sort_by_key(|buffer| std::cmp::Reverse(buffer.bytes));
    found
}

fn buffer(line: &str) -> Option<Buffer> {
    let cells: Vec<&str> = line.split(';').map(str::trim).collect();
    match cells[..] {
        [_, size, _, values, shapes] => {
            Some(Buffer { bytes: bytes(size)?, values: values.parse().ok()?, shapes: shapes.to_owned() })
        }
        // The CPU compiler's arguments and results, each an allocation; its temporaries are the rows above.
        [_, _, allocation] if !allocation.contains("preallocated-temp") => {
            let (_, rest) = allocation.split_once(": size ")?;
            let (size, what) = rest.split_once(", ")?;
            Some(Buffer { bytes: bytes(size)?, values: 1, shapes: what.trim_end_matches(':').to_owned() })
        }
        _ => None,
    }
}

/// `128.00MiB`, as XLA writes sizes.
fn bytes(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let unit = match text[digits..].trim() {
        "B" | "" => 1u64,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return None,
    };
    Some((text[..digits].parse::<f64>().ok()? * unit as f64).round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_have_names() {
        assert_eq!("tpu:v6e:2x2".parse::<Place>().unwrap(), Place::Topology("v6e:2x2".to_owned()));
        assert_eq!("./a.so".parse::<Place>().unwrap(), Place::Here(Platform::Path("./a.so".into())));
        assert!("gpu".parse::<Place>().unwrap_err().to_string().contains("found `gpu`"));
        let unknown = "cuda:b200".parse::<Place>().unwrap_err().to_string();
        assert!(unknown.contains("found `b200`, wanted h100 or h200"), "{unknown}");
        for name in ["cpu", "cuda:h100", "cuda:h200", "tpu:v6e:2x2", "./a.so"] {
            assert_eq!(name.parse::<Place>().unwrap().to_string(), name);
        }
    }

    #[test]
    fn a_memory_report_is_a_table() {
        let report = "Total bytes: 1542925600 (1.44GiB)
  cumulative_size;       size;       offset; used_by_n_values; shapes_list
  ------------------------------------------------------------
   12.00MiB( 18%);   12.00MiB;    396738560;                1; f32[1024,32768]
  256.00MiB( 35%);   1.5KiB;    534167552;                3; f32[1024,32768], 2×f32[32768,768]
  256.00MiB( 36%);  128.00MiB;    534167552;                3; f32[8]";
        let found = buffers(report);
        let sizes: Vec<u64> = found.iter().map(|buffer| buffer.bytes).collect();
        assert_eq!(sizes, [128 << 20, 12 << 20, 1536]);
        assert_eq!(found[2].shapes, "f32[1024,32768], 2×f32[32768,768]");
        let report =
            "        8B( 50%);         8B; allocation 0: size 8B, output shape is |f32[2]|, maybe-live-out:
       16B(100%);         0B; allocation 1: size 2.0KiB, preallocated-temp:
allocation 0: size 8B, output shape is |f32[2]|, maybe-live-out:";
        let shapes = "output shape is |f32[2]|, maybe-live-out".to_owned();
        assert_eq!(buffers(report), [Buffer { bytes: 8, values: 1, shapes }]);
    }
}
