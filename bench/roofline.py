#!/usr/bin/env python3
"""Estimates a step on an H100 and an H200 from what its kernels compute and move: FLOP, bytes, time at the roofline.

    bench/roofline.py                                  # the tables of docs/benchmarks/gpu.md
    bench/roofline.py --stage pretrain --batch 256     # one step, kernel by kernel
    bench/roofline.py --write docs/benchmarks/gpu.md   # replaces the page's tables
    bench/roofline.py --counted OUT/counts.json        # compares matmuls and launches with those that tests/cuda/run.sh logged

The list of operations is that of the native CUDA path in bf16 at base size (crates/beit2-kernels/src/gpu/cuda): what is bf16
there is 2 bytes here. `--counted` keeps the list honest. Standard library only.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

F32, BF16 = 4, 2

# Data sheets, SXM modules: dense bf16 FLOP/s and bytes/s.
CARDS = {"H100": (989e12, 3.35e12), "H200": (989e12, 4.8e12)}

# What is reached of the peaks, as (cautious, hopeful). Matmuls: cuBLASLt at these shapes. Attention: mma.sync (no wgmma), a head
# width of 64, 197 tokens; loads from L1 and shared memory bound it (kernels/attention.cu counts them). Bytes: streaming kernels.
REACHED = {"matmul": (0.65, 0.75), "attention": (0.14, 0.21), "bytes": (0.80, 0.85)}
# A kernel starts and drains in this time while nothing else runs.
LAUNCH = 2e-6

# Published, for a plain ViT-B/16 in PyTorch on an H100; no tokenizer beside it.
PUBLISHED = "1,459 images/s at 16 % MFU"

WIDTH, HEADS, DEPTH, HIDDEN = 768, 12, 12, 3072
LAYER = 9  # after which patch aggregation takes the patch tokens
HEAD_WIDTH = WIDTH // HEADS
PATCHES, TOKENS, PIXELS = 196, 197, 3 * 16 * 16
MASKED, CODES, CODE_DIM, TEACHER_DIM, CLASSES = 75, 8192, 32, 512, 1000
IMAGE_BYTES = 3 * 224 * 224


@dataclass
class Op:
    """Kernels of one kind in a step, all of one shape."""

    name: str
    kind: str  # matmul, attention or bytes
    count: int
    flop: float  # of one
    bytes: float  # of one, to and from memory

    def seconds(self, card: str, hopeful: bool) -> float:
        flops, bandwidth = CARDS[card]
        compute = self.flop / (flops * REACHED[self.kind][hopeful]) if self.flop else 0.0
        move = self.bytes / (bandwidth * REACHED["bytes"][hopeful])
        return self.count * (max(compute, move) + LAUNCH)


class Step:
    """The operations of a step, in the order in which they are added."""

    def __init__(self, batch: int):
        self.batch, self.ops = batch, []
        # Operations that the program counts for its fraction of the peak: a backward pass is twice its forward pass.
        self.counted = 0.0

    def add(self, name: str, kind: str, flop: float, size: float, count: int = 1) -> None:
        self.ops.append(Op(name, kind, count, flop, size))

    def matmul(self, name: str, m: int, n: int, k: int, result: int, count: int = 1, operands: int = BF16) -> None:
        """D[m, n] = A[m, k]·B[k, n]."""
        self.add(name, "matmul", 2.0 * m * n * k, operands * (m * k + k * n) + result * m * n, count)

    def linear(self, name: str, rows: int, inputs: int, outputs: int, *, trained: bool, data: bool = True, result: int = BF16) -> None:
        """A layer's matmuls: forward, and where it is trained the gradients of its input (`data`) and of its weights."""
        self.matmul(f"{name}", rows, outputs, inputs, result)
        self.counted += 2.0 * rows * inputs * outputs * (1 + trained * (1 + data))
        if trained:
            if data:
                self.matmul(f"{name}, gradient of its input", rows, inputs, outputs, BF16)
            self.matmul(f"{name}, gradient of its weights", inputs, outputs, rows, F32)

    def rows(self, name: str, rows: int, width: int, per_value: float, count: int = 1) -> None:
        """A pass over rows: bytes for each value, read and written."""
        self.add(name, "bytes", 0.0, rows * width * per_value, count)

    # ------------------------------------------------------------------------------------------------------- parts

    def run(self, blocks: int, *, trained: bool, last: int = TOKENS, per_block_bias: bool = False) -> None:
        """Blocks one after the other as one operation; of the last one `last` tokens are read."""
        for at in range(blocks):
            ends = at == blocks - 1
            queries = last if ends else TOKENS
            self.block(trained=trained, begins=at == 0, ends=ends, queries=queries, per_block_bias=per_block_bias)

    def block(
        self, *, trained: bool, begins: bool = False, ends: bool = False, queries: int = TOKENS, per_block_bias: bool = False
    ) -> None:
        """A Transformer block over all tokens, of which `queries` are read afterwards. What lies between two blocks of a run, the sum
        that ends one and the norm that begins the next, is one pass each way."""
        tokens = TOKENS
        b, all_rows, rows = self.batch, self.batch * tokens, self.batch * queries
        if begins:
            # x f32 → bf16 and two statistics
            self.rows("layer norm", all_rows, WIDTH, F32 + BF16)
        if queries == tokens:
            self.linear("qkv", all_rows, WIDTH, 3 * WIDTH, trained=trained)
        else:
            self.linear("k, v", all_rows, WIDTH, 2 * WIDTH, trained=trained)
            self.linear("q", rows, WIDTH, WIDTH, trained=trained)
        scores = 2.0 * b * HEADS * queries * tokens * HEAD_WIDTH
        bias = F32 * HEADS * queries * tokens
        kv, q = 2 * all_rows * WIDTH * BF16, rows * WIDTH * BF16
        self.add("attention", "attention", 2 * scores, kv + 2 * q + bias + rows * HEADS * F32)
        self.counted += 2 * scores * (3 if trained else 1)
        self.linear("projection", rows, WIDTH, WIDTH, trained=trained)
        # x f32, branch bf16 → x f32, norm bf16
        self.rows("residual, scale and norm", rows, WIDTH, 2 * F32 + 2 * BF16)
        self.linear("MLP in", rows, WIDTH, HIDDEN, trained=trained)
        self.rows("GELU", rows, HIDDEN, 2 * BF16)
        self.linear("MLP out", rows, HIDDEN, WIDTH, trained=trained)
        if ends:
            self.rows("residual and scale", rows, WIDTH, 2 * F32 + BF16)
        else:
            self.rows("residual, scale and norm", rows, WIDTH, 2 * F32 + 2 * BF16)
        if not trained:
            return
        if ends:
            # gradient f32 → gradient of the branch bf16
            self.rows("residual and scale, backward", rows, WIDTH, F32 + BF16)
        # gradient and pre-activation → gradient; the activation is computed again for the gradient of the weights
        self.rows("GELU, backward", rows, HIDDEN, 4 * BF16)
        # gradient bf16, x f32, gradient of the residual f32 → gradient f32, and that of the branch before bf16
        self.rows("residual, scale and norm, backward", rows, WIDTH, 3 * F32 + 2 * BF16)
        if begins:
            self.rows("layer norm, backward", all_rows, WIDTH, 3 * F32 + BF16)
        else:
            self.rows("residual, scale and norm, backward", all_rows, WIDTH, 3 * F32 + 2 * BF16)
        # q, k, v, output and its gradient → three gradients and the bias's. Nine matmuls where the forward pass has two: each of three
        # kernels makes scores and gradients of weights again, so that none needs what another one has in registers.
        self.add("attention, backward", "attention", 9 * scores, 4 * kv + 8 * q + 2 * bias + 6 * rows * HEADS * F32)
        if per_block_bias:
            self.add("bias table, gather and its gradient", "bytes", 0.0, 2 * bias, 2)

    def trunk(
        self, *, trained: bool, runs: tuple[int, ...] = (DEPTH,), last: int = TOKENS, per_block_bias: bool = False, patch: int = PIXELS
    ) -> None:
        """Patch embedding and runs of blocks; of the last block `last` tokens are read."""
        rows = self.batch * PATCHES
        if patch == PIXELS:
            # bytes, standardised, in the order of patches
            self.rows("patches from bytes", rows, PIXELS, 1 + BF16)
        self.linear("patch embedding", rows, patch, WIDTH, trained=trained, data=patch != PIXELS)
        self.rows("tokens", rows, WIDTH, BF16 + F32, 1 + trained)
        for at, blocks in enumerate(runs):
            queries = last if at == len(runs) - 1 else TOKENS
            self.run(blocks, trained=trained, last=queries, per_block_bias=per_block_bias)

    def optimizer(self, parameters: float) -> None:
        """Norm of all gradients; AdamW with a copy of the weights in bf16."""
        self.add("norm of all gradients", "bytes", 0.0, F32 * parameters)
        self.add("AdamW", "bytes", 0.0, (7 * F32 + BF16) * parameters)

    def codes(self, rows: int) -> None:
        """Nearest code of each row: the scores stay in the kernel."""
        self.counted += 2.0 * rows * CODE_DIM * CODES
        self.add("nearest code", "attention", 2.0 * rows * CODE_DIM * CODES, F32 * (rows + CODES) * CODE_DIM)

    # ------------------------------------------------------------------------------------------------------ figures

    def totals(self) -> tuple[float, float, int]:
        """FLOP, bytes, kernels."""
        ops = self.ops
        return sum(o.flop * o.count for o in ops), sum(o.bytes * o.count for o in ops), sum(o.count for o in ops)

    def seconds(self, card: str, hopeful: bool) -> float:
        return sum(op.seconds(card, hopeful) for op in self.ops)


