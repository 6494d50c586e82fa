"""The three BEiT v2 models and their frozen companions in PyTorch, out of timm's parts.

Written for `torch_beit2.py`, which times one training or inference step of each; not for training real models: there
are no data, no schedules and no checkpoints here.

Shapes: B images, N = 196 patches, T = 197 tokens (CLS first), D width, H heads, K = 8192 codes, C = 32 code width,
M = 75 masked patches of an image.

Drop path and dropout are 0 everywhere, so that every program computes the same sum of products.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm, PatchEmbed, QuickGELU
from timm.models.beit import Attention, Block, RelativePositionBias
from timm.models.vision_transformer import Attention as PlainAttention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

IMAGE, PATCH = 224, 16
GRID = IMAGE // PATCH
PATCHES = GRID * GRID
MASKED = 75
CODES, CODE_DIM = 8192, 32
TEACHER_DIM = 512
CLASSES = 1000
DECODER_DEPTH = 3
HEAD_DEPTH = 2

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))

norm_layer = partial(LayerNorm, eps=1e-6)


@dataclass(frozen=True)
class Size:
    """Widths of a transformer, and the values of the recipes that depend on the size."""

    width: int
    depth: int
    heads: int
    early: int  # the aggregation head sees the patch tokens after this block
    layer_scale: float
    layer_decay: float  # of fine-tuning


SIZES = {
    "tiny": Size(192, 12, 3, 9, 0.1, 0.6),
    "small": Size(384, 12, 6, 9, 0.1, 0.6),
    "base": Size(768, 12, 12, 9, 0.1, 0.6),
    "large": Size(1024, 24, 16, 21, 1e-5, 0.8),
}


def tokenizer_size(size: str) -> Size:
    """The published tokenizers and teachers are base-size; below base they shrink with the student."""
    return SIZES["base" if size == "large" else size]


def make_block(size: Size, layer_scale: float | None, window: tuple[int, int] | None = None) -> Block:
    """timm's BEiT block: bias for queries and values only, exact GELU, layer scale unless it is None."""
    return Block(
        size.width, size.heads, qkv_bias=True, init_values=layer_scale, norm_layer=norm_layer, window_size=window
    )


def init_weights(root: nn.Module, blocks: nn.ModuleList) -> None:
    """Normal weights of deviation 0.02, zero biases, and output layers divided by sqrt(2 * block number)."""
    for module in root.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    with torch.no_grad():
        for number, block in enumerate(blocks, 1):
            block.attn.proj.weight.div_(math.sqrt(2 * number))
            block.mlp.fc2.weight.div_(math.sqrt(2 * number))


def set_attention(root: nn.Module, form: str) -> None:
    """`sdpa` sends attention through F.scaled_dot_product_attention, `explicit` through two products and a softmax."""
    for module in root.modules():
        if isinstance(module, (Attention, PlainAttention)):
            module.fused_attn = form == "sdpa"


class Channels(nn.Module):
    """Bytes [B, 3, 224, 224] to floats normalised with a mean and deviation of each channel."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        scale = 1 / (255 * torch.tensor(std))
        self.register_buffer("scale", scale.view(3, 1, 1))
        self.register_buffer("shift", (-torch.tensor(mean) / torch.tensor(std)).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return torch.addcmul(self.shift, images.float(), self.scale)


def symmetric() -> Channels:
    """Bytes to [-1, 1], the tokenizer's input."""
    return Channels((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class Trunk(nn.Module):
    """Patch embedding, CLS token and blocks without a final norm."""

    def __init__(
        self,
        size: Size,
        depth: int,
        *,
        layer_scale: float | None = None,
        bias: str = "none",  # relative position bias: none (then positions are absolute), shared or per_block
        patches: PatchEmbed | None = None,
    ):
        super().__init__()
        window = (GRID, GRID)
        self.patch_embed = patches or PatchEmbed(IMAGE, PATCH, 3, size.width)
        self.cls_token = nn.Parameter(torch.randn(1, 1, size.width) * 0.02)
        self.pos_embed = nn.Parameter(torch.randn(1, PATCHES + 1, size.width) * 0.02) if bias == "none" else None
        self.rel_pos_bias = RelativePositionBias(window, size.heads) if bias == "shared" else None
        own = window if bias == "per_block" else None
        self.blocks = nn.ModuleList(make_block(size, layer_scale, own) for _ in range(depth))
        init_weights(self, self.blocks)

    def embed(self, images: Tensor, mask: Tensor | None = None, mask_token: Tensor | None = None) -> Tensor:
        """[B, 3, 224, 224] -> [B, T, D]; patches where `mask` [B, N] is true become the mask token."""
        x = self.patch_embed(images)
        if mask is not None:
            x = torch.where(mask.unsqueeze(-1), mask_token, x)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), 1)
        return x if self.pos_embed is None else x + self.pos_embed

    def bias(self) -> Tensor | None:
        """The bias that all blocks share, [1, H, T, T]."""
        return None if self.rel_pos_bias is None else self.rel_pos_bias()

    def forward(self, images: Tensor) -> Tensor:
        x, bias = self.embed(images), self.bias()
        for block in self.blocks:
            x = block(x, bias)
        return x


