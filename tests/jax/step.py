"""The training step of preset `bench` as a user of JAX writes it, to measure beside ours: python3 step.py [STEPS]

The same widths, number of parameters and optimiser in f32: differential attention (Ye et al. 2024), SwiGLU, a second head that
predicts the token after the next, dropout, one jitted program whose state is donated. The cross-entropy makes loss and gradient
in one visit, as the plain one is slower. Prints the median time of a step and tokens a second. Needs jax 0.10.2.
"""

import json
import math
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

HIDDEN, LAYERS, HEADS, KV, DIM, INNER, VOCAB = 256, 4, 4, 2, 64, 768, 4096
ROWS, SEQ, DROPOUT, CAP, EPS = 8, 256, 0.1, 30.0, 1e-6
LAMBDA = np.array([0.8 - 0.6 * math.exp(-0.3 * layer) for layer in range(LAYERS)], np.float32)


def initial(key):
    keys = iter(jax.random.split(key, 16))
    normal = lambda std, *shape: std * jax.random.normal(next(keys), shape)
    dense = lambda i, o: normal(i**-0.5, LAYERS, i, o)
    layers = {
        "norm1": jnp.ones((LAYERS, HIDDEN)), "norm2": jnp.ones((LAYERS, HIDDEN)), "sub_norm": jnp.ones((LAYERS, 2 * DIM)),
        "q": dense(HIDDEN, HEADS * DIM), "k": dense(HIDDEN, KV * DIM), "v": dense(HIDDEN, KV * DIM),
        "o": dense(HEADS * DIM, HIDDEN), "gate": dense(HIDDEN, INNER), "up": dense(HIDDEN, INNER),
        "down": dense(INNER, HIDDEN), "lambda": normal(0.1, LAYERS, 4, DIM),
    }  # fmt: skip
    second = {"proj": normal((2 * HIDDEN) ** -0.5, 2 * HIDDEN, HIDDEN), "norm": jnp.ones(HIDDEN)}
    second["head"] = normal(HIDDEN**-0.5, VOCAB, HIDDEN)
    return {"embed": normal(0.02, VOCAB, HIDDEN), "layers": layers, "norm": jnp.ones(HIDDEN), "second": second}


def rms_norm(x, weight):
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + EPS) * weight


def rotate(x):  # [b, s, h, d]
    angle = jnp.arange(SEQ)[:, None] / 5e5 ** (jnp.arange(0, DIM, 2) / DIM)
    cos, sin = jnp.cos(angle)[:, None], jnp.sin(angle)[:, None]
    a, b = jnp.split(x, 2, -1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)


def dropout(x, key):
    keep = jax.random.bits(key, x.shape, jnp.uint16) < np.uint16((1 - DROPOUT) * 65536)
    return jnp.where(keep, x / (1 - DROPOUT), 0)


def attention(x, p, start):
    heads = lambda name, count, dim: (x @ p[name]).reshape(ROWS, SEQ, count, dim)
    # Head h attends with q[h] and q[h + heads/2]; a group of heads shares k and v.
    groups, shared = KV // 2, HEADS // KV
    q = rotate(heads("q", HEADS, DIM)).reshape(ROWS, SEQ, 2, groups, shared, DIM)
    k = rotate(heads("k", KV, DIM)).reshape(ROWS, SEQ, 2, groups, DIM)
    v = heads("v", groups, 2 * DIM)
    scores = jnp.einsum("bqtgrd,bktgd->btgrqk", q * DIM**-0.5, k)
    weights = jax.nn.softmax(jnp.where(np.tri(SEQ, dtype=bool), scores, -1e30))
    l = p["lambda"]
    factor = jnp.exp(l[0] @ l[1]) - jnp.exp(l[2] @ l[3]) + start
    out = jnp.einsum("bgrqk,bkge->bqgre", weights[:, 0] - factor * weights[:, 1], v)
    out = rms_norm(out, p["sub_norm"]) * (1 - start)
    return out.reshape(ROWS, SEQ, -1) @ p["o"]


