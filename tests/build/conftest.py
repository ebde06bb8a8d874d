from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import threading
from typing import TYPE_CHECKING, Any

import pytest
import tokenizers
import torch
import transformers

from logitstore.build import BuildConfig, BuildSummary, GenerationConfig, build
from logitstore.corpus import CorpusConfig
from logitstore.select import Sampling, Selection
from logitstore.teacher import TeacherConfig, load_teacher

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WORDS = ("bell", "fox", "metal", "round", "shiny", "the", "time", "upon", "über", "世界")
CONTEXT = 96
PADDED_VOCAB_SIZE = 320
# So many of the 290 tokens that most texts end before their limit, at different lengths.
END = tuple("abcdefghijklmnopqrst")


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    pass


@pytest.fixture
def our_threads() -> Callable[[], list[str]]:
    """Names of this library's threads that have come with the test; those of other tests' stores may go on."""
    others = set(threading.enumerate())
    return lambda: [
        thread.name for thread in set(threading.enumerate()) - others if thread.name.startswith("logitstore")
    ]


def save_tokenizer(folder: Path, vocab_size: int) -> None:
    """Byte-level BPE that can write any text and puts <s> before it."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([" ".join(WORDS), "User: Hello!\n\nAssistant: Hi, how can I help?"], trainer)
    backend.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", clean_up_tokenization_spaces=False
    ).save_pretrained(folder)


def save_teacher(folder: Path, *, seed: int = 0, tokenizer_size: int = 290, nan_token: int | None = None) -> str:
    """Save a random Llama that says exactly 0 about every third token: ties on every row, many times the cut."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.LlamaConfig(
            vocab_size=PADDED_VOCAB_SIZE, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=CONTEXT, bos_token_id=0,
            eos_token_id=1, pad_token_id=None, initializer_range=0.4, tie_word_embeddings=False,
        )
    )  # fmt: skip
    with torch.no_grad():
        model.lm_head.weight[::3] = 0.0
        # Padding of the vocabulary that would win every row if it were not cut off.
        model.lm_head.weight[tokenizer_size:] *= 20.0
        if nan_token is not None:
            model.get_input_embeddings().weight[nan_token] = torch.nan
    model.save_pretrained(folder)
    save_tokenizer(folder, tokenizer_size)
    return str(folder)


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture
def make_teacher(tmp_path: Path) -> Callable[..., str]:
    """Save another tiny teacher under a name."""

    def make(name: str, **changes: Any) -> str:
        return save_teacher(tmp_path / name, **changes)

    return make


@pytest.fixture(scope="session")
def _loaded() -> Any:
    return functools.cache(load_teacher)


@pytest.fixture
def load_once(_loaded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Load each teacher once for all tests that build many stores."""
    monkeypatch.setattr("logitstore.build.run.load_teacher", _loaded)


@pytest.fixture
def write_corpus(tmp_path: Path) -> Callable[..., str]:
    def write(records: list[Any], name: str = "corpus.jsonl") -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [record if isinstance(record, dict) else {"text": record} for record in records]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def texts() -> Callable[..., list[str]]:
    """Make texts of so many words each; a word is one to three tokens."""

    def make(*words: int, seed: int = 0) -> list[str]:
        generator = torch.Generator().manual_seed(seed)
        drawn = [torch.randint(len(WORDS), (count,), generator=generator).tolist() for count in words]
        return [" ".join(WORDS[number] for number in numbers) for numbers in drawn]

    return make


@pytest.fixture
def configure(teacher_folder: str) -> Callable[..., BuildConfig]:
    """Make a configuration for a corpus; keywords go to whichever part has them."""
    parts = {"teacher": TeacherConfig, "corpus": CorpusConfig, "selection": Selection}

    def make(data: str, **settings: Any) -> BuildConfig:
        given: dict[str, dict[str, Any]] = {
            "teacher": {"model": teacher_folder, "dtype": "float32", "device": "cpu"},
            "corpus": {"data": (data,)},
            "selection": {},
        }
        own: dict[str, Any] = {}
        for name, value in settings.items():
            part = next((p for p, kind in parts.items() if name in {f.name for f in dataclasses.fields(kind)}), None)
            (own if part is None else given[part])[name] = value
        if not given["selection"]:
            given["selection"] = {"top_k": 8}
        return BuildConfig(**{part: kind(**given[part]) for part, kind in parts.items()}, **own)

    return make


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., BuildSummary]:
    def run(config: BuildConfig, name: str = "store.zarr", **options: Any) -> BuildSummary:
        return build(config, tmp_path / name, **options)

    return run


@pytest.fixture
def interrupt_at_call() -> Callable[[BuildConfig, Path, int], None]:
    """Start a build that is interrupted at a call of `on_progress`; the first is number 1."""

    def interrupt_at_call(config: BuildConfig, store: Path, last: int) -> None:
        calls = itertools.count(1)

        def interrupt(progress: Any) -> None:
            if next(calls) == last:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            build(config, store, on_progress=interrupt)

    return interrupt_at_call


@pytest.fixture
def files_of() -> Callable[[Path], dict[str, bytes]]:
    """Read every file of a store but the record of its runs, which has times in it."""

    def read(store: Path) -> dict[str, bytes]:
        files = {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*") if path.is_file()}
        files.pop("build.json", None)
        return files

    return read


@pytest.fixture
def configured(configure: Any) -> Callable[..., BuildConfig]:
    """Make a configuration that goes on with prompts; without any, it says how many documents."""

    def make(data: str | None = None, **settings: Any) -> BuildConfig:
        names = {field.name for field in dataclasses.fields(GenerationConfig)}
        asked = {name: settings.pop(name) for name in names & set(settings)}
        drawn = [name for name in settings if name.startswith("sampling_")]
        sampling = {name.removeprefix("sampling_"): settings.pop(name) for name in drawn}
        generation = GenerationConfig(
            **({"max_new_tokens": 25, "end_tokens": END} | asked), sampling=Sampling(**sampling)
        )
        config = configure(data or "none", prompts=data is not None, **settings,
                           **({"generation": generation} if data else {}))  # fmt: skip
        if data:
            return config  # type: ignore[no-any-return]
        corpus = dataclasses.replace(config.corpus, data=(), prompts=True)
        return dataclasses.replace(config, corpus=corpus, generation=generation)

    return make


@pytest.fixture
def prompts(write_corpus: Any, texts: Any) -> str:
    return str(write_corpus(texts(6, 1, 9, 3, 3, 14, 2)))
