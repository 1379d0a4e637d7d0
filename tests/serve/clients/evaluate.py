"""Runs lm-eval's local-completions on a running server, offline and without torch.

    python3 evaluate.py BASE_URL [--key KEY] [--max-length 2048]

Prints one JSON object a line. For each scored text: {"task", "document", "context", "continuation",
"log_likelihood", "greedy"}; in a rolling task the context is "" and the continuation the whole text, which is
scored after the token that ends texts. White space at the end of a context stands at the beginning of the
continuation, since lm-eval scores it there. For each generation: {"task", "document", "context", "text"}. A
last line holds the metrics.
"""

import argparse
import json
import os
import sys
from pathlib import Path

# No hub is asked for anything; what `datasets` keeps of these files is of no use to a later run.
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
TASKS = Path(__file__).parent / "tasks"


def main():
    parser = argparse.ArgumentParser(description="Runs lm-eval on a server.")
    parser.add_argument("base")
    parser.add_argument("--key", default="")
    parser.add_argument("--max-length", type=int, default=2048)
    options = parser.parse_args()
    os.environ["OPENAI_API_KEY"] = options.key
    os.chdir(TASKS)
    printed, sys.stdout = sys.stdout, sys.stderr  # The package prints too.
    import lm_eval
    from lm_eval.tasks import TaskManager

    base = options.base.rstrip("/")
    results = lm_eval.simple_evaluate(
        model="local-completions",
        model_args={
            "model": "pythonlm",
            "base_url": f"{base}/v1/completions",
            "tokenizer_backend": "remote",
            "max_length": options.max_length,
            "num_concurrent": 1,
            "batch_size": 4,
        },
        tasks=["python_choose", "python_whole", "python_write"],
        task_manager=TaskManager(include_path=str(TASKS), include_defaults=False),
        log_samples=True,
        bootstrap_iters=0,
    )
    for task, samples in results["samples"].items():
        for sample in samples:
            for arguments, response in zip(sample["arguments"], sample["filtered_resps"]):
                line = {"task": task, "document": sample["doc_id"]}
                if task == "python_write":
                    line |= {"context": arguments[0], "text": response}
                elif task == "python_whole":
                    line |= {
                        "context": "",
                        "continuation": arguments[0],
                        "log_likelihood": rolled(response),
                        "greedy": None,
                    }
                else:
                    context = arguments[0].rstrip()
                    line |= {"context": context, "continuation": arguments[0][len(context) :] + arguments[1]}
                    line |= {"log_likelihood": float(response[0]), "greedy": bool(response[1])}
                print(json.dumps(line, ensure_ascii=False), file=printed)
    metrics = {
        task: {name: value for name, value in found.items() if isinstance(value, float)}
        for task, found in results["results"].items()
    }
    print(json.dumps({"metrics": metrics}), file=printed)


def rolled(response):
    """Of a rolling task one number, which some versions put in a list."""
    return float(response[0] if isinstance(response, (list, tuple)) else response)


if __name__ == "__main__":
    main()
