"""Greedy decoding in batches: the text of one prompt at a time, ended by the stop strings, resumed after a kill."""

import importlib.util
import json
import re
import subprocess
import sys

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from codeact_lib.errors import EvaluationError, ModelError
from codeact_lib.evaluation.decoding import StopStrings, TransformersModel, growing_cache
from codeact_lib.evaluation.generation import cut, generate_solutions
from codeact_lib.prompts import PROTOCOLS, TEMPLATES, benchmark_instruction, get_protocol, task_kind, tokenize_example

TEXTS = ["def add(a, b):\n    return a + b\n```\n### Instruction:\nWrite a Python function\n### Response:\n```python\n"]


@pytest.fixture(scope="module")
def tokenizer():
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>", "<pad>"]
    bpe.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        **sizes,
        num_key_value_heads=2,
        initializer_range=0.4,  # sharp logits: no ties that rounding could turn
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config).eval()


def tasks(n=7):
    words = "Write a function that adds the numbers of a list and returns the sum".split()
    rows = [(f"MiniMbpp/{9000 + i}", f'"""\n{" ".join(words[: 3 + 2 * i])}\n"""', f"f{i}") for i in range(n)]
    return [{"task_id": task_id, "prompt": prompt, "entry_point": name} for task_id, prompt, name in rows]


def generate(model, tokenizer, path, **options):
    options = {"max_new_tokens": 24, "batch_size": 3, "progress": None, **options}
    asked = options.pop("tasks", tasks())
    return generate_solutions(model, tokenizer, asked, "deepseek-coder", output_path=path, **options)


def one_at_a_time(model, ids, n):
    """Greedy decoding without batch, padding or cache."""
    for _ in range(n):
        with torch.no_grad():
            token = int(model(torch.tensor([ids])).logits[0, -1].argmax())
        if token == model.config.eos_token_id:
            break
        ids = [*ids, token]
    return ids


def test_a_batch_gives_what_one_prompt_at_a_time_gives(model, tokenizer):
    prompts = [[5 + i, 40, 41 + i, *range(60, 60 + 3 * i)] for i in range(6)]
    together = TransformersModel(model, tokenizer).greedy(prompts, 30, ())
    assert [p + t for p, t in zip(prompts, together, strict=True)] == [one_at_a_time(model, p, 30) for p in prompts]


def test_rows_that_end_early_leave_the_others_unchanged(model, tokenizer):
    """An end token that some rows reach soon makes them leave the batch; what the rest says stays the same."""
    prompts = [[5 + i, 40, 41 + i, *range(60, 60 + 3 * i)] for i in range(6)]
    free = [one_at_a_time(model, p, 30)[len(p) :] for p in prompts]
    early = {free[1][2], free[2][9], free[4][1]}
    model.generation_config.eos_token_id = sorted(early)
    try:
        answers = TransformersModel(model, tokenizer).greedy(prompts, 30, ())
    finally:
        model.generation_config.eos_token_id = model.config.eos_token_id
    ends = [next((at for at, token in enumerate(row) if token in early), len(row)) for row in free]
    assert answers == [row[:at] for row, at in zip(free, ends, strict=True)]
    assert len(set(map(len, answers))) > 2


def test_the_growing_cache_holds_what_the_stock_cache_holds(model):
    from transformers import DynamicCache

    ours, stock = growing_cache(model), DynamicCache(config=model.config)
    for layer in range(2):
        for length in (7, 1, 1, 9, 1):
            keys, values = torch.randn(3, 2, length, 8), torch.randn(3, 2, length, 8)
            for a, b in zip(ours.update(keys, values, layer), stock.update(keys, values, layer), strict=True):
                assert torch.equal(a, b)
        for cache in (ours, stock):
            cache.layers[layer].batch_select_indices(torch.tensor([0, 2]))
        keys = torch.randn(2, 2, 1, 8)
        assert torch.equal(ours.update(keys, keys, layer)[0], stock.update(keys, keys, layer)[0])
    assert ours.get_seq_length() == 20


def test_the_batch_size_and_the_order_of_tasks_change_no_solution(model, tokenizer, tmp_path):
    results = [generate(model, tokenizer, tmp_path / f"{size}.jsonl", batch_size=size) for size in (1, 3, 7)]
    assert results[0] == results[1] == results[2]
    backwards = generate(model, tokenizer, tmp_path / "back.jsonl", tasks=tasks()[::-1])
    assert backwards == results[0][::-1]


