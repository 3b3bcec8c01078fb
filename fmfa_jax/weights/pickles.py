# SPDX-License-Identifier: Apache-2.0
"""A pickle reader that can only build plain containers and descriptions of tensors.

PyTorch's files describe their tensors in a pickle, and a pickle is a program. This
machine runs the part of its language that builds data; what else the program names
(a config object beside the weights) becomes an `Inert` that remembers only the name.
Nothing in the file is ever imported, called or compiled.

Time and memory are bounded by construction: each instruction does a constant amount of
work besides moving bytes of the file, and there are at most `MAX_INSTRUCTIONS`. Only
short strings become keys of dicts, so no hash or comparison can be made expensive.
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from fmfa_jax.weights.permitted import check_name
from fmfa_jax.weights.tensors import UnsafePickleError, WeightsError, shown

# Far above what the data.pkl of a model with a thousand layers has.
MAX_PICKLE_BYTES = 16 * 2**20
MAX_INSTRUCTIONS = 250_000
MAX_NAME = 500
# Different ones: a TorchScript module has one for each of its classes.
MAX_GLOBALS = 5000
MAX_INT_BITS = 64

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

    def __init__(self) -> None:
        self.attributes: dict[str, Any] = {}


class Inert:
    """An object of which only the class is known, and what it maps if it is a mapping.

    Attributes:
        name: Its class, such as "argparse.Namespace".
        items: What the program put into it by name; None if it cannot hold anything.
    """

    __slots__ = ("items", "name")

    def __init__(self, name: str, items: dict[Any, Any] | None = None) -> None:
        self.name = name
        self.items = items


@dataclass(frozen=True, slots=True)
class _Named:
    """A global that the program asked for, before it does anything with it."""

    name: str


# Values that nobody asks for, shared since programs may want very many.
_SET = Inert("set")
_INT = Inert("int")
_OTHER = Inert("object")
# What a key becomes that is no short string; nothing of ours looks for one.
_OTHER_KEY = Inert("a key that is no name")


# They are given their arguments as the tuple that they came as: to spread one over a
# call copies it, and the program may call again and again.
def _tensor(args: tuple[Any, ...]) -> Any:
    if len(args) < 4:
        raise UnsafePickleError("a tensor without storage, offset, sizes and strides")
    return TensorRecord(*args[:4])


def _first(args: tuple[Any, ...]) -> Any:
    return args[0] if args else _OTHER


def _typed(args: tuple[Any, ...]) -> Any:
    """`_rebuild_from_type_v2`: a tensor to which Python attributes were given."""
    match args[:3]:
        case (_Named(name="torch._utils._rebuild_tensor_v2"), _, tuple(inner)):
            return _tensor(inner)
        case (_Named(name="torch._utils._rebuild_parameter"), _, tuple(inner)):
            return _first(inner)
    return _OTHER


_BUILDERS: dict[str, Callable[[tuple[Any, ...]], Any]] = {
    "torch.Size": _first,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._tensor._rebuild_from_type_v2": _typed,
    "torch.jit._pickle.restore_type_tag": _first,
}


def read_pickle(data: bytes) -> Any:
    """Read the pickle of a PyTorch archive into records and plain containers.

    Returns:
        Dicts (whose keys are strings, or `Inert`), lists, tuples, numbers, strings,
        `TensorRecord`s, `ModuleRecord`s and `Inert`s.

    Raises:
        UnsafePickleError: The pickle asks for what no weight file needs, by name.
        WeightsError: The pickle is damaged, or beyond the limits.
    """
    if len(data) > MAX_PICKLE_BYTES:
        raise UnsafePickleError(
            f"the pickle has {len(data)} bytes; the limit is {MAX_PICKLE_BYTES}"
        )
    try:
        return _Machine().run(data)
    except WeightsError:
        raise
    # Damaged or hostile pickles may fail in any way; report all as our own error.
    except Exception as error:
        raise WeightsError(
            f"the pickle is damaged ({type(error).__name__}: {str(error)[:200]}); "
            "download the file again"
        ) from error


class _Machine:
    """The stack machine that pickles are written for, without classes and calls."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: list[Any] = []
        self.named: dict[tuple[Any, Any], _Named] = {}

    def run(self, data: bytes) -> Any:
        """Interpret a program and return what it leaves on the stack."""
        # genops checks every length against the data before it reads.
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if count >= MAX_INSTRUCTIONS:
                raise UnsafePickleError(
                    f"the pickle has more than {MAX_INSTRUCTIONS} instructions"
                )
            if opcode.name == "STOP":
                break
            _INSTRUCTIONS.get(opcode.name, _refuse)(self, argument)
        return self.stack.pop()

    def push(self, value: Any) -> None:
        """Put a value onto the stack."""
        self.stack.append(value)

    def push_number(self, value: Any) -> None:
        """Put an integer onto the stack, unless it is none that sizes tensors."""
        small = value.bit_length() <= MAX_INT_BITS
        self.stack.append(value if small else _INT)

    def mark(self, _: Any) -> None:
        """Begin a group of values."""
        self.marked.append(self.stack)
        self.stack = []

    def group(self) -> list[Any]:
        """Take the values since the last mark."""
        values, self.stack = self.stack, self.marked.pop()
        return values

    def pop(self, _: Any) -> None:
        """Drop a value, or a mark if nothing stands above it."""
        if self.stack:
            self.stack.pop()
        else:
            self.group()

    def drop(self, values: list[Any]) -> None:
        """Take no notice of values."""

    def push_set(self, values: list[Any]) -> None:
        """Put a set, whose elements are of no use."""
        self.stack.append(_SET)

    def push_dict(self, pairs: list[Any]) -> None:
        """Put a dict of keys and values."""
        self.stack.append({})
        self.store(pairs)

    def last(self, count: int) -> tuple[Any, ...]:
        """Take the last values, in the order in which they were put."""
        if len(self.stack) < count:
            raise IndexError("the stack is empty")
        values = tuple(self.stack[-count:])
        del self.stack[-count:]
        return values

    def put(self, place: Any) -> None:
        """Remember the last value; places are counted, as every pickler does."""
        if type(place) is not int or not 0 <= place <= len(self.memo):
            raise UnsafePickleError(f"a memo index after {len(self.memo)} entries")
        self.memo[place : place + 1] = [self.stack[-1]]

    def get(self, place: int) -> None:
        """Put a remembered value."""
        self.stack.append(self.memo[place] if place >= 0 else None)

    def name(self, module: Any, name: Any) -> None:
        """Put a global by name, if a weight file may ask for it."""
        # Each is checked once, since a program may ask for the same very often.
        if (module, name) not in self.named:
            if len(self.named) >= MAX_GLOBALS:
                raise UnsafePickleError(f"more than {MAX_GLOBALS} different globals")
            self.named[module, name] = _Named(check_name(module, name))
        self.stack.append(self.named[module, name])

    def store(self, pairs: list[Any]) -> None:
        """Put keys and values into the mapping that is last on the stack."""
        into = self.stack[-1]
        items = into.items if isinstance(into, Inert) else into
        if type(items) is not dict or len(pairs) % 2:
            raise UnsafePickleError(f"items for a {_kind(into)}")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            items[_as_key(key)] = value

    def extend(self, values: list[Any]) -> None:
        """Append to the list that is last on the stack."""
        into = self.stack[-1]
        if type(into) is list:
            into.extend(values)
        elif not isinstance(into, Inert):
            raise UnsafePickleError(f"elements for a {_kind(into)}")

    def call(self, function: Any, args: Any) -> None:
        """Put what a permitted function would have made of its arguments."""
        if not isinstance(function, _Named) or type(args) is not tuple:
            raise UnsafePickleError(f"the pickle calls a {_kind(function)}")
        if function.name in STORAGE_TYPES:
            raise UnsafePickleError(f"the pickle calls {function.name}")
        if function.name in _BUILDERS:
            self.stack.append(_BUILDERS[function.name](args))
        elif function.name.startswith("__torch__."):
            if args:
                raise UnsafePickleError("a TorchScript module with arguments")
            self.stack.append(ModuleRecord())
        elif function.name == "collections.OrderedDict" and not args:
            self.stack.append({})
        else:
            self.stack.append(Inert(function.name, {}))

    def build(self, _: Any) -> None:
        """Give a TorchScript module its attributes; other objects need none."""
        state = self.stack.pop()
        into = self.stack[-1]
        if isinstance(into, ModuleRecord):
            if type(state) is not dict or _OTHER_KEY in state:
                raise UnsafePickleError(
                    "a TorchScript module must be a dict of named attributes, but this "
                    f"one is a {_kind(state)}"
                )
            into.attributes = state
        elif type(into) is not dict and not isinstance(into, Inert):
            raise UnsafePickleError(f"the pickle tries to change a {_kind(into)}")

    def storage(self, _: Any) -> None:
        """Put a storage by its reference: key, dtype and length."""
        match self.stack.pop():
            case ("storage", _Named(name=kind), str(key), _, int(numel)) if (
                kind in STORAGE_TYPES and numel >= 0 and len(key) <= MAX_NAME
            ):
                self.stack.append(StorageRecord(key, STORAGE_TYPES[kind], numel))
            case _:
                raise UnsafePickleError("a storage reference that PyTorch never writes")


