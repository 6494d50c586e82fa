"""Times BEiT v2 training steps and inference in PyTorch; the other half of `beit2 bench`.

    torch_beit2.py train --stage pretrain --size small --batch-size 8 --precision f32 --mode eager --steps 3 --rounds 5 --json
    torch_beit2.py infer --size base --batch-size 1 --precision bf16 --mode compile --steps 5 --rounds 5 --json

A step begins with images as bytes in the host's memory and ends with changed weights (train) or with logits (infer).
Each round prints one JSON line. With --paced a line {"ready": true, …} comes first and then one round for each line on
standard input, so that a driver can let programs take turns; the end of input ends the program.

f32 is plain f32. bf16 in training is torch.autocast with f32 weights; in inference it is a model converted to bf16,
which is faster than autocast by 3 to 14 % (--bf16 autocast for the other way). Attention and optimiser are the fastest
forms that PyTorch has, see `attention_form` and `optimizer`. On a GPU, f32 products beside bf16 ones may use TF32.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

START = time.perf_counter()


def fail(sentence: str) -> None:
    print(f"torch_beit2.py: {sentence}", file=sys.stderr)
    sys.exit(1)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Times one BEiT v2 training step or inference in PyTorch.")
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind in ("train", "infer"):
        p = kinds.add_parser(kind)
        if kind == "train":
            p.add_argument("--stage", choices=("tokenizer", "pretrain", "finetune"), required=True)
        p.add_argument("--size", choices=("tiny", "small", "base", "large"), default="small")
        p.add_argument("--batch-size", type=int, default=8)
        p.add_argument("--precision", choices=("f32", "bf16"), default="f32")
        p.add_argument("--mode", choices=("eager", "compile"), default="eager")
        p.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
        p.add_argument("--steps", type=int, default=3, help="steps in a round")
        p.add_argument("--rounds", type=int, default=5, help="without --paced")
        p.add_argument("--paced", action="store_true", help="wait for a line on standard input before each round")
        p.add_argument("--threads", type=int, default=0, help="0: one for each processor")
        p.add_argument("--attention", choices=("auto", "sdpa", "explicit"), default="auto")
        p.add_argument("--bf16", choices=("convert", "autocast"), default="convert", help="how infer uses bf16")
        p.add_argument("--tf32", choices=("auto", "on", "off"), default="auto", help="cuda; auto: on beside bf16")
        p.add_argument("--compile-mode", default="default", help="torch.compile's mode")
        p.add_argument("--no-freeze", action="store_true", help="infer, compile: weights stay as they are")
        p.add_argument("--gemm", action="store_true", help="measure a large matmul and count a step's operations")
        p.add_argument("--profile", metavar="FILE", help="write the kernels of one step as JSON at the end")
        p.add_argument("--seed", type=int, default=0)
        p.add_argument("--json", action="store_true", help="accepted for symmetry; JSON lines are all there is")
        if kind == "infer":
            p.set_defaults(stage=None)
    args = parser.parse_args()
    args.threads = args.threads or len(os.sched_getaffinity(0))
    return args


ARGS = arguments()
# Before the import: OpenMP reads its environment once.
os.environ["OMP_NUM_THREADS"] = str(ARGS.threads)
for package in ("torch", "timm"):
    if importlib.util.find_spec(package) is None:
        fail(f"{package} is not installed here: use the environment of scripts/python_env.sh")

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import torch_device as devices  # noqa: E402
import torch_models as models  # noqa: E402
from torch_device import Phases  # noqa: E402


def attention_form(args: argparse.Namespace) -> str:
    """The faster one. On a CPU two products and a softmax beat F.scaled_dot_product_attention with a bias (README.md
    has the figures); a GPU is asked."""
    if args.attention != "auto":
        return args.attention
    if args.device == "cpu":
        return "explicit"
    size = models.SIZES[args.size]
    dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
    head_dim = size.width // size.heads
    tokens = models.PATCHES + 1
    return devices.faster_attention(args.batch_size, size.heads, tokens, head_dim, dtype, args.kind == "train")


class Workload:
    """One step: `prepare` (without gradients) makes what `loss` needs beside the images; infer has neither."""

    prepare_name: str | None = None
    clip: float | None = None
    betas = (0.9, 0.999)
    lr = 5e-4
    weight_decay = 0.05

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.device = torch.device(args.device)
        self.host = torch.randint(0, 256, (args.batch_size, 3, models.IMAGE, models.IMAGE), dtype=torch.uint8)
        if args.device == "cuda":
            self.host = self.host.pin_memory()
        self.frozen: nn.Module | None = None
        self.model: nn.Module

    def place(self) -> None:
        """Moves the models to the device, chooses the form of attention, and compiles where that is the mode."""
        self.attention = attention_form(self.args)
        for module in filter(None, (self.model, self.frozen)):
            module.to(self.device)
            models.set_attention(module, self.attention)
        self.run_frozen, self.run_model = (self.compiled(m) for m in (self.frozen, self.model))

    def compiled(self, module: nn.Module | None) -> Callable[..., Tensor] | None:
        if module is None or self.args.mode == "eager":
            return module
        return torch.compile(module, dynamic=False, mode=self.args.compile_mode)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.args.device, torch.bfloat16, enabled=self.args.precision == "bf16")

    def groups(self) -> Iterator[dict[str, Any]]:
        """Weight decay for matrices and tables only, as in the official code."""
        named = [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]
        skip = ("cls_token", "pos_embed")
        decay = [p for n, p in named if p.ndim > 1 and not n.endswith(skip)]
        rest = [p for n, p in named if p.ndim <= 1 or n.endswith(skip)]
        yield {"params": decay, "weight_decay": self.weight_decay}
        yield {"params": rest, "weight_decay": 0.0}

    def optimizer(self) -> torch.optim.Optimizer:
        # fused: one pass over each tensor; the fastest of PyTorch's three forms on CPU and GPU.
        return torch.optim.AdamW(self.groups(), lr=self.lr, betas=self.betas, eps=1e-8, fused=True)

    def start(self) -> None:
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.adamw = self.optimizer()

    def upload(self) -> Tensor:
        """The batch on the device. From pinned memory the host need not wait for it; for 128 images the copy takes
        less than a millisecond."""
        return self.host.to(self.device, non_blocking=True)

    def prepare(self, images: Tensor) -> tuple[Any, ...]:
        return ()

    def step(self, phases: Phases) -> Tensor:
        images = self.upload()
        with torch.no_grad(), self.autocast():
            extra = self.prepare(images)
        if self.prepare_name:
            phases.mark(self.prepare_name)
        with self.autocast():
            loss = self.run_model(images, *extra)
        phases.mark("forward")
        loss.backward()
        phases.mark("backward")
        # The official code logs the norm also where it does not clip.
        if self.clip:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        else:
            torch.nn.utils.get_total_norm([p.grad for p in self.parameters])
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        phases.mark("optimizer")
        return loss.detach()


class Pretrain(Workload):
    """Recipe mim_base_300e: the tokenizer names the patches, the student predicts the masked ones twice."""

    prepare_name = "tokenizer"
    clip, betas, lr = 3.0, (0.9, 0.98), 1.5e-3

    def __init__(self, args: argparse.Namespace):
        super().__init__(args)
        noise = torch.rand(args.batch_size, models.PATCHES)
        self.mask = (noise.argsort(1).argsort(1) < models.MASKED).to(self.device)
        self.rows = self.mask.flatten().nonzero().squeeze(1)
        self.model = models.MimModel(models.SIZES[args.size])
        self.frozen = models.Tokenizer(models.tokenizer_size(args.size))

    def prepare(self, images: Tensor) -> tuple[Any, ...]:
        return self.mask, self.rows, self.run_frozen(images)[self.rows]


class TokenizerStep(Workload):
    """Recipe vqkd_base_clip_100e: encoder, codebook and decoder learn the teacher's features."""

    prepare_name = "teacher"
    betas, lr, weight_decay = (0.9, 0.99), 2e-4, 1e-4

    def __init__(self, args: argparse.Namespace):
        super().__init__(args)
        size = models.tokenizer_size(args.size)
        self.model, self.frozen = models.VqKd(size), models.Teacher(size)

    def prepare(self, images: Tensor) -> tuple[Any, ...]:
        return (self.run_frozen(images),)


