"""What a configuration may say: everything the repository says, and none of an attacker's ways to run code."""

import copy
import json

import pytest
import yaml
from monai.bundle import ConfigParser
from monai.bundle.utils import merge_kv
from scripts.verify.allowed import AllowList
from scripts.verify.configs import config_problems, content_problems
from support import CONFIGS, ROOT, TINY

ALLOWED = AllowList(ROOT / "bundle" / "scripts")
OVERLAYS = ("network_", "fusion_", "dataset_", "start_", "inference_")
OWN = {"evaluate_calibration", "infer_cohort", "start_upkern"}  # what only this repository runs, and no release holds
FILES = sorted({*CONFIGS.glob("*.yaml"), *CONFIGS.glob("*.json")})
# ten copies of ten copies of ten copies, made while the file is read
MERGED = "a0: &a0 {x: 1}\n" + "\n".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}" for i in range(1, 9))
WORKFLOWS = [["train"], ["train", "multi_gpu_train"], ["train", "evaluate"], []]


def problems(content):
    return list(content_problems(content, ALLOWED))


@pytest.mark.parametrize("path", [path for path in FILES if path.stem not in OWN], ids=lambda p: p.stem)
def test_every_file_of_the_repository_is_accepted(path):
    assert list(config_problems(path, ALLOWED)) == []


@pytest.fixture(scope="module")
def files():
    return {path.stem: ConfigParser.load_config_file(str(path)) for path in CONFIGS.glob("*.yaml")}


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda names: "_".join(names) or "inference")
def test_every_merged_choice_is_accepted(workflow, files):
    for overlay in ["", *(name for name in files if name.startswith(OVERLAYS) and name not in OWN)]:
        merged = ConfigParser(config={})
        for name in filter(None, ("inference", *workflow, overlay)):
            for key, value in copy.deepcopy(files[name]).items():
                merge_kv(merged, key, value)
        assert problems(merged.get()) == [], overlay
    assert problems(yaml.safe_load(TINY)) == []


@pytest.mark.parametrize(
    "text",
    [
        "$__import__('os').system('id')",
        "$import os",
        "$import os as scripts",
        "$from os import system",
        "$import scripts; import os",
        "$scripts.files.os.system('id')",
        "$scripts.runs.os",
        "$scripts.datalists.Path('/etc/passwd').read_text()",
        "$scripts.workflows.demo('/root')",
        "$scripts.release.release('x')",
        "$scripts.stages.train_first('x', initialize='$exit()')",  # runs a configuration that nobody has seen
        "$scripts.networks.speed.os",
        "$monai.utils.optional_import('os')",
        "$monai.bundle.download('x')",
        "$monai.transforms.LoadImage('os.system')",
        "$scripts.distributed.once(monai.transforms.LoadImage, 'os.system')",
        "$scripts.distributed.once(@loader, 'os.system')",
        "$scripts.distributed.once((scripts.runs.start), *@x)",
        "$scripts.handlers.save_atomically('x', 'y')",
        "$scripts.clinical.ClinicalTable.save('x')",
        "$scripts.networks.import_weights('a', 'b', 'c')",
        "$torch.load('x')",
        "$torch.hub.load('x', 'y')",
        "$torch.utils.cpp_extension.subprocess.run('id')",
        "$np.load('x', allow_pickle=True)",
        "$getattr(torch, 'load')('x')",
        "$eval('1')",
        "$exec('1')",
        "$open('/etc/passwd')",
        "$globals()",
        "$().__class__.__bases__[0].__subclasses__()",
        "$@device.index",
        "$@network.register_forward_hook(print)",
        "$@loader('x')",
        "$(lambda: 1)()",
        "$[x for x in @labels]",
        "$f'{@labels}'",
        "$9**9**9",
        "$1 << 99999",
        "$@a if True else (yield)",
        "$(@x := 1)",
        "$breakpoint()",
        "$__local_refs['x']",
        "$ｅｖａｌ('1')",  # Python reads full-width letters as eval
        "$" + "(" * 500,
        "$" + "+".join("1" * 1500),
        "$max(@labels, key=@loader)",  # calls what the reference stands for
        "$min(@labels, **@x)",
        "$'{0.__class__}'.format(@labels)",
        "$'{0.a}'.format(@labels)",
        "$'@f{torch.load}'",  # a plain text, until MONAI writes __local_refs['f']{torch.load}' for @f
        "%/etc/passwd.yaml::x",
        "%other.yaml",
        "$@#x",
        "@::x",
    ],
)
def test_refused_texts(text):
    (found, *_) = problems({"f": 1, "x": {"note": text}})
    assert found.startswith("x::note: ")
    assert found.endswith("do not run this bundle")


