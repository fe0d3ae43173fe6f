"""Prints what a file or folder holds: architecture, head, queue, step and more, found in its arrays.

python -m moco_tf.inspect --load=runs/v2
python -m moco_tf.inspect --load=moco_v2_800ep_pretrain.pth.tar --json
"""

import importlib.machinery
import importlib.util
import os
import sys

if __name__ == "inspect":
    # A program of this folder was run by its path, so that the folder comes before the standard library, and somebody
    # asked for the standard library's module of this name.
    _here = os.path.dirname(os.path.abspath(__file__))
    _others = [path for path in sys.path if os.path.abspath(path) != _here]
    _spec = importlib.machinery.PathFinder.find_spec(__name__, _others)
    sys.modules[__name__] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules[__name__])
else:
    from absl import flags

    from moco_tf import options, program
    from moco_tf.inspection import define_flags, main

    __all__ = ["define_flags", "main"]

    if __name__ == "__main__":
        define_flags()
        flags.adopt_module_key_flags(options)
        program.run(main)
