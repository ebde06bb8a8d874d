"""Servers on loopback, started by the tests that read through them."""

from __future__ import annotations

import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class RangeServer(ThreadingHTTPServer):
    """Serves a folder over HTTP with byte ranges, counts what it sends, and fails when it is told to."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.sent: list[tuple[str, int, int]] = []
        """Name, first byte and bytes of every answer with content."""
        self.failures: list[Any] = []
        """What happens to the next GETs: a status to answer with, or ``"drop"`` to hang up in the middle."""
        self.honours_ranges = True
        self.lock = threading.Lock()

    def bytes_sent(self) -> int:
        with self.lock:
            return sum(size for _, _, size in self.sent)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Be silent about clients that hang up."""


class _Handler(BaseHTTPRequestHandler):
    server: RangeServer
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        path = self.server.folder / self.path.lstrip("/")
        failure = None
        if with_body:
            with self.server.lock:
                failure = self.server.failures.pop(0) if self.server.failures else None
        if isinstance(failure, int):
            self.send_error(failure)
            return
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        start, stop = 0, len(content)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        partial = bool(wanted) and self.server.honours_ranges
        if wanted and partial:
            start = int(wanted[1])
            stop = min(stop, int(wanted[2]) + 1) if wanted[2] else stop
            if start >= len(content):
                self.send_error(416)
                return
        self.send_response(206 if partial else 200)
        self.send_header("Content-Length", str(stop - start))
        self.send_header("Accept-Ranges", "bytes")
        if partial:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
        self.end_headers()
        if not with_body:
            return
        if failure == "drop":
            self.wfile.write(content[start : start + (stop - start) // 2])
            self.close_connection = True
            return
        with self.server.lock:
            self.server.sent.append((path.name, start, stop - start))
        self.wfile.write(content[start:stop])

    def log_message(self, *_: Any) -> None:
        """Be silent."""


@contextmanager
def serve_folder(folder: Path) -> Iterator[RangeServer]:
    server = RangeServer(folder)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def serve_s3(bucket: str, folder: Path) -> Iterator[dict[str, Any]]:
    """An S3-compatible server with the files of a folder in a bucket; yields storage options for s3fs."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        client = boto3.client(
            "s3", endpoint_url=endpoint, aws_access_key_id="k", aws_secret_access_key="s", region_name="us-east-1"
        )
        client.create_bucket(Bucket=bucket)
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                client.put_object(Bucket=bucket, Key=str(file.relative_to(folder)), Body=file.read_bytes())
        client.close()
        yield {"key": "k", "secret": "s", "client_kwargs": {"endpoint_url": endpoint, "region_name": "us-east-1"}}
    finally:
        server.stop()
