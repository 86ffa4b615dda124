"""Reads the pickles of torch without unpickling: opcode by opcode, with records in place of tensors."""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any

ITEM_BYTES = {
    "torch DoubleStorage": 8,
    "torch FloatStorage": 4,
    "torch HalfStorage": 2,
    "torch BFloat16Storage": 2,
    "torch LongStorage": 8,
    "torch IntStorage": 4,
    "torch ShortStorage": 2,
    "torch CharStorage": 1,
    "torch ByteStorage": 1,
    "torch BoolStorage": 1,
}
REBUILD = "torch._utils _rebuild_tensor_v2"
GLOBALS = {REBUILD, "collections OrderedDict", *ITEM_BYTES}
WORDS = """
    PROTO STOP MARK GLOBAL REDUCE BUILD BINPERSID NONE NEWTRUE NEWFALSE EMPTY_DICT EMPTY_LIST EMPTY_TUPLE TUPLE
    TUPLE1 TUPLE2 TUPLE3 SETITEM SETITEMS APPEND APPENDS BINUNICODE SHORT_BINUNICODE BININT BININT1 BININT2 LONG1
    BINFLOAT BINPUT LONG_BINPUT BINGET LONG_BINGET MEMOIZE FRAME"""
OPCODES = frozenset(WORDS.split())
MAX_PICKLE = 8 * 2**20  # bytes, each of which may ask for 64
MAX_DIMS, MAX_NUMBER = 16, 2**48
DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    pickle.UnpicklingError,
    struct.error,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    OverflowError,
    RuntimeError,  # RecursionError, NotImplementedError
    SyntaxError,
    TypeError,
    ValueError,
)
CURE = "do not load this file"


@dataclass(frozen=True)
class Storage:
    """Where a pickle says that the numbers of a tensor lie."""

    key: str
    item: int  # bytes of a number
    count: int


@dataclass(frozen=True)
class TensorRecord:
    """What a pickle says of a tensor; nothing is allocated for it."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def __setstate__(self, state: Any) -> None:
        """Refuse to be changed by the pickle."""
        raise pickle.UnpicklingError("a tensor is changed after it was described")


def pickle_problems(data: bytes, accepted: Callable[[str], bool], opcodes: Set[str] = OPCODES) -> Iterator[str]:
    """List a pickle's opcodes and refuse all that does more than put tensors together; nothing is unpickled.

    Args:
        data: the pickle.
        accepted: tells whether ``module name`` may be looked up.
        opcodes: names of the opcodes that it may use.

    Yields:
        One message for each kind of opcode and each name.
    """
    if len(data) > MAX_PICKLE:
        yield f"its pickle has {len(data)} bytes, at most {MAX_PICKLE} are read"
        return
    refused = set()
    end = 0
    try:
        for opcode, argument, position in pickletools.genops(data):
            end = position + 1
            if opcode.name not in opcodes:
                refused.add(f"its pickle uses {opcode.name}, which weights do not need")
            elif opcode.name.endswith("BINPUT") and argument > len(data):
                refused.add(f"its pickle asks for {argument} places in memory")
            elif opcode.name == "GLOBAL" and not accepted(argument):
                refused.add(f"its pickle would call {argument.replace(' ', '.')}, which runs code")
    except Exception as error:  # pickletools raises many kinds, by opcode
        refused.add(f"its pickle is damaged ({error})")
    if end < len(data) and not refused:
        refused.add(f"its pickle is followed by {len(data) - end} more bytes")
    yield from sorted(refused)


def read_pickle(archive: zipfile.ZipFile, name: str) -> bytes:
    """Read an entry of an archive, or no more of it than `pickle_problems` needs to refuse it.

    Args:
        archive: the open zip.
        name: its entry.
    """
    with archive.open(name) as file:
        return file.read(MAX_PICKLE + 1)


def read_records(data: bytes, stand_in: Callable[[str], Any] | None = None) -> Any:
    """Read a pickle that `pickle_problems` accepts, with plain records in place of tensors.

    Args:
        data: the pickle.
        stand_in: gives an inert object for ``module name`` that is neither a storage nor the rebuilding of a tensor.
    """
    return _Records(data, stand_in).load()


class _Records(pickle.Unpickler):
    def __init__(self, data: bytes, stand_in: Callable[[str], Any] | None) -> None:
        super().__init__(io.BytesIO(data))
        self.stand_in = stand_in

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module} {name}"
        if full == "collections OrderedDict":
            return OrderedDict
        if full == REBUILD:
            return _record
        if full in ITEM_BYTES:
            return ITEM_BYTES[full]
        if self.stand_in is None:
            raise pickle.UnpicklingError(f"{full} is not accepted")
        return self.stand_in(full)

    def persistent_load(self, pid: Any) -> Storage:
        kind, item, key, _, count = pid
        if kind != "storage" or not isinstance(item, int) or not isinstance(key, str) or not isinstance(count, int):
            raise pickle.UnpicklingError("a storage is described in another way than torch does")
        return Storage(key, item, count)


def _record(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> TensorRecord:
    if len(shape) > MAX_DIMS or len(shape) != len(strides):
        raise pickle.UnpicklingError(f"a tensor has {len(shape)} dimensions and {len(strides)} strides")
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, Storage) or not all(type(n) is int and 0 <= n < MAX_NUMBER for n in numbers):
        raise pickle.UnpicklingError("a tensor is described in another way than torch does")
    return TensorRecord(storage, offset, tuple(shape), tuple(strides))


def record_problems(record: TensorRecord, stored: Mapping[str, int], folder: str) -> Iterator[str]:
    """Compare a tensor's declared size with the bytes that are in the file.

    Args:
        record: the tensor.
        stored: size in bytes by entry of the zip.
        folder: where the entries of storages lie.

    Yields:
        At most one message.
    """
    storage, numbers = record.storage, math.prod(record.shape)
    size = stored.get(f"{folder}/{storage.key}")
    reach = record.offset + sum((n - 1) * s for n, s in zip(record.shape, record.strides, strict=True)) + 1
    if size is None:
        yield f"its numbers (data/{storage.key}) are missing"
    elif storage.count < 0 or storage.count * storage.item != size:
        yield f"declares {storage.count * storage.item} bytes of numbers, the file holds {size}"
    elif numbers and (numbers > storage.count or reach > storage.count):
        yield f"declares the shape {record.shape}, {numbers} numbers, but the file holds {storage.count}"
