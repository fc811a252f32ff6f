"""Embedding keys at rest: AES-256-GCM whose associated data binds the ciphertext to its row.

NIST SP 800-38D with a random 96-bit nonce a seal. A ciphertext copied to another row, owner or base URL does
not open.
"""

import hmac
import os
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic import SecretStr

from app.errors import Broken
from app.settings import KeyEncryptionKey

_NONCE_BYTES = 12


def _bound_to(key_id: UUID, owner_id: UUID, base_url: str) -> bytes:
    return b"\x00".join((key_id.bytes, owner_id.bytes, base_url.encode()))


def seal(secret: SecretStr, kek: KeyEncryptionKey, *, key_id: UUID, owner_id: UUID, base_url: str) -> bytes:
    """Nonce and ciphertext of `secret`, valid only for this key id, owner and base URL."""
    nonce = os.urandom(_NONCE_BYTES)
    plain = secret.get_secret_value().encode()
    return nonce + AESGCM(kek.material).encrypt(nonce, plain, _bound_to(key_id, owner_id, base_url))


def unseal(sealed: bytes, kek: KeyEncryptionKey, *, key_id: UUID, owner_id: UUID, base_url: str) -> SecretStr:
    """The secret that `seal` took.

    Raises:
        Broken: sealed with another key-encryption key, or moved here from another row.
    """
    nonce, ciphertext = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
    try:
        plain = AESGCM(kek.material).decrypt(nonce, ciphertext, _bound_to(key_id, owner_id, base_url))
    except InvalidTag:
        raise Broken(f"embedding key {key_id} does not open: its row or the key-encryption key changed") from None
    return SecretStr(plain.decode())


def keyed_digest(secret: SecretStr, kek: KeyEncryptionKey) -> bytes:
    """What tells one secret from another and can be stored: without the key nobody can try out guesses on it."""
    return hmac.digest(kek.material, b"sluice-digest:" + secret.get_secret_value().encode(), "sha256")
