import base64
import os

import pytest
from pydantic import SecretStr

from app.access.sealing import seal, unseal
from app.errors import Broken
from app.ids import new_id
from app.settings import KeyEncryptionKey

SECRET = SecretStr("sk-canary-4711")


def make_kek() -> KeyEncryptionKey:
    return KeyEncryptionKey(base64.b64encode(os.urandom(32)).decode())


def test_what_was_sealed_opens_again_and_shows_nothing_of_the_secret() -> None:
    kek, row = make_kek(), {"key_id": new_id(), "owner_id": new_id(), "base_url": "https://a"}
    sealed = seal(SECRET, kek, **row)
    assert b"canary" not in sealed
    assert unseal(sealed, kek, **row) == SECRET
    assert seal(SECRET, kek, **row) != sealed  # a fresh nonce each time


@pytest.mark.parametrize("changed", ["key_id", "owner_id", "base_url", "kek", "bytes"])
def test_a_ciphertext_that_was_moved_or_altered_does_not_open(changed: str) -> None:
    kek, row = make_kek(), {"key_id": new_id(), "owner_id": new_id(), "base_url": "https://a"}
    sealed = seal(SECRET, kek, **row)
    if changed == "kek":
        kek = make_kek()
    elif changed == "bytes":
        sealed = sealed[:-1] + bytes([sealed[-1] ^ 1])
    else:
        row[changed] = "https://evil" if changed == "base_url" else new_id()
    with pytest.raises(Broken) as error:
        unseal(sealed, kek, **row)
    assert "canary" not in str(error.value)


@pytest.mark.parametrize("text", ["", "short", base64.b64encode(b"x" * 31).decode(), "!" * 44])
def test_a_key_encryption_key_that_is_not_32_bytes_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="32 random bytes"):
        KeyEncryptionKey(text)


def test_a_key_encryption_key_never_shows_itself() -> None:
    encoded = base64.b64encode(b"k" * 32).decode()
    assert encoded not in repr(KeyEncryptionKey(encoded))
