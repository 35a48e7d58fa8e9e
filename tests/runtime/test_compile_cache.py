"""The cache of compiled functions: its folder, what it holds, and what cannot be read or written."""

import os
import warnings

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache as jax_cache

from tests.fixtures.digits import flags
from vit_registers.errors import ConfigError
from vit_registers.runtime import compile_cache
from vit_registers.runtime.compile_cache import AUTO, OFF, VARIABLE, use_compile_cache

SETTINGS = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


@pytest.fixture
def program(monkeypatch, tmp_path):
    """program(setting): the start of a program with an empty XDG_CACHE_HOME. All changes are undone."""
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    with warnings.catch_warnings():

        def program(setting=AUTO):
            jax.clear_caches()
            jax_cache.reset_cache()
            warnings.resetwarnings()
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
            use_compile_cache(setting)

        yield program
    for name, value in before.items():
        jax.config.update(name, value)
    jax_cache.reset_cache()
    jax.clear_caches()


def _compute():
    def cached_for_the_test(x):
        return jnp.sin(x) + 2

    return float(jax.jit(cached_for_the_test)(jnp.float32(1.0)))


def _entries(folder):
    return sorted(folder.glob("jit_cached_for_the_test-*-cache"))


def _folder(tmp_path):
    (folder,) = (tmp_path / "cache" / "vit_registers" / "jax").iterdir()
    return folder


def test_the_folder_is_the_users_own_and_named_after_the_processor(program, tmp_path, capsys):
    program()
    _compute()
    folder = _folder(tmp_path)
    assert folder.name == compile_cache._processor() and folder.stat().st_mode & 0o077 == 0
    assert len(_entries(folder)) == 1
    assert capsys.readouterr().out == ""


def test_a_folder_may_be_given(program, tmp_path):
    program(str(tmp_path / "mine"))
    _compute()
    assert len(_entries(tmp_path / "mine")) == 1
    assert not (tmp_path / "cache").exists()


def test_off_stores_nothing(program, tmp_path):
    program(OFF)
    _compute()
    assert not (tmp_path / "cache").exists()


def test_the_variable_of_jax_has_precedence(program, tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, "")
    program()
    assert not jax.config.jax_compilation_cache_dir and not (tmp_path / "cache").exists()


def test_a_truncated_entry_is_removed_and_compiled_again(program, tmp_path, capsys):
    program()
    result = _compute()
    (entry,) = _entries(_folder(tmp_path))
    size = entry.stat().st_size
    os.truncate(entry, size // 2)
    program()
    assert _compute() == result
    (line,) = capsys.readouterr().out.splitlines()
    assert "jit_cached_for_the_test cannot be read, so it is compiled again: " in line
    assert entry.stat().st_size >= size - 8
    program()
    assert _compute() == result and capsys.readouterr().out == ""


def test_a_folder_that_cannot_be_made_is_one_line(program, tmp_path, capsys):
    (tmp_path / "cache").write_text("a file")
    program()
    assert _compute() > 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("no compile cache: ") and str(tmp_path / "cache") in line
    assert "run.compile_cache=off" in line


def test_a_folder_in_an_object_store_is_refused(program, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"run\.compile_cache=gs://bucket/jax must be "):
        program("gs://bucket/jax")
    assert not any(tmp_path.iterdir())


def test_a_full_disk_is_one_line(program, tmp_path, capsys, monkeypatch):
    program()

    def full(self, *_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jax._src.lru_cache.LRUCache.put", full)
    _compute()
    jax.jit(lambda x: x * 3)(1.0)
    (line,) = capsys.readouterr().out.splitlines()
    assert "cannot be written: OSError: [Errno 28]" in line


def test_the_oldest_entries_of_a_large_folder_are_removed(program, tmp_path, monkeypatch):
    monkeypatch.setattr(compile_cache, "_MOST_BYTES", 1000)
    folder = tmp_path / "mine"
    folder.mkdir()
    for i in range(6):
        (folder / f"jit_{i}-cache").write_bytes(bytes(200))
        os.utime(folder / f"jit_{i}-cache", (i, i))
    (folder / "other").write_bytes(bytes(200))
    program(str(folder))
    assert sorted(path.name for path in folder.iterdir()) == ["jit_4-cache", "jit_5-cache", "other"]


@pytest.mark.slow
def test_a_run_with_a_filled_cache_has_the_bits_of_one_that_compiles(
    program, run_here, tmp_path, monkeypatch
):
    # The step may compile faster than what is stored, by JAX's own limit too.
    monkeypatch.setattr(compile_cache, "_LEAST_S", 0.0)
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    found = []
    for name in ("compiles", "reads"):
        jax.clear_caches()
        jax_cache.reset_cache()
        run = tmp_path / name
        command = (*flags("steps=4,registers=2", run={"log_every_steps": 2}), f"--workdir={run}")
        assert run_here("train", *command)[0] == 0
        lines = (run / "metrics.jsonl").read_text().splitlines()
        found.append([line for line in lines if "images_per_s" not in line])
    assert list(_folder(tmp_path).glob("jit_train_step-*-cache"))
    assert found[0] == found[1] and len(found[0]) == 3
