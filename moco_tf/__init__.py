"""moco_tf: momentum contrast and its family in TensorFlow 2 / Keras 3."""

import os

# TensorFlow prints a dozen lines of its own at start, even about GPUs that are not there. It reads this once, when it
# is imported; a user's own setting stands.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

__version__ = "0.1.0"
