"""Drives a running server with the openai package.

    python3 openai_client.py BASE_URL [--key KEY]

KEY is the server's API key; with it a wrong one is tried too. The first check that fails ends it with exit
code 1.
"""

import argparse
import http.server
import math
import sys
import threading
import time

import openai

PROMPT = "def add(a, b):\n    "


def fails(kind, call, **fields):
    try:
        call()
    except kind as error:
        for name, wanted in fields.items():
            found = getattr(error, name)
            assert found == wanted, f"`{name}` of the error is {found!r}, not {wanted!r}: {error}"
        return error
    raise AssertionError(f"no {kind.__name__}")


def plain(client, model):
    """All fields at once."""
    answer = client.completions.create(
        model=model,
        prompt=PROMPT,
        max_tokens=8,
        temperature=0.2,
        top_p=0.9,
        n=2,
        best_of=3,
        seed=7,
        logprobs=2,
        echo=False,
        stop=["\n\n\n"],
        user="someone",
        presence_penalty=0,
        frequency_penalty=0,
        extra_body={"top_k": 40},
    )
    assert answer.object == "text_completion" and answer.id.startswith("cmpl-"), answer
    assert [choice.index for choice in answer.choices] == [0, 1], answer
    assert all(choice.finish_reason in ("stop", "length") for choice in answer.choices), answer
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens, usage
    assert usage.prompt_tokens > 0 and usage.prompt_tokens_details.cached_tokens >= 0, usage


def greedy_repeats(client, model):
    once, again = (
        client.completions.create(model=model, prompt=PROMPT, max_tokens=12, temperature=0).choices[0].text
        for _ in range(2)
    )
    assert once == again, (once, again)


def seeds(client, model):
    def texts(seed):
        answer = client.completions.create(
            model=model, prompt=PROMPT, max_tokens=12, temperature=1, seed=seed, n=2
        )
        return [choice.text for choice in answer.choices]

    assert texts(5) == texts(5), "a seed gives two texts"


def prompts(client, model):
    """Prompts of a list: choices stand in the order prompt by prompt, sample by sample."""
    answer = client.completions.create(
        model=model, prompt=["x = ", "y = "], n=2, max_tokens=2, temperature=0, echo=True
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3], answer
    assert [choice.text[:4] for choice in answer.choices] == ["x = ", "x = ", "y = ", "y = "], answer


def token_prompts(client, model):
    ids = client.post("../tokenize", body={"prompt": PROMPT, "add_special_tokens": False}, cast_to=object)[
        "tokens"
    ]
    by_text = client.completions.create(model=model, prompt=PROMPT, max_tokens=6, temperature=0)
    by_tokens = client.completions.create(model=model, prompt=ids, max_tokens=6, temperature=0)
    assert by_text.choices[0].text == by_tokens.choices[0].text, (by_text, by_tokens)
    assert by_text.usage.prompt_tokens == len(ids), (by_text.usage, ids)


def stream(client, model):
    asked = dict(model=model, prompt=PROMPT, max_tokens=12, temperature=0)
    whole = client.completions.create(**asked)
    chunks = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert (
        chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    ), chunks[-1]
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == whole.choices[0].text
    assert (
        chunks[-2].choices[0].text == ""
        and chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    )
    assert all(chunk.choices[0].finish_reason is None for chunk in chunks[:-2]), "an end before the end"
    assert len({chunk.id for chunk in chunks}) == 1
    unasked = list(client.completions.create(**asked, stream=True))
    assert all(chunk.choices for chunk in unasked), "a usage chunk that nobody asked for"


def stream_of_two(client, model):
    texts = {0: "", 1: ""}
    for chunk in client.completions.create(
        model=model, prompt=PROMPT, max_tokens=8, temperature=0.5, seed=3, n=2, stream=True
    ):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert all(texts.values()), texts


def logprobs(client, model):
    answer = client.completions.create(model=model, prompt=PROMPT, max_tokens=6, temperature=0, logprobs=3)
    choice, found = answer.choices[0], answer.choices[0].logprobs
    count = answer.usage.completion_tokens
    lengths = [len(found.tokens), len(found.token_logprobs), len(found.top_logprobs), len(found.text_offset)]
    assert lengths in ([count] * 4, [count - 1] * 4), (lengths, count)
    for token, logprob, top in zip(found.tokens, found.token_logprobs, found.top_logprobs):
        assert math.isfinite(logprob) and logprob <= 0 and 3 <= len(top) <= 4, (token, logprob, top)
        assert top[token] == logprob == max(top.values()), ("greedy takes the likeliest", token, top)
    assert "".join(found.tokens).startswith(choice.text) or any(
        "bytes:" in token for token in found.tokens
    ), choice


def echo(client, model):
    """The log-probabilities of a prompt alone."""
    answer = client.completions.create(model=model, prompt=PROMPT, max_tokens=0, echo=True, logprobs=1)
    found = answer.choices[0].logprobs
    assert answer.choices[0].text == PROMPT, answer
    assert len(found.tokens) == answer.usage.prompt_tokens, answer
    assert found.token_logprobs[0] is None and all(map(math.isfinite, found.token_logprobs[1:])), found
    assert [
        PROMPT[offset : offset + len(token)] for offset, token in zip(found.text_offset, found.tokens)
    ] == found.tokens, found


