"""One rank that runs the programs one after the other for every method named. usage: programs.py OUT_DIR METHOD ..."""

import sys

from support import end_to_end

out, *names = sys.argv[1:]
for name in names:
    end_to_end.run(name, f"{out}/{name}", (2, 4) if name in end_to_end.STATEFUL else (4,))
    print("finished", name, flush=True)
