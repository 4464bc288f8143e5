"""What a round must not do: make the host wait for the device, or allocate what should be there already."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITS = ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "masked_select", "_unique", "unique")


class NoSync(TorchDispatchMode):
    """Within it, whatever waits raises AssertionError: values read, shapes made from values, copies between devices.

    Copies show on the meta device, which stands for any that is not the CPU. Given tensors of a cache, new memory as
    large as the smallest of them raises it too: a copy of one layer is a copy too many.
    """

    def __init__(self, cache: Sequence[Tensor] = (), rounds: int | None = None) -> None:
        """`rounds`: after so many calls of `round`, nothing is refused any more."""
        super().__init__()
        self.cache, self.rounds = [tensor.untyped_storage() for tensor in cache], rounds
        self.calls = 0
        """Operations seen, to show that there were any."""

    def round(self, progress: Any = None) -> None:
        """To be called after a round; `progress` is what `on_round` gives."""
        assert self.rounds is not None
        self.rounds -= 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        if self.rounds == 0:
            return func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name.rstrip("2") in WAITS or (name in ("index", "index_put", "index_put_") and has_mask(args[1])):
            raise AssertionError(f"{func} waits for the device")
        out = func(*args, **(kwargs or {}))
        devices = {value.device.type for value in (*args, out) if isinstance(value, Tensor) and value.ndim}
        assert len(devices) < 2, f"{func} copies between devices"
        if self.cache:
            self.refuse_new_memory(func, out)
        return out

    def refuse_new_memory(self, func: Any, out: Any) -> None:
        places, least = {own.data_ptr() for own in self.cache}, min(own.nbytes() for own in self.cache)
        for value in tree_leaves(out):
            storage = value.untyped_storage() if isinstance(value, Tensor) else None
            if storage is not None and storage.data_ptr() not in places:
                assert storage.nbytes() < least, f"{func} allocates as much as the cache"


def has_mask(indices: Any) -> bool:
    return any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in indices)
