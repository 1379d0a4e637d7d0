//! What is refused, and in which words.

use crate::server::{Answer, CONTEXT, Server, first_line, wait_until};
use serde_json::{Value, json};
use std::fs;
use std::io::Read;
use tests::{Random, golden};

#[test]
fn every_error_is_json() {
    let server = Server::shared();
    let error = server.get("/no/such/place").refused(404);
    assert!(error["message"].as_str().unwrap().contains("/no/such/place"));
    server.get("/v1/completions").refused(405);
    server.post("/v1/models", &json!({})).refused(405);
    assert_eq!(server.get("/v1/models/other").refused(404)["code"], "model_not_found");
    let error = server.post("/v1/chat/completions", &json!({"messages": []})).refused(404);
    assert!(error["message"].as_str().unwrap().contains("/v1/completions"), "{error}");
    let send = |content: &str, body: &[u8]| {
        let request = server.agent().post(server.url("/v1/completions")).header("content-type", content);
        Answer::of(request.send(body).unwrap())
    };
    send("text/plain", b"{}").refused(415);
    for (body, words) in [
        (&b""[..], "EOF"),
        (b"{\"prompt\": \"x\"", "EOF"),
        (b"{\"prompt\": \"x\"} {", "trailing"),
        (b" [[1]]", "is a list"),
        (b"1", "invalid type"),
        (b"{\"prompt\": \"\xff\"}", "unicode"),
    ] {
        let error = send("application/json; charset=utf-8", body).refused(400);
        assert!(error["message"].as_str().unwrap().contains(words), "{error}");
    }
    let large = vec![b' '; 5 << 20];
    let error = send("application/json", &large).refused(413);
    assert!(error["message"].as_str().unwrap().contains("MiB"), "{error}");
}

#[test]
fn a_wrong_field_is_named() {
    let server = Server::shared();
    let many: Vec<String> = (0..33).map(|stop| stop.to_string()).collect();
    for (param, value) in [
        ("temperature", json!(-1)),
        ("temperature", json!("hot")),
        ("temperature", json!(1e300)),
        ("top_p", json!(0)),
        ("top_p", json!(1.5)),
        ("max_tokens", json!(-1)),
        ("max_tokens", json!(1.5)),
        ("n", json!(0)),
        ("n", json!(65)),
        ("best_of", json!(0)),
        ("logprobs", json!(6)),
        ("logprobs", json!(true)),
        ("stop", json!(many)),
        ("stop", json!("")),
        ("stop", json!({"a": 1})),
        ("min_p", json!(0.1)),
        ("presence_penalty", json!(1)),
        ("frequency_penalty", json!(-1)),
        ("repetition_penalty", json!(1.1)),
        ("logit_bias", json!({"5": 10})),
        ("min_tokens", json!(17)),
        ("stream_options", json!({"include_usage": true})),
        ("prompt", json!(5)),
        ("prompt", json!([])),
        ("prompt", json!([[1], "a"])),
        ("prompt", json!([320])),
        ("prompt", json!([-1])),
        ("stream", json!("yes")),
    ] {
        let mut body = json!({"prompt": "x"});
        body[param] = value.clone();
        let error = server.post("/v1/completions", &body).refused(400);
        assert_eq!(
            (&error["param"], &error["type"]),
            (&json!(param), &json!("invalid_request_error")),
            "{param}: {value}: {error}"
        );
    }
    let ids = json!({"prompt": [1, 2], "suffix": "x"});
    assert_eq!(server.post("/v1/completions", &ids).refused(400)["param"], "suffix");
    let best = json!({"prompt": "x", "stream": true, "best_of": 2});
    assert_eq!(server.post("/v1/completions", &best).refused(400)["param"], "best_of");
    server.post("/tokenize", &json!({})).refused(400);
    server.post("/detokenize", &json!({"tokens": [320]})).refused(400);
    server.post("/detokenize", &json!({"tokens": "x"})).refused(400);
}

