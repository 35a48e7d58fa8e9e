"""Settings with defaults (core.py), valid values (checks.py), conversion (convert.py), --config (flag.py).

Config files build a `Config` and return `to_config_dict(config)`, so that every setting prints and
`--config.model.num_registers=8` works; programs read it back with `from_mapping`, which refuses unknown
keys, wrong types and invalid values.
"""

from vit_registers.config.checks import check_config, check_section, check_value
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
    MESH_AXES,
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
    "MESH_AXES",
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
    "check_config",
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
