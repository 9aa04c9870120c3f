"""Words to token ids and back: tokenizers, chat templates, streaming text, stop strings.

Third-party libraries are imported when a tokenizer is loaded or a template compiled, not before.
"""

from __future__ import annotations

from edgellm.text.added import AddedToken, Segment
from edgellm.text.chat import encode_chat, load_chat_template
from edgellm.text.load import load_tokenizer
from edgellm.text.stop import StopMatcher
from edgellm.text.stream import TextStream
from edgellm.text.template import ChatTemplate
from edgellm.text.tokenizer import Tokenizer

__all__ = [
    "AddedToken",
    "ChatTemplate",
    "Segment",
    "StopMatcher",
    "TextStream",
    "Tokenizer",
    "encode_chat",
    "load_chat_template",
    "load_tokenizer",
]
