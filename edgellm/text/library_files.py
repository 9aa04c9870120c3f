"""tokenizer.json, or vocab.json with merges.txt, checked and handed to the `tokenizers` library."""

from __future__ import annotations

import base64
import binascii
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgellm.errors import TokenizerError
from edgellm.jsonfile import parse_json
from edgellm.sidefiles import MAX_SIDE_FILE_BYTES, SideFiles, read_side_json
from edgellm.text.boundary import MAX_EXPANSION, check_charsmap, library_errors
from edgellm.text.bpe_tables import BpeTables, tables_of
from edgellm.text.bpe_words import QWEN2_WORDS
from edgellm.text.known_files import (
    Facts,
    library_build,
    note_of,
    recall,
    recall_tables,
    remember,
    remember_tables,
)
from edgellm.text.library_tokenizer import LibraryTokenizer
from edgellm.text.panics import may_panic
from edgellm.text.quick_tokenizer import QuickTokenizer, agree
from edgellm.text.tokenizer import Tokenizer
from edgellm.text.tokens_config import CONFIG_FILE, TokensConfig

if TYPE_CHECKING:
    import tokenizers

JSON_FILE, VOCAB_FILE, MERGES_FILE = "tokenizer.json", "vocab.json", "merges.txt"
_FAMILIES = ("GPT2", "Qwen2")


def load_tokenizer_json(files: SideFiles, data: bytes, config: TokensConfig, rows: int | None) -> Tokenizer:
    """The tokenizer of a tokenizer.json; its truncation, padding and dropout are for training and ignored."""
    file, note = files.locate(JSON_FILE), note_of(data, library_build())
    tables = recall_tables(note)
    load = partial(_load_library, file, data, note, config, rows)
    if tables is None or not _knows_added(tables, config):
        return load()
    return QuickTokenizer(tables, kind=JSON_FILE, file=file, rows=rows, config=config, library=load)


def _knows_added(tables: BpeTables, config: TokensConfig) -> bool:
    """Whether the config files name no token that the library would have to add, or refuse."""
    known = {token.content: token.id for token in tables.facts.added}
    return all(known.get(token.content) == token.id for token in config.added)


def _load_library(
    file: str, data: bytes, note: Path | None, config: TokensConfig, rows: int | None
) -> LibraryTokenizer:
    import tokenizers

    facts = recall(note)
    table = parse_json(data, file) if facts is None else {}
    with library_errors(file, "cannot be read as a tokenizer.json"):
        library = tokenizers.Tokenizer.from_buffer(data)
        library.no_truncation()
        library.no_padding()
        if getattr(library.model, "dropout", None) is not None:
            library.model.dropout = None  # merges left out at random are for training, too
    if facts is None:
        facts = _looked_through(table, library, file)
        remember(note, facts)
        if note is not None:
            _make_tables(table, library, facts, file, note)
    return LibraryTokenizer(
        library,
        kind=JSON_FILE,
        file=file,
        size=facts.size,
        rows=rows,
        config=config,
        decoder=facts.decoder,
        may_panic=facts.may_panic,
    )


def _make_tables(table: dict[str, Any], library: tokenizers.Tokenizer, facts: Facts, file: str, note: Path) -> None:
    """Keep tables for the next start, if the file's tokenizer is one that they can stand for."""
    plain = LibraryTokenizer(
        library,
        kind=JSON_FILE,
        file=file,
        size=facts.size,
        rows=None,
        config=TokensConfig(),
        decoder=facts.decoder,
        may_panic=facts.may_panic,
    )
    tables = tables_of(table, facts.size, plain.added_tokens, *plain.template_ids())
    if tables is not None and agree(tables, plain):
        remember_tables(note, tables)


def _looked_through(table: dict[str, Any], library: tokenizers.Tokenizer, file: str) -> Facts:
    """What a tokenizer.json says. Raises `TokenizerError` for one that must not be used."""
    check_normalizer(table.get("normalizer"), file)
    _check_post_processor(table.get("post_processor"), file)
    for entry in table.get("added_tokens") or []:
        if library.token_to_id(entry["content"]) != entry["id"]:
            raise TokenizerError(
                "an added token has an id that is taken or leaves a gap",
                file=file,
                key=f"added_tokens.{entry['content']}",
                found=entry["id"],
            )
    decoder = table.get("decoder")
    size = _size(library, _vocabulary(table.get("model")), file)
    return Facts(size, may_panic(table.get("normalizer"), table.get("pre_tokenizer")), decoder)


def _size(library: tokenizers.Tokenizer, vocabulary: dict[str, int] | None, file: str) -> int:
    """The highest id, + 1. Raises `TokenizerError` where there is none, or two tokens share one."""
    if vocabulary is None:
        vocabulary = library.get_vocab(with_added_tokens=False)
    added = {token.content: token_id for token_id, token in library.get_added_tokens_decoder().items()}
    vocabulary = {**vocabulary, **added}
    ids = set(vocabulary.values())
    if len(ids) != len(vocabulary) or not ids:
        raise TokenizerError("two tokens have the same id" if ids else "vocabulary is empty", file=file)
    return max(ids) + 1


def _vocabulary(model: Any) -> dict[str, int] | None:
    """The model's own tokens where tokenizer.json has them as a table; the library takes as long for a copy of its own
    as Python for the whole file."""
    match model:
        case {"type": "BPE" | "WordLevel" | "WordPiece", "vocab": dict(vocabulary)}:
            return vocabulary
    return None


