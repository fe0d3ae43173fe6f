"""Where the parity cases are: beside the checkout, or the smaller copy in tests/fixtures/parity."""

import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[2]


def path(name: str) -> pathlib.Path:
    """The file of a parity case; skips the test where neither place has it."""
    shared = ROOT.parent / "shared" / "parity"
    for folder in (shared / "cases", shared / "cases_v3", ROOT / "tests" / "fixtures" / "parity"):
        if (folder / name).exists():
            return folder / name
    import pytest  # launch/gpu.sh runs without it

    pytest.skip(f"{name} is too large for the copy in tests/fixtures/parity and ../shared/parity is not here")
