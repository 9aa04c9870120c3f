"""Finding a model's tokenizer among its side files."""

from __future__ import annotations

from edgellm.errors import TokenizerError
from edgellm.sidefiles import SideFiles
from edgellm.text.tokenizer import Tokenizer
from edgellm.text.tokens_config import read_tokens_config


def load_tokenizer(files: SideFiles, *, vocab_size: int | None = None) -> Tokenizer:
    """The tokenizer of a model: tokenizer.json, else tokenizer.model, else vocab.json with merges.txt.

    Added tokens and names of special tokens are completed from tokenizer_config.json, special_tokens_map.json and
    added_tokens.json.

    Args:
        files: the small files of the model.
        vocab_size: rows of the embedding; a tokenizer with ids beyond is refused.

    Raises:
        TokenizerError: no tokenizer, or one that is damaged, hostile or not supported.
        ModelError: a damaged JSON file.
    """
    from edgellm.text import library_files, spm_tokenizer

    config = read_tokens_config(files)
    data = files.read(library_files.JSON_FILE)
    if data is not None:
        return library_files.load_tokenizer_json(files, data, config, vocab_size)
    data = files.read(spm_tokenizer.MODEL_FILE)
    if data is not None:
        return spm_tokenizer.load_sentencepiece(files, data, config, vocab_size)
    if library_files.VOCAB_FILE in files.names():
        return library_files.load_vocab_and_merges(files, config, vocab_size)
    raise TokenizerError(
        "no tokenizer found",
        file=files.locate(library_files.JSON_FILE),
        allowed="tokenizer.json, tokenizer.model, or vocab.json with merges.txt",
    )
