"""The universal model in PyTorch, as the other side of tests/bench/compute.

Written from the specification (sections 6-11) for this comparison, as one would write it to be fast: normalisation
and ReLU in place, only the classes asked for, head layers of all classes as two batched products, fused AdamW.

Reads a folder that the benchmark wrote (case.json, model.safetensors, data.safetensors), then obeys lines on standard
input: `go` runs the case once and answers with milliseconds and a number to compare, `peak` with the largest resident
memory since the start of the first run, above what was resident then, in MiB; on a card what is set aside there.
"""

import json
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from torch_swin import Block, SwinUNETR


class Unit(nn.Module):
    def __init__(self, ins, outs):
        super().__init__()
        self.conv1 = nn.Conv3d(ins, outs, 3, padding=1)
        self.bn1 = nn.BatchNorm3d(outs, track_running_stats=False)

    def forward(self, x):
        return F.relu_(self.bn1(self.conv1(x)))


class Down(nn.Module):
    def __init__(self, ins, middle, outs):
        super().__init__()
        self.ops = nn.Sequential(Unit(ins, middle), Unit(middle, outs))

    def forward(self, x):
        return self.ops(x)


class Up(nn.Module):
    def __init__(self, ins, outs):
        super().__init__()
        self.up_conv = nn.ConvTranspose3d(ins, ins, 2, stride=2)
        self.ops = nn.Sequential(Unit(ins + outs, outs), Unit(outs, outs))

    def forward(self, x, skip):
        return self.ops(torch.cat([self.up_conv(x), skip], 1))


class UNet(nn.Module):
    def __init__(self, w):
        super().__init__()
        self.down_tr64 = Down(1, w, 2 * w)
        self.down_tr128 = Down(2 * w, 2 * w, 4 * w)
        self.down_tr256 = Down(4 * w, 4 * w, 8 * w)
        self.down_tr512 = Down(8 * w, 8 * w, 16 * w)
        self.up_tr256 = Up(16 * w, 8 * w)
        self.up_tr128 = Up(8 * w, 4 * w)
        self.up_tr64 = Up(4 * w, 2 * w)

    def forward(self, x):
        skip1 = self.down_tr64(x)
        skip2 = self.down_tr128(F.max_pool3d(skip1, 2))
        skip3 = self.down_tr256(F.max_pool3d(skip2, 2))
        bottleneck = self.down_tr512(F.max_pool3d(skip3, 2))
        x = self.up_tr256(bottleneck, skip3)
        x = self.up_tr128(x, skip2)
        return bottleneck, self.up_tr64(x, skip1)


def group_norm(channels):
    """Of 16 groups, or where these do not divide the channels, of the largest power of two that does."""
    return nn.GroupNorm(min(16, channels & -channels), channels)


class UniversalModel(nn.Module):
    def __init__(self, backbone, width, table):
        super().__init__()
        build, decoder = {"unet": (UNet, 2 * width), "swin_unetr": (SwinUNETR, width)}[backbone]
        self.backbone = build(width)
        self.precls_conv = nn.Sequential(
            group_norm(decoder), nn.ReLU(inplace=True), nn.Conv3d(decoder, 8, 1)
        )
        self.GAP = nn.Sequential(
            group_norm(16 * width),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool3d(1),
            nn.Conv3d(16 * width, 256, 1),
        )
        self.controller = nn.Conv3d(512, 153, 1)
        self.text_to_vision = nn.Linear(table.shape[1], 256)
        self.register_buffer("table", table, persistent=False)

    def forward(self, x, channels):
        bottleneck, decoder = self.backbone(x)
        voxels = self.precls_conv(decoder)
        n, k = len(x), len(channels)
        feature = self.GAP(bottleneck).reshape(n, 1, 256).expand(n, k, 256)
        text = F.relu(self.text_to_vision(self.table[channels])).expand(n, k, 256)
        joined = torch.cat([feature, text], 2).reshape(n * k, 512, 1, 1, 1)
        w1, w2, w3, b1, b2, b3 = (
            self.controller(joined).reshape(n * k, 153).split([64, 64, 8, 8, 8, 1], 1)
        )
        flat = voxels.reshape(n, 8, -1)
        hidden = torch.baddbmm(b1.reshape(n, k * 8, 1), w1.reshape(n, k * 8, 8), flat)
        hidden = F.relu_(hidden).reshape(n * k, 8, -1)
        hidden = F.relu_(torch.baddbmm(b2.reshape(n * k, 8, 1), w2.reshape(n * k, 8, 8), hidden))
        logits = torch.baddbmm(b3.reshape(n * k, 1, 1), w3.reshape(n * k, 1, 8), hidden)
        return logits.reshape(n, k, *x.shape[2:])


