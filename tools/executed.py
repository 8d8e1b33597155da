"""Execute the notebooks that a build of the book would execute, as many at a time as there are cores.

    python -m tools.executed CACHE

Sphinx executes one after the other; what lies in the folder CACHE it takes from there. Fails, after all have been executed, if
one of them has failed.
"""

import argparse
import logging
import sys
from fnmatch import fnmatch
from pathlib import Path

import yaml
from jupyter_cache import get_cache
from jupyter_cache.executors import load_executor

from tools.address import ROOT


def of_the_build(config: Path = ROOT / "_config.yml") -> list[Path]:
    """Return the notebooks that the build executes."""
    execution = yaml.safe_load(config.read_text(encoding="utf-8"))["execute"]
    found = sorted((config.parent / "book").glob("*.ipynb"))
    return [path for path in found if not any(fnmatch(str(path), pattern) for pattern in execution["exclude_patterns"])]


def fill(folder: Path, paths: list[Path], timeout: int = 600) -> list[Path]:
    """Execute those notebooks that are not in the cache, and log their errors; return those that failed."""
    cache = get_cache(folder)
    for record in cache.list_project_records():
        cache.remove_nb_from_project(record.pk)  # of an earlier build; what was executed stays
    for path in paths:
        cache.add_nb_to_project(str(path))
    logger = logging.getLogger(__name__)
    logger.setLevel(logging.INFO)  # or nothing tells for minutes what goes on
    result = load_executor("local-parallel", cache, logger=logger).run_and_cache(timeout=timeout)
    return [Path(path) for path in (*result.excepted, *result.errored)]


def main() -> int:
    """Run the command line; return 1 if a notebook failed."""
    parser = argparse.ArgumentParser(description="Execute the notebooks that the book's cache lacks, side by side.")
    parser.add_argument("cache", type=Path, help="the folder that the build looks into")
    failed = fill(parser.parse_args().cache, of_the_build())
    for path in failed:
        print(f"{path.relative_to(ROOT)} failed, see above", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
