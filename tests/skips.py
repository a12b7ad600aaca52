"""Which tests of tests/skips.txt run on this machine, and which do not, with the reason.

    python3 tests/skips.py arguments    what the test runner gets after --: ignored tests too, less those that are skipped
    python3 tests/skips.py report       the skipped tests, counted, a line each, then those that are no part of the run
"""
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent


def mounts():
    with tempfile.TemporaryDirectory() as folder:
        try:
            return subprocess.run(["unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "none", folder], capture_output=True).returncode == 0
        except FileNotFoundError:
            return False


# Needs that are no paths.
ABILITIES = {"a small disk that a user may mount (unshare --user --mount)": mounts}


def is_here(need):
    if need in ABILITIES:
        return ABILITIES[need]()
    if "/" not in need or " " in need:
        sys.exit(f"tests/skips.txt: got the need '{need}', expected a path from the project's root, or one of: {', '.join(ABILITIES)}")
    return (ROOT / need).exists()


def left_out():
    """Names and reasons of the tests that do not run here, and whether each counts as skipped: it would run if this machine had
    what it needs. Others are measurements, run by other tests or by hand, or compare once more with data that is kept beside
    the project and is not published."""
    for line in (ROOT / "tests/skips.txt").read_text().splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        name, _, reason = line.partition(": ")
        if not reason.startswith("needs "):
            yield name, reason, False
            continue
        absent = [need for need in reason.removeprefix("needs ").split(", ") if not is_here(need)]
        if absent:
            yield name, f"{' and '.join(absent)}: not here", not all(need.startswith("../shared/") for need in absent)


def main():
    match sys.argv[1:]:
        case ["arguments"]:
            print("--include-ignored", *(f"--skip {name}" for name, *_ in left_out()))
        case ["report"]:
            skipped = [f"  {name}: {reason}" for name, reason, counts in left_out() if counts]
            others = [f"  {name}: {reason}" for name, reason, counts in left_out() if not counts]
            print(f"{len(skipped)} skipped", *skipped, f"  beside them, not part of this run: {len(others)}", *others, sep="\n")
        case _:
            sys.exit(__doc__)


main()
