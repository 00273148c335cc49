"""How workers that do not see the run's folder come by its files, and hand theirs over."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from search import exchange
from search.data.cache import MANIFEST, PIXELS, load_store, open_store
from search.data.cleaning import NOTHING
from search.data.host_store import host_store
from search.exchange import Exchange, Keeper, Unreachable, mark
from search.run_folder import RunFolder
from spaces.errors import UserError
from tests.datafolder import make_folder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "driver" / "run")
    folder.root.mkdir(parents=True)
    folder.folds.write_bytes(bytes(range(256)) * 5)
    return folder


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "PIECE", 100)


def afar(run: RunFolder, *others: Path) -> Exchange:
    """The side of a worker on a host with another folder, or none, at the run's path."""
    mark(run)
    return Exchange(str(run.root), "another word", Keeper(str(run.root), [str(p) for p in others]))


def test_a_host_that_sees_the_folder_works_in_it(run: RunFolder) -> None:
    word = mark(run)
    for keeper in (None, Keeper(str(run.root))):
        files = Exchange(str(run.root), word, keeper)
        assert files.in_place and files.run.root == run.root
        assert files.fetch(files.run.folds) and not files.fetch(files.run.targets)
        files.send(run.folds)
        files.forget(run.folds)
        assert run.folds.is_file()


def test_a_folder_of_the_same_name_is_told_from_the_runs_own(run: RunFolder) -> None:
    earlier, word = mark(run), mark(run)
    keeper = Keeper(str(run.root))
    assert not Exchange(str(run.root), earlier, keeper).in_place
    assert not Exchange(str(run.root / "absent"), word, keeper).in_place


def test_files_are_fetched_whole_and_in_pieces(run: RunFolder) -> None:
    files = afar(run)
    assert files.run.root != run.root
    assert files.fetch(files.run.folds)
    assert files.run.folds.read_bytes() == run.folds.read_bytes()
    assert not files.fetch(files.run.targets) and not files.run.targets.exists()
    files.forget(files.run.folds)
    assert not files.run.folds.exists() and run.folds.is_file()
    assert files.fetch(files.run.folds)
    files.close()
    assert not files.run.root.exists() and run.folds.is_file()


@pytest.mark.parametrize("size", (0, 1, 99, 100, 101, 1000))
def test_what_is_sent_is_there_whole_and_gone_here(run: RunFolder, size: int) -> None:
    files = afar(run)
    made = files.run.epoch(3, 2, 0)
    made.parent.mkdir(parents=True)
    for content in (bytes(size), b"x" * size):  # the second takes the first one's place
        made.write_bytes(content)
        files.send(made)
        assert run.epoch(3, 2, 0).read_bytes() == content
        assert [path.name for path in run.work(3, 2).iterdir()] == ["epoch-0.safetensors"]
        assert not made.exists()


def test_a_file_that_is_half_sent_is_not_there(run: RunFolder) -> None:
    keeper, path = Keeper(str(run.root)), run.work(0, 1) / "fold-0.npy"
    keeper.write(str(path), 0, b"a" * 100, False)
    keeper.write(str(path), 100, b"b" * 100, False)
    keeper.write(str(path), 100, b"c" * 50, False)  # once more, after an answer that got lost
    assert not path.exists()
    for _ in range(2):
        keeper.write(str(path), 150, b"d", True)
        assert path.read_bytes() == b"a" * 100 + b"c" * 50 + b"d"
    with pytest.raises(OSError):  # a piece whose beginning nobody has
        keeper.write(str(path), 150, b"dd", True)
    assert path.stat().st_size == 151


@pytest.mark.parametrize(
    "name", ("journal.jsonl", "work/../oof/0000/pred.npy", "../other", "/etc/passwd")
)
def test_workers_write_below_the_work_folder_alone(run: RunFolder, name: str) -> None:
    path = run.root / name
    with pytest.raises(ValueError, match="where workers write"):
        Keeper(str(run.root)).write(str(path), 0, b"x", True)
    (run.root / "work").mkdir()
    (run.root / "work" / "link").symlink_to(run.root.parent)
    with pytest.raises(ValueError, match="where workers write"):
        Keeper(str(run.root)).write(str(run.root / "work" / "link" / "x"), 0, b"x", True)


