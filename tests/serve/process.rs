//! The server's process: how it begins and ends, what it says, and who has its rows.

use crate::server::{Server, bench, checkpoint, first_line, wait_until};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::thread;
use std::time::Duration;

#[test]
fn it_says_that_it_loads_until_it_is_ready() {
    let server = Server::spawn(&[], &[]);
    let mut seen = None;
    wait_until("it is ready", || match server.agent().get(server.url("/health")).call() {
        Ok(answer) if answer.status() == 200 => true,
        Ok(answer) => {
            let wait = answer.headers()["retry-after"].to_str().unwrap().to_owned();
            seen = Some((answer.status().as_u16(), wait, answer.into_body().read_to_string().unwrap()));
            false
        }
        Err(_) => false,
    });
    let (status, wait, body) = seen.expect("it answers while it loads");
    assert_eq!((status, wait.as_str()), (503, "5"), "{body}");
    assert!(body.contains("is being loaded"), "{body}");
    // What it prints can be pasted.
    let said = server.said();
    let line = said.lines().find(|line| line.starts_with("curl ")).unwrap_or_else(|| panic!("{said}"));
    let output = Command::new("sh").args(["-c", line]).output().unwrap();
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["usage"]["completion_tokens"], 32, "{answer}");
    assert!(said.contains(&format!("http://{}/\n", server.address())), "{said}");
}

#[test]
fn what_has_begun_is_finished_before_the_end() {
    let mut server = Server::start(&["--rows", "1"]);
    let body = json!({"prompt": "x", "max_tokens": 1500, "ignore_eos": true, "stream": true});
    let (_, mut writing) = first_line(server.send("/v1/completions", &body));
    let (address, waits) = (server.url("/v1/completions"), server.agent().clone());
    // A text that waits has begun too.
    let waits = thread::spawn(move || {
        let request = waits.post(address).header("content-type", "application/json");
        request.send(json!({"prompt": "y", "max_tokens": 3}).to_string()).unwrap().status().as_u16()
    });
    wait_until("the other waits", || server.metric("pythonlm_queue") == 1.0);
    server.signal("-TERM");
    wait_until("it has the signal", || server.said().contains("no more texts are taken"));
    let mut rest = String::new();
    writing.read_to_string(&mut rest).unwrap();
    assert!(rest.ends_with("data: [DONE]\n\n"), "{rest}");
    assert_eq!(waits.join().unwrap(), 200);
    assert_eq!(server.end(), Some(0));
}

/// Texts that together are more than any buffer between the server and its client takes.
fn more_than_buffers_hold() -> Value {
    json!({"prompt": "x", "n": 24, "max_tokens": 2000, "ignore_eos": true, "stream": true, "logprobs": 5, "return_token_ids": true})
}

/// New tokens of all rows.
fn written(server: &Server) -> u64 {
    let slots = server.get("/slots").good();
    slots.as_array().unwrap().iter().map(|slot| slot["n_decoded"].as_u64().unwrap()).sum()
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let mut server = Server::start(&["--rows", "8"]);
    // Nobody reads it: it would not end.
    let writing = first_line(server.send("/v1/completions", &more_than_buffers_hold()));
    server.signal("-INT");
    wait_until("it has the signal", || server.said().contains("no more texts are taken"));
    thread::sleep(Duration::from_secs(2));
    assert_eq!(server.exited(), None);
    server.signal("-INT");
    assert_eq!(server.end(), Some(130));
    drop(writing);
}

#[test]
fn what_cannot_be_served_is_explained() {
    let taken = Server::start(&[]);
    let port = taken.address().port().to_string();
    let none = bench().path("none");
    let checkpoint = checkpoint();
    let checkpoint = checkpoint.to_str().unwrap();
    for (args, words) in [
        (&["--checkpoint", none.to_str().unwrap(), "--port", "0"][..], &["none"][..]),
        (&["--checkpoint", checkpoint, "--port", &port], &["listening at", &port, "--port 0"]),
        (&["--checkpoint", checkpoint, "--host", "0.0.0.0"], &["PYTHONLM_API_KEY", "--insecure"]),
        (&["--checkpoint", checkpoint, "--api-key", "two words"], &["API key", "spaces"]),
        (&["--checkpoint", checkpoint, "--api-key", ""], &["API key", "empty"]),
        (&["--checkpoint", checkpoint, "--rows", "0"], &["--rows is 0"]),
        (&["--checkpoint", checkpoint, "--queue", "0"], &["--queue is 0"]),
        (&["--checkpoint", checkpoint, "--timeout", "0"], &["--timeout is 0"]),
        (
            &["--checkpoint", checkpoint, "--port", "0", "--max-model-len", "2049"],
            &["--max-model-len is 2049", "2048"],
        ),
        (&["--checkpoint", checkpoint, "--port", "0", "--max-model-len", "1"], &["--max-model-len is 1"]),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_server"));
        let output = command.args(args).env_remove("PYTHONLM_API_KEY").output().unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {message}");
        let last = message.trim_end().lines().last().unwrap();
        assert!(
            last.starts_with("error: ") && words.iter().all(|word| last.contains(word)),
            "{args:?}: {message}"
        );
    }
}

