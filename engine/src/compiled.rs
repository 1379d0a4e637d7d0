//! [`Compiled`]: a program on its devices; arguments are checked against its ports before the plugin sees them.

use crate::host::Host;
use crate::ir::Port;
use crate::pjrt::{
    Arg, Buffer, Client, CompileOptions, Error, Executable, ExecutableCache, Loaded, Lookup, Partitioner,
    Result, Topology, Value,
};
use crate::program::Program;
use crate::text::Locations;

/// A compiled program and its ports.
#[derive(Debug)]
pub struct Compiled {
    client: Client,
    loaded: Loaded,
    name: String,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    partitions: usize,
}

impl Program {
    /// What the program asks of its compilation: one device, or those that its shardings are for.
    pub fn options(&self) -> CompileOptions {
        match self.partitions() {
            1 => CompileOptions::single(),
            partitions => CompileOptions::partitioned(partitions, Partitioner::Gspmd),
        }
    }

    /// Compiles with [`Program::options`].
    ///
    /// # Errors
    /// If the plugin does not accept the program, or it does not fit.
    pub fn compile(&self, client: &Client) -> Result<Compiled> {
        self.compile_with(client, &self.options())
    }

    /// Compiles with other options, for instance [`CompileOptions::replicated`].
    ///
    /// # Errors
    /// If the plugin does not accept the program, or it does not fit.
    pub fn compile_with(&self, client: &Client, options: &CompileOptions) -> Result<Compiled> {
        self.register_host_functions(client)?;
        let loaded = client.compile(&self.text(Locations::Omit), &faithful(client, options)?)?;
        Ok(self.compiled(client, loaded))
    }

    /// Compiles, or takes the executable from the cache.
    ///
    /// # Errors
    /// If the plugin does not accept the program, or it does not fit.
    pub fn compile_cached(
        &self,
        client: &Client,
        options: &CompileOptions,
        cache: &ExecutableCache,
    ) -> Result<(Compiled, Lookup)> {
        self.register_host_functions(client)?;
        let (loaded, lookup) =
            cache.compile(client, &self.text(Locations::Omit), &faithful(client, options)?)?;
        Ok((self.compiled(client, loaded), lookup))
    }

    /// Compiles for devices that need not be there. The result cannot run; it tells of its memory and cost.
    ///
    /// # Errors
    /// If the plugin does not accept the program, or it does not fit.
    pub fn compile_for(&self, topology: &Topology, options: &CompileOptions) -> Result<Executable> {
        topology.compile(&self.text(Locations::Omit), options)
    }

    /// Makes the functions of this process that the program calls known to the client's plugin. Compiling a program does
    /// this by itself; it is for those who compile its text.
    ///
    /// # Errors
    /// If there are any and the plugin cannot call them.
    pub fn register_host_functions(&self, client: &Client) -> Result<()> {
        self.main()
            .host_calls()
            .into_iter()
            .try_for_each(|call| client.plugin().register(call.name, call.function, call.handler))
    }

    fn compiled(&self, client: &Client, loaded: Loaded) -> Compiled {
        Compiled {
            client: client.clone(),
            loaded,
            name: self.name().to_owned(),
            inputs: self.inputs().to_vec(),
            outputs: self.outputs().to_vec(),
            partitions: self.partitions(),
        }
    }
}

/// The options under which the plugin keeps to the meaning of the ops and to the client's devices. XLA's CPU plugin drops a
/// NaN in `maximum` and `minimum` unless told not to, and a check for NaN after one would see none. A program for one device
/// is given the client's first by its number: where several processes share the chips, the plugin's own choice may be
/// another one's.
///
/// [`Program::compile_with`] does this by itself; it is for those who compile text.
///
/// # Errors
/// If the plugin does not say what it is.
pub fn faithful(client: &Client, options: &CompileOptions) -> Result<CompileOptions> {
    let mut options = options.clone();
    if client.platform_name()? == "cpu" {
        let fast = options.overrides.entry("xla_cpu_enable_fast_min_max".to_owned());
        fast.or_insert(Value::Bool(false));
    }
    if options.devices.is_none()
        && (options.replicas, options.partitions) == (1, 1)
        && let Some(device) = client.devices().first()
    {
        options.devices = Some(vec![vec![device.id()]]);
    }
    Ok(options)
}

