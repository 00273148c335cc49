"""The image store on every host that trains: the driver's own, one decoded from the same files, or
a copy that the driver's host sends."""

import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from search.data.cache import (
    MANIFEST,
    PIXELS,
    SOURCES,
    Store,
    load_store,
    open_store,
    store_bytes,
    store_key,
)
from search.data.cleaning import cleaner
from search.data.disk import need_space, only_writer
from search.run_folder import read_json
from spaces.errors import UserError

log = logging.getLogger(__name__)

Receive = Callable[[Path, Path], bool]  # (there, here) -> whether there is such a file


def host_store(folder: Path, cleaned: Mapping[str, bool], receive: Receive) -> Store:
    """The store that the driver has in `folder`, in a folder of that name on this host: made once,
    while the host's other workers wait.

    `cleaned`: what was done to the images, see `cleaner`. `receive` copies a file of the driver's
    host. Raises UserError when the store cannot be had, or the disk has no room.
    """
    if store := _made(folder):
        return store
    with only_writer(folder.with_name(f"{folder.name}.coming"), "image store"):
        if store := _made(folder):  # another worker was quicker
            return store
        about = folder.with_name(f".{folder.name}.about")
        try:
            _need(receive, folder / MANIFEST, about / MANIFEST)
            _need(receive, folder / SOURCES, about / SOURCES)
            manifest, sources = read_json(about / MANIFEST), read_json(about / SOURCES)
        finally:
            shutil.rmtree(about, ignore_errors=True)
        root, size = Path(sources["root"]), int(manifest["size"])
        files = [tuple(image) for image in sources["files"]]
        clean, clean_key = cleaner(cleaned)
        try:
            if store_key(root, files, size, clean_key) == folder.name:
                log.info("decoding images for this host")
                return open_store(
                    root, files, size, folder.parent.parent, clean=clean, clean_key=clean_key
                )
        except UserError as error:  # this host does not see the images, or not all of them
            log.debug("not decoded here: %s", error)
        _copy(folder, store_bytes(len(files), size, int(manifest["channels"])), receive)
    return load_store(folder)


def _made(folder: Path) -> Store | None:
    try:
        return load_store(folder)
    except UserError:
        return None


def _copy(folder: Path, size: int, receive: Receive) -> None:
    """Receive the store's files, the manifest last; leaves nothing behind when it fails."""
    log.info("receiving the image store from the driver's host")
    shutil.rmtree(folder, ignore_errors=True)
    need_space(folder, size, "a copy of the image store")
    try:
        for name in (PIXELS, SOURCES, MANIFEST):
            _need(receive, folder / name, folder / name)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _need(receive: Receive, there: Path, here: Path) -> None:
    if not receive(there, here):
        raise UserError(
            f"{there} is gone from the driver's host; --resume the run to have it again"
        )
