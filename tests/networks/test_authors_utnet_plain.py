"""UTNet with any option of its authors' class, against their arithmetic computed straight from their weights."""

from __future__ import annotations

import pytest
import torch
from golden_support import loaded, make_input, needs_golden, official_weights, read
from scripts.networks import authors
from scripts.networks.authors.keys import TABLE
from scripts.networks.authors.utnet import OFFICIAL
from torch import Tensor
from torch.nn import functional as F

FULL, ENCODER_ONLY = OFFICIAL
SMALL = {"in_chan": 1, "base_chan": 4, "num_classes": 3, "reduce_size": 2}


def random_weights(network) -> dict[str, Tensor]:
    """Random weights of a network of ours under the authors' keys."""
    attended = {level for level in range(5) if any("attn" in key for key in network.encoder.stages[level].state_dict())}
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for key, value in network.state_dict().items():
        half, _, level, rest = key.split(".", 3)
        level = int(level)
        if key.startswith("encoder"):
            part = "conv" if level not in attended else "blocks"
            name = f"down{level}.{part}.{rest}" if level else f"inc.{rest}"
        elif key.startswith("decoder.ups"):
            convolutional = "attn_decoder" not in dict(network.decoder.ups[level].named_children())
            name = f"up{4 - level}." + (rest.replace("blocks.", "conv.", 1) if convolutional else rest)
        else:
            name = f"out{4 - level}.{rest}" if level else f"outc.{rest}"
        noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        if "running_var" in name or (value.ndim == 1 and name.endswith("weight")):
            noise = noise.abs() + 0.5
        scale = noise[0].numel() ** -0.5 if value.ndim > 1 and "table" not in name else 1
        weights[name.replace(".position.table", TABLE)] = noise * scale if value.is_floating_point() else value
        assert half in ("encoder", "decoder")
    return weights


