"""One rank that runs the programs one after the other for every case named. usage: programs.py OUT_DIR CASE ..."""

import sys

from support import end_to_end

out, *cases = sys.argv[1:]
for case in cases:
    end_to_end.run(case, f"{out}/{case}")
    print("finished", case, flush=True)
