"""Speech of flite and espeak-ng as a corpus: FLAC files, their transcripts, and Lhotse cuts."""

import json
import math
import shutil
import subprocess
import tempfile
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from xycodec.data.manifest import import_manifest
from xycodec.data.synthetic.utterances import VOICES, Utterance, draw_of_voice, draw_utterance
from xycodec.errors import AudioError, ConfigError
from xycodec.io.audio import Samples, audio_info, ignore, read_audio, write_audio
from xycodec.io.files import atomic_path
from xycodec.io.progress import Advance, unwatched
from xycodec.io.rate import SPEECH_RATE

CUTS = "cuts.jsonl.gz"
_CLIPS = "clips.jsonl"
_PROGRAMS = ("flite", "espeak-ng")  # Debian's packages have the same names
_OWN_PITCH = {"slt": 170, "rms": 100, "awb": 128, "kal16": 95}  # Hz, of flite's voices; rms has no other
_OWN_SPEED = 160  # words a minute, of espeak-ng
_LOUDNESS = 70  # of 200: at its usual 100 espeak-ng clips now and then
_STEPS = 6.75  # of espeak-ng's pitch, 0 to 99, in a semitone
_SILENCE = 0.01  # of full scale: the loudest sample of speech lies above
_PATIENCE = 60  # s for a sentence, which takes a tenth of one
_AHEAD = 4  # sentences in hand for every process
_GIVE_UP = 50  # failures in a row


@dataclass(frozen=True)
class SynthesisReport:
    """Clips of the corpus and their seconds, how many of them are new, and (clip, reason) of those passed over."""

    clips: int
    seconds: float
    made: int
    left_out: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class _Made:
    row: dict[str, Any]
    new: bool


def synthesise(
    folder: Path,
    *,
    hours: float,
    seed: int = 0,
    jobs: int = 2,
    voice: str | None = None,
    texts: Sequence[str] = (),
    advance: Advance = unwatched,
) -> SynthesisReport:
    """Make a corpus of `hours` of speech: `folder`/audio/*.flac (16 kHz, mono, 16 bit) and `folder`/cuts.jsonl.gz.

    It is the first utterances of `seed` that last so long together. Each depends on `seed` and its number alone, so
    it is the same for any number of processes. Files that are there already and whole are kept: a call goes on where
    another was interrupted, and one for more hours adds to what is there. `clips.jsonl` lists the same clips for
    people and for `import_manifest`.

    Args:
        folder: where to write; it is created.
        hours: of speech, at least.
        seed: of all that is random.
        jobs: programs that run at a time.
        voice: of flite, which then says all in its own manner, with transcripts as they are written; None: all voices.
        texts: that the one voice says too, in turns with what is drawn.
        advance: told the seconds of each clip.

    Raises:
        ConfigError: `hours` is not positive; flite or espeak-ng is missing, lacks a voice, or fails time after time;
            there is no such voice, or there are texts for none.
            A single sentence that cannot be spoken is passed over and reported.
    """
    if not 0 < hours < math.inf:
        raise ConfigError(f"{hours:g} hours of speech cannot be made: give a positive number")
    if voice is None and texts:
        raise ConfigError("texts are for one voice to say: name it")
    if voice is not None and voice not in VOICES:
        raise ConfigError(f"voice {voice!r} is none of flite's: give one of {', '.join(VOICES)}")
    _require_programs(_PROGRAMS if voice is None else _PROGRAMS[:1])
    drawn = (
        (draw_utterance(seed, index) for index in count())
        if voice is None
        else (draw_of_voice(seed, index, voice, texts) for index in count())
    )
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    clips: list[_Made] = []
    left_out: list[tuple[str, str]] = []
    seconds, failures = 0.0, 0
    with closing(_all_clips(folder, drawn, jobs)) as made:
        while seconds < hours * 3600:
            utterance, result = next(made)
            if isinstance(result, AudioError):
                left_out.append((utterance.id, str(result)))
                failures += 1
                if failures == _GIVE_UP:
                    raise ConfigError(f"{failures} sentences in a row could not be spoken, the last: {result}")
                continue
            failures = 0
            clips.append(result)
            seconds += result.row["duration"]
            advance(result.row["duration"])
    _write_manifests(folder, clips)
    return SynthesisReport(len(clips), seconds, sum(clip.new for clip in clips), tuple(left_out))


