#!/usr/bin/env python3
"""Where a Transformer block may round to bf16: loss curves of a small masked image model that rounds in different places.

    "$(scripts/python_env.sh)/bin/python" bench/residual_stream.py --out residual.jsonl              # 3 seeds, some 7 minutes each
    "$(scripts/python_env.sh)/bin/python" bench/residual_stream.py --out residual.jsonl --seeds 7    # another one
    bench/residual_stream.py --table residual.jsonl                                                  # for docs/decisions.md

Every form starts with the same weights and sees the same images and masks; what a matmul sums is f32 in all of them:

    f32         nothing is rounded
    chance      nothing is rounded; weights start 1e-6 of themselves away. What it differs from f32 by is chance
    operands    operands of matmuls, forward and backward (the CPU's bf16)
    block       also everything else between the matmuls of a block, and its gradients (CUDA's bf16)
    residual    also the residual stream and its gradient

The images are those inside the program, 64 pixels, patches of 8; targets are the nearest of 512 k-means codes of patches. A line of
the file is a seed's: mean training loss of the last 50 steps, loss on images held out, losses of the first ten steps. Needs PyTorch,
numpy and Pillow (scripts/python_env.sh); one thread, so that it gives the same bits again on one kind of machine.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import sys
import tarfile
import time
from pathlib import Path

DATA = Path(__file__).resolve().parents[1] / "crates/beit2-quickstart-data/data"
FORMS = ("f32", "chance", "operands", "block", "residual")
WIDTH, DEPTH, HEADS, GAMMA = 128, 6, 4, 0.1
SIDE, PATCH = 64, 8
PATCHES, PIXELS = (SIDE // PATCH) ** 2, 3 * PATCH**2
CODES, MASKED, BATCH, HELD_OUT = 512, 25, 16, 256
RATE, WARM_UP, LAST = 2e-3, 40, 50


def row(name: str, text: str) -> str:
    return f"| {name} | {text} |"


def table(file: Path) -> None:
    """The results as Markdown, a row for each form."""
    results = [json.loads(line) for line in file.read_text().splitlines()]
    print(row("rounded", "training loss, last 50 steps | on images held out | first 10 steps, largest relative difference from f32"))
    print("|---|---|---|---:|")
    for form in FORMS:
        train, held = (", ".join(f"{r[key][form]:.3f}" for r in results) for key in ("train", "held_out"))
        first = max(abs(a - b) / b for r in results for a, b in zip(r["first"][form], r["first"]["f32"]))
        print(row(form, f"{train} | {held} | {'' if form == 'f32' else f'{first:.0e}'}"))


def measure(seeds: list[int], steps: int, out: Path) -> None:
    """Appends a line for each seed to `out`."""
    import numpy as np
    import torch
    from PIL import Image
    from torch import nn
    from torch.nn.functional import cross_entropy, gelu, layer_norm

    torch.set_num_threads(1)

    def rounded(x):
        return x.to(torch.bfloat16).float()

    class RoundedMatmul(torch.autograd.Function):
        """A matmul whose operands are rounded, forward and backward."""

        @staticmethod
        def forward(context, a, b):
            a, b = rounded(a), rounded(b)
            context.save_for_backward(a, b)
            return a @ b

        @staticmethod
        def backward(context, grad):
            a, b = context.saved_tensors
            grad = rounded(grad)
            db = a.transpose(-1, -2) @ grad
            while db.dim() > b.dim():
                db = db.sum(0)
            return grad @ b.transpose(-1, -2), db

    class Rounded(torch.autograd.Function):
        """A value and its gradient, rounded."""

        @staticmethod
        def forward(context, x):
            return rounded(x)

        @staticmethod
        def backward(context, grad):
            return rounded(grad)

    def weight(*shape, scale=1.0):
        x = nn.init.trunc_normal_(torch.empty(*shape), std=0.02, a=-0.04, b=0.04)
        return nn.Parameter(x * scale)

    def constant(*shape, value=0.0):
        return nn.Parameter(torch.full(shape, value))

    class Block(nn.Module):
        def __init__(self, number):
            super().__init__()
            scale = 1 / math.sqrt(2 * (number + 1))
            self.norm1, self.shift1 = constant(WIDTH, value=1.0), constant(WIDTH)
            self.qkv, self.qkv_bias = weight(WIDTH, 3 * WIDTH), constant(3 * WIDTH)
            self.proj, self.proj_bias = weight(WIDTH, WIDTH, scale=scale), constant(WIDTH)
            self.norm2, self.shift2 = constant(WIDTH, value=1.0), constant(WIDTH)
            self.fc1, self.fc1_bias = weight(WIDTH, 4 * WIDTH), constant(4 * WIDTH)
            self.fc2, self.fc2_bias = weight(4 * WIDTH, WIDTH, scale=scale), constant(WIDTH)
            self.gamma1, self.gamma2 = constant(WIDTH, value=GAMMA), constant(WIDTH, value=GAMMA)

        def forward(self, x, bias, matmul, inside, stream):
            batch, tokens, _ = x.shape

            def heads(z):
                return z.view(batch, tokens, HEADS, WIDTH // HEADS).transpose(1, 2)

            y = inside(layer_norm(x, (WIDTH,), self.norm1, self.shift1, 1e-6))
            q, k, v = map(heads, inside(matmul(y, self.qkv) + self.qkv_bias).split(WIDTH, -1))
            logits = matmul(q * (WIDTH // HEADS) ** -0.5, k.transpose(-1, -2)) + bias
            y = matmul(torch.softmax(logits, -1), v).transpose(1, 2).reshape(batch, tokens, WIDTH)
            x = stream(x + inside(matmul(inside(y), self.proj * self.gamma1) + self.proj_bias * self.gamma1))
            y = inside(layer_norm(x, (WIDTH,), self.norm2, self.shift2, 1e-6))
            y = inside(gelu(inside(matmul(y, self.fc1) + self.fc1_bias)))
            return stream(x + inside(matmul(y, self.fc2 * self.gamma2) + self.fc2_bias * self.gamma2))

    class Model(nn.Module):
        def __init__(self, form):
            super().__init__()
            self.embed, self.embed_bias = weight(PIXELS, WIDTH), constant(WIDTH)
            self.cls, self.mask_token = weight(1, 1, WIDTH), weight(1, 1, WIDTH)
            self.bias = constant(HEADS, PATCHES + 1, PATCHES + 1)
            self.blocks = nn.ModuleList(Block(number) for number in range(DEPTH))
            self.norm, self.shift = constant(WIDTH, value=1.0), constant(WIDTH)
            self.head, self.head_bias = weight(WIDTH, CODES), constant(CODES)
            self.matmul = torch.matmul if form in ("f32", "chance") else RoundedMatmul.apply
            self.inside = Rounded.apply if form in ("block", "residual") else nn.Identity()
            self.stream = Rounded.apply if form == "residual" else nn.Identity()

        def forward(self, patches, mask):
            """Logits of the masked patches."""
            x = self.matmul(patches, self.embed) + self.embed_bias
            x = torch.where(mask[..., None], self.mask_token, x)
            x = self.stream(torch.cat([self.cls.expand(len(x), -1, -1), x], 1))
            for block in self.blocks:
                x = block(x, self.bias, self.matmul, self.inside, self.stream)
            x = layer_norm(x, (WIDTH,), self.norm, self.shift, 1e-6)[:, 1:][mask]
            return self.matmul(x, self.head) + self.head_bias

    def all_patches():
        """Patches of all images, `[images, PATCHES, PIXELS]` in -1 to 1, in the order of their names."""
        images = {}
        for path in sorted(DATA.glob("train-*.tar")):
            with tarfile.open(path) as tar:
                for member in tar:
                    if member.isfile() and member.name.endswith((".png", ".jpg", ".webp")):
                        image = Image.open(io.BytesIO(tar.extractfile(member).read())).convert("RGB")
                        images[member.name] = np.asarray(image.resize((SIDE, SIDE), Image.BICUBIC), np.float32) / 127.5 - 1
        x = torch.tensor(np.stack([images[name] for name in sorted(images)]))
        side = SIDE // PATCH
        return x.view(-1, side, PATCH, side, PATCH, 3).permute(0, 1, 3, 2, 4, 5).reshape(-1, PATCHES, PIXELS)

    def code_ids(patches):
        """The nearest k-means code of each patch."""
        flat = patches.reshape(-1, PIXELS)
        some = flat[torch.randperm(len(flat), generator=torch.Generator().manual_seed(0))[:20000]]
        codes = some[:CODES].clone()

        def nearest(x):
            return torch.cat([torch.cdist(part, codes).argmin(1) for part in x.split(8192)])

        for _ in range(8):
            at = nearest(some)
            total, count = torch.zeros(CODES, PIXELS).index_add_(0, at, some), torch.bincount(at, minlength=CODES)
            codes = torch.where(count[:, None] > 0, total / count[:, None].clamp(min=1), codes)
        return nearest(flat).view(-1, PATCHES)

    patches = all_patches()
    ids = code_ids(patches)
    trained = len(patches) - HELD_OUT

    def batch(rng, first, last, count):
        at = torch.tensor(rng.integers(first, last, count))
        mask = torch.zeros(count, PATCHES, dtype=torch.bool)
        for line in mask:
            line[torch.tensor(rng.permutation(PATCHES)[:MASKED])] = True
        return patches[at], ids[at], mask

    held_out = [batch(np.random.default_rng(1000 + j), trained, len(patches), 64) for j in range(4)]
    for seed in seeds:
        began, models, losses = time.monotonic(), {}, {form: [] for form in FORMS}
        for form in FORMS:
            torch.manual_seed(seed)
            models[form] = Model(form)
        with torch.no_grad():
            for parameter in models["chance"].parameters():
                parameter.mul_(1 + 1e-6)
        optimizers = {
            form: torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.05)
            for form, model in models.items()
        }
        rng = np.random.default_rng(seed)
        for step in range(steps):
            x, y, mask = batch(rng, 0, trained, BATCH)
            rate = RATE * min(1, (step + 1) / WARM_UP) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
            for form, model in models.items():
                for group in optimizers[form].param_groups:
                    group["lr"] = rate
                loss = cross_entropy(model(x, mask), y[mask])
                optimizers[form].zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 3.0)
                optimizers[form].step()
                losses[form].append(loss.item())
            if (step + 1) % LAST == 0:
                means = ", ".join(f"{form} {np.mean(losses[form][-LAST:]):.4f}" for form in FORMS)
                print(f"seed {seed}, step {step + 1}, {time.monotonic() - began:.0f} s: {means}", file=sys.stderr, flush=True)
        with torch.no_grad():
            held = {
                form: float(np.mean([cross_entropy(model(x, mask), y[mask]).item() for x, y, mask in held_out]))
                for form, model in models.items()
            }
        train = {form: float(np.mean(curve[-LAST:])) for form, curve in losses.items()}
        first = {form: curve[:10] for form, curve in losses.items()}
        with out.open("a") as lines:
            lines.write(json.dumps({"seed": seed, "steps": steps, "train": train, "held_out": held, "first": first}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Loss curves of a small masked image model that rounds in different places.")
    parser.add_argument("--out", type=Path, help="a file of JSON lines; new ones are appended")
    parser.add_argument("--table", type=Path, help="print such a file as a table, and do nothing else")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=400)
    args = parser.parse_args()
    if args.table:
        table(args.table)
    elif args.out:
        measure(args.seeds, args.steps, args.out)
        table(args.out)
    else:
        parser.error("give --out or --table")


if __name__ == "__main__":
    main()
