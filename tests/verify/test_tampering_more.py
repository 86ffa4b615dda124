"""Other ways to change a bundle: where Python, NumPy, logging, TorchScript or pip would run or fetch something."""

import os
import pickle
import shutil

import numpy as np
import psutil
import pytest
from scripts.verify import bundle as stages
from scripts.verify import verify
from scripts.verify.torchscript import code_problems
from verify.bundles import CANARY, TOUCH, Call, insert, pack, resum, rewrite


def test_trial_that_never_ends(root, refused):
    before = psutil.Process().children(recursive=True)
    message = r"inference\.yaml: the network was not done in 0\.5 s; give more --seconds if you trust it"
    refused(message, tried=True, seconds=0.5)
    assert psutil.Process().children(recursive=True) == before


@pytest.mark.parametrize("where", ["scripts/inferers.py", "scripts/__init__.py", "scripts/networks/__init__.py"])
def test_payload_in_code(root, refused, where):
    path = root / where
    path.write_text(f"{path.read_text()}\n{TOUCH}\n")
    resum(root)
    cure = r"use the nny 0\.1\.0, or read the file and try it with `nny verify … --trust_code`"
    refused(rf"{where}: differs from this installation, .*{cure}")


@pytest.mark.parametrize("where", ["sitecustomize.py", "torch.py", "scripts/__pycache__/runs.cpython-311.pyc", "x.pth"])
def test_code_where_python_would_find_it(root, refused, where):
    (root / where).parent.mkdir(exist_ok=True)
    (root / where).write_text(TOUCH)
    refused(f"{where}: is not in SHA256SUMS", root)
    resum(root)
    refused(f"{where}: a released bundle has no such file; take it out")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_pipe_that_never_ends(root, refused):
    (root / "LICENSE").unlink()
    os.mkfifo(root / "LICENSE")
    refused("LICENSE: is no plain file; remove it", root)


def test_pickle_in_the_stored_case(root, refused):
    np.savez(root / "models" / "check.npz", image=np.array([Call()], dtype=object), logits=np.zeros(2, np.float32))
    resum(root)
    refused(r"models/check\.npz: image\.npy: has the type object, expected float32 \(objects would be unpickled\)")


def test_huge_array_in_the_stored_case(root, refused):
    def change(name, data):
        return data.replace(b"(1, 2)", b"(9, 9)") if name == "clinical.npy" else data

    rewrite(root / "models" / "check.npz", change)
    resum(root)
    refused(r"models/check\.npz: clinical\.npy: declares the shape \(9, 9\), 324 bytes, but 8 follow")


@pytest.mark.parametrize(
    "text",
    [
        f"[formatter_plain]\nclass=os.system\nformat=touch {CANARY}",
        f"[handler_console]\nclass=StreamHandler\nargs=({TOUCH},)",
        f"[handler_console]\nclass=StreamHandler\nargs=('%(x)s',)\nx='+str({TOUCH})+'",
        f"[handler_console]\nclass=FileHandler\nargs=('{CANARY}', 'w')",
        f"[DEFAULT]\nkwargs={{'stream': {TOUCH}}}",
    ],
    ids=["formatter", "handler", "interpolation", "file", "default"],
)
def test_payload_in_the_logging_file(root, refused, text):
    (root / "configs" / "logging.conf").write_text(text)
    resum(root)
    refused(r"configs/logging\.conf, \[(formatter_plain|handler_console|DEFAULT)\]: (class|args|kwargs)=.*do not run")


def test_pickle_in_torchscript(root, refused):
    evil = pickle.dumps(Call(), protocol=2)
    rewrite(root / "models" / "model.ts", lambda name, data: evil if name.endswith("constants.pkl") else data)
    resum(root)
    refused(r"models/model\.ts: its pickle would call posix\.system")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"return torch.from_file(x, True, 9)", r"uses the operator torch\.from_file"),
        (b"y = torch\n  return y.save(x, 'f')", "uses the name torch for something else than a call"),
        (b"return getattr(torch, 'save')(x, 'f')", "uses the name torch for something else than a call"),
        (b"return x # \r  torch.save(x, 'f')", "has characters that torch.jit.save does not write"),
        ("return x # ü".encode(), "has characters that torch.jit.save does not write"),
    ],
)
def test_file_access_in_torchscript(root, refused, body, message):
    def change(name, data):
        return data + b"\ndef f(x: str) -> Tensor:\n  " + body + b"\n" if name.endswith("ynet.py") else data

    rewrite(root / "models" / "model.ts", change)
    resum(root)
    refused(rf"models/model\.ts: its code {message}")


def test_torchscript_under_another_encoding():
    source = b"# coding: utf-7\ndef f(x: Tensor) -> Tensor:\n  return 0 +ACM-torch.save(x, 'f')\n"
    assert list(code_problems(source)) == ["its code uses the operator torch.save"]  # what torch reads


def test_two_archives_in_one(released, refused, tmp_path):
    bundle = tmp_path / "two.zip"
    bundle.write_bytes(released.read_bytes() * 2)
    refused("has something before its first entry", bundle)


def test_names_that_differ_in_case(root, refused, tmp_path):
    bundle = pack(root, tmp_path / "case.zip", **{"tiny/license": "other"})
    refused("entry 'tiny/license' comes twice, also as 'tiny/LICENSE'", bundle)


def test_truncated_zip(released, refused, tmp_path):
    bundle = tmp_path / "short.zip"
    bundle.write_bytes(released.read_bytes()[:-1000])
    refused(r"short\.zip: is no complete zip .*; download it again", bundle)


def test_requirements_from_elsewhere(root, refused):
    insert(root / "requirements.txt", "--index-url http://example.org")
    resum(root)
    refused(r"requirements\.txt, line 1: .* is more than a package and its versions; do not install from it")


def test_file_replaced_while_it_is_checked(root, monkeypatch):
    """What is judged is what is tried: a private copy."""
    seen = []
    before = (root / "configs" / "inference.yaml").read_text()

    def swap(folder, sums):
        insert(root / "configs" / "inference.yaml", f"bundle_root: ${TOUCH}")
        return stages_sums(folder, sums)

    def trial(folder, *args, **kwargs):
        seen.append((folder / "configs" / "inference.yaml").read_text())
        return []

    stages_sums = stages.sum_problems
    monkeypatch.setattr(stages, "sum_problems", swap)
    monkeypatch.setattr(stages, "trial_problems", trial)
    verify(str(root))
    assert seen == [before]


def test_link_put_in_place_of_a_file_while_it_is_copied(root, refused, tmp_path, monkeypatch):
    original = stages.list_files

    def swap(folder, **options):
        found = original(folder, **options)
        shutil.move(root / "LICENSE", tmp_path / "LICENSE")
        (root / "LICENSE").symlink_to(tmp_path / "LICENSE")
        return found

    monkeypatch.setattr(stages, "list_files", swap)
    with pytest.raises(ValueError, match="it changed while it was read"):
        verify(str(root))
    assert not list((tmp_path / "temporary").iterdir())


def test_code_that_the_user_read_and_trusts(root, monkeypatch):
    path = root / "scripts" / "inferers.py"
    path.write_text(f"{path.read_text()}\n# ours\n")
    resum(root)
    monkeypatch.setattr(stages, "trial_problems", lambda *args, **kwargs: [])
    verify(str(root), trust_code=True)
