"""
Reads what TensorFlow writes, as data: the variables of a checkpoint, and the constants of a graph. It needs no
TensorFlow, whose loader would run what a graph holds.

Sources: the protocol buffers `tensor_bundle.proto`, `saved_model.proto`, `graph.proto` and `tensor.proto` of
github.com/tensorflow/tensorflow, and LevelDB's table format.
"""

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np


# TensorFlow's numbers of types. Variables of other types, such as strings, hold no weights.
DTYPES = {1: "<f4", 2: "<f8", 3: "<i4", 4: "u1", 5: "<i2", 6: "i1", 9: "<i8", 10: "?", 19: "<f2"}
# The fields of a tensor that list its values, by type, and how a value is packed.
VALUES = {1: (5, "<f4"), 2: (6, "<f8")}
TABLE_MAGIC = bytes.fromhex("57fb808b247547db")
MAX_VALUES = 2**25  # of a graph; that of BigGAN-deep at 512 px has 5 million. A few bytes can declare any number


# Checkpoints


def read_checkpoint(index: Path) -> dict[str, np.ndarray]:
    """
    All numeric variables by name, compared with the checksums that the checkpoint holds.

    Args:
        index: The file that ends in `.index`; the variables lie in files beside it.

    Raises:
        ValueError: A file is damaged or cut off, or holds what is not supported.
        FileNotFoundError: A file of variables is missing.
    """
    try:
        entries = dict(_table(index.read_bytes()))
        header = dict(_fields(entries.pop(b"")))
    except (IndexError, KeyError, TypeError, ValueError, struct.error) as error:
        raise ValueError(f"{str(index)!r} is truncated or no TensorFlow checkpoint") from error
    if header.get(2, 0) != 0:
        raise ValueError(f"{str(index)!r} is of a big-endian machine, expected little-endian numbers")
    shards = [path for path in index.parent.iterdir() if path.name.startswith(f"{index.stem}.data-")]
    room = sum(path.stat().st_size for path in shards)
    variables: dict[str, np.ndarray] = {}
    for key, entry in entries.items():
        if not key.startswith(b"\0"):  # a slice of a variable
            name = key.decode(errors="replace")
            value = _variable(name, entry, index, header.get(1, 1))
            room -= 0 if value is None else value.nbytes
            if room < 0:
                raise ValueError(f"{str(index)!r} is damaged: its variables, such as {name!r}, overlap")
            variables |= {} if value is None else {name: value}
    return variables


def _variable(name: str, entry: bytes, index: Path, num_shards: int) -> np.ndarray | None:
    try:
        fields = dict(_fields(entry))
        shape = _shape(fields.get(2, b""))
        shard, offset, size, crc = (int(fields.get(number, 0)) for number in (3, 4, 5, 6))
    except (IndexError, TypeError, ValueError, struct.error) as error:
        raise ValueError(f"{str(index)!r}: the entry of {name!r} is damaged") from error
    if fields.get(1) not in DTYPES:
        return None
    if 7 in fields:
        raise ValueError(f"{str(index)!r}: {name!r} is stored in parts, which is not supported")
    dtype = np.dtype(DTYPES[fields[1]])
    path = index.with_name(f"{index.stem}.data-{shard:05d}-of-{num_shards:05d}")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}, which holds {name!r}")
    if size != math.prod(shape) * dtype.itemsize or offset + size > path.stat().st_size:
        raise ValueError(f"{str(path)!r} is truncated, or {str(index)!r} is damaged: {name!r} of {shape} is not there")
    with path.open("rb") as file:
        file.seek(offset)
        content = file.read(size)
    if _masked(crc32c(content)) != crc:
        raise ValueError(f"{str(path)!r} is damaged: its {name!r} is not what was written (CRC-32C)")
    return np.frombuffer(content, dtype).reshape(shape)