#[test]
fn a_row_is_free_again_when_its_client_goes() {
    let server = Server::start(&["--rows", "2"]);
    let long = json!({"prompt": "x", "max_tokens": 2000, "ignore_eos": true, "stream": true});
    // While tokens come.
    let (_, reading) = first_line(server.send("/v1/completions", &long));
    assert_eq!(server.busy(), 1);
    drop(reading);
    wait_until("the row is free", || server.busy() == 0);
    // While it waits: it is never written.
    let both = [
        first_line(server.send("/v1/completions", &long)),
        first_line(server.send("/v1/completions", &long)),
    ];
    let waiting = server.send("/v1/completions", &long);
    wait_until("it waits", || server.metric("pythonlm_queue") == 1.0);
    drop(waiting);
    drop(both);
    wait_until("all are free", || server.busy() == 0 && server.metric("pythonlm_queue") == 0.0);
    assert!(server.said().matches("left=1").count() >= 4, "{}", server.said());
    // Before the first token, and where the answer comes whole.
    let body = json!({"prompt": "x = 1\n".repeat(250), "max_tokens": 500, "ignore_eos": true}).to_string();
    let mut raw = TcpStream::connect(server.address()).unwrap();
    write!(raw, "POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len()).unwrap();
    wait_until("its row is busy", || server.busy() == 1);
    drop(raw);
    wait_until("the row is free", || server.busy() == 0);
    assert!(server.said().contains("status=gone"), "{}", server.said());
}

/// One that does not read waits alone.
#[test]
fn a_slow_reader_stops_nobody_else() {
    let server = Server::start(&["--rows", "25"]);
    let (_, mut slow) = first_line(server.send("/v1/completions", &more_than_buffers_hold()));
    let mut seen = 0;
    wait_until("its texts wait for it", || {
        let before = std::mem::replace(&mut seen, written(&server));
        thread::sleep(Duration::from_millis(300));
        seen > 24 && seen == before && server.busy() > 0
    });
    server.complete(&json!({"prompt": "y", "max_tokens": 200, "ignore_eos": true}));
    assert_eq!(written(&server), seen, "they have not waited");
    // And gets all in the end.
    let mut rest = String::new();
    slow.read_to_string(&mut rest).unwrap();
    assert!(rest.ends_with("data: [DONE]\n\n"));
    assert_eq!(rest.matches("\"finish_reason\":\"length\"").count(), 24);
}

#[test]
fn nothing_of_a_prompt_is_in_the_log() {
    let server = Server::start(&[]);
    let secret = "xylophone";
    let body = json!({"prompt": secret, "suffix": secret, "stop": secret, "model": secret, "user": secret, "max_tokens": 3, "a_field": 1});
    server.complete(&body);
    server.stream("/v1/completions", &body);
    server.post("/infill", &json!({"input_prefix": secret, "prompt": secret, "n_predict": 2})).good();
    server.post("/tokenize", &json!({"prompt": secret})).good();
    server.post("/v1/completions", &json!({"prompt": secret, "max_tokens": -1})).refused(400);
    server.post("/v1/completions", &json!({"prompt": {secret: 1}})).refused(400);
    server.get(&format!("/{secret}?{secret}={secret}")).refused(404);
    server.get(&format!("/v1/models/{secret}")).refused(404);
    let request =
        server.agent().post(server.url("/v1/completions")).header("content-type", "application/json");
    let answer = request.header("x-request-id", "mine-1").send(body.to_string()).unwrap();
    assert_eq!(answer.headers()["x-request-id"], "mine-1");
    wait_until("all is logged", || server.said().contains("id=mine-1"));
    let said = server.said();
    assert!(!said.contains(secret), "{said}");
    let line = said.lines().find(|line| line.contains("id=mine-1")).unwrap();
    for part in [
        "method=POST",
        "route=/v1/completions",
        "status=200",
        "texts=1",
        "new_tokens=",
        "first_token_seconds=",
        "ignored=a_field",
    ] {
        assert!(line.contains(part), "`{part}` is not in {line}");
    }
    // A name that would forge a line is not taken.
    let asks = server.agent().get(server.url("/health")).header("x-request-id", "a b=c").call().unwrap();
    assert!(asks.headers()["x-request-id"].to_str().unwrap().starts_with("req-"));
}

#[test]
fn metrics_and_state_are_told() {
    let server = Server::start(&["--rows", "3", "--model-name", "mine"]);
    server.complete(&json!({"prompt": "abc", "max_tokens": 5, "ignore_eos": true}));
    let all = |name: &str, number: f64| wait_until(name, || server.metric(name) == number);
    all("pythonlm_new_tokens_total", 5.0);
    all("pythonlm_texts_total{finish=\"length\"}", 1.0);
    all("pythonlm_requests_total{route=\"/v1/completions\",status=\"200\"}", 1.0);
    all("pythonlm_rows", 3.0);
    assert!(server.metric("pythonlm_cache_bytes") > 1e5);
    assert!(server.metric("pythonlm_time_to_first_token_seconds_count") == 1.0);
    let slots = server.get("/slots").good();
    assert_eq!(slots.as_array().unwrap().len(), 3);
    let props = server.get("/props").good();
    assert_eq!(
        (&props["total_slots"], &props["default_generation_settings"]["n_ctx"]),
        (&json!(3), &json!(2048))
    );
    let model = server.get("/v1/models/mine").good();
    assert_eq!(
        (&model["object"], &model["max_model_len"], &model["meta"]["n_vocab"]),
        (&json!("model"), &json!(2048), &json!(320))
    );
    assert_eq!(server.get("/v1/models").good()["data"], json!([model]));
    let info = server.get("/tokenizer_info").good();
    assert_eq!((&info["eos_token"], &info["bos_token"]), (&json!("<|endoftext|>"), &json!(null)));
    assert_eq!(server.get("/version").good()["version"], env!("CARGO_PKG_VERSION"));
    let described = server.get("/openapi.json").good();
    for path in [
        "/v1/completions",
        "/infill",
        "/completion",
        "/v1/fim/completions",
        "/v1/models",
        "/tokenize",
        "/detokenize",
        "/health",
        "/metrics",
    ] {
        assert!(described["paths"][path].is_object(), "{path}");
    }
    let page = server.get("/");
    assert!(
        page.headers["content-type"].to_str().unwrap().starts_with("text/html")
            && page.body.contains("</html>")
    );
}

/// A prompt of many pieces, while another text is written: after each piece that gets a token, two with a draft, and a few more
/// where its speed is measured.
#[test]
fn a_long_prompt_does_not_stop_the_others() {
    let server = Server::start(&["--rows", "2"]);
    let long = json!({"prompt": "x", "max_tokens": 2000, "ignore_eos": true, "stream": true});
    let (_, _writes) = first_line(server.send("/v1/completions", &long));
    let prompt = json!({"prompt": "y = 2\n".repeat(330), "max_tokens": 1, "stream": true});
    let computed = thread::scope(|scope| {
        let asked = scope.spawn(|| server.post("/v1/completions", &prompt));
        let mut computed = Vec::new();
        while !asked.is_finished() {
            let slots = server.get("/slots").good();
            let number = |row: usize, name: &str| slots[row][name].as_u64().unwrap();
            if slots.as_array().unwrap().iter().all(|slot| slot["is_processing"] == true) {
                // The other row has written nothing yet.
                let other = usize::from(number(1, "n_decoded") == 0);
                let pieces = number(other, "n_prompt_tokens_processed").div_ceil(64);
                computed.push((pieces, number(1 - other, "n_decoded")));
            }
        }
        computed
    });
    let (first, last) = (computed[0], computed[computed.len() - 1]);
    let (pieces, tokens) = (last.0 - first.0, last.1 - first.1);
    assert!(pieces >= 5 && (pieces..=2 * pieces + 16).contains(&tokens), "{pieces} pieces, {tokens} tokens");
}