#[test]
fn what_does_not_fit_the_context_is_refused_and_not_cut() {
    let server = Server::shared();
    let fits = json!({"prompt": vec![5; CONTEXT - 1], "max_tokens": 1});
    assert_eq!(server.complete(&fits)["usage"]["total_tokens"], CONTEXT);
    let prompt = vec![5; CONTEXT - 1];
    let error = server.post("/v1/completions", &json!({"prompt": prompt, "max_tokens": 2})).refused(400);
    assert_eq!((&error["code"], &error["param"]), (&json!("context_length_exceeded"), &json!("prompt")));
    let wanted = "This model's maximum context length is 2048 tokens, however you requested 2049 (2047 in your prompt; 2 for the completion).";
    assert_eq!(error["message"], wanted);
    let huge = json!({"prompt": "x", "max_tokens": u64::MAX});
    assert_eq!(server.post("/v1/completions", &huge).refused(400)["code"], "context_length_exceeded");
}

#[test]
fn one_more_than_may_wait_is_told_when_to_come_again() {
    let server = Server::start(&["--rows", "1", "--queue", "2"]);
    let long = json!({"prompt": "x", "max_tokens": 2000, "ignore_eos": true, "stream": true});
    let (_, reading) = first_line(server.send("/v1/completions", &long));
    let waiting = [server.send("/v1/completions", &long), server.send("/v1/completions", &long)];
    let answer = server.post("/v1/completions", &json!({"prompt": "x"}));
    let error = answer.refused(429);
    assert_eq!(
        (&error["type"], answer.headers["retry-after"].to_str().unwrap()),
        (&json!("rate_limit_error"), "1")
    );
    // Of several texts all have a place or none.
    server.post("/v1/completions", &json!({"prompt": ["x", "y", "z"]})).refused(400);
    server.get("/health").good();
    // Two that nobody waits for any more give their places to others.
    wait_until("they wait", || server.metric("pythonlm_queue") == 2.0);
    drop(waiting);
    wait_until("they have left the queue", || server.metric("pythonlm_queue") == 0.0);
    drop(reading);
    server.complete(&json!({"prompt": ["x", "y"], "max_tokens": 2}));
}

/// Thirty texts, one after the other in the only row, take longer than a second.
#[test]
fn a_text_may_not_take_longer_than_its_time() {
    let server = Server::start(&["--rows", "1", "--timeout", "1"]);
    let mut long = json!({"prompt": "x", "n": 30, "max_tokens": 2000, "ignore_eos": true});
    let error = server.post("/v1/completions", &long).refused(504);
    assert_eq!(error["type"], "timeout_error");
    // A stream has begun by then: its last event is the error.
    long["stream"] = json!(true);
    let mut answer = String::new();
    server.send("/v1/completions", &long).into_body().into_reader().read_to_string(&mut answer).unwrap();
    let last = answer.trim_end().rsplit("\n\n").next().unwrap().strip_prefix("data: ").unwrap();
    let last: Value = serde_json::from_str(last).unwrap();
    assert_eq!(last["error"], error);
    // Nothing of them is left.
    wait_until("the row is free", || server.busy() == 0 && server.metric("pythonlm_queue") == 0.0);
    server.complete(&json!({"prompt": "x", "max_tokens": 2}));
}

#[test]
fn a_key_is_asked_for_where_there_is_one() {
    let server = Server::spawn(&[], &[("PYTHONLM_API_KEY", "sesame")]);
    server.ready();
    let ask = |header: Option<&str>| {
        let request = server.agent().get(server.url("/v1/models"));
        let request = header.iter().fold(request, |request, value| request.header("authorization", *value));
        Answer::of(request.call().unwrap())
    };
    for wrong in [
        None,
        Some("Bearer "),
        Some("Bearer sesam"),
        Some("Bearer sesame1"),
        Some("sesame"),
        Some("Basic sesame"),
    ] {
        let answer = ask(wrong);
        assert_eq!(answer.refused(401)["code"], "invalid_api_key", "{wrong:?}");
    }
    assert_eq!(ask(Some("Bearer sesame")).good()["data"][0]["id"], "pythonlm");
    for open in ["/", "/health", "/v1/health", "/openapi.json"] {
        assert_eq!(server.get(open).status, 200, "{open}");
    }
    for closed in ["/metrics", "/props", "/slots", "/tokenizer_info", "/no/such/place"] {
        server.get(closed).refused(401);
    }
    // A browser asks beforehand, and has no key then.
    let asks = ureq::http::Request::builder()
        .method("OPTIONS")
        .uri(server.url("/v1/completions"))
        .header("origin", "http://localhost:3000")
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "authorization,content-type,x-stainless-lang")
        .body(())
        .unwrap();
    let answer = server.agent().run(asks).unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["access-control-allow-origin"], "*");
    assert_eq!(
        answer.headers()["access-control-allow-headers"],
        "authorization,content-type,x-stainless-lang"
    );
    assert!(!server.said().contains("sesame"));
}