def stops(client, model):
    whole = (
        client.completions.create(model=model, prompt=PROMPT, max_tokens=16, temperature=0).choices[0].text
    )
    stop = whole[3:6]
    cut = whole[: whole.index(stop)]
    asked = dict(model=model, prompt=PROMPT, max_tokens=16, temperature=0, stop=stop)
    choice = client.completions.create(**asked).choices[0]
    assert (choice.text, choice.finish_reason) == (cut, "stop"), (choice, stop)
    streamed = "".join(chunk.choices[0].text for chunk in client.completions.create(**asked, stream=True))
    assert streamed == cut, ("a stop string leaks into the stream", streamed, cut)


def suffix(client, model):
    answer = client.completions.create(
        model=model, prompt=PROMPT, suffix="\n\nprint(add(1, 2))\n", max_tokens=8, temperature=0
    )
    assert answer.choices[0].finish_reason in ("stop", "length"), answer


def models(client, model):
    one = client.models.retrieve(model)
    assert (one.id, one.object) == (model, "model") and one.max_model_len > 0, one
    fails(openai.NotFoundError, lambda: client.models.retrieve("no-such-model"))


def bad_requests(client, model):
    bad = [
        ("temperature", -1),
        ("temperature", "hot"),
        ("top_p", 1.5),
        ("max_tokens", -1),
        ("n", 0),
        ("best_of", 0),
        ("logprobs", 6),
        ("presence_penalty", 1.0),
        ("frequency_penalty", 1.0),
        ("logit_bias", {"5": 10}),
        ("stop", ["a"] * 33),
        ("stream_options", {"include_usage": True}),
    ]
    for name, value in bad:
        asked = {"model": model, "prompt": PROMPT, "max_tokens": 2, name: value}
        try:
            fails(
                openai.BadRequestError,
                lambda: client.completions.create(**asked),
                param=name,
                type="invalid_request_error",
            )
        except AssertionError as error:
            raise AssertionError(f"{name}={value!r}: {error}") from None
    error = fails(
        openai.BadRequestError,
        lambda: client.completions.create(model=model, prompt=PROMPT, max_tokens=10**8),
        code="context_length_exceeded",
    )
    assert "maximum context length is" in str(error), error


def no_chat(client, model):
    message = {"role": "user", "content": "hello"}
    error = fails(
        openai.NotFoundError, lambda: client.chat.completions.create(model=model, messages=[message])
    )
    assert "/v1/completions" in str(error), error


def keys(client, model):
    if client.api_key == "none":
        return
    wrong = client.with_options(api_key="wrong")
    fails(
        openai.AuthenticationError,
        lambda: wrong.completions.create(model=model, prompt="x"),
        code="invalid_api_key",
    )


def overload(client, model):
    """More requests at once than a queue holds: each ends well, or with a 429 that says when to come again."""
    ends = []

    def one(seed):
        try:
            client.with_options(max_retries=0).completions.create(
                model=model, prompt=PROMPT, max_tokens=64, seed=seed
            )
            ends.append("ok")
        except openai.RateLimitError as error:
            assert int(error.response.headers["retry-after"]) > 0, error.response.headers
            ends.append("busy")
        except Exception as error:  # Told by the one who waits.
            ends.append(error)

    threads = [threading.Thread(target=one, args=(seed,)) for seed in range(48)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(end in ("ok", "busy") for end in ends) and "ok" in ends, ends


def retries(client, model):
    """The package itself: a server that is busy twice is asked again after what it says, and then answers."""

    class Busy(http.server.BaseHTTPRequestHandler):
        answers = [(503, 1), (429, 1), (200, None)]

        def do_POST(self):
            request = self.rfile.read(int(self.headers["content-length"]))
            status, after = self.answers.pop(0)
            body = (
                request
                if status == 200
                else b'{"error":{"message":"busy","type":"overloaded","param":null,"code":null}}'
            )
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            if after:
                self.send_header("retry-after", str(after))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Busy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        start = time.monotonic()
        local = client.with_options(base_url=f"http://127.0.0.1:{server.server_port}/v1")
        local.completions.create(model=model, prompt="x")
        assert not Busy.answers and time.monotonic() - start >= 2, "it did not wait as it was told"
        server.shutdown()


CHECKS = [
    plain,
    greedy_repeats,
    seeds,
    prompts,
    token_prompts,
    stream,
    stream_of_two,
    logprobs,
    echo,
    stops,
    suffix,
    models,
    bad_requests,
    no_chat,
    keys,
    overload,
    retries,
]


def main():
    parser = argparse.ArgumentParser(description="Drives a server with the openai package.")
    parser.add_argument("base")
    parser.add_argument("--key", default="none")
    parser.add_argument("--all", action="store_true", help="goes on after a check that fails")
    options = parser.parse_args()
    client = openai.OpenAI(base_url=options.base.rstrip("/") + "/v1", api_key=options.key, timeout=300)
    model = client.models.list().data[0].id
    failed = 0
    for check in CHECKS:
        start = time.monotonic()
        try:
            check(client, model)
            print(f"ok: {check.__name__} ({time.monotonic() - start:.2f} s)", flush=True)
        except (AssertionError, openai.OpenAIError, KeyError, TypeError, ValueError) as error:
            failed += 1
            print(
                f"failed: {check.__name__}: {type(error).__name__}: {str(error)[:1000]}",
                file=sys.stderr,
                flush=True,
            )
            if not options.all:
                break
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
