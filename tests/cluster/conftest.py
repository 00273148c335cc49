"""The cluster tests skip where the lab cannot be; what they measured is printed at their end."""

from collections.abc import Callable

import pytest

from tests.cluster.lab import missing

_lines: list[str] = []


@pytest.fixture(autouse=True, scope="session")
def _a_machine_for_the_lab() -> None:
    if faults := missing():
        pytest.skip(f"the lab of three hosts needs {'; '.join(faults)}")


@pytest.fixture(scope="session")
def measured() -> Callable[[str], None]:
    """Takes a line for the end of the output."""
    return _lines.append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _lines:
        terminalreporter.section("measured")
        for line in _lines:
            terminalreporter.write_line(line)
