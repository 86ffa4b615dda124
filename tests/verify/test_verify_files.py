"""Archives and pickles, judged without unpacking or loading them."""

import io
import pickle
import struct
import zipfile

import pytest
import torch
from scripts.verify.archive import zip_problems
from scripts.verify.pickles import pickle_problems, read_records
from scripts.verify.torchscript import _accepted as accepted_in_torchscript
from scripts.verify.torchscript import _tensors, code_problems
from scripts.verify.weights import weights_problems
from verify.bundles import rewrite, saved


def found(entries, change=lambda data: data, **limits):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    with zipfile.ZipFile(io.BytesIO(change(buffer.getvalue()))) as archive:
        return "\n".join(zip_problems(archive, **limits))


def test_plain_archive_is_safe():
    assert found([("a/b.txt", "x"), ("a/c/d.txt", "y")]) == ""


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([("a/b", "x"), ("a/b/c", "y")], "entry 'a/b' is both a file and the folder of 'a/b/c'"),
        ([("a/b", "x"), ("c/d", "y")], "has 2 entries at the top (a, c)"),
        ([(".ssh/b", "x")], "has 1 entries at the top (.ssh), expected the one folder of a bundle"),
        ([], "has 0 entries at the top"),
        ([("a/CON ", "x")], "not every system can write"),
        ([("a/b\x07", "x")], "not every system can write"),
        ([("a//b", "x")], "not every system can write"),
        ([("a/./b", "x")], "not every system can write"),
        ([(f"a/{i}", "") for i in range(10_001)], "holds 10001 entries, at most 10000"),
    ],
)
def test_refused_entries(entries, message):
    assert message in found(entries)


def test_encrypted_entry():
    def encrypt(data):
        start = data.index(b"PK\x01\x02")
        return data[: start + 8] + struct.pack("<H", 1) + data[start + 10 :]

    assert "entry 'a/b' is encrypted" in found([("a/b", "x")], encrypt)


def test_entries_that_share_their_bytes(tmp_path):
    """A bomb without a ratio: many names for the same packed bytes."""

    def share(data):
        start, end = data.index(b"PK\x01\x02"), data.index(b"PK\x05\x06")
        record, tail = data[start:end], bytearray(data[end:])
        struct.pack_into("<HHI", tail, 8, 2, 2, 2 * len(record))
        return data[:start] + record + record.replace(b"a/b", b"a/c") + bytes(tail)

    path = tmp_path / "shared.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/b", bytes(range(256)) * 9)
    path.write_bytes(share(path.read_bytes()))
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["a/b", "a/c"]
        (problem,) = zip_problems(archive)
    assert problem.startswith("its entries claim 4608 packed bytes, but the file has 2")
    assert problem.endswith("they overlap, a zip bomb")


def test_more_than_is_unpacked():
    assert "at most 9.31e-10 are accepted: a zip bomb" in found([("a/b", "xy")], most=1)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pickle.dumps(print, 2), "would call __builtin__.print"),
        (pickle.dumps(print, 4), "its pickle uses STACK_GLOBAL"),
        (b"\x80\x02(S'id'\nios\nsystem\n.", "its pickle uses INST"),
        (b"\x80\x02\x82\x01.", "its pickle uses EXT1"),
        (b"\x80\x02}r\xff\xff\xff\x7f.", "asks for 2147483647 places in memory"),
        (b"\x80\x02}.cos\nsystem\n.", "followed by 12 more bytes"),
        (b"\x80\x02}", "its pickle is damaged"),
        (b"\x80\x02" + b"}" * 2**23 + b".", "its pickle has 8388611 bytes, at most 8388608 are read"),
        (b"", "its pickle is damaged"),
    ],
)
def test_refused_pickles(data, message):
    assert message in "\n".join(pickle_problems(data, {"torch FloatStorage"}.__contains__))


def test_weights_of_every_type_are_accepted(tmp_path):
    types = (
        torch.float32,
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.uint8,
        torch.bool,
    )
    path = tmp_path / "model.pt"
    path.write_bytes(saved({str(kind): torch.zeros(3, 4).to(kind) for kind in types} | {"scalar": torch.tensor(1.0)}))
    assert list(weights_problems(path)) == []
    path.write_bytes(saved(torch.nn.Conv3d(2, 3, 1).to(memory_format=torch.channels_last_3d).state_dict()))
    assert list(weights_problems(path)) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"network": {"w": torch.zeros(1)}}, "network is a dict, expected a tensor"),
        ([torch.zeros(1)], "holds a list, expected a state dict"),
        ({}, "expected a state dict"),
        (torch.nn.Linear(1, 1), "would call torch.nn.modules.linear.Linear, which runs code"),
    ],
)
def test_other_contents(content, message, tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(saved(content))
    assert message in "\n".join(weights_problems(path))


def test_formats_that_are_no_zip(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"w": torch.zeros(1)}, path, _use_new_zipfile_serialization=False)
    assert "is not what torch.save(network.state_dict(), path) writes" in "\n".join(weights_problems(path))
    path.write_bytes(saved({"w": torch.zeros(9)}))
    rewrite(path, lambda name, data: None if name.endswith("data/0") else data)
    assert "w: its numbers (data/0) are missing" in "\n".join(weights_problems(path))
    path.write_bytes(saved({"w": torch.zeros(9)}))
    rewrite(path, lambda name, data: data[:-4] if name.endswith("data/0") else data)
    assert "w: declares 36 bytes of numbers, the file holds 32" in "\n".join(weights_problems(path))


def changed(path, old, new):
    """Weights whose pickle says something else."""
    path.write_bytes(saved({"w": torch.zeros(9)}))
    rewrite(path, lambda name, data: data.replace(old, new) if name.endswith(".pkl") else data)
    return "\n".join(weights_problems(path))


def test_sizes_that_take_forever_to_multiply(tmp_path):
    shape = b"K\x09\x85"  # (9,)
    assert "a tensor has 10000 dimensions" in changed(tmp_path / "model.pt", shape, b"(" + b"K\x09" * 10_000 + b"t")
    large = b"\x8a\xff" + b"\x7f" * 255  # a number of 255 bytes
    assert "is described in another way than torch does" in changed(tmp_path / "model.pt", shape, large + b"\x85")


def test_pickle_that_gives_a_number_a_state(tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(saved({"w": torch.zeros(9)}))
    rewrite(path, lambda name, data: b"\x80\x02}X\x01\x00\x00\x00wK\x01}bs." if name.endswith(".pkl") else data)
    (problem,) = weights_problems(path)
    assert "is not what torch.save(network.state_dict(), path) writes (AttributeError" in problem


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (b"y = __torch__.torch.classes.dist_c10d.FileStore(x, 1)", "uses the operator __torch__.torch.classes"),
        (b"y = ops.c10d.send([x], 1, 0)", "uses the operator ops.c10d.send"),
        (b"y = torch.from_file(x)", "uses the operator torch.from_file"),
    ],
)
def test_torchscript_that_reaches_out(source, message):
    assert message in "\n".join(code_problems(b"def f(x: str) -> Tensor:\n  " + source + b"\n  return y\n"))


def test_torchscript_with_objects_of_another_kind():
    assert not accepted_in_torchscript("__torch__.torch.classes.dist_c10d FileStore")
    assert accepted_in_torchscript("__torch__.scripts.networks.ynet YNet")


def test_modules_within_modules():
    deep = b"\x80\x02" + b"]" * 4000 + b"a" * 3999 + b"."
    with pytest.raises(ValueError, match="lies too deep"):
        _tensors(read_records(deep))
