"""The run cards of DINOv2 against the settings of DINOv2's code (facebookresearch/dinov2 at b8931f7)."""

import dataclasses

import jax
import numpy as np
import pytest

from vit_registers import recipes_dinov2
from vit_registers.config import flatten, from_mapping, to_dict
from vit_registers.config.cards import card_paths, load_module
from vit_registers.models.blocks import dims
from vit_registers.models.params import count_parameters
from vit_registers.objectives.catalog import make_objective
from vit_registers.training.durations import durations
from vit_registers.training.schedules import schedule

EPOCH = 1250
OBJECTIVE = "objective.self_distillation"
SHARED = {
    "model.layer_scale_init": 1e-5,
    "model.drop_path_schedule": "constant",
    "optimizer.min_learning_rate": 1e-6,
    "optimizer.b1": 0.9,
    "optimizer.b2": 0.999,
    "optimizer.eps": 1e-8,
    "optimizer.patch_embed_rate": 0.2,
    "optimizer.grad_clip_norm": 3.0,
    "optimizer.grad_clip_per": "module",
    "optimizer.weight_decay": 0.04,
    "data.mean": (0.485, 0.456, 0.406),
    "data.std": (0.229, 0.224, 0.225),
    f"{OBJECTIVE}.num_locals": 8,
    f"{OBJECTIVE}.mask_share": 0.5,
    f"{OBJECTIVE}.mask_ratios": (0.1, 0.5),
    f"{OBJECTIVE}.head_hidden": 2048,
    f"{OBJECTIVE}.temperatures": (0.04, 0.07),
    f"{OBJECTIVE}.dino_weight": 1.0,
    f"{OBJECTIVE}.ibot_weight": 1.0,
    f"{OBJECTIVE}.koleo_weight": 0.1,
}
SHORT = SHARED | {
    "data.batch_size": 2048,
    "run.total_steps": 100 * EPOCH,
    "model.patch_size": 16,
    "model.num_registers": 0,
    "model.drop_path": 0.3,
    "optimizer.weight_decay_end": 0.4,
    "optimizer.layer_decay": 0.9,
    f"{OBJECTIVE}.local_size": 96,
    f"{OBJECTIVE}.num_prototypes": 65_536,
    f"{OBJECTIVE}.head_bottleneck": 256,
    f"{OBJECTIVE}.has_ibot_head": False,
    f"{OBJECTIVE}.targets": "centring",
    f"{OBJECTIVE}.momentum": (0.992, 1.0),
    f"{OBJECTIVE}.koleo_group": 64,
}
LONG = SHARED | {
    "data.batch_size": 3072,
    "run.total_steps": 500 * EPOCH,
    "model.patch_size": 14,
    "model.num_registers": 4,
    "model.drop_path": 0.4,
    "model.mlp": "swiglu",
    "optimizer.weight_decay_end": 0.2,
    "optimizer.layer_decay": 1.0,
    f"{OBJECTIVE}.local_size": 98,
    f"{OBJECTIVE}.num_prototypes": 131_072,
    f"{OBJECTIVE}.head_bottleneck": 384,
    f"{OBJECTIVE}.has_ibot_head": True,
    f"{OBJECTIVE}.ibot_prototypes": 131_072,
    f"{OBJECTIVE}.ibot_bottleneck": 256,
    f"{OBJECTIVE}.targets": "sinkhorn",
    f"{OBJECTIVE}.momentum": (0.994, 1.0),
    f"{OBJECTIVE}.koleo_group": 32,
}
# By card: peak rate, and the epochs of warm-up, of the temperature, and of the frozen last layer.
TIMES = {
    "dinov2_vitl16_short": (SHORT, 5.65685425e-3, 10, 30, 1),
    "dinov2_vitl14": (LONG, 3.46410162e-4, 80, 30, 1),
}


def card(name, arg=None):
    return from_mapping(load_module(str(card_paths()[name])).get_config(arg))


def lengths(config):
    return durations(config.run, config.optimizer, config.data, 10**6)


