"""launch/bootstrap.py: what a machine lacks is said before anything is installed.

Run as a script, with this machine's tools hidden one at a time. No test installs anything.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def bootstrap(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("bootstrap", repository / "launch/bootstrap.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkout(tmp_path: Path, repository: Path) -> Path:
    """A folder that bootstrap takes for a checkout."""
    for name in ("setup.cfg", "constraints.txt"):
        (tmp_path / name).write_text((repository / name).read_text())
    return tmp_path


def run(
    repository: Path, root: Path, *arguments: str, **env: str
) -> subprocess.CompletedProcess[str]:
    script = str(repository / "launch" / "bootstrap.py")
    return subprocess.run(
        [sys.executable, script, "--root", str(root), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **env},
    )


def test_an_old_python_can_read_it(repository: Path) -> None:
    source = (repository / "launch" / "bootstrap.py").read_text()
    tree = ast.parse(source, feature_version=(3, 6))
    names = {
        alias.name if isinstance(node, ast.Import) else node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert {str(name).split(".")[0] for name in names} <= sys.stdlib_module_names
    # Younger than 3.6: no subprocess.run(capture_output=), no walrus, no annotations from future.
    assert "__future__" not in names
    assert "capture_output" not in source
    assert not any(isinstance(node, ast.NamedExpr) for node in ast.walk(tree))


def test_an_old_python_is_told_so(bootstrap: ModuleType) -> None:
    with pytest.raises(bootstrap.Lacking) as caught:
        bootstrap.check_python((3, 9, 18))
    what, where, remedy = str(caught.value).splitlines()
    assert what == "error: Python 3.9.18 is too old: ds_llama needs 3.10 or newer"
    assert where == f"where: {sys.executable}"
    assert "apt install python3.11" in remedy
    assert "PYTHON=python3.11 bash launch/quickstart.sh" in remedy


def test_the_oldest_python_is_the_packages(bootstrap: ModuleType, repository: Path) -> None:
    oldest = ".".join(map(str, bootstrap.OLDEST_PYTHON))
    assert f"python_requires = >={oldest}" in (repository / "setup.cfg").read_text()
    torch = ".".join(map(str, bootstrap.OLDEST_TORCH))
    assert f"torch >= {torch}" in (repository / "setup.cfg").read_text()


def test_no_compiler(repository: Path, checkout: Path) -> None:
    done = run(repository, checkout, PATH=str(checkout), CXX="")
    assert done.returncode == 1
    what, where, remedy = done.stderr.splitlines()
    assert what.startswith("error: no C++ compiler: c++, g++, clang++ not found")
    assert where == "where: PATH"
    assert "apt install g++" in remedy
    assert "dnf install gcc-c++" in remedy
    assert "xcode-select --install" in remedy
    assert not (checkout / ".venv").exists()


def test_a_named_compiler_that_is_not_there(repository: Path, checkout: Path) -> None:
    done = run(repository, checkout, CXX="no-such-compiler -O3")
    assert done.stderr.splitlines()[:2] == [
        "error: no C++ compiler: no-such-compiler not found. DeepSpeed compiles its ops with one",
        "where: CXX",
    ]


def test_a_compiler_that_does_not_compile(repository: Path, checkout: Path) -> None:
    broken = checkout / "broken"
    broken.write_text("#!/bin/sh\necho 'fatal error: vector: No such file' >&2\nexit 1\n")
    broken.chmod(0o755)
    done = run(repository, checkout, CXX=str(broken))
    what, where, _ = done.stderr.splitlines()
    assert what == ("error: the C++ compiler does not work: fatal error: vector: No such file")
    assert where == f"where: {broken}"


def test_no_headers(bootstrap: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(bootstrap.Lacking) as caught:
        bootstrap.check_headers(str(tmp_path))
    what, where, remedy = str(caught.value).splitlines()
    assert what.startswith("error: Python's headers are missing")
    assert where == f"where: {tmp_path}"
    assert "apt install python3-dev" in remedy
    assert "dnf install python3-devel" in remedy


def test_no_room(repository: Path, checkout: Path) -> None:
    done = run(repository, checkout, "--need-gb", "1e9")
    assert done.returncode == 1
    what, where, remedy = done.stderr.splitlines()
    assert "GB free, 1e+09 GB needed for .venv with torch's CPU build" in what
    assert where == f"where: {checkout}"
    assert remedy.startswith("remedy: free some space")
    assert not (checkout / ".venv").exists()


def test_no_ensurepip(
    bootstrap: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap.util, "find_spec", lambda name: None)
    with pytest.raises(bootstrap.Lacking, match="cannot make virtual environments") as caught:
        bootstrap.check_venv(tmp_path / ".venv")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert f"apt install python{version}-venv" in str(caught.value)
    bootstrap.check_venv(tmp_path)  # there already


def test_an_old_torch_is_neither_used_nor_replaced(bootstrap: ModuleType) -> None:
    with pytest.raises(bootstrap.Lacking, match=r"torch 2.1.0\+cu118 is older than 2.6"):
        bootstrap.check_torch("2.1.0+cu118", "python")
    for good in ("2.6.0", "2.13.0+cpu", "3.0a0+git1", "2.10.0rc1"):
        bootstrap.check_torch(good, "python")


def test_a_torch_that_is_there_loosens_its_constraint_alone(
    bootstrap: ModuleType, checkout: Path
) -> None:
    shipped = checkout / "constraints.txt"
    assert bootstrap.constraints_for(checkout, checkout, None) == shipped
    loosened = bootstrap.constraints_for(checkout, checkout, "2.9.1+cu128").read_text()
    different = set(loosened.splitlines()) ^ set(shipped.read_text().splitlines())
    assert len(different) == 2
    assert "torch==2.9.1+cu128" in different


def test_this_pythons_torch_is_seen(bootstrap: ModuleType) -> None:
    from importlib import metadata

    assert bootstrap.torch_version(sys.executable) == metadata.version("torch")
    assert bootstrap.torch_version("/bin/false") is None


def test_a_second_run_does_nothing(repository: Path, checkout: Path, bootstrap: ModuleType) -> None:
    (checkout / ".venv").mkdir()
    stamp = checkout / ".venv" / "ds_llama-stamp.json"
    stamp.write_text(json.dumps([bootstrap.stamp_of(checkout, ["test"])]))
    nothing = str(checkout)  # no compiler either: it is not asked for
    done = run(repository, checkout, "--extra", "test", PATH=nothing)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    with (checkout / "constraints.txt").open("a") as file:
        file.write("# another\n")
    assert run(repository, checkout, "--extra", "test", PATH=nothing, CXX="").returncode == 1


def test_a_folder_that_is_no_venv(repository: Path, checkout: Path) -> None:
    (checkout / ".venv").mkdir()
    done = run(repository, checkout, "--need-gb", "0")
    assert done.stderr.splitlines() == [
        "error: .venv is no virtual environment",
        f"where: {checkout / '.venv'}",
        "remedy: remove that folder, then start again",
    ]


def test_a_failed_installation_shows_its_end_and_keeps_its_log(
    bootstrap: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log"
    script = "[print('line', i) for i in range(40)]; raise SystemExit(3)"
    with pytest.raises(bootstrap.Lacking, match=r"installing it failed \(exit code 3\)") as caught:
        bootstrap.run_logged("installing it", [sys.executable, "-c", script], log)
    assert f"where: {log}" in str(caught.value)
    assert "PIP_*" in str(caught.value)
    shown = capfd.readouterr().err.splitlines()
    assert (shown[0], shown[-1]) == ("line 25", "line 39")
    assert "line 0" in log.read_text()


def test_a_full_disk_is_recognised(bootstrap: ModuleType, tmp_path: Path) -> None:
    script = "raise SystemExit('OSError: [Errno 28] No space left on device')"
    with pytest.raises(bootstrap.Lacking, match="remedy: free some space"):
        bootstrap.run_logged("x", [sys.executable, "-c", script], tmp_path / "log")
