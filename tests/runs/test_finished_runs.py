"""The CSV file of finished runs: what it holds, that sweeps skip its runs, and files that are none."""

import csv
import sys

import pytest

from vit_registers import sweep
from vit_registers.config import Config, override, to_dict
from vit_registers.errors import ConfigError
from vit_registers.runs import sweep_cells, sweeps
from vit_registers.runs.finished_runs import COLUMNS, FinishedRuns, config_digest

RESULT = {
    "step": 20,
    "metrics": {"test/top1": 0.75},
    "best": None,
    "time_s": 12.5,
    "platform": {"platform": "cpu", "device_kind": "cpu", "count": 1},
    "versions": {"jax": "1"},
    "commit": "abc",
}


def test_the_digest_is_that_of_settings_with_an_effect_on_results():
    base = config_digest(Config())
    assert base == config_digest(override(to_dict(Config()), {"run.log_every_steps": 7}))
    for key, value in (("model.depth", 5), ("run.seed", 3), ("data.name", "digits")):
        assert config_digest(override(to_dict(Config()), {key: value})) != base
    assert len({config_digest(override(to_dict(Config()), {"run.seed": seed})) for seed in range(50)}) == 50


def test_lines_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "finished.csv"
    configs = [override(to_dict(Config()), {"run.seed": seed}) for seed in range(3)]
    written = FinishedRuns(path)
    assert written.find(configs[0]) is None and not path.exists()
    for seed in (0, 1, 1):  # the last has a line
        written.add(f'seed={seed},a="b"', configs[seed], RESULT | {"commit": f"commit {seed}"})
    lines = list(csv.DictReader(path.read_text().splitlines()))
    assert tuple(lines[0]) == COLUMNS and len(lines) == 2
    assert (lines[1]["seed"], lines[1]["commit"], lines[1]["time_s"]) == ("1", "commit 1", "12.5")
    read = FinishedRuns(path)
    assert read.find(configs[1]) == RESULT | {"commit": "commit 1"} == written.find(configs[1])
    assert read.find(configs[2]) is None


def test_what_another_sweep_adds_is_kept(tmp_path):
    one, other = (FinishedRuns(tmp_path / "finished.csv") for _ in range(2))
    configs = [override(to_dict(Config()), {"run.seed": seed}) for seed in range(2)]
    one.add("a", configs[0], RESULT)
    other.add("b", configs[1], RESULT)
    other.add("a", configs[0], RESULT | {"time_s": 1.0})
    read = FinishedRuns(tmp_path / "finished.csv")
    assert [read.find(config) for config in configs] == [RESULT, RESULT]
    assert (tmp_path / "finished.csv").read_text().count("\n") == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a,b\n1,2\n",
            "is no table of finished runs, whose columns are run,seed,config,commit,time_s,result",
        ),
        (
            f"{','.join(COLUMNS)}\na,0,abc,x,1\n",
            "line 2: the result is no JSON object, or the line is cut off",
        ),
        (f"{','.join(COLUMNS)}\na,0,abc,x,1,[]\n", "line 2: the result is no JSON object"),
        (f"{','.join(COLUMNS)}\na,0,abc,x,1,{{}},z\n", "line 2: the result is no JSON object"),
        (f"{','.join(COLUMNS)}\na,0,abc,x,1,{{}}\n", "line 2: the result has no 'metrics'"),
        ("\xff", "cannot be read"),
    ],
)
def test_files_that_are_no_table_are_refused(tmp_path, text, message):
    path = tmp_path / "finished.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=message):
        FinishedRuns(path)


def test_two_lines_of_a_config_are_refused(tmp_path):
    path = tmp_path / "finished.csv"
    FinishedRuns(path).add("a", Config(), RESULT)
    line = path.read_text().splitlines(keepends=True)[1]
    path.write_text(path.read_text() + line)
    with pytest.raises(ConfigError, match=r"line 3: the config \w{16} has a line before"):
        FinishedRuns(path)


@pytest.mark.parametrize("name", ["runs.txt", "missing/finished.csv", "gs://bucket/finished.csv"])
@pytest.mark.parametrize("program", ["sweep", "tabulate"])
def test_paths_that_are_none_are_refused(run_here, tmp_path, program, name):
    given = name if name.startswith("gs:") else tmp_path / name
    code, _, err = run_here(program, "--config=digits", f"--workdir={tmp_path}/work", f"--finished={given}")
    assert code == 2 and "must be the path of a .csv file in a local folder that exists" in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.slow
def test_a_sweep_goes_on_from_the_file_in_another_folder(make, fake, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sweep, "TRAIN", (sys.executable, str(fake)))
    path, work = tmp_path / "finished.csv", make()
    assert sweep.work_off(work.runs[:3], 8, False, FinishedRuns(path)) == []
    assert path.read_text().count("\n") == 4
    elsewhere = make(workdir=tmp_path / "elsewhere")
    capsys.readouterr()
    assert sweep.work_off(elsewhere.runs[:4], 8, False, FinishedRuns(path)) == []
    lines = capsys.readouterr().out.splitlines()
    assert [line.endswith("in the file of finished runs") for line in lines] == [True, True, True, False]
    assert [run.folder.exists() for run in elsewhere.runs[:4]] == [False, False, False, True]
    assert path.read_text().count("\n") == 5
    nowhere = make(workdir=tmp_path / "nowhere")
    results = [
        result for cell in sweep_cells.read_cells(nowhere, FinishedRuns(path)) for result in cell.results
    ]
    assert results == [sweeps.read_result(run) for run in (*work.runs[:3], elsewhere.runs[3])]
    assert not any(cell.results for cell in sweep_cells.read_cells(nowhere))
    sweep.print_runs(nowhere.runs, FinishedRuns(path))
    assert "4 finished, 4 not started" in capsys.readouterr().out
