//! The device of a run: its plugin, what programs are compiled for, and the cache of executables.

use anyhow::{Context, Result, bail};
use engine::passes;
use engine::pjrt;
use engine::pjrt::{Buffer, Client, CompileOptions, ExecutableCache, Lookup, Plugin, Value};
use engine::plugin::{Platform, cache_folder, devices};
use engine::{Compiled, Form, Host, Program, Target};
use program::esay;
use std::env;
use std::path::Path;
use std::time::{Duration, Instant};

/// A device that programs are compiled for and run on.
pub struct Device {
    client: Client,
    target: Target,
    kernels: Option<Form>,
    cache: ExecutableCache,
}

/// How a program was prepared to run.
pub struct Preparation {
    /// Whether the executable was in the cache.
    pub lookup: Lookup,
    /// From the built program to the loaded executable.
    pub took: Duration,
    /// The form of each kernel.
    pub forms: Vec<(String, Form)>,
}

/// What code generation for a CPU is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeGeneration {
    /// LLVM's level 1: training steps run as fast as at level 3 and compile in three quarters of the time.
    Quick,
    /// All that LLVM can do, for programs that run thousands of times.
    Thorough,
}

/// Bytes of executables that the cache keeps.
const CACHE_BYTES: u64 = 4 << 30;

/// The variable that names a second folder of executables, on a drive that outlives this machine.
const EXECUTABLES: &str = "PYTHONLM_EXECUTABLES";

/// The kind that a v6e calls itself.
const V6E: &str = "TPU v6 lite";

/// What programs are lowered for on a TPU of a kind.
pub(crate) fn tpu_target(kind: &str) -> Target {
    if kind == V6E { Target::TpuV6e } else { Target::OtherTpu }
}

/// Chooses the kernels' forms for a target.
///
/// # Errors
/// If native ones are asked for and no kernel of the program has one.
pub fn lower(
    program: &Program,
    target: Target,
    kernels: Option<Form>,
) -> Result<(Program, Vec<(String, Form)>)> {
    if kernels == Some(Form::Native)
        && let Err(missing) = passes::require_native(program, target)
    {
        bail!(
            "kernels = native: {missing}\ntake kernels = auto (--kernels auto, or --set kernels=auto): native forms where there are any"
        );
    }
    Ok(passes::lower(program, target, kernels))
}

/// What the programs of a client are lowered for.
pub(crate) fn target_of(client: &Client, platform: &Platform) -> Result<Target> {
    Ok(match client.platform_name()?.to_ascii_lowercase().as_str() {
        "cpu" | "host" => Target::Cpu,
        "cuda" | "gpu" => Target::Cuda,
        "tpu" => tpu_target(client.devices().first().map_or("", |device| device.kind())),
        other => bail!("platform {platform} calls itself `{other}`; known are cpu, cuda and tpu"),
    })
}

/// Opens the devices of a platform. While another process has them, as a killed one does for some seconds, it tries again for a
/// minute. Says so on standard error, and also if the plugin may first wait for a server that is not there.
pub(crate) fn open_client(platform: &Platform) -> Result<Client> {
    let plugin = Plugin::of(platform)?;
    let waits = devices::metadata_query(Path::new("/"), |name| std::env::var_os(name).is_some());
    if let Some(why) = waits.filter(|_| *platform == Platform::Tpu) {
        esay!("note: {why}");
    }
    let begin = Instant::now();
    let mut sleep = |time| std::thread::sleep(time);
    Ok(while_busy(|| Client::new(&plugin, &[]), &|| begin.elapsed(), &mut sleep, &mut |line| {
        esay!("{line}")
    })?)
}

/// How long a busy device is waited for, and how often it is tried.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
const BETWEEN_TRIES: Duration = Duration::from_secs(2);

fn while_busy<T>(
    mut open: impl FnMut() -> pjrt::Result<T>,
    elapsed: &dyn Fn() -> Duration,
    sleep: &mut dyn FnMut(Duration),
    say: &mut dyn FnMut(String),
) -> pjrt::Result<T> {
    let mut found = open();
    if let Err(busy) = &found
        && busy.is_busy()
    {
        say(format!("the device is busy; trying again for {} s: {busy}", LONGEST_WAIT.as_secs()));
    }
    while found.as_ref().is_err_and(pjrt::Error::is_busy) && elapsed() < LONGEST_WAIT {
        sleep(BETWEEN_TRIES);
        found = open();
    }
    found
}

/// How programs are compiled for a target.
pub(crate) fn options(target: Target, code: CodeGeneration) -> CompileOptions {
    let mut options = CompileOptions::single();
    let mut set = |name: &str, value: i64| options.overrides.insert(name.to_owned(), Value::Int(value));
    match (target, code) {
        (Target::Cpu, CodeGeneration::Quick) => {
            set("xla_backend_optimization_level", 1);
            // This pass splits a reduction into trees of small ones, for accuracy that f32 sums of some thousand numbers do
            // not need. Without it there is a third less code, and a step of preset bench compiles in 4.9 s instead of
            // 5.6; it runs as fast.
            let pass = Value::Text("tree_reduction_rewriter".to_owned());
            options.overrides.insert("xla_disable_hlo_passes".to_owned(), pass);
        }
        // On-chip memory for one operation, KiB. It allows larger tiles of the matrix products, and the compiler's estimate
        // of the step falls by a fifth (`kernels::v6e`). 98304 is worse for the layers' products.
        (Target::TpuV6e, _) => drop(set("xla_tpu_scoped_vmem_limit_kib", 65536)),
        _ => {}
    }
    options
}

