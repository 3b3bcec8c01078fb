# SPDX-License-Identifier: Apache-2.0
"""The tokenizer against the official ids, and a Hugging Face folder against it."""

import html
import json
import random
import string
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import ftfy
import instant_clip_tokenizer
import numpy as np
import pytest
from transformers import CLIPTokenizer

from data_pipeline import byte_pairs, tokenizer
from data_pipeline.tokenizer import Tokenizer, open_tokenizer

ROOT = Path(__file__).parents[2]
CASES = json.loads(
    (Path(__file__).parents[1] / "reference" / "tokens.json").read_text()
)
CAPTIONS = [case["caption"] for case in CASES]
ODD = [
    "jekyll",
    "Dr. Jekyll-jekyll's coat, jekylls",
    "<|mask|> and <|MASK|>",
    "!<|endoftext|>!<|startoftext|>",
    "a<|startoftext|><|endoftext|>9<|endoftext|> ...<|endoftext|>",
    "<|STARTOFTEXT|> he&amp;amp;she &lt;3 caf&eacute; n&uacute;mero",
    "漢字 １２３ ½ Ⅷ İstanbul ſ ß ﬁ e\u0301",
    "a\x00b\x1b[31mred\x1b[0m\r\n\t c\u2028d\u00a0e",
    "\ud83d lone surrogate",
    "😀🎒👩‍👧",
]


@pytest.fixture(scope="module")
def clip() -> Tokenizer:
    return open_tokenizer("clip")


@pytest.fixture(scope="module")
def merges() -> list[str]:
    """CLIP's merges, extracted from the package that contains them."""
    folder = Path(instant_clip_tokenizer.__file__).parent
    blob = next(folder.glob("instant_clip_tokenizer*.so")).read_bytes()
    begin = blob.index(b"#version: 0.2\ni n\n")
    lines = blob[begin : begin + 3_000_000].split(b"\n")[1 : 49152 - 256 - 2 + 1]
    assert lines[-1] == b"jeky ll</w>"
    return [line.decode() for line in lines]