def test_a_batch_that_memory_does_not_hold_is_halved_until_it_fits(model, tokenizer, tmp_path, monkeypatch):
    wanted, sizes = generate(model, tokenizer, tmp_path / "whole.jsonl", batch_size=7), []

    greedy = TransformersModel.greedy

    def with_little_memory(self, prompts, *rules):
        if len(prompts) > room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        sizes.append(len(prompts))
        return greedy(self, prompts, *rules)

    monkeypatch.setattr(TransformersModel, "greedy", with_little_memory)
    room = 2
    assert generate(model, tokenizer, tmp_path / "parts.jsonl", batch_size=7) == wanted
    assert sizes == [1] * 7  # 7, 3, and from there on 1
    room = 0
    with pytest.raises(ModelError, match="single answer: take a smaller"):
        generate(model, tokenizer, tmp_path / "none.jsonl", batch_size=7)


@pytest.mark.parametrize("stop", [("\n```",), ("ab", "\ndef "), ("é",)])
def test_stop_strings_are_found_at_the_token_that_completes_them(tokenizer, stop):
    for text in ("x = 1\n```\nmore", "\n```", "a\nab b", "x\ndef y", "été", "no stop here", "``` x"):
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        stops = StopStrings(tokenizer, stop)
        found = next((n for n in range(1, len(tokens) + 1) if stops.reached(tokens[:n])), None)
        whole = "\n" + text  # the opening of the answer ends in a newline
        seen = (n for n in range(1, len(tokens) + 1) if any(s in "\n" + tokenizer.decode(tokens[:n]) for s in stop))
        assert found == next(seen, None)
        assert (found is not None) == any(s in whole for s in stop)


def test_an_answer_is_cut_before_the_first_stop_string():
    assert cut("def f(): pass\n```\nThat is it", ("\n```", "That")) == "def f(): pass"
    assert cut("def f(): pass", ("\n```",)) == "def f(): pass"
    assert cut("abc", ("c", "b")) == "a"


def test_nothing_is_generated_twice(model, tokenizer, tmp_path):
    first = generate(model, tokenizer, tmp_path / "s.jsonl")
    before = (tmp_path / "s.jsonl").read_bytes()
    assert generate(None, tokenizer, tmp_path / "s.jsonl") == first  # no model is needed any more
    assert (tmp_path / "s.jsonl").read_bytes() == before


@pytest.mark.parametrize("damage", [b'{"task_id": "MiniMbpp/90', b"[1]\n", b'{"task_id": []}\n{"x": 1}\n', b"\xff\xfe"])
def test_half_a_line_is_repaired_and_only_the_missing_tasks_are_generated(damage, model, tokenizer, tmp_path):
    path = tmp_path / "s.jsonl"
    whole = generate(model, tokenizer, path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:4]) + damage)
    said = []
    assert generate(model, tokenizer, path, progress=said.append) == whole
    assert said[0] == "4 solutions were there already, 3 to go"
    assert untimed(path.read_bytes().splitlines()) == untimed(lines)


def untimed(lines):
    """The samples of a file in a fixed order, without the seconds they took."""
    rows = ({**json.loads(line), "seconds": None} for line in lines)
    return sorted(rows, key=lambda row: row["task_id"])


def test_a_change_of_model_protocol_or_limit_makes_old_lines_void(model, tokenizer, tmp_path):
    path = tmp_path / "s.jsonl"
    generate(model, tokenizer, path, model_key="a")
    for change in ({"model_key": "b"}, {"max_new_tokens": 8}, {"protocol": "evalplus"}):
        said = []
        generate(model, tokenizer, path, **{"model_key": "a", **change}, progress=said.append)
        assert not said[0].endswith("to go")
        assert len(path.read_text().splitlines()) == 7
        assert len({json.loads(line)["key"] for line in path.read_text().splitlines()}) == 7


