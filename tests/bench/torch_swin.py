"""The Swin UNETR backbone in PyTorch, for torch_peer.py.

Written from the specification (section 9) for this comparison, quirks included, as one would write it to be fast: scores in
the library's own attention, windows by reshaping, one mask for all blocks of a stage.
"""

import itertools

import torch
from torch import nn
from torch.nn import functional as F

SIDE, SHIFT = 7, 3


def windows_of(x, w):
    """[n, x, y, z, c] to [n * windows, tokens, c]."""
    n, d, h, v, c = x.shape
    x = x.view(n, d // w[0], w[0], h // w[1], w[1], v // w[2], w[2], c)
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, w[0] * w[1] * w[2], c)


def volume_of(x, w, n, d, h, v):
    x = x.view(n, d // w[0], h // w[1], v // w[2], w[0], w[1], w[2], -1)
    return x.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(n, d, h, v, -1)


def mask_of(padded, w, s):
    """0 or -100 for each window and pair of tokens, of bands that rolling brings together."""
    region = torch.zeros(1, *padded, 1)
    cut = lambda w, s: (slice(0, -w), slice(-w, -s), slice(-s, None)) if s else (slice(None),)
    bands = [cut(*axis) for axis in zip(w, s)]
    for index, (x, y, z) in enumerate(itertools.product(*bands)):
        region[:, x, y, z] = index
    region = windows_of(region, w).squeeze(-1)
    return (region.unsqueeze(1) != region.unsqueeze(2)).float() * -100


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * SIDE - 1) ** 3, heads))
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        at = torch.stack(torch.meshgrid(*[torch.arange(SIDE)] * 3, indexing="ij")).flatten(1)
        offset = at[:, :, None] - at[:, None, :] + SIDE - 1
        index = (offset[0] * (2 * SIDE - 1) + offset[1]) * (2 * SIDE - 1) + offset[2]
        self.register_buffer("index", index, persistent=False)

    def forward(self, x, mask):
        b, t, c = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        bias = self.relative_position_bias_table[self.index[:t, :t].reshape(-1)]
        bias = bias.view(t, t, self.heads).permute(2, 0, 1).unsqueeze(0)
        if mask is not None:
            bias = (bias.unsqueeze(0) + mask[None, :, None]).expand(b // len(mask), -1, -1, -1, -1)
            bias = bias.reshape(b, self.heads, t, t)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.proj(y.transpose(1, 2).reshape(b, t, c))


class Mlp(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.linear1 = nn.Linear(width, 4 * width)
        self.linear2 = nn.Linear(4 * width, width)

    def forward(self, x):
        return self.linear2(F.gelu(self.linear1(x)))


class Block(nn.Module):
    def __init__(self, width, heads, shifted):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn, self.mlp, self.shifted = Attention(width, heads), Mlp(width), shifted
        self.mask = None

    def forward(self, x):
        n, *sides, _ = x.shape
        w = [min(SIDE, side) for side in sides]
        s = [SHIFT if self.shifted and side > SIDE else 0 for side in sides]
        padded = [-(-side // a) * a for side, a in zip(sides, w)]
        y = self.norm1(x)
        y = F.pad(y, (0, 0, 0, padded[2] - sides[2], 0, padded[1] - sides[1], 0, padded[0] - sides[0]))
        if any(s):
            y = y.roll([-a for a in s], (1, 2, 3))
            if self.mask is None:
                self.mask = mask_of(padded, w, s).to(x.device)
        y = volume_of(self.attn(windows_of(y, w), self.mask), w, n, *padded)
        if any(s):
            y = y.roll(s, (1, 2, 3))
        x = x + y[:, : sides[0], : sides[1], : sides[2]]
        return x + self.mlp(self.norm2(x))


class Downsample(nn.Module):
    PARITIES = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1)]

    def __init__(self, width):
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(8 * width), nn.Linear(8 * width, 2 * width, bias=False)

    def forward(self, x):
        parts = [x[:, a::2, b::2, c::2] for a, b, c in self.PARITIES]
        return self.reduction(self.norm(torch.cat(parts, -1)))


class Stage(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.blocks = nn.Sequential(Block(width, heads, False), Block(width, heads, True))
        self.downsample = Downsample(width)

    def forward(self, x):
        return self.downsample(self.blocks(x))


class Swin(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv3d(1, width, 2, stride=2)
        for index, heads in enumerate([3, 6, 12, 24]):
            setattr(self, f"layers{index + 1}", nn.Sequential(Stage(width << index, heads)))

    def forward(self, x):
        x = self.patch_embed.proj(x).permute(0, 2, 3, 4, 1)
        hidden = [x]
        for index in range(4):
            x = getattr(self, f"layers{index + 1}")(x)
            hidden.append(x)
        return [F.layer_norm(h, h.shape[-1:]).permute(0, 4, 1, 2, 3).contiguous() for h in hidden]


def conv(ins, outs, side):
    holder = nn.Module()
    holder.conv = nn.Conv3d(ins, outs, side, padding=side // 2, bias=False)
    return holder


class ResidualBlock(nn.Module):
    def __init__(self, ins, outs):
        super().__init__()
        self.conv1, self.conv2 = conv(ins, outs, 3), conv(outs, outs, 3)
        if ins != outs:
            self.conv3 = conv(ins, outs, 1)

    def forward(self, x):
        y = F.leaky_relu_(F.instance_norm(self.conv1.conv(x)), 0.01)
        y = F.instance_norm(self.conv2.conv(y))
        if hasattr(self, "conv3"):
            x = F.instance_norm(self.conv3.conv(x))
        return F.leaky_relu_(y + x, 0.01)


class Encoder(nn.Module):
    def __init__(self, ins, outs):
        super().__init__()
        self.layer = ResidualBlock(ins, outs)

    def forward(self, x):
        return self.layer(x)


class Decoder(nn.Module):
    def __init__(self, ins, outs):
        super().__init__()
        self.transp_conv = nn.Module()
        self.transp_conv.conv = nn.ConvTranspose3d(ins, outs, 2, stride=2, bias=False)
        self.conv_block = ResidualBlock(2 * outs, outs)

    def forward(self, x, skip):
        return self.conv_block(torch.cat([self.transp_conv.conv(x), skip], 1))


class SwinUNETR(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.swinViT = Swin(c)
        self.encoder1, self.encoder2 = Encoder(1, c), Encoder(c, c)
        self.encoder3, self.encoder4 = Encoder(2 * c, 2 * c), Encoder(4 * c, 4 * c)
        self.encoder10 = Encoder(16 * c, 16 * c)
        self.decoder5, self.decoder4 = Decoder(16 * c, 8 * c), Decoder(8 * c, 4 * c)
        self.decoder3, self.decoder2 = Decoder(4 * c, 2 * c), Decoder(2 * c, c)
        self.decoder1 = Decoder(c, c)

    def forward(self, x):
        h0, h1, h2, h3, h4 = self.swinViT(x)
        bottleneck = self.encoder10(h4)
        y = self.decoder5(bottleneck, h3)
        y = self.decoder4(y, self.encoder4(h2))
        y = self.decoder3(y, self.encoder3(h1))
        y = self.decoder2(y, self.encoder2(h0))
        return bottleneck, self.decoder1(y, self.encoder1(x))
