"""`batch run`: submit, watch and download in one, and go on where an earlier run of the same command stopped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click
import msgspec

from pipeline import lockfile
from pipeline.errors import ConfigurationError, NotFound
from workers.batch_command import inputs, places, state, summary
from workers.batch_command.gateway import Batch, Gateway, read_batch
from workers.batch_command.outputs import Targets, collect, custom_ids
from workers.batch_command.places import Place
from workers.batch_command.screens import Screen, open_screen
from workers.batch_command.state import State
from workers.batch_command.watching import watch

DETACHED: Final = 130
"""Exit status after Ctrl-C: the batch goes on."""

RUN: Final = "promptmill_run"
"""Name of a run in its batch's metadata."""


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What `batch run` was asked for."""

    source: Path
    targets: Targets
    place: Place
    endpoint: str
    fresh: bool = False
    as_json: bool = False


class Service:
    """The gateway a run uses. One that was `started` for it is stopped in the end, unless `keep` was called."""

    def __init__(self, place: Place, known: State | None) -> None:
        self._place = place
        self.started = 0
        if place.named is None:
            self._find(known)
        try:
            self.gateway = place.open(self.started)
        except BaseException:
            self._stop()
            raise

    def close(self) -> None:
        """Leave the gateway."""
        self.gateway.close()
        self._stop()

    def keep(self) -> int:
        """Have the gateway go on without this command; return its id if it was started for it."""
        kept, self.started = self.started, 0
        return kept

    def _find(self, known: State | None) -> None:
        directory = self._place.directory()
        running = lockfile.running_in(directory)
        if running is not None:
            self.started = running.pid if known and known.started == running.pid else 0
            return
        settings = self._place.settings()
        if settings is None:
            raise places.nobody(directory)
        click.echo(f"starting a gateway with {Path(settings.source).name}", err=True)
        self.started = places.start(settings)

    def _stop(self) -> None:
        if self.started:
            places.stop(self.started, self._place.directory())


class Run:
    """One run of the command."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._state = None if order.fresh else state.load(order.targets.state)
        self._replaces = order.fresh or (self._state is not None and self._state.replace)
        self._answered = set() if self._replaces else custom_ids(order.targets.output)
        self._selection: inputs.Selection | None = None

    def run(self) -> int:
        """Run what has no answer yet, and return the exit status."""
        if self._state is None:
            self._selection = self._select()
            if not self._selection.size:
                return self._nothing_to_do()
        service, batch = Service(self._order.place, self._state), None
        try:
            with open_screen(self._order.source.name) as screen:
                batch = self._submitted(service, screen)
                batch = watch(service.gateway, batch.id, screen)
                told = self._collect(service.gateway, batch, screen)
        except KeyboardInterrupt:
            if batch is None:
                click.echo("interrupted before there was a batch", err=True)
                raise
            return self._detach(batch, 0 if batch.ended else service.keep())
        finally:
            service.close()
        return self._tell(batch, told)

    def _select(self) -> inputs.Selection:
        source, output = self._order.source, self._order.targets.output
        if self._answered and source.stat().st_mtime > output.stat().st_mtime:
            click.echo(
                f"{source.name} is newer than {output.name}: lines keep the answers they have; --fresh runs all again",
                err=True,
            )
        return inputs.select(source, without=self._answered)

    def _submitted(self, service: Service, screen: Screen) -> Batch:
        """Return the batch of this run, which an earlier run of the command may have made."""
        if self._state is not None:
            if found := self._earlier(self._state, service.gateway):
                screen.say(f"going on with {found.id}")
                return found
            self._selection = self._select()
        assert self._selection is not None
        file_id = upload(self._selection, service.gateway, screen)
        self._state = self._remember(State(run=state.new_run(), url=service.gateway.url, started=service.started))
        batch = service.gateway.create(file_id, self._order.endpoint, {RUN: self._state.run})
        self._remember(msgspec.structs.replace(self._state, batch=batch.id))
        return batch

    def _remember(self, now: State) -> State:
        return msgspec.structs.replace(now, replace=self._replaces).save(self._order.targets.state)

    def _earlier(self, known: State, gateway: Gateway) -> Batch | None:
        """Return the batch of an earlier run, if it came to make one."""
        if not known.batch:
            made = map(read_batch, gateway.batches())
            return next((batch for batch in made if (batch.metadata or {}).get(RUN) == known.run), None)
        try:
            return read_batch(gateway.batch(known.batch))
        except NotFound:
            raise ConfigurationError(
                f"{self._order.targets.state} says that {known.batch} runs at {known.url}, "
                f"and the gateway at {gateway.url} does not know it",
                hint="name the right one with --url or --data-dir, or start over with --fresh",
            ) from None

    def _collect(self, gateway: Gateway, batch: Batch, screen: Screen) -> summary.Summary:
        """Write down what came of the batch."""
        targets, told = self._order.targets, summary.summary(batch)
        if not batch.refused:
            causes = collect(gateway, batch, targets, self._answered, screen, again="the same command again")
            told = summary.written(batch, causes, targets, len(self._answered))
        targets.state.unlink(missing_ok=True)
        return told

    def _tell(self, batch: Batch, told: summary.Summary) -> int:
        """Say what came of the batch. Raises ConfigurationError if its lines could not run."""
        order = self._order
        if order.as_json:
            click.echo(msgspec.json.encode(told))
        if batch.refused:
            selection = self._selection or inputs.select(order.source, without=self._answered)
            raise summary.refused(batch, order.source.name, order.place, selection.number)
        if not order.as_json:
            click.echo("\n".join(summary.lines(told)))
        return summary.exit_code(batch)

    def _nothing_to_do(self) -> int:
        source, output = self._order.source.name, self._order.targets.output
        click.echo(f"{output} has an answer to every line of {source}: nothing to do", err=True)
        if self._order.as_json:
            told = {"batch": None, "status": "completed", "failed": 0, "answers_in_output": len(self._answered)}
            click.echo(msgspec.json.encode(told))
        return summary.ALL_ANSWERED

    def _detach(self, batch: Batch, started: int) -> int:
        place, output = self._order.place, self._order.targets.output
        watched = place.command(f"batch watch {batch.id}")
        said = [f"{batch.id} has ended, and {output} is not written" if batch.ended else f"still running: {watched}"]
        said.append(f"  the same command again goes on from here, and writes {output}")
        if started:
            said.append(f"  the gateway that was started for it goes on as well; to stop it: {place.command('down')}")
        click.echo("\n".join(said), err=True)
        if self._order.as_json:
            click.echo(msgspec.json.encode({"batch": batch.id, "status": "detached"}))
        return DETACHED


def upload(selection: inputs.Selection, gateway: Gateway, screen: Screen) -> str:
    """Upload lines, showing how far it is, and return the file's id."""

    def pieces() -> Iterator[bytes]:
        done = 0
        for piece in selection.pieces():
            yield piece
            done += len(piece)
            screen.transfer("uploaded", done, selection.size)

    return gateway.upload(selection.path.name, selection.size, pieces())
