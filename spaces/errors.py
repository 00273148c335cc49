"""The user's faults, and the exit codes of every command."""

import os
import sys
from collections.abc import Callable, Iterable

DONE, USER_FAULT, SYNTAX, FAILED, INTERRUPTED = 0, 1, 2, 3, 130


class UserError(ValueError):
    """The user's input is at fault. Holds all faults found, one sentence each.

    A fault says what was got, what the rule is, and what to do.
    """

    def __init__(self, faults: str | Iterable[str]) -> None:
        self.faults = (faults,) if isinstance(faults, str) else tuple(faults)
        super().__init__("\n".join(self.faults))


class RunFailed(RuntimeError):
    """The run could not go on through no fault of the input; it can be resumed."""


def near(name: str, known: Iterable[str], count: int = 5) -> str:
    """A phrase that lists the known names nearest to `name`."""
    import difflib

    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=count, cutoff=0.5)
    return f"near names: {', '.join(close)}" if close else f"known: {', '.join(known[:20])}"


def run_main(main: Callable[[], int | None]) -> None:
    """Run a command line's `main` and exit with the contract's code, without a traceback
    for what the user can mend."""
    try:
        sys.exit(main() or DONE)
    except UserError as error:
        head = "error" if len(error.faults) == 1 else f"{len(error.faults)} faults"
        print(f"{head}:", file=sys.stderr)
        for fault in error.faults:
            print(f"  - {fault}", file=sys.stderr)
        sys.exit(USER_FAULT)
    except RunFailed as error:
        print(f"failed: {error}", file=sys.stderr)
        sys.exit(FAILED)
    except BrokenPipeError:  # `... | head`: whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(DONE)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
