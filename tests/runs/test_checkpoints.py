"""Checkpoints: what is kept, what damage is noticed, what is restored, on how many devices."""

import json
import types

import jax
import numpy as np
import pytest
from etils import epath

from vit_registers.config import Checkpoint, Mesh
from vit_registers.errors import CheckpointError, ConfigError
from vit_registers.objectives.base import Best
from vit_registers.runs import checkpoint_folder, checkpoints
from vit_registers.runs.checkpoint_folder import find_step, newest_intact_step
from vit_registers.runs.checkpoints import Checkpoints
from vit_registers.runs.manifest import find_damage
from vit_registers.runs.retention import Keep
from vit_registers.runtime.mesh import make_mesh
from vit_registers.training import sharding
from vit_registers.training.state import TrainState


def _state(step, num_devices=1):
    mesh = make_mesh(Mesh(), devices=jax.devices()[:num_devices])
    rng = np.random.default_rng(step)
    values = {"kernel": rng.normal(size=(64, 32)).astype(np.float32)}
    layout = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    params = jax.device_put(values, layout)
    whole = jax.device_put(np.int32(step), sharding.replicated(mesh))
    return TrainState(step=whole, params=params, opt_state=({"mu": params["kernel"]},), ema=None)


def _abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def _save(run, config, steps, top1=None):
    with Checkpoints(str(run), config) as saver:
        for step in steps:
            saver.save(_state(step), {"top1": top1[step]} if top1 else None)


def _kept(run):
    return sorted(checkpoint_folder.list_steps(str(run)))


def _biggest_file(run, step):
    files = [p for p in (run / "checkpoints" / str(step) / "state").rglob("*") if p.is_file()]
    return max(files, key=lambda p: p.stat().st_size)


def _flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_every_leaf_comes_back_bit_for_bit(tmp_path, tiny):
    _save(tmp_path, tiny, [3])
    want = _state(3)
    with Checkpoints(str(tmp_path), tiny) as saver:
        got = saver.restore(_abstract(want))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(got), jax.device_get(want))


@pytest.mark.parametrize("num_devices", [1, 2, 8])
def test_saved_on_8_devices_and_restored_on_others(tmp_path, tiny, num_devices):
    with Checkpoints(str(tmp_path), tiny) as saver:
        saver.save(_state(5, num_devices=8), None)
    want = _state(5, num_devices=num_devices)
    with Checkpoints(str(tmp_path), tiny) as saver:
        got = saver.restore(_abstract(want))
    assert len(got.params["kernel"].sharding.device_set) == num_devices
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(got), jax.device_get(want))


def test_the_last_and_the_best_are_kept_over_restarts(tmp_path, tiny, change):
    config = change(tiny, checkpoint={"keep_last": 2, "keep_best": 1})
    top1 = {1: 0.5, 2: 0.9, 3: 0.3, 4: 0.2, 5: 0.4, 6: 0.1}
    _save(tmp_path, config, [1, 2, 3, 4], top1)
    assert _kept(tmp_path) == [2, 3, 4]
    _save(tmp_path, config, [5, 6], top1)
    assert _kept(tmp_path) == [2, 5, 6]


def test_multiples_of_keep_every_steps_are_never_removed(tmp_path, tiny, change):
    keep = {"keep_last": 2, "keep_best": 0, "every_steps": 5, "keep_every_steps": 10}
    config = change(tiny, checkpoint=keep)
    _save(tmp_path, config, [5, 10, 15, 20, 25])
    assert _kept(tmp_path) == [10, 20, 25]
    _save(tmp_path, config, [30, 35, 40, 45])
    assert _kept(tmp_path) == [10, 20, 30, 40, 45]
    with pytest.raises(ConfigError, match=r"keep_every_steps=7 is not a multiple of .*every_steps=5"):
        Checkpoints(str(tmp_path / "other"), change(config, checkpoint={"keep_every_steps": 7}))


def test_the_objective_says_which_metric_is_best_and_in_which_direction():
    keep = Keep(Checkpoint(keep_last=2, keep_best=1), Best("rmse", label="RMSE", is_higher_better=False))
    for step, rmse in ((1, 0.5), (2, 0.3), (3, None), (4, 0.9), (5, 0.8)):
        keep.note(step, {"rmse": rmse, "top1": 1.0 / step})
    infos = [types.SimpleNamespace(step=step) for step in range(1, 6)]
    assert keep.should_preserve(infos, context=None) == [False, True, False, True, True]


@pytest.mark.parametrize("broken", [{"loss": np.nan}, {"images": 9, "non_finite": 1}, {"loss": None}])
def test_an_evaluation_that_is_not_finite_is_never_the_best_that_is_kept(tmp_path, tiny, change, broken):
    config = change(tiny, checkpoint={"keep_last": 2, "keep_best": 1})
    given = {
        1: {"top1": 0.5},
        2: {"top1": 1.0, **broken},
        3: {"top1": 0.1},
        4: {"top1": 0.2},
        5: {"top1": 0.3},
    }
    for steps in ([1, 2, 3], [4, 5]):  # over a restart, which reads them back
        with Checkpoints(str(tmp_path), config) as saver:
            for step in steps:
                saver.save(_state(step), given[step])
        assert _kept(tmp_path)[0] == 1
    text = (tmp_path / "checkpoints" / "1" / "meta" / "metadata").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["metrics"] == {"top1": 0.5}
    assert _kept(tmp_path) == [1, 4, 5]


