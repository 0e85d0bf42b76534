"""FastAPI app around the live version: `python -m rec_ray.serve.fastapi_app s3://bucket/shop --port 8000`.

Input: requests to `/recommend`, `/similar` and `/healthz`. Output: lists as JSON. A new live version replaces the
loaded one without a restart.
"""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from rec_ray.api.live_recommender import LiveRecommender
from rec_ray.errors import RecRayError
from rec_ray.serve.requests import RecommendRequest, as_answer, status_of


def create_app(url: str, *, seconds: float = 30.0, **arguments: Any) -> FastAPI:
    """Return the app. url: object store; seconds: between checks for another live version; arguments: of
    `Recommender.open`.

    Raises:
        RecRayError: the live version cannot be loaded.
    """
    live = LiveRecommender(url, seconds=seconds, **arguments)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        live.close()

    app = FastAPI(title="rec_ray", lifespan=lifespan)

    @app.exception_handler(RecRayError)
    async def refuse(request: Request, error: RecRayError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, status_of(error))

    # Functions without async run on threads, which a Recommender allows.
    @app.post("/recommend")
    def recommend(asked: RecommendRequest) -> dict[str, Any]:
        return as_answer(live.current.recommend(**asked.arguments()))

    @app.get("/similar")
    def similar(item_id: str, k: int = 10) -> dict[str, Any]:
        return as_answer(live.current.similar(item_id, k))

    @app.get("/healthz")
    def healthz() -> dict[str, Any]:
        return {"version": live.current.version, "items": len(live.current.item_ids)}

    return app


def main() -> None:
    """Serve the live version of an object store."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url", help="a folder, or s3://bucket/prefix")
    parser.add_argument("--endpoint", help="address of an S3 server; without it: AWS")
    parser.add_argument("--seconds", type=float, default=30.0, help="between checks for another live version")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    # Requests share the cores; threads within a product of one request would only wait for each other.
    torch.set_num_threads(1)
    app = create_app(options.url, seconds=options.seconds, endpoint=options.endpoint)
    uvicorn.run(app, host=options.host, port=options.port)


if __name__ == "__main__":
    main()
