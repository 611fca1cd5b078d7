"""What `batch run` remembers beside its output, so that giving the command again goes on with the same batch."""

from __future__ import annotations

import secrets
from pathlib import Path

import msgspec

from pipeline.errors import ConfigurationError


class State(msgspec.Struct, frozen=True, kw_only=True):
    """One run of an input."""

    run: str
    """In the batch's metadata: finds a batch that was made, and whose id did not get here."""
    url: str
    started: int = 0
    """Process id of the gateway that was started for it; 0 for another's."""
    batch: str = ""
    replace: bool = False
    """Whether its answers take the place of earlier ones."""

    def save(self, path: Path) -> State:
        """Write it down. Raises ConfigurationError."""
        new = path.with_name(f"{path.name}.new")
        try:
            new.write_bytes(msgspec.json.encode(self))
            new.replace(path)
        except OSError as error:
            raise ConfigurationError(
                f"{path} cannot be written ({error.strerror}); nothing was submitted", hint="choose another place: -o"
            ) from None
        return self


def new_run() -> str:
    """Return a name for a run."""
    return secrets.token_hex(16)


def load(path: Path) -> State | None:
    """Return what is remembered, if anything is. Raises ConfigurationError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=State)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read ({error})", hint="remove it to start over") from None
