"""Two whole training steps against torch: transformers' DINOv2, and losses and AdamW written in torch."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.objectives.self_distillation.test_forward import BATCH, LONG, MASKS, MODEL, SHORT, make_params
from vit_registers.config import Config, Data, ObjectiveSettings, Optimizer, Run
from vit_registers.data.block_masks import batch_masks
from vit_registers.interop.export import targets
from vit_registers.models.params import abstract_model
from vit_registers.objectives.self_distillation.forward import Crops, distillation
from vit_registers.objectives.self_distillation.objective import SelfDistillation
from vit_registers.training.durations import Durations
from vit_registers.training.optimizer import make_optimizer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

STEPS, TEMPERATURE = 2, 0.05
RATES = {"learning_rate": 1e-2, "weight_decay": 0.04, "layer_decay": 0.9, "patch_embed_rate": 0.2}
CENTRED = dataclasses.replace(SHORT, momentum=(0.9, 1.0))
SINKHORN = dataclasses.replace(LONG, momentum=(0.9, 1.0))


class Head(torch.nn.Module):
    """DINOHead of DINOv2's code, with weight normalisation as g and v."""

    def __init__(self, params):
        super().__init__()
        self.mlp = torch.nn.ModuleList()
        for i in range(3):
            kernel, bias = (np.asarray(params["mlp"][i][name]) for name in ("kernel", "bias"))
            layer = torch.nn.Linear(*kernel.shape)
            layer.weight.data, layer.bias.data = torch.tensor(kernel.T.copy()), torch.tensor(bias)
            self.mlp.append(layer)
        self.g = torch.nn.Parameter(torch.tensor(np.asarray(params["last_layer"]["g"]))[:, None])
        self.v = torch.nn.Parameter(torch.tensor(np.asarray(params["last_layer"]["v"]).T.copy()))

    def forward(self, x):
        gelu = torch.nn.functional.gelu
        x = self.mlp[2](gelu(self.mlp[1](gelu(self.mlp[0](x)))))
        x = torch.nn.functional.normalize(x, dim=-1, eps=1e-12)
        return x @ (self.g * self.v / self.v.norm(dim=1, keepdim=True)).T


class Network(torch.nn.Module):
    def __init__(self, params, folder):
        super().__init__()
        self.vit = backbone(params["vit"], folder)
        self.dino_head = Head(params["dino_head"])
        self.ibot_head = Head(params["ibot_head"]) if "ibot_head" in params else None

    def tokens(self, images, masked=None):
        out = self.vit(images, bool_masked_pos=masked).last_hidden_state
        return out[:, 0], out[:, 1 + MODEL.num_registers :]

    def patch_logits(self, x):
        return (self.ibot_head or self.dino_head)(x)


def backbone(params, folder):
    targets.write(targets.export(MODEL, params, "transformers"), folder, np.float32, Data())
    return transformers.AutoModel.from_pretrained(folder, attn_implementation="eager").train()


def sinkhorn(logits):
    q = torch.exp(logits / TEMPERATURE).T
    q /= q.sum()
    for _ in range(3):
        q /= q.sum(1, keepdim=True) * q.shape[0]
        q /= q.sum(0, keepdim=True) * q.shape[1]
    return (q * q.shape[1]).T


def cross_entropy(target, logits):
    return -(target * torch.log_softmax(logits / 0.1, dim=-1)).sum(-1)


def koleo(x):
    x = torch.nn.functional.normalize(x, dim=-1, eps=1e-8)
    with torch.no_grad():
        nearest = (x @ x.T).fill_diagonal_(-1).argmax(1)
    return -torch.log(torch.nn.PairwiseDistance(2, eps=1e-8)(x, x[nearest]) + 1e-8).mean()


