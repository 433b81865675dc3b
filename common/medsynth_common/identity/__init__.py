"""Who is speaking: signing keys, and the seals that plans and updates carry (`sealing`)."""

from medsynth_common.identity.keys import SigningKey, VerifyKey
from medsynth_common.identity.seal import Seal

__all__ = ["Seal", "SigningKey", "VerifyKey"]
