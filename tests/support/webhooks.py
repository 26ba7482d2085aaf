"""A webhook that tests start and stop, and that keeps what it has got."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hook:
    """What a webhook has got, and what it answers."""

    def __init__(self):
        self.events = []
        self.paths = []
        self.statuses = []  # of the next answers; then 200
        self.arrived = threading.Condition()

    def wait(self, number, seconds=20):
        """Wait for so many events, and return them."""
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.events) >= number, timeout=seconds), self.events
            return list(self.events)

    def kinds(self):
        return [event["event"] for event in self.events]


@contextmanager
def webhook(hook, port=0):
    """Serve a hook on 127.0.0.1 and yield its address, whose path is a secret."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status = hook.statuses.pop(0) if hook.statuses else 200
            with hook.arrived:
                hook.paths.append(self.path)
                if status == 200:
                    hook.events.append(body)
                hook.arrived.notify_all()
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("Location", "http://127.0.0.1:1/elsewhere")
            self.end_headers()
            self.wfile.write(f"no {self.path}".encode())

        do_GET = do_POST

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/services/T0/Pl4nted-path"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
