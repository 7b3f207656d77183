"""A dispatch mode that is told of the operations it asked for, after each."""

from __future__ import annotations

import abc
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from ds_llama.measure import storages


class Observing(TorchDispatchMode, abc.ABC):
    """Entered by itself, or under an Account that `observe`s it (`measure.accounting.Observer`)."""

    @abc.abstractmethod
    def observes(self, func: Any) -> bool:
        """Whether it wants to know of an operation at all."""

    @abc.abstractmethod
    def saw(self, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
        """An operation has run."""

    def __enter__(self) -> Any:
        storages.load_dynamo()
        return super().__enter__()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if self.observes(func):
            self.saw(func, args, kwargs, out)
        return out
