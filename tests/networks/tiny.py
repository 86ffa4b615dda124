"""The smallest network of each kind in `configs`, for tests of all of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from support import CONFIGS

NETWORKS = sorted(path.stem.removeprefix("network_") for path in CONFIGS.glob("network_*.yaml"))
FUSIONS = ["none", "add", "concat", "cross_attention"]
GRID = ["swin_unetr", "mednext_s", "swin_next_small"]  # the paper's, with each of the last three fusions
CLASSES = 3


@dataclass(frozen=True, kw_only=True)
class Tiny:
    """The smallest network of a YAML's kind.

    Args:
        size: of the image.
        changes: what is overridden; ids below network_def, or with a leading `/` anywhere.
        wrong: size that is refused; None: one voxel less along the last axis.
        match: what the refusal says.
        unused: parameters that are built but take no part, and must be frozen.
        silent: parameters whose gradient vanishes by construction.
        planar: further changes that make a 3D network one for planes; None: there is none, or it is one.
    """

    size: tuple[int, ...]
    changes: dict[str, object] = field(default_factory=dict)
    wrong: tuple[int, ...] | None = None
    match: str = "divisible by"
    unused: str = "(?!)"
    silent: str = "(?!)"
    planar: dict[str, object] | None = field(default_factory=dict)


TINY = {
    "dynunet": Tiny(
        size=(16, 8, 8),
        changes={
            "/bottleneck_channels": 16,
            "encoder::network::kernel_size": [3, 3, 3],
            "encoder::network::strides": [1, 2, 2],
            "encoder::network::upsample_kernel_size": [2, 2],
            "encoder::network::filters": [4, 8, 16],
            "encoder::network::deep_supr_num": 1,
        },
    ),
    "nnformer": Tiny(
        size=(16, 8, 8),
        changes={
            "/strides": [[2, 2, 1], [4, 4, 2], [8, 8, 4]],
            "/bottleneck_channels": 16,
            "encoder::channels": [4, 8, 16],
            "encoder::depths": [2, 2, 1],
            "encoder::num_heads": [2, 2, 2],
            "encoder::window_size": [2, 2, 2],
            "encoder::drop_path_rate": 0.0,
            "decoder::channels": [4, 8, 16],
            "decoder::depths": [2, 2],
            "decoder::num_heads": [2, 2],
            "decoder::window_size": [2, 2],
            "decoder::drop_path_rate": 0.0,
        },
        planar={"/strides": [[2, 1], [4, 2], [8, 4]]},
    ),
    "res_unet": Tiny(
        size=(8, 8, 4),
        changes={
            "/bottleneck_channels": 8,
            "encoder::channels": [4, 8, 8],
            "encoder::blocks": [1, 1, 2],
            "decoder::channels": [4, 8, 8],
        },
    ),
    "resnet50_unet": Tiny(
        size=(32, 32),
        changes={
            "/bottleneck_channels": 512,
            "encoder::feature_size": 32,
            "encoder::block_units": [1, 1, 1],
            "decoder::channels": [32, 128, 256, 512],
        },
    ),
    "resnet50_utnet": Tiny(
        size=(32, 32),
        changes={
            "/bottleneck_channels": 512,
            "encoder::feature_size": 32,
            "encoder::block_units": [1, 1, 1],
            "encoder::attention_levels": [1, 3],
            "encoder::num_heads": 4,
            "encoder::reduce_size": 2,
            "decoder::channels": [32, 128, 256, 512],
        },
    ),
    "segresnet": Tiny(
        size=(8, 8, 8),
        changes={
            "/bottleneck_channels": 16,
            "encoder::network::init_filters": 8,
            "encoder::network::blocks_down": [1, 1],
            "encoder::network::blocks_up": [1],
        },
    ),
    "swin_next_small": Tiny(
        size=(16, 8, 8),
        changes={
            "/bottleneck_channels": 32,
            "encoder::feature_size": 8,
            "encoder::depths": [1, 1],
            "encoder::num_heads": [2, 2],
            "encoder::window_size": 2,
            "encoder::stem_channels": 4,
            "decoder::channels": [4, 8, 16, 32],
            "decoder::blocks": [0, 1, 1, 1],
        },
    ),
    "swin_unet": Tiny(
        size=(16, 8),
        changes={
            "/patch_size": [16, 8],
            "/bottleneck_channels": 16,
            "encoder::feature_size": 8,
            "encoder::patch_size": 2,
            "encoder::depths": [2, 1],
            "encoder::num_heads": [2, 2],
            "encoder::window_size": 2,
            "decoder::channels": [8, 16],
            "decoder::strides": [2, 4],
            "decoder::depths": [2, 1],
            "decoder::num_heads": [2, 2],
            "decoder::window_size": 2,
        },
    ),
    "swin_unetr": Tiny(
        size=(16, 8, 8),
        changes={
            "/bottleneck_channels": 32,
            "encoder::feature_size": 8,
            "encoder::depths": [2, 1],
            "encoder::num_heads": [2, 2],
            "encoder::window_size": 2,
            "decoder::feature_size": 8,
            "decoder::channels": ["@in_channels", 8, 16, 32],
            "decoder::blocks": [True, True, False, True],
        },
    ),
    "transbts": Tiny(
        size=(8, 4, 4),
        changes={
            "/patch_size": [8, 4, 4],
            "/bottleneck_channels": 16,
            "encoder::channels": [8, 8],
            "encoder::blocks": [1, 1],
            "encoder::hidden_size": 16,
            "encoder::mlp_dim": 16,
            "encoder::num_layers": 1,
            "encoder::num_heads": 2,
            "decoder::channels": [8, 16],
            "decoder::hidden_channels": 8,
        },
    ),
    "transunet": Tiny(
        size=(32, 32),
        changes={
            "/patch_size": [32, 32],
            "/bottleneck_channels": 16,
            "encoder::backbone::feature_size": 32,
            "encoder::backbone::block_units": [1, 1, 1],
            "encoder::hidden_size": 16,
            "encoder::mlp_dim": 16,
            "encoder::num_layers": 1,
            "encoder::num_heads": 2,
            "decoder::channels": [32, 128, 256, 16],
            "decoder::widths": [4, 4, 4, 8, 8],
        },
        silent=r"\.key\.bias",
    ),
    "unet": Tiny(
        size=(8, 8, 8),
        changes={
            "/bottleneck_channels": 16,
            "encoder::network::channels": [4, 8, 16],
            "encoder::network::strides": [2, 2],
        },
    ),
    "unetr": Tiny(
        size=(16, 8, 8),
        changes={
            "/patch_size": [16, 8, 8],
            "/bottleneck_channels": 16,
            "encoder::feature_size": 4,
            "encoder::hidden_size": 16,
            "encoder::mlp_dim": 16,
            "encoder::num_heads": 2,
            "encoder::num_layers": 3,
            "encoder::taps": [0, 1],
            "decoder::feature_size": 4,
            "decoder::channels": ["@in_channels", 8, 16, 16],
            "decoder::blocks": [True, False, False, False],
        },
        unused=r"norm_cross_attn\.",
    ),
    "unetr_pp": Tiny(
        size=(8, 16, 16),
        changes={
            "/patch_size": [8, 16, 16],
            "/strides": [1, [1, 2, 2], [2, 4, 4], [4, 8, 8]],
            "/bottleneck_channels": 16,
            "encoder::channels": [4, 8, 16, 16],
            "encoder::depths": [1, 2, 1],
            "encoder::num_heads": 2,
            "encoder::projected": [8, 8, 4],
            "decoder::channels": [4, 8, 16, 16],
            "decoder::depth": 1,
            "decoder::num_heads": 2,
            "decoder::projected": 8,
        },
        planar=None,
    ),
    "utnet": Tiny(
        size=(32, 32),
        changes={
            "/bottleneck_channels": 128,
            "/reduce_size": 2,
            "encoder::feature_size": 8,  # with 4, no coarser map gets through the last rectifiers
            "decoder::channels": [8, 16, 32, 64, 128],
        },
    ),
    "ux_net": Tiny(
        size=(8, 8, 4),
        changes={
            "/bottleneck_channels": 8,
            "encoder::channels": [4, 8],
            "encoder::depths": [1, 1],
            "encoder::kernel_size": 3,
            "decoder::channels": ["@in_channels", 4, 8],
            "decoder::feature_size": 4,
            "decoder::hidden_size": 8,
        },
    ),
}
TINY["swin_next_tiny"] = TINY["swin_next_small"]
TINY |= dict.fromkeys(
    ["mednext_s", "mednext_b", "mednext_m", "mednext_l"],
    Tiny(
        size=(8, 4, 4),
        changes={
            "/bottleneck_channels": 16,
            "encoder::channels": [4, 8, 16],
            "encoder::expansion_ratio": 2,
            "encoder::blocks": 1,
            "decoder::channels": [4, 8, 16],
            "decoder::expansion_ratio": 2,
            "decoder::blocks": 1,
        },
    ),
)
