"""What registers cost: parameters and floating-point operations of a forward pass."""

import dataclasses

from matplotlib.figure import Figure

from vit_registers.analysis.report.figures import legend_name
from vit_registers.analysis.report.result import Picture, Result, Table
from vit_registers.analysis.subject import Options, Subject
from vit_registers.config import Model
from vit_registers.models.blocks import dims
from vit_registers.models.tokens import TokenLayout

_REGISTERS = (0, 1, 2, 4, 8, 16)


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


def registers(subjects: list[Subject], options: Options) -> Result:
    """Operations and parameters with 0 to 16 registers, and the energy that the user's numbers come to."""
    rows = []
    figure = Figure(figsize=(5.0, 3.0), layout="constrained")
    axes = figure.subplots()
    for subject in subjects:
        model, own = subject.model, subject.layout.num_registers
        tables = (model.registers == "learned") + (model.extra_positions == "learned")
        learned = tables * dims(model).width  # for each register
        plain = forward_flops(model, dataclasses.replace(subject.layout, num_registers=0))
        more = []
        for count in _REGISTERS:
            flops = forward_flops(model, dataclasses.replace(subject.layout, num_registers=count))
            parameters = subject.num_parameters + (count - own) * learned
            more.append(100 * (flops / plain - 1))
            rows.append((subject.name, count, flops / 1e9, more[-1], parameters))
        axes.plot(_REGISTERS, more, "o-", ms=3, label=legend_name(subject.name))
    axes.set(xlabel="registers", ylabel="more operations, %")
    axes.legend(frameon=False, fontsize=8)
    columns = ("model", "registers", "GFLOP per image", "more, %", "parameters")
    result = Result(
        definition="Operations of the matrix products of a forward pass at the size of the images, a "
        "multiplication and an addition counted as two; summary tokens, a mask and learned positions of "
        "registers as in the model.",
        tables=[Table(title="Cost of registers", columns=columns, rows=rows)],
        pictures=[Picture(name="cost", caption="Operations against none.", figure=figure)],
    )
    if options.energy is not None:
        result.definition += (
            " Energy in kWh = hours of all devices x watts of one x power usage effectiveness (PUE) / 1000; "
            "kg of CO2 = kWh x kg for each kWh. The four factors are those given with --energy."
        )
        columns = ("hours", "watts", "PUE", "kg CO2 per kWh", "kWh", "kg CO2")
        row = (*options.energy, *energy(*options.energy))
        result.tables.append(Table(title="Energy", columns=columns, rows=[row]))
    return result
