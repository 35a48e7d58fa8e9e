"""The losses of a batch: against the plain computation, and their properties."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from tests.objectives.self_distillation import plain
from vit_registers.config import Model, SelfDistillationSettings
from vit_registers.data.block_masks import BlockMasks, batch_masks
from vit_registers.models.params import abstract_model, init_params
from vit_registers.objectives.self_distillation import heads
from vit_registers.objectives.self_distillation.forward import Crops, distillation

MODEL = Model(
    width=32,
    depth=2,
    num_heads=2,
    patch_size=4,
    image_size=(16, 16),
    num_classes=0,
    num_registers=2,
    use_mask_token=True,
    layer_scale_init=1.0,
    positions="learned",
    position_resampling="bicubic_aa",
)
BATCH, GROUP, LOCALS = 16, 8, 3
MASKS = BlockMasks(grid=(4, 4), num_crops=2 * GROUP, min_patches=1)
SHORT = SelfDistillationSettings(
    num_locals=LOCALS,
    local_size=8,
    mask_group=GROUP,
    koleo_group=GROUP,
    num_prototypes=24,
    ibot_prototypes=20,
    head_hidden=16,
    head_bottleneck=8,
    ibot_bottleneck=6,
    chunk_rows=1000,
)
LONG = dataclasses.replace(SHORT, has_ibot_head=True, targets="sinkhorn")


@functools.cache
def make_params(settings, seed):
    keys = jax.random.split(jax.random.key(seed), 3)
    sizes = {"width": 32, "hidden": settings.head_hidden}
    params = {"vit": init_params(MODEL, key=keys[0])}
    params["dino_head"] = heads.init_head(
        keys[1], **sizes, bottleneck=settings.head_bottleneck, num_prototypes=settings.num_prototypes
    )
    if settings.has_ibot_head:
        params["ibot_head"] = heads.init_head(
            keys[2], **sizes, bottleneck=settings.ibot_bottleneck, num_prototypes=settings.ibot_prototypes
        )
    # Larger values than the initial ones, so that all terms have gradients.
    return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(keys[0], x.shape), params)


@pytest.fixture(scope="module")
def crops():
    rng = np.random.default_rng(0)
    return Crops(
        global_BxVxHxWxC=jnp.asarray(rng.standard_normal((BATCH, 2, 16, 16, 3)), jnp.float32),
        local_BxLxHxWxC=jnp.asarray(rng.standard_normal((BATCH, LOCALS, 8, 8, 3)), jnp.float32),
        is_masked_BxVxP=jnp.asarray(batch_masks(MASKS, seed=0, step=0, first=0, number=BATCH)),
        mask_B=jnp.ones(BATCH, bool),
    )


def centres_of(settings):
    number = settings.ibot_prototypes if settings.has_ibot_head else settings.num_prototypes
    return {"dino": jnp.linspace(-0.1, 0.1, settings.num_prototypes), "ibot": jnp.linspace(0.1, -0.1, number)}


@functools.cache
def compiled(settings, num_masked):
    """(student, teacher, centres, crops) -> ((loss, (losses, centres)), gradients of both)."""
    graphdef, _ = abstract_model(MODEL)

    def loss(student, teacher, centres, crops):
        found, centres = distillation(
            graphdef,
            student,
            teacher,
            centres,
            crops,
            settings=settings,
            num_masked=num_masked,
            temperature=0.05,
            key=None,
        )
        return found["loss"], (found, centres)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))


def ours(settings, crops, student=None, teacher=None, num_masked=MASKS.num_masked):
    student = make_params(settings, 0) if student is None else student
    teacher = make_params(settings, 1) if teacher is None else teacher
    (_, aux), grads = compiled(settings, num_masked)(student, teacher, centres_of(settings), crops)
    return *aux, *grads


@pytest.mark.slow
@pytest.mark.parametrize("settings", [SHORT, LONG], ids=["centring, shared", "sinkhorn, separate"])
def test_against_the_plain_computation(crops, settings):
    graphdef, _ = abstract_model(MODEL)
    found, centres, grads, _ = ours(settings, crops)
    views = [crops.global_BxVxHxWxC[:, i] for i in range(2)]
    local = [crops.local_BxLxHxWxC[:, i] for i in range(LOCALS)]
    masks = [np.asarray(crops.is_masked_BxVxP[:, i]) for i in range(2)]

    def loss(student):
        terms, new = plain.losses(
            graphdef,
            student,
            make_params(settings, 1),
            centres_of(settings),
            (views, local, masks),
            settings,
            0.05,
        )
        return terms["loss"], (terms, new)

    (_, (terms, new)), want = jax.jit(jax.value_and_grad(loss, has_aux=True))(make_params(settings, 0))
    for name, value in terms.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)
    for name in ("ibot", "koleo"):
        np.testing.assert_allclose(found[f"{name}_logged"], terms[name] / 2, rtol=1e-5)
    for name, value in new.items():
        np.testing.assert_allclose(centres[name], value, atol=1e-6)
    largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(want))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6 * largest), grads, want)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [SHORT, LONG], ids=["centring, shared", "sinkhorn, separate"])
def test_chunks_and_padding_change_nothing(crops, settings):
    want = ours(settings, crops)
    small = dataclasses.replace(settings, chunk_rows=13)
    for found in (ours(small, crops), ours(settings, crops, num_masked=MASKS.num_masked + 11)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6), found, want)


@pytest.mark.slow
def test_gradients(crops):
    """None to the teacher; some to registers and to the mask token, but for a batch without masks."""
    _, _, student, teacher = ours(LONG, crops)
    assert not any(np.asarray(x).any() for x in jax.tree.leaves(teacher))
    assert np.abs(student["vit"]["registers"]).max() > 1e-6
    assert np.abs(student["vit"]["mask_token"]).max() > 1e-6
    bare = crops._replace(is_masked_BxVxP=jnp.zeros_like(crops.is_masked_BxVxP))
    found, centres, student, _ = ours(LONG, bare)
    assert not np.asarray(student["vit"]["mask_token"]).any()
    assert found["ibot"] == 0
    np.testing.assert_allclose(centres["ibot"], centres_of(LONG)["ibot"], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [SHORT, LONG], ids=["centring, shared", "sinkhorn, separate"])
def test_views_may_be_swapped_with_their_masks(crops, settings):
    found = ours(settings, crops)[0]
    swapped = crops._replace(
        global_BxVxHxWxC=crops.global_BxVxHxWxC[:, ::-1], is_masked_BxVxP=crops.is_masked_BxVxP[:, ::-1]
    )
    for name, value in ours(settings, swapped)[0].items():
        np.testing.assert_allclose(value, found[name], rtol=2e-5, err_msg=name)


@pytest.mark.slow
def test_images_that_are_left_out_change_nothing(crops):
    """With one group left out whole, the rest is a batch of its own."""
    half = jax.tree.map(lambda x: x[:GROUP], crops)
    part = crops._replace(mask_B=jnp.arange(BATCH) < GROUP)
    want, found = ours(LONG, half)[0], ours(LONG, part)[0]
    for name, value in want.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-5, err_msg=name)


@pytest.mark.slow
def test_chance(crops):
    """With uniform outputs: ln K for DINO, .5 ln K for iBOT, of which half is logged."""
    flat = jax.tree.map(lambda x: x, make_params(LONG, 0))
    for name in ("dino_head", "ibot_head"):
        flat[name]["last_layer"]["g"] = jnp.zeros_like(flat[name]["last_layer"]["g"])
    found = ours(LONG, crops, flat, flat)[0]
    dino, ibot = np.log(LONG.num_prototypes), np.log(LONG.ibot_prototypes)
    terms = 2 + 2 * LOCALS
    np.testing.assert_allclose(found["dino_local"], dino * 2 * LOCALS / terms, rtol=1e-5)
    np.testing.assert_allclose(found["dino_global"], dino * 2 / terms, rtol=1e-5)
    np.testing.assert_allclose(found["ibot"], ibot / 2, rtol=1e-5)
    np.testing.assert_allclose(found["ibot_logged"], ibot / 4, rtol=1e-5)
    np.testing.assert_allclose(found["teacher_entropy"], dino, rtol=1e-5)
    np.testing.assert_allclose(found["prototypes_used"], LONG.num_prototypes, rtol=1e-4)


def products(jaxpr):
    """(dtypes, shape of the second operand) of all matrix products, also of inner functions."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            operands = [variable.aval for variable in equation.invars]
            yield {str(one.dtype) for one in operands}, operands[1].shape
        for inner in jaxprs_in_params(equation.params):
            yield from products(inner)