def _require_programs(programs: Sequence[str]) -> None:
    for program in programs:
        if shutil.which(program) is None:
            raise ConfigError(f"{program} is not installed: apt-get install {program} (Debian, Ubuntu)")


def _write_manifests(folder: Path, clips: list[_Made]) -> None:
    with atomic_path(folder / _CLIPS, ConfigError) as temporary:
        lines = (json.dumps(clip.row, ensure_ascii=False) + "\n" for clip in clips)
        temporary.write_text("".join(lines), encoding="utf-8")
    import_manifest(folder / _CLIPS, folder / CUTS)


# ---- clips ---------------------------------------------------------------------------------------


def _all_clips(
    folder: Path, drawn: Iterator[Utterance], jobs: int
) -> Generator[tuple[Utterance, _Made | AudioError], None, None]:
    """Yield every utterance, in order and without end, and what became of it."""
    # Threads, because the work is done by the programs that they wait for.
    pool = ThreadPoolExecutor(jobs)
    waiting: deque[tuple[Utterance, Future[_Made | AudioError]]] = deque()
    try:
        for utterance in drawn:
            waiting.append((utterance, pool.submit(_clip, folder, utterance)))
            if len(waiting) > _AHEAD * jobs:
                first, future = waiting.popleft()
                yield first, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _clip(folder: Path, utterance: Utterance) -> _Made | AudioError:
    name = f"audio/{utterance.id}.flac"
    seconds = _whole(folder / name)
    new = seconds is None
    if seconds is None:
        try:
            samples = _speak(utterance)
        except AudioError as error:
            return error
        write_audio(folder / name, samples, SPEECH_RATE)
        seconds = len(samples) / SPEECH_RATE
    words = {"text": utterance.transcript, "speaker": utterance.voice.name, "language": utterance.voice.language}
    return _Made({"audio": name, "duration": seconds, **words, "source": utterance.voice.program}, new)


def _whole(path: Path) -> float | None:
    """Seconds of a clip that is there; None if it has to be made."""
    try:
        return audio_info(path).duration if path.exists() else None
    except AudioError:
        return None


def _speak(utterance: Utterance) -> Samples:
    """Let the voice speak: mono at 16 kHz. Raises AudioError if it says nothing, ConfigError if it is not there."""
    with tempfile.TemporaryDirectory() as folder:
        wav = Path(folder) / "speech.wav"
        _run(_command(utterance, wav), utterance)
        # Where flite has not got a voice, it takes another one, of telephone quality.
        if wav.exists() and audio_info(wav).sample_rate < SPEECH_RATE:
            program, voice = utterance.voice.program, utterance.voice.name
            raise ConfigError(f"{program} has no voice {voice} of {SPEECH_RATE} Hz here: install Debian's {program}")
        samples = read_audio(wav, SPEECH_RATE, tell=ignore)
    if np.abs(samples).max() < _SILENCE:
        raise AudioError(f"{utterance.voice.program} was silent at {utterance.text!r}")
    return samples


def _run(command: list[str], utterance: Utterance) -> None:
    what = f"{utterance.voice.program} -v {utterance.voice.name} with {utterance.text!r}"
    try:
        ran = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PATIENCE)
    except subprocess.TimeoutExpired as error:
        raise AudioError(f"{what} did not end within {_PATIENCE} s") from error
    if ran.returncode:
        said = ran.stderr.decode(errors="replace").strip() or f"exit code {ran.returncode}"
        raise AudioError(f"{what} failed: {said}")


def _command(utterance: Utterance, target: Path) -> list[str]:
    name, text = utterance.voice.name, utterance.text
    if utterance.voice.program == "flite":
        hertz = _OWN_PITCH[name] * 2 ** (utterance.pitch / 12)
        manner = [f"duration_stretch={1 / utterance.rate:.3f}", f"int_f0_target_mean={hertz:.1f}"]
        return ["flite", "-voice", name, "--setf", manner[0], "--setf", manner[1], "-t", text, "-o", str(target)]
    words, pitch = round(_OWN_SPEED * utterance.rate), round(50 + _STEPS * utterance.pitch)
    # The text is UTF-8 (-b 1), whatever the locale.
    return [
        "espeak-ng",
        "-v",
        name,
        "-s",
        str(words),
        "-p",
        str(pitch),
        "-a",
        str(_LOUDNESS),
        "-b",
        "1",
        "-w",
        str(target),
        text,
    ]
