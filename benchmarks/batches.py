"""`python -m benchmarks.batches`: one batch through a whole gateway; its rate, and what memory the feed takes."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import httpx2

from benchmarks import rig

CHAT: Final = "/v1/chat/completions"


def write_input(path: Path, lines: int, model: str, prompt: str) -> None:
    """Write a batch's input."""
    extra = {"prompt_id": prompt} if prompt else {}
    with path.open("w") as file:
        for number in range(lines):
            body = {"model": model, "messages": [{"role": "user", "content": f"hello {number}"}], **extra}
            file.write(json.dumps({"custom_id": f"r{number}", "method": "POST", "url": CHAT, "body": body}) + "\n")


def run(http: httpx2.Client, path: Path) -> tuple[dict[str, Any], float]:
    """Run a batch to its end; return it with the seconds from its creation, validation included."""
    with path.open("rb") as file:
        uploaded = http.post("/v1/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", file)}).json()
    began = time.monotonic()
    wanted = {"input_file_id": uploaded["id"], "endpoint": CHAT, "completion_window": "24h"}
    batch = http.post("/v1/batches", json=wanted).json()
    while batch["status"] in ("validating", "in_progress", "finalizing"):
        time.sleep(0.25)
        batch = http.get(f"/v1/batches/{batch['id']}").json()
    return batch, time.monotonic() - began


def peak_memory(words: bytes) -> int:
    """Return the most resident KB that the process with these words in its command line has had."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if words in (entry / "cmdline").read_bytes().replace(b"\0", b" "):
                status = (entry / "status").read_text()
                return int(status.partition("VmHWM:")[2].split()[0])
        except OSError:  # it ended meanwhile
            continue
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=50_000)
    parser.add_argument("--window", type=int, default=2_000, help="batch_window")
    parser.add_argument("--prompt", action="store_true", help="send every line through a prompt manager")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        path = directory / "in.jsonl"
        write_input(path, options.lines, "gpt-4", "1234" if options.prompt else "")
        settings = f"promptmill_settings: {{batch_window: {options.window}}}\n"
        with rig.upstream(directory) as url, rig.gateway(directory, url, settings) as gateway:
            with httpx2.Client(base_url=gateway.url, timeout=120) as http:
                batch, seconds = run(http, path)
            memory = peak_memory(b"-m pipeline feed")
        print(f"{batch['status']} {batch['request_counts']} in {seconds:.1f} s: {options.lines / seconds:,.0f} lines/s")
        print(f"peak memory of the feed: {memory / 1024:.0f} MB")


if __name__ == "__main__":
    main()
