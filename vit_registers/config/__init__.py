"""Every setting and its default (core.py), and their strict conversion (convert.py).

Config files build a `Config` and return `to_config_dict(config)`, so that every setting prints and
`--config.model.num_registers=8` works; programs read it back with `from_mapping`, which refuses unknown keys
and wrong types.
"""

from vit_registers.config.convert import (
    flatten,
    from_mapping,
    lookup,
    nearest,
    override,
    parse_arg,
    to_config_dict,
    to_dict,
)
from vit_registers.config.core import (
    READ,
    RESUME,
    TRANSFER,
    Checkpoint,
    Config,
    Data,
    InitFrom,
    Mesh,
    Model,
    Optimizer,
    Run,
    image_size,
    may_change,
)

__all__ = [
    "READ",
    "RESUME",
    "TRANSFER",
    "Checkpoint",
    "Config",
    "Data",
    "InitFrom",
    "Mesh",
    "Model",
    "Optimizer",
    "Run",
    "flatten",
    "from_mapping",
    "image_size",
    "lookup",
    "may_change",
    "nearest",
    "override",
    "parse_arg",
    "to_config_dict",
    "to_dict",
]
