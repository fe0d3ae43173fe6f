"""launch/horovod.sh builds only the source that was published."""

import hashlib
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
# Instead of an environment's Python: pip installs nothing, and downloads another source.
PYTHON = """#!/bin/sh
case "$*" in
  "-m pip download"*) while [ "$1" != -d ]; do shift; done; printf tampered >"$2/horovod-0.28.1.tar.gz" ;;
  "-m pip"*) ;;
  *) exec "{python}" "$@" ;;
esac
"""


def test_another_source_is_refused(tmp_path):
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(PYTHON.format(python=sys.executable))
    python.chmod(0o755)
    for flags in ([], ["--gpu"]):
        command = [ROOT / "launch" / "horovod.sh", *flags, python]
        done = subprocess.run(
            command, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
        )
        came = hashlib.sha256(b"tampered").hexdigest()
        assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
        assert f"the source of horovod 0.28.1 came with SHA-256 {came}, expected 92a43f5a" in done.stderr
