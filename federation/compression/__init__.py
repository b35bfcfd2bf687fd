"""What makes a payload smaller on its way, and what undoes it block by block. Pure; start with `codec`, then `frame`.

A `Codec` turns one vector (all elements of one dtype of a payload) into a body and reads it back in blocks of
`BLOCK_ELEMENTS`, so a receiver never holds a decoded payload whole. `encode_payload` wraps the bodies of a payload in a
frame that names its codec; `PayloadDecoder` reads a frame against the schema the receiver already has, and believes
nothing the frame claims. `feedback_for` tells what a site keeps of the error it made. Names and options of the codecs:
`registry`.
"""

from federation.compression.codec import BLOCK_ELEMENTS, Array, BlockDecoder, Codec, Source
from federation.compression.feedback import Feedback, feedback_for
from federation.compression.frame import (
    PayloadDecoder,
    decode_payload,
    encode_payload,
    max_payload_bytes,
    payload_damping,
    payload_omega,
)
from federation.compression.registry import codec_names, load_codec

__all__ = [
    "BLOCK_ELEMENTS",
    "Array",
    "BlockDecoder",
    "Codec",
    "Feedback",
    "PayloadDecoder",
    "Source",
    "codec_names",
    "decode_payload",
    "encode_payload",
    "feedback_for",
    "load_codec",
    "max_payload_bytes",
    "payload_damping",
    "payload_omega",
]
