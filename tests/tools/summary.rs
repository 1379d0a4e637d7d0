//! `eval-humaneval`: a sweep over ways of drawing, and the scores in files that it and other programs wrote.

use crate::evaluation::{Bench, problem, says};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use tests::golden;
use tests::trainer::Bench as Training;

/// Two temperatures with two values of top-p are four evaluations, each as it is alone, continued as one is.
#[test]
fn a_sweep_is_its_evaluations() {
    let bench = Bench::new();
    let training = Training::new(env!("CARGO_BIN_EXE_trainer"));
    training.succeed("run", &["--steps", "4", "--set", "checkpoint.every=2"]);
    let run = training.path("run").display().to_string();
    let checkpoint = format!("{run}/checkpoints/step_00000004");
    // What a model can do after four steps: any text passes that leaves the program valid Python.
    let mut one = problem();
    one["prompt"] = "def f(x):\n    pass\n#".into();
    one["test"] = "def check(candidate):\n    pass\n".into();
    bench.write("problems.jsonl", &[one]);
    let given = ["--problems", "problems.jsonl", "--max-new-tokens", "8", "--seed", "3"];
    let with = |args: &[&'static str]| [&given[..], args].concat();
    let sweep = with(&["--samples", "2", "--temperature", "0.2,0.8", "--top-p", "0.5,1"]);
    let said = bench.succeed(&[&sweep[..], &["--run", &run]].concat());
    let folder = training.path("run/eval_problems");
    let names = ["t0.2_p0.5", "t0.2_p1", "t0.8_p0.5", "t0.8_p1"];
    let files = |step: u32| names.map(|name| format!("step_0000000{step}_{name}.jsonl"));
    let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
    let whole = files(4).map(|file| read(&file));
    assert!(whole.iter().all(|file| file.lines().count() == 2) && whole[0] != whole[3]);

    // The table, the summary and the CSV have a line for each.
    let rows: Vec<&str> = said.lines().filter(|line| line.starts_with("step_0")).collect();
    let summary: Value = serde_json::from_str(&read("eval_summary.json")).unwrap();
    let evaluated = summary["evaluated"].as_array().unwrap();
    let csv = read("eval_summary.csv");
    let lines: Vec<&str> = csv.split_terminator("\r\n").collect();
    assert_eq!((rows.len(), evaluated.len(), lines.len()), (8, 8, 9));
    assert_eq!(rows.iter().filter(|row| row.ends_with("best")).count(), 1);
    assert!(
        lines[0].starts_with(
            "results,benchmark,checkpoint,step,tokens_seen,temperature,top_p,samples,problems,k,"
        )
    );
    let all: Vec<String> = [files(2), files(4)].concat();
    for (i, file) in all.iter().enumerate() {
        let (step, [temperature, top_p]) =
            (2 + i / 4 * 2, [["0.2", "0.5"], ["0.2", "1"], ["0.8", "0.5"], ["0.8", "1"]][i % 4]);
        let one = &evaluated[i];
        assert_eq!((&one["results"], &one["step"]), (&json!(file), &json!(step)));
        let tokens = one["tokens_seen"].as_u64().unwrap();
        let score = one["estimates"][0]["pass_at_k"].as_f64().unwrap();
        let line = format!(
            "{file},problems.jsonl,step_0000000{step},{step},{tokens},{temperature},{top_p},2,1,1,{score},,verdicts"
        );
        assert_eq!(lines[i + 1], line);
        let cells: Vec<&str> = rows[i].split_whitespace().collect();
        assert_eq!(cells[3..8], [&step.to_string(), temperature, top_p, "2", "1"], "{}", rows[i]);
    }
    let settings = &summary["settings"];
    assert_eq!(
        (&settings["samples"], settings.get("temperature"), settings.get("top_p")),
        (&json!(2), None, None)
    );

    // Interrupted within the third: the same command brings the same files.
    let cut = whole[2].lines().next().unwrap().len() + 9;
    fs::write(folder.join(&files(4)[2]), &whole[2][..cut]).unwrap();
    bench.succeed(&[&sweep[..], &["--run", &run]].concat());
    assert_eq!(files(4).map(|file| read(&file)), whole);

    // One alone has the name that was given, and the same lines.
    let alone = with(&["--samples", "2", "--temperature", "0.8", "--top-p", "0.5", "--out", "alone.jsonl"]);
    bench.succeed(&[&alone[..], &["--checkpoint", &checkpoint]].concat());
    assert_eq!(fs::read_to_string(bench.path("alone.jsonl")).unwrap(), whole[2]);
    assert_eq!(bench.json("alone.summary.json")["settings"]["temperature"], 0.8);
    assert_eq!(fs::read_to_string(bench.path("alone.summary.csv")).unwrap().lines().count(), 2);

    // Greedy is one way of drawing, whatever top-p is. Of one checkpoint, files lie beside the one that was named.
    let greedy = with(&["--temperature", "0,0.5", "--top-p", "0.9,0.95", "--out", "greedy.1.jsonl"]);
    let said = bench.succeed(&[&greedy[..], &["--checkpoint", &checkpoint]].concat());
    let names = ["greedy.1_t0.jsonl", "greedy.1_t0.5_p0.9.jsonl", "greedy.1_t0.5_p0.95.jsonl"];
    says(&said, &names);
    assert!(names.iter().all(|name| bench.path(name).exists()) && !bench.path("greedy.1.jsonl").exists());
    let evaluated = &bench.json("greedy.1.summary.json")["evaluated"];
    assert_eq!((&evaluated[0]["temperature"], &evaluated[0]["top_p"]), (&json!(0.0), &Value::Null));
    assert_eq!(evaluated.as_array().unwrap().len(), 3);

    // What was written can be read again: results, and a summary, which has their scores alone.
    let paths = all.iter().map(|file| folder.join(file).display().to_string());
    let paths: Vec<String> = paths.chain([folder.join("eval_summary.json").display().to_string()]).collect();
    let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
    let said = bench.succeed(&[&["--out", "again.csv", "--summarize"], &paths[..]].concat());
    assert_eq!(said.lines().filter(|line| line.ends_with("  stated")).count(), 8, "{said}");
    let again = fs::read_to_string(bench.path("again.csv")).unwrap();
    let again: Vec<&str> = again.split_terminator("\r\n").collect();
    assert_eq!(again.len(), 17);
    for (i, line) in lines[1..].iter().enumerate() {
        // Results do not say how many tokens training had seen.
        let mut fields: Vec<&str> = line.split(',').collect();
        fields[4] = "";
        assert_eq!(again[1 + i], fields.join(","));
        assert_eq!(again[9 + i], line.replace(",verdicts", ",stated"));
    }

    let cases: [(&[&str], &[&str]); 4] = [
        (
            &["--samples", "2", "--temperature", "0.5,0"],
            &["--temperature 0 all completions of a problem are equal"],
        ),
        (&["--temperature", "0.5,-1"], &["--temperature is -1"]),
        (&["--temperature", "0.5", "--top-p", "0.9,2"], &["--top-p is 2"]),
        (&["--samples", "2", "--temperature", "0.5,0.6", "--k", "3"], &["pass@3 needs at least 3"]),
    ];
    for (args, parts) in cases {
        says(&bench.fail(&[&given[..], args, &["--checkpoint", &checkpoint]].concat()), parts);
    }
}

/// A file of each form that harnesses write.
#[test]
fn results_of_other_programs_are_tabulated() {
    let bench = Bench::new();
    let names = [
        "samples.jsonl_results.jsonl",
        "eval_results.json",
        "evaluation_results.json",
        "results_2026-01-02T03-04-05.json",
    ];
    let paths = names.map(|name| golden("results").join(name).display().to_string());
    let [humaneval, evalplus, bigcode, lm_eval] = paths.each_ref().map(String::as_str);
    let said = bench.succeed(&["--out", "all.csv", "--summarize", humaneval, evalplus, bigcode, lm_eval]);
    let wanted = "\
results                           benchmark   checkpoint                temperature  top-p  samples  problems            pass@1   pass@10
samples.jsonl_results.jsonl       HumanEval                                                       4         3   41.67 ± 30.05 %
eval_results.json                 HumanEval                                                       2         2   50.00 ± 50.00 %
eval_results.json                 HumanEval+                                                      2         2   25.00 ± 25.00 %
evaluation_results.json           humaneval   bigcode/starcoderbase-1b          0.2   0.95       20                     30.00 %   50.00 %  stated
evaluation_results.json           mbpp        bigcode/starcoderbase-1b          0.2   0.95       20                     25.00 %            stated
results_2026-01-02T03-04-05.json  humaneval   some/model                                                  164     1.83 ± 1.05 %            stated
results_2026-01-02T03-04-05.json  mbpp        some/model                                                  500    17.00 ± 1.68 %            stated
summary   all.csv
";
    assert_eq!(said, wanted, "{said}");
    let csv = fs::read_to_string(bench.path("all.csv")).unwrap();
    let wanted = [
        "results,benchmark,checkpoint,step,tokens_seen,temperature,top_p,samples,problems,k,pass_at_k,standard_error,basis",
        // n = 4 with 0, 1 and 4 right.
        "samples.jsonl_results.jsonl,HumanEval,,,,,,4,3,1,0.4166666666666667,0.3004626062886658,verdicts",
        "eval_results.json,HumanEval,,,,,,2,2,1,0.5,0.5,verdicts",
        "eval_results.json,HumanEval+,,,,,,2,2,1,0.25,0.25,verdicts",
        "evaluation_results.json,humaneval,bigcode/starcoderbase-1b,,,0.2,0.95,20,,1,0.3,,stated",
        "evaluation_results.json,humaneval,bigcode/starcoderbase-1b,,,0.2,0.95,20,,10,0.5,,stated",
        "evaluation_results.json,mbpp,bigcode/starcoderbase-1b,,,0.2,0.95,20,,1,0.25,,stated",
        "results_2026-01-02T03-04-05.json,humaneval,some/model,,,,,,164,1,0.0183,0.0105,stated",
        "results_2026-01-02T03-04-05.json,mbpp,some/model,,,,,,500,1,0.17,0.0168,stated",
    ];
    assert_eq!(csv, wanted.map(|line| format!("{line}\r\n")).concat(), "{csv}");

    // The estimator, not a mean of what passed: 1 - C(3, 2) / C(4, 2) of the second problem.
    let said = bench.succeed(&["--k", "2", "--summarize", humaneval]);
    says(&said, &["pass@2", " 50.00 ± 28.87 %"]);
    let said = bench.succeed(&["--k", "1", "--summarize", bigcode]);
    assert!(said.contains("30.00 %") && !said.contains("pass@10"), "{said}");
    says(&bench.fail(&["--k", "10", "--summarize", bigcode]), &["mbpp: pass@10 is not stated"]);
}

/// Names are quoted as CSV wants it.
#[test]
fn csv_is_quoted() {
    let bench = Bench::new();
    let line = json!({"task_id": "A,\"B\"/0", "completion": "", "result": "passed", "passed": true});
    bench.write("a, \"b\"\n.jsonl", &[line]);
    bench.succeed(&["--out", "table.csv", "--summarize", "a, \"b\"\n.jsonl"]);
    let read = "import csv, json; print(json.dumps(list(csv.reader(open('table.csv', newline='')))[1]))";
    let output = std::process::Command::new("python3")
        .args(["-c", read])
        .current_dir(bench.folder.path())
        .output()
        .unwrap();
    let found: Vec<String> = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found[..2], ["a, \"b\"\n.jsonl", "A,\"B\""]);
    let raw = fs::read_to_string(bench.path("table.csv")).unwrap();
    assert!(raw.contains("\r\n\"a, \"\"b\"\"\n.jsonl\",\"A,\"\"B\"\"\",,"), "{raw}");
}

