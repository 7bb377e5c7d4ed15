"""Results of an evaluation: scores of clips and of codecs, and the metrics they are made of."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from math import sqrt
from typing import Any, Literal

ORIGINAL = "original"
"""Name of the row that compares the recordings with themselves, and of the folder that holds them."""


@dataclass(frozen=True)
class Metric:
    """A metric as tables show it."""

    name: str
    title: str
    """Heading in tables."""
    better: Literal["higher", "lower"]
    digits: int
    """After the point."""
    about: str
    """One sentence: what it is, its range, what equality has, how the clips become one number if not by their mean."""
    equality: str = ""
    """Value for equal audio, where a round trip shows it."""
    pooling: Literal["mean", "root", "set"] = "mean"
    """`root`: the clips' values are squares, and a table shows the root of their mean; `set`: clips have no value of
    their own, only all of them together (`CodecResult.of_set`)."""


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "stoi",
            "STOI",
            "higher",
            3,
            "Short-time objective intelligibility (Taal 2011), to 1, which is equality.",
            equality="1",
        ),
        Metric(
            "pesq_wb",
            "PESQ-WB",
            "higher",
            2,
            "PESQ at 16 kHz (ITU-T P.862.2), 1.0 to 4.64, which is equality.",
            equality="4.64",
        ),
        Metric(
            "pesq_nb",
            "PESQ-NB",
            "higher",
            2,
            "PESQ at 8 kHz (ITU-T P.862.1), 1.0 to 4.55, which is equality.",
            equality="4.55",
        ),
        Metric(
            "mel_distance",
            "mel",
            "lower",
            3,
            "Sum over 7 windows of the L1 distance of log10 mels; 0 is equality.",
            equality="0",
        ),
        Metric("dac_mel_distance", "DAC mel", "lower", 3, "Mel distance as DAC's evaluation computes it."),
        Metric("stft_distance", "STFT", "lower", 3, "Multi-resolution STFT distance as DAC's evaluation computes it."),
        Metric("normalised_stft_distance", "STFT norm.", "lower", 3, "The same under windows of unit energy."),
        Metric("si_sdr", "SI-SDR", "higher", 2, "Scale-invariant signal-to-distortion ratio (Le Roux 2019), dB."),
        Metric(
            "f0_error",
            "F0 error",
            "lower",
            1,
            "Root mean square error of pitch where both are voiced, cents, by Praat.",
            pooling="root",
        ),
        Metric("voicing_error", "voicing", "lower", 3, "Share of frames that are voiced in only one, by Praat."),
        Metric(
            "swift_f0_error",
            "F0 error (Swift)",
            "lower",
            1,
            "The same error of pitch by SwiftF0, which mistakes the octave less often.",
            pooling="root",
        ),
        Metric("swift_voicing_error", "voicing (Swift)", "lower", 3, "The same share of frames by SwiftF0."),
        Metric("similarity", "SIM", "higher", 3, "Cosine of the speaker embeddings of decoded and original, to 1."),
        Metric("wer", "WER", "lower", 3, "Word errors of a recogniser over the words of the transcripts, pooled."),
        Metric(
            "wer_capped", "WER capped", "lower", 3, "The same, each clip with at most as many errors as it has words."
        ),
        Metric("cer", "CER", "lower", 3, "Character errors over the characters of the transcripts, pooled."),
        Metric("utmos", "UTMOS", "higher", 2, "Predicted mean opinion, 1 to 5; hears the decoded audio only."),
        Metric(
            "dnsmos", "DNSMOS", "higher", 2, "Predicted mean opinion (P.808), 1 to 5; hears the decoded audio only."
        ),
        Metric(
            "fd_panns",
            "FD (PANNs)",
            "lower",
            2,
            "Fréchet distance of PANNs Cnn14 embeddings, one of each clip; 0 is equality.",
            pooling="set",
        ),
        Metric(
            "kad",
            "KAD (PANNs)",
            "lower",
            2,
            "Kernel audio distance of the same embeddings, times 100; about 0 for sets of one distribution.",
            pooling="set",
        ),
        Metric(
            "inception_score",
            "IS (PANNs)",
            "higher",
            2,
            "Inception score by the classes of PANNs Cnn14, 1 to 527; mean of 10 splits.",
            pooling="set",
        ),
        Metric(
            "fad_vggish",
            "FAD (VGGish)",
            "lower",
            2,
            "Fréchet distance of VGGish embeddings, one of each 0.96 s; 0 is equality.",
            pooling="set",
        ),
        Metric(
            "fd_mert_l9",
            "FD (MERT l. 9)",
            "lower",
            2,
            "Fréchet distance of MERT's layer 9, one vector of each frame; 0 is equality.",
            pooling="set",
        ),
        Metric(
            "fd_log_mel_statistics",
            "log-mel statistics (no FAD)",
            "lower",
            3,
            "Fréchet distance of log-mel means and deviations: for tests, not a FAD.",
            pooling="set",
        ),
        Metric(
            "clap_laion", "CLAP (LAION)", "higher", 3, "Cosine of the CLAP embeddings of a clip and its caption, to 1."
        ),
    )
}


ROUNDTRIP = ("stoi", "pesq_wb", "pesq_nb", "mel_distance")
"""Metrics that `xycodec roundtrip` shows."""


@dataclass(frozen=True)
class Scores:
    """Values of metrics for one clip."""

    values: dict[str, float] = field(default_factory=dict)
    """Values by name of the metric; always finite."""
    missing: dict[str, str] = field(default_factory=dict)
    """Reasons why metrics have no value; a metric stands here or in `values`."""
    weights: dict[str, float] = field(default_factory=dict)
    """Weights of values in a mean where they are not 1: the words of a transcript, for `wer`."""
    transcript: str | None = None
    """Text that the recogniser heard."""
    reference: str | None = None
    """Text that it heard in the original, where that is the reference because no transcript is known."""
    looped: bool = False
    """Whether the recogniser repeated itself, and `transcript` is its second attempt."""

    def __or__(self, other: "Scores") -> "Scores":
        """Merge two scores; `other` wins."""
        return Scores(
            self.values | other.values,
            {name: why for name, why in (self.missing | other.missing).items() if name not in other.values},
            self.weights | other.weights,
            self.transcript if other.transcript is None else other.transcript,
            self.reference if other.reference is None else other.reference,
            self.looped or other.looped,
        )


@dataclass(frozen=True)
class ClipResult:
    """One clip through one codec."""

    clip: str
    """Name of the clip, a relative path without suffix; decoded and original audio are files of this name."""
    source: str
    """The corpus or part of it that it belongs to."""
    speaker: str | None
    text: str | None
    """Transcript, where it is known."""
    seconds: float
    bits: float | None = None
    """Bits of the codes, without any container; None for the original."""
    encode_s: float | None = None
    """Wall time, as is `decode_s`."""
    decode_s: float | None = None
    scores: Scores = Scores()
    error: str | None = None
    """Reason why the codec failed on this clip, which then has no scores."""
    language: str | None = None
    """Language as the manifest names it."""

    @staticmethod
    def from_dict(data: dict[str, Any]) -> "ClipResult":
        """The inverse of `dataclasses.asdict`."""
        return ClipResult(**data | {"scores": Scores(**data["scores"])})


@dataclass(frozen=True)
class CodebookUse:
    """Use of one codebook over all clips."""

    used: float
    """Share of its codes that occur, 0 to 1."""
    entropy_bits: float
    """Entropy of the distribution of its codes: at most log2 of their number, 10 for 1024."""


@dataclass(frozen=True)
class CodecResult:
    """One codec over all clips."""

    name: str
    """Name of the codec's folder in the evaluation, unique."""
    title: str
    """Title in tables."""
    model: str
    """Name, folder or hub id that was loaded, with its settings."""
    bitrate: float | None
    """Bits a second of audio, measured over the clips; None of the original."""
    frame_rate: float | None
    """Code frames a second; None where it has none."""
    entropy_bitrate: float | None
    """Bits a second that an adaptive entropy coder would reach."""
    parameters: int | None
    codebooks: tuple[CodebookUse, ...]
    clips: tuple[ClipResult, ...]
    search: int = 1
    """Width of the search over codes; 1 is greedy."""
    of_set: dict[str, float] = field(default_factory=dict)
    """Values of the metrics that only a whole set of clips has."""

    @property
    def encode_speed(self) -> float | None:
        """Seconds of audio per second of wall time."""
        return _speed(self.clips, "encode_s")

    @property
    def decode_speed(self) -> float | None:
        """Seconds of audio per second of wall time."""
        return _speed(self.clips, "decode_s")

    @staticmethod
    def from_dict(data: dict[str, Any]) -> "CodecResult":
        """The inverse of `dataclasses.asdict`."""
        return CodecResult(
            **data
            | {
                "codebooks": tuple(CodebookUse(**one) for one in data["codebooks"]),
                "clips": tuple(ClipResult.from_dict(one) for one in data["clips"]),
            }
        )


