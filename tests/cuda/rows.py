#!/usr/bin/env python3
"""The kernels over rows on the CPU (emulate/), against f64 in numpy: layer norm, residual branches, GELU, column sums, casts,
cross entropy, cosine loss, the codebook's and the loss of pixels; at odd sizes, on grids of one block and of several, in several orders of
threads and blocks, whose results must have the same bits.

    rows.py                       # needs g++ and numpy
"""

import hashlib
import math
import os
import pathlib
import struct
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "emulate"))
import numpy as np  # noqa: E402

from emulate import Module, from_bf16, to_bf16  # noqa: E402

ROUNDED = 4e-3  # of the largest value, for results in bf16
U32, U64, F32 = np.uint32, np.uint64, np.float32


class Check:
    """Draws inputs, compares results, keeps their bits."""

    def __init__(self):
        self.rng = np.random.default_rng(1)
        self.bits = hashlib.sha256()
        self.worst = {}
        self.bad = 0

    def normal(self, shape, spread=1.0, narrow=False):
        """As stored, and in f64."""
        x = (self.rng.normal(size=shape) * spread).astype(np.float32)
        return (to_bf16(x), from_bf16(to_bf16(x)).astype(float)) if narrow else (x, x.astype(float))

    def compare(self, name, got, want, allowed):
        self.bits.update(np.ascontiguousarray(got).tobytes())
        got = from_bf16(got) if got.dtype == np.uint16 else got
        error = np.abs(got.astype(float) - want).max() / max(np.abs(want).max(), 1e-3)
        self.worst[name] = max(self.worst.get(name, 0.0), error)
        if not error <= allowed:
            self.bad += 1
            print(f"{name} {np.shape(want)} is off by {error:.1e}, allowed {allowed:.0e}")


def empty(shape, narrow=False):
    return np.full(shape, 0x7FC0, np.uint16) if narrow else np.full(shape, np.nan, np.float32)


def kind(narrow):
    return "bf16" if narrow else "f32"


