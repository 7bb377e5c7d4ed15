"""Music that a language model continues, and sounds that it makes of captions, as files for `evaluate-generation`.

    python runs/generate_audio.py music MUSDB18 MODEL OUTPUT    # crops.jsonl, generated/, reference/
    python runs/generate_audio.py sound CAPTIONS MODEL OUTPUT   # ID.wav of each row of CAPTIONS (id, caption)

Run again, it goes on. The music's reference is the true continuation through the same codebooks, as X-Codec's paper has
it: what the codec loses is not the language model's. Sampling is the model's own, seeds are the places in the list.
"""

import argparse
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from xycodec.baselines.open import open_codec
from xycodec.errors import CheckpointError, ConfigError
from xycodec.eval.generation.embedders.clap import Clap
from xycodec.eval.generation.sets import read_captions
from xycodec.io.audio import audio_files, audio_info, ignore, read_audio, write_audio
from xycodec.models.base import Codec, codes_fingerprint
from xycodec.models.longform import decode_long, encode_long


def parser() -> argparse.ArgumentParser:
    """The command line of both commands."""
    whole = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = whole.add_subparsers(required=True)
    music, sound = commands.add_parser("music"), commands.add_parser("sound")
    music.add_argument("source", type=Path, help="folder of music; of MUSDB18-HQ the files mixture.wav")
    sound.add_argument("source", type=Path, help="JSON lines with id and caption")
    for command, run in ((music, continue_music), (sound, make_sounds)):
        command.set_defaults(run=run)
        command.add_argument("model", type=Path, help="run or exported folder of lm/music.yaml or lm/sound.yaml")
        command.add_argument("output", type=Path)
        command.add_argument("--codec", help="default: the name in the model")
        command.add_argument("--device", default="auto")
    music.add_argument("--count", type=int, default=600, help="crops, spread evenly over the pieces")
    music.add_argument("--prompt", type=float, default=10.0, help="seconds")
    music.add_argument("--generate", type=float, default=30.0, help="seconds")
    music.add_argument("--seed", type=int, default=0, help="of the crops")
    sound.add_argument("--clap", required=True, help="the CLAP that the model was trained with")
    sound.add_argument("--seconds", type=float, default=10.0)
    return whole


def continue_music(args: argparse.Namespace, load: Callable[..., Any]) -> None:
    """Continue every crop, and write the true continuation through the same codebooks beside it."""
    model, codec = _opened(args, load)
    prompt, more = (round(seconds * codec.frame_rate) for seconds in (args.prompt, args.generate))
    crops = _crops(args, prompt + more, codec)
    for number, (track, start) in enumerate(crops):
        names = [args.output / kind / f"{number:04d}.wav" for kind in ("generated", "reference")]
        if not all(name.exists() for name in names):
            audio = read_audio(args.source / track, codec.input_sample_rate, tell=ignore)[start:]
            true = encode_long(codec, audio[: (prompt + more) * codec.hop_length])[: model.books]
            made = model.generate(frames=more, prompt_codes=true[:, :prompt], seed=number).cpu()
            for name, codes in zip(names, (torch.cat([true[:, :prompt], made], dim=1), true), strict=True):
                decoded = decode_long(codec, codes)
                _write(name, decoded[codec.num_output_samples(prompt * codec.hop_length) :], codec)


def make_sounds(args: argparse.Namespace, load: Callable[..., Any]) -> None:
    """Make a sound of every caption."""
    captions = read_captions(args.source)
    model, codec = _opened(args, load)
    clap = Clap(args.clap, args.device)
    for number, (clip, caption) in enumerate(captions.items()):
        if not (name := args.output / f"{clip}.wav").exists():
            condition = torch.from_numpy(clap.captions([caption])[0])
            frames = round(args.seconds * codec.frame_rate)
            codes = model.generate(frames=frames, condition=condition, seed=number).cpu()
            _write(name, decode_long(codec, codes), codec)


def _opened(args: argparse.Namespace, load: Callable[..., Any]) -> tuple[Any, Codec]:
    model = load(args.model, device=args.device)
    codec = open_codec(args.codec or model.codec_name, device=args.device)
    if codes_fingerprint(codec) != model.codec_hash:
        raise CheckpointError(f"{args.model}: makes codes of another codec than {args.codec or model.codec_name}")
    return model, codec


def _crops(args: argparse.Namespace, frames: int, codec: Codec) -> list[tuple[str, int]]:
    """File and first sample, at the codec's rate, of each crop; drawn once, and listed in crops.jsonl."""
    listed = args.output / "crops.jsonl"
    if not listed.exists():
        tracks = _tracks(args.source)
        draw = random.Random(args.seed)
        rows = []
        for number in range(args.count):
            track = tracks[number % len(tracks)]
            length = int(audio_info(args.source / track).duration * codec.input_sample_rate)
            room = length - frames * codec.hop_length
            if room < 0:
                raise ConfigError(f"{args.source / track}: is shorter than a crop: take it out of the folder")
            rows.append({"track": track, "start": draw.randrange(room + 1)})
        listed.parent.mkdir(parents=True, exist_ok=True)
        listed.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return [(row["track"], row["start"]) for row in map(json.loads, listed.read_text(encoding="utf-8").splitlines())]


def _tracks(folder: Path) -> Sequence[str]:
    files = audio_files(folder)
    mixtures = [path for path in files if path.stem == "mixture"] or files
    if not mixtures:
        raise ConfigError(f"{folder}: holds no files of audio")
    return [path.relative_to(folder).as_posix() for path in mixtures]


def _write(path: Path, audio: torch.Tensor, codec: Codec) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_audio(path, audio.numpy(), codec.output_sample_rate)


if __name__ == "__main__":
    from xycodec.lm import load

    told = parser().parse_args()
    told.run(told, load)