/// Bytes that a program may use on the first device of a client: the plugin's figure, or this machine's memory for the CPU.
pub(crate) fn device_memory(client: &Client, target: Target) -> Result<Option<u64>> {
    let limit = client.devices()[0].memory_stats()?.and_then(|stats| stats.limit);
    let stated = limit.and_then(|bytes| u64::try_from(bytes).ok());
    Ok(stated.or_else(|| (target == Target::Cpu).then(main_memory).flatten()))
}

/// All memory of this machine, in bytes.
pub(crate) fn main_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? << 10)
}

impl Device {
    /// Loads the plugin of a platform, fetching it if need be, and takes its first device. kernels: the forms of the
    /// fused operations in its programs. Says so on standard error if it is a TPU that has no kernels of its own.
    ///
    /// # Errors
    /// If the plugin cannot be had or used, or has no device.
    pub fn open(platform: &str, kernels: Option<Form>) -> Result<Device> {
        let platform = Platform::choose(Some(platform))?;
        let client = open_client(&platform)?;
        anyhow::ensure!(!client.devices().is_empty(), "platform {platform} has no device on this machine");
        let target = target_of(&client, &platform)?;
        if target == Target::OtherTpu {
            let kind = client.devices()[0].kind();
            esay!(
                "{platform}: this is a {kind}; the native kernels are made for the {V6E}, here all take their portable forms"
            );
        }
        let mut cache = ExecutableCache::new(cache_folder()?.join("executables"), CACHE_BYTES);
        if let Some(folder) = env::var_os(EXECUTABLES).filter(|folder| !folder.is_empty()) {
            cache = cache.behind(folder);
        }
        Ok(Device { client, target, kernels, cache })
    }

    /// What programs are compiled for.
    pub fn target(&self) -> Target {
        self.target
    }

    /// Bytes of its memory that a program may use, if it is known.
    ///
    /// # Errors
    /// If the plugin refuses.
    pub fn memory(&self) -> Result<Option<u64>> {
        device_memory(&self.client, self.target)
    }

    /// The kind that the device calls itself, `TPU v6 lite`.
    pub fn kind(&self) -> &str {
        self.client.devices()[0].kind()
    }

    /// Lowers and compiles a program, or takes its executable from the cache.
    ///
    /// # Errors
    /// If it does not compile or does not fit, or native kernels are asked for and there are none.
    pub fn compile(&self, program: &Program, code: CodeGeneration) -> Result<(Compiled, Preparation)> {
        let start = Instant::now();
        let (program, forms) = lower(program, self.target, self.kernels)?;
        let options = options(self.target, code);
        let (compiled, lookup) = program
            .compile_cached(&self.client, &options, &self.cache)
            .with_context(|| format!("compiling the {} program", program.name()))?;
        Ok((compiled, Preparation { lookup, took: start.elapsed(), forms }))
    }

    /// Copies a tensor to the device.
    ///
    /// # Errors
    /// If it does not fit.
    pub fn put(&self, host: &Host) -> Result<Buffer> {
        Ok(self.client.to_device(host, &self.client.devices()[0])?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::pjrt::{Code, Error};
    use std::cell::{Cell, RefCell};

    fn refused(message: &str) -> Error {
        Error::Call {
            path: "libtpu.so".into(),
            version: (0, 117),
            function: "PJRT_Client_Create",
            code: Code::Internal,
            message: message.to_owned(),
        }
    }

    /// Tries until a device that is busy for some seconds is free: what came of it, the tries, the seconds, the lines said.
    fn tried(busy_for: u64, message: &str) -> (pjrt::Result<()>, usize, u64, Vec<String>) {
        let (now, tries, said) = (Cell::new(Duration::ZERO), Cell::new(0), RefCell::new(Vec::new()));
        let open = || {
            tries.set(tries.get() + 1);
            if now.get().as_secs() < busy_for { Err(refused(message)) } else { Ok(()) }
        };
        let found = while_busy(open, &|| now.get(), &mut |time| now.set(now.get() + time), &mut |line| {
            said.borrow_mut().push(line)
        });
        (found, tries.get(), now.get().as_secs(), said.into_inner())
    }

    #[test]
    fn a_busy_device_is_tried_again_for_a_minute() {
        let busy = "open(/dev/vfio/0): Device or resource busy";
        let (found, tries, seconds, said) = tried(9, busy);
        assert!(found.is_ok() && (tries, seconds) == (6, 10), "{tries} tries in {seconds} s");
        assert!(
            said.len() == 1 && said[0].contains("trying again for 60 s") && said[0].contains(busy),
            "{said:?}"
        );
        let (found, _, seconds, said) = tried(1000, busy);
        assert!(found.unwrap_err().is_busy() && seconds == 60 && said.len() == 1, "{seconds} s, {said:?}");
        // What no waiting mends is said at once, and nothing about waiting for a device that is free.
        let (found, tries, _, said) = tried(1000, "Failed to get global TPU topology.");
        assert!(found.is_err() && tries == 1 && said.is_empty(), "{tries} tries, {said:?}");
        let (found, tries, _, said) = tried(0, busy);
        assert!(found.is_ok() && tries == 1 && said.is_empty());
    }

    #[test]
    fn kernels_are_made_for_one_kind_of_tpu() {
        assert_eq!(tpu_target("TPU v6 lite"), Target::TpuV6e);
        for other in ["TPU v5 lite", "TPU v5p", "TPU v6", "TPU7x", ""] {
            assert_eq!(tpu_target(other), Target::OtherTpu, "{other}");
        }
    }
}
