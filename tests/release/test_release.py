"""The zip: what is in it, that it is always the same, and what is refused."""

import hashlib
import io
import json
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from release_support import SAID, outside
from scripts.release import release
from scripts.release.archive import pack, pack_arrays
from scripts.release.facts import read_facts
from support import ROOT


def files_of(folder):
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}


def test_zip_has_one_folder_with_the_files_of_a_bundle(archive, bundle):
    assert archive.name == "ball_ct_segmentation_v1.2.0.zip"
    assert bundle.name == "ball_ct_segmentation"
    wanted = """LICENSE data_license.txt requirements.txt SHA256SUMS configs/inference.yaml configs/train.yaml
        configs/evaluate.yaml configs/multi_gpu_train.yaml configs/metadata.json configs/logging.conf
        configs/clinical_hcc_tace.yaml models/model.pt models/model.ts models/clinical.json models/check.npz
        docs/README.md docs/schema.json docs/dice.png docs/curves.png docs/evaluation/summary.json
        docs/evaluation/per_case.csv scripts/__init__.py"""
    assert set(wanted.split()) <= set(files_of(bundle))


def test_every_entry_has_the_same_date_and_permission_and_the_order_is_that_of_names(archive):
    with zipfile.ZipFile(archive) as file:
        entries = file.infolist()
    assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}
    assert {entry.external_attr >> 16 for entry in entries} == {0o100644}
    assert [entry.filename for entry in entries] == sorted(entry.filename for entry in entries)


def test_sums_are_those_of_every_other_file(bundle):
    lines = (bundle / "SHA256SUMS").read_text().splitlines()
    listed = {path: digest for digest, path in (line.split("  ") for line in lines)}
    files = files_of(bundle)
    assert list(listed) == sorted(listed)
    assert set(listed) == set(files) - {"SHA256SUMS"}
    for path, digest in listed.items():
        assert hashlib.sha256(files[path].read_bytes()).hexdigest() == digest


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="no sha256sum here")
def test_sums_are_read_by_sha256sum(bundle):
    assert subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=bundle).returncode == 0


def test_same_run_same_bytes_from_another_folder_at_another_time(run, archive, tmp_path):
    code = (
        f"import sys, time; sys.path.insert(0, {str(ROOT / 'bundle')!r}); time.time = lambda: 2e9\n"
        f"from scripts.release import release\nif __name__ == '__main__': release({str(run)!r}, 'dist', **{SAID!r})\n"
    )
    script = tmp_path / "again.py"
    script.write_text(code)
    outside([str(script)], tmp_path / "elsewhere")
    again = tmp_path / "elsewhere" / "dist" / archive.name
    with zipfile.ZipFile(again) as one, zipfile.ZipFile(archive) as other:
        differing = [name for name in other.namelist() if one.read(name) != other.read(name)]
    assert differing == []
    assert again.read_bytes() == archive.read_bytes()


def test_nothing_names_the_machine_or_a_patient(bundle, run, data):
    private = [str(run), str(data), str(run.parent), str(ROOT), str(Path.home()) + "/", "ball_00", "ball_05"]
    for path, file in files_of(bundle).items():
        content = [file.read_bytes()]
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as inner:
                content += [inner.read(name) for name in inner.namelist()]
        for word in private:
            assert not any(word.encode() in part for part in content), f"{path} holds {word}"


def test_weights_are_those_of_the_run_and_hold_nothing_but_tensors(bundle, run):
    own = torch.load(run / "model.pt", weights_only=True)
    state = torch.load(bundle / "models" / "model.pt", weights_only=True)
    assert state.keys() == own.keys()
    assert all(torch.equal(state[key], own[key]) for key in own)


def test_check_case_is_answered_by_network_and_torchscript(bundle, run):
    case = {name: torch.from_numpy(array) for name, array in np.load(bundle / "models" / "check.npz").items()}
    assert set(case) == {"image", "clinical", "logits"}
    assert torch.isnan(case["clinical"]).any()
    facts = read_facts(run)
    with torch.no_grad():
        torch.testing.assert_close(facts.network(case["image"], case["clinical"]), case["logits"])
        scripted = torch.jit.load(bundle / "models" / "model.ts")
        image = torch.randn(2, 1, *facts.patch)
        expected = facts.network(image, case["clinical"].expand(2, -1))
        torch.testing.assert_close(scripted(image, case["clinical"].expand(2, -1)), expected, atol=1e-4, rtol=1e-4)


