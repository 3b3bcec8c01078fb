# SPDX-License-Identifier: Apache-2.0
"""Weights named by their place on the hub, against a hub on this machine."""

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from data_pipeline.synthetic.vocabulary import write_tokenizer
from data_pipeline.tokenizer import open_tokenizer
from fmfa_jax import models, weights
from fmfa_jax.evaluation.runs import Run
from fmfa_jax.weights.__main__ import main
from fmfa_jax.weights.hub import fetch, parse
from tests.tiny_model import tiny_model

REPO = "me/towers"
NAME = f"hf://{REPO}"
# Of the hub's library about its own requests.
uploads = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer") / "drawn"
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory, tokenizer) -> Path:
    """A run's folder: weights, config and the table of its evaluation."""
    run = tmp_path_factory.mktemp("run")
    config = tiny_model(
        vocab_size=open_tokenizer(str(tokenizer)).vocab_size, activation="gelu"
    )
    facts = {"step": "7", "chosen_on": "val"}
    params = models.init_params(config)
    weights.save_native(run / "model_best.safetensors", params, config, facts)
    told = {"method": "fmfa", "losses.sdm": 1.0, "losses.id": 0.0}
    told |= {"data.name": "cuhk_pedes", "data.root": "/home/me/secret"}
    told |= {"data.tokenizer": str(tokenizer), "loss.efa_rule": "plus"}
    (run / "config.json").write_text(json.dumps(told))
    (run / "eval" / "7").mkdir(parents=True)
    (run / "eval" / "7" / "table.md").write_text("# cuhk_pedes, test\n\n| R1 |\n")
    return run


@pytest.fixture
def theirs(made) -> dict[str, bytes]:
    """Files of a repository."""
    return {
        "model.safetensors": (made / "model_best.safetensors").read_bytes(),
        "config.json": (made / "config.json").read_bytes(),
        "evil.py": b"raise SystemExit",
    }


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("hf://a/b", ("a/b", "main", "")),
        ("hf://a/b@v1", ("a/b", "v1", "")),
        ("hf://a/b/c/d.pt", ("a/b", "main", "c/d.pt")),
        ("hf://a/b/c/d.pt@refs/pr/3", ("a/b", "refs/pr/3", "c/d.pt")),
        ("hf://a/b@v1/d.pt", ("a/b", "v1", "d.pt")),
    ],
)
def test_a_name_is_taken_apart(name, parts):
    assert parse(name) == parts


@pytest.mark.parametrize("name", ["hf://", "hf://a", "hf://datasets/a/b", "hf://a/b@"])
def test_a_name_that_is_none_is_refused(name):
    with pytest.raises(weights.WeightsError, match=r"wanted hf://ORG/NAME"):
        parse(name)


def test_what_is_fetched_is_what_a_file_would_be(hub, made, theirs):
    commit = hub.commit(REPO, theirs)
    ours = weights.load_params(made)
    for name in (NAME, f"{NAME}/model.safetensors", f"{NAME}@main", f"{NAME}@{commit}"):
        loaded = weights.load_params(name)
        assert loaded.report.sha256 == ours.report.sha256
        assert loaded.config == ours.config
    assert fetch(NAME).name == f"{NAME}@{commit}/model.safetensors"
    assert weights.run_config(fetch(NAME).place)["loss.efa_rule"] == "plus"
    assert not [line for line in hub.asked if "evil.py" in line]


def test_a_branch_is_read_anew_and_a_commit_is_not_asked_for_twice(hub, theirs):
    first = hub.commit(REPO, theirs)
    assert fetch(NAME).name == f"{NAME}@{first}/model.safetensors"
    second = hub.commit(REPO, {"config.json": b"{}"})
    found = fetch(NAME)
    assert found.name == f"{NAME}@{second}/model.safetensors"
    assert (found.place / "config.json").read_bytes() == b"{}"
    hub.asked.clear()
    assert fetch(f"{NAME}@{first}").name.startswith(f"{NAME}@{first}")
    assert not [line for line in hub.asked if "/resolve/" in line]
    hub.asked.clear()
    assert fetch(found.name).place.name == "model.safetensors"
    assert hub.asked == []


