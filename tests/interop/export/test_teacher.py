"""The teacher of a run is what is loaded, evaluated, analysed and exported; the student by its name."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import vit_registers
from tests.objectives.self_distillation.test_training import CONFIG, change
from vit_registers.analysis import opening
from vit_registers.errors import CheckpointError
from vit_registers.interop.export import json_configs, targets
from vit_registers.models.params import abstract_model
from vit_registers.objectives.catalog import make_objective
from vit_registers.runs.checkpoints import Checkpoints
from vit_registers.training.state import TrainState

RUN = change(CONFIG, model={"depth": 2})


def noise(shapes, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0.1, 0.3, x.shape), jnp.float32), shapes)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(a run folder whose student and teacher are different noise, {"student", "teacher"})."""
    path = tmp_path_factory.mktemp("runs") / "dino"
    params, extra = jax.eval_shape(make_objective(RUN).init, jax.random.key(0))
    copies = {"student": noise(params, 0), "teacher": noise(params, 1)}
    extra = {"teacher": copies["teacher"], "centre": noise(extra["centre"], 2)}
    state = TrainState(
        step=jnp.ones((), jnp.int32), params=copies["student"], opt_state=None, ema=None, extra=extra
    )
    with Checkpoints(str(path), RUN) as written:
        written.save(state, {"top1_k20": 0.5})
    return path, copies


@pytest.mark.parametrize(
    ("params", "copy"),
    [(None, "teacher"), ("teacher", "teacher"), ("params", "student"), ("student", "student")],
)
def test_load_and_analyze_read_that_copy(run, params, copy):
    path, copies = run
    want = copies[copy]["vit"]["registers"]
    np.testing.assert_array_equal(vit_registers.load(str(path), params=params).registers[...], want)
    (opened,) = opening.open_all([str(path)], None, {}, num_images=8, params=params)
    np.testing.assert_array_equal(opened.model.registers[...], want)
    assert opened.provenance()["checkpoint"].get("params") == params
    assert ("step 1, " + params in opened.describe()) if params else "step 1;" in opened.describe()


@pytest.mark.slow
def test_the_commands_take_params(run, run_here, tmp_path):
    path, _ = run
    found = {}
    for params in (None, "student"):
        flags = [] if params is None else [f"--params={params}"]
        code, _, err = run_here("evaluate", f"--checkpoint={path}", f"--out={tmp_path}/{params}", *flags)
        assert code == 0, err
        (file,) = (tmp_path / str(params)).iterdir()
        found[params] = json.loads(file.read_text())
    assert found[None]["knn/top1_k20"] != found["student"]["knn/top1_k20"]
    assert [found[name]["params"] for name in found] == ["teacher", "student"]
    code, _, err = run_here(
        "analyze",
        "norms",
        f"--checkpoint={path}",
        "--params=student",
        "--num_images=16",
        f"--out={tmp_path}/a",
    )
    assert code == 0, err
    code, _, err = run_here("evaluate", f"--checkpoint={path}", "--params=students")
    assert (code, err.count("\n")) == (2, 1) and "students" in err, err


def test_a_run_without_a_teacher_is_one_line(untrained, tmp_path):
    from tests.fixtures.digits import CONFIG as SUPERVISED

    untrained(tmp_path / "run", SUPERVISED)
    for name in ("teacher", "student"):
        with pytest.raises(CheckpointError, match=f"has no {name}, which runs of self-dist") as error:
            vit_registers.load(str(tmp_path / "run"), params=name)
        assert "\n" not in str(error.value)


def features(path, params=None):
    """(images, our cls, registers and patches) of a run."""
    images = np.random.default_rng(3).normal(size=(3, 16, 16, 1)).astype(np.float32)
    out = vit_registers.load(str(path), params=params)(jnp.asarray(images))
    tokens = np.concatenate([np.asarray(out.cls)[:, None], out.registers, out.patches], axis=1)
    return images.transpose(0, 3, 1, 2).copy(), tokens


@pytest.mark.slow
def test_transformers_has_the_same_features(run, run_here, tmp_path):
    """Of the student, which convert selects by its name; timm below reads the teacher."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    flags = (f"--input={run[0]}", f"--output={tmp_path}/out", "--to=transformers", "--params=student")
    code, _, err = run_here("convert", *flags)
    assert code == 0, err
    images, want = features(run[0], "student")
    theirs = transformers.AutoModel.from_pretrained(tmp_path / "out").eval()
    assert type(theirs).__name__ == "Dinov2WithRegistersModel"
    with torch.no_grad():
        found = theirs(torch.from_numpy(images)).last_hidden_state
    np.testing.assert_allclose(found.numpy(), want, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["timm", "dinov2"])
def test_timm_has_the_same_features(run, run_here, tmp_path, target, timm):
    """Of dinov2's original names too, which timm's own filter reads."""
    torch = pytest.importorskip("torch")
    file = tmp_path / "exported.safetensors"
    code, _, err = run_here("convert", f"--input={run[0]}", f"--output={file}", f"--to={target}")
    assert code == 0, err
    params = jax.tree.map(np.asarray, run[1]["teacher"]["vit"])
    arguments = json_configs.timm_arguments(targets.export(RUN.model, params, "timm").model)
    theirs = timm.models.vision_transformer.VisionTransformer(**arguments).eval()
    state = {name: torch.from_numpy(value) for name, value in load_file(file).items()}
    if target == "dinov2":
        shapes = abstract_model(RUN.model)[1]
        assert {"register_tokens", "mask_token", "blocks.1.ls2.gamma", "pos_embed"} <= set(state)
        assert state["pos_embed"].shape == (1, 17, shapes["cls_token"].shape[-1])
        state = timm.models.vision_transformer.checkpoint_filter_fn(state, theirs)
    theirs.load_state_dict(state)
    images, want = features(run[0])
    with torch.no_grad():
        found = theirs.forward_features(torch.from_numpy(images))
    np.testing.assert_allclose(found.numpy(), want, atol=1e-5)
