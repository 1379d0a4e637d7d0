//! `serve`: answers completion and fill-in-the-middle requests over HTTP with a checkpoint.
//!
//! Handlers run on tokio's threads: they check a request, make token ids of its text, and put a job for each text that is to be
//! written into a queue, which has places for so many. One thread owns the device and writes all texts side by side (`engine`); what is new goes back
//! through a bounded channel of each job, and a reader that does not keep up pauses its own text only.

mod answer;
mod app;
mod body;
mod completions;
mod engine;
mod error;
mod generation;
mod llama;
mod models;
mod record;
mod service;
mod status;
mod tokens;

use anyhow::{Context, Result, bail, ensure};
use app::App;
use axum::http::HeaderValue;
use axum::serve::ListenerExt;
use clap::Parser;
use decode::{DeviceFlags, Generator, Speculation, find_checkpoint, load_model, load_tokenizer};
use engine::Job;
use program::{arguments, esay, exit_code, quoted, say, with_large_pages};
use service::Service;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use train::device::Device;

/// Answer completion and fill-in-the-middle requests with a checkpoint, in the forms of OpenAI and llama.cpp.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Folder of a checkpoint, or of a run for its newest good one; RUN@best, RUN@4, `latest`, `best` and `4` as for generate
    #[arg(long, value_name = "DIR", default_value = "latest")]
    checkpoint: PathBuf,
    /// Address to listen at
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    host: IpAddr,
    /// Port to listen at; 0 is any that is free
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    port: u16,
    /// Key that clients must send; in this variable other users of the machine do not see it
    #[arg(long, value_name = "KEY", env = "PYTHONLM_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// Let everyone who reaches the machine use the server, without a key
    #[arg(long)]
    insecure: bool,
    /// Site whose pages may use the server, http://localhost:3000; give it again for more [default: all sites]
    #[arg(long, value_name = "ORIGIN")]
    allowed_origin: Vec<HeaderValue>,
    /// Texts that are written side by side; memory grows with it
    #[arg(long, value_name = "N", default_value_t = 8)]
    rows: usize,
    /// Texts that wait at most; one more is answered with 429
    #[arg(long, value_name = "N", default_value_t = 64)]
    queue: usize,
    /// Seconds that a text may take, its time in the queue included
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    timeout: u64,
    /// Tokens of a prompt and its continuation at most [default: those that the model was trained with]
    #[arg(long, value_name = "N")]
    max_model_len: Option<usize>,
    /// The model's name for clients; some choose their form by it: with qwen2.5-coder in it Continue fills in the middle
    #[arg(long, value_name = "NAME", default_value = "pythonlm")]
    model_name: String,
    #[command(flatten)]
    device: DeviceFlags,
}

/// The whole program: the process's command line, messages and exit code.
pub fn main() -> ExitCode {
    with_large_pages();
    exit_code(run(&arguments()).map(|()| ExitCode::SUCCESS))
}

fn run(arguments: &Arguments) -> Result<()> {
    check(arguments)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let listener = runtime.block_on(listen(arguments.host, arguments.port))?;
    let address = listener.local_addr()?;
    let metrics = record::recorder()?;
    let key = arguments.api_key.as_ref().map(|key| blake3::hash(key.as_bytes()));
    runtime.spawn(record::keep_up(metrics.clone()));
    let app = Arc::new(App { service: OnceLock::new(), ends: false.into(), key, metrics });
    // From here on a client is told that the model is being loaded.
    let server = runtime.spawn(serve(listener, app.clone(), arguments.allowed_origin.clone()));
    let (mut generator, service, mut jobs) = load(arguments)?;
    let (stops, slots) = (service.stops.clone(), service.slots.clone());
    let plan = engine::Plan {
        rows: arguments.rows,
        tokens: service.context,
        stops: &stops,
        speculation: Speculation::Auto,
        slots: &slots,
    };
    // The server has the only ends of the queue: where it has ended, the engine does.
    let service = Mutex::new(Some((app, Arc::new(service))));
    let ready = || {
        if let Some((app, service)) = service.lock().expect("no holder panics").take() {
            greet(arguments, address);
            let _ = app.service.set(service);
        }
    };
    engine::run(&mut generator, &plan, &mut jobs, ready)?;
    runtime.block_on(server).context("the server's task")?
}

