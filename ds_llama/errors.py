"""One exception tree. Every member says what is wrong, where, and what to do about it."""

from __future__ import annotations


class DsLlamaError(Exception):
    """A mistake that a user can mend, or a run that failed; never a bug of this package.

    `what` is one sentence, `where` is `file:key` (or a path, a host, a rank), `remedy` an action.
    The command line prints the three as lines of their own and exits with `exit_code`.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str, remedy: str) -> None:
        super().__init__(what)
        self.what, self.where, self.remedy = what, where, remedy

    def __str__(self) -> str:
        return f"error: {self.what}\nwhere: {self.where}\nremedy: {self.remedy}"

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.what, self.where, self.remedy))


def _rebuild(cls: type[DsLlamaError], what: str, where: str, remedy: str) -> DsLlamaError:
    return cls(what, where=where, remedy=remedy)


class CallError(DsLlamaError):
    """The call is wrong: a missing file, a file that is not JSON, an unknown override path."""

    exit_code = 2


class ConfigError(DsLlamaError):
    """The content of a run, a DeepSpeed JSON, a model config or a hostfile is wrong.

    `code` is the stable name of the check that found it.
    """

    code = "invalid"


class ModelError(DsLlamaError):
    """A model and its traits, weights or inputs do not fit each other."""


class DataError(DsLlamaError):
    """A tokenizer, corpus or shard is missing, foreign or damaged."""


class CheckpointError(DsLlamaError):
    """A checkpoint is missing, incomplete, damaged, or of another run."""


class MachineError(DsLlamaError):
    """The machine lacks something: a compiler, disk, a device, a working op build."""


class RunError(DsLlamaError):
    """A run started and failed: non-finite loss, a rank that died, a step that cannot go on."""


class ConfigErrors(ConfigError):
    """Every problem that was found in one reading, raised once. `errors` holds them in order."""

    def __init__(self, errors: list[ConfigError]) -> None:
        first = errors[0]
        super().__init__(first.what, where=first.where, remedy=first.remedy)
        self.errors = errors

    def __str__(self) -> str:
        return "\n\n".join(str(error) for error in self.errors)

    def __reduce__(self) -> tuple[object, ...]:
        return (ConfigErrors, (self.errors,))
