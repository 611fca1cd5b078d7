"""The outermost layer: every request is authenticated, every error answered, every response counted."""

from __future__ import annotations

import anyio
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from ingress.edge import Edge
from ingress.errors import Headers, drained
from ingress.exchange import KEY, Exchange
from pipeline import logs, metrics
from pipeline.errors import (
    InternalError,
    MethodNotAllowed,
    NotFound,
    PipelineError,
    Unauthenticated,
)

log = logs.logger("ingress")


class Guard:
    """Plain ASGI middleware; it stands where Starlette's own two error layers would, and raises nothing."""

    def __init__(self, app: ASGIApp, edge: Edge) -> None:
        self._app = app
        self._edge = edge

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; whatever is not HTTP goes on as it is."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = scope[KEY] = Exchange(self._edge, scope, receive, send)
        try:
            exchange.key = self._edge.keyring.authenticate(scope["path"], exchange.headers)
            await self._app(scope, receive, send)
        except Unauthenticated as error:
            await _refuse(exchange, error, [(b"www-authenticate", b"Bearer")])
        except PipelineError as error:
            await _refuse(exchange, error)
        except HTTPException as error:
            await _refuse(exchange, *_not_routed(exchange, error))
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):  # the drain is over: a last word, then the server cuts us off
                await _refuse(exchange, drained())
            raise
        except Exception as error:  # the ingress error handler: a bug must not reach the client
            log.error("request failed", request_id=exchange.id, endpoint=exchange.endpoint, exc_info=error)
            await _refuse(exchange, InternalError("the gateway failed; its log has the cause under this request id"))
        finally:
            exchange.finish()
            del scope[KEY]  # it holds the scope: the garbage collector would look for both, and hold all others up


async def _refuse(exchange: Exchange, error: PipelineError, headers: Headers | None = None) -> None:
    """Answer with the error, unless an answer is already on its way."""
    if exchange.status:
        return
    # The class's own code: what a reply carries may be a provider's, and there is no end to those.
    metrics.REFUSALS[type(error).code, error.stage or "ingress"].inc()
    await exchange.refuse(error.fields("ingress"), headers)


def _not_routed(exchange: Exchange, error: HTTPException) -> tuple[PipelineError, Headers]:
    """Return our error for the router's 404 or 405."""
    headers = [(name.lower().encode(), value.encode()) for name, value in (error.headers or {}).items()]
    method = exchange.scope["method"]
    if error.status_code == 405:
        return MethodNotAllowed(f"{method} is not offered here; see the `allow` header"), headers
    return NotFound("there is nothing at this path; the endpoints are listed in the documentation"), headers