impl Compiled {
    /// The executable: statistics, cost, optimised program.
    pub fn loaded(&self) -> &Loaded {
        &self.loaded
    }

    /// The inputs, in order.
    pub fn inputs(&self) -> &[Port] {
        &self.inputs
    }

    /// The outputs, in order.
    pub fn outputs(&self) -> &[Port] {
        &self.outputs
    }

    /// Queues one run on one device. Inputs that the program writes over are given away ([`Arg::Donate`]), others may
    /// be lent.
    ///
    /// # Errors
    /// If the program is for several devices, the arguments do not match the inputs, or the device fails.
    pub fn run<'a>(&self, args: impl IntoIterator<Item = Arg<'a>>) -> Result<Vec<Buffer>> {
        let mut results = self.run_on_all(vec![args.into_iter().collect()])?;
        Ok(results.pop().unwrap_or_default())
    }

    /// Queues one run on all devices: the arguments of each, which are its parts of the inputs, and the results of each.
    ///
    /// # Errors
    /// If the arguments do not match the inputs, or a device fails.
    pub fn run_on_all(&self, args: Vec<Vec<Arg<'_>>>) -> Result<Vec<Vec<Buffer>>> {
        for args in &args {
            self.check(args)?;
        }
        self.loaded.run_on_all(args)
    }

    fn check(&self, args: &[Arg<'_>]) -> Result<()> {
        if args.len() != self.inputs.len() {
            return Err(self.wrong(format!("got {} arguments, wanted {}", args.len(), self.inputs.len())));
        }
        for (arg, port) in args.iter().zip(&self.inputs) {
            let (buffer, donated) = match arg {
                Arg::Keep(buffer) => (*buffer, false),
                Arg::Donate(buffer) => (buffer, true),
            };
            let wanted = port.local();
            if *buffer.ty() != wanted {
                return Err(self.wrong(format!("input `{}` is {wanted}, got {}", port.name, buffer.ty())));
            }
            if port.replaced_by.is_some() && !donated {
                return Err(self.wrong(format!("input `{}` is written over: donate its buffer", port.name)));
            }
        }
        Ok(())
    }

    /// Runs on whole host tensors: cuts and copies them in, runs, copies out and joins. For tests, tools and small
    /// programs. It gives the same whether the program is for one device or for several.
    ///
    /// # Errors
    /// As [`Compiled::run`], and for replicas, which take arguments of their own each.
    pub fn call(&self, args: &[Host]) -> Result<Vec<Host>> {
        let devices = self.loaded.devices();
        if devices.len() != self.partitions {
            let found = devices.len();
            return Err(
                self.wrong(format!("its {found} replicas take arguments of their own: use `run_on_all`"))
            );
        }
        if args.len() != self.inputs.len() {
            return Err(self.wrong(format!("got {} arguments, wanted {}", args.len(), self.inputs.len())));
        }
        if let Some((host, port)) = args.iter().zip(&self.inputs).find(|(host, port)| *host.ty() != port.ty) {
            return Err(self.wrong(format!("input `{}` is {}, got {}", port.name, port.ty, host.ty())));
        }
        let on_device = |(number, device)| {
            let part = |(host, port): (&Host, &Port)| match &port.sharding {
                Some(sharding) => {
                    let (start, ty) = (sharding.start(&port.ty, number), sharding.part(&port.ty));
                    self.client.to_device(&host.block(&start, &ty.shape), device)
                }
                None => self.client.to_device(host, device),
            };
            args.iter().zip(&self.inputs).map(|pair| Ok(Arg::Donate(part(pair)?))).collect()
        };
        let args: Vec<Vec<Arg>> = devices.iter().enumerate().map(on_device).collect::<Result<_>>()?;
        let results = self.run_on_all(args)?;
        let joined = |(output, port): (usize, &Port)| match &port.sharding {
            Some(sharding) => {
                let mut whole = Host::zeros(port.ty.clone());
                for (device, results) in results.iter().enumerate() {
                    whole.set_block(&sharding.start(&port.ty, device), &results[output].to_host()?);
                }
                Ok(whole)
            }
            None => results[0][output].to_host(),
        };
        self.outputs.iter().enumerate().map(joined).collect()
    }

    fn wrong(&self, what: String) -> Error {
        Error::Arguments(format!("running {}: {what}", self.name))
    }
}
