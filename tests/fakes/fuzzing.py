"""How tests draw random input: the same each time, and nothing kept in the checkout."""

from __future__ import annotations

import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Final

from hypothesis import settings
from hypothesis.configuration import set_hypothesis_home_dir

set_hypothesis_home_dir(Path(tempfile.gettempdir()) / "promptmill-hypothesis")  # what it collects about Unicode

fuzz: Final = settings(max_examples=200, derandomize=True, database=None, deadline=timedelta(seconds=5))
