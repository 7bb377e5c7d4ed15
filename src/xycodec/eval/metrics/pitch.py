"""Pitch by Praat and by SwiftF0, and how far the tracks of two recordings are apart."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Track = NDArray[np.float64]
"""F0 in Hz, one value a frame, 0 where unvoiced."""

FLOOR_HZ = 60.0
CEILING_HZ = 500.0
STEP_S = 0.01
SHORTEST_S = 3 / FLOOR_HZ  # Praat's window is three periods of the floor
SWIFT_STEP_S = 0.016


def pitch_track(audio: NDArray[np.float32], sample_rate: int) -> Track:
    """F0 of 1-D audio of `SHORTEST_S` or more, every 10 ms, 60 to 500 Hz.

    Praat's autocorrelation method (Boersma 1993), its other settings pinned to its own defaults. Voicing depends on
    the loudest sample of `audio`, so a piece alone may differ from the same piece within a longer recording.
    Raises ImportError unless parselmouth is installed.
    """
    import parselmouth

    pitch = parselmouth.Sound(audio.astype(np.float64), sample_rate).to_pitch_ac(
        time_step=STEP_S,
        pitch_floor=FLOOR_HZ,
        max_number_of_candidates=15,
        very_accurate=False,
        silence_threshold=0.03,
        voicing_threshold=0.45,
        octave_cost=0.01,
        octave_jump_cost=0.35,
        voiced_unvoiced_cost=0.14,
        pitch_ceiling=CEILING_HZ,
    )
    track: Track = pitch.selected_array["frequency"]
    return track


def swift_track(audio: NDArray[np.float32], sample_rate: int) -> Track:
    """F0 of 1-D audio by the network SwiftF0 (Nieradzik 2025), every 16 ms, 60 to 500 Hz.

    `audio` is scaled to a peak of a half, because the network does not ignore levels: as by Praat, a piece alone may
    differ from the same piece within a longer recording. Raises ImportError unless swift-f0 is installed.
    """
    peak = float(np.abs(audio).max())
    level = audio.astype(np.float64) * (0.5 / peak) if peak > 0 else audio
    found = swift_session().detect(level, sample_rate, fmin=FLOOR_HZ, fmax=CEILING_HZ)
    track: Track = np.where(found.confidence >= 0.5, found.pitch_hz, 0.0)
    return track


@cache
def swift_session() -> Any:
    """The network, loaded once a process. Raises ImportError unless swift-f0 is installed."""
    from swift_f0 import SwiftF0

    return SwiftF0(threads=1)  # processes share the clips


@dataclass(frozen=True)
class PitchErrors:
    """Differences of two pitch tracks, as counts that add up over pieces."""

    frames: int = 0
    voiced: int = 0
    """Frames that are voiced in both."""
    square_cents: float = 0.0
    """Sum of the squared differences over those; a semitone has 100 cents."""
    flipped: int = 0
    """Frames that are voiced in only one of the two."""

    def __add__(self, other: "PitchErrors") -> "PitchErrors":
        return PitchErrors(
            self.frames + other.frames,
            self.voiced + other.voiced,
            self.square_cents + other.square_cents,
            self.flipped + other.flipped,
        )


def compare_pitch(decoded: Track, original: Track) -> PitchErrors:
    """Frame by frame; both have the same number of frames. An octave taken for another counts with its 1200 cents."""
    voiced = (decoded > 0) & (original > 0)
    cents = 1200 * np.log2(decoded[voiced] / original[voiced])
    return PitchErrors(
        frames=len(original),
        voiced=int(voiced.sum()),
        square_cents=float(np.square(cents).sum()),
        flipped=int(((decoded > 0) != (original > 0)).sum()),
    )
