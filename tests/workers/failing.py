"""A program of several ranks, of which some fail as FAILURE says: one_user, all_user or one_bug."""

import os

from moco_tf.config import options
from moco_tf.errors import UserError
from moco_tf.run import program
from moco_tf.training import collectives


def main(*_):
    who, how = os.environ["FAILURE"].split("_")
    ranks = collectives.connect()
    ranks.barrier()
    if who == "all" or ranks.rank == 1:
        if how == "user":
            raise UserError("the data is not here; copy it")
        raise ZeroDivisionError("a bug")
    ranks.barrier()


if __name__ == "__main__":
    options.define_workdir()
    program.run(main)
