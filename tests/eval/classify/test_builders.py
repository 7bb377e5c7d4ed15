"""Each of ARCH's data sets in a tiny folder of its own layout becomes the clips that it should."""

import json

import pytest

from xycodec.errors import ConfigError
from xycodec.eval.classify.arch import TASKS, open_task, published_table
from xycodec.eval.classify.splits import plan_runs

MTT_TAGS = [f"tag{number}" for number in range(51)]


def write(path, text=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def lines(*rows, delimiter=","):
    return "".join(delimiter.join(map(str, row)) + "\n" for row in rows)


def touch(root, *names):
    for name in names:
        write(root / name)


def mtt_row(clip, path, *tags):
    return (clip, *(int(tag in tags) for tag in MTT_TAGS), path)


def write_esc50(root):
    rows = [("1-100-A-0.wav", 1, 0, "dog"), ("2-5-A-1.wav", 2, 1, "rooster"), ("3-1-B-0.wav", 3, 0, "dog")]
    write(root / "meta/esc50.csv", lines(("filename", "fold", "target", "category"), *rows))


def write_urbansound8k(root):
    head = ("slice_file_name", "fsID", "fold", "classID", "class")
    rows = [("100.wav", 1, 5, 2, "siren"), ("200.wav", 2, 10, 3, "drilling")]
    write(root / "metadata/UrbanSound8K.csv", lines(head, *rows))


def write_fsd50k(root):
    dev = 'fname,labels,mids,split\n64760,"Guitar,Music",/m/1,train\n16399,Bark,/m/2,val\n'
    write(root / "FSD50K.ground_truth/dev.csv", dev)
    write(root / "FSD50K.ground_truth/eval.csv", 'fname,labels,mids\n37199,"Bark,Dog",/m/2\n')


def write_vivae(root):
    touch(root, "full_set/S01_fear_low_01.wav", "full_set/S11_pain_peak_02.wav", "full_set/notes.txt")


def write_fma(root):
    heads = [("", "set", "set", "track"), ("", "split", "subset", "genre_top"), ("track_id", "", "", "")]
    small = [(number, "training", "small", "Rock" if number % 2 else "Folk") for number in range(2, 22)]
    others = [(900, "training", "large", "Rock"), (901, "training", "small", "")]
    write(root / "fma_metadata/tracks.csv", lines(*heads, *small, *others))


def write_mtt(root):
    often = [mtt_row(number, f"a/{number}.mp3", *MTT_TAGS[:50]) for number in (2, 6)]
    rows = [*often, mtt_row(7, "b/7.mp3", "tag50"), mtt_row(9, "c/9.mp3", "tag3", "tag50")]
    write(root / "annotations_final.csv", lines(("clip_id", *MTT_TAGS, "mp3_path"), *rows, delimiter="\t"))
    for name, ids in (("train", (2, 7)), ("val", (6,)), ("test", (9,))):
        write(root / f"{name}_gt_mtt.tsv", "".join(f"{number}\t[0. 1.]\n" for number in ids))


def write_irmas(root):
    touch(root, *(f"IRMAS-TrainingData/cel/[cel]{number}.wav" for number in range(8)), "IRMAS-TrainingData/voi/1.wav",
          "IRMAS-TrainingData/voi/2.wav", "IRMAS-TestingData-Part1/Part1/a-1.wav",
          "IRMAS-TestingData-Part3/Part3/b.wav")  # fmt: skip
    write(root / "IRMAS-TestingData-Part1/Part1/a-1.txt", "cel\t\nvoi\t\n")
    write(root / "IRMAS-TestingData-Part3/Part3/b.txt", "voi\n")


def write_medley(root):
    head = ("subset", "instrument", "instrument_id", "song_id", "uuid4")
    rows = [("training", "flute", 3, 1, "u1"), ("validation", "piano", 4, 2, "u2"), ("test", "flute", 3, 3, "u3")]
    write(root / "Medley-solos-DB_metadata.csv", lines(head, *rows))
    touch(root, "Medley-solos-DB/Medley-solos-DB_training-3_u1.wav")


def write_ravdess(root):
    for actor in range(1, 5):
        for emotion in range(1, 9):
            touch(root, f"Actor_{actor:02}/03-01-{emotion:02}-01-02-01-{actor:02}.wav")


def write_audio_mnist(root):
    touch(root, *(f"data/{speaker}/7_{speaker}_0.wav" for speaker in ("12", "26", "28", "36", "43")),
          "data/01/0_01_49.wav", "data/audioMNIST_meta.txt")  # fmt: skip


def write_slurp(root):
    for name, files in (("train", ["a.flac", "b.flac"]), ("devel", ["c.flac"]), ("test", ["d.flac"])):
        row = {"intent": f"play_{name}", "recordings": [{"file": file} for file in files]}
        write(root / f"dataset/slurp/{name}.jsonl", json.dumps(row) + "\n")
    (root / "audio/slurp_real").mkdir(parents=True)


def write_emovo(root):
    touch(
        root, "EMOVO/f1/dis-f1-b1.wav", "EMOVO/m3/tri-m3-n5.wav", "EMOVO/f2/neu-f2-l4.wav", "EMOVO/documents/a-b-c.wav"
    )


WRITERS = {
    "esc50": write_esc50, "urbansound8k": write_urbansound8k, "fsd50k": write_fsd50k, "vivae": write_vivae,
    "fma-small": write_fma, "magnatagatune": write_mtt, "irmas": write_irmas, "medley-solos-db": write_medley,
    "ravdess": write_ravdess, "audio-mnist": write_audio_mnist, "slurp": write_slurp, "emovo": write_emovo,
}  # fmt: skip
FIRST = {
    "esc50": ("audio/1-100-A-0.wav", ("dog",), 1),
    "urbansound8k": ("audio/fold5/100.wav", ("siren",), 5),
    "fsd50k": ("FSD50K.dev_audio/64760.wav", ("Guitar", "Music"), "train"),
    "vivae": ("full_set/S01_fear_low_01.wav", ("fear",), 1),
    "fma-small": ("fma_small/000/000002.mp3", ("Folk",), None),
    "magnatagatune": ("a/2.mp3", tuple(MTT_TAGS[:50]), "train"),
    "irmas": ("IRMAS-TrainingData/cel/[cel]0.wav", ("cel",), None),
    "medley-solos-db": ("Medley-solos-DB/Medley-solos-DB_training-3_u1.wav", ("flute",), "train"),
    "ravdess": ("Actor_01/03-01-01-01-02-01-01.wav", ("neutral",), None),
    "audio-mnist": ("data/01/0_01_49.wav", ("0",), 2),
    "slurp": ("audio/slurp_real/a.flac", ("play_train",), "train"),
    "emovo": ("EMOVO/f1/dis-f1-b1.wav", ("dis",), 0),
}
"""The first clip of each: its file, labels, and split or fold; None where that is drawn at random."""


def test_all_twelve_are_here_and_published():
    assert set(WRITERS) == set(FIRST) == set(TASKS)
    assert len(TASKS) == 12
    for values in published_table().models.values():
        assert set(values) == set(TASKS)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_a_folder_in_its_own_layout(tmp_path, name):
    WRITERS[name](tmp_path)
    task, labelled = open_task(name, tmp_path)
    first = labelled.clips[0]
    path, labels, place = FIRST[name]
    assert (first.audio, first.labels) == (tmp_path / path, labels)
    if place is not None:
        assert place == (first.fold if first.split is None else first.split)
    assert len({clip.audio for clip in labelled.clips}) == len(labelled.clips)
    assert labelled.several == (task.metric == "macro_map")
    for run in plan_runs(labelled.clips, task.valid_share):
        parts = [set(rows.tolist()) for rows in (run.train, run.valid, run.test)]
        assert not parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2]
        assert set.union(*parts) == set(range(len(labelled.clips)))