def write_folder(folder: Path, merges: list[str], *, mask: bool) -> Path:
    """Write a Hugging Face CLIP tokenizer folder, with or without a mask entry."""
    entries = byte_pairs.byte_entries()
    entries += [merge.replace(" ", "") for merge in merges]
    entries += ["<|mask|>"] * mask + ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir()
    vocabulary = {entry: i for i, entry in enumerate(entries)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    return folder


@pytest.fixture(scope="module")
def standard(tmp_path_factory: pytest.TempPathFactory, merges: list[str]) -> Path:
    return write_folder(tmp_path_factory.mktemp("hf") / "clip", merges, mask=False)


def test_ids_equal_the_official_ones(clip: Tokenizer) -> None:
    assert (clip.vocab_size, clip.mask_id, clip.start_id, clip.end_id) == (
        49408,
        49405,
        49406,
        49407,
    )
    rows = clip.encode(CAPTIONS, 77)
    assert rows.dtype == np.int32 and rows.shape == (len(CASES), 77)
    for row, case in zip(rows, CASES, strict=True):
        wanted = case["tokens"] + [0] * (77 - len(case["tokens"]))
        assert row.tolist() == wanted, case["caption"]


def test_a_hugging_face_folder_gives_the_same_ids(
    clip: Tokenizer, standard: Path
) -> None:
    folder = open_tokenizer(str(standard))
    assert (folder.vocab_size, folder.mask_id) == (clip.vocab_size, clip.mask_id)
    texts = CAPTIONS + ODD
    for text, got, wanted in zip(
        texts, folder.encode(texts, 77), clip.encode(texts, 77), strict=True
    ):
        assert got.tolist() == wanted.tolist(), text


def test_a_fingerprint_is_of_what_a_tokenizer_does(
    clip: Tokenizer, standard: Path, tmp_path: Path, merges: list[str]
) -> None:
    assert open_tokenizer(str(standard)).fingerprint() == clip.fingerprint()
    folder = write_folder(tmp_path / "small", merges[:99], mask=True)
    before = open_tokenizer(str(folder)).fingerprint()
    lines = (folder / "merges.txt").read_text().split("\n")
    (folder / "merges.txt").write_text("\n".join(lines[:50] + lines[51:]))
    assert open_tokenizer(str(folder)).fingerprint() != before


def test_a_folder_is_read_as_transformers_reads_it(standard: Path) -> None:
    vocabulary, merges = byte_pairs.read_tables(standard)
    theirs = CLIPTokenizer(vocab=vocabulary, merges=merges).backend_tokenizer
    odd = ["'tis '' it's we'll 12345", "!'s ''s .'t ''re", "\u0661\u0662 x9", "e\u0301"]
    texts = [tokenizer.clean(text) for text in CAPTIONS + ODD + odd]
    texts = [text for text in texts if "<|" not in text]
    wanted = theirs.encode_batch(texts, add_special_tokens=False)
    ours = byte_pairs.folder_encoder(vocabulary, merges)(texts)
    for text, got, each in zip(texts, ours, wanted, strict=True):
        assert got == each.ids, text


def test_a_folder_is_read_without_transformers(standard: Path) -> None:
    """transformers takes seconds to import, and warns if there is no PyTorch."""
    code = (
        "import sys; from data_pipeline.tokenizer import open_tokenizer; "
        f"open_tokenizer({str(standard)!r}).encode(['a man'], 8); "
        "assert 'transformers' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_tokenizer_json_alone_gives_the_same_ids(
    merges: list[str], tmp_path: Path
) -> None:
    written = write_folder(tmp_path / "written", merges[:3000], mask=True)
    vocabulary, pairs = byte_pairs.read_tables(written)
    theirs = CLIPTokenizer(vocab=vocabulary, merges=pairs)
    theirs.save_pretrained(tmp_path)
    assert not (tmp_path / "vocab.json").exists()
    assert byte_pairs.read_tables(tmp_path) == (vocabulary, pairs)
    ours = open_tokenizer(str(tmp_path))
    texts = [text for text in CAPTIONS + ODD if "<|" not in text]
    for text, row in zip(texts, ours.encode(texts, 400), strict=True):
        wanted = theirs(tokenizer.clean(text))["input_ids"]
        assert row[: len(wanted)].tolist() == wanted, text
    # Before they were pairs, merges were texts.
    path = tmp_path / "tokenizer.json"
    tables = json.loads(path.read_text())
    tables["model"]["merges"] = [" ".join(pair) for pair in pairs]
    path.write_text(json.dumps(tables))
    assert byte_pairs.read_tables(tmp_path) == (vocabulary, pairs)


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        (lambda t: [t], "wanted a CLIP tokenizer"),
        (lambda t: t | {"model": t["model"] | {"type": "Unigram"}}, "wanted a CLIP"),
        (lambda t: t | {"model": t["model"] | {"merges": {}}}, "wanted model.vocab"),
        (lambda t: t | {"model": t["model"] | {"merges": ["a b", 5]}}, "merge 1 is ''"),
        (lambda t: t | {"added_tokens": [5]}, "wanted added_tokens to be a list"),
    ],
)
def test_other_tokenizer_json_files_are_refused(
    tmp_path: Path, change: Callable[[dict], object], shown: str
) -> None:
    folder = write_folder(tmp_path / "x", ["a b"], mask=True)
    model = {
        "type": "BPE",
        "end_of_word_suffix": "</w>",
        "vocab": json.loads((folder / "vocab.json").read_text()),
        "merges": [["a", "b"]],
    }
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"model": model}))
    assert open_tokenizer(str(tmp_path)).vocab_size == 516
    path.write_text(json.dumps(change({"model": model})))
    with pytest.raises(ValueError, match=f"tokenizer.json.*{shown}"):
        open_tokenizer(str(tmp_path))


def test_no_caption_yields_the_mask(clip: Tokenizer, standard: Path) -> None:
    assert clip.encode(["jekyll"], 5).tolist() == [[49406, 43893, 865, 49407, 0]]
    for opened in (clip, open_tokenizer(str(standard))):
        assert opened.mask_id not in opened.encode(ODD, 77)


def test_a_mark_before_a_special_token_makes_it_ordinary_text(clip: Tokenizer) -> None:
    special = clip.encode(["a<|endoftext|>b"], 8)[0].tolist()
    assert special == [49406, 320, 49407, 321, 49407, 0, 0, 0]
    plain = clip.encode(["!<|endoftext|>"], 12)[0].tolist()
    parts = clip.encode(["!<| endoftext |>"], 12)[0].tolist()
    assert plain == parts and plain.count(clip.end_id) == 1