class Finetune(Workload):
    """Recipe finetune_base_1600e: soft targets from mixing two images, made in advance; layer-wise decay."""

    def __init__(self, args: argparse.Namespace):
        super().__init__(args)
        off = 0.1 / models.CLASSES
        labels = torch.randint(0, models.CLASSES, (args.batch_size,))
        hot = torch.full((args.batch_size, models.CLASSES), off)
        hot.scatter_(1, labels.unsqueeze(1), 1 - 0.1 + off)
        self.targets = (0.7 * hot + 0.3 * hot.flip(0)).to(self.device)
        self.size = models.SIZES[args.size]
        self.model = models.ClassifierLoss(self.size)

    def prepare(self, images: Tensor) -> tuple[Any, ...]:
        return (self.targets,)

    def groups(self) -> Iterator[dict[str, Any]]:
        """One pair of groups for each layer: 0 embeds, 1 … depth are blocks, depth + 1 is the head."""
        layers: dict[tuple[int, bool], list[Tensor]] = {}
        for name, p in self.model.named_parameters():
            parts = name.split(".")
            if "blocks" in parts:
                layer = int(parts[parts.index("blocks") + 1]) + 1
            else:
                layer = 0 if "trunk" in parts else self.size.depth + 1
            decay = p.ndim > 1 and not name.endswith("cls_token")
            layers.setdefault((layer, decay), []).append(p)
        for (layer, decay), params in layers.items():
            scale = self.size.layer_decay ** (self.size.depth + 1 - layer)
            yield {"params": params, "lr": self.lr * scale, "weight_decay": self.weight_decay if decay else 0.0}


