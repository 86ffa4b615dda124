"""What the tests of overlays share: small trees of each dataset prepared by its importer, and merged configurations."""

import copy
import json
import shutil
from functools import cache

import import_support as trees
import yaml
from import_support import OPTIONS
from monai.bundle import ConfigParser
from monai.bundle.utils import merge_kv
from scripts import workflows
from scripts.prepare.commands import COMMANDS
from support import CONFIGS, TINY, write_nifti

PROTOCOLS = ("nny", "mednext", "unetr_pp", "utnet")
DATASETS = ("hcc_tace", "btcv", "synapse", "acdc", "amos22", "kits19", "brats21", "mnms", "left_atrium")
TREES = {
    "btcv": lambda root: trees.btcv(root, numbers=(5, 8)),
    "synapse": lambda root: trees.btcv(root, numbers=(5, 8)),
    "acdc": lambda root: trees.acdc(root, patients=(1, 2)),
    "amos22": lambda root: trees.amos22(root, numbers=(1, 4)),
    "kits19": lambda root: trees.kits19(root, numbers=(0, 1)),
    "brats21": lambda root: trees.brats21(root, numbers=(0, 2)),
    "mnms": lambda root: challenge(root),
}
SETTINGS = {
    "num_workers": 0,
    "patch_size": [16, 16, 16],
    "batch_size": 2,
    "crops_per_case": 1,
    "device": "$torch.device('cpu')",
}


def challenge(root):
    """M&Ms with cases of vendors A and B to train on, and of A to D to test on."""
    trees.mnms(root)
    home = root / "OpenDataset"
    table = home / trees.MNMS_TABLE
    rows = {line.split(",")[1]: line for line in table.read_text().splitlines()}
    for part, moves in {"Testing": ("C7Q5P8",), "Validation": ("D2X4Z6",)}.items():
        (home / part).mkdir()
        for code in moves:
            shutil.move(home / "Training" / "Labeled" / code, home / part / code)
    for old, new in {"A0S9V9": "E4A1A1", "B3K1M2": "F5B2B2"}.items():
        folder = home / "Testing" / new
        shutil.copytree(home / "Training" / "Labeled" / old, folder)
        for file in folder.iterdir():
            file.rename(folder / file.name.replace(old, new))
        rows[new] = rows[old].replace(old, new)
    table.write_text("\n".join(rows.values()) + "\n")


def plain(folder, labels, cases=2):
    """A prepared folder for datasets without an importer of files: the cubes of `import_support`."""
    entries = []
    for n in range(cases):
        image, label = trees.volumes(range(1, len(labels)), n)
        for kind, array in (("imagesTr", image), ("labelsTr", label)):
            write_nifti(folder / kind / f"case_{n}.nii.gz", array, trees.AFFINE)
        entries.append({"image": f"imagesTr/case_{n}.nii.gz", "label": f"labelsTr/case_{n}.nii.gz", "fold": n})
    (folder / "dataset.json").write_text(json.dumps({"labels": dict(enumerate(labels)), "training": entries}))


def prepare(name, raw, folder):
    """Prepare a dataset by its own importer where it has one; two folds, for M&Ms those of the challenge."""
    if name not in TREES:
        plain(folder, yaml.safe_load((CONFIGS / f"dataset_{name}.yaml").read_text())["labels"])
        return folder
    TREES[name](raw)
    COMMANDS[name](str(raw), str(folder), folds=2, **({"part": "all"} if name == "mnms" else {}), **OPTIONS)
    return folder


def tiny_network(folder):
    """An overlay with a network of two stages, for slices and volumes of any data."""
    path = folder / "tiny.yaml"
    path.write_text(TINY[TINY.index("bottleneck_channels") : TINY.index("learning_rate")])
    return str(path)


def overlays(dataset, protocol=None):
    """In the order that the docs name: dataset, then protocol."""
    names = ["dataset_acdc", "dataset_acdc_mm"] if dataset == "acdc_mm" else [f"dataset_{dataset}"]
    return names + ([f"protocol_{protocol}"] if protocol else [])


@cache
def loaded(*paths):
    """Files as read, once."""
    return ConfigParser.load_config_files(list(paths))


def parsed(*names, **changes):
    """The training configuration with overlays and changes, as `nny train` merges it."""
    base = [str(CONFIGS / f"{name}.yaml") for name in ("inference", "train")]
    parser = ConfigParser(config=copy.deepcopy(loaded(*base)))
    for path in workflows.overlay_paths(names):
        for key, value in ConfigParser.load_config_file(path).items():
            merge_kv(parser, key, value)
    parser.update(changes)
    return parser
