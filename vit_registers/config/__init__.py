"""Every setting and its default (core.py), which values it may have (checks.py), conversion (convert.py), and
the --config flag (flag.py).

Config files build a `Config` and return `to_config_dict(config)`, so that every setting prints and
`--config.model.num_registers=8` works; programs read it back with `from_mapping`, which refuses unknown
keys, wrong types and values that cannot be.
"""

from vit_registers.config.checks import check, check_section, check_value
from vit_registers.config.convert import (
    check_names,
    flatten,
    from_mapping,
    from_saved,
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
from vit_registers.config.objectives import ClassificationSettings, ObjectiveSettings

__all__ = [
    "READ",
    "RESUME",
    "TRANSFER",
    "Checkpoint",
    "ClassificationSettings",
    "Config",
    "Data",
    "InitFrom",
    "Mesh",
    "Model",
    "ObjectiveSettings",
    "Optimizer",
    "Run",
    "check",
    "check_names",
    "check_section",
    "check_value",
    "flatten",
    "from_mapping",
    "from_saved",
    "image_size",
    "lookup",
    "may_change",
    "nearest",
    "override",
    "parse_arg",
    "to_config_dict",
    "to_dict",
]