def pretrain(batch: int) -> Step:
    """The frozen tokenizer's ids; the student with patch aggregation; both losses; clipping and AdamW."""
    s, masked = Step(batch), batch * MASKED
    # Frozen: the last block's queries are computed for all tokens, since its weights are one matrix.
    s.trunk(trained=False, last=MASKED)
    s.counted += 2.0 * batch * (TOKENS - MASKED) * WIDTH * WIDTH
    s.linear("tokenizer's head", masked, WIDTH, WIDTH, trained=False)
    s.linear("tokenizer's head", masked, WIDTH, CODE_DIM, trained=False, result=F32)
    s.codes(masked)
    s.trunk(trained=True, runs=(LAYER, DEPTH - LAYER), last=MASKED + 1)
    s.run(2, trained=True, last=MASKED)
    # Both predictions: a norm each, one head, its logits in f32 read twice, their gradient in bf16.
    s.rows("layer norm", masked, WIDTH, F32 + BF16, 2)
    s.linear("head", 2 * masked, WIDTH, CODES, trained=True, result=F32)
    s.rows("cross entropy", 2 * masked, CODES, F32)
    s.rows("cross entropy, backward", 2 * masked, CODES, F32 + BF16)
    s.rows("layer norm, backward", masked, WIDTH, 3 * F32, 2)
    s.optimizer(106.1e6)
    return s