def _table(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The keys and values of a LevelDB table."""
    footer = content[-48:]
    if footer[40:] != TABLE_MAGIC:
        raise ValueError("no table")
    _, position = _varint(footer, 0)  # the block of extra information
    _, position = _varint(footer, position)
    for _, handle in _block(content, footer[position:]):
        yield from _block(content, handle)


def _block(content: bytes, handle: bytes) -> Iterator[tuple[bytes, bytes]]:
    offset, position = _varint(handle, 0)
    size, _ = _varint(handle, position)
    block, kind, crc = content[offset : offset + size], content[offset + size], content[offset + size + 1 :][:4]
    if kind != 0 or _masked(crc32c(content[offset : offset + size + 1])) != int.from_bytes(crc, "little"):
        raise ValueError("a block is damaged, or packed")
    end = len(block) - 4 * (1 + int.from_bytes(block[-4:], "little"))  # the places where a key is stored whole
    position, key = 0, b""
    while position < end:
        shared, position = _varint(block, position)
        rest, position = _varint(block, position)
        length, position = _varint(block, position)
        key = key[:shared] + block[position : position + rest]
        yield key, block[position + rest : position + rest + length]
        position += rest + length


# Graphs


class Constants:
    """The constants of the graph of a `saved_model.pb`, and what joins them."""

    def __init__(self, path: Path):
        self.path = path
        self.nodes: dict[str, dict[int, list[Any]]] = {}
        self._values: dict[str, np.ndarray] = {}  # each is computed once, however many nodes name it
        self._number = 0  # of what they hold
        try:
            for number, meta_graph in _fields(path.read_bytes()):
                if number == 2:
                    self._add(meta_graph)
        except (AttributeError, IndexError, TypeError, ValueError, struct.error) as error:
            raise ValueError(f"{str(path)!r} is truncated or no SavedModel") from error

    def _add(self, meta_graph: bytes) -> None:
        graphs = [value for number, value in _fields(meta_graph) if number == 2]
        for number, value in (field for graph in graphs for field in _fields(graph)):
            if number == 1:
                node = _repeated(value)
                self.nodes[node[1][0].decode()] = node

    def __contains__(self, name: str) -> bool:
        return name in self.nodes

    def __getitem__(self, name: str) -> np.ndarray:
        """
        The value of a constant, or of constants that are stacked. Nothing else is computed.

        Raises:
            ValueError: The value needs a run of the graph, or the file is damaged.
        """
        try:
            return self._value(name, ())
        except (AttributeError, IndexError, KeyError, TypeError, struct.error) as error:
            raise ValueError(f"{str(self.path)!r}: the constant {name!r} is damaged") from error

    def _value(self, name: str, outer: tuple[str, ...]) -> np.ndarray:
        if name not in self._values:
            self._values[name] = self._computed(name, outer)
        return self._values[name]

    def _computed(self, name: str, outer: tuple[str, ...]) -> np.ndarray:
        node = self.nodes[name]
        operation = node[2][0].decode()
        if operation not in ("Const", "Identity", "Pack") or name in outer or len(outer) > 8:
            raise ValueError(
                f"{str(self.path)!r}: {(*outer, name)[0]!r} takes a run of the operation {operation!r}, and nothing "
                "in a file is run"
            )
        attributes = {part[1][0]: _repeated(part[2][0]) for part in map(_repeated, node.get(5, []))}
        if operation == "Const":
            tensor = _repeated(attributes[b"value"][8][0])
            shape = _shape(tensor.get(2, [b""])[0])
            self._hold(name, math.prod(shape))
            return _constant(tensor, shape)
        # An input that begins with ^ says only what would have to run before.
        names = [one.decode().removesuffix(":0") for one in node.get(3, []) if not one.startswith(b"^")]
        inputs = [self._value(one, (*outer, name)) for one in names]
        if operation == "Identity":
            return inputs[0]
        self._hold(name, sum(one.size for one in inputs))
        axis = attributes.get(b"axis", {}).get(3, [0])[0]
        return np.stack(inputs, axis if axis < 2**63 else axis - 2**64)

    def _hold(self, name: str, number: int) -> None:
        """Counts the values of a constant before they are made; raises `ValueError` for too many."""
        self._number += number
        if self._number > MAX_VALUES:
            raise ValueError(
                f"{str(self.path)!r}: with {name!r} its constants hold {self._number:,} values, more than any tables "
                "of statistics"
            )


def _constant(tensor: dict[int, list[Any]], shape: tuple[int, ...]) -> np.ndarray:
    number = tensor[1][0]
    if 4 in tensor:
        return np.frombuffer(tensor[4][0], DTYPES[number]).reshape(shape)
    field, dtype = VALUES[number]
    packed = b"".join(part if isinstance(part, bytes) else struct.pack("<I", part) for part in tensor.get(field, []))
    values = np.frombuffer(packed, dtype)
    # Of equal values at the end only the first is stored.
    return np.concatenate([values, np.repeat(values[-1:], math.prod(shape) - len(values))]).reshape(shape)


# Protocol buffers


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """The numbers and values of a message's fields: integers, or bytes."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        kind, length = key & 7, {1: 8, 5: 4}.get(key & 7)
        if kind == 0:
            value, position = _varint(message, position)
            yield key >> 3, value
            continue
        if kind == 2:
            length, position = _varint(message, position)
        if length is None or position + length > len(message):
            raise ValueError("a field is cut off, or of an unknown kind")
        part = message[position : position + length]
        yield key >> 3, part if kind == 2 else int.from_bytes(part, "little")
        position += length


def _repeated(message: bytes) -> dict[int, list[Any]]:
    fields: dict[int, list[Any]] = {}
    for number, value in _fields(message):
        fields.setdefault(number, []).append(value)
    return fields


def _varint(content: bytes, position: int) -> tuple[int, int]:
    """An integer of seven bits a byte, the lowest first; and the position after it."""
    value = 0
    for index in range(10):
        byte = content[position + index]
        value |= (byte & 127) << (7 * index)
        if byte < 128:
            return value, position + index + 1
    raise ValueError("an integer is too long")


def _shape(message: bytes) -> tuple[int, ...]:
    return tuple(dict(_fields(dimension)).get(1, 0) for number, dimension in _fields(message) if number == 2)


# CRC-32C, whose polynomial zlib does not have. It is linear: the parts of a long text are taken side by side


def _make_table() -> np.ndarray:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> np.uint32(1)) ^ np.uint32(0x82F63B78), table >> np.uint32(1))
    return table


