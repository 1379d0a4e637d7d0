//! `eval-humaneval`: benchmarks, results, scores, and what a person is told. What passes and what does not is in
//! `judging.rs`.

use crate::evaluation::{Bench, children, problem, says};
use eval_humaneval::estimate::{Tally, estimate, pass_at_k};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};
use tests::property;
use tests::trainer::Bench as Training;

/// All 164 reference solutions, cut by each list of stop strings, in the whole sandbox.
#[test]
fn canonical_solutions_pass() {
    let bench = Bench::new();
    for style in ["openai", "bigcode", "evalplus"] {
        let said = bench.succeed(&["--canonical", "--stop-style", style]);
        says(&said, &["164 of 164 solutions pass", "pass@1    100.00 ± 0.00 %"]);
    }
}

/// No function of HumanEval passes its tests if it does nothing.
#[test]
fn empty_functions_fail() {
    let bench = Bench::new();
    let lines: Vec<Value> =
        (0..164).map(|i| json!({"task_id": format!("HumanEval/{i}"), "completion": "    pass\n"})).collect();
    bench.write("samples.jsonl", &lines);
    let said = bench.succeed(&["--samples-file", "samples.jsonl"]);
    says(&said, &["164 completions, 0 passed", "pass@1      0.00 ± 0.00 %"]);
}

