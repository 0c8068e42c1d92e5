"""Keys that turn original ids into pseudonyms.

Phantom and public data use a fixed key, so that everyone gets the same ids and splits. Private data uses a
key file outside the repository: without it nobody can tell from an id whether a patient is in the cohort.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from ckptcore import durable
from radfuse.engine.errors import RadfuseError

_DIGITS = 12


class KeyRefused(RadfuseError):
    """The key file is missing where it must not be, is open to others, or holds no key."""


@dataclass(frozen=True)
class Key:
    """A secret, or the public one.

    Attributes:
        secret: bytes that ids are made with.
        public: whether it is the fixed one.
    """

    secret: bytes
    public: bool = False

    @property
    def fingerprint(self) -> str:
        """Tells keys apart and gives nothing of them away."""
        return "public" if self.public else self._hash("fingerprint")

    def patient(self, namespace: str, original: str) -> str:
        """The pseudonym of a patient.

        Args:
            namespace: the patients' numbers are unique within it.
            original: the number.
        """
        return "p" + self._hash("patient", namespace, original)

    def study(self, namespace: str, patient: str, original: str) -> str:
        """The pseudonym of a study of a patient."""
        return "s" + self._hash("study", namespace, patient, original)

    def sample(self, source: str, modality: str, original: str) -> str:
        """The pseudonym of an image, nodule or volume of a source."""
        return "i" + self._hash("sample", source, modality, original)

    def _hash(self, *parts: str) -> str:
        # Lengths before the parts: ("a", "bc") and ("ab", "c") must not be one message.
        message = "".join(f"{len(part)}:{part}" for part in parts).encode()
        return hmac.new(self.secret, message, hashlib.sha256).hexdigest()[:_DIGITS]


PUBLIC = Key(b"radfuse: phantom and public data", public=True)


def private_key(path: Path, root: Path) -> Key:
    """The key in a file; made, for the owner alone, when there is none.

    Args:
        path: of the file; ``~`` is the home folder.
        root: the pipeline's folder, whose repository the key must not lie in.

    Raises:
        KeyRefused: the file lies inside the repository, others may read it, or it is no key.
    """
    path = path.expanduser()
    if not path.is_absolute():
        path = root / path
    _refuse_inside(path, root)
    if not path.exists():
        _make(path)
    return Key(_read(path))


def _refuse_inside(path: Path, root: Path) -> None:
    inside = _repository(root.resolve())
    if path.resolve().is_relative_to(inside):
        raise KeyRefused(
            f"privacy.key_file {path} lies inside the folder of the pipeline or its repository, where it "
            "could be committed, or copied along with the data that it protects; name a file outside, such "
            "as ~/.config/radfuse/key."
        )


def _repository(folder: Path) -> Path:
    for above in (folder, *folder.parents):
        if (above / ".git").exists():
            return above
    return folder


def _make(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    text = secrets.token_hex(32) + "\n"
    with durable.staged(path, len(text), mode=0o600) as (fd, temporary):
        os.fchmod(fd, 0o600)
        durable.write_all(fd, text.encode())
    try:
        # Another process may have made one meanwhile; the first stays.
        durable.claim(temporary, path)
    except FileExistsError:
        return
    durable.sync_folder(path.parent)


def _read(path: Path) -> bytes:
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        raise KeyRefused(
            f"privacy.key_file {path} has mode {mode:03o}: others may read it; expected 600. "
            f"Run `chmod 600 {path}`, and think of whether somebody has copied it."
        )
    text = path.read_text(encoding="ascii", errors="replace").strip()
    if len(text) < 32:
        raise KeyRefused(
            f"privacy.key_file {path} holds no key: expected at least 32 characters, got {len(text)}. "
            "Bring the right file back, or remove this one to have a new key made (every id changes then)."
        )
    try:
        return bytes.fromhex(text)
    except ValueError:
        return text.encode()