@pytest.mark.slow
def test_bfloat16_is_close_to_float32(crops):
    """Heads multiply in bfloat16. Losses and gradients stay float32, near those of float32."""
    settings = LONG
    graphdef, _ = abstract_model(dataclasses.replace(MODEL, dtype="bfloat16"))

    def loss(student):
        found, centres = distillation(
            graphdef,
            student,
            teacher,
            centres_of(settings),
            crops,
            settings=settings,
            num_masked=MASKS.num_masked,
            temperature=0.05,
            key=None,
        )
        return found["loss"], (found, centres)

    student, teacher = make_params(settings, 0), make_params(settings, 1)
    kernels = {(32, 16), (16, 16), (16, 8), (8, 24)}
    seen = {
        shape: dtypes for dtypes, shape in products(jax.make_jaxpr(loss)(student).jaxpr) if shape in kernels
    }
    assert seen == {shape: {"bfloat16"} for shape in kernels}
    (_, (found, centres)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(student)
    want, want_centres, want_grads, _ = ours(settings, crops)
    for name, value in want.items():
        assert found[name].dtype == jnp.float32
        np.testing.assert_allclose(found[name], value, rtol=0.02, atol=0.002, err_msg=name)
    for name, value in want_centres.items():
        np.testing.assert_allclose(centres[name], value, atol=2e-3)
    for name in want_grads:
        a, b = (
            np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree[name])]) for tree in (grads, want_grads)
        )
        assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.995, name
