"""The guide model's conversations (tools/guide) and its published folder (models/guide) agree with themselves."""

from __future__ import annotations

import json
import random
import re
import struct
import sys
from itertools import islice
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
GUIDE = ROOT / "models" / "guide"
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from tools.guide import stories, sums, texts  # noqa: E402
from tools.guide.cases import answers_intent, in_conversation_cases, single_turn_cases  # noqa: E402
from tools.guide.conversations import Generator  # noqa: E402
from tools.guide.grammar import expand, macros  # noqa: E402
from tools.guide.intents import COMMANDS, all_intents, commands_in, heldout_wordings, normalized  # noqa: E402

CONVERSATIONS = 3000
# Words in backticks that stand for what a person puts in, or that other programs own.
OPTIONS = {
    "--bits", "--group-size", "--method", "--prune", "--dry-run", "--resume", "--overwrite", "--tensors", "--program",
    "--json", "--seed", "--stop", "--stats", "--device", "--backend", "--no-history", "--debug", "--help", "--load",
    "--system", "--temperature", "--top-k", "--top-p", "--repetition-penalty", "--threads", "--context", "-n", "-v",
}  # fmt: skip
SLASH_COMMANDS = {
    "/help", "/clear", "/retry", "/edit", "/system", "/set", "/show", "/stats", "/save", "/load", "/copy", "/bye",
    "/exit", "/quit",
}  # fmt: skip


@pytest.fixture(scope="module")
def drawn():
    return list(islice(Generator(1), CONVERSATIONS))


def test_the_same_seed_gives_the_same_conversations(drawn):
    assert list(islice(Generator(1), 100)) == drawn[:100]
    assert list(islice(Generator(2), 100)) != drawn[:100]


def test_no_heldout_wording_is_trained_on(drawn):
    unseen = heldout_wordings()
    assert not [turn.question for made in drawn for turn in made.turns if normalized(turn.question) in unseen]


def test_the_patterns_themselves_never_give_a_heldout_wording():
    rng, unseen = random.Random(3), heldout_wordings()
    patterns = [pattern for intent in all_intents() for pattern in [*intent.questions, *intent.follow_ups]]
    made = {normalized(expand(pattern, rng, macros())) for pattern in patterns for _ in range(15)}
    assert not made & unseen


def test_heldout_sums_are_asked_and_not_trained_on(drawn):
    answers = [turn.answer for made in drawn for turn in made.turns if turn.topic == "sum"]
    trained = {tuple(re.search(r"(-?\d+) ([-+x]) (\d+) is -?\d+\.$", answer).groups()) for answer in answers}
    assert len(trained) > 500
    assert not [pair for pair in trained if sums.Sum(int(pair[0]), pair[1], int(pair[2])).heldout]


def test_every_intent_has_heldout_questions_and_answers_with_its_facts():
    for intent in all_intents():
        assert len(intent.heldout) >= 5, intent.name
        assert all(answers_intent(intent, answer) for answer in intent.answers), intent.name


def test_the_required_facts_tell_help_intents_apart():
    intents = [intent for intent in all_intents() if intent.group not in ("beyond", "talk")]
    mistaken = {
        (asked.name, other.name)
        for asked in intents
        for other in intents
        if other.name != asked.name and answers_intent(asked, other.answers[0])
    }
    assert mistaken <= {("damaged", "missing_shard"), ("check_verify", "nan")}


def test_answers_name_only_commands_and_options_that_exist(drawn):
    for made in drawn:
        for turn in made.turns:
            assert commands_in(turn.answer) <= COMMANDS, turn.answer
            quoted = re.findall(r"`([^`]*)`", turn.answer)
            assert {word for text in quoted for word in re.findall(r"(?<!\S)--?[a-z][a-z-]*", text)} <= OPTIONS
            assert {word for text in quoted for word in re.findall(r"^/[a-z]+", text)} <= SLASH_COMMANDS


def test_answers_are_whole_sentences(drawn):
    for made in drawn:
        for turn in made.turns:
            assert turn.answer[-1] in ".?!", turn.answer
            assert turn.topic == "sum" or len(turn.answer.split()) >= 4, turn.answer
            assert "  " not in turn.answer
            assert not re.search(r"[\[\]<>{}]", turn.answer.replace('["END"]', ""))


def test_each_step_of_each_sum_is_right(drawn):
    steps = [
        step
        for made in drawn
        for turn in made.turns
        if turn.topic == "sum"
        for step in re.findall(r"(-?\d+) ([-+x]) (\d+) is (-?\d+)", turn.answer)
    ]
    assert len(steps) > 1000
    for a, sign, b, result in steps:
        assert {"+": int(a) + int(b), "-": int(a) - int(b), "x": int(a) * int(b)}[sign] == int(result)


def test_a_story_keeps_to_its_hero_and_varies():
    rng = random.Random(4)
    told = {stories.story(rng, hero="fox") for _ in range(200)}
    assert len(told) == 200
    assert all("fox" in text and text.count(".") >= 4 and not re.search(r"\ba [aeio]", text) for text in told)


def test_the_examination_is_always_the_same():
    assert [case.question for case in single_turn_cases()] == [case.question for case in single_turn_cases()]
    assert [case.messages() for case in in_conversation_cases()] == [c.messages() for c in in_conversation_cases()]


def _header(path: Path) -> dict:
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return json.loads(file.read(length))


