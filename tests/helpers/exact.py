"""float64 all the way: models round some of their work to float32 whatever their weights are, which
hides small mistakes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class Exact(TorchFunctionMode):
    """While it is on, a float64 tensor is not turned into float32 by `.float()`,
    `.to(torch.float32)` or a softmax's dtype.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        settings = dict(kwargs or {})
        if args and isinstance(args[0], torch.Tensor) and args[0].dtype == torch.float64:
            name = getattr(func, "__name__", "")
            if name == "float" or (
                name in ("to", "type")
                and (torch.float32 in args[1:] or settings.get("dtype") is torch.float32)
            ):
                return args[0]
            if settings.get("dtype") is torch.float32:
                settings["dtype"] = torch.float64
        return func(*args, **settings)