def load_vocab_and_merges(files: SideFiles, config: TokensConfig, rows: int | None) -> LibraryTokenizer:
    """A byte-level BPE from vocab.json and merges.txt; words are cut as the tokenizer class of the config says."""
    import tokenizers

    file = files.locate(VOCAB_FILE)
    vocab = read_side_json(files, VOCAB_FILE, MAX_SIDE_FILE_BYTES) or {}
    for token, token_id in vocab.items():
        if type(token_id) is not int or not 0 <= token_id < 1 << 22:
            raise TokenizerError("token id out of range", file=file, key=token, found=token_id)
    merges = _read_merges(files)
    family = _family(files, config)
    if "<|endoftext|>" in vocab or family == "Qwen2":
        for name in ("eos_token", "unk_token") if family == "Qwen2" else ("bos_token", "eos_token", "unk_token"):
            config.strings.setdefault(name, "<|endoftext|>")
    with library_errors(file, "vocabulary and merges cannot be used"):
        library = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, merges))
        _set_words(library, family, config.flag("add_prefix_space", False))
        for text in config.main_strings():
            if text in vocab:
                library.add_special_tokens([tokenizers.AddedToken(text, normalized=False, special=True)])
    size = _size(library, None, file)
    kind, decoder = "vocab.json+merges.txt", {"type": "ByteLevel"}
    return LibraryTokenizer(library, kind=kind, file=file, size=size, rows=rows, config=config, decoder=decoder)


def _read_merges(files: SideFiles) -> list[tuple[str, str]]:
    file = files.locate(MERGES_FILE)
    data = files.read(MERGES_FILE)
    if data is None:
        raise TokenizerError("missing beside vocab.json", file=file)
    try:
        lines = data.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"not UTF-8 at byte {error.start}", file=file) from None
    merges = []
    for number, line in enumerate(lines, start=1):
        line = line.removesuffix("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        left, _, right = line.partition(" ")
        if not left or not right or " " in right:
            raise TokenizerError("a merge must be two tokens", file=file, key=f"line {number}", found=line)
        merges.append((left, right))
    return merges


def _family(files: SideFiles, config: TokensConfig) -> str:
    name = config.values.get("tokenizer_class")
    if name is None:  # older folders name the class only through the model
        model = (read_side_json(files, "config.json") or {}).get("model_type", "gpt2")
        name = "Qwen2Tokenizer" if str(model).startswith("qwen") else "GPT2Tokenizer"
    family = str(name).removesuffix("Fast").removesuffix("Tokenizer")
    if family not in _FAMILIES:
        raise TokenizerError(
            "unknown tokenizer class for vocab.json and merges.txt",
            file=files.locate(CONFIG_FILE),
            key="tokenizer_class",
            found=name,
            allowed=", ".join(f"{family}Tokenizer" for family in _FAMILIES),
            hint="A tokenizer.json beside the model is read whatever its class.",
        )
    return family


def _set_words(library: tokenizers.Tokenizer, family: str, add_prefix_space: bool) -> None:
    from tokenizers import Regex, normalizers, pre_tokenizers

    if family == "GPT2":
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
        return
    library.normalizer = normalizers.NFC()
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=False),
        ]
    )


def check_normalizer(normalizer: Any, file: str) -> None:
    """Refuses a normalizer that can make more than `MAX_EXPANSION` characters of one. Raises `TokenizerError`."""
    if _expansion(normalizer, file) > MAX_EXPANSION:
        raise TokenizerError(
            "normalizer makes too much text of one character",
            file=file,
            key="normalizer",
            allowed=f"{MAX_EXPANSION} times",
        )


def _expansion(node: Any, file: str, depth: int = 0) -> int:
    if not isinstance(node, dict):
        return 1
    if depth > 16:
        raise TokenizerError("normalizer is nested too deeply", file=file, key="normalizer")
    match node:
        case {"type": "Sequence", "normalizers": list(steps)}:
            product = 1
            for step in steps:
                product = min(product * _expansion(step, file, depth + 1), MAX_EXPANSION + 1)
            return product
        case {"type": "Replace", "content": str(content)}:
            return max(1, len(content))
        case {"type": "Prepend", "prepend": str(prefix)}:
            return 1 if len(prefix) <= MAX_EXPANSION else len(prefix)
        case {"type": "Precompiled", "precompiled_charsmap": str(text)}:
            try:
                check_charsmap(base64.b64decode(text, validate=True), file)
            except binascii.Error:
                raise TokenizerError("precompiled_charsmap is not base64", file=file, key="normalizer") from None
    return 1


def _check_post_processor(node: Any, file: str, depth: int = 0) -> None:
    """The library panics at the first text when a template names a special token that it does not define."""
    if not isinstance(node, dict) or depth > 16:
        return
    for step in node.get("processors") or []:
        _check_post_processor(step, file, depth + 1)
    defined = node.get("special_tokens") or {}
    for piece in (
        [*(node.get("single") or []), *(node.get("pair") or [])] if node.get("type") == "TemplateProcessing" else []
    ):
        name = piece.get("SpecialToken", {}).get("id") if isinstance(piece, dict) else None
        if name is not None and name not in defined:
            raise TokenizerError(
                "post_processor names a special token it does not define",
                file=file,
                key="post_processor.special_tokens",
                found=name,
            )
