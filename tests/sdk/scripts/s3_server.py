"""Serves S3 as moto speaks it, for as long as this process lives; for each bucket asked for it prints the address."""

from __future__ import annotations

import json
import sys
import urllib.request

from moto.server import ThreadedMotoServer

server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
host, port = server.get_host_and_port()
for line in sys.stdin:
    bucket = json.loads(line)["bucket"]
    address = f"http://{host}:{port}"
    urllib.request.urlopen(urllib.request.Request(f"{address}/{bucket}", method="PUT")).close()
    print(json.dumps(address), flush=True)