def task_layer(width: int, out: int) -> nn.Sequential:
    layers = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, out))
    init_weights(layers, nn.ModuleList())
    return layers


class Encoder(nn.Module):
    """The tokenizer's encoder: images [B, 3, 224, 224] in bytes -> unit vectors [B * N, C]."""

    def __init__(self, size: Size):
        super().__init__()
        self.pixels = symmetric()
        self.trunk = Trunk(size, size.depth)
        self.fc_norm = norm_layer(size.width)
        self.task = task_layer(size.width, CODE_DIM)

    def forward(self, images: Tensor) -> Tensor:
        x = self.fc_norm(self.trunk(self.pixels(images))[:, 1:])
        # The task layer stays in f32 under autocast, as in the official code.
        with torch.autocast(x.device.type, enabled=False):
            return F.normalize(self.task(x.float()).flatten(0, 1), dim=-1)


class Codebook(nn.Module):
    """K unit vectors that follow the encoder's output as exponential averages."""

    def __init__(self, decay: float = 0.99):
        super().__init__()
        self.decay = decay
        self.register_buffer("codes", F.normalize(torch.randn(CODES, CODE_DIM), dim=-1))
        self.register_buffer("usage", torch.zeros(CODES))

    def nearest(self, z: Tensor) -> Tensor:
        """Unit vectors [n, C] -> ids [n]; the nearest code of a unit vector is the one of the largest product."""
        with torch.autocast(z.device.type, enabled=False):
            return (z @ self.codes.t()).argmax(-1)

    @torch.no_grad()
    def update(self, z: Tensor, ids: Tensor) -> None:
        """Moves each code that was used towards the mean of its vectors."""
        counts = torch.zeros_like(self.usage).index_add_(0, ids, torch.ones_like(ids, dtype=z.dtype))
        sums = torch.zeros_like(self.codes).index_add_(0, ids, z)
        self.usage.lerp_(counts, 1 - self.decay)
        means = F.normalize(sums / counts.clamp(min=1).unsqueeze(-1), dim=-1)
        means = torch.where(counts.unsqueeze(-1) > 0, means, self.codes)
        self.codes.copy_(F.normalize(self.codes.lerp(means, 1 - self.decay), dim=-1))


class Teacher(nn.Module):
    """A frozen transformer of CLIP's kind: bytes -> features of the patches [B, N, 512]."""

    def __init__(self, size: Size):
        super().__init__()
        self.pixels = Channels(*CLIP)
        self.vit = VisionTransformer(
            IMAGE, PATCH, embed_dim=size.width, depth=size.depth, num_heads=size.heads, num_classes=0,
            global_pool="", pre_norm=True, act_layer=QuickGELU, norm_layer=partial(LayerNorm, eps=1e-5),
        )  # fmt: skip
        self.proj = nn.Linear(size.width, TEACHER_DIM, bias=False)
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(self.vit.forward_features(self.pixels(images))[:, 1:])