class Infer(Workload):
    """The fine-tuned classifier's logits."""

    def __init__(self, args: argparse.Namespace):
        super().__init__(args)
        self.model = models.Classifier(models.SIZES[args.size]).eval()
        self.model.requires_grad_(False)
        if args.precision == "bf16" and args.bf16 == "convert":
            self.model.trunk.bfloat16()
            self.model.fc_norm.bfloat16()
            self.model.head.bfloat16()

    def autocast(self) -> torch.autocast:
        wanted = self.args.precision == "bf16" and self.args.bf16 == "autocast"
        return torch.autocast(self.args.device, torch.bfloat16, enabled=wanted)

    def start(self) -> None:
        self.parameters = list(self.model.parameters())

    def step(self, phases: Phases) -> Tensor:
        with torch.inference_mode(), self.autocast():
            logits = self.run_model(self.upload())
        phases.mark("forward")
        return logits.float().mean()


WORKLOADS = {"tokenizer": TokenizerStep, "pretrain": Pretrain, "finetune": Finetune, None: Infer}


def timed_step(work: Workload) -> tuple[float, dict[str, float], Tensor]:
    phases = Phases(work.args.device)
    devices.wait(work.args.device)
    start = time.perf_counter()
    phases.mark("start")
    result = work.step(phases)
    devices.wait(work.args.device)
    return time.perf_counter() - start, phases.milliseconds(), result


def queued_steps(work: Workload) -> tuple[float, list[dict[str, float]], Tensor]:
    """A GPU's round: steps without waiting in between, so that the host prepares one while the GPU computes another."""
    steps = [Phases(work.args.device) for _ in range(work.args.steps)]
    devices.wait(work.args.device)
    start = time.perf_counter()
    for phases in steps:
        phases.mark("start")
        result = work.step(phases)
    devices.wait(work.args.device)
    seconds = (time.perf_counter() - start) / len(steps)
    return seconds, [phases.milliseconds() for phases in steps], result


