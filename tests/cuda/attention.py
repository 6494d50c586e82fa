#!/usr/bin/env python3
"""The attention kernels on the CPU (emulate/), against f64 in numpy: output, log sums and all gradients, on ragged tiles, with a
shared bias, one of each sample, one that is read by rows, and none; in several orders of threads and blocks, whose results must
have the same bits.

    attention.py [SEED]...        # needs g++ and numpy
"""

import hashlib
import os
import pathlib
import struct
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "emulate"))
import numpy as np  # noqa: E402

from emulate import Module, from_bf16, to_bf16  # noqa: E402

# The fields of `struct Attention` (attention.cuh), in its order.
POINTERS = "q k v output lse bias bias_row grad rows dq dk dv dbias".split()
SAMPLES = "q k v output grad dq dk dv bias".split()
ROWS = "q k v output grad dq dk dv".split()
SIZES = "bias_pitch dbias_pitch bias_rows batch heads queries keys slice".split()

# Largest error, relative to the largest value: output, log sums, dq, dk, dv, dbias. In bf16 weights and slopes are rounded to 8
# bits, and so may outputs and gradients be.
ALLOWED = {"bf16": [8e-3, 1e-6, 8e-3, 8e-3, 8e-3, 8e-3], "f32": [3e-6] * 6}

# batch, queries, keys, heads, then: lead (0: no bias, 1: shared, else one of each sample), rows (read by rows), joined (one
# tensor for q, k and v, and one for their gradients), pad (of a row of the bias), parts (of the bias's gradient), wide (f32
# output and gradients of bf16 operands), depth (of a head, in f32).
CASES = [
    {"shape": (1, 1, 1, 1), "lead": 0},
    {"shape": (2, 16, 16, 1), "lead": 1, "depth": 8},
    {"shape": (2, 15, 17, 2), "lead": 2, "depth": 24},
    {"shape": (3, 1, 65, 3), "lead": 0},
    {"shape": (2, 65, 63, 3), "lead": 2, "wide": True},
    {"shape": (2, 75, 197, 2), "lead": 1, "depth": 128},
    {"shape": (4, 197, 197, 1), "lead": 1, "joined": True, "pad": 3, "parts": 2, "wide": True},
    {"shape": (3, 75, 197, 2), "lead": 1, "rows": True, "parts": 3},
    {"shape": (5, 17, 64, 1), "lead": 1, "rows": True, "pad": 4, "parts": 3, "depth": 40},
    {"shape": (2, 128, 129, 1), "lead": 1},
    {"shape": (1, 4, 1025, 1), "lead": 1, "rows": True},
    {"shape": (1, 577, 577, 1), "lead": 1, "joined": True},
]


