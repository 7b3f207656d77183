"""Folders that `datasets` has saved (`save_to_disk`): which of their files hold the rows.

    dataset_dict.json   {"splits": ["train", "test"]}, and a folder of each name
    state.json          {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], ...}

Beside those lie caches of `map` and `filter`, which are Arrow files too.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ds_llama.data.fingerprint import read_json
from ds_llama.errors import CallError, DataError


def files_of(folder: Path, wanted: Callable[[str], bool]) -> list[Path] | None:
    """The Arrow files in their order, or None for a folder that is no saved dataset.

    Raises `CallError` for several splits of which none was chosen (`wanted` says which names are
    not excluded): to train on a test split is no default.
    """
    if (folder / "dataset_dict.json").is_file():
        return _of_a_split(folder, wanted)
    if not ((folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()):
        return None
    state = read_json(folder / "state.json")
    try:
        names = [str(entry["filename"]) for entry in state["_data_files"]]
    except (KeyError, TypeError) as error:
        raise _broken(folder, "it does not list the files that hold the rows") from error
    if state.get("_indices_data_files"):
        raise _broken(folder, "its rows are a selection, as datasets before 2.0 saved them")
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise _broken(folder, f"it names {name}, which is not there")
    return [folder / name for name in names]


def _of_a_split(folder: Path, wanted: Callable[[str], bool]) -> list[Path]:
    found = read_json(folder / "dataset_dict.json").get("splits")
    splits = [str(name) for name in found] if isinstance(found, list) else []
    chosen = [name for name in splits if wanted(name)]
    if len(chosen) > 1:
        raise CallError(
            f"this dataset has several splits: {', '.join(chosen)}",
            where=str(folder),
            remedy=f"name the folder of one, such as {folder / chosen[0]}, or leave the others "
            f"out: --exclude {chosen[-1]}",
        )
    files = files_of(folder / chosen[0], wanted) if chosen else []
    if files is None:
        raise _broken(folder / chosen[0], "it is not there")
    return files


def _broken(folder: Path, why: str) -> DataError:
    return DataError(
        f"the saved dataset is not whole: state.json: {why}",
        where=str(folder),
        remedy="copy the folder again, or save the dataset again with `save_to_disk`",
    )
