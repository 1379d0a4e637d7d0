//! `/infill` and `/completion`: llama.cpp's forms.

use crate::server::{CONTEXT, Server};
use serde_json::{Value, json};

#[test]
fn an_editor_gets_the_fields_that_it_reads() {
    let server = Server::shared();
    let body = json!({"input_prefix": "def f(a):\n", "prompt": "    b =", "input_suffix": "\n    return b\n", "n_predict": 9, "ignore_eos": true,
        "samplers": ["top_k", "top_p", "infill"], "cache_prompt": true, "id_slot": 0, "t_max_prompt_ms": 500, "n_indent": 4});
    let answer = server.post("/infill", &body);
    // llama.vim looks for this letter by letter, in one line.
    assert!(answer.body.contains("\"content\":\"") && !answer.body.contains('\n'), "{}", answer.body);
    let answer = answer.good();
    assert_eq!(
        (&answer["tokens_predicted"], &answer["truncated"], &answer["stop"]),
        (&json!(9), &json!(false), &json!(true))
    );
    assert_eq!(answer["timings"]["predicted_n"], 9);
    assert_eq!(
        answer["timings"]["prompt_n"].as_u64().unwrap() + answer["tokens_cached"].as_u64().unwrap(),
        answer["tokens_evaluated"].as_u64().unwrap()
    );
    for name in ["prompt_ms", "prompt_per_second", "predicted_ms", "predicted_per_second"] {
        assert!(answer["timings"][name].as_f64().unwrap() > 0.0, "{name}: {answer}");
    }
    let fields = json!(["content", "timings/prompt_n", "timings/predicted_ms", "tokens_cached", "no/such"]);
    let mut some = body.clone();
    some["response_fields"] = fields;
    let some = server.post("/infill", &some).good();
    let names: Vec<&String> = some.as_object().unwrap().keys().collect();
    assert_eq!(names, ["content", "timings/prompt_n", "timings/predicted_ms", "tokens_cached"]);
}

#[test]
fn several_texts_are_a_list() {
    let server = Server::shared();
    let body =
        |n: u64| json!({"input_prefix": "x = ", "input_suffix": "", "n_predict": 8, "n_cmpl": n, "seed": 4});
    let three = server.post("/infill", &body(3)).good();
    let texts: Vec<&Value> = three.as_array().unwrap().iter().map(|text| &text["content"]).collect();
    assert!(texts.len() == 3 && (texts[0] != texts[1] || texts[1] != texts[2]), "{texts:?}");
    assert_eq!(server.post("/infill", &body(1)).good()["content"], *texts[0]);
    server.post("/infill", &body(0)).refused(400);
    server.post("/infill", &body(1000)).refused(400);
}

/// An editor sends what stands around the cursor before anybody has to wait for it.
#[test]
fn a_warm_up_fills_the_cache() {
    let server = Server::start(&["--rows", "1"]);
    let (prefix, suffix) = ("x = 1\n".repeat(50), "y = 2\n".repeat(50));
    let mut body = json!({"input_prefix": prefix, "input_suffix": suffix, "prompt": "", "n_predict": 0, "response_fields": [""]});
    assert_eq!(server.post("/infill", &body).good(), json!({}));
    body["n_predict"] = json!(4);
    body["response_fields"] = json!([]);
    let answer = server.post("/infill", &body).good();
    let tokens = answer["tokens_evaluated"].as_u64().unwrap();
    assert!(tokens > 100 && answer["tokens_cached"] == tokens - 1, "{answer}");
    let empty = json!({"input_prefix": "", "input_suffix": "", "prompt": "", "n_predict": 0, "response_fields": [""]});
    assert_eq!(server.post("/infill", &empty).good(), json!({}));
}

#[test]
fn a_file_longer_than_the_context_is_filled_from_what_is_near() {
    let server = Server::shared();
    let (prefix, suffix) = ("a = 1\n".repeat(4000), "b = 2\n".repeat(4000));
    let body = json!({"input_prefix": prefix, "prompt": "zz = ", "input_suffix": suffix, "n_predict": 8, "ignore_eos": true});
    let answer = server.post("/infill", &body).good();
    assert_eq!((&answer["truncated"], &answer["tokens_predicted"]), (&json!(true), &json!(8)));
    let tokens = answer["tokens_evaluated"].as_u64().unwrap() as usize;
    assert!((CONTEXT / 2..=CONTEXT - 8).contains(&tokens), "{tokens}");
    // As much as there is room for.
    let body =
        json!({"input_prefix": "a", "input_suffix": "", "n_predict": 100_000, "stop": ["a"], "seed": 1});
    server.post("/infill", &body).good();
    // A prompt to be continued is not shortened.
    let body = json!({"prompt": prefix, "n_predict": 8});
    let error = server.post("/completion", &body).refused(400);
    assert_eq!(error["code"], "context_length_exceeded");
}

#[test]
fn time_is_over_at_the_end_of_a_line() {
    let server = Server::shared();
    let mut ended = 0;
    for seed in 0..8 {
        let body = json!({"input_prefix": "x = 1\n", "input_suffix": "", "n_predict": 1500, "t_max_predict_ms": 1, "seed": seed,
            "temperature": 1.0, "top_k": 0});
        let answer = server.post("/infill", &body).good();
        let text = answer["content"].as_str().unwrap();
        if answer["tokens_predicted"] != 1500 && answer["stop_type"] == "limit" {
            assert!(text.contains('\n'), "{answer}");
            ended += 1;
        }
    }
    assert!(ended > 0, "no text was ended by its time");
}

#[test]
fn pieces_of_a_completion_are_its_text() {
    let server = Server::shared();
    let body = json!({"prompt": "def f(", "n_predict": 40, "seed": 8, "stop": ["never written"]});
    let wanted = server.post("/completion", &body).good();
    let other = server.post("/completions", &body).good();
    assert_eq!(other["content"], wanted["content"]);
    for path in ["/completion", "/completions", "/infill"] {
        let pieces = server.stream(path, &body);
        let (last, others) = pieces.split_last().unwrap();
        let text: String = pieces.iter().map(|piece| piece["content"].as_str().unwrap()).collect();
        if path != "/infill" {
            assert_eq!(text, wanted["content"].as_str().unwrap());
        }
        assert!(
            last["stop"] == true
                && last["content"] == ""
                && others.iter().all(|piece| piece["stop"] == false)
        );
    }
    let ids = server.post("/tokenize", &json!({"content": "def f("})).good()["tokens"].clone();
    let of_ids = json!({"prompt": ids, "n_predict": 40, "seed": 8});
    assert_eq!(server.post("/completion", &of_ids).good()["content"], wanted["content"]);
}