class Plain:
    """The authors' network in eval mode, from their weights and arguments; loops where the network has tables."""

    def __init__(self, weights: dict[str, Tensor], arguments: dict[str, object]) -> None:
        self.weights, self.a = weights, arguments

    def norm(self, name: str, x: Tensor) -> Tensor:
        w = self.weights
        scale = w[f"{name}.weight"] / (w[f"{name}.running_var"] + 1e-5).sqrt()
        shift = w[f"{name}.bias"] - w[f"{name}.running_mean"] * scale
        return x * scale[:, None, None] + shift[:, None, None]

    def conv(self, name: str, x: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
        kernel = self.weights[f"{name}.weight"]
        return F.conv2d(x, kernel, self.weights.get(f"{name}.bias"), stride, kernel.shape[-1] // 2, groups=groups)

    def residual(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        y = self.conv(f"{name}.conv1", self.norm(f"{name}.bn1", x).relu(), stride)
        y = self.conv(f"{name}.conv2", self.norm(f"{name}.bn2", y).relu())
        if f"{name}.shortcut.2.weight" in self.weights:
            x = self.conv(f"{name}.shortcut.2", self.norm(f"{name}.shortcut.0", x).relu(), stride)
        return y + x

    def separable(self, name: str, x: Tensor) -> Tensor:
        return self.conv(f"{name}.pointwise", self.conv(f"{name}.depthwise", x, groups=x.shape[1]))

    def attention(self, name: str, q: Tensor, kv: Tensor, heads: int) -> Tensor:
        r = self.a["reduce_size"]
        reduce = F.adaptive_max_pool2d if self.a.get("projection") == "maxpool" else resize
        k, v = reduce(kv, (r, r)).chunk(2, dim=1)
        (batch, inner, height, width), out = q.shape, torch.zeros_like(q)
        d = inner // heads
        for head in range(heads):  # channel c belongs to head c % heads
            of_head = slice(head, None, heads)
            scores = q[:, of_head].flatten(2).transpose(1, 2) @ k[:, of_head].flatten(2)  # (B, H * W, r * r)
            if self.a.get("rel_pos", True):
                table = self.weights[name + TABLE][:, head]
                for pixel in range(height * width):
                    row, column = pixel // width // (height // r), pixel % width // (width // r)
                    for key in range(r * r):
                        offset = (row - key // r + r - 1) * (2 * r - 1) + column - key % r + r - 1
                        scores[:, pixel, key] += table[offset]
            answer = (scores * d**-0.5).softmax(-1) @ v[:, of_head].flatten(2).transpose(1, 2)
            out[:, of_head] = answer.transpose(1, 2).reshape(batch, d, height, width)
        return self.separable(f"{name}.to_out", out)

    def pointwise(self, name: str, x: Tensor) -> Tensor:
        return x + self.conv(f"{name}.mlp", self.norm(f"{name}.bn2", x).relu())

    def attention_block(self, name: str, x: Tensor, heads: int) -> Tensor:
        qkv = self.separable(f"{name}.attn.to_qkv", self.norm(f"{name}.bn1", x))
        inner = qkv.shape[1] // 3
        return self.pointwise(name, x + self.attention(f"{name}.attn", qkv[:, :inner], qkv[:, inner:], heads))

    def up(self, name: str, coarse: Tensor, skip: Tensor, heads: int) -> Tensor:
        if f"{name}.conv_ch.weight" in self.weights:
            x = self.conv(f"{name}.conv_ch", resize(coarse, skip.shape[2:]))
            x = self.residual(f"{name}.conv.0", torch.cat((skip, x), dim=1))
            return self.residual(f"{name}.conv.1", x)
        block = f"{name}.attn_decoder"
        q = self.separable(f"{block}.attn.to_q", self.norm(f"{block}.bn_h", skip))
        kv = self.separable(f"{block}.attn.to_kv", self.norm(f"{block}.bn_l", coarse))
        x = resize(self.conv(f"{block}.conv_ch", coarse), skip.shape[2:])
        x = self.pointwise(block, x + self.attention(f"{block}.attn", q, kv, heads))
        return self.residual(f"{name}.blocks.0", torch.cat((x, skip), dim=1))

    def down(self, level: int, x: Tensor) -> Tensor:
        attends = str(level) in self.a.get("block_list", "234")
        name = "inc" if level == 0 else f"down{level}.{'blocks' if attends else 'conv'}"
        pools = level > 0 and (self.a.get("maxpool", True) or not attends)
        x = F.max_pool2d(x, 2) if pools else x
        x = self.residual(f"{name}.{int(pools)}", x, stride=1 if pools or level == 0 else 2)
        if not attends:
            return self.residual(f"{name}.{int(pools) + 1}", x)
        for block in range(self.a.get("num_blocks", (1, 2, 4))[level - 5] if level else 1):
            x = self.attention_block(f"{name}.{int(pools) + 1 + block}", x, self.heads(level))
        return x

    def heads(self, level: int) -> int:
        values = self.a.get("num_heads", (2, 4, 8))
        return values[level - 5] if len(values) >= 5 - level else 1

    def __call__(self, x: Tensor) -> list[Tensor]:
        features = [self.down(0, x)]
        for level in range(1, 5):
            features.append(self.down(level, features[-1]))
        y, logits = features[4], []
        for level in (3, 2, 1, 0):
            y = self.up(f"up{4 - level}", y, features[level], self.heads(level + 1))
            if level == 0 or self.a.get("aux_loss"):
                head = f"out{4 - level}" if level else "outc"
                logits.insert(0, resize(self.conv(head, y), x.shape[2:]))
        return logits


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)


@pytest.mark.parametrize("official_class", OFFICIAL, ids=["full", "encoder only"])
@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({"maxpool": False}, (32, 32)),
        ({"maxpool": False, "block_list": "13", "num_blocks": [2, 1, 1, 1], "num_heads": [1, 2, 3, 2]}, (32, 16)),
        ({"maxpool": False, "block_list": "01234", "num_blocks": [1] * 4, "num_heads": [1, 2, 4, 3, 5]}, (32, 32)),
        ({"projection": "maxpool", "aux_loss": True}, (32, 64)),
        ({"rel_pos": False, "reduce_size": 3, "in_chan": 2, "num_heads": [3, 5, 7]}, (32, 16)),
        ({"rel_pos": False, "block_list": "1234", "num_blocks": [1] * 4, "num_heads": [2] * 4}, (40, 24)),
        ({"rel_pos": False, "block_list": "01234", "num_blocks": [1] * 4, "num_heads": [2] * 5}, (27, 18)),
        ({"block_list": "0123", "reduce_size": 3, "num_blocks": [1] * 4, "num_heads": [1] * 5}, (24, 24)),
        ({"block_list": "", "bottleneck": True, "aux_loss": True}, (16, 32)),
        ({"reduce_size": 1, "block_list": "4", "num_classes": 1}, (16, 16)),
    ],
    ids=str,
)
def test_any_option_of_the_authors_class(official_class, changes, size):
    arguments = SMALL | changes
    network = authors.build(official_class, **arguments).double().eval()
    weights = random_weights(network)
    authors.load(network, weights, official_class)
    x = torch.randn(2, arguments["in_chan"], *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        expected = Plain(weights, arguments)(x)
        for got, wanted in zip(network.decoder(network.encode(x)), expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=0, atol=1e-8 * wanted.abs().max().item())


@needs_golden
def test_the_unstable_fixture_without_rounding():
    """Its stored numbers hang on rounding (test_authors_utnet.py); in double precision the arithmetic can be seen."""
    meta = read("utnet_b8_blocks124_heads248")
    weights = {key: value.double() for key, value in official_weights(meta).items()}
    x = make_input(meta["input_shape"]).double()
    with torch.no_grad():
        network = loaded(meta).double()
        (got,), (wanted,) = network.decoder(network.encode(x)), Plain(weights, meta["config"])(x)
    assert (got - wanted).abs().max() < 1e-9 * wanted.abs().max()
