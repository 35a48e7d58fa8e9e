"""Runs on digits with texts: zero-shot accuracy, retrieval, resume, programs, experiments, bad input."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from etils import epath

import vit_registers
from configs import clip_digits, digits
from tests.fixtures.digits import flags
from tests.objectives.image_text.test_objective import change
from vit_registers.checkpoint_names import parse_checkpoint
from vit_registers.config import Mesh, from_mapping
from vit_registers.data.sources import digit_scenes
from vit_registers.data.sources.digits import load_split
from vit_registers.data.tokenizers.byte_values import Bytes
from vit_registers.errors import ConfigError
from vit_registers.interop.hints import Hints
from vit_registers.loading import open_run
from vit_registers.models.norm import unit
from vit_registers.objectives.catalog import make_objective
from vit_registers.run_conversion import convert_to_text_run
from vit_registers.runs.checkpoint_folder import list_steps
from vit_registers.runs.checkpoints import Checkpoints
from vit_registers.runs.sweeps import result_text
from vit_registers.runs.tokenizer_file import read_tokenizer, write_tokenizer
from vit_registers.runtime.mesh import make_mesh
from vit_registers.storage import paths
from vit_registers.train import train
from vit_registers.training.state import TrainState

CONFIG = change(
    from_mapping(clip_digits.get_config("registers=2,steps=12").to_dict()),
    model={"width": 16, "depth": 1, "num_heads": 2},
    text={"width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 32, "embed_dim": 16},
    data={"batch_size": 40},
    checkpoint={"every_steps": 4},
    run={"eval_every_steps": 4, "log_every_steps": 2},
)


@pytest.fixture(scope="module")
def run(tmp_path_factory, compiled_once):
    """The folder of a finished run."""
    path = tmp_path_factory.mktemp("runs") / "clip"
    train(CONFIG, str(path))
    return path


def records(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def read(run, step):
    return jax.device_get(open_run(str(run), step).read_params(make_mesh(Mesh())))


def test_the_accuracy_is_that_of_the_definition(run):
    """Each prompt a unit vector, the mean of a class a unit vector again; the nearest class of an image."""
    model = vit_registers.load_image_text(str(run))
    tokenizer, captions = read_tokenizer(paths.folder(str(run))), CONFIG.data.captions
    classes = []
    for text in captions.class_texts:
        prompts = [template.replace("{}", text) for template in captions.templates]
        mean = unit(model.embed_texts(tokenizer.encode(prompts, CONFIG.text.context))).mean(axis=0)
        classes.append(np.asarray(mean) / np.linalg.norm(mean))
    images, labels = load_split("test")
    image = np.asarray(unit(model.embed_images((images / 255 - 0.5).astype(np.float32) / 0.5)))
    order = np.argsort(-image @ np.stack(classes).T, axis=1)
    found = [one for one in records(run) if "zero_shot/top1" in one]
    assert [one["step"] for one in found] == [4, 8, 12]
    np.testing.assert_allclose(found[-1]["zero_shot/top1"], (order[:, 0] == labels).mean(), atol=2 / 359)
    right = (order[:, :5] == labels[:, None]).any(axis=1).mean()
    np.testing.assert_allclose(found[-1]["zero_shot/top5"], right, atol=2 / 359)
    assert found[-1]["zero_shot/images"] == 359
    logged = [one for one in records(run) if "train/loss" in one]
    assert all(0 < one["train/loss"] < 8 and one["train/scale"] > 1 for one in logged)
    assert "top1" in json.loads((run / "result.json").read_text())["best"]


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_bits(run, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(run, again)
    shutil.rmtree(again / "checkpoints" / "12")
    lines = [line for line in records(again) if line["step"] <= 8]
    (again / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    train(CONFIG, str(again))
    jax.tree.map(np.testing.assert_array_equal, read(again, 12), read(run, 12))
    a, b = ([one for one in records(path) if "time_s" not in one] for path in (again, run))
    assert a == b


@pytest.mark.slow
def test_programs_measure_a_run(run, run_here, tmp_path):
    last = next(one for one in records(run)[::-1] if "zero_shot/top1" in one)
    args = (f"--checkpoint={run}", f"--out={tmp_path}")
    code, out, error = run_here("evaluate", *args)
    assert code == 0, error
    assert f"{'zero_shot/top1':<22}{last['zero_shot/top1']:.4f}" in out
    code, out, error = run_here("evaluate", *args, "--task=zero_shot")
    assert code == 0, error
    (path,) = tmp_path.glob("zero_shot-digits-test-12-*.json")
    found = json.loads(path.read_text())
    np.testing.assert_allclose(found["top1"], last["zero_shot/top1"], atol=2 / 359)
    assert (found["classes"], found["templates"], found["images"]) == (10, 4, 359)
    assert "train_data" not in found
    prompts = "--config.tasks.zero_shot.prompts=simple"
    code, out, error = run_here("evaluate", *args, "--task=zero_shot", prompts)
    assert code == 0, error
    assert len([*tmp_path.glob("zero_shot-*.json")]) == 2
    code, out, error = run_here("evaluate", *args, "--task=retrieval")
    assert code == 0, error
    (path,) = tmp_path.glob("retrieval-*.json")
    found = json.loads(path.read_text())
    assert (found["images"], found["texts"]) == (359, 40)
    for name in ("image_to_text", "text_to_image"):
        assert 0 <= found[f"{name}_r1"] <= found[f"{name}_r5"] <= found[f"{name}_r10"] <= 1
    assert "the texts are those of its classes" in found["notes"][0]


@pytest.mark.slow
def test_zero_shot_segmentation_is_that_of_the_definition(run, run_here, tmp_path, monkeypatch):
    """A pixel has the class nearest to its patch: each window of 8 px, patches enlarged to pixels."""
    monkeypatch.setitem(digit_scenes.NUM_SCENES, "test", 3)
    names = ["nothing", *clip_digits.DIGITS]
    (tmp_path / "prompts.json").write_text(json.dumps({"templates": ["the number {}."], "names": names}))
    prompts = f"--config.tasks.zero_shot_segmentation.prompts=file(path='{tmp_path / 'prompts.json'}')"
    args = (f"--checkpoint={run}", f"--out={tmp_path}", "--task=zero_shot_segmentation", prompts)
    code, _, error = run_here("evaluate", *args, "--data=digit_scenes:test")
    assert code == 0, error
    (path,) = tmp_path.glob("zero_shot_segmentation-*.json")
    found = json.loads(path.read_text())
    model = vit_registers.load_image_text(str(run))
    tokenizer = read_tokenizer(paths.folder(str(run)))
    texts = tokenizer.encode([f"the number {name}." for name in names], CONFIG.text.context)
    class_YxE = np.asarray(unit(model.embed_texts(texts)))
    right = total = 0
    for i in range(3):
        scene = digit_scenes.scene("test", i)
        for top, left in ((8 * row, 8 * column) for row in range(3) for column in range(3)):
            window = scene.image_HxWx1[top : top + 8, left : left + 8]
            patches = model.vit.intermediates((window[None] / 255 - 0.5).astype(np.float32) / 0.5, blocks=1)
            vectors = unit(model.project(patches.patches[0]))
            cosine = jax.image.resize(vectors @ class_YxE.T, (1, 8, 8, 11), "bilinear", antialias=False)[0]
            truth = scene.class_HxW[top : top + 8, left : left + 8]
            right, total = right + int((cosine.argmax(-1) == truth).sum()), total + truth.size
    np.testing.assert_allclose(found["pixel_accuracy"], right / total, atol=2e-3)
    assert (found["classes"], found["test_images"], found["crop"]) == (11, 3, 8)


@pytest.mark.slow
def test_captions_of_images_have_retrieval_while_training(tmp_path):
    """A list of images and captions without classes: no zero-shot accuracy, R@k of each evaluation."""
    from PIL import Image

    images, labels = load_split("train")
    lines = []
    for i in range(80):
        Image.fromarray(images[i, :, :, 0]).save(tmp_path / f"{i}.png")
        lines += [f"{i}.png,a {clip_digits.DIGITS[labels[i]]} with number {i}"] * (1 + i % 2)
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text("\n".join(["path,caption", *lines]) + "\n")
    captions = dataclasses.replace(CONFIG.data.captions, templates=(), class_texts=())
    data = {"name": "image_text", "data_dir": str(tmp_path), "eval_split": "test", "captions": captions}
    config = change(
        CONFIG,
        image_text={"group": None},
        data=data,
        run={"total_steps": 10, "eval_every_steps": 2},
        checkpoint={"every_steps": 2, "keep_last": 2, "keep_best": 1},
        optimizer={"learning_rate": 0.5},  # so that the last evaluation is not the best
    )
    train(config, str(tmp_path / "run"))
    found = next(one for one in records(tmp_path / "run") if "retrieval/image_to_text_r1" in one)
    assert not any("zero_shot/top1" in one for one in records(tmp_path / "run"))
    assert found["retrieval/images"] == 80
    assert found["retrieval/texts"] == 120
    assert found["retrieval/text_to_image_r1"] <= found["retrieval/text_to_image_r10"]
    recalls = [
        found[f"retrieval/{way}_r{k}"] for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)
    ]
    assert found["retrieval/mean_recall"] == pytest.approx(np.mean(recalls))
    # The checkpoints are ranked by it: the best and the last are kept.
    every = {
        one["step"]: one["retrieval/mean_recall"]
        for one in records(tmp_path / "run")
        if "retrieval/mean_recall" in one
    }
    best_step = max(every, key=lambda step: (every[step], step))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    best = result["best"]
    assert (best["evaluator"], best["step"]) == ("retrieval", best_step)
    assert best["mean_recall"] == every[best_step]
    assert best_step < 8 and set(list_steps(str(tmp_path / "run"))) == {best_step, 8, 10}
    assert result_text(result, make_objective(config).best).startswith(f"mean_recall {every[10]:.4f}")


@pytest.fixture
def untrained(tmp_path):
    """A folder with an untrained run of CLIP, and its weights in the format of transformers."""
    layers = {"use_norm_after_pool": True, "use_patch_bias": False, "num_registers": 0, "norm_eps": 1e-5}
    config = change(CONFIG, model=layers)
    params, extra = make_objective(config).init(jax.random.key(3))
    one = jax.numpy.ones((), jax.numpy.int32)
    state = TrainState(step=one, params=params, opt_state=None, ema=None, extra=extra)
    with Checkpoints(str(tmp_path / "run"), config) as written:
        written.save(state, {"top1": 0.5})
    write_tokenizer(Bytes(), epath.Path(tmp_path / "run"), is_resumed=False)
    vit_registers.load_image_text(str(tmp_path / "run")).save(tmp_path / "weights", "transformers")
    return tmp_path


@pytest.mark.slow
def test_weights_of_another_code_base_give_the_same(untrained, run_here):
    texts = {"templates": clip_digits.TEMPLATES, "names": clip_digits.DIGITS}
    (untrained / "prompts.json").write_text(json.dumps(texts))
    found = {}
    given = (f"--input={untrained / 'weights'}", f"--output={untrained / 'converted'}", "--tokenizer=bytes")
    code, out, error = run_here("convert", "--text", *given)
    assert code == 0 and "parameters of both towers are equal bit for bit" in out, error
    for name in ("run", "weights", "converted"):
        args = (f"--checkpoint={untrained / name}", f"--out={untrained / 'out' / name}")
        data = ("--data=digits:test", "--config.data.loader=pil", "--config.data.eval_ops=")
        data += ("--config.data.mean=(0.5,)", "--config.data.std=(0.5,)")
        own = ("--config.data.captions.tokenizer=bytes",) if name == "weights" else ()
        prompts = f"--config.tasks.zero_shot.prompts=file(path='{untrained / 'prompts.json'}')"
        code, _, error = run_here("evaluate", *args, "--task=zero_shot", *data, *own, prompts)
        assert code == 0, error
        (path,) = (untrained / "out" / name).glob("*zero_shot-*.json")
        found[name] = json.loads(path.read_text())
    np.testing.assert_allclose(found["weights"]["top1"], found["run"]["top1"], atol=1 / 359)
    np.testing.assert_allclose(found["converted"]["top1"], found["weights"]["top1"], atol=1 / 359)
    assert found["weights"]["images"] == 359


@pytest.mark.slow
def test_training_starts_from_a_whole_model(untrained, tmp_path):
    """With keep_head, all that is trained has the values of the weights or of the run; without, the ViT."""
    layers = {"use_norm_after_pool": True, "use_patch_bias": False, "num_registers": 0, "norm_eps": 1e-5}
    start = jax.device_get(open_run(str(untrained / "run"), 1).read_params(make_mesh(Mesh())))
    locked = {"frozen": ("vit/*", "image_proj/*", "text/*", "logit_scale")}
    name = parse_checkpoint(str(untrained / "weights"), None, where="--input")
    how = {"params": None, "source": "auto", "hints": Hints(), "text_num_heads": None}
    convert_to_text_run(name, str(untrained / "converted"), tokenizer="bytes", **how)
    for name in ("weights", "run", "converted"):
        init = {"path": str(untrained / name), "keep_head": True}
        config = change(CONFIG, model=layers, init_from=init, optimizer=locked, run={"total_steps": 1})
        train(config, str(tmp_path / f"from_{name}"))
        params = jax.device_get(open_run(str(tmp_path / f"from_{name}"), 1).read_params(make_mesh(Mesh())))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), params, start)
    other = change(config, init_from={"path": str(untrained / "weights")}, text={"activation": "gelu_tanh"})
    with pytest.raises(ConfigError, match=r"text\.activation='gelu_tanh', and the text tower"):
        train(other, str(tmp_path / "other"))


@pytest.mark.slow
def test_whole_models_as_runs(untrained, run_here):
    """A run of a run, its experiments, an image tower alone, and what is refused."""
    run, again = untrained / "run", untrained / "again"
    code, _, error = run_here("convert", "--text", f"--input={run}", f"--output={again}")
    assert code == 0, error
    mesh = make_mesh(Mesh())
    first, second = (jax.device_get(open_run(str(path)).read_params(mesh)) for path in (run, again))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert read_tokenizer(paths.folder(str(again))).saved() == Bytes().saved()
    args = (f"--checkpoint={run}", f"--checkpoint={again}", f"--out={untrained / 'report'}")
    code, out, error = run_here("analyze", "zero-shot", *args)
    assert code == 0 and "is the same" in out, (out, error)
    code, _, error = run_here("convert", f"--input={run}", f"--output={untrained / 'image'}")
    assert code == 0, error
    assert open_run(str(untrained / "image")).read_params(mesh).keys() == {"vit"}
    code, _, error = run_here("evaluate", f"--checkpoint={untrained / 'image'}", "--task=zero_shot")
    assert code == 2 and "has no text tower" in error
    given = ("--text", f"--input={untrained / 'weights'}", f"--output={untrained / 'refused'}")
    for flag, said in (("--tokenizer=bits", "bits"), ("--tokenizer=clip", "clip")):
        code, _, error = run_here("convert", *given, flag)
        assert code == 2 and said in error.splitlines()[-1]
        assert not (untrained / "refused").exists()


@pytest.mark.slow
def test_weights_and_tokenizers_that_do_not_fit_are_one_line(untrained, run_here):
    args = (f"--checkpoint={untrained / 'weights'}", "--task=retrieval", "--data=digits:test")
    code, _, error = run_here("evaluate", *args, "--config.data.captions.tokenizer=clip")
    assert code == 2
    assert "clip" in error
    assert len([line for line in error.splitlines() if line.startswith("error")]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("registers", [0, 4])
def test_experiments_on_the_image_tower(registers, run_here, tmp_path):
    steps = ("--config.model.depth=1", "--config.model.width=16", "--config.model.num_heads=2")
    card = f"--config=configs/clip_digits.py:registers={registers},steps=2"
    code, _, error = run_here("train", card, *steps, f"--workdir={tmp_path / 'run'}")
    assert code == 0, error
    for name in ("norms", "attention-shares"):
        args = (f"--checkpoint={tmp_path / 'run'}", f"--out={tmp_path / name}", "--num_images=16")
        code, _, error = run_here("analyze", name, *args)
        assert code == 0, error
    args = (f"--checkpoint={tmp_path / 'run'}", f"--out={tmp_path / 'heads'}", "--rule=quantile:0.95")
    code, _, error = run_here("analyze", "frozen-heads", *args, "--tasks=zero_shot", "--edited_images=16")
    assert code == 0, error
    (path,) = (tmp_path / "heads").rglob("*.csv")
    rows = [line.split(",") for line in path.read_text().splitlines()[1:]]
    edits = {row[-4]: row for row in rows}
    assert {"unedited", "with a test-time register"} <= set(edits), rows
    assert all(row[-1] == "359" for row in rows)


@pytest.mark.slow
def test_tasks_with_texts_refuse_other_models(run_here, tmp_path):
    code, _, error = run_here("train", *flags("steps=2"), f"--workdir={tmp_path / 'run'}")
    assert code == 0, error
    for task in ("zero_shot", "retrieval"):
        code, _, error = run_here("evaluate", f"--checkpoint={tmp_path / 'run'}", f"--task={task}")
        assert code == 2
        assert f"--task={task} compares images with texts" in error
        assert len(error.strip().splitlines()) == 1


def test_the_cards_see_as_many_images():
    """The card of supervised digits, with which docs/image_text.md compares."""
    supervised, texts = (from_mapping(card.get_config().to_dict()) for card in (digits, clip_digits))
    assert supervised.run.total_steps * supervised.data.batch_size == (
        texts.run.total_steps * texts.data.batch_size
    )
    for name in ("width", "depth", "num_heads", "patch_size", "image_size"):
        assert getattr(supervised.model, name) == getattr(texts.model, name), name