def test_published_config_and_tensors_agree():
    config = json.loads((GUIDE / "config.json").read_text())
    hidden, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    width = config["num_attention_heads"] * config["head_dim"]
    narrow = config["num_key_value_heads"] * config["head_dim"]
    quantization = config["quantization_config"]
    bits, group = quantization["bits"], quantization["group_size"]
    expected = {"model.embed_tokens.weight": [config["vocab_size"], hidden], "model.norm.weight": [hidden]}
    for i in range(layers):
        for name in ("input_layernorm", "post_attention_layernorm"):
            expected[f"model.layers.{i}.{name}.weight"] = [hidden]
        for name, (outputs, inputs) in {
            "self_attn.q_proj": [width, hidden],
            "self_attn.k_proj": [narrow, hidden],
            "self_attn.v_proj": [narrow, hidden],
            "self_attn.o_proj": [hidden, width],
            "mlp.gate_proj": [inner, hidden],
            "mlp.up_proj": [inner, hidden],
            "mlp.down_proj": [hidden, inner],
        }.items():
            stem = f"model.layers.{i}.{name}"
            expected[f"{stem}.qweight"] = [inputs * bits // 32, outputs]
            expected[f"{stem}.qzeros"] = [inputs // group, outputs * bits // 32]
            expected[f"{stem}.scales"] = [inputs // group, outputs]
            expected[f"{stem}.g_idx"] = [inputs]
    header = _header(GUIDE / "model.safetensors")
    header.pop("__metadata__")
    assert {name: entry["shape"] for name, entry in header.items()} == expected
    assert {entry["dtype"] for entry in header.values()} == {"F16", "I32"}
    assert (GUIDE / "model.safetensors").stat().st_size < 3 << 20
    assert all(size % 128 == 0 for size in (hidden, inner, width))
    assert config["tie_word_embeddings"] is True
    assert config["architectures"] == ["LlamaForCausalLM"]


def test_published_tokenizer_keeps_text_and_hides_the_marks():
    sentencepiece = pytest.importorskip("sentencepiece")
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(GUIDE / "tokenizer.model"))
    config = json.loads((GUIDE / "config.json").read_text())
    assert pieces.get_piece_size() == config["vocab_size"]
    record = json.loads((GUIDE / "tokenizer_config.json").read_text())
    marks = {int(i): entry["content"] for i, entry in record["added_tokens_decoder"].items()}
    assert [pieces.id_to_piece(i) for i in marks] == list(marks.values())
    assert marks[config["eos_token_id"]] == record["eos_token"] == "<|end|>"
    assert marks[config["bos_token_id"]] == record["bos_token"]
    for text in ("What is 17 + 25?", " two  spaces\nand a line", "naïve café 日本 🙂", "`edgellm chat MODEL`"):
        assert pieces.decode(pieces.encode(text)) == text
    assert not set(pieces.encode("<|user|>Hi<|end|><s></s>")) & (set(marks) - {0})


def test_published_template_follows_the_trained_form():
    jinja2 = pytest.importorskip("jinja2")
    from tools.guide.vocabulary import CHAT_TEMPLATE, Vocabulary

    record = json.loads((GUIDE / "tokenizer_config.json").read_text())
    assert record["chat_template"] == CHAT_TEMPLATE

    def raise_exception(message):
        raise ValueError(message)

    template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(CHAT_TEMPLATE)
    vocabulary = Vocabulary(GUIDE / "tokenizer.model")
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": " Hello "},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "Bye"},
    ]
    for said in (messages, messages[1:], messages[:2]):
        text = template.render(
            messages=said, bos_token="<s>", add_generation_prompt=True, raise_exception=raise_exception
        )
        ids: list[int] = []
        for part in re.split(r"(<s>|<\|[a-z]+\|>)", text):
            known = vocabulary.pieces.piece_to_id(part)
            ids += [known] if part.startswith("<") else vocabulary.pieces.encode(part)
        assert ids == vocabulary.encode(said, generate=True)[0]
    with pytest.raises(ValueError, match="Unknown role: tool"):
        template.render(messages=[{"role": "tool", "content": ""}], bos_token="<s>", raise_exception=raise_exception)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib reads the recipe from Python 3.11 on")
def test_the_published_bits_are_those_of_the_recipe():
    from edgellm.convert.recipe import make_recipe, read_recipe

    stated = json.loads((GUIDE / "config.json").read_text())["quantization_config"]
    recipe = make_recipe(read_recipe(ROOT / "tools" / "guide" / "quantize.toml"))
    assert stated["quant_method"] == recipe.method
    for key in ("bits", "group_size", "sym", "desc_act", "static_groups"):
        assert stated[key] == getattr(recipe.scheme, key)


def test_texts_for_a_conversion_keep_held_out_wordings_out_of_the_calibration():
    unseen = heldout_wordings()
    asked = [said["content"] for made in texts.calibration(300) for said in made if said["role"] == "user"]
    assert not [question for question in asked if normalized(question) in unseen]
    assert len(texts.held_out()) > len(unseen)
    assert texts.held_out() == texts.held_out()


def test_the_card_names_its_evidence():
    card = (GUIDE / "card.md").read_text(encoding="utf-8")
    for part in ("MIT", "tools.guide.train", "tools/guide/quantize.toml", "held-out", "seed", "known limits"):
        assert part.lower() in card.lower(), part