def torch_loss(student, teacher, centres, crops, settings):
    """(loss, new centres); crops are crop-major lists, as the released code has them."""
    views, local, masks = crops
    mask = torch.cat(masks)
    with torch.no_grad():
        taught = [teacher.tokens(view) for view in views]
        t_cls = teacher.dino_head(torch.cat([cls for cls, _ in taught]))
        t_patch = teacher.patch_logits(torch.cat([patches for _, patches in taught])[mask])
        if settings.targets == "sinkhorn":
            p_cls, p_patch = sinkhorn(t_cls), sinkhorn(t_patch)
        else:
            p_cls = torch.softmax((t_cls - centres["dino"]) / TEMPERATURE, -1)
            p_patch = torch.softmax((t_patch - centres["ibot"]) / TEMPERATURE, -1)
    a, b = p_cls.chunk(2)
    own = [student.tokens(view, one) for view, one in zip(views, masks, strict=True)]
    terms = 2 + max(2 * len(local), 1)
    loss = 0.0
    for view in local:
        logits = student.dino_head(student.tokens(view)[0])
        loss = loss + sum(cross_entropy(target, logits).mean() for target in (a, b)) / terms
    logits = student.dino_head(torch.cat([cls for cls, _ in own]))
    loss = loss + 2 * cross_entropy(torch.cat([b, a]), logits).mean() / terms
    weight = (1 / mask.sum(-1).clamp(min=1))[:, None].expand_as(mask)[mask]
    s_patch = student.patch_logits(torch.cat([patches for _, patches in own])[mask])
    loss = loss + (cross_entropy(p_patch, s_patch) * weight).sum() / len(mask)
    groups = [koleo(part) for cls, _ in own for part in cls.split(settings.koleo_group)]
    loss = loss + settings.koleo_weight * sum(groups) * settings.koleo_group / BATCH
    new = {
        "dino": 0.9 * centres["dino"] + 0.1 * t_cls.mean(0),
        "ibot": 0.9 * centres["ibot"] + 0.1 * t_patch.mean(0),
    }
    return loss, new


def parameter_groups(student):
    """AdamW's groups of DINOv2's code: rates by layer, decay for all but biases, norms and LayerScale."""
    groups, depth = [], MODEL.depth
    for name, parameter in student.named_parameters():
        rate = RATES["learning_rate"]
        if name.startswith("vit.embeddings."):
            rate *= 0.9 ** (depth + 1) * (0.2 if "patch_embeddings" in name else 1.0)
        elif ".layer." in name:
            rate *= 0.9 ** (depth - int(name.split(".layer.")[1].split(".")[0]))
        is_free = name.endswith("bias") or "norm" in name or "lambda" in name
        groups.append({"params": [parameter], "lr": rate, "weight_decay": 0.0 if is_free else 0.04})
    return groups


def our_step(settings):
    """(student, extra, optimiser state, crops) -> (losses, gradients, the same after the step)."""
    optimizer_settings = Optimizer(
        **RATES,
        schedule="constant",
        decayed="all_but_norms",
        grad_clip_norm=3.0,
        grad_clip_per="module",
    )
    lengths = Durations(total_steps=10, warmup_steps=0, eval_every_steps=10, steps_per_epoch=10.0)
    optimizer = make_optimizer(optimizer_settings, lengths)
    config = Config(
        model=MODEL,
        objective=ObjectiveSettings(name="self_distillation", self_distillation=settings),
        run=Run(total_steps=10),
    )
    objective, (graphdef, _) = SelfDistillation(config), abstract_model(MODEL)

    @jax.jit
    def step(student, extra, opt_state, crops, number):
        def loss(student):
            found, centre = distillation(
                graphdef,
                student,
                extra["teacher"],
                extra["centre"],
                crops,
                settings=settings,
                num_masked=MASKS.num_masked,
                temperature=TEMPERATURE,
                key=None,
            )
            return found["loss"], (found, centre)

        (_, (found, centre)), grads = jax.value_and_grad(loss, has_aux=True)(student)
        updates, opt_state = optimizer.update(grads, opt_state, student)
        student = optax.apply_updates(student, updates)
        extra = objective.after_update(student, {**extra, "centre": centre}, number)
        return found, grads, student, extra, opt_state

    return optimizer, step