/// An evaluation that is killed takes its programs with it, and goes on where it was.
#[test]
fn killed_and_continued() {
    let bench = Bench::new();
    let mut lines: Vec<Value> = (0..6)
        .map(|i| json!({"task_id": "Test/0", "completion": format!("    return x + {}\n", i % 2), "note": i}))
        .collect();
    bench.write("samples.jsonl", &lines);
    let args = ["--problems", "problems.jsonl", "--samples-file", "samples.jsonl", "--workers", "1", "--out"];
    let run = |out: &str| bench.succeed(&[&args[..], &[out]].concat());
    let said = run("whole.jsonl");
    says(&said, &["6 completions, 3 passed", "3 AssertionError", "pass@1     50.00 %"]);
    let whole = fs::read_to_string(bench.path("whole.jsonl")).unwrap();
    assert_eq!(bench.lines("whole.jsonl")[3]["note"], 3);

    // Cut off within a line.
    let cut = whole.lines().take(3).map(str::len).sum::<usize>() + 20;
    fs::write(bench.path("cut.jsonl"), &whole[..cut]).unwrap();
    run("cut.jsonl");
    assert_eq!(fs::read_to_string(bench.path("cut.jsonl")).unwrap(), whole);
    // Complete: nothing to do.
    run("cut.jsonl");
    assert_eq!(fs::read_to_string(bench.path("cut.jsonl")).unwrap(), whole);

    // Killed while a program sleeps.
    lines.push(json!({"task_id": "Test/0", "completion": "    import time\n    time.sleep(1000)\n"}));
    bench.write("samples.jsonl", &lines);
    let mut process = bench.command(&[&args[..], &["killed.jsonl"]].concat()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(300);
    let written = || fs::read_to_string(bench.path("killed.jsonl")).unwrap_or_default().lines().count();
    while written() < 6 || children(&process).is_empty() {
        assert!(Instant::now() < deadline);
        thread::sleep(Duration::from_millis(20));
    }
    let children = children(&process);
    process.kill().unwrap();
    process.wait().unwrap();
    while children.iter().any(|child| Path::new(&format!("/proc/{child}")).exists()) {
        assert!(Instant::now() < deadline, "a judged program outlived the judge");
        thread::sleep(Duration::from_millis(20));
    }
    let message = bench.fail(&[&args[..], &["killed.jsonl", "--wall-seconds", "2"]].concat());
    says(&message, &["killed.jsonl", "wall_seconds is 60 there and 2 now", "another --out"]);
    assert_eq!(written(), 6);
}

/// MBPP's two forms, as JSON lines and as a list.
#[test]
fn mbpp() {
    let bench = Bench::new();
    let full = json!({
        "task_id": 601, "text": "Write a function to make a node.", "code": "class Node:\r\n    def __init__(self):\r\n        self.x = 1\r\ndef make(): return Node()",
        "test_setup_code": "root = Node()", "test_list": ["assert make().x == root.x", "assert make() is not make()"], "challenge_test_list": [],
    });
    let sanitized = json!({
        "source_file": "x", "task_id": 602, "prompt": "Write a function to take a root.", "code": "def root(x): return x ** 0.5",
        "test_imports": ["import math"], "test_list": ["assert math.isclose(root(2), math.sqrt(2))"],
    });
    bench.write("mbpp.jsonl", &[full.clone(), sanitized.clone()]);
    fs::write(bench.path("mbpp.json"), serde_json::to_string_pretty(&json!([full, sanitized])).unwrap())
        .unwrap();
    for file in ["mbpp.jsonl", "mbpp.json"] {
        let said = bench.succeed(&["--problems", file, "--canonical"]);
        says(&said, &["2 of 2 solutions pass"]);
    }
    let samples = [
        json!({"task_id": 602, "completion": "def root(x): return 1.5"}),
        json!({"task_id": "601", "completion": "import types\n\nNode = make = lambda: types.SimpleNamespace(x=1)"}),
    ];
    bench.write("samples.jsonl", &samples);
    let said = bench.succeed(&["--problems", "mbpp.jsonl", "--samples-file", "samples.jsonl"]);
    says(&said, &["2 completions, 1 passed", "pass@1     50.00 ± 50.00 %"]);
    let results = bench.lines("samples.results.jsonl");
    assert_eq!((&results[0]["task_id"], &results[0]["passed"]), (&json!("601"), &json!(true)));
    assert_eq!((&results[1]["task_id"], &results[1]["passed"]), (&json!(602), &json!(false)));
    assert_eq!(results[0]["settings"]["problems"], "mbpp.jsonl");
    assert!(results[1]["settings"].is_null());
    let message = bench.fail(&["--problems", "mbpp.jsonl", "--canonical", "--stop-style", "openai"]);
    says(&message, &["openai", "bigcode or evalplus"]);
}

/// Every setting that can change a verdict is written down.
#[test]
fn results_record_the_settings() {
    let bench = Bench::new();
    bench.judge(&["    return x + 1\n"], &["--cpu-seconds", "7", "--memory-mib", "512"]);
    let settings = &bench.lines("out.jsonl")[0]["settings"];
    for (name, value) in [
        ("cpu_seconds", json!(7)),
        ("wall_seconds", json!(60)),
        ("memory_mib", json!(512)),
        ("sandbox", json!("full")),
        ("problem_count", json!(1)),
        ("completions", json!("file")),
        ("python_environment", json!("PYTHONHASHSEED=0 OMP_NUM_THREADS=1")),
    ] {
        assert_eq!(settings[name], value, "{name}");
    }
    for name in ["problems_blake3", "samples_blake3"] {
        assert_eq!(settings[name].as_str().unwrap().len(), 64);
    }
    assert!(settings["python"].as_str().unwrap().starts_with("3."));
}

#[test]
fn bad_input_is_named_with_its_remedy() {
    let bench = Bench::new();
    let sample = json!({"task_id": "Test/0", "completion": "    return x + 1\n"});
    bench.write("good.jsonl", std::slice::from_ref(&sample));
    bench.write("other.jsonl", &[json!({"task_id": "HumanEval/0", "completion": ""})]);
    bench.write("without.jsonl", &[sample, json!({"task_id": "Test/0", "text": ""})]);
    bench.write("number.jsonl", &[json!({"task_id": "Test/0", "completion": 3})]);
    bench.write("nothing.jsonl", &[]);
    bench.write("twice.jsonl", &[problem(), problem()]);
    bench.write("strange.jsonl", &[json!({"task_id": "Test/0", "question": "?"})]);
    fs::write(bench.path("broken.jsonl"), "{\"task_id\": \"Test/0\",\n").unwrap();
    fs::write(bench.path("latin.jsonl"), b"{\"task_id\": \"\xe9\"}\n").unwrap();
    fs::write(bench.path("cut.gz"), [0x1f, 0x8b, 8, 0]).unwrap();
    fs::write(bench.path("python"), "#!/bin/sh\nexit 3\n").unwrap();
    let good = ["--problems", "problems.jsonl", "--samples-file", "good.jsonl"];
    let samples = |name| ["--problems", "problems.jsonl", "--samples-file", name].to_vec();
    let problems = |name| ["--problems", name, "--canonical"].to_vec();
    let with = |args: &[&'static str]| [&good, args].concat();
    let generate =
        |args: &[&'static str]| [&["--problems", "problems.jsonl", "--checkpoint", "nowhere"], args].concat();
    let cases: Vec<(Vec<&str>, &[&str])> = vec![
        (samples("nowhere.jsonl"), &["reading nowhere.jsonl", "No such file"]),
        (
            samples("other.jsonl"),
            &["other.jsonl, line 1", "no problem `HumanEval/0`", "`Test/0`", "--problems"],
        ),
        (samples("without.jsonl"), &["without.jsonl, line 2", "`completion` is missing"]),
        (samples("number.jsonl"), &["number.jsonl, line 1", "`completion` is 3, wanted text"]),
        (samples("nothing.jsonl"), &["nothing.jsonl holds no completions", "task_id"]),
        (samples("broken.jsonl"), &["broken.jsonl", "line 1", "JSON object"]),
        (samples("latin.jsonl"), &["latin.jsonl", "UTF-8"]),
        (problems("nowhere.jsonl"), &["reading nowhere.jsonl"]),
        (problems("nothing.jsonl"), &["nothing.jsonl holds no problems", "HumanEval.jsonl.gz"]),
        (problems("twice.jsonl"), &["two problems `Test/0`"]),
        (
            problems("strange.jsonl"),
            &["strange.jsonl, line 1", "question", "canonical_solution", "test_list"],
        ),
        (problems("cut.gz"), &["cut.gz"]),
        (with(&["--k", "2"]), &["pass@2 needs at least 2 completions", "good.jsonl has 1 of Test/0", "--k"]),
        (with(&["--out", "no/where.jsonl"]), &["no/where.jsonl", "--out"]),
        (with(&["--out", "good.jsonl"]), &["good.jsonl, line 1", "not the first line", "another --out"]),
        (with(&["--python", "nowhere"]), &["nowhere", "--python PATH"]),
        (with(&["--python", "/bin/false"]), &["/bin/false", "exit status: 1"]),
        (generate(&[]), &["nowhere"]),
        (
            generate(&["--samples", "2"]),
            &["--samples is 2", "all completions of a problem are equal", "--temperature"],
        ),
        (generate(&["--k", "1,10"]), &["pass@10 needs at least 10", "--samples 10"]),
        (generate(&["--temperature", "-1"]), &["--temperature is -1"]),
        (generate(&["--top-p", "0"]), &["--top-p is 0", "more than 0"]),
        (
            vec!["--problems", "problems.jsonl", "--run", "nowhere"],
            &["nowhere has no checkpoints", "train --out"],
        ),
    ];
    for (args, parts) in cases {
        let before = fs::read_dir(bench.folder.path()).unwrap().count();
        says(&bench.fail(&args), parts);
        assert_eq!(fs::read_dir(bench.folder.path()).unwrap().count(), before, "{args:?} left something");
    }
}

/// Two problems without solutions of their own, which nothing but `--canonical` needs.
fn two_problems(bench: &Bench) {
    let mut problems = [problem(), problem()];
    problems[1]["task_id"] = "Test/1".into();
    for problem in &mut problems {
        problem.as_object_mut().unwrap().remove("canonical_solution");
    }
    bench.write("two.jsonl", &problems);
}

/// What models write around their code is not judged, and what was left of it is said.
#[test]
fn code_is_taken_out_of_fences_and_tokens() {
    let bench = Bench::new();
    two_problems(&bench);
    let completions = [
        "```python\ndef f(x):\n    return x + 1\n```\n",
        "    return x + 1\n```\nIt returns the next number.\n",
        "    return x + 1\n<|endoftext|>",
        "    return x + 1\n",
        "    return '''\n    ```\n    '''\n",
    ];
    let lines: Vec<Value> = (completions.iter())
        .flat_map(|text| ["Test/0", "Test/1"].map(|id| json!({"task_id": id, "completion": text})))
        .collect();
    bench.write("samples.jsonl", &lines);
    let said = bench.succeed(&["--problems", "two.jsonl", "--samples-file", "samples.jsonl"]);
    says(&said, &["10 completions, 8 passed", "cleaned   6 completions", "pass@1     80.00 ± 0.00 %"]);
    let results = bench.lines("samples.results.jsonl");
    assert_eq!(results[0]["settings"]["cleaned"], 6);
    assert_eq!(results[0]["completion"], completions[0]);
    assert_eq!(results[0]["judged"], "def f(x):\n    return x + 1\n");
    assert_eq!(results[1]["judged"], "    return x + 1\n");
    assert_eq!(results[2]["judged"], "    return x + 1\n");
    assert!(results[3..5].iter().all(|line| line.get("judged").is_none()));
    let summary = bench.json("samples.results.summary.json");
    assert_eq!(summary["best"]["estimates"][0]["pass_at_k"], 0.8);
    assert_eq!(summary["best"]["results"], "samples.results.jsonl");
    assert_eq!((&summary["settings"]["cleaned"], &summary["settings"]["bad_lines"]), (&json!(6), &json!(0)));
    let message = bench.fail(&["--problems", "two.jsonl", "--canonical"]);
    says(&message, &["Test/0 has no solution of its own", "--canonical"]);
}

/// The same programs in every form in which others write them.
#[test]
fn forms_of_other_programs_are_read() {
    let bench = Bench::new();
    two_problems(&bench);
    let whole = |sum: &str| format!("import os\n\n\ndef f(x):\n    return {sum}\n<|endoftext|>");
    let (right, wrong) = (whole("x + 1"), whole("x"));
    let evalplus = [
        json!({"task_id": "Test/0", "solution": right}),
        json!({"task_id": "Test/1", "solution": wrong}),
        json!({"task_id": "Test/0", "solution": wrong}),
        json!({"task_id": "Test/1", "solution": right}),
    ];
    bench.write("evalplus.jsonl", &evalplus);
    fs::write(bench.path("list.json"), json!(evalplus).to_string()).unwrap();
    let bigcode = serde_json::to_string_pretty(&json!([[right, wrong], [wrong, right]])).unwrap();
    fs::write(bench.path("generations.json"), &bigcode).unwrap();
    fs::write(bench.path("marked.json"), format!("\u{feff}{bigcode}")).unwrap();
    let python = [
        r#"{"task_id": "Test/0", "score": NaN, "completion": "    return x + 1\n"}"#,
        r#"{"task_id": "Test/0", "scores": [-Infinity, "NaN"], "completion": "    return x\n"}"#,
        r#"{"task_id": "Test/1", "completion": "    return NaN\n"}"#,
        r#"{"task_id": "Test/1", "completion": "    return x + 1\n"}"#,
    ];
    fs::write(bench.path("python.jsonl"), format!("\u{feff}{}", python.join("\r\n"))).unwrap();
    for file in ["evalplus.jsonl", "list.json", "generations.json", "marked.json", "python.jsonl"] {
        let out = format!("{file}.results");
        let said = bench.succeed(&["--problems", "two.jsonl", "--samples-file", file, "--out", &out]);
        says(&said, &["4 completions, 2 passed", "pass@1     50.00 ± 0.00 %"]);
        let lines = bench.lines(&out);
        let verdicts = lines.iter().map(|line| (line["task_id"].as_str().unwrap(), line["passed"] == true));
        let wanted = [("Test/0", true), ("Test/0", false), ("Test/1", false), ("Test/1", true)];
        assert_eq!(verdicts.collect::<Vec<_>>(), wanted, "{file}");
    }
    let message = bench.fail(&["--problems", "problems.jsonl", "--samples-file", "generations.json"]);
    says(&message, &["a list for each of 2 problems", "problems.jsonl has 1", "--first"]);
}

/// A line that is no completion is an error, or left out by name and number where that is allowed.
#[test]
fn bad_lines_are_named_and_counted() {
    let bench = Bench::new();
    two_problems(&bench);
    let good = |id: &str| json!({"task_id": id, "completion": "    return x + 1\n"}).to_string();
    let bad = [
        (r#"{"task_id": "Test/0", "completion": "    return '\ud800'"}"#, "hex escape"),
        (r#"{"task_id": "Test/0", "completion": "    ret"#, "EOF"),
        (r#"{"task_id": "Test/0", "completion": null}"#, "`completion` is null, wanted text"),
        (r#"{"task_id": "Test/0", "completion": "", "solution": ""}"#, "both"),
        ("null", "a JSON object was wanted"),
        (r#"{"completion": ""}"#, "`task_id` is missing"),
    ];
    let args = ["--problems", "two.jsonl", "--samples-file", "samples.jsonl"];
    let write = |bad: &str| {
        fs::write(bench.path("samples.jsonl"), [&good("Test/0"), bad, &good("Test/1")].join("\n")).unwrap();
    };
    for (line, part) in bad {
        write(line);
        says(&bench.fail(&args), &["samples.jsonl, line 2", part, "--max-bad-lines 1"]);
    }
    write(&bad.map(|(line, _)| line).join("\n"));
    let message = bench.fail(&[&args[..], &["--max-bad-lines", "5"]].concat());
    says(&message, &["line 2", "line 6", "; ..", "--max-bad-lines 6"]);
    let said = bench.succeed(&[&args[..], &["--max-bad-lines", "6"]].concat());
    says(&said, &["2 completions, 2 passed", "left out  line 2: ", "left out  line 7: ", "pass@1    100.00"]);
    assert_eq!(bench.json("samples.results.summary.json")["settings"]["bad_lines"], 6);
    // Those of a list too.
    let list = r#"[["def f(x): return x + 1", "\ud800"], [3, "def f(x): return x + 1"]]"#;
    fs::write(bench.path("samples.jsonl"), list).unwrap();
    let message = bench.fail(&args);
    says(&message, &["element 1, program 2", "hex escape", "element 2, program 1", "`solution` is 3"]);
    let said = bench.succeed(&[&args[..], &["--max-bad-lines", "2", "--out", "list.jsonl"]].concat());
    says(&said, &["2 completions, 2 passed", "left out  element 1, program 2"]);
}

/// A score is not given for problems without completions.
#[test]
fn an_incomplete_file_has_no_score() {
    let bench = Bench::new();
    let mut second = problem();
    second["task_id"] = "Test/1".into();
    bench.write("two.jsonl", &[problem(), second]);
    bench.write("samples.jsonl", &[json!({"task_id": "Test/0", "completion": "    return x + 1\n"})]);
    let said = bench.succeed(&["--problems", "two.jsonl", "--samples-file", "samples.jsonl"]);
    says(&said, &["1 completions, 1 passed", "pass@k is not defined: 1 of 2 problems", "Test/1"]);
    assert!(!said.contains("pass@1 "));
    assert_eq!(bench.json("samples.results.summary.json")["best"]["estimates"], json!([]));
}

/// Two checkpoints of a run, generated from, judged, continued and compared.
#[test]
fn checkpoints_of_a_run() {
    let bench = Bench::new();
    let training = Training::new(env!("CARGO_BIN_EXE_trainer"));
    training.succeed("run", &["--steps", "4", "--set", "checkpoint.every=2"]);
    let run = training.path("run").display().to_string();
    let (mut first, mut second) = (problem(), problem());
    first["prompt"] = "def f(x):\n".into();
    second["task_id"] = "Test/1".into();
    // What a model can do after four steps: any text that ends passes.
    second["test"] = "def check(candidate):\n    pass\n".into();
    second["prompt"] = "def f(x):\n    pass\n#".into();
    bench.write("problems.jsonl", &[first, second]);
    let args = ["--problems", "problems.jsonl", "--run", &run, "--samples", "3", "--temperature", "0.8"];
    let args = [&args[..], &["--max-new-tokens", "12", "--k", "1,3", "--seed", "5"]].concat();
    let said = bench.succeed(&args);
    says(&said, &["step_00000002.jsonl  ", "step_00000004.jsonl  ", "  best\n", "eval_summary.json"]);
    let folder = training.path("run/eval_problems");
    let summary: Value =
        serde_json::from_slice(&fs::read(folder.join("eval_summary.json")).unwrap()).unwrap();
    let steps: Vec<u64> =
        summary["evaluated"].as_array().unwrap().iter().map(|one| one["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [2, 4]);
    assert_eq!(summary["best"]["estimates"][1]["k"], 3);
    assert_eq!(summary["settings"]["temperature"], 0.8);
    let file = folder.join("step_00000004.jsonl");
    let whole = fs::read_to_string(&file).unwrap();
    let lines: Vec<Value> = whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let keys: Vec<(&str, u64)> = lines
        .iter()
        .map(|line| (line["task_id"].as_str().unwrap(), line["sample"].as_u64().unwrap()))
        .collect();
    assert_eq!(keys, ["Test/0", "Test/1"].map(|id| [0, 1, 2].map(|sample| (id, sample))).concat());
    let settings = &lines[0]["settings"];
    assert_eq!((&settings["stop_style"], &settings["seed"]), (&json!("openai"), &json!(5)));
    assert_eq!((&settings["max_new_tokens"], &settings["checkpoint"]), (&json!(12), &json!("step_00000004")));

    // Interrupted in the second checkpoint: the same command brings the same file.
    let cut = whole.lines().take(4).map(|line| line.len() + 1).sum::<usize>() - 5;
    fs::write(&file, &whole[..cut]).unwrap();
    bench.succeed(&args);
    assert_eq!(fs::read_to_string(&file).unwrap(), whole);

    // One checkpoint alone is the same as in the run.
    let checkpoint = format!("{run}/checkpoints/step_00000004");
    let alone = ["--checkpoint", &checkpoint, "--out", "alone.jsonl"];
    bench.succeed(&[&args[..2], &alone, &args[4..]].concat());
    assert_eq!(fs::read_to_string(bench.path("alone.jsonl")).unwrap(), whole);
    let alone = bench.json("alone.summary.json");
    assert_eq!(alone["evaluated"], json!([alone["best"]]));
    assert_eq!((&alone["best"]["step"], &alone["best"]["results"]), (&json!(4), &json!("alone.jsonl")));
    assert_eq!(alone["best"]["estimates"], summary["evaluated"][1]["estimates"]);
    assert_eq!(alone["settings"], summary["settings"]);

    // A damaged one is left out, and said to be.
    let weights = training.path("run/checkpoints/step_00000002/model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&weights, bytes).unwrap();
    says(
        &bench.fail(&args),
        &["left out", "model.safetensors is damaged", "1 of 2 checkpoints could not be"],
    );

    // The summary says so also where it is the last one.
    let step_4 = training.path("run/checkpoints/step_00000004/model.safetensors");
    let good = fs::read(&step_4).unwrap();
    fs::write(&step_4, "no weights").unwrap();
    bench.fail(&args);
    let summary: Value =
        serde_json::from_slice(&fs::read(folder.join("eval_summary.json")).unwrap()).unwrap();
    assert_eq!((&summary["best"], summary["refused"].as_array().unwrap().len()), (&Value::Null, 2));
    fs::write(&step_4, good).unwrap();

    // Neither too many tokens nor too long a prompt.
    let message = bench.fail(&[&args[..8], &["--out", "x", "--max-new-tokens", "60"]].concat());
    says(&message, &["60 new ones", "the model's context of 64", "--max-new-tokens"]);
    let mut long = problem();
    long["prompt"] = "x = 1\n".repeat(100).into();
    bench.write("long.jsonl", &[long]);
    let message = bench.fail(&["--problems", "long.jsonl", "--checkpoint", &checkpoint]);
    says(&message, &["Test/0 has", "the model's context is 64", "--problems"]);
}

/// C(n, k), exactly.
fn choose(n: u64, k: u64) -> f64 {
    (0..k).fold(1.0, |product, i| product * (n - i) as f64 / (i + 1) as f64)
}

#[test]
fn estimator_of_known_cases() {
    let of = |samples, passed, k| pass_at_k(Tally { samples, passed }, k);
    assert_eq!(of(1, 0, 1), Some(0.0));
    assert_eq!(of(1, 1, 1), Some(1.0));
    assert_eq!(of(10, 3, 11), None);
    assert_eq!(of(0, 0, 1), None);
    // 1 - C(3, 2) / C(5, 2)
    assert!((of(5, 2, 2).unwrap() - 0.7).abs() < 1e-12);
    assert_eq!(of(200, 200, 100), Some(1.0));
    assert_eq!(of(200, 101, 100), Some(1.0));
    let tallies = [(4, 0), (4, 1), (4, 4)].map(|(samples, passed)| Tally { samples, passed });
    let estimate = estimate(&tallies, 1).unwrap();
    assert!((estimate.pass_at_k - 1.25 / 3.0).abs() < 1e-12);
    // Standard deviation of 0, 1/4 and 1 over the square root of 3.
    assert!((estimate.standard_error.unwrap() - 0.300_462_606_288_666).abs() < 1e-12);
}

/// The product form against the quotient of binomial coefficients.
#[test]
fn estimator_against_its_closed_form() {
    property(256, &(1u64..60, 0u64..60, 1u64..60), |(n, c, k)| {
        let (c, k) = (c.min(n), k.min(n));
        let fails = if n - c < k { 0.0 } else { choose(n - c, k) / choose(n, k) };
        let found = pass_at_k(Tally { samples: n, passed: c }, k).unwrap();
        // 60 factors of one rounding each, and as many in the quotient.
        assert!((found - (1.0 - fails)).abs() < 120.0 * f64::EPSILON, "{found}, not {}", 1.0 - fails);
    });
}