#[test]
fn what_holds_no_results_is_named() {
    let bench = Bench::new();
    bench.judge(&["    return x + 1\n", "    return x\n"], &[]);
    let own = fs::read_to_string(bench.path("out.jsonl")).unwrap();
    let passed = r#"{"task_id": "A/0", "passed": true}"#;
    let cases: &[(&str, &[&str])] = &[
        ("", &["holds no results", "`task_id` and `passed`"]),
        ("not JSON", &["line 1", "a JSON object was wanted"]),
        ("{}", &["`task_id` and `passed`", "EvalPlus's `eval`", "`pass@1`"]),
        (r#"{"task_id": "A/0", "completion": ""}"#, &["line 1", "`passed` is missing"]),
        (r#"{"task_id": "A/0", "passed": 1}"#, &["line 1", "`passed` is missing or not true or false"]),
        (r#"{"passed": true}"#, &["`task_id`"]),
        (&format!("{passed}\n{{\"task_id\""), &["line 2", "a JSON object was wanted"]),
        (r#"{"eval": {"A/0": [{"status": "pass"}]}}"#, &["A/0", "base_status"]),
        (r#"{"eval": {"A/0": {"nfiles": 1}}}"#, &["A/0 has no list", "base_status"]),
        (r#"{"eval": {}}"#, &["holds no verdicts"]),
        (
            r#"{"eval": {"A/0": [{"base_status": "pass", "plus_status": "pass"}, {"base_status": "pass"}]}}"#,
            &["`plus_status` is there for 1 of 2"],
        ),
        (r#"{"humaneval": {"pass@1": 30}}"#, &["humaneval: pass@1 is 30", "from 0 to 1"]),
        (r#"{"humaneval": {"accuracy": 0.3}}"#, &["`pass@1`"]),
        (r#"{"evaluated": []}"#, &["nothing was evaluated"]),
    ];
    for (text, parts) in cases {
        fs::write(bench.path("some.json"), text).unwrap();
        let message = bench.fail(&["--summarize", "some.json"]);
        says(&message, &["reading the results some.json: "]);
        says(&message, parts);
    }
    says(&bench.fail(&["--summarize", "nowhere.json"]), &["nowhere.json", "No such file"]);
    // Too few for a k, or the file states no such score.
    fs::write(bench.path("one.jsonl"), passed).unwrap();
    says(
        &bench.fail(&["--k", "2", "--summarize", "one.jsonl"]),
        &["one.jsonl", "pass@2 needs at least 2", "--k"],
    );
    fs::write(bench.path("states.json"), r#"{"humaneval": {"pass@1": 0.3}}"#).unwrap();
    says(
        &bench.fail(&["--k", "2", "--summarize", "states.json"]),
        &["states.json: humaneval: pass@2 is not stated"],
    );
    // An evaluation that was interrupted has no score yet.
    let unfinished = own.replace("\"problem_count\":1", "\"problem_count\":2");
    assert_ne!(unfinished, own);
    fs::write(bench.path("own.jsonl"), &unfinished).unwrap();
    says(&bench.fail(&["--summarize", "own.jsonl"]), &["2 verdicts on 1 of 2 problems", "goes on with it"]);
    let missing = own.replace("\"completions\":\"file\"", "\"completions\":\"checkpoint\",\"samples\":3");
    fs::write(bench.path("own.jsonl"), missing).unwrap();
    says(&bench.fail(&["--summarize", "own.jsonl"]), &["2 verdicts on 1 of 1 problems", "goes on with it"]);
    // What it would overwrite is not a table.
    let message = bench.fail(&["--summarize", "one.jsonl", "--out", "one.jsonl"]);
    says(&message, &["one.jsonl", ".csv"]);
    assert!(Path::new(&bench.path("one.jsonl")).exists());
}
