"""Random byte edits in a run folder, which is then evaluated and resumed."""

import json
import random
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from tools.fuzz import programs
from tools.fuzz.settings import BASE

EDITS = ("flip", "flip", "flip", "cut", "extend", "empty", "remove", "folder")


class Reference(NamedTuple):
    """An unedited run that was stopped before its end, with its evaluation and its result after resuming."""

    folder: Path
    evaluated: dict[str, str]
    result: dict[str, Any]
    lines: set[str]


def _train(folder: Path, log: Path) -> programs.Ended:
    settings = (f"--config.{key}={text}" for key, text in BASE.items())
    return programs.run(
        "train", "--config=configs/digits.py:steps=6", f"--workdir={folder}", *settings, log=log
    )


def _evaluate(folder: Path, log: Path) -> tuple[programs.Ended, dict[str, str]]:
    ended = programs.run("evaluate", f"--checkpoint={folder}", log=log)
    pairs = (line.split(None, 1) for line in ended.out.splitlines())
    found = {pair[0]: pair[1] for pair in pairs if len(pair) == 2}
    return ended, {name: found.get(name, "") for name in ("step", "loss", "top1", "top5", "images")}


def _result(folder: Path) -> dict[str, Any]:
    values = json.loads((folder / "result.json").read_text())
    return {name: values[name] for name in ("step", "metrics", "best")}


def _lines(*ended: programs.Ended) -> set[str]:
    """The printed lines without numbers and paths, which differ from run to run."""
    text = "\n".join(one.out + one.err for one in ended)
    return {re.sub(r"[\d.]+|/\S+", "", line) for line in text.splitlines()}


def make_reference(folder: Path) -> Reference:
    """Trains the run to its end, then removes its last checkpoint and result."""
    log, run = folder / "log", folder / "reference"
    assert _train(run, log).code == 0
    shutil.rmtree(run / "checkpoints" / "6")
    (run / "result.json").unlink()
    evaluation, evaluated = _evaluate(run, log)
    shutil.rmtree(run / "evaluation")
    resumed = folder / "resumed"
    shutil.copytree(run, resumed, symlinks=True)
    again = _train(resumed, log)
    assert evaluation.code == again.code == 0, again.err
    return Reference(run, evaluated, _result(resumed), _lines(evaluation, again))


def edit(folder: Path, rng: random.Random) -> str:
    """Damages one file of the folder and returns a description."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    file, kind = rng.choice(files), rng.choice(EDITS)
    data = bytearray(file.read_bytes())
    if kind == "flip" and data:
        place = rng.randrange(len(data))
        data[place] ^= 1 << rng.randrange(8)
        file.write_bytes(data)
    elif kind == "cut":
        file.write_bytes(data[: rng.randrange(len(data) + 1)])
    elif kind == "extend":
        file.write_bytes(data + rng.randbytes(rng.randrange(1, 100)))
    elif kind == "empty":
        file.write_bytes(b"")
    else:
        file.unlink()
        if kind == "folder":
            file.mkdir()
    return f"{kind} {file.relative_to(folder)}"


def check(reference: Reference, folder: Path, seed: int) -> tuple[str, str]:
    """(the edit, the outcome). The outcome is "refused", "same", "said" (a message) or the fault."""
    shutil.copytree(reference.folder, folder / "run", symlinks=True)
    done, log = edit(folder / "run", random.Random(seed)), folder / "log"
    evaluation, evaluated = _evaluate(folder / "run", log)
    resumed = _train(folder / "run", log)
    for name, ended in (("evaluate", evaluation), ("train", resumed)):
        if ended.fault is not None:
            return done, f"fault: {name}: {ended.fault}"
    is_said = bool(_lines(evaluation, resumed) - reference.lines)
    if evaluation.code == 0 and evaluated != reference.evaluated and not is_said:
        return done, "fault: another evaluation without a message"
    if resumed.code == 0 and _result(folder / "run") != reference.result and not is_said:
        return done, "fault: another result without a message"
    if 2 in (evaluation.code, resumed.code):
        return done, "refused"
    return done, "said" if is_said else "same"