def momentum(settings, step):
    low, high = settings.momentum
    return high + (low - high) * (1 + math.cos(math.pi * step / 10)) / 2


def assert_same_backbone(params, module, folder, *, atol):
    want = backbone(params, folder).state_dict()
    for name, value in module.state_dict().items():
        if name.endswith(
            ("key.bias", "k_proj.bias")
        ):  # its true gradient is zero: AdamW makes steps of rounding
            continue
        np.testing.assert_allclose(value.numpy(), want[name].numpy(), atol=atol, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [CENTRED, SINKHORN], ids=["centring, shared", "sinkhorn, separate"])
def test_two_steps(settings, tmp_path):
    student, teacher = make_params(settings, 0), make_params(settings, 1)
    number = settings.ibot_prototypes if settings.has_ibot_head else settings.num_prototypes
    centres = {"dino": np.zeros(settings.num_prototypes, np.float32), "ibot": np.zeros(number, np.float32)}
    theirs, their_teacher = Network(student, tmp_path / "s"), Network(teacher, tmp_path / "t")
    adamw = torch.optim.AdamW(parameter_groups(theirs), betas=(0.9, 0.999), eps=1e-8)
    their_centres = {name: torch.tensor(value) for name, value in centres.items()}
    optimizer, our = our_step(settings)
    extra = {"teacher": teacher, "centre": jax.tree.map(jnp.asarray, centres)}
    opt_state = optimizer.init(student)
    for step in range(STEPS):
        rng = np.random.default_rng(step)
        views = rng.standard_normal((BATCH, 2, 16, 16, 3)).astype(np.float32)
        local = rng.standard_normal((BATCH, settings.num_locals, 8, 8, 3)).astype(np.float32)
        masks = batch_masks(MASKS, seed=0, step=step, first=0, number=BATCH)
        crops = Crops(*map(jnp.asarray, (views, local, masks)), jnp.ones(BATCH, bool))
        found, grads, student, extra, opt_state = our(student, extra, opt_state, crops, jnp.int32(step))
        nchw = lambda x: torch.tensor(x.transpose(0, 3, 1, 2).copy())  # noqa: E731
        loss, their_centres = torch_loss(
            theirs,
            their_teacher,
            their_centres,
            (
                [nchw(views[:, i]) for i in range(2)],
                [nchw(local[:, i]) for i in range(settings.num_locals)],
                [torch.tensor(masks[:, i]) for i in range(2)],
            ),
            settings,
        )
        adamw.zero_grad()
        loss.backward()
        np.testing.assert_allclose(found["loss"], loss.item(), rtol=1e-5)
        for name, module in grads.items():
            part = getattr(theirs, name)
            norm = torch.nn.utils.clip_grad_norm_(part.parameters(), 3.0)
            np.testing.assert_allclose(optax.tree.norm(module), norm.item(), rtol=1e-4, err_msg=name)
        adamw.step()
        m = momentum(settings, step)
        with torch.no_grad():
            for old, new in zip(their_teacher.parameters(), theirs.parameters(), strict=True):
                old.mul_(m).add_(new, alpha=1 - m)
    for name in centres:
        np.testing.assert_allclose(extra["centre"][name], their_centres[name].numpy(), atol=1e-5)
    assert_same_backbone(student["vit"], theirs.vit, tmp_path / "s2", atol=1e-4)
    assert_same_backbone(extra["teacher"]["vit"], their_teacher.vit, tmp_path / "t2", atol=2e-5)
    for ours, module in ((student, theirs), (extra["teacher"], their_teacher)):
        np.testing.assert_allclose(
            ours["dino_head"]["last_layer"]["v"].T, module.dino_head.v.detach().numpy(), atol=1e-4
        )
