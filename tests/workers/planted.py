"""One rank of a pre-training whose rank 1 has a weight that breaks before step 2. usage: planted.py FLAGS"""

import sys

import pytest
from support import planted
from support.programs import parse

from moco_tf.errors import UserError
from moco_tf.run.pretraining import pretrain

with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError, match="of step 2 is not finite") as caught:
    planted.plant(patch, 2, lambda method: method.collectives.rank == 1)
    pretrain(parse("pretrain", *sys.argv[1:]))
print(caught.value, flush=True)
