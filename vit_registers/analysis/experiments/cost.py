"""cost: parameters and floating-point operations with registers, and the energy of a training run."""

import dataclasses

from vit_registers.analysis.experiments.experiment import REGISTERS, SMALL, Experiment
from vit_registers.analysis.options import Options
from vit_registers.analysis.report.figures import lines_picture
from vit_registers.analysis.report.headline import Headline
from vit_registers.analysis.report.result import Rows, number
from vit_registers.analysis.subject import Subject
from vit_registers.config import Model
from vit_registers.models.blocks import dims
from vit_registers.models.tokens import TokenLayout

_COUNTS = (0, 1, 2, 4, 8, 16)  # of registers
_OPERATIONS = (
    "Operations of the matrix products of a forward pass at the size of the images, a multiplication and an "
    "addition counted as two; summary tokens, a mask and learned positions of registers as in the model."
)
_ENERGY = (
    " Energy in kWh = hours of all devices x watts of one x power usage effectiveness (PUE) / 1000; kg of CO2"
    " = kWh x kg for each kWh. The four factors are those given with --energy."
)


def forward_flops(model: Model, layout: TokenLayout) -> int:
    """Floating-point operations of one image's forward pass: 2 for each multiplication and addition of a
    matrix product, and nothing else (norms, softmax, activations and biases are some per cent)."""
    sizes = dims(model)
    tokens, width = layout.num_tokens, sizes.width
    embed = layout.num_patches * width * model.channels * model.patch_size**2
    factor = 3 if sizes.mlp == "swiglu" else 2
    block = tokens * width * (4 * width + factor * sizes.mlp_dim) + 2 * tokens**2 * width
    return 2 * (embed + sizes.depth * block + width * model.num_classes)


def energy(hours: float, watts: float, pue: float, intensity: float) -> tuple[float, float]:
    """(kWh, kg of CO2) of `hours` of all devices of `watts` each: hours x watts x PUE / 1000, and that times
    kg of CO2 for each kWh.

    As in "Registers in Small Vision Transformers", table 6, whose 0.58 MWh is however not the product of its
    own factors: 1320 h x 400 W x 1.2 are 0.634 MWh.
    """
    kwh = hours * watts * pue / 1000
    return kwh, kwh * intensity


def _measure(subject: Subject, options: Options) -> Rows:
    model, own = subject.model, subject.layout.num_registers
    tables = (model.registers == "learned") + (model.extra_positions == "learned")
    learned = tables * dims(model).width  # for each register
    plain = forward_flops(model, dataclasses.replace(subject.layout, num_registers=0))
    rows = []
    for count in _COUNTS:
        flops = forward_flops(model, dataclasses.replace(subject.layout, num_registers=count))
        more, parameters = 100 * (flops / plain - 1), subject.num_parameters + (count - own) * learned
        rows.append((count, flops / 1e9, more, parameters))
    given = [] if options.energy is None else [(*options.energy, *energy(*options.energy))]
    return Rows(
        tables={"Cost of registers": rows, "Energy": given},
        text=f"{_COUNTS[-1]} registers add {number(more, '%')} to the {number(plain / 1e9)} GFLOP of a "
        "forward pass",
        compared=more,
        count=f"{subject.layout.num_patches:,} patches",
        values=(_COUNTS, [row[2] for row in rows]),
        headlines=[
            Headline(what="parameters", value=float(subject.num_parameters)),
            Headline(what="forward pass, GFLOP", value=forward_flops(model, subject.layout) / 1e9),
        ],
    )


EXPERIMENT = Experiment(
    question="What do registers cost?",
    answers=f"{REGISTERS}, figure 12; {SMALL}, table 6",
    definition=lambda options: _OPERATIONS + ("" if options.energy is None else _ENERGY),
    tables={
        "Cost of registers": "model | registers | GFLOP per image | more, % | parameters",
        "Energy": "hours | watts | PUE | kg CO2 per kWh | kWh | kg CO2",
    },
    measure=_measure,
    draw=lines_picture(
        "cost",
        "Operations of a forward pass by the number of registers, more than without any.",
        "registers",
        "more operations, %",
    ),
    compares="share of operations that 16 registers add, %",
)