def finetune(batch: int) -> Step:
    """A classifier of 1000 classes with a bias table in each block."""
    s = Step(batch)
    s.trunk(trained=True, per_block_bias=True)
    s.rows("mean of the tokens and norm", batch * PATCHES, WIDTH, F32, 2)
    s.linear("head", batch, WIDTH, CLASSES, trained=True, result=F32)
    s.rows("cross entropy", batch, CLASSES, F32 + BF16)
    s.optimizer(86.5e6)
    return s


def tokenizer(batch: int) -> Step:
    """A frozen teacher; encoder, nearest code, decoder of three blocks; cosine loss; the codebook's averages."""
    s, rows = Step(batch), batch * PATCHES
    # CLIP's norm before the blocks.
    s.rows("layer norm", batch * TOKENS, WIDTH, 2 * F32)
    s.trunk(trained=False)
    s.linear("teacher's head", rows, WIDTH, TEACHER_DIM, trained=False, result=F32)
    s.trunk(trained=True)
    s.linear("task layer", rows, WIDTH, WIDTH, trained=True)
    s.linear("task layer", rows, WIDTH, CODE_DIM, trained=True, result=F32)
    # Of this task layer, in f32, and of the decoder's.
    for size in (F32, BF16):
        s.rows("tanh", rows, WIDTH, 2 * size)
        s.rows("tanh, backward", rows, WIDTH, 3 * size)
    s.rows("unit rows", rows, CODE_DIM, 2 * F32)
    s.codes(rows)
    s.rows("codes and commitment loss", rows, CODE_DIM, 3 * F32)
    s.rows("codes and unit rows, backward", rows, CODE_DIM, 3 * F32, 3)
    s.trunk(trained=True, runs=(3,), patch=CODE_DIM)
    s.linear("decoder's task layer", rows, WIDTH, WIDTH, trained=True)
    s.linear("decoder's task layer", rows, WIDTH, TEACHER_DIM, trained=True, result=F32)
    s.rows("cosine loss", rows, TEACHER_DIM, 2 * F32)
    s.rows("cosine loss, backward", rows, TEACHER_DIM, 3 * F32)
    s.rows("sums of codes", rows, CODE_DIM, F32)
    s.rows("moving averages of codes", CODES, CODE_DIM, 3 * F32)
    s.optimizer(108.8e6)
    return s


def infer(batch: int) -> Step:
    """The classifier's logits."""
    s = Step(batch)
    s.trunk(trained=False)
    s.rows("mean of the tokens and norm", batch * PATCHES, WIDTH, F32)
    s.linear("head", batch, WIDTH, CLASSES, trained=False, result=F32)
    return s


STAGES = {"pretrain": pretrain, "finetune": finetune, "tokenizer": tokenizer, "infer": infer}


# -------------------------------------------------------------------------------------------------------------- tables


def grouped(step: Step) -> list[tuple[str, list[Op]]]:
    """Operations of one name, in the order of their time."""
    groups: dict[str, list[Op]] = defaultdict(list)
    for op in step.ops:
        groups[op.name].append(op)
    return sorted(groups.items(), key=lambda group: -sum(op.seconds("H100", False) for op in group[1]))


