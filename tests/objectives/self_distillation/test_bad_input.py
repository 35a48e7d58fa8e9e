"""Settings with which self-distillation is not possible, by the command line: one line, exit code 2."""

import re

import pytest

from tests.fixtures.digits import make_config

SECTION = "--config.objective.self_distillation"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([f"{SECTION}.local_size=10"], r"local_size=10 is not a multiple of model.patch_size=4: such as 8"),
        (
            [f"{SECTION}.num_prototypes=66", "--config.mesh.data=2", "--config.mesh.tensor=4"],
            r"num_prototypes=66 does not divide over mesh.tensor=4: set it to a multiple of 4, such as 68",
        ),
        (
            [f"{SECTION}.ibot_prototypes=65", "--config.mesh.data=2", "--config.mesh.tensor=-1"],
            r"ibot_prototypes=65 does not divide over mesh.tensor=4: .* such as 68",
        ),
        (
            ["--config.data.batch_size=32"],
            r"mask_group=64 does not divide data.batch_size=32: set it to 32, or change the batch",
        ),
        (
            ["--config.data.batch_size=32", f"{SECTION}.mask_group=32"],
            r"koleo_group=64 does not divide data.batch_size=32: set it to 32, or change the batch",
        ),
        (["--config.model.use_mask_token=False"], r"requires a mask token: set model.use_mask_token=True"),
        (["--config.model.use_cls=False", "--config.model.pooling=gap"], r"set model.use_cls=True"),
        (
            ["--config.data.batch_size=2048"],
            r"batch_size=2048 is more than the 1,43\d training examples: .* compares the images of a batch",
        ),
        (
            ["--config.model.drop_path=0.1", "--config.model.drop_path_group=48"],
            r"drop_path_group=48 does not divide the 64 images of a batch: set it to 32",
        ),
        (["--config.optimizer.accumulation_steps=2"], r"requires the whole batch at once"),
        (["--config.data.name=digits", "--config.data.eval_split=nosuch"], r"nosuch"),
        (["--config.optimizer.frozen=('*/last_layer/gg',)"], r"matches no parameter: did you mean"),
    ],
)
def test_one_line(run_here, tmp_path, flags, message):
    code, _, err = run_here("train", "--config=dino_digits:steps=8", f"--workdir={tmp_path}/run", *flags)
    assert (code, err.count("\n")) == (2, 1), err
    assert err.startswith("error: ") and re.search(message, err), err
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.slow
def test_weights_of_another_width_or_without_heads_are_one_line(untrained, run_here, tmp_path):
    """A run whose model is wider, and a supervised one, which has no projection heads."""
    model = {"width": 16, "depth": 1, "num_heads": 4, "image_size": (16, 16), "num_classes": 0}
    model |= {"layer_scale_init": 1.0, "positions": "learned"}
    untrained(tmp_path / "wide", make_config(model=model | {"width": 24}))
    untrained(tmp_path / "supervised", make_config(model=model))
    for name, message in (
        ("wide", "model.width is 24 there and 16 here"),
        ("supervised", "has no projection head, and the run has dino_head, ibot_head"),
    ):
        start = (f"--config.init_from.path={tmp_path}/{name}", "--config.init_from.keep_head=True")
        start += ("--config.model.width=16", "--config.model.depth=1")
        code, _, err = run_here("train", "--config=dino_digits:steps=8", f"--workdir={tmp_path}/run", *start)
        assert (code, err.count("\n")) == (2, 1) and message in err, err