class VqKd(nn.Module):
    """The tokenizer in training: bytes and the teacher's features -> loss. Moves its codebook."""

    def __init__(self, size: Size):
        super().__init__()
        self.encoder = Encoder(size)
        self.codebook = Codebook()
        # The decoder's "patches" are the codes themselves: a 1x1 projection, C -> D.
        self.decoder = Trunk(size, DECODER_DEPTH, patches=PatchEmbed(GRID, 1, CODE_DIM, size.width))
        self.fc_norm = norm_layer(size.width)
        self.task = task_layer(size.width, TEACHER_DIM)

    def forward(self, images: Tensor, target: Tensor) -> Tensor:
        z = self.encoder(images)
        ids = self.codebook.nearest(z.detach())
        chosen = self.codebook.codes[ids]
        self.codebook.update(z.detach(), ids)
        commitment = F.mse_loss(z, chosen)
        through = z + (chosen - z).detach()
        grid = through.view(len(images), GRID, GRID, CODE_DIM).permute(0, 3, 1, 2)
        features = self.task(self.fc_norm(self.decoder(grid)[:, 1:]))
        return commitment + 1 - F.cosine_similarity(features.float(), target.float(), dim=-1).mean()


class Tokenizer(nn.Module):
    """The frozen tokenizer: bytes -> ids of the patches [B * N]."""

    def __init__(self, size: Size):
        super().__init__()
        self.encoder = Encoder(size)
        self.codebook = Codebook()
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        return self.codebook.nearest(self.encoder(images))


class MimModel(nn.Module):
    """Masked image modelling with patch aggregation: bytes, mask, ids of the masked patches -> loss."""

    def __init__(self, size: Size):
        super().__init__()
        self.early = size.early
        self.pixels = Channels(*IMAGENET)
        self.trunk = Trunk(size, size.depth, layer_scale=size.layer_scale, bias="shared")
        self.mask_token = nn.Parameter(torch.randn(1, 1, size.width) * 0.02)
        self.head = nn.ModuleList(make_block(size, size.layer_scale) for _ in range(HEAD_DEPTH))
        self.norm = norm_layer(size.width)
        self.lm_head = nn.Linear(size.width, CODES)
        init_weights(self.lm_head, nn.ModuleList())

    def forward(self, images: Tensor, mask: Tensor, rows: Tensor, ids: Tensor) -> Tensor:
        """mask [B, N]; rows [B * M]: the places of its ones in [B * N]; ids [B * M]."""
        x, bias = self.trunk.embed(self.pixels(images), mask, self.mask_token), self.trunk.bias()
        early = x
        for number, block in enumerate(self.trunk.blocks, 1):
            x = block(x, bias)
            if number == self.early:
                early = x
        aggregated = torch.cat((x[:, :1], early[:, 1:]), 1)
        for block in self.head:
            aggregated = block(aggregated, bias)
        return self.branch(x, rows, ids) + self.branch(aggregated, rows, ids)

    def branch(self, x: Tensor, rows: Tensor, ids: Tensor) -> Tensor:
        """Norm of all tokens, then logits of the masked ones, as in the official code."""
        masked = self.norm(x)[:, 1:].flatten(0, 1)[rows]
        return F.cross_entropy(self.lm_head(masked).float(), ids)


class Classifier(nn.Module):
    """A fine-tuned model with mean pooling and a bias table in each block: bytes -> logits [B, 1000]."""

    def __init__(self, size: Size):
        super().__init__()
        self.pixels = Channels(*IMAGENET)
        self.trunk = Trunk(size, size.depth, layer_scale=size.layer_scale, bias="per_block")
        self.fc_norm = norm_layer(size.width)
        self.head = nn.Linear(size.width, CLASSES)
        init_weights(self.head, nn.ModuleList())
        with torch.no_grad():
            self.head.weight.mul_(0.001)

    def forward(self, images: Tensor) -> Tensor:
        dtype = self.head.weight.dtype  # bf16 where the whole model was converted
        x = self.trunk(self.pixels(images).to(dtype))
        return self.head(self.fc_norm(x[:, 1:].mean(1)))


class ClassifierLoss(nn.Module):
    """Fine-tuning: bytes and soft targets [B, 1000] -> loss."""

    def __init__(self, size: Size):
        super().__init__()
        self.model = Classifier(size)

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self.model(images).float(), targets)
