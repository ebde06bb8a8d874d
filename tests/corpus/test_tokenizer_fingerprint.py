from __future__ import annotations

import copy
import json

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from logitstore.corpus import tokenizer_fingerprint

PARTS = ("vocabulary", "merges", "special_tokens", "segmentation")


def differing(left, right):
    return {part for part in (*PARTS, "digest") if left[part] != right[part]}


def edited(tokenizer, edit):
    """The tokenizer with its backend's description changed by ``edit``."""
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    edit(described)
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(described)), bos_token="<s>", eos_token="</s>"
    )


def test_saved_and_loaded_tokenizer_is_the_same(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert differing(tokenizer_fingerprint(tokenizer), tokenizer_fingerprint(loaded)) == set()


def test_use_does_not_change_the_fingerprint(tokenizer):
    used = copy.deepcopy(tokenizer)
    before = tokenizer_fingerprint(used)
    used.pad_token = used.eos_token
    used(["Once", "Once upon a time"], padding=True, truncation=True, max_length=3)
    assert tokenizer_fingerprint(used) == before


def test_fingerprint_is_json_with_the_largest_id_plus_one(tokenizer):
    fingerprint = tokenizer_fingerprint(tokenizer)
    assert json.loads(json.dumps(fingerprint)) == fingerprint
    assert fingerprint["vocab_size"] == max(tokenizer.get_vocab().values()) + 1
    assert fingerprint["class"] == type(tokenizer).__name__


def swap_two_ids(described):
    vocab = described["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]


def swap_two_merges(described):
    merges = described["model"]["merges"]
    merges[-1], merges[-2] = merges[-2], merges[-1]


def drop_pre_tokenizer(described):
    described["pre_tokenizer"] = None


@pytest.mark.parametrize(
    ("edit", "part"),
    [(swap_two_ids, "vocabulary"), (swap_two_merges, "merges"), (drop_pre_tokenizer, "segmentation")],
)
def test_a_change_shows_in_its_part_alone(tokenizer, edit, part):
    assert differing(tokenizer_fingerprint(edited(tokenizer, edit)), tokenizer_fingerprint(tokenizer)) == {
        part,
        "digest",
    }


def test_special_tokens_are_a_part(tokenizer):
    other = copy.deepcopy(tokenizer)
    other.eos_token = "<|im_end|>"
    assert differing(tokenizer_fingerprint(other), tokenizer_fingerprint(tokenizer)) == {"special_tokens", "digest"}


def test_chat_template_is_told_apart_but_not_in_the_digest(tokenizer):
    other = copy.deepcopy(tokenizer)
    other.chat_template = "{{ messages }}"
    left, right = tokenizer_fingerprint(other), tokenizer_fingerprint(tokenizer)
    assert differing(left, right) == set()
    assert left["chat_template"] is not None
    assert right["chat_template"] is None


def test_unigram_scores_count_and_there_are_no_merges():
    def unigram(score):
        backend = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0), ("b", score)], unk_id=0))
        backend.normalizer = normalizers.NFKC()
        return tokenizer_fingerprint(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>"))

    assert unigram(-2.0)["merges"] is None
    assert differing(unigram(-2.0), unigram(-3.0)) == {"segmentation", "digest"}


class SlowTokenizer:
    """What a slow tokenizer offers of the interface."""

    special_tokens_map = {"eos_token": "</s>", "additional_special_tokens": ["<x>"]}  # noqa: RUF012
    added_tokens_decoder = {1: AddedToken("</s>", special=True)}  # noqa: RUF012

    def get_vocab(self):
        return {"a": 0, "</s>": 1, "<x>": 5}


def test_slow_tokenizers_have_vocabulary_and_special_tokens():
    fingerprint = tokenizer_fingerprint(SlowTokenizer())
    assert fingerprint["vocab_size"] == 6
    assert fingerprint["merges"] is None
    assert fingerprint["segmentation"] is None
    assert fingerprint["vocabulary"] != fingerprint["special_tokens"]
