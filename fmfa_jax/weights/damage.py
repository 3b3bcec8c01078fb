# SPDX-License-Identifier: Apache-2.0
"""What a file is that is no weight file: half a download, a web page, an archive."""

from pathlib import Path

# Enough for the marks below, the farthest of which is tar's.
HEAD_BYTES = 512
_AGAIN = "download it again"
_UNPACK = "unpack it first"
_LEGACY = (
    "in PyTorch's format from before 1.6 (a bare pickle), which is not supported",
    'Convert it where PyTorch is installed: python -c "import torch; torch.save('
    "torch.load('old.pth', map_location='cpu', weights_only=True), 'new.pth')\"",
)
# How a file begins, what it is, and what to do.
_BEGINNINGS = (
    (b"version https://git-lfs", "a Git LFS pointer", "fetch the file: git lfs pull"),
    (b"oid sha256:", "a Git LFS pointer", "fetch the file: git lfs pull"),
    (b"/annex/objects", "a git-annex pointer", "fetch the file: git annex get"),
    (b"\x80", *_LEGACY),
    (b"\x1f\x8b", "compressed with gzip", "decompress it first: gunzip"),
    (b"BZh", "compressed with bzip2", "decompress it first: bunzip2"),
    (b"\xfd7zXZ", "compressed with xz", "decompress it first: unxz"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "decompress it first: unzstd"),
    (b"7z\xbc\xaf", "a 7-Zip archive", _UNPACK),
    (b"Rar!", "a RAR archive", _UNPACK),
    (b"\x89HDF", "an HDF5 file, as Keras writes", "wanted PyTorch's or safetensors"),
    (b"\x93NUMPY", "a NumPy array", "wanted PyTorch's or safetensors"),
    (b"GGUF", "a GGUF file", "wanted PyTorch's or safetensors"),
    (b"\x08", "an ONNX program or the like", "wanted the weights it was made from"),
)


def what_it_is(path: Path, head: bytes) -> str:
    """Say in a sentence what a file is, from its first `HEAD_BYTES` bytes."""
    if not head:
        return f"{path} is empty: {_AGAIN}"
    if not any(head):
        return f"{path} begins with zeros: its download was cut off; {_AGAIN}"
    for beginning, what, remedy in _BEGINNINGS:
        if head.startswith(beginning):
            return f"{path} is {what}. {remedy[0].upper()}{remedy[1:]}"
    if head[257:262] == b"ustar":
        return f"{path} is a tar archive: {_UNPACK}"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<error")):
        return f"{path} is a web page, not the file it offered: {_AGAIN}"
    if text.startswith((b"{", b"[")):
        return f"{path} is JSON text: wanted the weight file, not its description"
    return (
        f"{path} is neither a PyTorch zip archive nor a safetensors file "
        f"(it starts with {head[:8]!r}); expected .pt/.pth/.bin or .safetensors"
    )
