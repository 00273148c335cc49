"""The report's pictures one by one, for notebooks: figures of Plotly."""

from typing import TYPE_CHECKING

from search.report import curves, drift, ensemble, errors, importance, pareto, rungs, targets
from search.report.chart import Chart
from search.report.facts import Facts, Nothing
from search.run_folder import RunFolder
from spaces.errors import UserError, near

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_SECTIONS = (curves, rungs, importance, pareto, targets, errors, ensemble, drift)


def charts(facts: Facts) -> dict[str, Chart]:
    """All pictures that there is something to see in, by name."""
    found: dict[str, Chart] = {}
    for section in _SECTIONS:
        try:
            found |= section.charts(facts)
        except (Nothing, UserError):  # nothing to see, or its files are damaged
            continue
    return found


def figure(run: RunFolder, name: str) -> "Figure":
    """The picture of that name, or the first whose name begins so: "curves" is the curves of the
    fold that is visited first. Raises UserError for a name that the run has no picture of."""
    from plotly.graph_objects import Figure

    found = charts(Facts.read(run))
    chart = found.get(name) or next((c for n, c in found.items() if n.startswith(name)), None)
    if chart is None:
        raise UserError(f"the run has no picture {name!r}; {near(name, found)}")
    return Figure(data=chart.data, layout={**chart.layout, "height": chart.height})