def test_the_model_is_asked_as_it_was_trained(tokenizer):
    """Template, tokens and opening of the answer are those of a training sample that begins with a code block."""
    from codeact_lib.evaluation.generation import encode_task

    asked = encode_task(tokenizer, tasks()[0], TEMPLATES["deepseek-coder"], "codeact")
    instruction = benchmark_instruction("mbpp", tasks()[0]["prompt"])
    answer = "```python\ndef f(a):\n    return a\n```"
    trained = tokenize_example(tokenizer, TEMPLATES["deepseek-coder"], instruction, answer, 500)
    assert trained["input_ids"][: len(asked)] == asked and asked[0] == tokenizer.bos_token_id


def test_under_raw_the_task_itself_is_continued_and_stands_in_front_of_the_answer(model, tokenizer, tmp_path):
    asked = [{"task_id": "HumanEval/0", "prompt": '\n\ndef f(a):\n    """Sum."""\n', "entry_point": "f"}]
    text = 'def f(a):\n    """Sum."""\n'
    (row,) = generate(model, tokenizer, tmp_path / "raw.jsonl", tasks=asked, protocol="raw")
    ids = [tokenizer.bos_token_id, *tokenizer.encode(text, add_special_tokens=False)]
    answer = tokenizer.decode(one_at_a_time(model, ids, 24)[len(ids) :], skip_special_tokens=True)
    assert row["raw"] == answer and answer and row["solution"] == text + answer


def test_raw_ends_an_answer_where_evalplus_does_and_not_at_the_program_it_asked_for():
    from evalplus.provider.utility import EOS, extra_eos_for_direct_completion

    for kind in ("humaneval", "mbpp"):
        ends = {end for end in EOS if not end.startswith("<")} | set(extra_eos_for_direct_completion(kind))
        assert set(PROTOCOLS["raw"].stop[kind]) == ends
    program = "def f(a):\n    return a\nassert f(1)"
    assert cut(program, PROTOCOLS["raw"].stop["mbpp"]) == "def f(a):\n    return a"


def test_the_asking_protocols_show_the_task_and_open_a_code_block():
    code = 'def f(x):\n    """Add."""\n'
    for name, protocol in PROTOCOLS.items():
        if protocol.raw:
            continue
        assert protocol.name == name and protocol.opening.endswith("```python\n")
        assert code.strip() in benchmark_instruction("humaneval", code, name)
        assert not benchmark_instruction("humaneval", code, name).endswith("\n")
    text = benchmark_instruction("mbpp", "'''\nWrite {prompt}.\nassert f() == '''x'''\n'''")
    assert text.endswith("Write {prompt}.\nassert f() == '''x'''")


def test_the_kind_of_a_task_is_in_its_id_or_in_its_prompt():
    function, text = "def f(x):\n    ...", "Write f."
    rows = [("HumanEval/0", text, "humaneval"), ("Mbpp/2", function, "mbpp"), ("T/1", function, "humaneval")]
    rows += [("T/1", text, "mbpp"), ("MiniHumanEval/3", text, "humaneval")]
    for task_id, prompt, kind in rows:
        assert task_kind({"task_id": task_id, "prompt": prompt, "entry_point": "f"}) == kind


def test_the_wording_is_had_without_torch():
    code = "import sys; from codeact_lib.prompts import benchmark_instruction; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_a_model_trained_with_another_template_is_refused_before_anything_is_written(model, tokenizer, tmp_path):
    path = tmp_path / "s.jsonl"
    with pytest.raises(ModelError, match="another prompt template .*train it again"):
        generate(model, tokenizer, path, trained_with=TEMPLATES["codellama"].sha256)
    assert not path.exists()
    same = generate(model, tokenizer, path, trained_with=TEMPLATES["deepseek-coder"].sha256)
    assert same == generate(model, tokenizer, tmp_path / "untrained.jsonl")


def test_the_batch_size_is_stamped_where_the_text_may_depend_on_it(model, tokenizer, tmp_path):
    import copy

    generate(model, tokenizer, tmp_path / "single.jsonl")
    generate(copy.deepcopy(model).bfloat16(), tokenizer, tmp_path / "half.jsonl", batch_size=2)
    single, half = (json.loads((tmp_path / f"{name}.jsonl").read_text().splitlines()[0]) for name in ("single", "half"))
    assert "batch_size" not in single
    assert (half["dtype"], half["batch_size"]) == ("bfloat16", 2)


