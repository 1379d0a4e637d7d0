//! [`Compiled`]: a program on its device; arguments are checked against its ports before the plugin sees them.

use crate::host::Host;
use crate::pjrt::{
    Arg, Buffer, Client, CompileOptions, Error, ExecutableCache, Loaded, Lookup, Result, Value,
};
use crate::program::{Port, Program};
use crate::text::Locations;

/// A compiled program and its ports.
#[derive(Debug)]
pub struct Compiled {
    client: Client,
    loaded: Loaded,
    name: String,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
}

impl Program {
    /// Compiles for one device.
    ///
    /// # Errors
    /// If the plugin does not accept the program, or it does not fit.
    pub fn compile(&self, client: &Client) -> Result<Compiled> {
        self.compile_with(client, &CompileOptions::single())
    }

    /// Compiles with options.
    ///
    /// # Errors
    /// If the plugin does not accept the program, or it does not fit.
    pub fn compile_with(&self, client: &Client, options: &CompileOptions) -> Result<Compiled> {
        let loaded = client.compile(&self.text(Locations::Omit), &faithful(client, options)?)?;
        Ok(self.compiled(client, loaded))
    }

    /// Compiles for one device, or takes the executable from the cache.
    ///
    /// # Errors
    /// If the plugin does not accept the program, or it does not fit.
    pub fn compile_cached(
        &self,
        client: &Client,
        options: &CompileOptions,
        cache: &ExecutableCache,
    ) -> Result<(Compiled, Lookup)> {
        let (loaded, lookup) =
            cache.compile(client, &self.text(Locations::Omit), &faithful(client, options)?)?;
        Ok((self.compiled(client, loaded), lookup))
    }

    fn compiled(&self, client: &Client, loaded: Loaded) -> Compiled {
        Compiled {
            client: client.clone(),
            loaded,
            name: self.name().to_owned(),
            inputs: self.inputs().to_vec(),
            outputs: self.outputs().to_vec(),
        }
    }
}

/// The options under which the plugin keeps to the meaning of the ops: XLA's CPU plugin drops a NaN in `maximum` and
/// `minimum` unless told not to, and a check for NaN behind one would see none.
fn faithful(client: &Client, options: &CompileOptions) -> Result<CompileOptions> {
    let mut options = options.clone();
    if client.platform_name()? == "cpu" {
        let fast = options.overrides.entry("xla_cpu_enable_fast_min_max".to_owned());
        fast.or_insert(Value::Bool(false));
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

    /// Queues one run. Inputs that the program writes over are given away ([`Arg::Donate`]), others lent.
    ///
    /// # Errors
    /// If the arguments do not match the inputs, or the device fails.
    pub fn run<'a>(&self, args: impl IntoIterator<Item = Arg<'a>>) -> Result<Vec<Buffer>> {
        let args: Vec<Arg<'a>> = args.into_iter().collect();
        let wrong = |what: String| Err(Error::Arguments(format!("running {}: {what}", self.name)));
        if args.len() != self.inputs.len() {
            return wrong(format!("got {} arguments, wanted {}", args.len(), self.inputs.len()));
        }
        for (arg, port) in args.iter().zip(&self.inputs) {
            let (buffer, donated) = match arg {
                Arg::Keep(buffer) => (*buffer, false),
                Arg::Donate(buffer) => (buffer, true),
            };
            if *buffer.ty() != port.ty {
                return wrong(format!("input `{}` is {}, got {}", port.name, port.ty, buffer.ty()));
            }
            if port.replaced_by.is_some() && !donated {
                return wrong(format!("input `{}` is written over: donate its buffer", port.name));
            }
        }
        self.loaded.run(args)
    }

    /// Runs on host tensors: copies in, runs, copies out. For tests, tools and small programs.
    ///
    /// # Errors
    /// As [`Compiled::run`].
    pub fn call(&self, args: &[Host]) -> Result<Vec<Host>> {
        let device = &self.loaded.devices()[0];
        let args: Vec<Arg> = (args.iter())
            .map(|host| Ok(Arg::Donate(self.client.to_device(host, device)?)))
            .collect::<Result<_>>()?;
        self.run(args)?.iter().map(Buffer::to_host).collect()
    }
}