def test_a_finished_checkpoint_always_has_its_manifest(tmp_path, tiny):
    _save(tmp_path, tiny, [1])
    folder = tmp_path / "checkpoints" / "1"
    listed = json.loads((folder / "manifest.json").read_text())["files"]
    data = {str(p.relative_to(folder)) for p in (folder / "state").rglob("*") if p.is_file()}
    assert data - {"state/commit_success.txt"} <= set(listed)
    assert find_damage(epath.Path(folder)) is None


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize(
    ("damage", "message"),
    [(_flip, "SHA-256 differs"), (_truncate, "bytes instead of"), (lambda p: p.unlink(), "is missing")],
)
def test_damage_falls_back_to_the_one_before_with_a_line(tmp_path, tiny, capsys, damage, message):
    _save(tmp_path, tiny, [1, 2])
    damage(_biggest_file(tmp_path, 2))
    assert newest_intact_step(str(tmp_path)) == 1
    assert message in capsys.readouterr().out
    with Checkpoints(str(tmp_path), tiny) as saver:
        assert saver.restorable_step == 1
        got = saver.restore(_abstract(_state(1)))
        np.testing.assert_array_equal(got.params["kernel"], _state(1).params["kernel"])
        saver.save(_state(2), None)
    assert find_step(str(tmp_path), None) == 2
    assert len(list((tmp_path / "damaged").iterdir())) == 1


def test_a_flipped_byte_anywhere_in_the_data_is_noticed(tmp_path, tiny):
    _save(tmp_path, tiny, [1])
    folder = tmp_path / "checkpoints" / "1"
    for path in [p for p in (folder / "state").rglob("*") if p.is_file() and p.stat().st_size]:
        if path.name == "commit_success.txt":
            continue
        before = path.read_bytes()
        _flip(path)
        assert find_damage(epath.Path(folder)) is not None, path
        path.write_bytes(before)
    assert find_damage(epath.Path(folder)) is None


def test_the_only_checkpoint_damaged_is_refused_not_restored_or_moved(tmp_path, tiny):
    _save(tmp_path, tiny, [1])
    _flip(_biggest_file(tmp_path, 1))
    for _ in range(2):
        with pytest.raises(CheckpointError, match="no checkpoint is intact"):
            Checkpoints(str(tmp_path), tiny)
    with pytest.raises(CheckpointError, match="is damaged"):
        find_step(str(tmp_path), 1)


def test_unfinished_folders_are_not_checkpoints(tmp_path, tiny):
    _save(tmp_path, tiny, [1])
    (tmp_path / "checkpoints" / "2").mkdir()
    (tmp_path / "checkpoints" / "3.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    with Checkpoints(str(tmp_path), tiny) as saver:
        assert saver.restorable_step == 1
    assert not list((tmp_path / "checkpoints").glob("*tmp*"))


def test_another_config_is_refused_and_the_differing_settings_named(tmp_path, tiny, change):
    _save(tmp_path, tiny, [1])
    other = change(tiny, model={"num_registers": 3}, optimizer={"learning_rate": 0.5})
    with pytest.raises(
        ConfigError, match=r"model.num_registers \(2 there, 3 now\); optimizer.learning_rate"
    ) as error:
        Checkpoints(str(tmp_path), other)
    assert "optimizer.learning_rate" in str(error.value)


def test_mesh_and_keeping_may_change_between_starts(tmp_path, tiny, change):
    _save(tmp_path, tiny, [1])
    with Checkpoints(str(tmp_path), change(tiny, mesh={"fsdp": 8}, checkpoint={"keep_last": 5})) as saver:
        assert saver.restorable_step == 1


def test_what_is_no_run_folder_or_step_is_refused(tmp_path, tiny):
    with pytest.raises(CheckpointError, match="is not a run folder"):
        find_step(str(tmp_path), None)
    _save(tmp_path, tiny, [1, 2])
    with pytest.raises(CheckpointError, match="no checkpoint of step 7; it has 1, 2"):
        find_step(str(tmp_path), 7)


def test_keeping_only_one_is_refused(tmp_path, tiny, change):
    with pytest.raises(ConfigError, match="keep_last=1"):
        Checkpoints(str(tmp_path), change(tiny, checkpoint={"keep_last": 1}))


def test_a_save_that_cannot_be_written_is_one_clear_error(tmp_path, tiny, monkeypatch):
    def full(folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "write_manifest", full)
    message = r"checkpoints/1 could not be written: .*No space left"
    with pytest.raises(CheckpointError, match=message), Checkpoints(str(tmp_path), tiny) as saver:
        saver.save(_state(1), None)
    assert _kept(tmp_path) == []