def kernels_table(step: Step) -> str:
    """A step kernel by kernel."""
    lines = [
        "| kernel | launches | GFLOP | GB | H100, ms | H200, ms |",
        "|---|---:|---:|---:|---:|---:|",
    ]

    def times(ops: list[Op]) -> str:
        spans = []
        for card in CARDS:
            slow, fast = (1e3 * sum(op.seconds(card, hopeful) for op in ops) for hopeful in (False, True))
            spans.append(f"{fast:.2f}–{slow:.2f}")
        return " | ".join(spans)

    for name, ops in grouped(step):
        flop, size = sum(op.flop * op.count for op in ops), sum(op.bytes * op.count for op in ops)
        lines.append(f"| {name} | {sum(op.count for op in ops)} | {flop / 1e9:,.0f} | {size / 1e9:.2f} | {times(ops)} |")
    flop, size, count = step.totals()
    lines.append(f"| **all** | **{count}** | **{flop / 1e9:,.0f}** | **{size / 1e9:.1f}** | {times(step.ops)} |")
    return "\n".join(lines)


def summary_table(batches: list[int]) -> str:
    """All stages."""
    lines = [
        "| step | batch | GFLOP an image | GB a step | H100: ms | images/s | MFU | H200: ms | images/s | MFU |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, make in STAGES.items():
        for batch in batches:
            step = make(batch)
            cells = [name, str(batch), f"{step.counted / batch / 1e9:.1f}", f"{step.totals()[1] / 1e9:.0f}"]
            for card, (peak, _) in CARDS.items():
                slow, fast = (step.seconds(card, hopeful) for hopeful in (False, True))
                cells.append(f"{1e3 * fast:.1f}–{1e3 * slow:.1f}")
                cells.append(f"{batch / slow:,.0f}–{batch / fast:,.0f}")
                cells.append(f"{100 * step.counted / slow / peak:.0f}–{100 * step.counted / fast / peak:.0f} %")
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def kinds_line(step: Step, card: str = "H100") -> str:
    """How a step's time divides."""
    total, parts = step.seconds(card, False), []
    for kind, word in (("matmul", "matmuls"), ("attention", "attention and nearest code"), ("bytes", "passes over memory")):
        seconds = sum(op.seconds(card, False) for op in step.ops if op.kind == kind)
        parts.append(f"{word} {1e3 * seconds:.1f} ms ({100 * seconds / total:.0f} %)")
    return ", ".join(parts)


def write(page: Path) -> None:
    """Replaces what is between the marks of the page."""
    body = f"{summary_table([128, 256])}\n\n"
    for batch in (128, 256):
        step = pretrain(batch)
        body += f"### Pretraining, batch {batch}\n\nOn an H100, cautiously: {kinds_line(step)}.\n\n{kernels_table(step)}\n\n"
    text = page.read_text()
    before, start, rest = text.partition("<!-- estimate -->\n")
    if not start or "<!-- end -->" not in rest:
        sys.exit(f"{page} has no lines '<!-- estimate -->' and '<!-- end -->' to write between")
    page.write_text(before + start + body.rstrip() + "\n" + "<!-- end -->" + rest.partition("<!-- end -->")[2])


def compare(counts: Path) -> int:
    """The list against the log of the emulated card. The status is 1 where matmuls differ by more than 2 %."""
    cells, status = json.loads(counts.read_text())["cells"], 0
    for name, cell in cells.items():
        stage, precision = name.split(".")
        if stage not in STAGES or precision != "bf16":
            continue
        step = STAGES[stage](128)
        flop = sum(op.flop * op.count for op in step.ops if op.kind == "matmul")
        logged, matmuls = cell.get("gemm_flop"), cell.get("gemms")
        said = f"{name}: {step.totals()[2]} kernels in the list, {cell['counts']['launches']:g} launches counted"
        if logged:
            difference = logged / flop - 1
            said += f"; matmuls {flop / 1e12:.3f} TFLOP in the list, {logged / 1e12:.3f} in {matmuls:g} calls counted"
            if abs(difference) > 0.02:
                said += f": they differ by {100 * difference:.1f} %"
                status = 1
        print(said)
    return status


def main() -> int:
    parser = argparse.ArgumentParser(description="Estimates steps on GPUs.")
    parser.add_argument("--stage", choices=STAGES)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--counted", type=Path)
    args = parser.parse_args()
    if args.counted:
        return compare(args.counted)
    if args.write:
        write(args.write)
    elif args.stage:
        step = STAGES[args.stage](args.batch)
        print(f"{kinds_line(step)}\n\n{kernels_table(step)}")
    else:
        print(summary_table([128, 256]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
