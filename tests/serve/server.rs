//! A server in a process of its own, and what a client needs.

use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};
use tests::trainer::Bench;
use train::data::{PrepareOptions, TokenizerSource, prepare};
use ureq::http::Response;
use ureq::{Agent, Body};

/// How long anything may take.
const LONG: Duration = Duration::from_secs(120);
/// Tokens of a prompt and its continuation at most.
pub(crate) const CONTEXT: usize = 2048;

/// A folder with a run: a model that has learned which tokens are frequent and hardly more. Its documents are long, so its
/// texts are too; and they are full of bytes that are no whole characters.
pub(crate) fn bench() -> &'static Bench {
    static BENCH: OnceLock<Bench> = OnceLock::new();
    BENCH.get_or_init(|| {
        let bench = Bench::new(env!("CARGO_BIN_EXE_trainer"));
        let sources = bench.path("long");
        fs::create_dir(&sources).unwrap();
        for i in 0..16 {
            let text =
                format!("def function_{i}(x, total=0):\n    return total  # {i} € é 日本\n").repeat(200);
            fs::write(sources.join(format!("{i}.py")), text).unwrap();
        }
        let mut options = PrepareOptions::new(vec![sources], bench.path("documents"));
        options.tokenizer = TokenizerSource::Train(320);
        options.validation_fraction = 0.2;
        prepare(&options, &mut |_| ControlFlow::Continue(())).unwrap();
        let room =
            ["--data", "documents", "--set", "model.max_position_embeddings=2048", "--set", "batch.seq=2048"];
        let steps = ["--set", "batch.accumulation=1", "--set", "batch.micro=1", "--steps", "20"];
        bench.succeed("run", &[&room[..], &steps[..]].concat());
        bench
    })
}

/// The checkpoint that servers have.
pub(crate) fn checkpoint() -> PathBuf {
    bench().path("run/checkpoints/step_00000020")
}

/// A server; it ends with this value.
pub(crate) struct Server {
    child: Child,
    address: SocketAddr,
    said: PathBuf,
    agent: Agent,
}

impl Server {
    /// One for all tests that leave it as it is.
    pub(crate) fn shared() -> Arc<Server> {
        static SERVER: Mutex<Weak<Server>> = Mutex::new(Weak::new());
        let mut shared = SERVER.lock().unwrap_or_else(|held| held.into_inner());
        shared.upgrade().unwrap_or_else(|| {
            let server = Arc::new(Server::start(&[]));
            *shared = Arc::downgrade(&server);
            server
        })
    }

    /// Starts one, and waits until it is ready.
    pub(crate) fn start(args: &[&str]) -> Server {
        let server = Server::spawn(args, &[]);
        server.ready();
        server
    }

    /// Starts one at a port that is free.
    pub(crate) fn spawn(args: &[&str], variables: &[(&str, &str)]) -> Server {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let said = bench().path(&format!("server-{}", address.port()));
        let file = fs::File::create(&said).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_server"));
        command
            .arg("--checkpoint")
            .arg(checkpoint())
            .args(["--port", &address.port().to_string()])
            .args(args);
        command.env_remove("PYTHONLM_API_KEY").envs(variables.iter().copied());
        command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
        let config = Agent::config_builder().http_status_as_error(false).timeout_global(Some(LONG));
        Server { child: command.spawn().unwrap(), address, said, agent: config.build().into() }
    }

    /// Waits until it answers.
    pub(crate) fn ready(&self) {
        wait_until("it is ready", || {
            self.agent.get(self.url("/health")).call().is_ok_and(|answer| answer.status() == 200)
        });
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed.
    pub(crate) fn said(&self) -> String {
        fs::read_to_string(&self.said).unwrap()
    }

    pub(crate) fn agent(&self) -> &Agent {
        &self.agent
    }

    /// An answer, whatever it is.
    pub(crate) fn get(&self, path: &str) -> Answer {
        Answer::of(self.agent.get(self.url(path)).call().unwrap())
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        Answer::of(self.send(path, body))
    }

    /// An answer that is not read yet.
    pub(crate) fn send(&self, path: &str, body: &Value) -> Response<Body> {
        let request = self.agent.post(self.url(path)).header("content-type", "application/json");
        request.send(body.to_string()).unwrap()
    }

    /// A completion that must succeed.
    #[track_caller]
    pub(crate) fn complete(&self, body: &Value) -> Value {
        self.post("/v1/completions", body).good()
    }

    /// The text of a completion that must succeed.
    #[track_caller]
    pub(crate) fn text(&self, body: &Value) -> String {
        self.complete(body)["choices"][0]["text"].as_str().unwrap().to_owned()
    }

    /// The pieces of a stream that must come whole.
    #[track_caller]
    pub(crate) fn stream(&self, path: &str, body: &Value) -> Vec<Value> {
        let mut body = body.clone();
        body["stream"] = json!(true);
        let answer = self.send(path, &body);
        assert_eq!(answer.status(), 200, "{body}");
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        let text = answer.into_body().read_to_string().unwrap();
        let mut pieces: Vec<&str> = text
            .split_terminator("\n\n")
            .filter(|event| *event != ":")
            .map(|event| event.strip_prefix("data: ").unwrap())
            .collect();
        if path.starts_with("/v1/") {
            assert_eq!(pieces.pop(), Some("[DONE]"), "{text}");
        }
        pieces.iter().map(|piece| serde_json::from_str(piece).unwrap()).collect()
    }

    /// Rows that write.
    pub(crate) fn busy(&self) -> usize {
        let slots = self.get("/slots").good();
        slots.as_array().unwrap().iter().filter(|slot| slot["is_processing"] == true).count()
    }

    /// A number of `/metrics`; 0 if it is not there.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let text = self.agent.get(self.url("/metrics")).call().unwrap().into_body().read_to_string().unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0.0, |number| number.parse().unwrap())
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.id().to_string();
        assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    }

    /// Its exit code, if it has ended.
    pub(crate) fn exited(&mut self) -> Option<i32> {
        self.child.try_wait().unwrap().and_then(|status| status.code())
    }

    /// Waits for its end: its exit code.
    pub(crate) fn end(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An answer that was read.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: ureq::http::HeaderMap,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn of(answer: Response<Body>) -> Answer {
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        Answer { status, headers, body: answer.into_body().read_to_string().unwrap() }
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Its JSON; it must be a success.
    #[track_caller]
    pub(crate) fn good(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.body);
        self.json()
    }

    /// It must be an error in OpenAI's form; that.
    #[track_caller]
    pub(crate) fn refused(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.body);
        let error = self.json()["error"].clone();
        let fields: Vec<&String> =
            error.as_object().unwrap_or_else(|| panic!("{}", self.body)).keys().collect();
        assert_eq!(fields, ["message", "type", "param", "code"], "{}", self.body);
        assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{}", self.body);
        error
    }
}

/// Waits for something that comes soon.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < LONG, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The first line of a stream that is being written: from then on its row is busy.
pub(crate) fn first_line(answer: Response<Body>) -> (String, BufReader<impl Read>) {
    let mut reader = BufReader::new(answer.into_body().into_reader());
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    (line, reader)
}

/// Runs a command of the workspace on the servers' checkpoint; it must succeed. What it printed.
#[track_caller]
pub(crate) fn command(program: &str, args: &[&str]) -> String {
    let mut command = Command::new(program);
    command.current_dir(bench().path("")).arg("--checkpoint").arg(checkpoint()).args(args);
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A file of the tests.
pub(crate) fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("serve").join(name)
}
