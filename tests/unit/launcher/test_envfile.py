from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds_llama.errors import CallError, ConfigErrors
from ds_llama.launcher.envfile import environment, exported, is_secret, parse, read

NAME = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True)


def test_what_is_right() -> None:
    text = (
        "# for all\n\nNCCL_DEBUG=INFO\r\n  # rack 2\nA=b c;d  'e' && f=\"g\" # \nEMPTY=\nB=ü\\n$5\n"
    )
    text = text.replace(" # \n", "\n")
    assert parse(text, "env") == {
        "NCCL_DEBUG": "INFO",
        "A": "b c;d  'e' && f=\"g\"",
        "EMPTY": "",
        "B": "ü\\n$5",
    }


WRONG = [
    ("A", "'A' has no =", "1:2", "write NAME=value"),
    ("=x", "'' is not a variable's name", "1:1", "write NAME=value"),
    ("A =x", "'A ' is not a variable's name", "1:1", "write NAME=value"),
    (" A=x", "' A' is not a variable's name", "1:1", "write NAME=value"),
    ("A;id=x", "'A;id' is not a variable's name", "1:1", "write NAME=value"),
    ("$(id)=x", "'$(id)' is not a variable's name", "1:1", "write NAME=value"),
    ("-x=y", "'-x' is not a variable's name", "1:1", "write NAME=value"),
    ("Ä=x", "'Ä' is not a variable's name", "1:1", "write NAME=value"),
    ("A= x", "a blank after =", "1:3", "write NAME=value without blanks"),
    ("export A=x", "'export' is for a shell, which this is not", "1:1", "write NAME=value"),
    ("A=b$(id)", "'$(' is for a shell, and no shell reads this file", "1:4", "write the value out"),
    ("A=`id`", "'`' is for a shell, and no shell reads this file", "1:3", "write the value out"),
    ("P=/x:$PATH", "'$P' is for a shell, and no shell reads this file", "1:6", "write the value"),
    ("P=${HOME}", "'${' is for a shell, and no shell reads this file", "1:3", "write the value"),
    ('A="b c"', "the quotes would be part of the value", "1:3", "leave them out"),
    ("A=''", "the quotes would be part of the value", "1:3", "leave them out"),
    ("A=b # c", "a comment would be part of the value", "1:5", "give it a line of its own"),
    ("A=1\nA=2", "A is set twice", "2:1", "keep one of the lines"),
    ("RANK=0", "RANK is set by the launcher, for each rank", "1:1", "leave it out"),
    (
        "CUDA_VISIBLE_DEVICES=0",
        "CUDA_VISIBLE_DEVICES is set by the launcher, for each host",
        "1:1",
        "choose devices by --include or --exclude",
    ),
    ("A=b\0c", "U+0000 does not belong into a text", "1:4", "take it out"),
    ("A=b\rB=c", "U+000D does not belong into a text", "1:4", "take it out"),
    ("A=\x1b[2J", "U+001B does not belong into a text", "1:3", "take it out"),
    ("# \x1b[2J", "U+001B does not belong into a text", "1:3", "take it out"),
    ("\ufeffA=b", "a byte order mark, which is not part of a name", "1:1", "save the file"),
]


@pytest.mark.parametrize(("text", "what", "where", "remedy"), WRONG)
def test_what_is_wrong(text: str, what: str, where: str, remedy: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        parse(text, "env")
    [error] = caught.value.errors
    assert (error.what, error.where) == (what, f"env:{where}")
    assert error.remedy.startswith(remedy)


def test_every_wrong_line_is_named() -> None:
    with pytest.raises(ConfigErrors) as caught:
        parse("A\nB=1\nC =1\n", "env")
    assert [error.where for error in caught.value.errors] == ["env:1:2", "env:3:1"]


def test_deepspeeds_places(tmp_path: Path) -> None:
    home, cwd = tmp_path / "home", tmp_path / "cwd"
    for folder, text in ((home, "A=home\nB=home\n"), (cwd, "A=cwd\n")):
        folder.mkdir()
        (folder / ".deepspeed_env").write_text(text)
    assert read({}, cwd, home) == {"A": "cwd", "B": "home"}
    assert read({}, home, home) == {"A": "home", "B": "home"}
    assert read({}, tmp_path, tmp_path) == {}
    assert environment({"NCCL_X": "1", "B": "no"}, cwd, home)["NCCL_X"] == "1"
    (cwd / "other").write_text("C=1\n")
    assert read({"DS_ENV_FILE": "other"}, cwd, home) == {"C": "1"}
    assert read({"DS_ENV_FILE": str(cwd / "other")}, tmp_path, home) == {"C": "1"}
    with pytest.raises(CallError, match="no file 'elsewhere' in the home and") as caught:
        read({"DS_ENV_FILE": "elsewhere"}, cwd, home)
    assert (caught.value.where, caught.value.exit_code) == ("DS_ENV_FILE", 2)
    assert caught.value.remedy == "name a file that is there, or unset DS_ENV_FILE"


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / ".deepspeed_env").mkdir()
    with pytest.raises(CallError, match="the environment file cannot be read: Is a dir") as caught:
        read({}, tmp_path, tmp_path)
    assert caught.value.remedy == "mend it, or move it away"


