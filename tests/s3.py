"""A local S3 server (moto's, in this process), and buckets whose files tests put and look at."""

import logging
import os
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from search.data.remote import Place

CLOSED = {  # nothing of the user's own account is found or asked for
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_DEFAULT_REGION": "us-east-1",
}
KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}


class Bucket:
    """A folder at a URL, seen past the code that is tested."""

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs

        self.url = url
        self.fs, self.root = url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)

    def put(self, name: str, content: bytes) -> None:
        self.fs.pipe_file(f"{self.root}/{name}", content)

    def delete(self, name: str) -> None:
        self.fs.rm_file(f"{self.root}/{name}")

    def content(self) -> dict[str, bytes]:
        return {path[len(self.root) + 1 :]: self.fs.cat_file(path) for path in self.names()}

    def names(self) -> list[str]:
        return list(self.fs.find(self.root))


@pytest.fixture(scope="session")
def s3_environment() -> Iterator[dict[str, str]]:
    """Serves S3 on this host; the environment in which clients find it, in any process."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for every request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield {**CLOSED, **KEYS, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}
    server.stop()


@pytest.fixture
def s3(s3_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """A folder in an empty bucket of its own."""
    for name, value in s3_environment.items():
        monkeypatch.setenv(name, value)
    name = f"b{uuid.uuid4().hex[:12]}"
    bucket = Bucket(f"s3://{name}/some/folder")
    bucket.fs.mkdir(name)
    return bucket


@pytest.fixture
def memory() -> Iterator[Bucket]:
    """A folder in this process's memory."""
    from fsspec.implementations.memory import MemoryFileSystem

    yield Bucket("memory://bucket/folder")
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture(params=["memory", "s3"])
def bucket(request: pytest.FixtureRequest) -> Bucket:
    """One of each kind: what is said of stores holds for both."""
    found: Bucket = request.getfixturevalue(request.param)
    return found


def copies(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are copied from a URL from now on."""
    names: list[str] = []
    get = Place.get

    def spy(self: Place, name: str, *rest: Any, **options: Any) -> None:
        names.append(name)
        get(self, name, *rest, **options)

    monkeypatch.setattr(Place, "get", spy)
    return names
