"""The twelve kinds of tampering: each is refused for its own reason, nothing of it runs, and nothing stays behind."""

import io
import json
import stat
import zipfile
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser
from scripts.verify import verify
from verify.bundles import CANARY, SUMS, TOUCH, Call, edit, insert, pack, resum, rewrite, saved, write_weights


def test_the_unchanged_release_passes(released, capsys):
    verify(str(released))
    assert "expected answer" in capsys.readouterr().out


def test_the_payloads_would_run():
    """What the other tests find missing does appear where nobody looks first."""
    for load in (
        lambda: torch.load(io.BytesIO(saved({"weight": Call()})), weights_only=False),
        lambda: ConfigParser({"note": f"${TOUCH}"}).get_parsed_content("note").close(),
    ):
        load()
        Path(CANARY).unlink()


def flip(path):
    """Change one byte of the largest tensor."""
    with zipfile.ZipFile(path) as archive:
        content = archive.read(
            max(archive.infolist(), key=lambda entry: entry.file_size * ("/data/" in entry.filename))
        )
    data = bytearray(path.read_bytes())
    data[data.index(content) + len(content) // 2] ^= 0x40
    path.write_bytes(data)


def test_1_flipped_byte_in_weights(root, refused):
    flip(root / "models" / "model.pt")
    refused(r"files are not the released ones:\n  models/model\.pt: was changed: its SHA-256 is .*download it again")
    resum(root)
    refused(r"models/model\.pt: archive/data/\d+ in it is damaged; do not load this file")


def test_1_changed_weights_with_everything_recomputed(root, refused):
    state = torch.load(root / "models" / "model.pt", weights_only=True)
    name = next(name for name in state if name.endswith("weight"))
    state[name] += 1
    torch.save(state, root / "models" / "model.pt")
    resum(root)
    refused(rf"models/model\.ts: {name} has other numbers than in models/model\.pt")
    (root / "models" / "model.ts").unlink()
    resum(root)
    refused(r"models/check\.npz: the stored case gives logits that are off by .* stored case were changed", tried=True)


def test_2_changed_config(root, refused):
    edit(root / "configs" / "inference.yaml", "overlap: 0.5", "overlap: 0.0")
    refused(r"configs/inference\.yaml: was changed")
    edit(root / "configs" / "inference.yaml", "window_size: 3", "window_size: 4")
    resum(root)
    refused(
        r"models/model\.pt: holds the weights of another network: .*of another shape: .*model\.pt and inference\.yaml",
        tried=True,
    )


def test_3_added_expression(root, refused):
    insert(root / "configs" / "train.yaml", f"initialize: ${TOUCH}")
    insert(root / "configs" / "inference.yaml", f"note: $scripts.files.os.system('touch {CANARY}')")
    resum(root)
    refused(
        r"(?s)nothing of it was run:.*inference\.yaml, note: .*uses scripts\.files\.os\.system.*train\.yaml, initialize"
    )


def test_4_pickle_with_a_call(root, refused):
    (root / "models" / "model.pt").write_bytes(saved({"weight": Call()}))
    resum(root)
    refused(r"models/model\.pt: its pickle would call posix\.system, which runs code; do not load this file")


@pytest.mark.parametrize(
    "name", ["../outside", "tiny/../../outside", "/tmp/outside", "C:/outside", "tiny\\..\\outside"]
)
def test_5_zip_slip(root, refused, tmp_path, name):
    bundle = pack(root, tmp_path / "slip.zip", **{name: "x"})
    refused(
        r"not safe to unpack; nothing was unpacked:\n  entry .* leaves the folder it is unpacked to \(zip slip\)",
        bundle,
    )


def test_6_symlink(root, refused, tmp_path):
    link = zipfile.ZipInfo("tiny/docs/link.md")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    bundle = pack(root, tmp_path / "link.zip")
    with zipfile.ZipFile(bundle, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    refused(r"entry 'tiny/docs/link\.md' is a symbolic link", bundle)
    (root / "LICENSE").unlink()
    (root / "LICENSE").symlink_to("/etc/passwd")
    refused("LICENSE: is a symbolic link; put the file itself in its place", root)
    (root / "LICENSE").unlink()
    (root / "scripts").rename(tmp_path / "scripts")
    (root / "scripts").symlink_to(tmp_path / "scripts", target_is_directory=True)
    refused("scripts: is a symbolic link", root)


def test_7_bomb(root, refused, tmp_path):
    bundle = pack(root, tmp_path / "bomb.zip", **{"tiny/docs/bomb.txt": b"\0" * 2**24})
    refused(r"docs/bomb\.txt' grows from \d+ to 16777216 bytes, more than 100 times: a zip bomb", bundle)


def test_7_bomb_within_the_weights(root, refused):
    with zipfile.ZipFile(root / "models" / "model.pt", "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/bomb", b"\0" * 2**24)
    resum(root)
    refused(r"models/model\.pt: entry 'model/bomb' grows from \d+ to 16777216 bytes, more than 100 times: a zip bomb")


def test_7_bomb_that_declares_little(root, refused, tmp_path):
    bundle = pack(root, tmp_path / "bomb.zip", **{"tiny/docs/bomb.txt": b"\0" * 2**22})
    data = bundle.read_bytes().replace((2**22).to_bytes(4, "little"), (99).to_bytes(4, "little"))
    bundle.write_bytes(data)
    refused(r"zip is damaged:\n  entry 'tiny/docs/bomb\.txt' is damaged", bundle)


def test_8_missing_file(root, refused):
    (root / "models" / "clinical.json").unlink()
    (root / "LICENSE").unlink()
    refused(r"(?s)LICENSE: is missing; download.*models/clinical\.json: is missing; download the bundle again")
    resum(root)
    refused("LICENSE: every released bundle has it, and this one does not")


def test_9_wrong_sums(root, refused):
    edit(root / SUMS, "^.{64}  LICENSE", f"{'0' * 64}  LICENSE")
    refused("LICENSE: was changed: its SHA-256 is .* SHA256SUMS says 000000000000")
    (root / SUMS).write_text("nonsense\n")
    refused("SHA256SUMS, line 1: 'nonsense' is not '<sha256>  <path>'")
    (root / SUMS).write_text(f"{'0' * 64}  ../outside\n")
    refused(r"\.\./outside: is missing")
    (root / SUMS).unlink()
    refused("SHA256SUMS: is missing, so nothing says which files were released")


def test_10_wrong_schema_version(root, refused):
    path = root / "configs" / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": "https://example.org/schema_2099.json"}))
    resum(root)
    refused(r"configs/metadata\.json: the schema 'https://example\.org/schema_2099\.json' is unknown; known: https")


def test_10_other_schema_under_the_right_name(root, refused):
    (root / "docs" / "schema.json").write_text("{}")
    resum(root)
    refused(r"docs/schema\.json: is not the schema that configs/metadata\.json names")


def test_11_weights_of_another_network(root, refused):
    other = {"network_def::encoder::feature_size": 8, "network_def::decoder::channels": [8, 8, 16, 32]}
    write_weights(root / "configs" / "inference.yaml", root / "models" / "model.pt", bottleneck_channels=32, **other)
    resum(root)
    refused(r"models/model\.ts: .* has another shape than in models/model\.pt")


def test_12_huge_tensor_sizes(root, refused):
    path = root / "models" / "model.pt"
    path.write_bytes(saved({"weight": torch.zeros(77)}))
    rewrite(path, lambda name, data: data.replace(b"K\x4d", b"J\xff\xff\xff\x7f") if name.endswith(".pkl") else data)
    resum(root)
    refused(r"models/model\.pt: weight: declares 8589934588 bytes of numbers, the file holds 308; do not load")
    path.write_bytes(saved({"weight": torch.zeros(1).expand(10**12)}))
    resum(root)
    refused(r"weight: declares the shape \(1000000000000,\), 1000000000000 numbers, but the file holds 1;")
