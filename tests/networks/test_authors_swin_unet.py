"""Swin-Unet against the size of the authors' network and against its arithmetic written out, window by window."""

from __future__ import annotations

import pytest
import torch
from golden_support import names, needs_golden, read
from scripts.networks import authors
from scripts.networks.authors.swin_unet import OFFICIAL
from torch import Tensor
from torch.nn import functional as F

(CLASS,) = OFFICIAL
TINY = {"img_size": 64, "num_classes": 3, "embed_dim": 8, "depths": [2, 2, 1, 2], "num_heads": [2, 2, 4, 4]}
TINY |= {"window_size": 4, "drop_path_rate": 0.0}


class Weights(dict):
    """Weights by the authors' keys, made up when first asked for."""

    def __call__(self, key: str, *shape: int) -> Tensor:
        if key not in self:
            torch.manual_seed(len(self))
            self[key] = torch.randn(shape) / max(shape[-1], 4) ** 0.5
        return self[key]


def linear(w: Weights, key: str, x: Tensor, width: int, bias: bool = True) -> Tensor:
    y = x @ w(f"{key}.weight", width, x.shape[-1]).T
    return y + w(f"{key}.bias", width) if bias else y


def norm(w: Weights, key: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], 1 + w(f"{key}.weight", x.shape[-1]), w(f"{key}.bias", x.shape[-1]))


def attention(w: Weights, key: str, x: Tensor, heads: int, mask: Tensor | float, a: dict) -> Tensor:
    """Attention of one window `(B, side, side, C)`, head by head."""
    side, width = x.shape[1], x.shape[-1]
    d = width // heads
    q, k, v = linear(w, f"{key}.qkv", x.flatten(1, 2), 3 * width, a.get("qkv_bias", True)).chunk(3, dim=-1)
    table = w(f"{key}.relative_position_bias_table", (2 * side - 1) ** 2, heads)
    places = [(i, j) for i in range(side) for j in range(side)]
    rows = [[(p[0] - q[0] + side - 1) * (2 * side - 1) + p[1] - q[1] + side - 1 for q in places] for p in places]
    w[f"{key}.relative_position_index"] = torch.tensor(rows)
    answers = []
    for head in range(heads):
        part = slice(head * d, (head + 1) * d)
        scores = q[..., part] @ k[..., part].transpose(1, 2) * (a.get("qk_scale") or d**-0.5)
        scores = scores + table[torch.tensor(rows), head] + mask
        answers.append(scores.softmax(dim=-1) @ v[..., part])
    return linear(w, f"{key}.proj", torch.cat(answers, dim=-1), width).unflatten(1, (side, side))


def block(w: Weights, key: str, x: Tensor, heads: int, shifted: bool, a: dict) -> Tensor:
    size = x.shape[1]
    side = min(a["window_size"], size)
    shift = side // 2 if shifted and side < size else 0
    windows = [(i, j) for i in range(0, size, side) for j in range(0, size, side)]
    y = norm(w, f"{key}.norm1", x).roll((-shift, -shift), (1, 2))
    out = torch.zeros_like(y)
    for n, (i, j) in enumerate(windows):
        place = (slice(None), slice(i, i + side), slice(j, j + side))
        mask = w(f"{key}.attn_mask", len(windows), side**2, side**2)[n] if shift else 0.0  # any: the file's counts
        out[place] = attention(w, f"{key}.attn", y[place], heads, mask, a)
    x = x + out.roll((shift, shift), (1, 2))
    width = x.shape[-1]
    hidden = linear(w, f"{key}.mlp.fc1", norm(w, f"{key}.norm2", x), int(width * a.get("mlp_ratio", 4.0)))
    return x + linear(w, f"{key}.mlp.fc2", F.gelu(hidden), width)


def level(w: Weights, key: str, x: Tensor, stage: int, a: dict) -> Tensor:
    for i in range(a["depths"][stage]):
        x = block(w, f"{key}.blocks.{i}", x, a["num_heads"][stage], i % 2 == 1, a)
    return x


def expand(w: Weights, key: str, x: Tensor, factor: int, width: int) -> Tensor:
    y = linear(w, f"{key}.expand", x, factor**2 * width, bias=False)
    out = y.new_zeros(y.shape[0], y.shape[1] * factor, y.shape[2] * factor, width)
    for i in range(factor):
        for j in range(factor):
            out[:, i::factor, j::factor] = y.split(width, dim=-1)[i * factor + j]
    return norm(w, f"{key}.norm", out)