#[test]
fn pages_of_other_sites_are_let_in_by_name() {
    let server =
        Server::start(&["--allowed-origin", "http://localhost:3000", "--allowed-origin", "http://a.example"]);
    let ask = |origin: &str| {
        let answer = server.agent().get(server.url("/v1/models")).header("origin", origin).call().unwrap();
        answer.headers().get("access-control-allow-origin").map(|value| value.to_str().unwrap().to_owned())
    };
    assert_eq!(ask("http://localhost:3000").as_deref(), Some("http://localhost:3000"));
    assert_eq!(ask("http://a.example").as_deref(), Some("http://a.example"));
    assert_eq!(ask("http://b.example"), None);
}

/// Every request that an editor sends, with hostile values in each of its fields, and with its bytes changed: the answer is a
/// text, or an error in JSON that is the client's.
#[test]
fn no_request_makes_the_server_fail() {
    let server = Server::shared();
    let requests: Value = serde_json::from_slice(&fs::read(golden("serve/requests.json")).unwrap()).unwrap();
    let hostile = [
        json!(null),
        json!(true),
        json!(-1),
        json!(0),
        json!(1e308),
        json!(-1e308),
        json!(5e-324),
        json!(i64::MIN),
        json!(u64::MAX),
        json!(""),
        json!("\u{0}\u{fffd}\u{10ffff}<|fim_middle|>"),
        json!([]),
        json!([null]),
        json!([[0]]),
        json!([i32::MAX]),
        json!({}),
        json!({"a": {"b": [1]}}),
    ];
    let mut counts = [0; 2];
    let mut check = |path: &str, sent: &[u8]| {
        let request = server.agent().post(server.url(path)).header("content-type", "application/json");
        let answer = Answer::of(request.send(sent).unwrap());
        let shown = String::from_utf8_lossy(sent);
        match answer.status {
            200 => counts[0] += 1,
            400..500 => {
                answer.refused(answer.status);
                counts[1] += 1;
            }
            status => panic!("{status}: {}: {path}: {shown}", answer.body),
        }
    };
    let mut random = Random::new(1);
    for request in requests.as_array().unwrap() {
        let path = request["path"].as_str().unwrap();
        let mut body = request["body"].clone();
        for limit in ["n_predict", "max_tokens"] {
            if body.get(limit).is_some() {
                body[limit] = json!(2);
            }
        }
        let names: Vec<String> = body.as_object().unwrap().keys().cloned().collect();
        for name in &names {
            for value in &hostile {
                let mut body = body.clone();
                body[name] = value.clone();
                // Nobody waits for thousands of tokens here.
                if ["n_predict", "max_tokens"].contains(&name.as_str()) && value.is_null() {
                    continue;
                }
                check(path, body.to_string().as_bytes());
            }
        }
        for _ in 0..40 {
            let mut bytes = body.to_string().into_bytes();
            for _ in 0..1 + random.below(4) {
                let at = random.below(bytes.len());
                match random.below(3) {
                    0 => bytes[at] = random.below(256) as u8,
                    1 => drop(bytes.remove(at)),
                    _ => bytes.truncate(at + 1),
                }
            }
            check(path, &bytes);
        }
    }
    assert!(counts[0] > 200 && counts[1] > 400, "{counts:?}");
    server.get("/health").good();
    assert!(!server.said().contains("panicked"));
    wait_until("no text is left", || server.busy() == 0);
}