def aligned(shape, dtype):
    """An array at a multiple of 16 bytes, full of NaN."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.full(size + 16, 0xFF, np.uint8)
    start = -raw.ctypes.data % 16
    return raw[start : start + size].view(dtype).reshape(shape)


def reference(q, k, v, bias, rows, scale, grad):
    q, k, v, grad = (x.astype(np.float64) for x in (q, k, v, grad))
    logits = np.einsum("brhd,bthd->bhrt", q, k) * scale
    if bias is not None:
        wide = bias.astype(np.float64)
        logits += wide if rows is None else np.stack([wide[0][:, row] for row in rows])
    top = logits.max(-1, keepdims=True)
    weights = np.exp(logits - top)
    total = weights.sum(-1, keepdims=True)
    weights /= total
    output = np.einsum("bhrt,bthd->brhd", weights, v)
    along = (grad * output).sum(-1).transpose(0, 2, 1)[..., None]
    slopes = weights * (np.einsum("brhd,bthd->bhrt", grad, v) - along)
    results = [
        output,
        (top + np.log(total))[..., 0],
        np.einsum("bhrt,bthd->brhd", slopes, k) * scale,
        np.einsum("bhrt,brhd->bthd", slopes, q) * scale,
        np.einsum("bhrt,brhd->bthd", weights, grad),
    ]
    if bias is not None:
        if rows is not None:
            dbias = np.zeros(bias.shape)
            for row, slope in zip(rows, slopes):
                np.add.at(dbias[0], (slice(None), row), slope)
        else:
            dbias = slopes.sum(0, keepdims=True) if len(bias) == 1 else slopes
        results.append(dbias)
    return results


def blocks(rows, warps):
    """As in attention/call.rs: blocks, and threads of each."""
    groups = -(-rows // 16)
    count = -(-groups // warps)
    return count, 32 * -(-groups // count)


def run(modules, kind, seed, shape, lead, rows=False, joined=False, pad=0, parts=1, wide=False, depth=64):
    batch, queries, keys, heads = shape
    bf16 = kind == "bf16"
    if bf16:
        depth = 64
    width = heads * depth
    random = np.random.default_rng(seed)
    operand = np.uint16 if bf16 else np.float32
    result = np.uint16 if bf16 and not wide else np.float32

    def values(tokens):
        x = random.normal(size=(batch, tokens, heads, depth)).astype(np.float32)
        return from_bf16(to_bf16(x)) if bf16 else x

    def stored(x):
        y = aligned(x.shape, operand)
        y[...] = to_bf16(x) if bf16 else x
        return y

    def read(x):
        return from_bf16(x) if x.dtype == np.uint16 else x

    def places(tensors, dtype):
        """Address, distance of samples and of rows of three tensors; `joined`: of three parts of one."""
        if not joined:
            return [(x.ctypes.data, x.size // batch, width) for x in tensors]
        whole = tensors[0]
        step = width * np.dtype(dtype).itemsize
        return [(whole.ctypes.data + part * step, whole.size // batch, 3 * width) for part in range(3)]

    q, k, v, grad = values(queries), values(keys), values(keys), values(queries)
    bias_rows = keys if rows else queries
    bias = random.normal(size=(lead, heads, bias_rows, keys)).astype(np.float32) if lead else None
    row_of = None
    if rows:
        row_of = aligned((batch, queries), np.int32)
        row_of[...] = [random.permutation(keys)[:queries] for _ in range(batch)]
    scale = np.float32(depth**-0.5)
    want = reference(q, k, v, bias, row_of, float(scale), grad)

    if joined:
        inputs = [aligned((batch, keys, 3, width), operand)]
        for part, x in enumerate((q, k, v)):
            inputs[0][:, :, part] = stored(x).reshape(batch, keys, width)
        gradients = [aligned((batch, keys, 3, width), result)]
    else:
        inputs = [stored(x) for x in (q, k, v)]
        gradients = [aligned((batch, tokens, width), result) for tokens in (queries, keys, keys)]
    output, lse = aligned((batch, queries, width), result), aligned((batch, heads, queries), np.float32)
    grad = stored(grad)
    known = aligned((batch, heads, -(-queries // 64) * 64, 4), np.float32)
    pitch = keys + pad
    padded = aligned((max(lead, 1), heads, bias_rows, pitch), np.float32)
    if lead:
        padded[..., :keys] = bias
    slice_ = 1 if lead > 1 else -(-batch // parts)
    parts = batch if lead > 1 else -(-batch // slice_)
    dbias = aligned((parts, heads, bias_rows, pitch), np.float32)

    of_inputs, of_gradients = places(inputs, operand), places(gradients, result)
    queries_width = (queries * width, width)
    tokens = dict(zip("q k v".split(), of_inputs), output=(output.ctypes.data, *queries_width), grad=(grad.ctypes.data, *queries_width))
    tokens.update(zip("dq dk dv".split(), of_gradients))
    addresses = {name: place[0] for name, place in tokens.items()}
    addresses.update(lse=lse.ctypes.data, rows=known.ctypes.data, dbias=dbias.ctypes.data)
    addresses["bias"] = padded.ctypes.data if lead else 0
    addresses["bias_row"] = row_of.ctypes.data if rows else 0
    samples = {name: place[1] for name, place in tokens.items()}
    samples["bias"] = heads * bias_rows * pitch if lead > 1 else 0
    sizes = {"bias_pitch": pitch, "dbias_pitch": pitch, "bias_rows": bias_rows, "batch": batch, "heads": heads, "queries": queries, "keys": keys, "slice": slice_}
    argument = b"".join(struct.pack("<Q", addresses[name]) for name in POINTERS)
    argument += b"".join(struct.pack("<q", samples[name]) for name in SAMPLES)
    argument += b"".join(struct.pack("<i", tokens[name][2]) for name in ROWS)
    argument += b"".join(struct.pack("<i", sizes[name]) for name in SIZES)
    argument += struct.pack("<f3i", scale, *[int(result == np.float32)] * 2, depth)
    # Last: whether the gradient of the bias is added to what is there.
    argument, adding = (argument + struct.pack("<2i", add, 0) for add in (0, 1))

    module = modules[kind]

    def launch(name, grid, threads, shared, argument=argument):
        module.launch(f"attention_{name}_{kind}", grid, (threads,), [argument], shared)

    if bf16:
        tile, shared = 64, 4 * 64 * 144
        count, threads = blocks(queries, 8)
        launch("forward", (count, heads, batch), threads, shared)
        launch("queries_backward", (count, heads, batch), threads, shared)
        count, threads = blocks(keys, 4)
        launch("keys_backward", (count, heads, batch), threads, shared + 2 * 64 * 16)
        bias_shared = shared + 64 * 4
    else:
        tile, tokens_bytes, scores_bytes = 32, 4 * 32 * (depth + 4), 4 * 32 * 36
        grid = (-(-queries // 32), heads, batch)
        launch("forward", grid, 128, 2 * tokens_bytes + scores_bytes)
        launch("queries_backward", grid, 128, 4 * tokens_bytes + scores_bytes)
        launch("keys_backward", (-(-keys // 32), heads, batch), 128, 4 * tokens_bytes + 2 * scores_bytes)
        bias_shared = 4 * tokens_bytes + 4 * 32
    if lead:
        grid = (-(-keys // tile), -(-bias_rows // tile), heads * parts)
        launch("bias_backward", grid, 128, bias_shared)
        launch("bias_backward", grid, 128, bias_shared, adding)
        dbias *= 0.5
        if lead == 1:
            total = aligned((1, *dbias.shape[1:]), np.float32)
            arguments = [total, dbias, np.int64(total.size), np.int32(parts)]
            modules["bf16"].launch("attention_add_parts", (-(-total.size // 256),), (256,), arguments)
            dbias = total

    got = [read(output), lse]
    if joined:
        got += [read(np.ascontiguousarray(gradients[0][:, :, part])) for part in range(3)]
    else:
        got += [read(x) for x in gradients]
    if lead:
        got.append(np.ascontiguousarray(dbias[..., :keys]))
    return got, want


def main(seeds):
    modules = {"bf16": Module("attention.cu"), "f32": Module("attention_f32.cu")}
    bad, worst = 0, {}
    for order in ["", "reverse", "shuffle:1"]:
        os.environ["BEIT2_EMULATE_ORDER"] = order
        bits = hashlib.sha256()
        for seed in seeds:
            for case in CASES:
                for kind in modules:
                    got, want = run(modules, kind, seed, **case)
                    for at, (x, y) in enumerate(zip(got, want)):
                        bits.update(x.tobytes())
                        # With one key the gradients of q and k are exactly 0, hence the floor.
                        error = np.abs(x.reshape(y.shape) - y).max() / max(np.abs(y).max(), 0.1)
                        worst[kind, at] = max(worst.get((kind, at), 0.0), error)
                        if not error <= ALLOWED[kind][at]:
                            bad += 1
                            print(f"{kind} {case}, seed {seed}: result {at} is off by {error:.1e}, allowed {ALLOWED[kind][at]:.0e}")
        print(f"order {order or 'of numbers'}: {bits.hexdigest()[:16]}", flush=True)
        if order == "":
            first = bits.digest()
        elif bits.digest() != first:
            bad += 1
            print(f"order {order}: other bits than in the order of numbers")
    for kind in modules:
        print(kind, " ".join(f"{worst[kind, at]:.1e}" for at in range(6)), "(output, log sums, dq, dk, dv, dbias)")
    return bad


if __name__ == "__main__":
    sys.exit(1 if main([int(seed) for seed in sys.argv[1:]] or [1]) else 0)