def ceil(n, by):
    return -(-n // by)


def finish(columns, sums):
    """The second stage of sums: (partial sums, first column, result) each."""
    table, first = struct.pack("<Q", len(sums)), 0
    for partials, at, to in sums:
        pointers = (partials.ctypes.data + at * 4, to.ctypes.data)
        table += struct.pack("<QQIIII", *pointers, partials.shape[0], to.size, partials.shape[1], first)
        first += ceil(to.size, 32)
    columns.launch("columns_finish", first, 512, [table.ljust(8 + 96 * 32, b"\0")])


def layer_norm(x, weight, bias, eps):
    mean = x.mean(1, keepdims=True)
    rstd = 1 / np.sqrt(((x - mean) ** 2).mean(1, keepdims=True) + eps)
    return (x - mean) * rstd * weight + bias, mean[:, 0], rstd[:, 0]


def norms(check, m):
    for rows, width in [(1, 8), (3, 32), (7, 64), (9, 264), (11, 384), (29, 768), (2, 2056), (3, 4096)]:
        lanes = ceil(width, 256) * 32
        slots = max(1, 256 // lanes)
        sizes = [U64(rows), U32(width)]
        (w, w64), (b, b64) = check.normal(width), check.normal(width)
        x, x64 = check.normal((rows, width), 2.0)
        x, x64 = x + F32(1), (x + F32(1)).astype(float)
        tokens = max(1, rows // 3)
        factors = (check.rng.integers(0, 2, size=ceil(rows, tokens)) * 1.25).astype(np.float32)
        of_row = factors[np.arange(rows) // tokens][:, None].astype(float)
        for narrow in [False, True]:
            for grid in sorted({1, 2, ceil(rows, slots)}):
                y, mean, rstd = empty((rows, width), narrow), empty(rows), empty(rows)
                m["norm"].launch(f"norm_forward_{kind(narrow)}", grid, lanes * slots, [x, w, b, y, mean, rstd, *sizes, F32(1e-6)])
                want, mean64, rstd64 = layer_norm(x64, w64, b64, 1e-6)
                check.compare(f"norm {kind(narrow)}", y, want, ROUNDED if narrow else 2e-6)
                check.compare("mean", mean, mean64, 1e-6)
                check.compare("rstd", rstd, rstd64, 2e-6)
                (grad, grad64), (add, add64) = check.normal((rows, width), 1.0, narrow), check.normal((rows, width))
                partials, dw, db = empty((grid, 2 * width)), empty(width), empty(width)
                arguments = [x, w, mean, rstd, grad, add, add, partials, *sizes]  # over what is added
                m["norm"].launch(f"norm_backward_{kind(narrow)}", grid, lanes * slots, arguments)
                finish(m["columns"], [(partials, 0, dw), (partials, width, db)])
                normal = (x64 - mean64[:, None]) * rstd64[:, None]
                inner = grad64 * w64
                along = normal * (inner * normal).mean(1, keepdims=True)
                dx = (inner - inner.mean(1, keepdims=True) - along) * rstd64[:, None]
                check.compare("norm dx", add, dx + add64, 3e-6)
                check.compare("norm dweight", dw, (grad64 * normal).sum(0), 3e-6)
                check.compare("norm dbias", db, grad64.sum(0), 3e-6)
            branch, branch64 = check.normal((rows, width), 1.0, narrow)
            for gamma, gamma64 in [(None, np.ones(width)), (w, w64)]:
                total = empty((rows, width))
                arguments = [x, branch, gamma, factors, U32(tokens), total, *sizes]
                m["residual"].launch(f"residual_forward_{kind(narrow)}", ceil(rows * width, 2048), 256, arguments)
                check.compare("residual", total, x64 + gamma64 * of_row * branch64, 3e-7)
            if narrow:
                total, y, mean, rstd = x.copy(), empty((rows, width), True), empty(rows), empty(rows)
                arguments = [total, branch, factors, U32(tokens), w, b, total, y, mean, rstd, *sizes, F32(1e-6)]
                m["norm"].launch("residual_norm_forward_bf16", 2, lanes * slots, arguments)
                check.compare("residual", total, x64 + of_row * branch64, 3e-7)
                check.compare("residual norm", y, layer_norm(x64 + of_row * branch64, w64, b64, 1e-6)[0], ROUNDED)
                continue
            for parts in [1, 3]:
                grad, grad64 = check.normal((rows, width))
                dbranch, partials, dgamma = empty((rows, width)), empty((parts, width)), empty(width)
                arguments = [grad, branch, w, dbranch, partials, *sizes]
                m["residual"].launch("residual_backward_f32", (ceil(width, 256), parts), 256, arguments)
                finish(m["columns"], [(partials, 0, dgamma)])
                check.compare("residual dbranch", dbranch, grad64 * w64, 3e-7)
                check.compare("residual dgamma", dgamma, (grad64 * branch64).sum(0), 2e-6)


def gelus(check, m):
    def below(x):
        return 0.5 * np.vectorize(math.erfc)(-x / math.sqrt(2))

    def slope(x):
        return below(x) + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)

    for count in [1, 7, 8, 5003]:
        for narrow in [False, True]:
            x, x64 = check.normal(count, 3.0, narrow)
            y = empty(count, narrow)
            m["gelu"].launch(f"gelu_forward_{kind(narrow)}", ceil(count, 2048), 256, [x, y, U64(count)])
            check.compare(f"gelu {kind(narrow)}", y, x64 * below(x64), ROUNDED if narrow else 3e-7)
        x, x64 = check.normal(count, 3.0, True)
        of_tanh = math.sqrt(2 / math.pi) * (x64 + 0.044715 * x64**3)
        for name, want in [("quick_gelu", x64 / (1 + np.exp(-1.702 * x64))), ("gelu_tanh", x64 / (1 + np.exp(-2 * of_tanh)))]:
            y = empty(count, True)
            m["gelu"].launch(f"{name}_forward_bf16", ceil(count, 2048), 256, [x, y, U64(count)])
            check.compare(name, y, want, ROUNDED)
        for narrow in [False, True]:
            (x, x64), (grad, grad64) = check.normal(count, 1.0, narrow), check.normal(count, 1.0, narrow)
            m["gelu"].launch(f"tanh_forward_{kind(narrow)}", ceil(count, 2048), 256, [x, x, U64(count)])
            check.compare(f"tanh {kind(narrow)}", x, np.tanh(x64), ROUNDED if narrow else 3e-7)
            y64 = (from_bf16(x) if narrow else x).astype(float)
            m["gelu"].launch(f"tanh_backward_{kind(narrow)}", ceil(count, 2048), 256, [x, grad, grad, U64(count)])
            check.compare(f"tanh gradient {kind(narrow)}", grad, grad64 * (1 - y64**2), ROUNDED if narrow else 1e-6)
        x, x64 = check.normal(count, 3.0)
        y = empty(count)
        m["gelu"].launch("gelu_train_f32", ceil(count, 2048), 256, [x, y, x, U64(count)])
        check.compare("gelu f32", y, x64 * below(x64), 3e-7)
        check.compare("gelu slope", x, slope(x64), 3e-7)


def columns_and_casts(check, m):
    for rows, width, pitch in [(1, 8, 8), (100, 48, 56), (77, 264, 264), (1000, 768, 800)]:
        for narrow in [False, True]:
            x, x64 = check.normal((rows, pitch), 1.0, narrow)
            for parts in [1, 5]:
                partials, total = empty((parts, width)), empty(width)
                arguments = [x, partials, U64(rows), U32(width), U32(pitch)]
                m["columns"].launch(f"columns_{kind(narrow)}", (ceil(width, 256), parts), 256, arguments)
                finish(m["columns"], [(partials, 0, total)])
                check.compare("columns", total, x64[:, :width].sum(0), 3e-6)
    # To bf16, to f32, zeros; aligned and not; below and above what a block takes.
    for counts in [[1], [5, 8, 4096, 4097, 10000, 3], [48] * 96]:
        parts, table, first = [], struct.pack("<Q", len(counts)), 0
        for at, count in enumerate(counts):
            what, skip = at % 3, at // 3 % 2
            x = check.normal(count + skip, 1.0, what == 1)[0]
            to = empty(count + skip, what != 1)
            source = 0 if what == 2 else x.ctypes.data + skip * x.itemsize
            table += struct.pack("<QQQII", source, to.ctypes.data + skip * to.itemsize, count, first, what == 1)
            first += ceil(count, 4096)
            parts.append((what, skip, x, to))
        m["casts"].launch("cast_many", first, 256, [table.ljust(8 + 96 * 32, b"\0")])
        for what, skip, x, to in parts:
            want = [to_bf16, from_bf16, np.zeros_like][what](x)
            check.bad += not np.array_equal(to[skip:], want[skip:].astype(to.dtype))


def log_sum(x):
    top = x.max(1, keepdims=True)
    return top + np.log(np.exp(x - top).sum(1, keepdims=True))


def losses(check, m):
    launch = m["loss"].launch
    for count, classes in [(1, 1), (3, 2), (5, 33), (7, 512), (4, 1000), (3, 8192)]:
        for spread, sets in [(1.0, 1), (30.0, 1), (4.0, 2)]:
            # With two sets, the rows of the second have the targets of the first.
            rows = count * sets
            x, x64 = check.normal((rows, classes), spread)
            first_ids = check.rng.integers(0, classes, size=count).astype(np.int32)
            ids = np.tile(first_ids, sets)
            of_row, hits, saved, upstream = empty(rows), empty(rows), empty((rows, 2)), F32([0.7])
            arguments = [x, first_ids, of_row, hits, saved, U32(classes), U32(count)]
            launch("cross_entropy_forward_f32", rows, 256, arguments)
            each = np.arange(rows)
            want = log_sum(x64)[:, 0] - x64[each, ids]
            check.compare("cross entropy", of_row, want, 1e-6)
            check.bad += not np.array_equal(hits, x64.argmax(1) == ids)
            loss, accuracy = empty(1), empty(1)
            launch("means_f32", 1, 1024, [of_row, hits, loss, accuracy, U32(rows), F32(rows)])
            check.compare("cross entropy", loss, want.mean(keepdims=True), 1e-6)
            total, means = empty(1), empty((2, 2))  # losses, then accuracies
            to = struct.pack("<4Q", *(means.ctypes.data + 4 * at for at in range(4)))
            launch("head_means_f32", 1, 1024, [of_row, hits, total, to, U32(sets), U32(count)])
            of_sets = [want.reshape(sets, count).mean(1), hits.reshape(sets, count).astype(float).mean(1)]
            check.compare("losses of sets", means[:, :sets], np.stack(of_sets), 1e-6)
            check.compare("losses of sets", total, of_sets[0].sum(keepdims=True), 1e-6)
            softmax, share = np.exp(x64 - log_sum(x64)), F32(1 / rows)
            onehot = np.zeros((rows, classes))
            onehot[each, ids] = 1
            grad = x.copy()
            if classes % 8 == 0:
                narrow = empty((rows, classes), True)
                arguments = [x, first_ids, saved, upstream, narrow, U32(classes), U32(count), share]
                launch("cross_entropy_backward_bf16", rows, 256, arguments)
                check.compare("cross entropy gradient, bf16", narrow, (softmax - onehot) * 0.7 / rows, ROUNDED)
            arguments = [grad, first_ids, saved, upstream, grad, U32(classes), U32(count), share]
            launch("cross_entropy_backward_f32", rows, 256, arguments)
            check.compare("cross entropy gradient", grad, (softmax - onehot) * 0.7 / rows, 3e-6)
            soft = check.rng.random(size=(rows, classes)).astype(np.float32)
            soft64, saved = soft.astype(float), empty((rows, 3))
            launch("soft_cross_entropy_forward_f32", rows, 256, [x, soft, of_row, saved, U32(classes)])
            check.compare("soft cross entropy", of_row, (soft64 * (log_sum(x64) - x64)).sum(1), 3e-6)
            arguments = [x, soft, saved, upstream, grad, U32(classes), share]
            launch("soft_cross_entropy_backward_f32", rows, 256, arguments)
            want = (softmax * soft64.sum(1, keepdims=True) - soft64) * 0.7 / rows
            check.compare("soft cross entropy gradient", grad, want, 5e-6)
    for rows, width in [(1, 3), (5, 33), (9, 512), (20, 768), (8, 8)]:
        (a, a64), (b, b64) = check.normal((rows, width)), check.normal((rows, width))
        of_row, saved, sizes = empty(rows), empty((rows, 3)), [U64(rows), U32(width)]
        launch("cosine_loss_forward_f32", ceil(rows, 8), 256, [a, b, of_row, saved, *sizes])
        of_a, of_b = np.linalg.norm(a64, axis=1, keepdims=True), np.linalg.norm(b64, axis=1, keepdims=True)
        cosine = (a64 * b64).sum(1, keepdims=True) / of_a / of_b
        check.compare("cosine loss", of_row, 1 - cosine[:, 0], 1e-6)
        want = (cosine * a64 / of_a - b64 / of_b) / of_a * 0.7 / rows
        launch("cosine_loss_backward_f32", ceil(rows, 8), 256, [a, b, saved, F32([0.7]), a, *sizes, F32(1 / rows)])
        check.compare("cosine loss gradient", a, want, 2e-6)
    # Logits of -inf count nothing; NaN and a target that is no class show.
    x = np.full((3, 16), -np.inf, np.float32)
    x[0, 9], x[1], x[2, 3] = 1, np.nan, 0
    of_row = empty(3)
    arguments = [x, np.int32([9, 0, 99]), of_row, empty(3), empty((3, 2)), U32(16), U32(3)]
    launch("cross_entropy_forward_f32", 3, 256, arguments)
    check.bad += not (of_row[0] == 0 and np.isnan(of_row[1:]).all())


def images(check, m):
    for batch, channels, patch, rows, cols in [(1, 1, 1, 1, 1), (2, 3, 4, 2, 3), (3, 4, 16, 2, 1), (1, 3, 7, 1, 2)]:
        height, width, size = rows * patch, cols * patch, channels * patch * patch
        x = check.rng.integers(0, 256, (batch, height, width, channels), np.uint8)
        mean, std = np.zeros(32, np.float32), np.ones(32, np.float32)
        mean[:channels], std[:channels] = check.rng.random(channels), check.rng.random(channels) + 0.2
        scaled = (x / 255 - mean[:channels].astype(float)) / std[:channels]
        want = scaled.reshape(batch, rows, patch, cols, patch, channels).transpose(0, 1, 3, 5, 2, 4)
        for narrow in [False, True]:
            y = empty((batch, rows * cols, size), narrow)
            sizes = [U32(value) for value in (channels, height, width, patch)]
            arguments = [x, y, *sizes, mean.tobytes() + std.tobytes()]
            m["images"].launch(f"bytes_to_patches_{kind(narrow)}", (rows * cols, batch), 256, arguments)
            check.compare(f"patches, {kind(narrow)}", y, want.reshape(y.shape), ROUNDED if narrow else 1e-6)


def codes(check, m):
    launch = m["codes"].launch
    for rows, count, width in [(1, 1, 3), (3, 7, 5), (130, 300, 17), (197, 1500, 32), (300, 8192, 32), (5, 200, 64)]:
        z, book = check.normal((rows, width))[0], check.normal((count, width))[0]
        book[count - count // 2 :] = book[: count // 2]  # of equals the first
        want = (z.astype(float) @ book.astype(float).T).argmax(1)
        for wanted in [1, 2, 5]:
            part = ceil(ceil(count, wanted), 128) * 128
            parts = ceil(count, part)
            best, of_part, ids = empty((parts, rows)), np.full((parts, rows), -1, np.int32), np.full(rows, -1, np.int32)
            arguments = [z, book, best, of_part, U32(rows), U32(count), U32(width), U32(part)]
            launch("nearest_code_part", (ceil(rows, 128), parts), 256, arguments)
            launch("nearest_code_finish", ceil(rows, 256), 256, [best, of_part, ids, U32(rows), U32(parts)])
            check.bad += not np.array_equal(ids, want)
        bins, sums, total = empty(count), empty((count, width)), np.zeros((count, width))
        launch("sum_rows_by_id", ceil(count, 64), 256, [z, ids, bins, sums, U32(rows), U32(count), U32(width)])
        np.add.at(total, ids, z.astype(float))
        check.compare("sums of codes", sums, total, 1e-6)
        check.bad += not np.array_equal(bins, np.bincount(ids, minlength=count))


def unit(x):
    norm = np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    return x / norm, norm


def quantizer(check, m):
    launch = m["quantize"].launch
    for rows, count, width in [(1, 1, 3), (5, 9, 8), (30, 20, 32), (17, 100, 40)]:
        (x, x64), (grad, grad64), sizes = check.normal((rows, width)), check.normal((rows, width)), [U64(rows), U32(width)]
        x[rows // 2], x64[rows // 2] = (0, 0) if rows > 1 else (x[0], x64[0])  # a row of zeros stays one
        y, norms, blocks = empty((rows, width)), empty(rows), ceil(rows, 8)
        launch("unit_rows_forward", blocks, 256, [x, y, norms, *sizes])
        want, norm = unit(x64)
        check.compare("unit rows", y, want, 1e-6)
        launch("unit_rows_forward", blocks, 256, [x, x, None, *sizes])
        check.bad += not np.array_equal(x, y)
        launch("unit_rows_backward", blocks, 256, [y, norms, grad, grad, *sizes])
        along = (want * grad64).sum(1, keepdims=True)
        dx, whole = (grad64 - want * along) / norm, norm[:, 0] > 1e-6
        check.compare("unit rows, gradient", grad[whole], dx[whole], 2e-6)
        if not whole.all():
            check.compare("unit rows, gradient of zeros", grad[~whole], dx[~whole], 1e-6)
        parts, rng, (book, book64) = 3, check.rng, check.normal((count, width))
        of_parts = rng.integers(0, count, size=(parts, rows)).astype(np.int32)
        of_parts.sort(0)
        best = rng.integers(0, 2, size=(parts, rows)).astype(np.float32)  # of equals the first
        codes, of_row, ids = empty((rows, width)), empty(rows), np.full(rows, -1, np.int32)
        launch("quantize_rows", blocks, 256, [y, book, best, of_parts, ids, codes, of_row, *sizes, U32(parts), F32(0.3)])
        check.bad += not np.array_equal(ids, of_parts[best.argmax(0), np.arange(rows)])
        check.compare("codes of rows", codes, book64[ids], 1e-6)
        check.compare("commitment", of_row, 0.3 * ((book64[ids] - want) ** 2).sum(1), 2e-6)
        dz = empty((rows, width))
        launch("commitment_backward", blocks, 256, [y, book, ids, F32([0.7]), dz, *sizes, F32(0.1)])
        check.compare("commitment gradient", dz, (want - book64[ids]) * 0.07, 2e-6)
        bins = np.bincount(ids, minlength=count).astype(np.float32)
        sums, total = np.zeros((count, width)), check.rng.random(count).astype(np.float32)
        np.add.at(sums, ids, y.astype(float))
        book64, usage = unit(book64)[0], total.astype(float)
        book = book64.astype(np.float32)
        mean = np.where(bins[:, None] > 0, unit(sums / np.maximum(bins, 1)[:, None])[0], book64)
        arguments = [book, total, bins, sums.astype(np.float32), book, total, U64(count), U32(width), F32(0.9), F32(0.1)]
        launch("update_codes", ceil(count, 8), 256, arguments)
        check.compare("moved codes", book, unit(book64 * 0.9 + mean * 0.1)[0], 2e-6)
        check.compare("usage of codes", total, usage * 0.9 + bins * 0.1, 1e-6)


def enlarging(size, to):
    matrix = np.zeros((to, size))
    for at in range(to):
        x = max((at + 0.5) * size / to - 0.5, 0)
        low = min(int(x), size - 1)
        matrix[at, low] += 1 - (x - low)
        matrix[at, min(low + 1, size - 1)] += x - low
    return matrix


def pixels(check, m):
    shapes = [(1, 1, 1, 3, 2, 2), (2, 3, 4, 12, 16, 5), (1, 5, 3, 17, 40, 33), (3, 4, 4, 4, 4, 7), (1, 33, 20, 7, 45, 3)]
    for batch, rows, cols, height, width, classes in [*shapes, (2, 6, 6, 24, 24, 150)]:
        x, x64 = check.normal((batch, rows, cols, classes), 3.0)
        count = batch * height * width
        labels = np.array([255 if i % 5 == 2 else i * 31 % classes for i in range(count)])
        known, each, own = labels != 255, np.arange(count), np.where(labels != 255, labels, 0)
        up, along = enlarging(rows, height), enlarging(cols, width)
        large = np.einsum("yr,xc,brck->byxk", up, along, x64).reshape(count, classes)
        want = np.where(known, log_sum(large)[:, 0] - large[each, own], 0).mean(keepdims=True)
        softmax = np.exp(large - log_sum(large))
        softmax[each, own] -= 1
        softmax[~known] = 0
        small = np.einsum("yr,xc,byxk->brck", up, along, softmax.reshape(batch, height, width, classes)) / count
        share = ((large.argmax(1) == labels) & known).mean(keepdims=True)
        for narrow in [False, True]:
            stored, blocks = labels.astype(np.uint8 if narrow else np.int32), ceil(count, 256)
            saved, sums, loss, right, grad = empty((count, 2)), empty(2 * blocks), empty(1), empty(1), empty(x.shape)
            sizes = struct.pack("<6I", batch, rows, cols, classes, height, width)
            m["pixels"].launch("pixel_cross_entropy_forward", blocks, 256, [x, stored, saved, sums, sizes, U32(narrow)])
            arguments = [sums[:blocks], sums[blocks:], loss, right, U32(blocks), F32(count)]
            m["loss"].launch("means_f32", 1, 1024, arguments)
            arguments = [x, stored, saved, grad, sizes, U32(narrow), F32(1 / count)]
            m["pixels"].launch("pixel_cross_entropy_backward", ceil(batch * rows * cols, 8), 256, arguments)
            check.compare("loss of pixels", loss, want, 2e-6)
            check.compare("right pixels", right, share, 1e-6)
            check.compare("loss of pixels, gradient", grad, small, 3e-6)


def main():
    modules = {name: Module(f"{name}.cu") for name in "norm residual gelu columns casts loss codes quantize pixels images".split()}
    bad, first = 0, None
    for order in ["", "reverse", "shuffle:1"]:
        os.environ["BEIT2_EMULATE_ORDER"] = order
        check = Check()
        for part in [norms, gelus, columns_and_casts, losses, codes, quantizer, pixels, images]:
            part(check, modules)
        print(f"order {order or 'of numbers'}: {check.bits.hexdigest()[:16]}", flush=True)
        bad += check.bad
        first = first or check.bits.digest()
        if check.bits.digest() != first:
            bad += 1
            print(f"order {order}: other bits than in the order of numbers")
    print(", ".join(f"{name} {error:.1e}" for name, error in check.worst.items()))
    return bad


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
