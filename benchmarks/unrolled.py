# SPDX-License-Identifier: Apache-2.0
"""XLA's own count of a program's FLOPs: it counts a loop's body once, so unroll first.

The slow peer of `fmfa_jax.machines.flops.count_flops`, which multiplies instead.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun


def xla_flops(fn: Callable[..., Any], *args: Any) -> float:
    """What XLA counts in `fn(*args)` before it optimises, with all scans unrolled.

    Element-wise operations count as well, each as one.

    Args:
        fn: any function that JAX can trace.
        args: its arguments: arrays, or `jax.ShapeDtypeStruct`s in their place.
    """
    program = unrolled(jax.make_jaxpr(fn)(*args))
    lowered = jax.jit(jaxpr_as_fun(program)).lower(*program.in_avals)
    return lowered.cost_analysis()["flops"]


def unrolled(program: Any) -> Any:
    """The same program with every scan written out; what is no program stays."""
    if isinstance(program, ClosedJaxpr):
        return ClosedJaxpr(unrolled(program.jaxpr), program.consts)
    if isinstance(program, tuple | list):
        return type(program)(map(unrolled, program))
    if not isinstance(program, Jaxpr):
        return program
    equations = []
    for equation in program.eqns:
        params = {
            name: unrolled(value) if _holds_program(value) else value
            for name, value in equation.params.items()
        }
        if equation.primitive.name == "scan":
            params["unroll"] = params["length"]
        equations.append(equation.replace(params=params))
    return program.replace(eqns=equations)


def _holds_program(value: Any) -> bool:
    """Named tuples of other things must not be taken apart."""
    if isinstance(value, tuple | list):
        return any(map(_holds_program, value))
    return isinstance(value, ClosedJaxpr | Jaxpr)