def test_the_cache_serves_where_the_hub_does_not(hub, theirs, monkeypatch, capsys):
    hub.commit(REPO, theirs)
    digest = weights.load_params(NAME).report.sha256
    capsys.readouterr()
    hub.close()
    assert weights.load_params(NAME).report.sha256 == digest
    said = capsys.readouterr().err
    assert said.startswith(f"note: {hub.url} cannot be reached (")
    assert said.endswith(f"{NAME} is model.safetensors of the cache\n")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert weights.load_params(f"{NAME}/model.safetensors").report.sha256 == digest
    assert capsys.readouterr().err == ""


def test_a_hub_that_does_not_answer_is_not_waited_for(hub, theirs, monkeypatch, capsys):
    hub.commit(REPO, theirs)
    digest = weights.load_params(NAME).report.sha256
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 0.2)
    hub.wait.clear()
    assert weights.load_params(NAME).report.sha256 == digest
    assert "cannot be reached" in capsys.readouterr().err


@pytest.mark.parametrize("offline", [True, False])
def test_neither_hub_nor_cache_is_one_paragraph(hub, offline, monkeypatch, capsys):
    hub.close()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    assert main(["inspect", NAME]) == 2
    said = capsys.readouterr()
    why = "is not asked, as HF_HUB_OFFLINE says" if offline else "cannot be reached"
    assert f"error: {NAME} is not in the cache" in said.err and why in said.err
    assert f"pull {NAME} OUT" in said.err
    assert said.err.count("\n") == 1 and not said.out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf://me/nothing", "has no such repository, or keeps it from"),
        (f"{NAME}@v9", "has no revision v9"),
        (f"{NAME}/best.pt", "wanted best.pt, .* weights there: model.safetensors"),
        ("hf://me/empty", "wanted one of model_best.safetensors, .*: nothing"),
        (f"{NAME}/../../x", "x"),
    ],
)
def test_what_the_hub_does_not_have(hub, theirs, name, message):
    hub.commit(REPO, theirs)
    hub.commit("me/empty", {"README.md": b"# Nothing"})
    with pytest.raises(weights.WeightsError, match=message):
        fetch(name)


@pytest.mark.parametrize(
    ("file", "fault", "message"),
    [
        ("model.safetensors", "short", "file should be of size"),
        ("model.safetensors", "wrong", "model.safetensors is damaged: .* SHA256"),
        ("config.json", "wrong", "config.json is damaged: .* SHA1"),
        ("model.safetensors", "fail", "500"),
    ],
)
def test_a_bad_download_is_refused_and_leaves_nothing(
    hub, theirs, file, fault, message
):
    hub.commit(REPO, theirs)
    hub.faults[file] = fault
    with pytest.raises(weights.WeightsError, match=message):
        weights.load_params(NAME)
    hub.faults.clear()
    assert weights.load_params(NAME).config.activation == "gelu"


def test_damage_in_the_cache_is_seen(hub, theirs):
    hub.commit(REPO, theirs)
    blob = (fetch(NAME).place / "model.safetensors").resolve()
    blob.chmod(0o644)
    blob.write_bytes(b"else" + blob.read_bytes()[4:])
    with pytest.raises(weights.WeightsError, match="was thrown away, fetch it again"):
        fetch(NAME)
    assert weights.load_params(NAME).config.activation == "gelu"


