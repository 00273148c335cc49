"""report.html: pictures of a run, in one file that needs nothing beside it.

`search.report.facts` reads a run's folder; a module per section makes figures and text of that;
`search.report.page` puts them together. python -m search.report RUN
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from spaces.errors import DONE


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m search.report",
        description="Write RUN/report.html: one file with all pictures of a run, for a browser.",
    )
    parser.add_argument("run", metavar="RUN", help="folder that search.run wrote")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    asked = parser().parse_args(argv)

    from search.report.page import write_report
    from search.run_folder import RunFolder

    print(write_report(RunFolder.open(Path(asked.run))))
    return DONE
