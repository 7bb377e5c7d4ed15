"""Numbers that a server counts and times, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_FACTORS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


class Metrics:
    """Counters, gauges and histograms of one server."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "xycodec_requests", "Requests by route and status", ["route", "status"], registry=registry
        )
        self.request_seconds = Histogram(
            "xycodec_request_seconds", "Seconds from a request's headers to its response", ["route"],
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.in_progress = Gauge("xycodec_requests_in_progress", "Requests being done or waiting", registry=registry)
        self.audio_seconds = Counter(
            "xycodec_audio_seconds", "Seconds of audio that were encoded or decoded", ["direction"], registry=registry
        )
        self.queue = Gauge(
            "xycodec_queue_windows", "Windows that wait to be computed", ["direction"], registry=registry
        )
        self.batch_windows = Histogram(
            "xycodec_batch_windows", "Windows computed in one call", ["direction"],
            buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry,
        )  # fmt: skip
        self.batch_seconds = Histogram(
            "xycodec_batch_audio_seconds", "Seconds of audio computed in one call", ["direction"],
            buckets=(1, 2, 5, 10, 20, 30, 60, 120), registry=registry,
        )  # fmt: skip
        self.real_time_factor = Histogram(
            "xycodec_real_time_factor", "Seconds of computation for a second of audio", ["direction"],
            buckets=_FACTORS, registry=registry,
        )  # fmt: skip
        self.streams = Gauge("xycodec_streams_open", "Streams that are open", registry=registry)
        self.first_result = Histogram(
            "xycodec_stream_first_result_seconds", "Seconds from a stream's first data to its first result",
            ["direction"], buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.workers_lost = Counter(
            "xycodec_audio_workers_lost", "Processes reading audio that died or were killed", registry=registry
        )

    def text(self) -> bytes:
        """All of them, in Prometheus' text format."""
        return generate_latest(self._registry)
