"""Settings of a server: its models, and how much it takes on."""

from dataclasses import dataclass, field

from xycodec.models.registry import DEFAULT

PORT = 8765


@dataclass(frozen=True)
class Limits:
    """The most that a server takes on; more is refused early, with a status of its own."""

    upload_mb: int = 64
    """Size of a request's body (413)."""
    clip_s: float = 600.0
    """Duration of a clip (413)."""
    stream_s: float = 3600.0
    """Duration of a stream."""
    requests: int = 64
    """Requests in progress, those that wait included (503)."""
    per_client: int = 32
    """Requests in progress from one address (429)."""
    streams: int = 16
    """Streams that are open at once."""
    header_s: float = 10.0
    """Seconds in which a request's headers have to come; then the connection is closed."""
    upload_time_s: float = 60.0
    """Seconds in which a request's body has to come (408)."""
    request_s: float = 120.0
    """Seconds for all of a request (503)."""
    audio_s: float = 30.0
    """Seconds for reading or writing an audio file, after which its worker is killed (422)."""
    idle_s: float = 60.0
    """Seconds that a stream may be silent."""
    drain_s: float = 30.0
    """Seconds that requests in progress get to end when the server is told to stop."""


@dataclass(frozen=True)
class Settings:
    """Everything that a server is run with. It pickles, so that each replica of a cluster builds its own."""

    models: tuple[str, ...] = (DEFAULT,)
    """Names, folders or hub ids; the first is the default."""
    device: str = "auto"
    threads: int | None = None
    token: str | None = field(default=None, repr=False)
    """Secret that requests have to bring; None takes all."""
    page: bool = True
    """Whether to show the page for people, where its package is installed."""
    workers: int = 2
    """Processes that read and write audio files."""
    batch_s: float = 24.0
    """Seconds of audio computed in one call, at most (one window at least)."""
    wait_s: float = 0.005
    """Seconds that a window waits for others to be computed with."""
    limits: Limits = field(default_factory=Limits)
