"""Ray Serve deployment around the live version: `serve run rec_ray.serve.ray_serve:build url=s3://bucket/shop`.

Input: requests to `/recommend`, `/similar` and `/healthz`. Output: lists as JSON. Each replica holds the model and
replaces it when another version becomes live.
"""

# No postponed annotations: Ray Serve (2.60) hands FastAPI the annotations of methods as they are.
from typing import Any

import torch
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from ray import serve

from rec_ray.api.live_recommender import LiveRecommender
from rec_ray.errors import RecRayError
from rec_ray.serve.requests import RecommendRequest, as_answer, status_of

app = FastAPI(title="rec_ray")


@app.exception_handler(RecRayError)
async def refuse(request: Request, error: RecRayError) -> JSONResponse:
    """Answer an error of rec_ray with its message."""
    return JSONResponse({"error": str(error)}, status_of(error))


@serve.ingress(app)
class RecommenderReplica:
    """Replica with the live version in memory."""

    def __init__(self, url: str, seconds: float, arguments: dict[str, Any]) -> None:
        torch.set_num_threads(1)
        self.live = LiveRecommender(url, seconds=seconds, **arguments)

    @app.post("/recommend")
    def recommend(self, asked: RecommendRequest) -> dict[str, Any]:
        """Return the list of a user."""
        return as_answer(self.live.current.recommend(**asked.arguments()))

    @app.get("/similar")
    def similar(self, item_id: str, k: int = 10) -> dict[str, Any]:
        """Return the items nearest to an item."""
        return as_answer(self.live.current.similar(item_id, k))

    @app.get("/healthz")
    def healthz(self) -> dict[str, Any]:
        """Return the loaded version."""
        return {"version": self.live.current.version, "items": len(self.live.current.item_ids)}


class Options(BaseModel):
    """Arguments of `serve run`: the object store, and replicas, each with a copy of the model."""

    model_config = ConfigDict(extra="forbid")

    url: str
    endpoint: str | None = None
    region: str = "us-east-1"
    seconds: float = 30.0
    replicas: int = 1


def build(options: Options) -> serve.Application:
    """Return the application for `serve run` and `serve.run`."""
    arguments = {"endpoint": options.endpoint, "region": options.region}
    deployed = serve.deployment(RecommenderReplica, num_replicas=options.replicas, ray_actor_options={"num_cpus": 1})
    return deployed.bind(options.url, options.seconds, arguments)
