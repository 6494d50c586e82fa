"""Makes tests/golden/torch: small TorchScript archives of a module with CLIP's names, in half precision as OpenAI's are.

    pip install torch numpy
    python scripts/make_torch_goldens.py tests/golden/torch

scripted.pt and traced.pt hold the same weights (torch.jit.script, torch.jit.trace); expected.safetensors holds them as plain
tensors; ddp.pth, dino.pth and mmpretrain.pth are what training software saves.
"""

import json
import struct
import sys
from collections import OrderedDict
from pathlib import Path

import torch
from torch import nn

WIDTH, HEADS, PATCH, SIDE, LAYERS, OUTPUT = 16, 2, 4, 8, 2, 8


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * WIDTH, WIDTH))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * WIDTH))
        self.out_proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        b, n, d = x.shape
        qkv = torch.nn.functional.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = qkv.reshape(b, n, 3, 2, d // 2).permute(2, 0, 3, 1, 4).unbind(0)
        weights = torch.softmax(q @ k.transpose(-2, -1) / (d // 2) ** 0.5, dim=-1)
        return self.out_proj((weights @ v).transpose(1, 2).reshape(b, n, d))


class QuickGELU(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = Attention()
        self.ln_1 = nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(OrderedDict(c_fc=nn.Linear(WIDTH, 4 * WIDTH), gelu=QuickGELU(), c_proj=nn.Linear(4 * WIDTH, WIDTH)))
        self.ln_2 = nn.LayerNorm(WIDTH)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.resblocks = nn.Sequential(*[Block() for _ in range(LAYERS)])

    def forward(self, x):
        return self.resblocks(x)


class Visual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTH, PATCH, PATCH, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(WIDTH))
        self.positional_embedding = nn.Parameter(torch.empty((SIDE // PATCH) ** 2 + 1, WIDTH))
        self.ln_pre = nn.LayerNorm(WIDTH)
        self.transformer = Transformer()
        self.ln_post = nn.LayerNorm(WIDTH)
        self.proj = nn.Parameter(torch.empty(WIDTH, OUTPUT))

    def forward(self, x):
        x = self.conv1(x).flatten(2).transpose(1, 2)
        cls = self.class_embedding.reshape(1, 1, -1).expand(x.shape[0], -1, -1)
        x = self.ln_pre(torch.cat([cls, x], 1) + self.positional_embedding)
        return self.ln_post(self.transformer(x)) @ self.proj


class Clip(nn.Module):
    def __init__(self):
        super().__init__()
        self.visual = Visual()
        self.token_embedding = nn.Embedding(10, WIDTH)
        self.logit_scale = nn.Parameter(torch.tensor(2.5))
        # As in OpenAI's text tower; a plain attribute with values of minus infinity.
        self.register_buffer("attn_mask", torch.full((4, 4), float("-inf")).triu_(1))
        self.input_resolution = SIDE

    def forward(self, image):
        return self.visual(image)


def write_safetensors(path, tensors):
    types = {torch.float16: "F16", torch.float32: "F32"}
    header, data, at = {}, b"", 0
    for name, tensor in tensors.items():
        raw = tensor.detach().contiguous().numpy().tobytes()
        header[name] = {"dtype": types[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, at + len(raw)]}
        data, at = data + raw, at + len(raw)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def vit(prefix, scale, names):
    """Small random tensors under one framework's names."""
    return {prefix + name: scale * torch.randn(*shape) for name, shape in names.items()}


def main(folder):
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(1)
    clip = Clip().eval()
    for parameter in clip.parameters():
        nn.init.normal_(parameter, std=0.2)
    images = torch.rand(2, 3, SIDE, SIDE) * 2 - 1
    half = {name: tensor.half() for name, tensor in clip.state_dict().items()}
    clip.load_state_dict(half)
    with torch.no_grad():
        patches = clip(images)[:, 1:]
    clip.half()
    torch.jit.script(clip).save(str(folder / "scripted.pt"))
    # Tracing runs the module, and CPUs are slow but able in half precision.
    torch.jit.trace(clip, images.half()).save(str(folder / "traced.pt"))
    expected = {f"weight/{name}": tensor for name, tensor in clip.state_dict().items()}
    write_safetensors(folder / "expected.safetensors", {**expected, "input/images": images, "output/patches": patches})

    block = {
        "norm1.weight": (8,), "norm1.bias": (8,), "attn.qkv.weight": (24, 8), "attn.qkv.bias": (24,), "attn.proj.weight": (8, 8),
        "attn.proj.bias": (8,), "norm2.weight": (8,), "norm2.bias": (8,), "mlp.fc1.weight": (32, 8), "mlp.fc1.bias": (32,),
        "mlp.fc2.weight": (8, 32), "mlp.fc2.bias": (8,),
    }
    trunk = {
        "cls_token": (1, 1, 8), "pos_embed": (1, 5, 8), "patch_embed.proj.weight": (8, 3, 4, 4), "patch_embed.proj.bias": (8,),
        "norm.weight": (8,), "norm.bias": (8,), **{f"blocks.{i}.{name}": shape for i in range(2) for name, shape in block.items()},
    }
    heads = {"head.mlp.0.weight": (16, 8), "head.mlp.0.bias": (16,), "head.last_layer.weight_v": (20, 16)}
    dino = {
        "student": {**vit("module.backbone.", 1.0, trunk), **vit("module.", 1.0, heads)},
        "teacher": {**vit("backbone.", 0.5, trunk), **vit("", 1.0, heads)},
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-3}]},
        "epoch": 7,
        "dino_loss": {"center": torch.zeros(1, 20)},
    }
    torch.save(dino, folder / "dino.pth")
    # DINOv2's trainer: one dictionary, blocks in chunks.
    chunked = {name.replace("blocks.0.", "blocks.0.0.").replace("blocks.1.", "blocks.1.1."): shape for name, shape in trunk.items()}
    dinov2 = {**vit("student.backbone.", 1.0, chunked), **vit("teacher.backbone.", 0.5, chunked), **vit("teacher.dino_head.", 1.0, {"mlp.0.weight": (4, 8)})}
    torch.save({"model": dinov2, "iteration": 3}, folder / "dinov2.pth")

    layer = {
        "gamma_1": (8,), "gamma_2": (8,), "ln1.weight": (8,), "ln1.bias": (8,), "attn.q_bias": (8,), "attn.v_bias": (8,),
        "attn.relative_position_bias_table": (12, 2), "attn.qkv.weight": (24, 8), "attn.proj.weight": (8, 8), "attn.proj.bias": (8,),
        "ln2.weight": (8,), "ln2.bias": (8,), "ffn.layers.0.0.weight": (32, 8), "ffn.layers.0.0.bias": (32,),
        "ffn.layers.1.weight": (8, 32), "ffn.layers.1.bias": (8,),
    }
    backbone = {
        "cls_token": (1, 1, 8), "patch_embed.projection.weight": (8, 3, 4, 4), "patch_embed.projection.bias": (8,),
        "ln2.weight": (8,), "ln2.bias": (8,), **{f"layers.{i}.{name}": shape for i in range(2) for name, shape in layer.items()},
    }
    state = OrderedDict({**vit("backbone.", 0.5, backbone), **vit("head.fc.", 0.5, {"weight": (3, 8), "bias": (3,)})})
    for index in range(2):
        state[f"backbone.layers.{index}.attn.relative_position_index"] = torch.zeros(5, 5, dtype=torch.int64)
    torch.save({"meta": {"epoch": 1}, "state_dict": state}, folder / "mmpretrain.pth")


main(Path(sys.argv[1]))