_TABLE = _make_table()
# Of two bytes at a time.
_PAIRS = _TABLE[_TABLE[np.arange(2**16) & 0xFF] & 0xFF ^ np.arange(2**16) >> 8] ^ (
    _TABLE[np.arange(2**16) & 0xFF] >> np.uint32(8)
)


def crc32c(content: bytes) -> int:
    """The checksum of a text."""
    width = 1 << max(len(content) // 4096, 1).bit_length() - 1  # parts, a power of two
    length = len(content) // width // 2 * 2
    # The start value goes into the first part; all others start from zero.
    crcs = np.zeros(width, np.uint32)
    crcs[0] = 0xFFFFFFFF
    pairs = np.frombuffer(content, "<u2", width * length // 2).reshape(width, length // 2)
    for column in np.ascontiguousarray(pairs.T):
        crcs = _PAIRS.take(crcs.astype(np.uint16) ^ column) ^ (crcs >> np.uint32(16))
    # Two neighbours: the first goes on over as many zeros as the second is long.
    rest = content[width * length :]
    while len(crcs) > 1:
        crcs, length = _over_zeros(crcs[::2], length) ^ crcs[1::2], 2 * length
    crc = int(crcs[0])
    for byte in rest:
        crc = int(_TABLE[(crc ^ byte) & 0xFF]) ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def _over_zeros(crcs: np.ndarray, length: int) -> np.ndarray:
    """The checksums after so many more bytes of zero: a linear map of their bits, by squaring."""
    bits = np.uint32(1) << np.arange(32, dtype=np.uint32)
    step = _TABLE[bits & np.uint32(0xFF)] ^ (bits >> np.uint32(8))  # what each bit becomes over one zero
    while length:
        if length & 1:
            crcs = _apply(step, crcs)
        step, length = _apply(step, step), length >> 1
    return crcs


def _apply(columns: np.ndarray, crcs: np.ndarray) -> np.ndarray:
    result = np.zeros_like(crcs)
    for bit in range(32):
        result ^= np.where((crcs >> np.uint32(bit)) & 1, columns[bit], np.uint32(0))
    return result


def _masked(crc: int) -> int:
    """As LevelDB and TensorFlow store it."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