def _as_key(key: Any) -> Any:
    return key if type(key) is str and len(key) <= MAX_NAME else _OTHER_KEY


def _kind(value: Any) -> str:
    return shown(getattr(value, "name", None) or type(value).__name__)


def _refuse(machine: _Machine, argument: Any) -> None:
    raise UnsafePickleError("an instruction that PyTorch never writes")


def _instance(machine: _Machine, values: list[Any]) -> None:
    machine.call(values[0], tuple(values[1:]))


_Instruction = Callable[[_Machine, Any], None]
_INSTRUCTIONS: dict[str, _Instruction] = {
    "PROTO": lambda m, _: None,
    "FRAME": lambda m, _: None,
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": lambda m, _: m.drop(m.group()),
    "DUP": lambda m, _: m.push(m.stack[-1]),
    "NONE": _Machine.push,
    "NEWTRUE": lambda m, _: m.push(True),
    "NEWFALSE": lambda m, _: m.push(False),
    "EMPTY_LIST": lambda m, _: m.push([]),
    "EMPTY_TUPLE": lambda m, _: m.push(()),
    "EMPTY_DICT": lambda m, _: m.push({}),
    "EMPTY_SET": lambda m, _: m.push(_SET),
    "LIST": lambda m, _: m.push(m.group()),
    "TUPLE": lambda m, _: m.push(tuple(m.group())),
    "FROZENSET": lambda m, _: m.push_set(m.group()),
    "DICT": lambda m, _: m.push_dict(m.group()),
    "TUPLE1": lambda m, _: m.push(m.last(1)),
    "TUPLE2": lambda m, _: m.push(m.last(2)),
    "TUPLE3": lambda m, _: m.push(m.last(3)),
    "APPEND": lambda m, _: m.extend(list(m.last(1))),
    "APPENDS": lambda m, _: m.extend(m.group()),
    "ADDITEMS": lambda m, _: m.extend(m.group()),
    "SETITEM": lambda m, _: m.store(list(m.last(2))),
    "SETITEMS": lambda m, _: m.store(m.group()),
    "MEMOIZE": lambda m, _: m.put(len(m.memo)),
    "GLOBAL": lambda m, both: m.name(*both.split(" ", 1)),
    "STACK_GLOBAL": lambda m, _: m.name(*m.last(2)),
    "REDUCE": lambda m, _: m.call(*m.last(2)),
    "NEWOBJ": lambda m, _: m.call(*m.last(2)),
    "NEWOBJ_EX": lambda m, _: m.call(*m.last(3)[:2]),
    "OBJ": lambda m, _: _instance(m, m.group()),
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.storage,
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
    **dict.fromkeys(
        ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"),
        _Machine.push_number,
    ),
    **dict.fromkeys(
        (
            *("FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING"),
            *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
            *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
        ),
        _Machine.push,
    ),
}
