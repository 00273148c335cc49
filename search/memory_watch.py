"""How much memory of this machine a run takes at its peak, and who takes it.

PSS (proportional set size) counts every page once, shared out among the processes that have it: the
images that all workers map are not counted for each. Where the system does not tell it (all but
Linux), RSS is taken, which counts shared pages for each process.

Asking for PSS makes the kernel walk all pages of a process: 20 to 35 ms for one with torch in it.
RSS takes 0.05 ms. So RSS is looked at often, and PSS only when RSS has grown.
"""

import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from search.run_folder import RunFolder, read_json, write_json

if TYPE_CHECKING:
    import psutil

EVERY = 3.0  # seconds between two looks at RSS
GROWN = 1.02  # times the largest RSS so far: then PSS is taken
SHARE = 0.004  # of a core that watching may take,
ALLOWANCE = 1.0  # beside these seconds of CPU time, which a short run may use up


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Bytes at one moment."""

    measure: str  # "PSS" or "RSS"
    driver: int
    ray: int  # Ray's own processes, where it was started by the run
    workers: tuple[int, ...]  # each, without images
    images: int  # of the image store, which the processes share; 0 for RSS, where it is in each
    everywhere: bool  # whether all of the run's machines are seen: not on a cluster

    @property
    def total(self) -> int:
        return self.driver + self.ray + sum(self.workers) + self.images

    def to_dict(self) -> dict[str, Any]:
        return {"total": self.total, **asdict(self)}


class MemoryWatch:
    """Looks at the run's processes in a thread of its own, until it is left; `peak` is the moment
    with the most memory."""

    def __init__(self, images: Path, everywhere: bool) -> None:
        """`images`: the file that the workers map. `everywhere`: Ray runs here alone, so that all
        workers are descendants of this process."""
        self.peak: Usage | None = None
        self._images, self._everywhere = images.resolve(), everywhere
        self._rss = 0
        self._spent = 0.0  # seconds of CPU time
        self._started = time.monotonic()
        self._leave = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="memory", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._leave.set()
        self._thread.join()

    def look(self) -> float:
        """Look once; the seconds of CPU time that RSS of all processes took."""
        started = time.thread_time()
        processes = processes_of(self._images, self._everywhere)
        rss = sum(_rss(process) for process in processes)
        looked = time.thread_time() - started
        allowed = ALLOWANCE + SHARE * (time.monotonic() - self._started)
        if rss > GROWN * self._rss and self._spent < allowed:
            self._rss = rss
            usage = usage_of(processes, self._images, self._everywhere)
            if self.peak is None or usage.total > self.peak.total:
                self.peak = usage
        self._spent += time.thread_time() - started
        return looked

    def _loop(self) -> None:
        rest = EVERY
        while not self._leave.wait(rest):
            rest = max(EVERY, self.look() / SHARE)  # thousands of processes take long


def processes_of(images: Path, everywhere: bool) -> "list[psutil.Process]":
    """This process, its descendants, and unless Ray runs here alone, the workers on this machine:
    those that map the run's images, as a machine may work for several runs."""
    import psutil

    driver = psutil.Process()
    found = [driver, *driver.children(recursive=True)]
    if not everywhere:
        own = {process.pid for process in found}
        found += [
            process
            for process in psutil.process_iter()
            if process.pid not in own and _is_worker(process) and _maps(process, str(images))
        ]
    return found


def usage_of(processes: "list[psutil.Process]", images: Path, everywhere: bool) -> Usage:
    """What the processes, the driver first, take now."""
    pss = Path("/proc/self/smaps").exists()
    sizes = [_pss(p, images) if pss else (_rss(p), 0) for p in processes]
    workers = [_is_worker(process) for process in processes]
    rows = list(zip(sizes, workers, strict=True))
    return Usage(
        measure="PSS" if pss else "RSS",
        driver=sizes[0][0],
        ray=sum(size for (size, _), worker in rows[1:] if not worker),
        workers=tuple(size for (size, _), worker in rows[1:] if worker),
        images=sum(of_images for _, of_images in sizes),
        everywhere=everywhere,
    )


def keep_peak(run: RunFolder, peak: Usage | None) -> None:
    """Note the session's peak in data.json, unless an earlier session took more."""
    data = read_json(run.data)
    before = data.get("memory")
    if peak is None or (before and before["total"] >= peak.total):
        return
    del data["format"]
    write_json(run.data, {**data, "memory": peak.to_dict()})


def peak_line(data: Mapping[str, Any]) -> str:
    """data.json's peak as one line of at most 80 columns; empty when there is none."""
    memory = data.get("memory")
    if not memory:
        return ""

    def gb(size: int) -> str:
        return f"{size / 1e9:.1f}" if size < 1e10 else f"{size / 1e9:.0f}"

    rss = memory["measure"] == "RSS"
    workers = memory["workers"]
    parts = [f"driver {gb(memory['driver'])}", f"Ray {gb(memory['ray'])}"]
    if workers:
        each = " each" if len(workers) > 1 else ""
        count = f"{len(workers)} worker{'s' if each else ''}"
        parts.append(f"{count} {gb(max(workers))}{each}")
    if not rss:
        parts.append(f"images {gb(memory['images'])}")
    where = "" if memory["everywhere"] else " here"
    what = "peak RSS" if rss else "peak memory"
    return f"{what}{where}: {gb(memory['total'])} GB ({', '.join(parts)})"


def _rss(process: "psutil.Process") -> int:
    import psutil

    try:
        return int(process.memory_info().rss)
    except psutil.Error:  # it has ended, or is another user's
        return 0


def _pss(process: "psutil.Process", images: Path) -> tuple[int, int]:
    """PSS without images, and of the images, in bytes."""
    name = str(images).encode()
    sizes = [0, 0]
    of_images = False
    try:
        with open(f"/proc/{process.pid}/smaps", "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    sizes[of_images] += int(line.split()[1]) * 1024
                elif line[:1] in b"0123456789abcdef":  # the head of a mapping, which names its file
                    of_images = name in line
    except (OSError, ProcessLookupError):  # it has ended, or is another user's
        pass
    return sizes[0], sizes[1]


def _is_worker(process: "psutil.Process") -> bool:
    """Whether it is one of Ray's processes that train, or import what they need for it: these have
    torch in them. Ray's own title tells only from the first step on, and calls them idle before."""
    import psutil

    try:
        title = " ".join(process.cmdline())
    except psutil.Error:
        return False
    if not title.startswith("ray::"):
        return False
    return _maps(process, "libtorch") if sys.platform == "linux" else "Trainable" in title


def _maps(process: "psutil.Process", file: str) -> bool:
    try:
        return file in Path(f"/proc/{process.pid}/maps").read_text()
    except OSError:  # it has ended, or is another user's
        return False
