//! `/v1/completions` and `/v1/fim/completions`: what is written, and in which form.

use crate::server::{Server, bench, command};
use serde_json::{Value, json};
use std::fs;
use std::thread;
use tests::close::assert_close;

const PROMPT: &str = "def function_1(x, total=0):\n";
const SUFFIX: &str = "\n    return total\n";

/// The text of all pieces.
fn whole(pieces: &[Value]) -> String {
    pieces.iter().filter_map(|piece| piece["choices"][0]["text"].as_str()).collect()
}

#[test]
fn the_text_is_that_of_generate() {
    let server = Server::shared();
    for (temperature, seed) in [("0", 0), ("0.8", 7)] {
        let args = ["--prompt", PROMPT, "--max-new-tokens", "24", "--temperature", temperature, "--json"];
        let options = ["--top-p", "1", "--seed", &seed.to_string()];
        let line = command(env!("CARGO_BIN_EXE_generate-text"), &[&args[..], &options[..]].concat());
        let wanted: Value = serde_json::from_str(&line).unwrap();
        let temperature: f64 = temperature.parse().unwrap();
        let body = json!({"prompt": PROMPT, "max_tokens": 24, "temperature": temperature, "seed": seed});
        assert_eq!(server.text(&body), wanted["text"].as_str().unwrap());
    }
}

#[test]
fn a_hole_is_filled_alike_in_every_form() {
    let server = Server::shared();
    let args = ["--prompt", PROMPT, "--suffix", SUFFIX, "--max-new-tokens", "16", "--temperature", "0"];
    let line = command(env!("CARGO_BIN_EXE_generate-text"), &[&args[..], &["--json"]].concat());
    let wanted: Value = serde_json::from_str(&line).unwrap();
    let wanted = wanted["text"].as_str().unwrap();
    let body = |prompt: &str, suffix: Option<&str>| json!({"prompt": prompt, "suffix": suffix, "max_tokens": 16, "temperature": 0});
    assert_eq!(server.text(&body(PROMPT, Some(SUFFIX))), wanted);
    let marked = format!("<|fim_prefix|>{PROMPT}<|fim_suffix|>{SUFFIX}<|fim_middle|>");
    assert_eq!(server.text(&body(&marked, None)), wanted);
    let infill = json!({"input_prefix": PROMPT, "input_suffix": SUFFIX, "n_predict": 16, "temperature": 0});
    assert_eq!(server.post("/infill", &infill).good()["content"], wanted);
    let split = json!({"input_prefix": "def function_1", "prompt": "(x, total=0):\n", "input_suffix": SUFFIX, "n_predict": 16, "temperature": 0});
    assert_eq!(server.post("/infill", &split).good()["content"], wanted);
    let fim = body(PROMPT, Some(SUFFIX));
    let answer = server.post("/v1/fim/completions", &fim).good();
    assert_eq!(answer["choices"][0]["message"]["content"], wanted);
    let pieces = server.stream("/v1/fim/completions", &fim);
    // Continue reads this of every piece.
    let text: String =
        pieces.iter().map(|piece| piece["choices"][0]["delta"]["content"].as_str().unwrap()).collect();
    assert_eq!(text, wanted);
    let last = pieces.last().unwrap();
    assert_eq!(
        (&last["choices"][0]["finish_reason"], &last["usage"]["completion_tokens"]),
        (&json!("length"), &json!(16))
    );
}

#[test]
fn names_of_special_tokens_are_text_where_a_person_wrote_them() {
    let server = Server::shared();
    let tokens = |body: Value| server.post("/tokenize", &body).good()["count"].as_u64().unwrap();
    let name = "<|endoftext|>";
    assert_eq!(tokens(json!({"prompt": name})), 1);
    let as_text = tokens(json!({"content": name, "parse_special": false}));
    assert!(as_text > 5, "{as_text}");
    let prompt_tokens = |answer: Value| answer["usage"]["prompt_tokens"].as_u64().unwrap();
    let alone = json!({"prompt": name, "max_tokens": 1});
    assert_eq!(prompt_tokens(server.complete(&alone)), 1);
    let source = json!({"prompt": name, "suffix": name, "max_tokens": 1});
    assert_eq!(prompt_tokens(server.complete(&source)), 2 * as_text + 3);
    let infill = json!({"input_prefix": name, "input_suffix": name, "n_predict": 1});
    assert_eq!(server.post("/infill", &infill).good()["tokens_evaluated"], 2 * as_text + 3);
}