def test_torchscript_carries_the_metadata_for_monai(bundle):
    from monai.data import load_net_with_metadata

    _, meta, _ = load_net_with_metadata(str(bundle / "models" / "model.ts"))
    assert meta["version"] == "1.2.0"


def test_arrays_are_read_by_numpy_and_always_have_the_same_bytes():
    arrays = {"b": np.arange(6, dtype=np.float32).reshape(2, 3).T, "a": np.zeros(2, np.float32)}
    assert pack_arrays(arrays) == pack_arrays(dict(reversed(arrays.items())))
    read = np.load(io.BytesIO(pack_arrays(arrays)), allow_pickle=False)
    np.testing.assert_array_equal(read["b"], arrays["b"])


def test_pack_stores_or_compresses():
    files = {"x": b"0" * 1000}
    assert len(pack(files)) < 300 < len(pack(files, compress=False))


@pytest.fixture
def copy(run, tmp_path):
    """The run, without its checkpoints, to be damaged."""
    folder = tmp_path / "copy"
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("checkpoints", "tensorboard", "masks"))
    return folder


class TestRefusals:
    def rewrite(self, folder, **changes):
        for name in ("config.yaml", "inference.yaml"):
            config = yaml.safe_load((folder / name).read_text())
            (folder / name).write_text(yaml.safe_dump(config | changes))

    @pytest.mark.parametrize(
        "value", ["/home/me/table.xlsx", "$open('/home/me/x').name", "~/x", "C:\\Users\\me", "file:///x"]
    )
    def test_path_of_this_machine(self, copy, value):
        self.rewrite(copy, surface_tolerance=value)
        with pytest.raises(ValueError, match=r"surface_tolerance of inference\.yaml holds .*a path of this machine"):
            release(str(copy), str(copy))

    def test_folder_that_is_no_run(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"is not a finished run: it has no inference\.yaml"):
            release(str(tmp_path))

    def test_weights_of_another_network(self, copy):
        torch.save({"weight": torch.zeros(1)}, copy / "model.pt")
        with pytest.raises(ValueError, match="checkpoint of another network"):
            release(str(copy), str(copy))

    def test_clinical_network_without_statistics(self, copy):
        (copy / "clinical.json").unlink()
        with pytest.raises(FileNotFoundError, match=r"has no clinical\.json, but its network takes clinical variables"):
            release(str(copy), str(copy))

    @pytest.mark.parametrize("name", ["two words", "../up", "1st", "ö"])
    def test_name(self, copy, name):
        with pytest.raises(ValueError, match="expected letters, digits and underscores"):
            release(str(copy), str(copy), name=name)

    @pytest.mark.parametrize("version", ["1", "v1.0.0", "1.0", "1.0.0/.."])
    def test_version(self, copy, version):
        with pytest.raises(ValueError, match="expected three numbers"):
            release(str(copy), str(copy), name="a", version=version)

    def test_changelog_that_lacks_the_version(self, copy):
        with pytest.raises(ValueError, match=r"The changelog has 1\.0\.0, but not version 2\.0\.0"):
            release(str(copy), str(copy), name="a", version="2.0.0", changelog={"1.0.0": "old"})

    def test_nothing_is_left_behind(self, copy, tmp_path):
        with pytest.raises(ValueError, match="expected three numbers"):
            release(str(copy), str(tmp_path / "dist"), name="a", version="x")
        assert not (tmp_path / "dist").exists()


def test_weights_without_their_run(tmp_path, capsys, monkeypatch):
    """The demo folder holds what serves its weights and where they come from; training is that of the repository."""
    monkeypatch.setattr("scripts.release.build.torchscript", lambda facts, meta: b"")  # takes seconds, tried above
    target = Path(release(str(ROOT / "bundle" / "models" / "demo"), str(tmp_path), name="demo_ct_segmentation"))
    assert "nny verify" in capsys.readouterr().out
    with zipfile.ZipFile(target) as file:
        meta = json.loads(file.read("demo_ct_segmentation/configs/metadata.json"))
        card = file.read("demo_ct_segmentation/docs/README.md").decode()
        train = yaml.safe_load(file.read("demo_ct_segmentation/configs/train.yaml"))
    assert meta["eval_metrics"]["mean_dice"] == 0.835
    assert "synthetic cohort" in meta["data_source"]
    assert "Not for: Any use on patients" in meta["intended_use"]
    assert re.search(r"\| tumour \| 0\.692 \|", card)
    assert train["spacing"] == [4.0, 4.0, 5.0]
    assert train["epochs"] == 300