def test_words_cover_every_id_of_a_caption(clip: Tokenizer, standard: Path) -> None:
    folder = open_tokenizer(str(standard))
    texts = CAPTIONS + ODD
    for text, row in zip(texts, clip.encode(texts, 77), strict=True):
        words = clip.words(row)
        assert words == folder.words(row), text
        inner = row[1 : row.tolist().index(clip.end_id)]
        covered = [i for w in words for i in row[w.start : w.stop]]
        assert covered == [i for i in inner if i < clip.mask_id], text
        cut = row[76] == clip.end_id
        if text in CAPTIONS and not cut and "<|" not in text:
            spelled = "".join(word.text for word in words)
            assert spelled == tokenizer.clean(text).replace(" ", ""), text


def test_pieces_of_a_word_stay_together(clip: Tokenizer) -> None:
    row = clip.encode(["A man's unbuckleable café-bag, 漢"], 77)[0]
    words = clip.words(row)
    texts = ["a", "man", "'s", "unbuckleable", "café", "-", "bag", ",", "漢"]
    assert [word.text for word in words] == texts
    assert words[3].stop - words[3].start > 1
    row[words[3].stop - 1] = clip.mask_id
    rest = clip.words(row)
    assert len(rest) == len(words) and "unbuckleable".startswith(rest[3].text)
    assert (rest[3].start, rest[4]) == (words[3].start, words[4])
    assert clip.words(clip.encode([""], 4)[0]) == ()


def test_long_captions_end_with_the_end(clip: Tokenizer) -> None:
    whole = clip.encode(["red " * 20], 77)[0]
    cut = clip.encode(["red " * 20], 7)[0]
    assert cut[:6].tolist() == whole[:6].tolist() and cut[6] == clip.end_id
    assert clip.encode(["red " * 5], 7)[0, 6] == clip.end_id
    assert clip.encode([], 7).shape == (0, 7)


def test_the_short_cut_for_ascii_changes_nothing() -> None:
    draw = random.Random(0)
    for _ in range(500):
        text = "".join(draw.choices(string.printable + "&<;'\"", k=30))
        text += draw.choice(["", " &lt;", "é", "&#233;", "\x85", "â€™s"])
        slow = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
        assert tokenizer.clean(text) == " ".join(slow.split()).strip().lower()


def test_small_vocabularies_have_the_same_shape(tmp_path: Path) -> None:
    merges = ["r e", "re d</w>", "c o", "co a", "coa t</w>"]
    masked = open_tokenizer(str(write_folder(tmp_path / "a", merges, mask=True)))
    assert masked.vocab_size == 512 + 5 + 3
    assert masked.mask_id == 517 and masked.end_id == 519
    red, coat = 512 + 1, 512 + 4
    assert masked.encode(["Red  COAT"], 6).tolist() == [[518, red, coat, 519, 0, 0]]
    taken = open_tokenizer(str(write_folder(tmp_path / "b", merges, mask=False)))
    assert taken.mask_id == coat
    ids = taken.encode(["coat"], 6)[0].tolist()
    assert ids == [517, 515, 256 + ord("t") - 33, 518, 0, 0]


def test_folders_that_are_none_say_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"vocab.json and merges.txt not found"):
        open_tokenizer(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="wanted 'clip' or a folder"):
        open_tokenizer("clop")
    folder = write_folder(tmp_path / "x", ["a b"], mask=True)
    good = json.loads((folder / "vocab.json").read_text())

    def open_with(vocabulary: dict[str, int]) -> None:
        (folder / "vocab.json").write_text(json.dumps(vocabulary))
        open_tokenizer(str(folder))

    with pytest.raises(ValueError, match="are not 0 to"):
        open_with(good | {"gap": 9999})
    with pytest.raises(ValueError, match=r"<\|startoftext\|> at 515"):
        open_with(good | {"extra": len(good)})
    swapped = {("other" if e == "a</w>" else e): i for e, i in good.items()}
    with pytest.raises(ValueError, match=r"lacks 1 of the 512 byte symbols \(a</w>"):
        open_with(swapped)
    with pytest.raises(ValueError, match="or the result of a merge"):
        open_with({("other" if e == "<|mask|>" else e): i for e, i in good.items()})
    (folder / "merges.txt").write_text("#version: 0.2\na b c\n")
    with pytest.raises(ValueError, match="merge 0 is 'a b c'"):
        open_with(good)