@pytest.mark.parametrize(
    "text",
    [
        "$len(@labels)",
        "$@bundle_root + '/models/model.pt'",
        "$scripts.networks.load_weights(@network, @checkpoint)",
        "$scripts.clinical.ClinicalSchema.from_yaml('x', preset=@y)",
        "${2: 16, 3: 1}[@spatial_dims]",
        "$@labels[1:] + ['x']",
        "$not @a and @b < 3",
        "$2 * @epochs - 1",
        "$torch.device('cpu')",
        "$@train::ema.module",
        "$import scripts",
        "%train::trainer",
        "@train#trainer",
        "no $ expression, 50 % of users@home",
    ],
)
def test_accepted_texts(text):
    assert problems({"x": text}) == []


@pytest.mark.parametrize(
    "config",
    [
        {"_target_": "subprocess.run", "args": "id"},
        {"_target_": "os.system"},
        {"_target_": "builtins.eval"},
        {"_target_": "monai.utils.module.optional_import"},
        {"_target_": "Lambda"},
        {"_target_": "PersistentDataset"},
        {"_target_": "$torch.optim.SGD"},
        {"_target_": "@other"},
        {"_target_": "%other"},
        {"_target_": "scripts.workflows.train"},
        {"_target_": ["os.system"]},
        {"a::_target_": "os.system"},
        {"a#b#_target_": "os.system"},
        {"+_target_": "os.system"},
        {"_target_": "Compose", "_mode_": "debug"},
        {"_target_": "LoadImage", "_mode_": "callable"},  # once(@x, 'os.system') would build it with a reader
        {"x::_mode_": "callable", "_target_": "scripts.networks.EPABlock"},
        {"x::_target_": "LoadImage"},  # merged into a component whose _mode_ is callable
        {"x#_target_": "Compose"},
        {"+x": {"_target_": "Compose"}},
        {"_target_": "LoadImaged", "keys": "image", "reader": "NumpyReader"},  # it loads pickles
        {"_target_": "LoadImaged", "keys": "image", "reader": None, "allow_pickle": True},
        {"_target_": "monai.transforms.LoadImage", "converter": "x"},
        {"loader::allow_pickle": True},
        {"_target_": "Compose", "_debug_": True},
        {"_target_": "LoadImaged", "keys": "image", "reader": "os.system"},  # MONAI imports readers by name
        {"_target_": "LoadImaged", "keys": "image", "reader": ["ITKReader", "eval"]},
        {"_target_": "SaveImaged", "keys": "image", "writer": "os.system"},
        # the compiler is a setting of torch.compile, and is started
        {"_target_": "SupervisedTrainer", "compile": True, "compile_kwargs": {"options": {"cpp.cxx": ["bash"]}}},
        {"trainer::compile_kwargs": "@x"},
        {"note": {"$open('x')"}},
        {"note": ("$open('x')",)},
        {"note": b"$open('x')"},
    ],
)
def test_refused_components(config):
    assert len(problems({"x": [config]})) == 1


def test_a_name_that_the_user_vouches_for():
    config = {"_target_": "monai.transforms.Lambda"}
    assert problems(config)
    assert list(content_problems(config, AllowList(ROOT / "bundle" / "scripts", ("monai.transforms.Lambda",)))) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!python/object/apply:os.system ['touch canary']", "is not plain yaml: could not determine a constructor"),
        ("a: !!python/name:os.system", "is not plain yaml"),
        ("a: [", "is not plain yaml"),
        ("[" * 5000, "is not plain yaml"),
        ("x: &x {y: *x}", "an alias bomb"),
        ("\n".join(["a0: &a0 [x, x]", *(f"a{i + 1}: &a{i + 1} [*a{i}, *a{i}]" for i in range(40))]), "an alias bomb"),
        ("a: " + "x" * 6_000_000, "has 6000003 bytes, at most"),
        (MERGED, "is not plain yaml: merge keys (<<) are not read"),
        ("a: !!set {$open('x')}", "a: is a set, which is no plain value"),
        ("a: !!pairs [x: $open('x')]", "a::0: is a tuple, which is no plain value"),
        ("# \u00c5 note: $open('x')", "is not plain yaml: 'ascii' codec can't decode"),
    ],
    ids=["tag", "name", "syntax", "deep", "loop", "bomb", "large", "merge", "set", "pairs", "encoding"],
)
def test_files_that_are_no_plain_data(text, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.yaml").write_text(text, "utf-8")
    (found, *_) = config_problems(tmp_path / "train.yaml", ALLOWED)
    assert message in found
    assert [path.name for path in tmp_path.iterdir()] == ["train.yaml"]


def test_json_is_judged_as_well(tmp_path):
    (tmp_path / "metadata.json").write_text(json.dumps({"name": "$exit()"}))
    (found,) = config_problems(tmp_path / "metadata.json", ALLOWED)
    assert found.startswith("name: '$exit()' uses the name exit;")
