# SPDX-License-Identifier: Apache-2.0
"""Which names a pickle may ask for; none of them is ever imported.

Objects of other packages, and of people's own code, lie beside the weights in very
many checkpoints (configs, paths, scores), and mean no harm since they stay names. What
acts (`os.system`, `torch.hub.load`) has no business in a weight file and is refused by
name, so that its owner learns of it.
"""

import sys
from typing import Any

from fmfa_jax.weights.tensors import UnsafePickleError, shown

# Modules of Python that hold data, and the names that are data; () for all.
_DATA: dict[str, tuple[str, ...]] = {
    "_codecs": ("encode",),  # how protocol 2 writes bytes
    "argparse": ("Namespace",),
    "array": ("array", "_array_reconstructor"),
    "collections": (
        *("Counter", "OrderedDict", "defaultdict", "deque"),
        *("ChainMap", "UserDict", "UserList"),
    ),
    "copyreg": ("_reconstructor", "__newobj__"),
    "datetime": ("date", "datetime", "time", "timedelta", "timezone"),
    "decimal": ("Decimal",),
    "enum": ("Enum",),
    "fractions": ("Fraction",),
    "ipaddress": (),
    "logging": (),
    "pathlib": (),
    "random": ("Random",),
    "re": ("_compile", "RegexFlag"),
    "types": ("SimpleNamespace",),
    "uuid": ("UUID",),
    "zoneinfo": ("ZoneInfo", "ZoneInfo._unpickle"),
    "builtins": (
        *("set", "frozenset", "object", "dict", "list", "tuple", "int", "float"),
        *("str", "bool", "bytes", "bytearray", "complex", "range", "slice", "type"),
        *("NoneType", "Ellipsis"),
    ),
}
_DATA["__builtin__"] = (*_DATA["builtins"], "unicode", "long")
_DATA["copy_reg"] = _DATA["copyreg"]
_DATA["pathlib._local"] = ()

_TORCH = frozenset(
    "torch." + name
    for name in (
        "Size device Generator Tensor strided torch_version.TorchVersion "
        "float16 bfloat16 float32 float64 half float double "
        "uint8 int8 int16 int32 int64 bool "
        "DoubleStorage FloatStorage HalfStorage BFloat16Storage LongStorage IntStorage "
        "ShortStorage CharStorage ByteStorage BoolStorage "
        "_utils._rebuild_tensor_v2 _utils._rebuild_parameter "
        "_utils._rebuild_parameter_with_state _tensor._rebuild_from_type_v2 "
        "jit._pickle.build_intlist jit._pickle.build_doublelist "
        "jit._pickle.build_boollist jit._pickle.build_tensorlist "
        "jit._pickle.restore_type_tag serialization._get_layout"
    ).split()
)
_TORCH_OBJECTS = ("torch.nn.", "torch.optim.", "torch.distributed.", "torch.amp.")


def check_name(module: Any, name: Any) -> str:
    """Return "module.name" if a pickle may ask for it.

    Raises:
        UnsafePickleError: It may not.
    """
    if type(module) is not str or type(name) is not str:
        raise UnsafePickleError("the pickle asks for a global that has no name")
    wanted = f"{module}.{name}"
    if not module or not name or len(wanted) > 300 or not wanted.isprintable():
        raise UnsafePickleError(f"the pickle asks for a global named {shown(wanted)}")
    if not _permitted(module, name):
        raise UnsafePickleError(
            f"the pickle asks for {wanted}, which is neither a tensor nor data; "
            "nothing was executed. Ask the file's author for the bare state dict (only "
            "tensors), as .pth or .safetensors"
        )
    return wanted


def _permitted(module: str, name: str) -> bool:
    wanted, top = f"{module}.{name}", module.split(".")[0]
    if top == "torch":
        return wanted in _TORCH or module.startswith(_TORCH_OBJECTS)
    if module in _DATA:
        return not _DATA[module] or name in _DATA[module]
    return top not in sys.stdlib_module_names and top not in ("__builtin__", "copy_reg")
