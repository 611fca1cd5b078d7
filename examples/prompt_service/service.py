"""A prompt service of a few lines: `GET /prompts/ID` answers with an entry of prompts.json. Not for production."""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

PROMPTS = Path(__file__).with_name("prompts.json")


class Service(BaseHTTPRequestHandler):
    """Reads the file anew each time, so that prompts can be edited while it runs."""

    def do_GET(self) -> None:
        prompt_id = unquote(urlsplit(self.path).path.removeprefix("/prompts/"))
        prompt = json.loads(PROMPTS.read_text(encoding="utf-8")).get(prompt_id)
        body = json.dumps(prompt).encode()
        self.send_response(404 if prompt is None else 200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


with ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1]) if sys.argv[1:] else 8090), Service) as server:
    print(f"prompts at http://127.0.0.1:{server.server_port}/prompts/", flush=True)
    server.serve_forever()
