"""Sends what editors send, and checks that the answers hold what each editor reads.

    python3 replay.py BASE_URL [--key KEY]

The requests stand in tests/golden/serve/requests.json. `reads` of a request says what its client reads:
`form` (json, array or stream), `fields` (a path, with dots, and its type; a name with a slash is one key),
`exactly` (the whole answer), `text` (the path of a stream's text), `done` and `last` (how the stream ends),
`comments` (keep-alive lines are this and nothing else). The standard library alone; exit code 1 names the
first client that would not understand.
"""

import argparse
import json
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

REQUESTS = Path(__file__).parents[2] / "golden/serve/requests.json"
TYPES = {"string": str, "number": (int, float), "boolean": bool}


def at(answer, path):
    """What stands at a path: `choices.0.text`."""
    for step in path.split(".") if "/" not in path else [path]:
        answer = answer[int(step) if isinstance(answer, list) else step]
    return answer


def check_fields(answer, fields):
    for path, kind in fields.items():
        try:
            found = at(answer, path)
        except (KeyError, IndexError, TypeError):
            raise AssertionError(f"no `{path}`") from None
        right = isinstance(found, TYPES[kind]) and (kind == "boolean" or not isinstance(found, bool))
        assert right, f"`{path}` is {found!r}, not a {kind}"


def check_stream(raw, reads):
    text, events, done = "", [], False
    for line in raw.split("\n"):
        line = line.rstrip("\r")
        if line.startswith(":"):
            assert line == reads["comments"], f"a keep-alive line with words: {line!r}"
        elif line.startswith("data: "):
            assert not done, f"an event after the end: {line!r}"
            if line == "data: [DONE]":
                done = True
                continue
            event = json.loads(line[6:])
            assert "error" not in event, event
            events.append(event)
            try:
                piece = at(event, reads["text"])
            except (KeyError, IndexError):
                raise AssertionError(f"an event without `{reads['text']}`: {event}") from None
            assert isinstance(piece, str), f"`{reads['text']}` is {piece!r}"
            text += piece
        else:
            assert not line, f"not a server-sent event: {line!r}"
    assert text, "no text came"
    if reads.get("done"):
        assert done, "no [DONE] at the end"
    for key, wanted in reads.get("last", {}).items():
        assert events[-1].get(key) == wanted, f"`{key}` of the last event is not {wanted}: {events[-1]}"


def check(raw, reads):
    if reads["form"] == "stream":
        return check_stream(raw, reads)
    if reads.get("one_line"):
        assert "\n" not in raw.strip(), "the answer is of several lines: the client reads one"
    assert raw.startswith(reads.get("starts", "")), f"it begins with {raw[:20]!r}"
    assert reads.get("contains", "") in raw, f"it has no {reads['contains']!r}, letter by letter"
    answer = json.loads(raw)
    if "exactly" in reads:
        assert answer == reads["exactly"], f"it is {answer}"
    if reads["form"] == "array":
        assert (
            isinstance(answer, list) and len(answer) == reads["length"]
        ), f"not an array of {reads['length']}: {raw[:200]}"
    for one in answer if reads["form"] == "array" else [answer]:
        check_fields(one, reads.get("fields", {}))


def main():
    parser = argparse.ArgumentParser(description="Sends what editors send.")
    parser.add_argument("base")
    parser.add_argument("--key", help="the server's API key, sent instead of the client's own")
    options = parser.parse_args()
    for request in json.loads(REQUESTS.read_text()):
        name = f"{request['client']}, {request['name']}"
        headers = dict(request["headers"])
        if options.key:
            headers["authorization"] = f"Bearer {options.key}"
        url = options.base.rstrip("/") + request["path"]
        start = time.perf_counter()
        try:
            sent = urllib.request.Request(url, json.dumps(request["body"]).encode(), headers)
            with urllib.request.urlopen(sent, timeout=120) as answer:
                check(answer.read().decode(), request["reads"])
        except urllib.error.HTTPError as error:
            sys.exit(
                f"{name}: {request['path']} answers {error.code}: {error.read().decode(errors='replace')[:400]}"
            )
        except (AssertionError, ValueError, OSError) as error:
            sys.exit(f"{name}: {request['path']}: {error}")
        print(f"ok: {name} ({(time.perf_counter() - start) * 1000:.0f} ms)")


if __name__ == "__main__":
    main()