def loss_of(logits, target):
    """Mean over (sample, class) pairs of cross-entropy and of Dice loss with 1 in the denominator only."""
    dims = (2, 3, 4)
    bce = F.binary_cross_entropy_with_logits(logits, target)
    p = torch.sigmoid(logits)
    dice = 1 - 2 * (p * target).sum(dims) / (p.sum(dims) + target.sum(dims) + 1)
    return bce + dice.mean()


def stepper(case, model, data, layout):
    target = data["target"]
    image = data["image"].to(memory_format=layout)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=case["learning_rate"], weight_decay=1e-5, fused=True
    )
    channels = torch.tensor(case["channels"], device=image.device)

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(model(image, channels), target)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def inferrer(case, model, data, layout):
    volume, importance = data["image"], data["importance"]
    channels = torch.tensor(case["channels"], device=volume.device)
    roi = importance.shape

    @torch.inference_mode()
    def infer():
        blended = torch.zeros(len(channels), *volume.shape[2:], device=volume.device)
        weights = torch.zeros(volume.shape[2:], device=volume.device)
        for x, y, z in case["starts"]:
            at = (slice(x, x + roi[0]), slice(y, y + roi[1]), slice(z, z + roi[2]))
            window = volume[(slice(None), slice(None), *at)].contiguous(memory_format=layout)
            blended[(slice(None), *at)].addcmul_(model(window, channels)[0], importance)
            weights[at] += importance
        blended /= weights
        return (blended > 0).float().mean().item()

    return infer


def differentiator(case, model, data, _):
    x = data["x"].reshape(1, *case["shape"], case["width"]).requires_grad_()

    def differentiate():
        model.zero_grad(set_to_none=True)
        x.grad = None
        square = model(x).square().mean()
        square.backward()
        return square.item()

    return differentiate


def resident_mb():
    with open("/proc/self/status") as status:
        return {
            line.split(":")[0]: int(line.split()[1]) / 1024
            for line in status
            if line.startswith(("VmHWM", "VmRSS"))
        }


def peak_mb(device, before):
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved() / 2**20
    return resident_mb()["VmHWM"] - before


def main():
    folder, threads, layout = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    device = torch.device(sys.argv[4])
    case = json.loads((folder / "case.json").read_text())
    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)
    torch.set_flush_denormal(True)
    layout = {"default": torch.contiguous_format, "channels-last": torch.channels_last_3d}[layout]
    data = {name: tensor.to(device) for name, tensor in load_file(folder / "data.safetensors").items()}
    if case["kind"] == "block":
        model = Block(case["width"], case["width"] // 16, True)
    else:
        model = UniversalModel(case["backbone"], case["width"], data["table"])
    model.load_state_dict(load_file(folder / "model.safetensors"))
    model = model.to(device)
    # A block has no convolution to lay out.
    model = model if case["kind"] == "block" else model.to(memory_format=layout)
    makers = {"step": stepper, "infer": inferrer, "block": differentiator}
    work = makers[case["kind"]](case, model, data, layout)

    # The peak so far, that of loading, is forgotten.
    Path("/proc/self/clear_refs").write_text("5")
    before = resident_mb()["VmRSS"]
    print(json.dumps({"ready": torch.__version__}), flush=True)
    for line in sys.stdin:
        if line.strip() == "peak":
            print(json.dumps({"peak_mb": peak_mb(device, before)}), flush=True)
            continue
        start = time.perf_counter()
        value = work()
        took = (time.perf_counter() - start) * 1e3
        print(json.dumps({"ms": took, "value": value}), flush=True)


if __name__ == "__main__":
    main()