def test_what_the_sets_leave_out(tmp_path):
    """Tags that few clips have, tracks of other subsets, files that are no clips."""
    counts = {"fma-small": 20, "magnatagatune": 3, "vivae": 2, "emovo": 3, "irmas": 12, "ravdess": 32, "audio-mnist": 6}
    for name, count in counts.items():
        WRITERS[name](tmp_path / name)
        assert len(open_task(name, tmp_path / name)[1].clips) == count, name
    mtt = open_task("magnatagatune", tmp_path / "magnatagatune")[1]
    assert [clip.labels for clip in mtt.clips if clip.split == "test"] == [("tag3",)]


def test_random_splits_are_the_same_each_time(tmp_path):
    write_fma(tmp_path)
    first, second = (open_task("fma-small", tmp_path)[1].clips for _ in range(2))
    assert first == second
    splits = [clip.split for clip in first]
    assert {name: splits.count(name) for name in ("train", "valid", "test")} == {"train": 16, "valid": 2, "test": 2}
    assert splits != sorted(splits)


def test_the_speakers_of_a_fold_are_never_learned_from(tmp_path):
    write_audio_mnist(tmp_path)
    clips = open_task("audio-mnist", tmp_path)[1].clips
    runs = plan_runs(clips, None)
    assert [run.name for run in runs] == [f"fold {number}" for number in range(5)]
    for place, run in enumerate(runs):
        assert {clips[row].fold for row in run.test} == {place}
        assert {clips[row].fold for row in run.valid} == {(place + 1) % 5}


@pytest.mark.parametrize("name", sorted(TASKS))
def test_an_empty_folder_is_refused_in_one_line(tmp_path, name):
    with pytest.raises(ConfigError, match=str(tmp_path)):
        open_task(name, tmp_path)


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda root: write(root / "meta/esc50.csv", "a,b\n1,2\n"), "has no column 'filename'"),
        (
            lambda root: write(root / "meta/esc50.csv", "filename,fold,category\na.wav\n"),
            "esc50.csv:2: has fewer columns",
        ),
    ],
)
def test_a_damaged_table_is_named(tmp_path, spoil, complaint):
    write_esc50(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ConfigError, match=complaint):
        open_task("esc50", tmp_path)


def test_other_refusals(tmp_path):
    for dataset, root, complaint in (("esc51", tmp_path, "known are esc50"), ("esc50", None, "give --root")):
        with pytest.raises(ConfigError, match=complaint):
            open_task(dataset, root)
    write_slurp(tmp_path)
    write(tmp_path / "dataset/slurp/test.jsonl", "{}\n")
    with pytest.raises(ConfigError, match=r"test\.jsonl:1: has no intent"):
        open_task("slurp", tmp_path)