fn check(arguments: &Arguments) -> Result<()> {
    ensure!(arguments.rows > 0, "--rows is 0, but must be at least 1");
    ensure!(
        (1..=Semaphore::MAX_PERMITS).contains(&arguments.queue),
        "--queue is {}, but must be at least 1 and at most {}",
        arguments.queue,
        Semaphore::MAX_PERMITS
    );
    ensure!(arguments.timeout > 0, "--timeout is 0, but must be at least 1");
    let key = arguments.api_key.as_ref();
    if let Some(key) = key {
        ensure!(
            !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_graphic()),
            "the API key must be letters, digits and signs of ASCII, without spaces, and not empty"
        );
    }
    ensure!(
        arguments.host.is_loopback() || key.is_some() || arguments.insecure,
        "at {} everyone who reaches this machine could use the server: set PYTHONLM_API_KEY to a key that clients must send, or give --insecure",
        arguments.host
    );
    Ok(())
}

async fn listen(host: IpAddr, port: u16) -> Result<TcpListener> {
    TcpListener::bind((host, port)).await.with_context(|| {
        format!("listening at {}; --port 0 takes any port that is free", SocketAddr::new(host, port))
    })
}

/// The model: on its device, and as handlers see it; and the queue between these.
fn load(arguments: &Arguments) -> Result<(Generator, Service, UnboundedReceiver<Job>)> {
    let checkpoint = find_checkpoint(&arguments.checkpoint)?;
    let (config, params) = load_model(&checkpoint)?;
    let tokenizer = load_tokenizer(&checkpoint, &config)?;
    let (trained, most) = (config.trained_positions(), config.max_position_embeddings);
    let context = arguments.max_model_len.unwrap_or(trained.min(most));
    if !(2..=most).contains(&context) {
        bail!("--max-model-len is {context}, but must be at least 2 and at most the model's context, {most}");
    }
    let is_text = |id: usize| i32::try_from(id).is_ok_and(|id| tokenizer.decode_bytes(&[id]).is_some());
    let stops = (0..config.vocab_size).map(|id| !is_text(id)).collect();
    let (jobs, queue) = unbounded_channel();
    let service = Service {
        name: arguments.model_name.clone(),
        stops,
        tokenizer,
        vocabulary: config.num_tokens,
        context,
        trained,
        parameters: params.iter().map(|(_, host)| host.ty().shape.iter().product::<usize>()).sum(),
        created: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        timeout: Duration::from_secs(arguments.timeout),
        jobs,
        queue: arguments.queue,
        places: Arc::new(Semaphore::new(arguments.queue)),
        slots: Arc::new(Mutex::new(vec![engine::Slot::default(); arguments.rows])),
    };
    let device = Device::open(&arguments.device.platform, arguments.device.kernels)?;
    Ok((Generator::new(device, &config, &params)?, service, queue))
}

/// Says what to do next.
fn greet(arguments: &Arguments, mut address: SocketAddr) {
    // The address that is every address of the machine is none to go to.
    if address.ip().is_unspecified() {
        let loopback: IpAddr =
            if address.is_ipv4() { [127, 0, 0, 1].into() } else { std::net::Ipv6Addr::LOCALHOST.into() };
        address.set_ip(loopback);
    }
    let key = match arguments.api_key {
        Some(_) => " -H \"Authorization: Bearer $PYTHONLM_API_KEY\"",
        None => "",
    };
    let body = quoted(r#"{"prompt": "def mean(values):", "max_tokens": 32, "temperature": 0}"#);
    say!("{} is served; a page to write with: http://{address}/", arguments.model_name);
    say!("curl http://{address}/v1/completions -H 'Content-Type: application/json'{key} -d {body}");
}

/// Answers until a signal asks for the end, and then until what has begun is finished.
async fn serve(listener: TcpListener, app: Arc<App>, origins: Vec<HeaderValue>) -> Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut asked = async move || {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    // Pieces of a stream go out as they come.
    let listener = listener.tap_io(|stream| {
        let _ = stream.set_nodelay(true);
    });
    let ends = app.clone();
    let end = async move {
        asked().await;
        if ends.service.get().is_none() {
            // Nobody waits for anything.
            std::process::exit(0);
        }
        ends.ends.store(true, Ordering::Relaxed);
        esay!(
            "no more texts are taken; the server ends when those that it has are written, or at a second signal"
        );
        tokio::spawn(async move {
            asked().await;
            std::process::exit(130);
        });
    };
    axum::serve(listener, app::router(app, &origins)).with_graceful_shutdown(end).await.context("serving")
}
