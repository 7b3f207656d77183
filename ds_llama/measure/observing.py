"""Dispatch modes for measuring: beside torch.compile, and told of the operations asked for."""

from __future__ import annotations

import abc
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from ds_llama.measure import storages


class Beside(TorchDispatchMode):
    """A dispatch mode under which torch compiles as it would without.

    Another mode would be given every operation that was written, and torch compiles nothing while
    it is entered, nor ever again what it has then seen (torch/_dynamo/convert_frame.py:2538). This
    one is given what compiled code runs: products of matrices, attention, collectives, copies.
    """

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True

    def __enter__(self) -> Any:
        storages.load_dynamo()
        return super().__enter__()


class Observing(Beside, abc.ABC):
    """Entered by itself, or under an Account that `observe`s it (`measure.accounting.Observer`)."""

    @abc.abstractmethod
    def observes(self, func: Any) -> bool:
        """Whether it wants to know of an operation at all."""

    @abc.abstractmethod
    def saw(self, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
        """An operation has run."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if self.observes(func):
            self.saw(func, args, kwargs, out)
        return out
