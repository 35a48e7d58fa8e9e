"""Features against restatements in numpy, transformers' own attention, and themselves in other batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import vit_registers
from vit_registers.analysis.features import compute
from vit_registers.analysis.features.store import VALID, Store
from vit_registers.analysis.features.table import FEATURES
from vit_registers.analysis.measures.severity import neighbour_cosine
from vit_registers.config import Model
from vit_registers.data.batch import IMAGE, labelled_batch, normalize
from vit_registers.models.attention.api import attention_weights
from vit_registers.models.vit import ViT, static_attention

TINY = {
    "width": 32,
    "depth": 2,
    "num_heads": 4,
    "mlp_dim": 64,
    "patch_size": 4,
    "image_size": (16, 16),
    "num_classes": 5,
    "pooling": "cls",
    "layer_scale_init": 0.5,
}
MODELS = {
    "registers": {"num_registers": 3},
    "fractal": {"summary_factor": 2, "mask": "fractal", "num_registers": 1},
    "cls late, no skip": {"num_registers": 2, "cls_blocks": 1, "has_cls_skip": False},
    "neither, normed heads": {"use_attention_norm": True, "use_mlp_norm": True},
}
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
IMAGES = np.random.default_rng(0).integers(0, 256, (11, 16, 16, 3), dtype=np.uint8)


def _model(settings):
    model = ViT(Model(**TINY, **settings), rngs=nnx.Rngs(0))
    graph, params = nnx.split(model)
    rng = np.random.default_rng(1)
    noise = jax.tree.map(lambda x: x + jnp.asarray(rng.normal(0, 0.2, x.shape), jnp.float32), params)
    return nnx.merge(graph, noise)


def _batches(size, images=IMAGES):
    for start in range(0, len(images), size):
        part = images[start : start + size]
        pad = size - len(part)
        image = np.pad(part, [(0, pad), (0, 0), (0, 0), (0, 0)])
        yield labelled_batch(
            image, np.arange(start, start + size, dtype=np.int32), np.arange(size) < size - pad
        )


def _names(model):
    groups = model.layout.groups
    return tuple(name for name, f in FEATURES.items() if f.needs is None or f.needs in groups)


def _extract(model, root, size=4, names=None, progress=lambda done, total: None, num_images=11):
    store = Store(root, "tiny", {"num_images": num_images})
    names = names or _names(model)
    compute.extract_features(
        model,
        _batches(size),
        store,
        names,
        image_size=(16, 16),
        mean=MEAN,
        std=STD,
        progress=progress,
    )
    return store


@pytest.fixture(scope="module", params=MODELS)
def case(request, tmp_path_factory):
    """(model, its features, its outputs in the same batches: those of others are rounded differently)."""
    model = _model(MODELS[request.param])
    forward = nnx.jit(lambda model, images: model(normalize(images, mean=MEAN, std=STD)))
    parts = [forward(model, batch.views[IMAGE]) for batch in _batches(4)]
    out = jax.tree.map(lambda *part: np.concatenate(part)[: len(IMAGES)], *parts)
    return model, _extract(model, tmp_path_factory.mktemp(request.param)), out


def test_norms_and_tokens(case):
    model, store, out = case
    resid = np.stack([np.asarray(r, np.float64) for r in out.taps["resid"]], axis=1)
    np.testing.assert_allclose(store.read("norms_LxT"), np.linalg.norm(resid, axis=-1), rtol=1e-5)
    np.testing.assert_allclose(store.read("cls_LxD"), resid[:, :, 0], rtol=1e-5, atol=1e-5)
    patches = resid[:, -1, model.layout.patches]
    np.testing.assert_allclose(store.read("patches_PxD"), patches, rtol=1e-5, atol=1e-5)
    final = np.linalg.norm(np.asarray(out.patches, np.float64), axis=-1)
    np.testing.assert_allclose(store.read("final_norms_T")[:, model.layout.patches], final, rtol=1e-5)
    np.testing.assert_array_equal(store.read("label"), np.arange(len(IMAGES)))


def test_what_tasks_read_is_cls_and_the_mean_patch_after_the_final_norm(case):
    _, store, out = case
    cls, mean = store.read("frozen_2xD").swapaxes(0, 1)
    np.testing.assert_allclose(cls, out.cls, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(mean, np.asarray(out.patches).mean(1), rtol=1e-5, atol=1e-5)


def test_attention_mass_and_entropy(case):
    model, store, out = case
    mask_TxT, bias = static_attention(model.model, model.layout)
    weights = [
        np.asarray(attention_weights(q, k, mask_TxT=mask_TxT, bias_NxTxT=bias), np.float64)
        for q, k in zip(out.taps["q"], out.taps["k"], strict=True)
    ]
    if model.model.cls_blocks == 1:  # the first block does not change cls
        weights[0][:, :, 0] = np.arange(model.layout.num_tokens) == 0
    queries, stop = model.layout.registers.stop, model.layout.summaries.stop
    stored = store.read("attention_NxExT")
    np.testing.assert_allclose(stored[:, :, :queries], weights[-1][:, :, :queries], atol=1e-6)
    np.testing.assert_allclose(stored, weights[-1][:, :, :stop], atol=1e-6)
    middle = model.layout.patches.start + 4 * 2 + 2  # row 2, column 2 of 4 x 4
    np.testing.assert_allclose(store.read("center_T"), weights[-1][:, :, middle].mean(1), atol=1e-6)
    groups = list(model.layout.groups.values())
    for layer, weight_BxNxTxT in enumerate(weights):
        positive = np.where(weight_BxNxTxT > 0, weight_BxNxTxT, 1.0)
        entropy = -(weight_BxNxTxT * np.log(positive)).sum(-1)
        for i, a in enumerate(groups):
            expected = entropy[:, :, a].mean((1, 2))
            np.testing.assert_allclose(store.read("entropy_LxG")[:, layer, i], expected, atol=1e-5)
            for j, b in enumerate(groups):
                mass = weight_BxNxTxT[:, :, a, b].sum(-1).mean((1, 2))
                np.testing.assert_allclose(store.read("mass_LxGxG")[:, layer, i, j], mass, atol=1e-5)


def test_terms_sum_to_what_the_block_does(case):
    """cls after the last attention, sent through the block's MLP, is the cls that the block leaves."""
    model, store, out = case
    terms_BxExD = store.read("terms_ExD")
    block = model.blocks[-1]
    cls_Bx1xD = jnp.asarray(terms_BxExD.sum(1))[:, None]
    left = cls_Bx1xD + block.ls2(block.mlp(block.norm2(cls_Bx1xD))[0])
    np.testing.assert_allclose(left[:, 0], out.taps["resid"][-1][:, 0], atol=1e-5)
    assert terms_BxExD.shape[1] == len(model.layout.groups) + 2


