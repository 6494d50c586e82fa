#!/usr/bin/env python3
"""The kernels over maps on the CPU (emulate/), against f64 in numpy: borders and orders of weights of convolutions, batch
normalization, resizing, pooling; at odd sizes, in several orders of threads and blocks, whose results must have the same bits.

    maps.py                       # needs g++ and numpy
"""

import os
import pathlib
import struct
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import numpy as np  # noqa: E402

from rows import F32, ROUNDED, U32, U64, Check, Module, empty  # noqa: E402

NULL = np.uint64(0)


def blocks(threads):
    return ((threads + 255) // 256,)


def convolutions(check, conv):
    for b, h, w, c in [(1, 1, 1, 1), (2, 3, 5, 8), (1, 4, 2, 12), (2, 5, 3, 16)]:
        x, wide = check.normal((b, h, w, c))
        groups, sizes = (c + 7) // 8, [U32(v) for v in (b, h, w, c)]
        padded = np.pad(wide, ((0, 0), (1, 1), (1, 1), (0, 0)))
        for kind, narrow in (("f32", False), ("bf16", True)):
            y = empty(padded.shape, narrow)
            conv.launch(f"conv_pad_{kind}", blocks(y.size // c * groups), (256,), [x, y, *sizes, U32(1)])
            check.compare("pad", y, padded, ROUNDED if narrow else 0)
            flat = np.pad(padded.reshape(-1, c), ((1, 1), (0, 0)))
            y, want = empty((len(flat) - 2, 3, c), narrow), np.stack([flat[:-2], flat[1:-1], flat[2:]], 1)
            conv.launch(f"conv_pad_{kind}", blocks(y.size // c * groups), (256,), [x, y, *sizes, U32(3)])
            check.compare("neighbours", y, want, ROUNDED if narrow else 0)
        border, wide_border = check.normal(padded.shape)
        y = empty(x.shape)
        conv.launch("conv_crop", blocks(b * h * w * groups), (256,), [border, y, *sizes])
        check.compare("crop", y, wide_border[:, 1:-1, 1:-1], 0)
        four, wide_four = check.normal((b, h, w, 2, 2, c))
        bias, wide_bias = check.normal((c,))
        y = empty((b, 2 * h, 2 * w, c))
        conv.launch("deconv_spread", blocks(4 * b * h * w * groups), (256,), [four, bias, y, *sizes])
        want = wide_four.transpose(0, 1, 3, 2, 4, 5).reshape(y.shape) + wide_bias
        check.compare("spread", y, want, 2e-7)
        for kind, narrow in (("f32", False), ("bf16", True)):
            back = empty(four.shape, narrow)
            conv.launch(f"deconv_gather_{kind}", blocks(4 * b * h * w * groups), (256,), [y, back, *sizes])
            check.compare("gather", back, wide_four + wide_bias, ROUNDED if narrow else 1e-6)
    for outputs, inputs in [(1, 1), (5, 7), (24, 40)]:
        weight, wide = check.normal((outputs, inputs, 3, 3))
        pairs = U32(outputs * inputs)
        for kind, narrow in (("f32", False), ("bf16", True)):
            sizes = [U32(outputs), U32(inputs)]
            taps, want = empty((3, outputs, 3, inputs), narrow), wide.transpose(2, 0, 3, 1)
            conv.launch(f"conv_taps_{kind}", blocks(outputs * inputs), (256,), [weight, taps, *sizes, U32(0)])
            check.compare("taps", taps, want, ROUNDED if narrow else 0)
            taps, want = empty((3, 3, outputs, inputs), narrow), wide[:, :, ::-1, ::-1].transpose(2, 3, 0, 1)
            conv.launch(f"conv_taps_{kind}", blocks(outputs * inputs), (256,), [weight, taps, *sizes, U32(1)])
            check.compare("flipped taps", taps, want, ROUNDED if narrow else 0)
        back, taps = empty(weight.shape), np.ascontiguousarray(weight.reshape(outputs, inputs, 9).transpose(2, 0, 1))
        conv.launch("conv_weight_of_taps", blocks(outputs * inputs), (256,), [taps, back, pairs])
        check.compare("weight of taps", back, wide, 0)
        weight, wide = check.normal((inputs, outputs, 2, 2))
        sizes = [U32(inputs), U32(outputs)]
        rows = wide.reshape(inputs, outputs, 4).transpose(0, 2, 1)
        for kind, narrow in (("f32", False), ("bf16", True)):
            found = empty(rows.shape, narrow)
            conv.launch(f"deconv_rows_{kind}", blocks(outputs * inputs), (256,), [weight, found, *sizes])
            check.compare("rows", found, rows, ROUNDED if narrow else 0)
        back = empty(weight.shape)
        rows = np.ascontiguousarray(rows.astype(np.float32))
        conv.launch("deconv_weight_of_rows", blocks(outputs * inputs), (256,), [rows, back, *sizes])
        check.compare("weight of rows", back, wide, 0)


def norms(check, kernels):
    for rows, width, below in [(1, 8, 1), (37, 40, 3), (200, 264, 2)]:
        grid = ((width + 255) // 256, below)
        x, wide = check.normal((rows, width), 2.0)
        grad, wide_grad = check.normal((rows, width))
        (scale, a), (shift, b) = check.normal((width,)), check.normal((width,))
        (mean, m), (spare, v) = check.normal((width,)), check.normal((width,))
        var, v, eps = np.abs(spare), np.abs(v), 1e-3
        sizes = [U64(rows), U32(width)]
        partials = empty((below, width))
        for at, want in ((NULL, wide.mean(0)), (mean, ((wide - m) ** 2).mean(0))):
            kernels.launch("channels_sums", grid, (256,), [x, at, partials, *sizes, F32(1 / rows)])
            check.compare("moments", partials.astype(float).sum(0), want, 3e-6)
        for with_var in (False, True):
            of_var = var if with_var else NULL
            rstd = 1 / np.sqrt(v + eps) if with_var else np.ones(width)
            for relu in (0, 1):
                y, line = empty(x.shape), (wide - m) * a * rstd + b
                arguments = [x, mean, of_var, scale, shift, y, *sizes, F32(eps), F32(1), F32(1), U32(relu)]
                kernels.launch("channels_norm", grid, (256,), arguments)
                check.compare("norm", y, np.maximum(line, 0) if relu else line, 3e-6)
                g = np.where(line > 0, wide_grad, 0) if relu else wide_grad
                parts = [empty((below, width)) for _ in range(2)]
                arguments = [x, grad, mean, of_var, scale, shift, *parts, *sizes, F32(eps), U32(relu)]
                kernels.launch("channels_gradient_sums", grid, (256,), arguments)
                found = [part.astype(float).sum(0) for part in parts]
                sums = [g.sum(0), (g * (wide - m) * rstd).sum(0)]
                check.compare("sums", found[0], sums[0], 3e-6)
                check.compare("sums", found[1], sums[1], 3e-6)
                dshift, dscale = (np.ascontiguousarray(one.astype(np.float32)) for one in sums)
                dx, dmean = empty(x.shape), empty((width,))
                arguments = [x, grad, mean, of_var, scale, shift, dscale, dshift, NULL if with_var else dmean, dx]
                arguments += [*sizes, F32(eps), F32(1 / rows), U32(relu)]
                kernels.launch("channels_gradient", grid, (256,), arguments)
                want = a * g
                if with_var:
                    want = a * rstd * (g - sums[0] / rows - (wide - m) * rstd * sums[1] / rows)
                else:
                    check.compare("mean's gradient", dmean, -a * sums[0], 3e-6)
                check.compare("gradient", dx, want, 5e-6)
    widths, counts = (40, 8), [np.array([n], np.int32) for n in (3, 7)]
    means, variances = ([check.normal((width,)) for width in widths] for _ in range(2))
    seen = [check.normal((2, width)) for width in widths]
    new = [[empty((width,)), empty((width,)), np.zeros(1, np.int32)] for width in widths]
    table = b""
    for i, width in enumerate(widths):
        arrays = [means[i][0], variances[i][0], *seen[i][0], counts[i], *new[i]]
        table += struct.pack("8QIf", *(array.ctypes.data for array in arrays), width, 1.5)
    table = table.ljust(48 * 72, b"\0") + struct.pack("2f", 0.9, 0.1)
    kernels.launch("channels_record", (2,), (256,), [table])
    for i in range(2):
        check.compare("running", new[i][0], 0.9 * means[i][1] + 0.1 * seen[i][1][0], 1e-6)
        check.compare("running", new[i][1], 0.9 * variances[i][1] + 0.15 * seen[i][1][1], 1e-6)
        check.compare("batches", new[i][2], counts[i] + 1, 0)


def resizing(small, large):
    matrix = np.zeros((large, small))
    for i in range(large):
        x = max((i + 0.5) * small / large - 0.5, 0.0)
        low = min(int(x), small - 1)
        matrix[i, low] += 1 - (x - low)
        matrix[i, min(low + 1, small - 1)] += x - low
    return matrix


def cells(size, side):
    matrix = np.zeros((side, size))
    for i in range(side):
        begin, end = i * size // side, -(-(i + 1) * size // side)
        matrix[i, begin:end] = 1 / (end - begin)
    return matrix


def kernel(name, channels):
    n = 4 if channels % 4 == 0 else 1
    return f"{name}_{n}", n


def resizes(check, kernels):
    for (b, h, w, c), (height, width), pitch, first in [
        ((1, 1, 1, 1), (3, 4), 3, 1), ((2, 3, 5, 8), (3, 5), 12, 4), ((2, 3, 4, 4), (12, 9), 4, 0),
        ((1, 7, 6, 3), (3, 4), 5, 2), ((1, 6, 5, 4), (7, 31), 8, 4), ((1, 1, 2, 4), (16, 16), 8, 0),
        ((1, 16, 3, 4), (128, 4), 4, 0),
    ]:  # fmt: skip
        x, wide = check.normal((b, h, w, c))
        add, wide_add = check.normal((b, height, width, pitch))
        grad, wide_grad = check.normal((b, height, width, pitch))
        along, part = [resizing(h, height), resizing(w, width)], slice(first, first + c)
        want = np.einsum("yi,xj,bijc->byxc", *along, wide)
        tail = [struct.pack("4I", b, h, w, c), *(U32(v) for v in (height, width, pitch, first))]
        for added in (False, True):
            y = np.zeros((b, height, width, pitch), np.float32)
            name, n = kernel("maps_resize", c)
            kernels.launch(name, blocks(b * height * width * c // n), (256,), [x, add if added else NULL, y, *tail])
            check.compare("resize", y[..., part], want + (wide_add[..., part] if added else 0), 1e-6)
            y[..., part] = 0
            check.compare("beside", y, np.zeros(y.shape), 0)
        dx = empty(x.shape)
        name, n = kernel("maps_resize_backward", c)
        kernels.launch(name, blocks(x.size // n), (256,), [grad, dx, *tail])
        check.compare("resize backward", dx, np.einsum("yi,xj,byxc->bijc", *along, wide_grad[..., part]), 2e-6)


def pools(check, kernels):
    for (b, h, w, c), side in [
        ((1, 1, 1, 1), 2), ((2, 5, 7, 4), 3), ((1, 16, 16, 40), 6), ((2, 4, 3, 33), 1), ((1, 2, 3, 4), 5),
    ]:  # fmt: skip
        x, wide = check.normal((b, h, w, c))
        grad, wide_grad = check.normal((b, side, side, c))
        along, table = [cells(h, side), cells(w, side)], struct.pack("4I", b, h, w, c)
        y, dx = empty(grad.shape), empty(x.shape)
        kernels.launch("maps_cell_means", (b * side * side, (c + 31) // 32), (256,), [x, y, table, U32(side)])
        check.compare("cell means", y, np.einsum("yi,xj,bijc->byxc", *along, wide), 1e-6)
        name, n = kernel("maps_cell_means_backward", c)
        kernels.launch(name, blocks(x.size // n), (256,), [grad, dx, table, U32(side)])
        check.compare("cell means backward", dx, np.einsum("yi,xj,byxc->bijc", *along, wide_grad), 1e-6)
    for (b, h, w, c), side in [((1, 2, 2, 1), 2), ((2, 5, 7, 3), 2), ((1, 8, 9, 5), 4)]:
        x = np.round(check.normal((b, h, w, c))[0])  # equal ones
        rows, cols, table = h // side, w // side, struct.pack("4I", b, h, w, c)
        grad, wide_grad = check.normal((b, rows, cols, c))
        y, dx, want = empty(grad.shape), empty(x.shape), np.zeros(x.shape)
        kernels.launch("maps_max", blocks(y.size), (256,), [x, y, table, U32(side)])
        squares = x[:, : rows * side, : cols * side].reshape(b, rows, side, cols, side, c).transpose(0, 1, 3, 4, 2, 5)
        squares = squares.reshape(b, rows, cols, side * side, c)  # columns first
        check.compare("maxima", y, squares.max(3), 0)
        for place in np.ndindex(b, rows, cols, c):
            image, row, col, channel = place
            which = squares[image, row, col, :, channel].argmax()
            want[image, row * side + which % side, col * side + which // side, channel] = wide_grad[place]
        kernels.launch("maps_max_backward", blocks(x.size), (256,), [x, grad, dx, table, U32(side)])
        check.compare("maxima backward", dx, want, 0)
    for b, h, w, c in [(1, 1, 1, 1), (2, 3, 5, 8)]:
        (x, wide), (factors, f) = check.normal((b, h, w, c)), check.normal((b, c))
        name, n = kernel("maps_scale", c)
        y = empty(x.shape)
        kernels.launch(name, blocks(x.size // n), (256,), [x, factors, y, struct.pack("4I", b, h, w, c)])
        check.compare("scale", y, wide * f[:, None, None], 2e-7)


def main():
    conv, channels, maps = (Module(f"{name}.cu") for name in "conv channels maps".split())
    bad, first = 0, None
    for order in ["", "reverse", "shuffle:1"]:
        os.environ["BEIT2_EMULATE_ORDER"] = order
        check = Check()
        convolutions(check, conv)
        norms(check, channels)
        resizes(check, maps)
        pools(check, maps)
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
