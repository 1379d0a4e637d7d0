"""Load of a running server: streaming completions of 1, 8 and 32 clients, or hours of them.

    python3 load.py BASE_URL [--pid PID] [--key KEY] [--clients 1,8,32] [--tokens 64] [--requests 4]
    python3 load.py BASE_URL --pid PID --minutes 10

The first form prints a table: time to first token (50 and 95 of 100), tokens a second of all clients
together, and RssAnon of the process PID at its end. The second is a soak: requests of all lengths, a third of
them left before their end, until the minutes are over; it prints RssAnon after the first 100 requests and at
the end. The standard library alone; exit code 1 if a request fails.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from urllib.parse import urlsplit

LINES = [
    "import math",
    "def area(r):",
    "    return math.pi * r ** 2",
    "for i in range(10):",
    "    print(i)",
    "class Point:",
    "    def __init__(self, x, y):",
    "        self.x = x",
    "        self.y = y",
]


class Refused(Exception):
    """The server answered, but not with a completion."""


def body(rng, tokens):
    lines = [rng.choice(LINES) for _ in range(rng.randint(3, 12))]
    return {
        "model": "",
        "prompt": "\n".join(lines) + "\n",
        "max_tokens": tokens,
        "temperature": 0.8,
        "seed": rng.randrange(2**31),
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def stream(base, key, request, leave_after=None):
    """Seconds to the first token and the tokens of an answer; `leave_after` chunks the connection is closed."""
    url = urlsplit(base)
    data = json.dumps(request).encode()
    head = [
        f"POST {url.path.rstrip('/')}/v1/completions HTTP/1.1",
        f"Host: {url.netloc}",
        "Content-Type: application/json",
        f"Content-Length: {len(data)}",
        "Connection: close",
        *([f"Authorization: Bearer {key}"] if key else []),
    ]
    sent = time.perf_counter()
    reader, writer = await asyncio.open_connection(url.hostname, url.port or 80)
    try:
        writer.write("\r\n".join(head).encode() + b"\r\n\r\n" + data)
        await writer.drain()
        status = await reader.readline()
        if b" 200 " not in status:
            raise Refused((status + await reader.read()).decode(errors="replace")[:400])
        first, chunks = None, 0
        async for line in reader:
            if not line.startswith(b"data: "):
                continue
            if line.startswith(b"data: [DONE]"):
                raise Refused("the stream ended and told no usage")
            chunk = json.loads(line[6:])
            if "error" in chunk:
                raise Refused(chunk["error"]["message"])
            if chunk.get("usage"):
                return first, chunk["usage"]["completion_tokens"]
            first = first or time.perf_counter() - sent
            chunks += 1
            if chunks == leave_after:
                return first, chunks
        raise Refused("the stream was cut")
    finally:
        writer.close()


def rss_anon(pid):
    """MiB of memory of a process that are not of a file."""
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("RssAnon:"))


def percentile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(share * len(values)))]


async def table(options):
    print(f"{'clients':>7} {'requests':>8} {'TTFT p50':>9} {'TTFT p95':>9} {'tokens/s':>9} {'RssAnon':>11}")
    for clients in options.clients:

        async def one(client):
            rng = random.Random(client)
            return [
                await stream(options.base, options.key, body(rng, options.tokens))
                for _ in range(options.requests)
            ]

        start = time.perf_counter()
        answers = sum(await asyncio.gather(*map(one, range(clients))), [])
        seconds = time.perf_counter() - start
        firsts = [first for first, _ in answers if first is not None]
        if not firsts:
            raise Refused("no answer had a token")
        rate = sum(tokens for _, tokens in answers) / seconds
        rss = f"{rss_anon(options.pid):7.1f} MiB" if options.pid else "-"
        print(
            f"{clients:>7} {len(answers):>8} {percentile(firsts, 0.5) * 1000:>6.0f} ms {percentile(firsts, 0.95) * 1000:>6.0f} ms "
            f"{rate:>9.1f} {rss:>11}",
            flush=True,
        )


async def soak(options):
    end = time.monotonic() + 60 * options.minutes
    done = {"requests": 0, "left": 0, "busy": 0}
    start = None

    async def client(number):
        nonlocal start
        rng = random.Random(number)
        while time.monotonic() < end:
            leaves = rng.random() < 1 / 3
            try:
                await stream(
                    options.base,
                    options.key,
                    body(rng, rng.randint(1, 96)),
                    rng.randint(1, 8) if leaves else None,
                )
            except Refused as refused:
                if " 429 " not in str(refused):
                    raise
                done["busy"] += 1
                await asyncio.sleep(0.2)
                continue
            done["requests"] += 1
            done["left"] += leaves
            if done["requests"] >= 100 and start is None:
                start = rss_anon(options.pid)

    await asyncio.gather(*map(client, range(max(options.clients))))
    if start is None:
        raise Refused(
            f"only {done['requests']} requests in {options.minutes} minutes: 100 are needed for a start"
        )
    now = rss_anon(options.pid)
    print(
        f"{done['requests']} requests, of them left early {done['left']}, refused as busy {done['busy']}; "
        f"RssAnon {start:.1f} MiB after 100, {now:.1f} MiB at the end ({now - start:+.1f})"
    )


def main():
    parser = argparse.ArgumentParser(description="Load of a running server.")
    parser.add_argument("base")
    parser.add_argument("--pid", type=int)
    parser.add_argument("--key", default="")
    parser.add_argument("--clients", default=[1, 8, 32], type=lambda text: [int(n) for n in text.split(",")])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--requests", type=int, default=4, help="of each client")
    parser.add_argument("--minutes", type=float, help="a soak of so long")
    options = parser.parse_args()
    if options.minutes and not options.pid:
        parser.error("a soak wants --pid, the server's process")
    try:
        asyncio.run(soak(options) if options.minutes else table(options))
    except (Refused, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
