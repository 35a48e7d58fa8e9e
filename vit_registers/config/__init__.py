"""Settings with their defaults, their checks, conversion and flags.

settings.py, model.py, text.py, objectives.py and tasks.py declare the settings. checks.py holds the valid
values, convert.py reads and writes configs, flag.py parses --config, and strings.py parses settings that are
names with arguments.

A config file builds a `Config` and returns `to_config_dict(config)`, so that flags such as
`--config.model.num_registers=8` can override every setting. Programs convert it back with `from_mapping`,
which refuses unknown keys, wrong types and invalid values.
"""

from vit_registers.config.captions import Captions
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
from vit_registers.config.model import Model
from vit_registers.config.objectives import (
    ClassificationSettings,
    ImageTextSettings,
    LanguageModelSettings,
    ObjectiveSettings,
    SelfDistillationSettings,
)
from vit_registers.config.occasions import READ, RESUME, TRANSFER
from vit_registers.config.settings import (
    MESH_AXES,
    Checkpoint,
    Config,
    Data,
    InitFrom,
    Mesh,
    Optimizer,
    Run,
    image_size,
    may_change,
)
from vit_registers.config.tasks import (
    DepthSettings,
    KnnSettings,
    LinearSettings,
    LogisticSettings,
    RetrievalSettings,
    SegmentationSettings,
    Tasks,
    ZeroShotSegmentationSettings,
    ZeroShotSettings,
)
from vit_registers.config.text import Text

__all__ = [
    "MESH_AXES",
    "READ",
    "RESUME",
    "TRANSFER",
    "Captions",
    "Checkpoint",
    "ClassificationSettings",
    "Config",
    "Data",
    "DepthSettings",
    "ImageTextSettings",
    "InitFrom",
    "KnnSettings",
    "LanguageModelSettings",
    "LinearSettings",
    "LogisticSettings",
    "Mesh",
    "Model",
    "ObjectiveSettings",
    "Optimizer",
    "RetrievalSettings",
    "Run",
    "SegmentationSettings",
    "SelfDistillationSettings",
    "Tasks",
    "Text",
    "ZeroShotSegmentationSettings",
    "ZeroShotSettings",
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