@pytest.mark.parametrize("name", TIMES)
def test_settings_are_those_of_the_released_code(name):
    config, (want, peak, warmup, temperature, frozen) = card(name), TIMES[name]
    assert {key: flatten(to_dict(config))[key] for key in want} == want
    steps, settings = config.run.total_steps, config.objective.self_distillation
    assert config.optimizer.learning_rate == pytest.approx(peak, rel=1e-8)
    assert config.optimizer.warmup_steps == warmup * EPOCH
    assert settings.temperature_share * steps == pytest.approx(temperature * EPOCH)
    assert config.optimizer.delay_share * steps == pytest.approx(frozen * EPOCH)
    make_objective(config).check()
    assert "blur" not in settings.global_ops[0]
    assert settings.global_ops[1].endswith("blur(0.9) | solarize(0.2)")
    assert settings.local_ops.endswith("blur(0.5)")


def test_learning_rates_of_the_short_recipe():
    config = card("dinov2_vitl16_short")
    rates = schedule(config.optimizer, lengths(config))(np.arange(125_000))
    want = {
        0: 0.0,
        1: 4.52584547e-7,
        1249: 5.65278099e-4,
        1250: 5.65730683e-4,
        12_499: 5.65685425e-3,
        12_500: 5.65685425e-3,
        62_500: 3.31999152e-3,
        124_999: 1.0000011e-6,
    }
    np.testing.assert_allclose(np.asarray(rates)[list(want)], list(want.values()), rtol=1e-6)


@pytest.mark.parametrize("name", [*TIMES, "dinov2_vits14"])
def test_another_length_and_batch_rescale_the_schedules(name):
    config, short = card(name), card(name, "steps=1000,batch=512")
    share = 1000 / config.run.total_steps
    assert short.optimizer.warmup_steps == config.optimizer.warmup_steps * share
    ratio = short.optimizer.learning_rate / config.optimizer.learning_rate
    assert ratio == pytest.approx((512 / config.data.batch_size) ** 0.5)
    same = {"temperature_share", "momentum", "temperatures"}
    settings = [dataclasses.asdict(x.objective.self_distillation) for x in (config, short)]
    assert [settings[0][key] for key in same] == [settings[1][key] for key in same]


def test_sizes_of_models_and_heads():
    heads = {}
    for name in TIMES:
        params = jax.eval_shape(make_objective(card(name)).init, jax.random.key(0))[0]
        heads[name] = [
            sum(leaf.size for leaf in jax.tree.leaves(params[key])) for key in sorted(params) if key != "vit"
        ]
    assert heads == {"dinov2_vitl16_short": [23_662_848], "dinov2_vitl14": [57_545_088, 40_505_600]}
    large, small = card("dinov2_vitl14"), card("dinov2_vits14")
    assert (dims(large.model).width, dims(large.model).depth, dims(large.model).mlp_dim) == (1024, 24, 2736)
    assert dims(small.model).width == 384 and small.objective.self_distillation.local_size == 98
    none = card("dinov2_vitl14", "registers=0")
    assert count_parameters(large.model) - count_parameters(none.model) == 4 * 1024


@pytest.mark.parametrize("name", [*TIMES, "dinov2_vits14"])
def test_the_stage_at_high_resolution_compresses_the_schedules(name):
    first, stage = card(name), card(name, "start=runs/first")
    size = 518 if first.model.patch_size == 14 else 512
    assert stage.run.total_steps == 10_000 and stage.model.image_size == (size, size)
    assert stage.init_from.path == "runs/first" and stage.init_from.keep_head
    share = stage.run.total_steps / first.run.total_steps
    assert stage.optimizer.warmup_steps == first.optimizer.warmup_steps * share
    assert stage.optimizer.learning_rate < first.optimizer.learning_rate
    same = dataclasses.replace(stage.model, image_size=first.model.image_size)
    assert same == first.model and stage.objective == first.objective
    make_objective(stage).check()
    rates = schedule(stage.optimizer, lengths(stage))(np.arange(10_000))
    assert np.isfinite(rates).all() and float(rates.max()) == pytest.approx(stage.optimizer.learning_rate)


def test_another_data_set_is_an_argument():
    assert card("dinov2_vitl14").data.eval_split == "val"
    imagenet = card("dinov2_vitl14", "data=imagenet2012").data
    assert (imagenet.name, imagenet.eval_split) == ("imagenet2012", "validation")
    folder = card("dinov2_vits14", "data=folder").data
    assert (folder.name, folder.eval_split) == ("folder", "val")
    assert recipes_dinov2.dinov2_long(batch=64).data.name == "folder"
