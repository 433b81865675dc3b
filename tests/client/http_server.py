"""What may answer at a coordinator's address: a small HTTPS server that says what a test wants."""

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Saying:
    """An answer: its status, body and the time its server believes in."""

    status: int = 200
    body: bytes = b""
    date: float | None = None
    asked: list[str] = field(default_factory=list)


@contextmanager
def answering(saying: Saying, context: ssl.SSLContext | None = None) -> Iterator[str]:
    """Serve on loopback; gives the address. Without a context there is no TLS."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", "0")))
            self.do_GET()

        def do_GET(self) -> None:
            saying.asked.append(self.path)
            self.send_response_only(saying.status)
            self.send_header("Date", formatdate(saying.date, usegmt=True))
            self.send_header("Content-Length", str(len(saying.body)))
            self.end_headers()
            self.wfile.write(saying.body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            pass  # a client that hangs up is what these tests are about

    server = Server(("127.0.0.1", 0), Handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
