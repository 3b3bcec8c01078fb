# SPDX-License-Identifier: Apache-2.0
"""A pickle reader that can only build plain containers and descriptions of tensors.

PyTorch's files describe their tensors in a pickle, and a pickle is a program. This
reader maps a short list of names to inert stand-ins of ours; any other name is an
error. Nothing in the file is ever imported, called or compiled.
"""

import io
import pickle
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from fmfa_jax.weights.tensors import WeightsError

# Far above the data.pkl of a model with a thousand layers.
MAX_PICKLE_BYTES = 64 * 2**20

STORAGE_TYPES = {
    "torch.DoubleStorage": np.dtype(np.float64),
    "torch.FloatStorage": np.dtype(np.float32),
    "torch.HalfStorage": np.dtype(np.float16),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.LongStorage": np.dtype(np.int64),
    "torch.IntStorage": np.dtype(np.int32),
    "torch.ShortStorage": np.dtype(np.int16),
    "torch.CharStorage": np.dtype(np.int8),
    "torch.ByteStorage": np.dtype(np.uint8),
    "torch.BoolStorage": np.dtype(np.bool_),
}

ELEMENT_TYPES = frozenset(
    "torch." + name
    for name in (
        "float16 bfloat16 float32 float64 half float double "
        "uint8 int8 int16 int32 int64 bool"
    ).split()
)


class UnsafePickleError(WeightsError):
    """A pickle that contains anything but tensors and plain containers."""


@dataclass(frozen=True)
class StorageRecord:
    """A storage of the archive; `key` is its entry, `numel` its number of elements."""

    key: str
    dtype: np.dtype
    numel: int


@dataclass(frozen=True)
class TensorRecord:
    """A tensor as the pickle describes it, not yet validated."""

    storage: Any
    offset: Any
    shape: Any
    strides: Any


class ModuleRecord:
    """A TorchScript module: its attributes without its behaviour."""

    __slots__ = ("attributes",)

    attributes: dict[str, Any]

    def __new__(cls) -> "ModuleRecord":
        """Create an empty record, for the pickle to fill through `__setstate__`."""
        record = super().__new__(cls)
        record.attributes = {}
        return record

    def __setstate__(self, state: Any) -> None:
        if type(state) is not dict or not all(type(key) is str for key in state):
            raise UnsafePickleError(
                "a TorchScript module must be a dict of named attributes, but this one "
                f"is a {type(state).__name__}"
            )
        self.attributes = state


class _OrderedRecord(dict):
    """Stand-in for OrderedDict that drops the `_metadata` PyTorch attaches to it."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        if type(state) is not dict or set(state) - {"_metadata"}:
            raise UnsafePickleError("an OrderedDict has attributes of its own")


class _StandIn:
    """What a permitted name becomes: callable if necessary, never writable."""

    __slots__ = ("_build", "name")

    def __init__(self, name: str, build: Callable[..., Any] | None = None):
        self.name = name
        self._build = build

    def __call__(self, *args: Any) -> Any:
        if self._build is None:
            raise UnsafePickleError(f"the pickle calls {self.name}")
        return self._build(*args)

    def __setstate__(self, state: Any) -> None:
        raise UnsafePickleError(f"the pickle tries to change {self.name}")


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_rest: Any) -> Any:
    return TensorRecord(storage, offset, shape, strides)


def _parameter(data: Any, *_rest: Any) -> Any:
    return data


def _first(value: Any, *_rest: Any) -> Any:
    return value


_BUILDERS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _OrderedRecord,
    "collections.Counter": _OrderedRecord,
    "builtins.set": set,
    "builtins.frozenset": frozenset,
    "__builtin__.set": set,
    "__builtin__.frozenset": frozenset,
    "torch.Size": tuple,
    "torch.device": _first,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    # TorchScript wraps lists and typed containers in these.
    "torch.jit._pickle.build_intlist": list,
    "torch.jit._pickle.build_doublelist": list,
    "torch.jit._pickle.build_boollist": list,
    "torch.jit._pickle.build_tensorlist": list,
    "torch.jit._pickle.restore_type_tag": _first,
}


class RestrictedUnpickler(pickle.Unpickler):
    """`pickle.Unpickler` with an allow-list instead of the import system."""

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in for a global, or refuse it by name."""
        wanted = f"{module}.{name}"
        if module == "__torch__" or module.startswith("__torch__."):
            return ModuleRecord
        if wanted in _BUILDERS:
            return _StandIn(wanted, _BUILDERS[wanted])
        if wanted in STORAGE_TYPES or wanted in ELEMENT_TYPES:
            return _StandIn(wanted)
        raise UnsafePickleError(
            f"the pickle asks for {wanted}, which is neither a tensor nor a plain "
            "container; nothing was executed. Ask the file's author for the bare state "
            "dict (only tensors), as .pth or .safetensors"
        )

    def persistent_load(self, pid: Any) -> StorageRecord:
        """Convert a storage reference to a record of key, dtype and length."""
        match pid:
            case ("storage", _StandIn(name=kind), str(key), _, int(numel)) if (
                kind in STORAGE_TYPES and numel >= 0
            ):
                return StorageRecord(key, STORAGE_TYPES[kind], numel)
        raise UnsafePickleError("a storage reference that PyTorch never writes")


def _check_program(data: bytes) -> None:
    """Refuse opcodes that could make the reader itself allocate without bound.

    `genops` also checks every length against the data before anything is built.
    """
    puts = 0
    for opcode, argument, _ in pickletools.genops(data):
        if "PUT" in opcode.name:
            if not isinstance(argument, int) or argument > puts:
                raise UnsafePickleError(f"memo index {argument} after {puts} entries")
            puts += 1
        elif opcode.name == "MEMOIZE":
            puts += 1
        elif opcode.name.startswith("EXT"):
            raise UnsafePickleError("the pickle uses extension codes")


def read_pickle(data: bytes) -> Any:
    """Read the pickle of a PyTorch archive into records and plain containers.

    Returns:
        Dicts, lists, tuples, sets, numbers, strings, `TensorRecord`s and
        `ModuleRecord`s.

    Raises:
        UnsafePickleError: The pickle asks for anything else, which is named.
        WeightsError: The pickle is damaged.
    """
    if len(data) > MAX_PICKLE_BYTES:
        raise UnsafePickleError(
            f"the pickle has {len(data)} bytes; the limit is {MAX_PICKLE_BYTES}"
        )
    try:
        _check_program(data)
        return RestrictedUnpickler(io.BytesIO(data)).load()
    except WeightsError:
        raise
    # Damaged or hostile pickles may fail in any way; report all as our own error.
    except Exception as error:
        raise WeightsError(
            f"the pickle is damaged ({type(error).__name__}: {error}); "
            "download the file again"
        ) from error
