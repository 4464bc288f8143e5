"""Rounds as compiled code: what lies between the products is fused, and on a GPU a round is one graph.

Compiling takes about a minute, so it pays for many images. On a CPU the weights are built into the code, laid out for
the processor; weights that have changed since are noticed, and the round is compiled again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from imgtok.generators.pack import is_packed

MOST_KINDS = 64  # of rounds (strategies, batches, guidance) that stay compiled
_built_in: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()  # versions of the weights that the code holds


@contextmanager
def compiling(step: Callable[..., Any], generator: nn.Module, varied: str) -> Iterator[Callable[..., Any]]:
    """`step` of tensors, compiled when it is first called; `varied`: its argument, a number, that takes many values.

    ValueError for a packed generator, whose weights no compiler can read; RuntimeError where there is no compiler.
    """
    import torch._dynamo  # here and below: a second that only those who compile should wait for
    import torch._inductor.config

    if is_packed(generator):
        raise ValueError("a packed generator cannot be compiled; give the generator that it was made from")
    device = next(generator.parameters()).device
    if not can_compile(device):
        raise RuntimeError("compiling for the CPU needs a C++ compiler such as g++, and none was found; do without")
    check_built_in(generator)
    cuda = device.type == "cuda"
    options: dict[str, Any] = {"triton.cudagraphs": cuda}
    if hasattr(torch.compiler, "skip_guard_on_all_nn_modules_unsafe"):  # from torch 2.8 on
        options["guard_filter_fn"] = needed
    run = torch.compile(step, fullgraph=True, options=options)

    def replay(*args: Any) -> Any:
        torch.compiler.cudagraph_mark_step_begin()
        return own_tensors(run(*args))  # the next replay writes over what this one has returned

    dynamo = torch._dynamo.config.patch(recompile_limit=MOST_KINDS, accumulated_recompile_limit=4 * MOST_KINDS)
    config: Any = torch.compiler.config
    known = hasattr(config, "dynamic_sources")  # else it is compiled twice: for one value, then for any
    sources = config.patch(dynamic_sources=f"L['{varied}']") if known else nullcontext()
    with dynamo, sources, torch._inductor.config.patch(freezing=not cuda):
        yield replay if cuda else run


def can_compile(device: torch.device) -> bool:
    """Whether this machine has what it takes."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    if device.type != "cpu":
        return True
    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, ImportError):
        return False
    return True


def check_built_in(generator: nn.Module) -> None:
    """Forgets all compiled code if these weights were changed in place since they were built in."""
    import torch._dynamo

    version = sum(parameter._version for parameter in generator.parameters())
    if _built_in.setdefault(generator, version) != version:
        torch._dynamo.reset()
        _built_in.clear()
        _built_in[generator] = version


def needed(guards: Any) -> list[bool]:
    """Leaves out the thousands of checks that a generator's modules are what they were: half a millisecond a round."""
    return [
        guard.guard_type in ("ID_MATCH", "TENSOR_MATCH") or not guard.orig_guard.source.is_unspecialized_nn_module()
        for guard in guards
    ]


def own_tensors(values: Any) -> Any:
    """Copies that share no memory and have no strides of their own: compiled code tells such things apart."""
    return tree_map_only(Tensor, lambda tensor: tensor.clone(memory_format=torch.contiguous_format), values)