@dataclass(frozen=True)
class Section:
    """A table of a report beside those of metrics, in words."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    """A sentence below it."""

    @staticmethod
    def from_dict(data: dict[str, Any]) -> "Section":
        """The inverse of `dataclasses.asdict`, also after JSON."""
        return Section(**data | {"heads": tuple(data["heads"]), "rows": tuple(map(tuple, data["rows"]))})


@dataclass(frozen=True)
class Evaluation:
    """Codecs compared on the same clips, the original first."""

    title: str
    protocol: dict[str, str]
    """Every choice that the metrics leave open, in words."""
    versions: dict[str, str]
    """Versions of the packages that computed it."""
    machine: str
    """Description of the machine, since speeds depend on it."""
    metrics: tuple[str, ...]
    """Names of those that were asked for."""
    codecs: tuple[CodecResult, ...]
    sections: tuple[Section, ...] = ()
    warnings: tuple[str, ...] = ()
    """Sentences at the head of the report: why its numbers should not be compared with others."""

    def to_dict(self) -> dict[str, Any]:
        """Everything in plain types."""
        return asdict(self)

    @staticmethod
    def from_dict(data: dict[str, Any]) -> "Evaluation":
        """The inverse of `to_dict`, also after JSON."""
        changed = {
            "metrics": tuple(data["metrics"]),
            "codecs": tuple(map(CodecResult.from_dict, data["codecs"])),
            "sections": tuple(map(Section.from_dict, data.get("sections", ()))),
            "warnings": tuple(data.get("warnings", ())),
        }
        return Evaluation(**data | changed)


def pooled(clips: Iterable[ClipResult], metric: str) -> float | None:
    """One number of a metric for clips, as a table shows it: those without a value do not count; None if none has."""
    total = weight = 0.0
    for clip in clips:
        if metric in clip.scores.values:
            share = clip.scores.weights.get(metric, 1.0)
            total, weight = total + share * clip.scores.values[metric], weight + share
    if not weight:
        return None
    return sqrt(total / weight) if METRICS[metric].pooling == "root" else total / weight


def overall(codec: CodecResult, metric: str) -> float | None:
    """One number of a metric for all clips of a codec; None where it has none."""
    return codec.of_set.get(metric) if METRICS[metric].pooling == "set" else pooled(codec.clips, metric)


def _speed(clips: Iterable[ClipResult], field_name: str) -> float | None:
    times = [(clip.seconds, taken) for clip in clips if (taken := getattr(clip, field_name)) is not None]
    wall = sum(taken for _, taken in times)
    return sum(seconds for seconds, _ in times) / wall if wall else None
