from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ds_llama.config.run import WandbConfig
from ds_llama.errors import MachineError
from ds_llama.tracking.wandb import WandbTracker, has_login, persistent_id

KEY = "5ecre7" + "0123456789abcdef" * 2 + "01"
_VARIABLES = ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE", "NETRC")


@pytest.fixture
def no_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in _VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


_RUN = """
import json, sys
from pathlib import Path
from ds_llama.config.run import WandbConfig
from ds_llama.tracking import wandb
from ds_llama.tracking.wandb import WandbTracker

wandb._INIT_TIMEOUT_S = 4.0
output, step = Path(sys.argv[1]), int(sys.argv[2])
tracker = WandbTracker(WandbConfig(project="p", tags=["one"], mode=sys.argv[3] or None))
tracker.start({"train": {"steps": 4}, "hub_token": "hunter2hunter2", "note": sys.argv[4]}, output)
tracker.log({"step": step, "loss": float("nan"), "mfu": None, "skipped": False})
tracker.log({"step": step + 1, "loss": 2.5, "mfu": None, "skipped": True})
tracker.close("stopped")
"""


def _run(output: Path, step: int, mode: str, note: str, **environment: str) -> str:
    """The real client in a process of its own, which it leaves nothing behind in."""
    done = subprocess.run(
        [sys.executable, "-c", _RUN, str(output), str(step), mode, note],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.usefixtures("no_login")
def test_the_real_client_offline(tmp_path: Path) -> None:
    output = tmp_path / "run"
    said = _run(output, 1, "", "plain")
    assert "W&B: no login was found (WANDB_API_KEY or a netrc entry), so the run is offline" in said
    assert 'send the run later with "wandb sync ' in said
    run_id = (output / "wandb_run_id").read_text().strip()
    # resumed with a key in the environment: the same id, and the key is nowhere
    said = _run(output, 3, "offline", f"a note with {KEY}", WANDB_API_KEY=KEY)
    assert "no login" not in said
    folders = sorted((output / "wandb").glob("offline-run-*"))
    assert len(folders) == 2
    for folder in folders:
        assert folder.name.endswith(run_id)
        assert (folder / f"run-{run_id}.wandb").stat().st_size > 0
    rows = [row for folder in folders for row in _history(folder / f"run-{run_id}.wandb")]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert [row["loss"] for row in rows] == [pytest.approx(v, nan_ok=True) for v in _LOSSES]
    assert all("mfu" not in row for row in rows)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 4
    for path in written:
        data = path.read_bytes()
        assert KEY.encode() not in data, path
        assert b"hunter2" not in data, path


_LOSSES = [float("nan"), 2.5, float("nan"), 2.5]


def _history(file: Path) -> list[dict[str, float]]:
    """The rows in the client's own file: protocol buffers in LevelDB's log format."""
    from wandb.proto import wandb_internal_pb2

    rows = []
    for data in _records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append(
                {item.key or item.nested_key[0]: json.loads(item.value_json) for item in items}
            )
    return rows


def _records(data: bytes) -> Iterator[bytes]:
    """Blocks of 32 KiB, each of pieces (crc 4, length 2, type 1, bytes); 7 bytes go before all."""
    block, whole, first, last = 32768, 1, 2, 4
    position, record = 7, b""
    while position + 7 <= len(data):
        if block - position % block < 7:
            position += block - position % block
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        piece = data[position + 7 : position + 7 + length]
        position += 7 + length
        record = piece if kind in (whole, first) else record + piece
        if kind in (whole, last):
            yield record


@pytest.mark.usefixtures("no_login")
def test_a_server_that_is_not_there_means_offline(tmp_path: Path) -> None:
    """Nobody listens on the discard port; the client tries again until its time is up."""
    said = _run(
        tmp_path / "run", 1, "", "plain", WANDB_API_KEY=KEY, WANDB_BASE_URL="http://127.0.0.1:9"
    )
    assert "W&B cannot be reached" in said
    assert "this run is tracked offline" in said
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*"))


@pytest.mark.usefixtures("no_login")
def test_online_without_a_login_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MachineError) as caught:
        WandbTracker(WandbConfig(mode="online")).start({}, tmp_path)
    assert caught.value.what == "W&B is to be online and there is no API key"
    assert caught.value.where == "tracking.wandb.mode"
    assert 'run "wandb login"' in caught.value.remedy


def test_a_client_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MachineError, match="W&B is asked for and wandb is not installed") as caught:
        WandbTracker(WandbConfig(mode="offline")).start({}, tmp_path)
    assert caught.value.where == "tracking.wandb"
    assert caught.value.remedy == "pip install wandb, or set tracking.wandb to null"


@pytest.mark.usefixtures("no_login")
def test_logins_that_the_client_would_find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not has_login()
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine elsewhere.example login user password x\n")
    netrc.chmod(0o600)
    assert not has_login()
    netrc.write_text("machine api.wandb.ai login user password x\n")
    assert has_login()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example:8080")
    assert not has_login()
    netrc.write_text("machine wandb.example login\n")
    assert not has_login()
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert has_login()


@pytest.mark.usefixtures("no_login")
def test_the_mode_is_the_runs_then_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert WandbTracker(WandbConfig())._mode() == "disabled"
    assert WandbTracker(WandbConfig(mode="offline"))._mode() == "offline"
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert WandbTracker(WandbConfig())._mode() == "online"


def test_the_id_is_made_once(tmp_path: Path) -> None:
    first = persistent_id(tmp_path / "id")
    assert len(first) == 12
    assert persistent_id(tmp_path / "id") == first
    (tmp_path / "id").write_text("mine\n")
    assert persistent_id(tmp_path / "id") == "mine"