def reference(w: Weights, image: Tensor, a: dict) -> Tensor:
    """Logits of the authors' network, from their arguments and weights."""
    image = image.repeat(1, 3, 1, 1) if image.shape[1] == 1 else image
    c, net = a["embed_dim"], "swin_unet"
    kernel = w(f"{net}.patch_embed.proj.weight", c, image.shape[1], 4, 4)
    x = F.conv2d(image, kernel, w(f"{net}.patch_embed.proj.bias", c), stride=4).permute(0, 2, 3, 1)
    if a.get("patch_norm", True):
        x = norm(w, f"{net}.patch_embed.norm", x)
    if a.get("ape"):
        x = x + w(f"{net}.absolute_pos_embed", 1, x.shape[1] * x.shape[2], c).view(1, *x.shape[1:])
    skips = []
    for i in range(4):
        skips.append(x)
        x = level(w, f"{net}.layers.{i}", x, i, a)
        if i < 3:
            corners = [x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]]
            x = norm(w, f"{net}.layers.{i}.downsample.norm", torch.cat(corners, dim=-1))
            x = linear(w, f"{net}.layers.{i}.downsample.reduction", x, c * 2 ** (i + 1), bias=False)
    x = norm(w, f"{net}.norm", x)
    x = expand(w, f"{net}.layers_up.0", x, 2, 4 * c)
    for i in (1, 2, 3):
        width = c * 2 ** (3 - i)
        x = linear(w, f"{net}.concat_back_dim.{i}", torch.cat((x, skips[3 - i]), dim=-1), width)
        x = level(w, f"{net}.layers_up.{i}", x, 3 - i, a)
        if i < 3:
            x = expand(w, f"{net}.layers_up.{i}.upsample", x, 2, width // 2)
    x = expand(w, f"{net}.up", norm(w, f"{net}.norm_up", x), 4, c)
    return F.conv2d(x.permute(0, 3, 1, 2), w(f"{net}.output.weight", a["num_classes"], c, 1, 1))


@pytest.mark.parametrize(
    ("changes", "channels"),
    [
        ({}, 1),
        ({"window_size": 2, "mlp_ratio": 2.0, "qkv_bias": False, "qk_scale": 0.2, "num_classes": 2}, 3),
        ({"ape": True, "patch_norm": False, "in_chans": 2, "depths": [1, 3, 2, 1], "use_checkpoint": True}, 2),
    ],
)
def test_computes_what_the_authors_do(changes, channels):
    arguments, weights = TINY | changes, Weights()
    image = torch.randn(2, channels, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = reference(weights, image, arguments)
        weights.update({key: 1 + value for key, value in weights.items() if "norm" in key and key.endswith("weight")})
        network = authors.build(CLASS, **arguments).eval()
        ignored = authors.load(network, weights, CLASS)
        (logits,) = network.decoder(network.encode(image))
    assert set(ignored) == {key for key in weights if key.endswith("relative_position_index")}
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@needs_golden
@pytest.mark.parametrize("name", names("swinunet_*"))
def test_takes_every_key_of_the_paper(name):
    meta = read(name)
    integers = {key: shape for key, shape, kind in meta["state_dict"] if kind == "int64"}
    assert all(key.endswith("relative_position_index") for key in integers)
    with torch.device("meta"):
        network = authors.build(meta["official_class"], **meta["config"])
        weights = {key: torch.empty(shape) for key, shape, _ in meta["state_dict"] if key not in integers}
    assert authors.load(network, weights, meta["official_class"]) == {}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"patch_size": 2}, "patch_size is 2; only 4 is supported"),
        ({"depths": [2, 2]}, r"depths is \[2, 2\]; only 4 numbers"),
        ({"num_heads": [2]}, r"num_heads is \[2\]; only 4 numbers"),
        ({"in_chans": 1}, "in_chans is 1; write 3"),
        ({"img_size": [64, 64]}, r"img_size is \[64, 64\]; only one number"),
        ({"img_size": 96}, "img_size is .* not divisible into windows of 4"),
        ({"attn_drop_rate": 0.1}, "has no argument attn_drop_rate"),
    ],
)
def test_refuses_argument(changes, match):
    with pytest.raises(ValueError, match=match):
        authors.build(CLASS, **TINY | changes)


def test_asks_for_the_classes():
    with pytest.raises(TypeError, match="needs the argument num_classes"):
        authors.build(CLASS)


def test_refuses_weights_of_another_network():
    network = authors.build(CLASS, **TINY)
    official = {"swin_unet.layers.0.blocks.0.attn.relative_position_index": torch.zeros(16, 16, dtype=torch.int64)}
    with pytest.raises(ValueError, match="not the weights"):
        authors.load(network, official, CLASS)
    state, ignored = authors.swin_unet.translate(network, official, CLASS)
    assert (len(state), ignored) == (1, {})
