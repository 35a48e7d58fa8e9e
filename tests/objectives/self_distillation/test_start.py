"""Runs that start from training checkpoints: DINOv2's names in torch, and runs of ours."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.objectives.self_distillation.test_training import CONFIG, change
from vit_registers import fine_tuning
from vit_registers.config import InitFrom, Mesh
from vit_registers.errors import CheckpointError, ConfigError
from vit_registers.objectives.self_distillation import heads
from vit_registers.runs.progress import Progress
from vit_registers.runtime.mesh import make_mesh
from vit_registers.training.durations import durations
from vit_registers.training.setup import set_up

torch = pytest.importorskip("torch")
WIDTH, HIDDEN, BLOCK = 16, 16, "blocks.0."
PROTOTYPES = {"dino_head": 32, "ibot_head": 16}


class ReleasedHead(torch.nn.Module):
    """DINOHead of DINOv2's code, whose last layer has torch's weight norm."""

    def __init__(self, num_prototypes, wrap):
        super().__init__()
        layers = [torch.nn.Linear(*sizes) for sizes in ((WIDTH, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, 8))]
        self.mlp = torch.nn.Sequential(layers[0], torch.nn.GELU(), layers[1], torch.nn.GELU(), layers[2])
        self.last_layer = wrap(torch.nn.Linear(8, num_prototypes, bias=False))

    def forward(self, x):
        return self.last_layer(torch.nn.functional.normalize(self.mlp(x), dim=-1, eps=1e-12))


def noise(shapes, seed):
    rng = np.random.default_rng(seed)
    return {
        name: torch.tensor(rng.normal(0, 0.2, shape), dtype=torch.float32) for name, shape in shapes.items()
    }


def backbone(seed):
    """The tensors of CONFIG's model in DINOv2's names."""
    mlp = CONFIG.model.mlp_dim or 4 * WIDTH
    shapes = {
        "cls_token": (1, 1, WIDTH),
        "pos_embed": (1, 17, WIDTH),
        "register_tokens": (1, 2, WIDTH),
        "mask_token": (1, WIDTH),
        "patch_embed.proj.weight": (WIDTH, 1, 4, 4),
        "patch_embed.proj.bias": (WIDTH,),
    }
    for name, shape in {
        f"{BLOCK}attn.qkv": (3 * WIDTH, WIDTH),
        f"{BLOCK}attn.proj": (WIDTH, WIDTH),
        f"{BLOCK}mlp.fc1": (mlp, WIDTH),
        f"{BLOCK}mlp.fc2": (WIDTH, mlp),
        f"{BLOCK}norm1": (WIDTH,),
        f"{BLOCK}norm2": (WIDTH,),
        "norm": (WIDTH,),
    }.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    shapes |= {f"{BLOCK}ls{i}.gamma": (WIDTH,) for i in (1, 2)}
    return noise(shapes, seed)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """(path, {copy: ({name: backbone tensor}, {name: head})}) as DINOv2's trainer saves it.

    The teacher has the names of torch's older weight norm, weight_g and weight_v; the student the newer ones.
    """
    copies, tensors = {}, {}
    old, new = torch.nn.utils.weight_norm, torch.nn.utils.parametrizations.weight_norm
    for seed, (copy, wrap) in enumerate({"student": new, "teacher": old}.items()):
        torch.manual_seed(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the older one
            modules = {name: ReleasedHead(number, wrap) for name, number in PROTOTYPES.items()}
        copies[copy] = (backbone(seed), modules)
        tensors |= {f"{copy}.backbone.{name}": value for name, value in copies[copy][0].items()}
        for name, module in modules.items():
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter += 0.1 * torch.randn_like(parameter)
            tensors |= {f"{copy}.{name}.{key}": value for key, value in module.state_dict().items()}
    assert tensors["teacher.dino_head.last_layer.weight_g"].shape == (32, 1)
    tensors |= {"dino_loss.center": torch.ones(1, 32), "ibot_patch_loss.center": torch.ones(1, 1, 16)}
    path = tmp_path_factory.mktemp("dinov2") / "model_0000009.rank_0.pth"
    content = {"model": tensors, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}, "iteration": 9}
    torch.save(content, path)
    return path, copies


def start(path, config=CONFIG, **settings):
    """(student, extra) before the first step of a run that starts from `path`."""
    init_from = InitFrom(path=str(path), **{"keep_head": True, **settings})
    config = dataclasses.replace(config, init_from=init_from)
    lengths = durations(config.run, config.optimizer, config.data, 1438)
    mesh = make_mesh(Mesh())
    setup = set_up(config, lengths, mesh)
    progress = Progress(
        start_step=0, total_steps=24, batch_size=16, log_every_s=30.0, earlier_s=0.0, is_quiet=False
    )
    with jax.set_mesh(mesh):
        state = fine_tuning.first_state(config.init_from, config.model, setup, say=progress.say)
    return jax.device_get((state.params, state.extra))


def assert_is_copy(params, copy):
    tensors, modules = copy
    vit = params["vit"]
    np.testing.assert_array_equal(vit["registers"], tensors["register_tokens"])
    np.testing.assert_array_equal(vit["mask_token"][0], tensors["mask_token"])
    np.testing.assert_array_equal(vit["pos_embed"], tensors["pos_embed"][:, 1:])
    np.testing.assert_array_equal(
        vit["patch_embed"]["kernel"], tensors["patch_embed.proj.weight"].numpy().transpose(2, 3, 1, 0)
    )
    fc1 = vit["blocks"][0]["mlp"]["fc1"]["kernel"]
    np.testing.assert_array_equal(fc1, tensors[f"{BLOCK}mlp.fc1.weight"].numpy().T)
    x = torch.randn(5, WIDTH)
    for name, module in modules.items():
        ours, state = params[name], module.state_dict()
        names = [next(n for n in state if n.endswith(ends)) for ends in (("_g", "al0"), ("_v", "al1"))]
        np.testing.assert_array_equal(ours["last_layer"]["g"], state[names[0]][:, 0])
        np.testing.assert_array_equal(ours["last_layer"]["v"], state[names[1]].T)
        for i in range(3):
            np.testing.assert_array_equal(ours["mlp"][i]["kernel"], state[f"mlp.{2 * i}.weight"].T)
            np.testing.assert_array_equal(ours["mlp"][i]["bias"], state[f"mlp.{2 * i}.bias"])
        found = heads.logits(jax.tree.map(jnp.asarray, ours), jnp.asarray(x.numpy()))
        np.testing.assert_allclose(found, module(x).detach().numpy(), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("params", "copy"), [(None, "teacher"), ("params", "student")])
def test_backbone_and_heads_of_dinov2s_training_checkpoint(checkpoint, params, copy, capsys):
    path, copies = checkpoint
    student, extra = start(path, params=params, num_heads=4)
    assert_is_copy(student, copies[copy])
    jax.tree.map(np.testing.assert_array_equal, extra["teacher"], student)
    assert not any(np.asarray(value).any() for value in extra["centre"].values())
    assert f"starts from {path}: 39 tensors; initialised: nothing" in capsys.readouterr().out


@pytest.mark.slow
def test_a_teacher_checkpoint_may_lack_the_student_and_heads_may_be_initialised(checkpoint, tmp_path, capsys):
    _, copies = checkpoint
    tensors, modules = copies["teacher"]
    content = {f"backbone.{name}": value for name, value in tensors.items()}
    for name, module in modules.items():
        content |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
    torch.save({"teacher": content}, tmp_path / "teacher_checkpoint.pth")
    student, _ = start(tmp_path / "teacher_checkpoint.pth", num_heads=4)
    assert_is_copy(student, copies["teacher"])
    fresh, _ = start(tmp_path / "teacher_checkpoint.pth", num_heads=4, keep_head=False)
    np.testing.assert_array_equal(fresh["vit"]["registers"], student["vit"]["registers"])
    assert (fresh["dino_head"]["last_layer"]["g"] == 1).all()
    assert "initialised: dino_head, ibot_head" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("sections", "error", "message"),
    [
        (
            {"distillation": {"num_prototypes": 64}},
            CheckpointError,
            r"dino_head/last_layer/g is \(32,\) there and \(64,\) here.*num_prototypes.*keep_head=False",
        ),
        (
            {"distillation": {"head_hidden": 24}},
            CheckpointError,
            r"dino_head/mlp/0/kernel is \(16, 16\) there and \(16, 24\) here",
        ),
        (
            {"distillation": {"has_ibot_head": False}},
            CheckpointError,
            r"has dino_head, ibot_head, and the run has dino_head: change objective.*has_ibot_head",
        ),
        ({"model": {"width": 32}}, ConfigError, r"model.width is 16 there and 32 here"),
    ],
)
def test_other_sizes_are_one_line(checkpoint, sections, error, message):
    with pytest.raises(error, match=message) as raised:
        start(checkpoint[0], change(CONFIG, **sections), num_heads=4)
    assert "\n" not in str(raised.value)


def test_weights_without_heads_are_one_line(tmp_path):
    torch.save(backbone(0), tmp_path / "backbone.pth")
    with pytest.raises(CheckpointError, match=r"has no projection head, and the run has .*keep_head=False"):
        start(tmp_path / "backbone.pth", num_heads=4)
