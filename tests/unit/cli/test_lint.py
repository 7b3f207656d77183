"""`ds-llama lint` as a person calls it."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ds_llama.cli.main import main
from ds_llama.config import shipped

WRONG = '{\n  "zero_optimisation": {"stage": 2},\n  "gradient_clipping": 1.0\n}\n'
RIGHT = WRONG.replace("optimisation", "optimization")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "ds.json"
    path.write_text(WRONG)
    return path


def called(capsys, *words):
    code = main(["lint", *map(str, words)])
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return code, said.out, said.err


def test_fix_writes_a_copy_and_shows_the_difference(capsys, file):
    code, out, _ = called(capsys, "--fix", file)
    assert code == 0
    assert file.read_text() == WRONG
    assert file.with_suffix(".fixed.json").read_text() == RIGHT
    assert '-  "zero_optimisation": {"stage": 2},\n+  "zero_optimization": {"stage": 2},' in out
    assert f"{file}: 1 fixed, written to {file.with_suffix('.fixed.json')}" in out


def test_fix_elsewhere_and_in_place(capsys, file, tmp_path):
    other = tmp_path / "other.json"
    assert called(capsys, "--fix", file, "--output", other)[0] == 0
    assert (file.read_text(), other.read_text()) == (WRONG, RIGHT)
    assert called(capsys, "--fix", file, "--in-place")[0] == 0
    assert file.read_text() == RIGHT
    code, out, _ = called(capsys, "--fix", other)
    assert (code, out) == (0, f"{other}: no fix; what is left:\n{other}: clean\n")
    assert not (tmp_path / "other.fixed.json").exists()


def test_in_place_keeps_the_mode_and_follows_a_link(capsys, file, tmp_path):
    file.chmod(0o640)
    link = tmp_path / "link.json"
    link.symlink_to(file)
    assert called(capsys, "--fix", "--in-place", link)[0] == 0
    assert link.is_symlink()
    assert file.read_text() == RIGHT
    assert file.stat().st_mode & 0o777 == 0o640
    assert {path.name for path in tmp_path.iterdir()} == {"ds.json", "link.json"}


def test_line_ends_stay_as_they_were(capsys, file):
    file.write_bytes(b"\xef\xbb\xbf" + WRONG.replace("\n", "\r\n").encode())
    assert called(capsys, "--fix", file)[0] == 0
    assert file.with_suffix(".fixed.json").read_bytes() == RIGHT.replace("\n", "\r\n").encode()


def test_fix_reports_what_it_leaves(capsys, file):
    file.write_text('{"bf16": {"enabled": true}, "zero_optimisation": {"stage": 0}}')
    code, out, _ = called(capsys, "--fix", "--json", file)
    assert code == 1
    (document,) = json.loads(out)["files"]
    assert [problem["code"] for problem in document["problems"]] == ["half-at-stage-0"]
    assert [p["code"] for p in document["applied"]] == ["unknown-key", "changed-default"]
    assert document["written"] == str(file.with_suffix(".fixed.json"))


def test_fix_of_what_cannot_be_read_writes_nothing(capsys, file):
    file.write_text('{"a": 1, // mine\n}')
    code, out, _ = called(capsys, "--fix", file)
    assert code == 2
    assert "not JSON: a comment" in out
    assert not file.with_suffix(".fixed.json").exists()


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ([], "no file is named"),
        (["ds.json", "--output", "x"], "--output and --in-place belong to --fix"),
        (["ds.json", "--fix", "--in-place", "--output", "x"], "together"),
        (["a.json", "b.json", "--fix", "--output", "x"], "one --output for 2 files"),
        (["-", "--fix"], "nowhere to go"),
        (["--explain", "no-such"], "there is no code 'no-such'"),
        (["--schema", "nothing"], "nothing"),
        (["ds.json", "--world-size", "0"], "greater than or equal to 1"),
        (["ds.json", "--dialect", "french"], "french"),
    ],
)
def test_a_wrong_call(capsys, words, what):
    code, out, err = called(capsys, *words)
    assert (code, out) == (2, "")
    assert what in err
    assert "remedy: " in err


def test_fix_to_a_place_that_cannot_be_written(capsys, file, tmp_path):
    code, _, err = called(capsys, "--fix", file, "--output", tmp_path / "none" / "x.json")
    assert code == 2
    assert "cannot be written: no such file or directory" in err


def test_standard_input(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(WRONG))
    code, out, _ = called(capsys, "-")
    assert code == 1
    assert "error [unknown-key] -:zero_optimisation" in out


def test_explain_and_schema(capsys):
    code, out, _ = called(capsys, "--explain")
    assert code == 0
    assert len(out.splitlines()) > 120
    code, out, _ = called(capsys, "--explain", "unknown-key")
    assert (code, out.splitlines()[0]) == (0, "unknown-key (error)")
    for words in (["--schema"], ["--schema", "deepspeed"], ["--schema", "run"]):
        code, out, _ = called(capsys, *words)
        assert code == 0
        assert json.loads(out)["$schema"].endswith("2020-12/schema")


def test_world_size_and_device(capsys, file):
    file.write_text('{"train_batch_size": 8, "gradient_clipping": 1.0, "aio": {"use_gds": true}}')
    file.write_text('{"train_batch_size": 8, "gradient_clipping": 1.0}')
    assert called(capsys, file, "--world-size", "4")[0] == 0
    code, out, _ = called(capsys, file, "--world-size", "3")
    assert code == 1
    assert "train_batch_size (8) do not fit together on 3 data-parallel ranks" in out
    run = {"model": {"preset": "tiny"}, "data": {"train": "x"}}
    run |= {"deepspeed": "zero3_superoffload", "train": {"global_batch_size": 3, "step": 5}}
    file.write_text(json.dumps(run))
    code, out, _ = called(capsys, file, "--device", "cpu", "--json")
    assert {problem["code"] for problem in json.loads(out)["files"][0]["problems"]} == {
        "unknown-key",  # of the run, and at once what its DeepSpeed JSON meets on a CPU
        "needs-gpu",
    }


def test_a_file_of_the_trainer_is_recognised(capsys, file):
    file.write_text(
        '{"train_batch_size": "auto", "zero_optimization": {"stage": 2, "overlap_comm": "auto"}}'
    )
    _, out, _ = called(capsys, file)
    assert "hint:" in out
    assert "--dialect huggingface" in out
    assert out.count("[auto-value]") == 1
    assert "(also at zero_optimization.overlap_comm)" in out
    _, out, _ = called(capsys, file, "--json")
    assert out.count("auto-value") == 2


def test_no_character_of_a_file_reaches_the_terminal_raw(capsys, file):
    file.write_text(json.dumps({"\ud800\x1b[31m": 1, "a\nb": 2}))
    code, out, _ = called(capsys, file)
    assert code == 1
    assert "\\ud800\\x1b[31m" in out
    assert "\x1b" not in out
    assert "a\\nb" in out


def test_it_is_fast_and_imports_no_torch():
    """A file in half a second; the bar is loose, for a machine that does other things too."""
    code = (
        "import sys; from ds_llama.cli.main import main; code = main(sys.argv[1:]);"
        "sys.exit(3 if {'torch', 'deepspeed', 'transformers'} & sys.modules.keys() else code)"
    )
    words = ["lint", "--strict", *map(str, shipped.folder().glob("*.json"))]
    started = time.process_time()
    before = _children_s()
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert _children_s() - before < 2
    assert time.process_time() - started < 2


def _children_s():
    import resource

    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_the_readme_shows_what_is_printed(capsys, tmp_path, monkeypatch):
    page = (Path(__file__).parents[3] / "README.md").read_text()
    [shown] = re.findall(r"\$ ds-llama lint ds.json\n(.*?)```", page, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    content = {"offload_optimizer": {"device": "cpu"}, "zero_optimization": {"stage": 2}}
    content |= {"train_batch_size": 8, "train_micro_batch_size_per_gpu": 3}
    Path("ds.json").write_text(json.dumps({**content, "gradient_clipping": 1.0}))
    assert called(capsys, "ds.json") == (1, shown, "")
