"""The same server on many machines: replicas of its application behind Ray Serve."""

from dataclasses import replace
from typing import Any

from fastapi import FastAPI

from xycodec.errors import XycodecError
from xycodec.serve.app import build_app
from xycodec.serve.settings import Settings


def deployment(
    settings: Settings, *, replicas: int | None = None, most: int = 8, cpus: float = 2.0, gpus: float = 0.0
) -> Any:
    """Return an application for `ray.serve.run`; its replicas load the models and have all routes but the page.

    `replicas` is their number; None lets Ray keep from one to `most`, by the requests that each has in progress. `cpus`
    and `gpus` are what a replica needs. Each has limits of its own, so that a cluster takes as many times more.

    Raises XycodecError if Ray is not installed.
    """
    try:
        from ray import serve
    except ImportError:
        raise XycodecError("ray[serve] is not installed: pip install 'xycodec[cluster]'") from None
    settings = replace(settings, page=False)
    wanted = settings.limits.requests
    size: dict[str, Any] = {"num_replicas": replicas}
    if replicas is None:
        # Half of what a replica takes: the next one needs time to load its models.
        scale = {"min_replicas": 1, "max_replicas": most, "target_ongoing_requests": max(1, wanted // 2)}
        size = {"autoscaling_config": scale}

    def application() -> FastAPI:
        return build_app(settings)

    @serve.deployment(
        name="xycodec",
        max_ongoing_requests=wanted + settings.limits.streams,
        graceful_shutdown_timeout_s=settings.limits.drain_s,
        ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
        health_check_period_s=10,
        **size,
    )
    @serve.ingress(application)
    class Replica:
        """One replica: an application with its own models and workers."""

    return Replica.bind()  # type: ignore[attr-defined]