def test_an_index_brings_its_shards(hub, made):
    (tensors,) = [made / "model_best.safetensors"]
    names = list(weights.read_archive(tensors).tensors)
    shard = "model-00001-of-00001.safetensors"
    index = {"weight_map": dict.fromkeys(names, shard)}
    files = {shard: tensors.read_bytes(), "unused.safetensors": b"no"}
    hub.commit(
        REPO, files | {"model.safetensors.index.json": json.dumps(index).encode()}
    )
    found = [each.name for each in fetch(NAME).files]
    assert found == ["model.safetensors.index.json", shard]
    # As after a kill in between: what is missing is fetched.
    pinned = fetch(NAME)
    (pinned.place / shard).unlink()
    assert [each.name for each in fetch(pinned.name).files] == found


@uploads
@pytest.mark.parametrize("to", ["native", "hf"])
def test_what_is_pushed_comes_back(hub, made, to, tmp_path, capsys):
    assert main(["push", str(made), NAME, "--to", to]) == 0
    commit = hub.branches[REPO, "main"]
    assert f"wrote    {NAME}@{commit}" in capsys.readouterr().out
    assert hub.private == {REPO}
    files = hub.commits[REPO, commit]
    assert not [name for name, each in files.items() if b"secret" in each]
    assert main(["pull", NAME, str(tmp_path / "copy")]) == 0
    ours, copy = weights.load_params(made), weights.load_params(tmp_path / "copy")
    opened = weights.open_with_tokenizer(tmp_path / "copy")
    assert opened.tokenizer_name == str(tmp_path / "copy")
    assert opened.model.config.activation == "gelu"
    run = Run(tmp_path / "copy", "best")
    assert run.model.report.sha256 == copy.report.sha256
    assert run.about.get("step") == ("7" if to == "native" else None)
    assert run.trained_on == ("cuhk_pedes" if to == "native" else "")
    # A file of ours keeps its digest: an index that was made with it opens with either.
    assert (copy.report.sha256 == ours.report.sha256) == (to == "native")
    assert main(["pull", NAME, str(tmp_path / "copy")]) == 2
    assert "it is there already" in capsys.readouterr().err


@uploads
def test_the_card_says_what_the_run_knows_and_what_is_left_to_you(hub, made):
    main(["push", str(made), NAME, "--public"])
    assert hub.private == set()
    files = hub.commits[REPO, hub.branches[REPO, "main"]]
    text = files["README.md"].decode()
    card = ModelCard(text)
    assert card.data.library_name == "fmfa_jax" and card.data.license is None
    digest = weights.sha256(made / "model_best.safetensors")
    for known in ("cuhk_pedes", "fmfa", "sdm 1.0", "| 7 |", "gelu", digest):
        assert known in text
    assert "### cuhk_pedes, test\n\n| R1 |" in text
    assert "**Licence.** None is stated" in text and "/home/me" not in text


@uploads
def test_a_card_that_is_there_is_kept_unless_asked(hub, made, capsys):
    hub.commit(REPO, {"README.md": b"mine"})

    def card() -> bytes:
        return hub.commits[REPO, hub.branches[REPO, "main"]]["README.md"]

    main(["push", str(made), NAME])
    assert card() == b"mine" and "keeps its README.md" in capsys.readouterr().out
    main(["push", str(made), f"{NAME}@trial", "--new-card"])
    assert card() == b"mine"
    assert b"fmfa" in hub.commits[REPO, hub.branches[REPO, "trial"]]["README.md"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["push", "{run}", "somewhere"], "wanted hf://ORG/NAME"),
        (["push", "{run}", f"{NAME}/file"], "wanted hf://ORG/NAME[@BRANCH]"),
        (["push", "{alone}", NAME], "which tokenizer is the model's"),
        (["pull", "{run}", "out"], "wanted hf://ORG/NAME"),
    ],
)
def test_what_cannot_be_pushed_or_pulled(hub, made, tmp_path, arguments, message):
    alone = tmp_path / "alone.safetensors"
    shutil.copy(made / "model_best.safetensors", alone)
    words = [word.format(run=made, alone=alone) for word in arguments]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert main(words) == 2
    assert not hub.branches and not (tmp_path / "out").exists()
