"""`import ds_llama` is cheap, and its names are what they say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import ds_llama

FACE = {
    "Llama",
    "LlamaConfig",
    "add_config_arguments",
    "averaged",
    "construct",
    "init_distributed",
    "initialize",
    "load_run",
    "plan",
    "preset",
    "presets",
    "register",
    "register_traits",
    "simulate",
    "train",
}


def in_a_new_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_importing_the_package_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'deepspeed', 'transformers', 'numpy', 'pydantic', 'typer', 'rich'}"
    assert in_a_new_process(f"import sys, ds_llama; print({heavy} & set(sys.modules))") == "set()"


def test_config_names_do_not_import_torch() -> None:
    code = "import sys, ds_llama as dl; dl.presets(), dl.LlamaConfig, dl.load_run, dl.plan; "
    assert in_a_new_process(code + "print('torch' in sys.modules)") == "False"


def test_the_face_is_complete() -> None:
    assert set(dir(ds_llama)) == FACE | {"__version__"} == set(ds_llama.__all__)


@pytest.mark.parametrize("name", sorted(FACE))
def test_every_name_is_found(name: str) -> None:
    found = getattr(ds_llama, name)
    assert callable(found)
    assert found.__name__ == name
    assert getattr(ds_llama, name) is found


def test_no_room_is_named_as_a_public_function() -> None:
    """Importing a submodule sets it as an attribute, and would hide the function."""
    package = Path(ds_llama.__file__).parent
    rooms = {path.name.removesuffix(".py") for path in package.iterdir()}
    assert rooms & set(ds_llama.__all__) == set()


def test_an_unknown_name_says_which_there_are() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'Lama'; its names are Llama, "):
        ds_llama.Lama  # noqa: B018


def test_the_version_is_the_packages() -> None:
    code = "from importlib import metadata; print(metadata.version('ds_llama'))"
    assert in_a_new_process(code) == ds_llama.__version__
