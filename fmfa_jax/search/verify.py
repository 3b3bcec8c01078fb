# SPDX-License-Identifier: Apache-2.0
"""Compare an index with the digests that were noted when it was written."""

from pathlib import Path

from fmfa_jax.search import approximate, remote
from fmfa_jax.search.shards import open_shard, open_shards, shard_path
from fmfa_jax.search.store import IndexRecord, SearchError, own_tokenizer, read_record


def verify(folder: str | Path) -> IndexRecord:
    """Read all of an index; its model is compared whenever it is opened.

    Returns:
        What the index is; see `IndexRecord.undigested`.

    Raises:
        SearchError: Something has changed since it was written; says what.
    """
    folder = Path(folder).resolve()
    record = read_record(folder)
    damage = []
    for each in record.shards:
        try:
            shard = open_shard(shard_path(folder, each.name), each.sha256)
            shard.verify()
        except SearchError as error:
            damage.append(str(error))
    if record.faiss and not approximate.sound(folder, record.faiss):
        damage.append(f"{folder / record.faiss.file} is missing or damaged")
    if record.approximate and record.remote and not damage:
        shards = open_shards(folder, record)
        if not remote.complete(record.remote, shards):
            damage.append(f"Qdrant at {record.remote.uri} lacks rows of this index")
    if problem := _tokenizer_problem(folder, record):
        damage.append(problem)
    if damage and read_record(folder) != record:
        return verify(folder)  # a writer has replaced what was being read
    if damage:
        raise SearchError("\n  ".join(damage))
    return record


def _tokenizer_problem(folder: Path, record: IndexRecord) -> str:
    try:
        found = own_tokenizer(folder, record).fingerprint()
    except (OSError, ValueError) as error:
        return str(error)
    same, name = record.tokenizer_sha256 in ("", found), record.tokenizer
    return "" if same else f"the tokenizer {name!r} has changed: another SHA-256"
