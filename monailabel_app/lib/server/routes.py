"""Puts guarded endpoints, which run in threads, in front of MONAI Label's own."""

from __future__ import annotations

import asyncio
import errno
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import anyio
import anyio.to_thread
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, HTTPException, Request
from monailabel.endpoints import (
    activelearning,
    batch_infer,
    datastore,
    infer,
    info,
    logs,
    model,
    proxy,
    scoring,
    session,
    train,
    wsi_infer,
)
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException, MONAILabelException

from monailabel_app.lib.datastore.archive import ArchiveError
from monailabel_app.lib.server.guard import Guard

MODULES = (info, model, wsi_infer, infer, batch_infer, train, activelearning, scoring, datastore, logs, session, proxy)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
RELOAD = "The app is not loaded anew while it runs. Restart the server."
INFERENCES = 2  # at a time; more wait, without holding a thread

Endpoint = Callable[..., Any]


def front(
    checks: Mapping[str, Endpoint], replaced: Mapping[str, Endpoint], closed: Mapping[str, str], guard: Guard
) -> APIRouter:
    """Make endpoints like MONAI Label's that do not block its event loop.

    MONAI Label declares its endpoints async, although all they do is blocking: one inference, and nothing else is
    answered. Here each runs in a thread.

    Args:
        checks: by module and function of an endpoint (``infer.api_run_inference``), what is called with its arguments
            before it is.
        replaced: by name, what is called in its place, with the same arguments and the address of the ``caller``.
        closed: by name, why the endpoint is refused.
        guard: asked before every endpoint.

    Returns:
        A router with the same paths and parameters.
    """
    router = APIRouter(dependencies=[Depends(guard.check)])
    slots = anyio.CapacityLimiter(INFERENCES)
    for module in MODULES:
        for route in module.router.routes:
            name = f"{module.__name__.rsplit('.', 1)[1]}.{route.endpoint.__name__}"
            if name in closed:
                endpoint = _closed(closed[name])
            else:
                limiter = slots if name == "infer.api_run_inference" else None
                endpoint = _threaded(route.endpoint, replaced.get(name), checks.get(name), limiter)
            router.add_api_route(
                route.path,
                endpoint,
                methods=list(route.methods),
                tags=list(route.tags),
                summary=route.summary,
                include_in_schema=route.include_in_schema and name not in closed,
                name=name,
            )
    router.add_api_route("/reload", _closed(RELOAD), methods=["POST"], include_in_schema=False)
    return router


def put_in_front(app: FastAPI, router: APIRouter) -> None:
    """Let a router answer before every other route of an application; doing it again replaces the router."""
    routes = app.router.routes
    old = {id(route) for route in getattr(app.state, "nny_routes", [])}
    others = [route for route in routes if id(route) not in old]
    routes[:] = others
    app.include_router(router)
    app.state.nny_routes = routes[len(others) :]
    routes[:] = [*app.state.nny_routes, *others]


def _threaded(
    original: Endpoint, instead: Endpoint | None, check: Endpoint | None, limiter: anyio.CapacityLimiter | None
) -> Endpoint:
    def run(arguments: dict[str, Any], caller: Request) -> Any:
        if check is not None:
            answer(check, arguments)
        if instead is not None:
            return answer(instead, arguments | {"caller": caller.client.host if caller.client else ""})
        return answer(lambda **given: asyncio.run(original(**given)), arguments)

    async def endpoint(caller: Request, **arguments: Any) -> Any:
        try:
            return await anyio.to_thread.run_sync(run, arguments | dict.fromkeys(own, caller), caller, limiter=limiter)
        except Exception:
            for value in arguments.values():
                if isinstance(value, BackgroundTasks):  # they remove uploads; FastAPI runs them after success alone
                    await value()
            raise

    signature = inspect.signature(original)
    own = [name for name, asked in signature.parameters.items() if asked.annotation is Request]  # FastAPI gives it once
    asked = inspect.Parameter("caller", inspect.Parameter.KEYWORD_ONLY, annotation=Request)
    endpoint.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*(known for name, known in signature.parameters.items() if name not in own), asked]
    )
    endpoint.__name__, endpoint.__doc__ = original.__name__, original.__doc__
    return endpoint


def answer(function: Endpoint, arguments: Mapping[str, Any]) -> Any:
    """Call a function, and turn what it refuses into an HTTP error that says so.

    Raises:
        HTTPException: 404 for an unknown image or label, 400 for another bad input, 502 for a DICOM archive that does
            not answer, 507 for a full disk.
    """
    try:
        return function(**arguments)
    except (ImageNotFoundException, LabelNotFoundException) as error:
        raise HTTPException(404, error.msg) from error
    except MONAILabelException as error:
        raise HTTPException(400, error.msg) from error
    except ArchiveError as error:
        raise HTTPException(502, str(error)) from error
    except FileNotFoundError as error:
        raise HTTPException(404, str(error)) from error
    except (ValueError, TypeError) as error:
        raise HTTPException(400, str(error)) from error
    except RuntimeError as error:  # MONAI's "applying transform": the cause says what happened
        chain: list[BaseException] = [error]
        while chain[-1].__cause__ is not None:
            chain.append(chain[-1].__cause__)
        if any("LoadImage" in str(cause) for cause in chain):
            raise HTTPException(400, f"The image cannot be read: {chain[-1]}") from error
        if isinstance(chain[-1], ValueError):
            raise HTTPException(400, str(chain[-1])) from error
        raise
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise HTTPException(
            507, f"The server's disk is full ({error}); nothing was saved, nothing was lost."
        ) from error


def _closed(reason: str) -> Endpoint:
    async def endpoint() -> None:
        raise HTTPException(403, reason)

    return endpoint