def block(x, inputs):
    p, start, key = inputs
    keys = jax.random.split(key, 3)
    x = x + dropout(attention(rms_norm(x, p["norm1"]), p, start), keys[0])
    h = rms_norm(x, p["norm2"])
    h = dropout(jax.nn.silu(h @ p["gate"]) * (h @ p["up"]), keys[1])
    return x + dropout(h @ p["down"], keys[2]), None


@jax.custom_vjp
def cross_entropy(h, head, targets):
    return visit(h, head, targets)[0]


def visit(h, head, targets):
    """Mean loss of the positions with a target (not -1) under capped logits, and its gradients."""
    capped = CAP * jnp.tanh(h @ head.T / CAP)
    e = jnp.exp(capped - CAP)
    total = e.sum(-1, keepdims=True)
    hit = jnp.arange(VOCAB) == targets[:, None]
    weight = (targets >= 0) / jnp.maximum((targets >= 0).sum(), 1)
    loss = ((jnp.log(total[:, 0]) + CAP - jnp.where(hit, capped, 0).sum(-1)) * weight).sum()
    d = (e / total - hit) * weight[:, None] * (1 - (capped / CAP) ** 2)
    return loss, (d @ head, d.T @ h)


cross_entropy.defvjp(visit, lambda saved, g: (saved[0] * g, saved[1] * g, None))


def loss(p, ids, key):
    keys = jax.random.split(key, LAYERS)
    x, _ = jax.lax.scan(block, p["embed"][ids], (p["layers"], LAMBDA, keys), unroll=LAYERS)
    x = rms_norm(x, p["norm"])
    ahead = lambda n: jnp.pad(ids[:, n:], ((0, 0), (0, n)), constant_values=-1)
    main = cross_entropy(x.reshape(-1, HIDDEN), p["embed"], ahead(1).reshape(-1))
    second = p["second"]
    joined = jnp.concatenate([x, p["embed"][jnp.roll(ids, -1, 1)]], -1)
    h = rms_norm(joined @ second["proj"], second["norm"])
    return main + 0.1 * cross_entropy(h.reshape(-1, HIDDEN), second["head"], ahead(2).reshape(-1))


def step(state, ids, key):
    p, m, v, count = state
    value, g = jax.value_and_grad(loss)(p, ids, key)
    count += 1
    norm = jnp.sqrt(sum(jnp.sum(g * g) for g in jax.tree.leaves(g)))
    g = jax.tree.map(lambda g: g / jnp.maximum(norm, 1), g)
    m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, g)
    v = jax.tree.map(lambda v, g: 0.95 * v + 0.05 * g * g, v, g)
    towards = lambda m, v: m / (1 - 0.9**count) / (jnp.sqrt(v / (1 - 0.95**count)) + 1e-8)
    p = jax.tree.map(lambda p, m, v: p - 5e-4 * (towards(m, v) + 0.1 * p), p, m, v)
    return (p, m, v, count), value


def main():
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    p = jax.jit(initial)(jax.random.key(0))
    zeros = jax.jit(lambda p: jax.tree.map(jnp.zeros_like, p))
    state = (p, zeros(p), zeros(p), jnp.zeros((), jnp.float32))
    program = jax.jit(step, donate_argnums=0)
    # Generators of hardware, as JAX's own advice is for dropout.
    keys = jax.random.split(jax.random.key(1, impl="rbg"), steps + 3)
    rows = np.random.default_rng(0).integers(0, VOCAB, (steps + 3, ROWS, SEQ), np.int32)
    times = []
    for ids, key in zip(rows, keys):
        start = time.perf_counter()
        state, value = program(state, ids, key)
        value = float(value)
        times.append(time.perf_counter() - start)
    median = statistics.median(times[3:])
    parameters = sum(x.size for x in jax.tree.leaves(state[0]))
    print(json.dumps({"jax": jax.__version__, "parameters": parameters, "loss": round(value, 3),
                      "step_ms": round(1e3 * median, 1), "tokens_per_second": round(ROWS * SEQ / median)}))  # fmt: skip


main()
