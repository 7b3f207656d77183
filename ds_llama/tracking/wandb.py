"""Weights & Biases through its own client, which is imported when a run asks for it."""

from __future__ import annotations

import importlib.util
import netrc
import os
import sys
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ds_llama.errors import MachineError
from ds_llama.tracking import redact
from ds_llama.tracking.base import Row
from ds_llama.tracking.guard import announce

RUN_ID_FILE = "wandb_run_id"
_INIT_TIMEOUT_S = 30.0
# A stopped run has 30 s before its launcher kills it, and its checkpoint comes first. What is not
# sent by then lies on disk for `wandb sync`.
_FINISH_TIMEOUT_S = 10.0


class WandbTracker:
    """`settings` is the run's `tracking.wandb`: project, entity, name, mode, tags.

    Without a mode: WANDB_MODE, else "online" when there is a login, else "offline", announced.
    The run's id is kept in OUTPUT/wandb_run_id, so that a resumed run goes on under the same id.
    Raises MachineError when wandb is not installed, and when "online" is asked for and there is no
    login: the client would prompt.
    """

    name = "W&B"

    def __init__(self, settings: Any) -> None:
        self._settings = settings
        self._run: Any = None

    def start(self, resolved: dict[str, Any], output: Path) -> None:
        if importlib.util.find_spec("wandb") is None:
            raise MachineError(
                "W&B is asked for and wandb is not installed",
                where="tracking.wandb",
                remedy="pip install wandb, or set tracking.wandb to null",
            )
        mode = self._mode()
        if mode == "online" and not has_login():
            raise MachineError(
                "W&B is to be online and there is no API key",
                where="tracking.wandb.mode",
                remedy='run "wandb login", set WANDB_API_KEY, or set the mode to "offline"',
            )
        output.mkdir(parents=True, exist_ok=True)
        run_id = persistent_id(output / RUN_ID_FILE)
        try:
            self._run = self._init(mode, run_id, resolved, output)
        except Exception as error:
            if mode != "online":
                raise
            announce(f"W&B cannot be reached ({error}); this run is tracked offline")
            mode = "offline"
            _forget()
            self._run = self._init(mode, run_id, resolved, output)
        if mode == "offline":
            announce(f'W&B is offline; send the run later with "wandb sync {_folder(self._run)}"')

    def log(self, row: Row) -> None:
        self._run.log({key: value for key, value in row.items() if value is not None})

    def rewind(self, step: int) -> None:
        """Nothing is taken back: `step` is a column, of whose rows the last counts."""

    def close(self, status: str) -> None:
        if self._run is not None:
            self._run.finish(exit_code=1 if status == "failed" else 0)

    def _mode(self) -> str:
        given = self._settings.mode or os.environ.get("WANDB_MODE")
        if given:
            return str(given)
        if has_login():
            return "online"
        announce("W&B: no login was found (WANDB_API_KEY or a netrc entry), so the run is offline")
        return "offline"

    def _init(self, mode: str, run_id: str, resolved: dict[str, Any], output: Path) -> Any:
        import wandb

        run = wandb.init(
            project=self._settings.project,
            entity=self._settings.entity,
            name=self._settings.name,
            tags=list(self._settings.tags or ()),
            id=run_id,
            resume="allow" if mode == "online" else None,
            dir=str(output),
            mode=mode,
            config=redact.without(resolved),
            settings=_client_settings(wandb),
        )
        # `step` is a column and not W&B's own counter, which refuses a step that it has had: a
        # resumed run makes some steps again.
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        return run


def has_login() -> bool:
    """Whether the client would find an API key, without looking at the key."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    given = os.environ.get("NETRC")
    files = [Path(given)] if given else [Path("~/.netrc"), Path("~/_netrc")]
    file = next((path.expanduser() for path in files if path.expanduser().exists()), None)
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        entry = netrc.netrc(str(file)).authenticators(host) if file else None
    except (OSError, netrc.NetrcParseError):
        return False
    return entry is not None and bool(entry[2])


def persistent_id(path: Path) -> str:
    """The id in `path`, which is made and written there the first time."""
    if path.exists() and (known := path.read_text(encoding="ascii").strip()):
        return known
    fresh = uuid.uuid4().hex[:12]
    path.write_text(fresh + "\n", encoding="ascii")
    return fresh


def _client_settings(wandb: Any) -> Any:
    wanted = {
        "init_timeout": _INIT_TIMEOUT_S,
        "finish_timeout": _FINISH_TIMEOUT_S,
        "login_timeout": _INIT_TIMEOUT_S,
        "console": "off",  # our own progress bar, over and over
        "silent": True,
        "disable_code": True,
        "disable_git": True,  # a remote's URL may hold a token
        "x_disable_meta": _secret_in(sys.argv),  # the command line is part of it
    }
    known = wandb.Settings.model_fields  # older clients lack some
    return wandb.Settings(**{key: value for key, value in wanted.items() if key in known})


def _forget() -> None:
    """End the client's own process, which still holds the run that it could not start."""
    import wandb

    wandb.teardown()


def _secret_in(arguments: list[str]) -> bool:
    values = redact.values()
    return any(
        redact.clean(argument, values) != argument
        or ("=" in argument and redact.is_secret_name(argument.partition("=")[0]))
        for argument in arguments
    )


def _folder(run: Any) -> str:
    return str(Path(run.dir).parent)
