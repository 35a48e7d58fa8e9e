"""The file system of run folders: local ones, and gs:// over etils.epath and gcsfs.

No other code of this package opens, lists, writes or removes what is in a run folder.
"""

import os

# epath then opens gs:// with gcsfs, not with TensorFlow, which would be imported for it.
os.environ.setdefault("EPATH_USE_TF", "false")
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # else a warning for each operation