def test_what_is_exported() -> None:
    environ = {
        "NCCL_DEBUG": "INFO",
        "PYTHONPATH": "/x",
        "OMP_NUM_THREADS": "4",
        "TOKENIZERS_PARALLELISM": "false",
        "WANDB_PROJECT": "p",
        "WANDB_API_KEY": "secret",
        "HF_TOKEN": "secret",
        "MLFLOW_TRACKING_PASSWORD": "secret",
        "PATH": "/bin",
        "LD_PRELOAD": "x",
        "DS_LLAMA_LAUNCH": "/tmp/x",
        "NCCL_$(id)": "x",
        "CUDA_VISIBLE_DEVICES": "0",
        "CUDA_LAUNCH_BLOCKING": "1",
    }
    names = {"NCCL_DEBUG", "PYTHONPATH", "OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM"}
    assert set(exported(environ)) == names | {"WANDB_PROJECT", "CUDA_LAUNCH_BLOCKING"}
    assert "NCCL_IB_HCA" in exported({"NCCL_IB_HCA": "x"})
    assert exported({"NCCL_IB_HCA": "x", "AISC_JOB_NAME": "j"}) == {}


def test_all_that_deepspeed_exports_is_exported() -> None:
    from deepspeed.accelerator.cuda_accelerator import CUDA_Accelerator
    from deepspeed.launcher.runner import EXPORT_ENVS

    prefixes = [*EXPORT_ENVS, *CUDA_Accelerator.export_envs(CUDA_Accelerator)]
    assert set(exported({f"{prefix}_X": "1" for prefix in prefixes})) == {
        f"{prefix}_X" for prefix in prefixes
    }


@pytest.mark.parametrize(
    "name", ["WANDB_API_KEY", "HF_TOKEN", "wandb_apikey", "MLFLOW_S3_SECRET", "X_AUTH", "KEYS"]
)
def test_secrets(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize("name", ["TOKENIZERS_PARALLELISM", "PYTHONPATH", "NCCL_DEBUG"])
def test_no_secrets(name: str) -> None:
    assert not is_secret(name)


@given(st.text(max_size=60))
def test_no_text_is_a_traceback_or_a_shells(text: str) -> None:
    try:
        found = parse(text, "env")
    except ConfigErrors:
        return
    for name, value in found.items():
        assert f"{name}={value}" in text
        assert not {"\0", "\n", "\r", "`"} & set(value)


LITERAL = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zs"), exclude_characters="$`#"))


@settings(max_examples=30)
@given(st.dictionaries(NAME, LITERAL.map(lambda value: f"x{value}y"), max_size=5))
def test_values_arrive_as_they_stand_through_a_shell(values: dict[str, str]) -> None:
    """Quoted as the ssh transports quote: by shlex, for `sh -c` on the other side."""
    found = parse("".join(f"{name}={value}\n" for name, value in values.items()), "env")
    pairs = [f"{name}={value}" for name, value in found.items()]
    line = shlex.join(["env", "-i", *pairs, "/usr/bin/env", "-0"])
    done = subprocess.run(["sh", "-c", line], capture_output=True, check=True)
    assert sorted(done.stdout.decode().split("\0")[:-1]) == sorted(pairs)