def test_terms_of_each_block_sum_to_cls_between_attention_and_mlp(case):
    model, store, out = case
    terms_BxLxExD = store.read("terms_LxExD")
    np.testing.assert_array_equal(terms_BxLxExD[:, -1], store.read("terms_ExD"))
    middle = np.stack([middle[:, 0] for middle in out.taps["middle"]], axis=1)
    np.testing.assert_allclose(terms_BxLxExD.sum(2), middle, atol=1e-5)
    assert model.model.has_cls_skip == terms_BxLxExD[:, -1, -1].any()
    assert (model.model.cls_blocks is None) == terms_BxLxExD[:, 0, :-2].any()


def test_terms_before_the_projection_give_those_after_it(case):
    model, store, _ = case
    block, head_terms = model.blocks[-1], store.read("head_terms_GxD")
    kernel_DxD = np.asarray(block.attn.out.kernel[...]).reshape(head_terms.shape[-1], -1)
    after = head_terms @ kernel_DxD * np.asarray(block.ls1.gamma[...])
    np.testing.assert_allclose(after, store.read("terms_ExD")[:, :-2], atol=1e-5)


def test_neighbours_of_embeddings_and_outputs(case):
    model, store, out = case
    for name, values in (
        ("embed_cosine_4xP", out.taps["embed"]),
        ("output_cosine_4xP", out.taps["resid"][-1][:, model.layout.patches]),
    ):
        expected = neighbour_cosine(np.asarray(values), model.layout.patch_grid)
        stored = store.read(name)
        np.testing.assert_array_equal(~np.isnan(stored), expected.is_valid_Bx4xP)
        np.testing.assert_allclose(np.nan_to_num(stored), expected.cosine_Bx4xP, atol=1e-5)


def test_batches_do_not_matter(case, tmp_path):
    model, store, _ = case
    other = _extract(model, tmp_path, size=11)
    for name in (*_names(model), "label", VALID):
        np.testing.assert_allclose(store.read(name), other.read(name), atol=2e-5, err_msg=name)


def test_stopped_extraction_goes_on_and_gives_the_same_files(case, tmp_path):
    model, store, _ = case

    def stop(done, total):
        if done >= 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _extract(model, tmp_path, progress=stop)
    seen = []
    again = _extract(model, tmp_path, progress=lambda done, total: seen.append(done))
    assert seen == [11]
    for name in (*_names(model), "label", VALID):
        same = (again.folder / f"{name}.npy").read_bytes() == (store.folder / f"{name}.npy").read_bytes()
        assert same, name


def test_only_the_first_images_and_only_what_is_missing(case, tmp_path):
    model, store, _ = case
    few = _extract(model, tmp_path, names=("norms_LxT",), num_images=6)
    np.testing.assert_array_equal(few.read("norms_LxT"), store.read("norms_LxT")[:6])
    before = (few.folder / "norms_LxT.npy").stat().st_mtime_ns
    more = _extract(model, tmp_path, names=("norms_LxT", "patches_PxD"), num_images=6)
    assert more.read("patches_PxD").shape[0] == 6
    assert (few.folder / "norms_LxT.npy").stat().st_mtime_ns == before


@pytest.mark.slow
def test_attention_equals_that_of_transformers(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.Dinov2WithRegistersConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        patch_size=4,
        image_size=16,
        num_register_tokens=3,
        attn_implementation="eager",
    )
    theirs = transformers.Dinov2WithRegistersModel(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path / "theirs")
    ours = vit_registers.load(str(tmp_path / "theirs"))
    store = _extract(ours, tmp_path, names=("attention_NxExT",))
    pixels = torch.tensor(np.moveaxis(np.asarray(normalize(IMAGES, mean=MEAN, std=STD)), -1, 1).copy())
    with torch.no_grad():
        expected = theirs(pixels, output_attentions=True).attentions[-1].numpy()
    np.testing.assert_allclose(store.read("attention_NxExT"), expected[:, :, :4], atol=1e-5)