#[test]
fn every_choice_has_its_place_and_usage_counts_all() {
    let server = Server::shared();
    let body = json!({"model": "any", "prompt": ["a = ", "b = "], "n": 2, "max_tokens": 5, "seed": 3, "user": "someone",
        "presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "return_token_ids": true, "unheard_of": [1]});
    let answer = server.complete(&body);
    assert_eq!((&answer["object"], &answer["model"]), (&json!("text_completion"), &json!("pythonlm")));
    assert!(
        answer["id"].as_str().unwrap().starts_with("cmpl-")
            && answer["created"].as_u64().unwrap() > 1_600_000_000
    );
    let choices = answer["choices"].as_array().unwrap();
    let indices: Vec<u64> = choices.iter().map(|choice| choice["index"].as_u64().unwrap()).collect();
    assert_eq!(indices, [0, 1, 2, 3]);
    let ids = |choice: &Value| choice["prompt_token_ids"].clone();
    assert!(ids(&choices[0]) == ids(&choices[1]) && ids(&choices[1]) != ids(&choices[2]));
    assert_ne!(choices[0]["text"], choices[1]["text"], "samples of one prompt are drawn alike");
    let new: usize = choices.iter().map(|choice| choice["token_ids"].as_array().unwrap().len()).sum();
    let prompts: usize =
        [0, 2].map(|choice: usize| ids(&choices[choice]).as_array().unwrap().len()).iter().sum();
    assert_eq!(answer["usage"]["prompt_tokens"], prompts);
    assert_eq!(answer["usage"]["completion_tokens"], new);
    assert_eq!(answer["usage"]["total_tokens"], prompts + new);
    // A seed of each prompt's own: the same prompt twice is drawn twice.
    let twice = server.complete(&json!({"prompt": ["a = ", "a = "], "max_tokens": 16, "seed": 3}));
    assert_ne!(twice["choices"][0]["text"], twice["choices"][1]["text"]);
}

#[test]
fn prompts_as_ids_are_the_prompts_as_text() {
    let server = Server::shared();
    let ids = |text: &str| server.post("/tokenize", &json!({"prompt": text})).good()["tokens"].clone();
    let (one, other) = (ids(PROMPT), ids("import "));
    let text = |prompt: Value| {
        let answer = server.complete(&json!({"prompt": prompt, "max_tokens": 8, "temperature": 0}));
        answer["choices"].as_array().unwrap().iter().map(|choice| choice["text"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(text(json!(one)), text(json!(PROMPT)));
    assert_eq!(text(json!([one, other])), text(json!([PROMPT, "import "])));
    let back = server.post("/detokenize", &json!({"tokens": one})).good();
    assert_eq!((&back["prompt"], &back["content"]), (&json!(PROMPT), &json!(PROMPT)));
}

/// Of 32 texts that are written side by side, with others that come and go, each is the one that is written alone.
#[test]
fn a_seed_writes_the_same_text_whatever_else_is_written() {
    let server = Server::shared();
    let body = |seed: u64| {
        let prompt = &PROMPT.repeat(3)[..(seed as usize * 7) % 60 + 1];
        json!({"prompt": prompt, "max_tokens": 20 + seed % 40, "seed": seed, "temperature": 0.9, "top_k": 40})
    };
    let alone: Vec<String> = (0..32).map(|seed| server.text(&body(seed))).collect();
    let together: Vec<String> = thread::scope(|scope| {
        let threads: Vec<_> = (0..32)
            .map(|seed| {
                scope.spawn({
                    let server = &server;
                    move || server.text(&body(seed))
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(together, alone);
}

#[test]
fn a_stream_is_the_whole_text_in_whole_characters() {
    let server = Server::shared();
    let mut broken = 0;
    for seed in 0..16 {
        let body = json!({"prompt": PROMPT, "max_tokens": 60, "seed": seed, "logprobs": 2, "return_token_ids": true});
        let answer = server.complete(&body);
        let choice = &answer["choices"][0];
        let pieces = server.stream("/v1/completions", &body);
        assert_eq!(json!(whole(&pieces)), choice["text"], "seed {seed}");
        broken += usize::from(whole(&pieces).contains('\u{fffd}'));
        let joined = |name: &str, of: &str| -> Vec<Value> {
            let found = pieces.iter().filter_map(|piece| match of {
                "" => piece["choices"][0][name].as_array(),
                of => piece["choices"][0][of][name].as_array(),
            });
            found.flatten().cloned().collect()
        };
        assert_eq!(json!(joined("token_ids", "")), choice["token_ids"]);
        for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            assert_eq!(json!(joined(name, "logprobs")), choice["logprobs"][name], "{name}");
        }
        let (last, others) = pieces.split_last().unwrap();
        assert_eq!(
            (&last["choices"][0]["text"], &last["choices"][0]["finish_reason"]),
            (&json!(""), &choice["finish_reason"])
        );
        assert!(
            others
                .iter()
                .all(|piece| piece["choices"][0]["finish_reason"].is_null() && piece["usage"].is_null())
        );
    }
    // This model writes bytes that are no characters: without them the test would not show what it is for.
    assert!(broken > 4, "{broken}");
}

#[test]
fn usage_is_streamed_if_it_is_asked_for() {
    let server = Server::shared();
    let mut body = json!({"prompt": [PROMPT, "x"], "max_tokens": 4, "ignore_eos": true, "stream_options": {"include_usage": true}});
    let pieces = server.stream("/v1/completions", &body);
    let (last, others) = pieces.split_last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["completion_tokens"], 8);
    assert!(others.iter().all(|piece| piece["choices"].as_array().unwrap().len() == 1));
    body["stream_options"]["include_usage"] = json!(false);
    assert!(server.stream("/v1/completions", &body).iter().all(|piece| piece["usage"].is_null()));
}

/// Stop strings cut out of what would be written: wherever they begin and end among its tokens, nothing of them is sent.
#[test]
fn nothing_of_a_stop_string_is_sent() {
    let server = Server::shared();
    let mut body = json!({"prompt": PROMPT, "max_tokens": 40, "seed": 5, "temperature": 0.7});
    let text = server.text(&body);
    let at: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
    let stops: Vec<&str> = (2..at.len() - 6)
        .step_by(3)
        .map(|from| &text[at[from]..at[from + 1 + from % 5]])
        .filter(|stop| !stop.contains('\u{fffd}'))
        .collect();
    assert!(stops.len() >= 4, "{text:?}");
    for stop in stops {
        body["stop"] = json!([stop, "never written"]);
        let answer = server.complete(&body);
        let choice = &answer["choices"][0];
        let cut = &text[..text.find(stop).unwrap()];
        assert_eq!(choice["text"], cut, "{stop:?}");
        assert_eq!((&choice["finish_reason"], &choice["stop_reason"]), (&json!("stop"), &json!(stop)));
        let pieces = server.stream("/v1/completions", &body);
        assert_eq!(whole(&pieces), cut, "{stop:?}");
        assert_eq!(pieces.last().unwrap()["choices"][0]["finish_reason"], "stop");
        body["include_stop_str_in_output"] = json!(true);
        assert_eq!(server.text(&body), format!("{cut}{stop}"));
        assert_eq!(whole(&server.stream("/v1/completions", &body)), format!("{cut}{stop}"));
        body["include_stop_str_in_output"] = json!(false);
    }
}

#[test]
fn tokens_end_a_text_too_but_none_before_min_tokens() {
    let server = Server::shared();
    let mut body = json!({"prompt": PROMPT, "max_tokens": 24, "temperature": 0, "return_token_ids": true});
    let ids = server.complete(&body)["choices"][0]["token_ids"].clone();
    let ids = ids.as_array().unwrap();
    body["stop_token_ids"] = json!([ids[0]]);
    let answer = server.complete(&body);
    let choice = &answer["choices"][0];
    assert_eq!(
        (&choice["text"], &choice["finish_reason"], &choice["stop_reason"]),
        (&json!(""), &json!("stop"), &ids[0])
    );
    body["min_tokens"] = json!(12);
    let answer = server.complete(&body);
    let least = answer["choices"][0]["token_ids"].as_array().unwrap().len();
    assert!((12..=24).contains(&least), "{least}");
    body["ignore_eos"] = json!(true);
    assert_eq!(server.complete(&body)["usage"]["completion_tokens"], 24);
}

#[test]
fn the_best_of_several_texts_is_answered() {
    let server = Server::shared();
    let mean = |choice: &Value| {
        let found = choice["logprobs"]["token_logprobs"].as_array().unwrap();
        found.iter().map(|number| number.as_f64().unwrap()).sum::<f64>() / found.len() as f64
    };
    let body = json!({"prompt": PROMPT, "max_tokens": 12, "seed": 9, "n": 6, "logprobs": 0});
    let all = server.complete(&body);
    let mut means: Vec<(f64, Value)> = all["choices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|choice| (mean(choice), choice["text"].clone()))
        .collect();
    means.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    let body = json!({"prompt": PROMPT, "max_tokens": 12, "seed": 9, "n": 2, "best_of": 6, "logprobs": 0});
    let best = server.complete(&body);
    let texts: Vec<&Value> =
        best["choices"].as_array().unwrap().iter().map(|choice| &choice["text"]).collect();
    assert_eq!(texts, [&means[0].1, &means[1].1]);
    assert_eq!(best["usage"]["completion_tokens"], all["usage"]["completion_tokens"]);
}

/// As lm-eval asks: the prompt's tokens, and one more.
#[test]
fn echoed_log_probabilities_are_those_of_score() {
    let server = Server::shared();
    let text = "def function_1(x, total=0):\n    total += x * 1 + 0\n    return total\n".repeat(4);
    let text = format!("<|endoftext|>{text}");
    let ids = server.post("/tokenize", &json!({"prompt": text})).good()["tokens"].clone();
    fs::write(bench().path("echo.jsonl"), format!("{}\n", json!({"ids": ids}))).unwrap();
    let wanted = command(env!("CARGO_BIN_EXE_score-tokens"), &["--ids", "echo.jsonl"]);
    let wanted: Value = serde_json::from_str(wanted.lines().next().unwrap()).unwrap();
    let numbers = |found: &Value| -> Vec<f64> {
        found.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
    };
    let wanted = numbers(&wanted["logprobs"]);
    let body = json!({"prompt": [ids, ids], "max_tokens": 1, "temperature": 0, "echo": true, "logprobs": 1});
    let answer = server.complete(&body);
    for choice in answer["choices"].as_array().unwrap() {
        let found = &choice["logprobs"];
        let count = ids.as_array().unwrap().len();
        let lengths = ["tokens", "token_logprobs", "top_logprobs", "text_offset"]
            .map(|name| found[name].as_array().unwrap().len());
        assert_eq!(lengths, [count + 1; 4]);
        assert!(found["token_logprobs"][0].is_null() && found["top_logprobs"][0].is_null());
        let echoed = json!(&found["token_logprobs"].as_array().unwrap()[1..count]);
        assert_close("log-probabilities", &numbers(&echoed), &wanted, 1e-4);
        // The greedy test of lm-eval is an equality.
        for ((token, log_prob), top) in found["tokens"]
            .as_array()
            .unwrap()
            .iter()
            .zip(found["token_logprobs"].as_array().unwrap())
            .zip(found["top_logprobs"].as_array().unwrap())
            .skip(1)
        {
            assert_eq!(top[token.as_str().unwrap()], *log_prob);
        }
        assert!(choice["text"].as_str().unwrap().starts_with(&text));
    }
    // The prompt alone.
    let body = json!({"prompt": PROMPT, "max_tokens": 0, "echo": true, "logprobs": 5});
    let answer = server.complete(&body);
    let (choice, usage) = (&answer["choices"][0], &answer["usage"]);
    assert_eq!((&choice["text"], &usage["completion_tokens"]), (&json!(PROMPT), &json!(0)));
    let found = &choice["logprobs"];
    assert_eq!(json!(found["tokens"].as_array().unwrap().len()), usage["prompt_tokens"]);
    for (token, offset) in
        found["tokens"].as_array().unwrap().iter().zip(found["text_offset"].as_array().unwrap())
    {
        assert!(PROMPT[offset.as_u64().unwrap() as usize..].starts_with(token.as_str().unwrap()));
    }
    assert!(
        found["top_logprobs"]
            .as_array()
            .unwrap()
            .iter()
            .skip(1)
            .all(|top| (5..=6).contains(&top.as_object().unwrap().len()))
    );
    let pieces = server.stream("/v1/completions", &body);
    assert_eq!(whole(&pieces), PROMPT);
    assert_eq!(&pieces[0]["choices"][0]["logprobs"], found);
}

#[test]
fn a_prompt_that_was_seen_is_not_computed_again() {
    let server = Server::start(&["--rows", "2"]);
    let prompt = PROMPT.repeat(20);
    let body = json!({"prompt": prompt, "max_tokens": 4, "temperature": 0});
    let cached = |answer: &Value| answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    let first = server.complete(&body);
    assert_eq!(cached(&first), 0);
    let again = server.complete(&body);
    let tokens = again["usage"]["prompt_tokens"].as_u64().unwrap();
    // All but the last one, whose prediction is the first new token.
    assert_eq!(cached(&again), tokens - 1);
    assert_eq!(first["choices"][0]["text"], again["choices"][0]["text"]);
    assert_eq!(server.metric("pythonlm_cached_tokens_total"), (tokens - 1) as f64);
}