VOCABULARIES = {
    "null": b"null",
    "list": b"[1]",
    "cut": b"{",
    "deep": b"[" * 200_000,
    "digits": b'{"a": ' + b"9" * 5000 + b"}",
    "UTF-16": "{}".encode("utf-16"),
    "texts": b'{"a": "0"}',
    "mixed": b'{"a": 0, "b": "1"}',
    "floats": b'{"a": 0.0}',
    "truth": b'{"a": true}',
    "nothing": b'{"a": null}',
    "empty": b"{}",
    "ends": b'{"<|startoftext|>": 0, "<|endoftext|>": 1}',
}


@pytest.mark.parametrize("content", VOCABULARIES.values(), ids=VOCABULARIES.keys())
def test_a_vocabulary_of_a_wrong_kind_is_named(tmp_path: Path, content: bytes) -> None:
    folder = write_folder(tmp_path / "x", ["a b"], mask=True)
    (folder / "vocab.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"vocab\.json"):
        open_tokenizer(str(folder))


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        (b"#version: 0.2\na b\na b\n", "line 3: merge 1 is 'a b', which is there"),
        (b"a b\r\nzzq \x1b\n", r"line 2: merge 1 is .*'zzq' is not in the vocabulary"),
        (b"a b\n#version: 0.2\n", "line 2: merge 1 is .* is not in the vocabulary"),
        (b"\xff\xfe\x00", "wanted UTF-8"),
    ],
    ids=["doubled", "unknown", "joined files", "binary"],
)
def test_merges_that_are_none_say_where(
    tmp_path: Path, content: bytes, shown: str
) -> None:
    folder = write_folder(tmp_path / "x", ["a b"], mask=True)
    (folder / "merges.txt").write_bytes(content)
    with pytest.raises(ValueError, match=rf"merges\.txt.*{shown}") as caught:
        open_tokenizer(str(folder))
    assert str(caught.value).isprintable()


def test_endless_words_are_cut_before_they_are_merged(
    clip: Tokenizer, standard: Path
) -> None:
    """Uncut, a million letters take minutes; what fits into the rows stays the same."""
    for opened in (clip, open_tokenizer(str(standard))):
        for letter in ("a", "7", "!", "e\u0301", "漢"):
            rows = opened.encode([letter * 10**6, letter * 4000], 77)
            assert np.array_equal(*rows), letter
    text = "a " * 3000
    assert tokenizer.clean(text) == text.strip()


def test_marks_on_a_letter_are_cut_where_they_have_no_end() -> None:
    """In turns, a million of them would take an hour to be put into order."""
    marks = "\u0316\u0301"
    assert tokenizer.clean("e" + marks * 10**6) == tokenizer.clean("e" + marks * 15)
    text = "e" + marks * 2000
    assert len(tokenizer.clean(text)) >= len(text) - 1


def test_captions_that_are_cut_are_counted(clip: Tokenizer) -> None:
    captions = ["red " * n for n in (0, 1, 5, 6, 7, 30, 300)] + ["!!!! " * 3]
    wanted = {
        place: len(caption.split()) + 2
        for place, caption in enumerate(captions)
        if len(caption.split()) + 2 > 8
    }
    assert tokenizer.cut_captions(clip, captions, 8) == wanted == {4: 9, 5: 32, 6: 302}
    assert tokenizer.cut_captions(clip, captions, 400) == {}
    assert tokenizer.cut_captions(clip, [], 8) == {}


def test_context_of_one_is_refused(clip: Tokenizer) -> None:
    with pytest.raises(ValueError, match="context length 1: wanted at least 2"):
        clip.encode(["a"], 1)


def test_where_the_package_has_no_build_a_folder_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "instant_clip_tokenizer", None)
    with pytest.raises(ValueError, match=r"instant-clip-tokenizer, .* name a folder"):
        open_tokenizer("clip")