def test_only_the_runs_own_files_and_those_named_are_read(run: RunFolder, tmp_path: Path) -> None:
    start, secret = tmp_path / "start.safetensors", tmp_path / "secret"
    for path in (start, secret):
        path.write_text("content")
    files = afar(run, start)
    copy = files.outside(start)
    assert copy != start and copy.read_text() == "content"
    assert files.outside(tmp_path / "driver" / "run" / "absent").name == "absent"
    with pytest.raises(ValueError, match="none of the run's files"):
        files.outside(secret)
    with pytest.raises(ValueError, match="none of the run's files"):
        Keeper(str(run.root)).read(str(secret), 0)


def test_a_file_that_shrinks_meanwhile_is_not_taken(run: RunFolder) -> None:
    class Shrinks(Keeper):
        def read(self, path: str, offset: int) -> bytes:
            return b"" if offset else super().read(path, 0)

    files = Exchange(str(run.root), "", Shrinks(str(run.root)))
    with pytest.raises(Unreachable, match="became shorter"):
        files.fetch(files.run.folds)
    assert not any(path.is_file() for path in files.run.root.rglob("*"))


# -- image stores ----------------------------------------------------------------------------------


@pytest.fixture
def hosts(tmp_path: Path) -> tuple[Path, Callable[[], Path]]:
    """Images, and the driver's store of them moved to where only the keeper finds it."""
    images = make_folder(tmp_path / "images", rows=6, tests=1)
    names = [(f"train/{row:04d}.png",) for row in range(6)]
    made = open_store(images, names, 8, tmp_path / "cache").folder

    def hide() -> Path:
        hidden = tmp_path / "hidden" / made.name
        hidden.parent.mkdir()
        made.rename(hidden)
        return made

    return images, hide


def keeper_of(hidden: Path) -> Callable[[Path, Path], bool]:
    """`receive` of a host; what it asked for is noted in its `asked`."""

    def receive(there: Path, here: Path) -> bool:
        source = hidden / there.name
        asked.append(there.name)
        if not source.is_file():
            return False
        here.parent.mkdir(parents=True, exist_ok=True)
        here.write_bytes(source.read_bytes())
        return True

    asked: list[str] = []
    receive.asked = asked  # type: ignore[attr-defined]
    return receive


def test_the_drivers_store_is_used_where_it_is_seen(hosts: tuple[Path, Callable[[], Path]]) -> None:
    images, _ = hosts
    folder = next((images.parent / "cache" / "store").glob("*/manifest.json")).parent
    receive = keeper_of(folder)
    assert host_store(folder, NOTHING, receive).folder == folder
    assert not receive.asked  # type: ignore[attr-defined]


@pytest.mark.parametrize("seen", (True, False))
def test_elsewhere_images_are_decoded_where_they_are_seen_and_else_received(
    hosts: tuple[Path, Callable[[], Path]], seen: bool
) -> None:
    images, hide = hosts
    folder = hide()
    hidden = images.parent / "hidden" / folder.name
    want = load_store(hidden).images_NHWC.copy()
    if not seen:
        images.rename(images.with_name("elsewhere"))
    receive = keeper_of(hidden)
    store = host_store(folder, NOTHING, receive)
    assert store.folder == folder and (store.images_NHWC == want).all()
    assert (PIXELS in receive.asked) != seen  # type: ignore[attr-defined]
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        path.name for path in hidden.iterdir()
    )
    receive.asked.clear()  # type: ignore[attr-defined]
    assert host_store(folder, NOTHING, receive).key == store.key
    assert not receive.asked  # type: ignore[attr-defined]


def test_an_image_that_has_changed_here_is_not_decoded(
    hosts: tuple[Path, Callable[[], Path]],
) -> None:
    images, hide = hosts
    folder = hide()
    hidden = images.parent / "hidden" / folder.name
    want = load_store(hidden).images_NHWC.copy()
    first = json.loads((hidden / "sources.json").read_text())["files"][0][0]
    (images / first).write_bytes((images / first).read_bytes() + b" ")
    assert (host_store(folder, NOTHING, keeper_of(hidden)).images_NHWC == want).all()


@pytest.mark.parametrize("name", (PIXELS, MANIFEST))
def test_a_store_that_is_gone_is_told_and_leaves_nothing(
    hosts: tuple[Path, Callable[[], Path]], name: str
) -> None:
    images, hide = hosts
    folder = hide()
    images.rename(images.with_name("elsewhere"))
    (images.parent / "hidden" / folder.name / name).unlink()
    with pytest.raises(UserError, match=f"{name} is gone from the driver's host"):
        host_store(folder, NOTHING, keeper_of(images.parent / "hidden" / folder.name))
    assert not folder.exists()
