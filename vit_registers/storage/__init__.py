"""The file system of run folders: local ones, and gs:// over etils.epath and gcsfs.

No other code of this package opens, lists, writes or removes what is in a run folder.
"""

import contextlib
import os

from etils.epath import gpath

# epath then opens gs:// with gcsfs, not with TensorFlow, which would be imported for it.
os.environ.setdefault("EPATH_USE_TF", "false")
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # else a warning for each operation
# epath keeps what it found when a path was first used, which may have been before this import.
with contextlib.suppress(AttributeError):  # the function is private
    gpath._is_tf_installed.cache_clear()
