"""What a round must not do: make the host wait for the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

WAITS = ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "masked_select", "_unique", "unique")


class NoSync(TorchDispatchMode):
    """Within it, whatever waits raises AssertionError: values read, shapes made from values, copies between devices.

    Copies show on the meta device, which stands for any that is not the CPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        """Operations seen, to show that there were any."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        name = func.overloadpacket.__name__
        if name.rstrip("2") in WAITS or (name in ("index", "index_put", "index_put_") and has_mask(args[1])):
            raise AssertionError(f"{func} waits for the device")
        out = func(*args, **(kwargs or {}))
        devices = {value.device.type for value in (*args, out) if isinstance(value, Tensor) and value.ndim}
        assert len(devices) < 2, f"{func} copies between devices"
        return out


def has_mask(indices: Any) -> bool:
    return any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in indices)
