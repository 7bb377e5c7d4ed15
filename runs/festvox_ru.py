"""A JSON-lines manifest of Debian's package festvox-ru: 620 Russian sentences of one speaker, 1.66 h at 16 kHz.

python runs/festvox_ru.py [FOLDER] > russian.jsonl     FOLDER: where the voice was installed or unpacked
"""

import json
import re
import sys
from pathlib import Path

import soundfile as sf

VOICE = "usr/share/festival/voices/russian/msu_ru_nsh_clunits"
LINE = re.compile(r'\(\s*(\S+)\s+"(.*)"\s*\)')


def main(folder: Path) -> None:
    """Print one line for each sentence; stress marks (+) are left out of the texts."""
    voice = folder / VOICE
    texts = voice / "etc/txt.done.data"
    if not texts.is_file():
        sys.exit(f"{texts} is not there: apt-get install festvox-ru, or name the folder it was unpacked to")
    for line in texts.read_text(encoding="utf-8").splitlines():
        found = LINE.match(line.strip())
        if found is None:
            continue
        audio = voice / "wav" / f"{found[1]}.wav"
        row = {
            "audio": str(audio.resolve()),
            "duration": sf.info(audio).duration,
            "speaker": "msu_ru_nsh",
            "text": found[2].replace("+", ""),
            "language": "ru",
            "source": "festvox-ru",
            "licence": "BSD-like",
        }
        print(json.dumps(row, ensure_ascii=False))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "/"))
