"""A web server of one file on this very machine, that misbehaves on request."""

from __future__ import annotations

import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


class FileServer(ThreadingHTTPServer):
    """Serves `content`; what it does of each request in turn is in `script`, after which it serves well.

    - ``cut``: promises all and hangs up after half of it
    - ``hang``: says nothing for a second
    - ``busy``: 503
    - ``lost``: 404
    - ``page``: a web page instead
    - ``whole``: all of it, whatever part was asked for
    - ``wrong``: other bytes
    - a path that begins with ``/`` or a whole address: sent on there
    """

    daemon_threads = True

    def __init__(self, content):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content = content
        self.script = []
        self.asked = []
        self.headers = {"ETag": '"one"'}
        self.says_length = True
        self.scheme = "http"

    def encrypt(self, certificate):
        """Speak HTTPS from now on, with a certificate and its key in one file."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        self.socket = context.wrap_socket(self.socket, server_side=True)
        self.scheme = "https"

    @property
    def url(self):
        return f"{self.scheme}://127.0.0.1:{self.server_port}/file-0000.bin"

    def handle_error(self, request, client_address):
        """Say nothing of clients that hang up."""


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        server.asked.append((self.headers.get("Range"), self.headers.get("If-Range")))
        act = server.script.pop(0) if server.script else ""
        if act == "hang":
            time.sleep(1.0)
            return
        if act in ("busy", "lost"):
            self.send_error({"busy": 503, "lost": 404}[act])
            return
        if act.startswith(("/", "http")):
            self.send_response(302)
            self.send_header("Location", act)
            for name, value in server.headers.items():
                if name.startswith("X-Linked"):
                    self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = server.content
        if act == "page":
            content = b"<html>log in</html>"
        if act == "wrong":
            content = bytes(byte ^ 255 for byte in content)
        first = self._first(content, act)
        if first is not None and first >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200 if first is None else 206)
        if first is not None:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        part = content[first or 0 :]
        self.send_header("Content-Type", "text/html" if act == "page" else "application/octet-stream")
        for name, value in server.headers.items():
            self.send_header(name, value)
        if server.says_length:
            self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part[: len(part) // 2] if act == "cut" else part)

    def _first(self, content, act):
        asked = self.headers.get("Range")
        tag = self.headers.get("If-Range")
        if asked is None or act == "whole" or (tag and tag != self.server.headers.get("ETag")):
            return None
        return int(asked.removeprefix("bytes=").removesuffix("-"))


@pytest.fixture
def server():
    """A server of 300,000 bytes."""
    made = FileServer(bytes(i * 7 % 251 for i in range(300_000)))
    # Often asked, so that the end of a test is not waited for.
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()
