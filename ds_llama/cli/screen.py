"""What `ds-llama generate` shows of texts while they are being written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ds_llama.evals.complete import Coder, Completion
    from ds_llama.evals.load import Loaded
    from ds_llama.evals.sampling import Sampling


class Screen:
    """Prints texts behind their prompts, in order: one as it comes, others when it is their turn.

    Each piece is flushed, so that it is seen at once behind a pipe too.
    """

    def __init__(self, openings: list[str]) -> None:
        self._pieces = [[text] for text in openings]
        self._ended = [False for _ in openings]
        self._row, self._inside = 0, False

    def __call__(self, row: int, piece: str, last: bool) -> None:
        self._pieces[row].append(piece)
        self._ended[row] = last
        while self._row < len(self._pieces):
            text, self._pieces[self._row] = "".join(self._pieces[self._row]), []
            self._inside = self._inside or bool(text)
            if not self._ended[self._row]:
                print(text, end="", flush=True)
                return
            self._row, self._inside = self._row + 1, False
            print(text, end="\n\n" if self._row < len(self._pieces) else "\n", flush=True)

    def break_off(self) -> None:
        """Leave the line that a text is on."""
        if self._inside:
            print(flush=True)


def screened(
    screen: Screen | None,
    loaded: Loaded,
    coder: Coder,
    prompts: list[str],
    *,
    sampling: Sampling,
    **settings: Any,
) -> list[Completion]:
    """`complete` onto a screen, if any, whose line is left before an interruption is passed on."""
    from ds_llama.evals.complete import complete

    try:
        return complete(
            *(loaded.model, loaded.config, coder, prompts),
            sampling=sampling,
            on_text=screen,
            **settings,
        )
    except KeyboardInterrupt:
        if screen is not None:
            screen.break_off()
        raise