def test_an_unmerged_adapter_answers_as_the_merged_model_does(model, tokenizer, tmp_path):
    import copy

    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = get_peft_model(copy.deepcopy(model), config).eval()
    unmerged = generate(adapted, tokenizer, tmp_path / "adapter.jsonl")
    merged = generate(adapted.merge_and_unload().eval(), tokenizer, tmp_path / "merged.jsonl")
    assert unmerged == merged != generate(model, tokenizer, tmp_path / "base.jsonl")


def test_progress_tells_the_rate_and_the_time_left(model, tokenizer, tmp_path):
    said = []
    generate(model, tokenizer, tmp_path / "s.jsonl", progress=said.append)
    assert re.fullmatch(r"7/7 solutions, [\d.]+/s, 0 s left", said[-1])


def test_each_protocol_has_a_twin_that_asks_the_same_and_keeps_the_imports():
    for name in ("codeact", "evalplus"):
        plain, twin = get_protocol(name), get_protocol(f"{name}+imports")
        assert (twin.instructions, twin.opening, twin.stop) == (plain.instructions, plain.opening, plain.stop)
        assert twin.imports_in_front and not plain.imports_in_front and twin.name != plain.name
    with pytest.raises(EvaluationError, match="codeact, evalplus"):
        get_protocol("leaderboard")


def test_vllm_is_asked_for_by_name_and_its_absence_is_said_with_the_remedy():
    if importlib.util.find_spec("vllm"):
        pytest.skip("vLLM is installed here")
    from codeact_lib.evaluation.vllm import load_vllm

    with pytest.raises(ModelError, match="not installed here .*generation_engine: transformers"):
        load_vllm("some/model")


@pytest.mark.parametrize(("tuning", "packed"), [("lora", None), ("qlora", "bitsandbytes")])
def test_vllm_loads_an_adapter_on_the_base_it_was_trained_on(tuning, packed, tmp_path, monkeypatch):
    """vLLM needs a GPU: a stand-in with its call signature takes its place and keeps what it was asked for."""
    from types import ModuleType

    from codeact_lib.evaluation.vllm import load_vllm

    modules = {name: ModuleType(name) for name in ("vllm", "vllm.lora", "vllm.lora.request")}
    modules["vllm"].LLM = lambda **named: named
    modules["vllm.lora.request"].LoRARequest = lambda *named: named
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    (tmp_path / "model").mkdir()
    config = {"base_model_name_or_path": "some/base", "revision": "abc", "r": 8}
    (tmp_path / "model" / "adapter_config.json").write_text(json.dumps(config))
    (tmp_path / "train_metrics.json").write_text(json.dumps({"tuning": tuning}))
    loaded = load_vllm(tmp_path / "model")
    asked = loaded.engine
    assert (asked["model"], asked["revision"], asked["max_lora_rank"]) == ("some/base", "abc", 8)
    assert asked.get("quantization") == packed and loaded.adapter[2] == str(tmp_path / "model")


def test_vllm_gets_token_ids_stop_strings_and_the_adapter(tokenizer, tmp_path, monkeypatch):
    """vLLM needs a GPU: a stand-in with its call signature takes its place and answers with fixed tokens."""
    from types import ModuleType, SimpleNamespace

    from codeact_lib.evaluation.vllm import VllmModel

    asked = []

    class Engine:
        def generate(self, prompts, sampling, *, lora_request, use_tqdm):
            asked.extend((prompt["prompt_token_ids"], sampling, lora_request) for prompt in prompts)
            tokens = tokenizer("return a\n```\nmore", add_special_tokens=False)["input_ids"]
            return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=tokens)]) for _ in prompts]

    stand_in = ModuleType("vllm")
    stand_in.SamplingParams = lambda **named: named
    monkeypatch.setitem(sys.modules, "vllm", stand_in)
    model = VllmModel(Engine(), "the adapter", {"engine": "vllm", "dtype": "bfloat16"})
    rows = generate(model, tokenizer, tmp_path / "s.jsonl", batch_size=4)
    assert {row["solution"] for row in rows} == {"return a"} and len(asked) == 7
    ids, sampling, adapter = asked[0]
    assert ids[0] == tokenizer.bos_token_id and adapter == "the adapter"
    assert sampling["temperature"] == 0 and sampling["stop"] == ["\n```"] and sampling["max_tokens"] == 24
    assert '"batch_size": 4' in (tmp_path / "s.jsonl").read_text()