def measure_round(work: Workload, base_mib: float, facts: dict[str, Any]) -> dict[str, Any]:
    args = work.args
    if args.device == "cuda":
        seconds, parts, result = queued_steps(work)
    else:
        runs = [timed_step(work) for _ in range(args.steps)]
        seconds = statistics.median(run[0] for run in runs)
        parts, result = [run[1] for run in runs], runs[-1][2]
    # A compiled backward may do work that eager does in the forward: its parts mean something else.
    ms = {name: round(statistics.median(part[name] for part in parts), 3) for name in parts[0]}
    return facts | {
        "steps": args.steps,
        "seconds_per_step": seconds,
        "images_per_second": args.batch_size / seconds,
        "ms": ms if args.mode == "eager" else None,
        **devices.peak_memory(args.device, base_mib),
        "result": result.item(),
    }


def peaks(work: Workload) -> dict[str, float]:
    """The speed of a large matmul, and the operations of a step that is not compiled."""
    compiled = work.run_frozen, work.run_model
    work.run_frozen, work.run_model = work.frozen, work.model
    flops = devices.count_flops(lambda: work.step(Phases(work.args.device)))
    work.run_frozen, work.run_model = compiled
    dtype = torch.bfloat16 if work.args.precision == "bf16" else torch.float32
    product = devices.product_flops(work.args.device, dtype)
    return {"gflop_per_step": round(flops / 1e9, 3), "gemm_gflops": round(product / 1e9, 1)}


def say(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


def main(args: argparse.Namespace) -> None:
    if args.device == "cuda" and not torch.cuda.is_available():
        fail("PyTorch finds no CUDA device")
    if args.mode == "compile":
        if args.device == "cpu" and not (os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")):
            fail("torch.compile on a CPU needs a C++ compiler: install g++ or set CXX")
        # Before the memory baseline: the compiler is no part of a step.
        inductor = importlib.import_module("torch._inductor.compile_fx")
        # Inference: constant weights may be laid out anew for the products, which is worth about 20 % on a CPU.
        inductor.config.freezing = args.kind == "infer" and args.device == "cpu" and not args.no_freeze
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    tf32 = args.device == "cuda" and (args.tf32 == "on" or (args.tf32 == "auto" and args.precision == "bf16"))
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32

    base_mib = devices.memory_mib("VmRSS")
    work = WORKLOADS[args.stage](args)
    work.place()
    work.start()
    # Before the warm-up, whose memory is that of steps.
    gemm = peaks(work) if args.gemm else {}
    warm = [timed_step(work)[0] for _ in range(2)]
    devices.reset_peak(args.device)

    facts = {
        "program": f"pytorch-{args.mode}",
        "version": torch.__version__,
        "kind": args.kind,
        "stage": args.stage,
        "size": args.size,
        "batch_size": args.batch_size,
        "precision": args.precision,
        "device": args.device,
        "gpu": torch.cuda.get_device_name() if args.device == "cuda" else None,
        "threads": args.threads,
        "attention": work.attention,
        "parameters": sum(p.numel() for p in work.parameters),
        **gemm,
    }
    if args.paced:
        taken = {"first_step_seconds": round(warm[0], 3), "start_seconds": round(time.perf_counter() - START, 3)}
        say({"ready": True} | facts | taken)
    turns = sys.stdin if args.paced else range(args.rounds)
    for _ in turns:
        say(measure_round(work, base_mib, facts))
    if args.profile:
        found = devices.kernels(args.device, lambda: work.step(Phases(args.device)))
        Path(args.profile).write_text(json.dumps(facts | found, indent=1) + "\n")


if __name__ == "__main__":
    main(ARGS)
