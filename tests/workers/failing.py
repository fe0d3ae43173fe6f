"""A program of several ranks, of which some fail as FAILURE says: one_user, all_user, late_user or one_bug."""

import dataclasses
import os
import time

from moco_tf.config.options import RunOptions
from moco_tf.errors import UserError
from moco_tf.run import program
from moco_tf.training import collectives


@dataclasses.dataclass(frozen=True)
class Failing:
    """Its options."""

    run: RunOptions = RunOptions()


def main(options):
    who, how = os.environ["FAILURE"].split("_")
    ranks = collectives.connect()
    ranks.barrier()
    if who == "late" and ranks.rank == 0:
        time.sleep(8)
    if who != "one" or ranks.rank == 1:
        if how == "user":
            raise UserError("the data is not here; copy it")
        raise ZeroDivisionError("a bug")
    ranks.barrier()


if __name__ == "__main__":
    program.run(main, Failing)
